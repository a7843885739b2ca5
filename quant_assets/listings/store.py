"""The listings folder of the data root: its paths, the snapshots of every stage, the parse cache.

    raw/{rows,rejected}.parquet          normalized/{rows,quarantined}.parquet
    enriched/rows.parquet                live/live.json
    parsed/<file digest>...parquet       history/<time>_<digest>.parquet

Snapshots are written atomically. Everything but the price history can be rebuilt from the listing
files.
"""

import hashlib
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import duckdb

from quant_assets.atomic_files import atomic_path, replace_durably
from quant_assets.duckdb_files import READ_OPTIONS, readable
from quant_assets.errors import InputError
from quant_assets.listings.headers import TEXT_COLUMNS
from quant_assets.listings.stages import EnrichedListings, NormalizedListings, RawListings, Stage
from quant_assets.listings.workspace import Workspace, first_line

ListingTable = Literal["raw_listings", "quarantined_listings", "enriched_listings"]
LISTING_TABLES: tuple[ListingTable, ...] = (
    "raw_listings",
    "quarantined_listings",
    "enriched_listings",
)
"""The tables of the warehouse that are loaded from snapshots of the stages."""

_TABLE_SNAPSHOTS: dict[ListingTable, tuple[type[Stage], str]] = {
    "raw_listings": (RawListings, "rows"),
    "quarantined_listings": (NormalizedListings, "quarantined"),
    "enriched_listings": (EnrichedListings, "rows"),
}
_RAW_COLUMNS = ("position", "row_id", "source_file", "line_number", *TEXT_COLUMNS, "extra")
_REJECTED_COLUMNS = ("row_id", "source_file", "line_number", "title", "reason", "detail")
_PRICED_COLUMNS = (
    *("position", "row_id", "title", "seller", "url", "canonical_name", "gpu_count"),
    *("price_kind", "price_usd", "price_per_gpu_usd", "collapsed_duplicates", "extra"),
)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Layout:
    folder: str
    tables: Mapping[str, Sequence[str]]
    """Field of the stage -> columns that the next stage needs from its snapshot."""


_LAYOUTS: dict[type[Stage], _Layout] = {
    RawListings: _Layout("raw", {"rows": _RAW_COLUMNS, "rejected": _REJECTED_COLUMNS}),
    NormalizedListings: _Layout(
        "normalized", {"rows": _PRICED_COLUMNS, "quarantined": _REJECTED_COLUMNS[:-1]}
    ),
    EnrichedListings: _Layout("enriched", {"rows": (*_PRICED_COLUMNS, "vram_gb")}),
}
_AnyStage = TypeVar("_AnyStage", bound=Stage)


@dataclass(frozen=True)
class ParseCache:
    """Parquet snapshots of parsed listing files; an unchanged file is not parsed again.

    A snapshot's name is `<stem>.<digest of its content>.parquet`, so damage is detected.
    """

    folder: Path

    def find(self, stem: str) -> Path | None:
        """The intact snapshot with this stem, if any; damaged ones are deleted with a warning."""
        for snapshot in self.folder.glob(f"{stem}.*.parquet"):
            if snapshot.is_file() and snapshot.name == f"{stem}.{_digest(snapshot)}.parquet":
                return snapshot
            _logger.warning("The snapshot %s is damaged; its file is parsed again.", snapshot)
            snapshot.unlink()
        return None

    def add(self, stem: str, write: Callable[[Path], object]) -> Path:
        """Let `write` create a snapshot at the path it is given; return its final path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{stem}.{secrets.token_hex(6)}.tmp"
        try:
            write(temporary)
            snapshot = self.folder / f"{stem}.{_digest(temporary)}.parquet"
            replace_durably(temporary, snapshot)
        finally:
            temporary.unlink(missing_ok=True)
        return snapshot


@dataclass(frozen=True)
class ListingStore:
    """All files that the listings keep under `root` (`Settings.listings`)."""

    root: Path

    @property
    def live_folder(self) -> Path:
        """Folder of the fetched live offers, a listing file like any other."""
        return self.root / "live"

    @property
    def price_history(self) -> Path:
        """Folder of the price history's snapshots."""
        return self.root / "history"

    @property
    def parse_cache(self) -> ParseCache:
        """Cache of the parsed listing files, shared by the graph and the command line."""
        return ParseCache(self.root / "parsed")

    def snapshot(self, table: ListingTable) -> Path:
        """Path of the snapshot from which a table of the warehouse is loaded."""
        return self._path(*_TABLE_SNAPSHOTS[table])

    def save(self, stage: Stage) -> None:
        """Write the stage's tables as Parquet snapshots, each of them atomically.

        Raises `ResourceError` when the disk is full or the folder is not writable.
        """
        kind, workspace = type(stage), stage.workspace
        for field in _LAYOUTS[kind].tables:
            with atomic_path(self._path(kind, field)) as temporary:
                rows = workspace.in_order(getattr(stage, field))
                workspace.copy(f"SELECT * FROM {rows}", temporary)  # noqa: S608, own names

    def load(self, stage: type[_AnyStage]) -> _AnyStage:
        """Read the snapshots of a stage, in a workspace of their own.

        Raises `InputError` when one is missing or damaged.
        """
        workspace = Workspace.create()
        tables: dict[str, Any] = {
            field: _read_snapshot(workspace, self._path(stage, field), columns)
            for field, columns in _LAYOUTS[stage].tables.items()
        }
        return stage(workspace, **tables)

    def load_all(self) -> tuple[RawListings, NormalizedListings, EnrichedListings]:
        """All stages as last written; raises `InputError` when one is missing or damaged."""
        return self.load(RawListings), self.load(NormalizedListings), self.load(EnrichedListings)

    def _path(self, stage: type[Stage], field: str) -> Path:
        return self.root / _LAYOUTS[stage].folder / f"{field}.parquet"


def _read_snapshot(workspace: Workspace, path: Path, columns: Sequence[str]) -> str:
    """Copy a snapshot into a new table, check its columns and return the table's name."""
    if not path.is_file():
        raise InputError(
            f"The folder {path.parent} has no {path.name}.",
            "The stage that writes it has not been run, or its snapshot was removed.",
            "Run the previous stage.",
        )
    table = workspace.new_name(path.stem)
    try:
        with readable(path) as pattern:
            workspace.connection.execute(
                f"CREATE TABLE {table} AS SELECT * FROM read_parquet(?, {READ_OPTIONS})",  # noqa: S608, own names
                [pattern],
            ).fetchall()
        described = {column for column, *_ in workspace.query(f"DESCRIBE {table}")}
        if missing := [column for column in columns if column not in described]:
            raise duckdb.InvalidInputException(f"it has no column {missing[0]}")
    except (duckdb.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"The file {path} is damaged or not a table of listings.",
            f"{first_line(error)}.",
            "Read the listings again: `quant-assets demo`, or the job refresh_listings.",
        ) from error
    return table


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:32]
