"""The stages of the listings: raw, normalized and enriched rows, as tables of one workspace."""

from dataclasses import dataclass

import pandas as pd

from quant_assets.errors import CheckFailed
from quant_assets.listings.workspace import Workspace

ROW_ID = "md5(concat_ws(chr(31), source_file, line_number, title, price_text, url))"
"""The identity of a row, as an SQL expression over its columns."""


@dataclass(frozen=True)
class ReadFile:
    """How one file was read."""

    source_file: str
    sha256: str
    place: str
    """Path of its Parquet snapshot, or the name of the workspace's table that holds its rows."""
    parsed: bool
    """False when the cached snapshot of an unchanged file was used."""
    rows: int
    rejected: int


@dataclass(frozen=True)
class Stage:
    """Tables of one stage, by name in their workspace."""

    workspace: Workspace
    rows: str
    """Name of the stage's main table."""

    def frame(self, limit: int | None = None) -> pd.DataFrame:
        """The first `limit` rows (default: all) of the main table."""
        return self.workspace.frame(self.rows, limit)


@dataclass(frozen=True)
class RawListings(Stage):
    """Rows as text, exactly as written, and the rows that could not be parsed."""

    rejected: str
    files: tuple[ReadFile, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Row counts by outcome."""
        return {
            "rows": self.workspace.count(self.rows),
            "rejected": self.workspace.count(self.rejected),
        }


@dataclass(frozen=True)
class NormalizedListings(Stage):
    """Rows with their card and price, duplicates collapsed, and the quarantined rows."""

    quarantined: str

    @property
    def counts(self) -> dict[str, int]:
        """Row counts by outcome; together they equal the rows received."""
        kept, collapsed = self.workspace.query(
            f"SELECT count(*), coalesce(sum(collapsed_duplicates), 0)::BIGINT FROM {self.rows}"  # noqa: S608, own names
        )[0]
        return {
            "normalized": kept,
            "collapsed_duplicates": collapsed,
            "quarantined": self.workspace.count(self.quarantined),
        }

    @property
    def match_rate(self) -> float | None:
        """Share (0 to 1) of the received rows with a known card and price; None without rows."""
        counts = self.counts
        total = sum(counts.values())
        return (total - counts["quarantined"]) / total if total else None

    @property
    def quarantine_counts(self) -> dict[str, int]:
        """Quarantined rows per reason code, most frequent first."""
        return dict(
            self.workspace.query(
                f"SELECT reason, count(*) FROM {self.quarantined} GROUP BY reason ORDER BY 2 DESC, 1"  # noqa: S608, own names
            )
        )

    def quarantined_frame(self, limit: int | None = None) -> pd.DataFrame:
        """The first `limit` quarantined rows (default: all) with reason and explanation."""
        return self.workspace.frame(self.quarantined, limit)


@dataclass(frozen=True)
class EnrichedListings(Stage):
    """Normalized rows with the figures of their card and, on request, its capacity."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of enriched rows."""
        return {"enriched": self.workspace.count(self.rows)}


def check_conservation(
    raw: RawListings, normalized: NormalizedListings, enriched: EnrichedListings | None = None
) -> dict[str, int]:
    """Return the counts of all stages; raise `CheckFailed` when rows were lost or invented.

    Rows in = rows enriched + rows quarantined + duplicates collapsed into a kept row.
    """
    counts = {**raw.counts, **normalized.counts}
    received = counts["rows"] + counts["rejected"]
    kept = counts["normalized"]
    if enriched is not None:
        counts.update(enriched.counts)
        kept = counts["enriched"]
    accounted = kept + counts["quarantined"] + counts["collapsed_duplicates"]
    if received != accounted:
        raise CheckFailed(
            f"{received} rows came in and {accounted} are accounted for.",
            "Rows in must equal the sum of rows kept, quarantined and collapsed: "
            + ", ".join(f"{name} {number}" for name, number in counts.items())
            + ".",
            "Do not use this output; keep the input files and report the bug.",
        )
    return counts
