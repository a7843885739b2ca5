"""The price history: one Parquet snapshot per time at which an offer or a price changed."""

import datetime
import logging
import re
from pathlib import Path

import duckdb

from quant_assets.atomic_files import atomic_path
from quant_assets.duckdb_files import READ_OPTIONS, display_name, exact_pattern
from quant_assets.listings.stages import EnrichedListings
from quant_assets.listings.workspace import connect_in_memory
from quant_assets.record_files import CLOCK_TOLERANCE

_logger = logging.getLogger(__name__)
_STAMP = "%Y%m%dT%H%M%S.%fZ"
_NAME = re.compile(r"(?P<stamp>\d{8}T\d{6}\.\d{6}Z)_(?P<digest>[0-9a-f]{32})\.parquet")
_OFFERS = """
    SELECT md5(concat_ws(chr(31), seller, title, url, canonical_name, gpu_count, price_kind))
               AS offer_id,
           canonical_name, gpu_count, price_kind, seller, title, price_usd, price_per_gpu_usd
    FROM {rows}
    WHERE price_usd IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY offer_id ORDER BY price_usd, row_id) = 1
"""
_DIGEST = """
    SELECT md5(coalesce(
        string_agg(concat_ws('=', offer_id, price_usd), ';' ORDER BY offer_id), ''
    ))
"""


def record_prices(enriched: EnrichedListings, folder: Path, at: datetime.datetime) -> Path | None:
    """Write a snapshot of the priced offers at the time `at` (UTC) into `folder`; return its path.

    Returns None when the previous snapshot has the same offers and prices. The previous one is the
    newest that is not later than `at`, so that one written while the clock was ahead does not hide
    later changes. Snapshots are never modified; their names are their time and a digest of the
    content.
    """
    workspace = enriched.workspace
    offers = _OFFERS.format(rows=enriched.rows)
    (digest,) = workspace.query(f"{_DIGEST} FROM ({offers})")[0]
    at = _utc(at)
    known = _named_snapshots(folder)
    before = [path for stamp, path in known if stamp <= at]
    last = before[-1:] or [path for _, path in known[-1:]]
    if last and last[0].stem.endswith(f"_{digest}") and _fault(last[0]) is None:
        return None
    path = folder / f"{at.strftime(_STAMP)}_{digest}.parquet"
    with atomic_path(path) as temporary:
        workspace.copy(
            f"SELECT CAST(? AS TIMESTAMPTZ) AS recorded_at, * FROM ({offers}) ORDER BY offer_id",  # noqa: S608, own names
            temporary,
            parameters=[at.isoformat()],
        )
    return path


def intact_snapshots(folder: Path, now: datetime.datetime) -> list[Path]:
    """The undamaged snapshots in `folder`, oldest first.

    A damaged snapshot is renamed to `<name>.damaged`. Files with other names, and snapshots later
    than `now` by more than `CLOCK_TOLERANCE` (the clock was wrong), stay but are left out. A warning
    names each of these files.
    """
    latest = _utc(now) + CLOCK_TOLERANCE
    named = _named_snapshots(folder)
    known = {path for _, path in named}
    for foreign in sorted(set(folder.glob("*.parquet")) - known):
        _logger.warning("%s is not a price snapshot and is ignored.", display_name(foreign))
    intact = []
    for stamp, path in named:
        if stamp > latest:
            _logger.warning("%s is dated in the future and is ignored.", path)
        elif (fault := _fault(path)) is not None:
            _logger.warning("%s is damaged and has been set aside: %s.", path, fault)
            path.rename(path.with_name(f"{path.name}.damaged"))
        else:
            intact.append(path)
    return intact


def _named_snapshots(folder: Path) -> list[tuple[datetime.datetime, Path]]:
    """Time and path of each file with the name of a snapshot, oldest first."""
    found = []
    for path in folder.glob("*.parquet"):
        if (match := _NAME.fullmatch(path.name)) is None:
            continue
        try:
            stamp = datetime.datetime.strptime(match["stamp"], _STAMP)
        except ValueError:
            continue
        found.append((_utc(stamp), path))
    return sorted(found)


def _fault(path: Path) -> str | None:
    """The reason why the content does not match the digest in the name; None when it does."""
    query = (
        f"{_DIGEST}, count(recorded_at), count(*), any_value(columns(*)::VARCHAR) FROM "
        f"read_parquet(?, {READ_OPTIONS})"
    )
    try:
        with connect_in_memory() as connection:
            digest, stamped, rows, *_ = connection.execute(query, [exact_pattern(path)]).fetchall()[
                0
            ]
    except (duckdb.Error, OSError, UnicodeDecodeError) as error:
        return str(error).partition("\n")[0].rstrip(".")
    if not path.stem.endswith(f"_{digest}") or stamped != rows:
        return "its content is not what was written"
    return None


def _utc(time: datetime.datetime) -> datetime.datetime:
    """The time in UTC; a time without a zone is taken as UTC."""
    return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).astimezone(datetime.UTC)
