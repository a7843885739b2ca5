"""Live prices of cloud providers, through the optional library gpuhunt, as listings.

A fetched catalog is kept as a JSON file of listings, `live.json`, which `read_raw` reads like any
other. Without a network the last one stays in use, and says how old it is.
"""

import json
import logging
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from quant_assets.atomic_files import write_text_atomically
from quant_assets.errors import EnvironmentNotReady, ResourceError

MAX_AGE = timedelta(days=2)
"""Older live prices are not fresh any more."""
MAX_CLOCK_ERROR = timedelta(minutes=10)
"""Prices from further in the future have a time that is wrong, so their age is not known."""

_SNAPSHOT = "live.json"
_TIMEOUT_S = 20.0
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveListings:
    """Where the live offers are and of when they are."""

    path: Path
    fetched_at: datetime
    offers: int
    warning: str | None = None
    """Why the offers are not of now; None when they are."""

    def is_fresh(self, now: datetime | None = None) -> bool:
        """Whether the last attempt fetched the offers, and their age is known and in `MAX_AGE`."""
        age = (now or datetime.now(UTC)) - self.fetched_at
        return self.warning is None and -MAX_CLOCK_ERROR <= age <= MAX_AGE


def fetch_live_listings(
    folder: Path, *, providers: Sequence[str] | None = None, now: datetime | None = None
) -> LiveListings:
    """Fetch the offers of cloud providers into `folder`; fall back on those fetched last.

    `providers` are gpuhunt's names; default: all whose catalog is public. The environment variable
    `GPUHUNT_CATALOG_URL` names another server of the catalogs. Raises `EnvironmentNotReady` when
    gpuhunt is not installed, and `ResourceError` when nothing can be fetched and nothing is kept.
    """
    path = folder / _SNAPSHOT
    try:
        rows = _query(providers)
    except EnvironmentNotReady:
        raise
    except Exception as error:
        return _last_snapshot(path, error)
    fetched_at = now or datetime.now(UTC)
    content = {"fetched_at": fetched_at.isoformat(), "offers": rows}
    write_text_atomically(path, json.dumps(content, indent=1))
    return LiveListings(path, fetched_at, len(rows))


def _query(providers: Sequence[str] | None) -> list[dict[str, Any]]:
    """The offers with GPUs of a fresh catalog; raises whatever the network raises."""
    try:
        from gpuhunt import Catalog
    except ImportError as error:
        raise EnvironmentNotReady(
            "Live prices need the library gpuhunt.",
            "It is not installed in this environment.",
            "Install the project with the extra 'live'.",
        ) from error
    catalog = Catalog(auto_reload=False)
    with _network_timeout():
        catalog.load()
    items = catalog.query(provider=list(providers) if providers else None, min_gpu_count=1)
    if not items:
        raise ConnectionError("the catalogs hold no offer with a GPU")
    return [_listing(item) for item in items]


@contextmanager
def _network_timeout() -> Iterator[None]:
    """Bound the waiting for servers; gpuhunt itself sets no timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _listing(item: Any) -> dict[str, Any]:
    """One catalog item in the columns of a listing; the price is for all its GPUs."""
    memory = f" {item.gpu_memory:g}GB" if item.gpu_memory else ""
    return {
        "title": f"{item.gpu_name}{memory}",
        "provider": item.provider,
        "gpu_count": item.gpu_count,
        "price": item.price,
        "currency": "USD",
        "price_unit": "hour",
        "region": item.location,
        "condition": "spot" if item.spot else "on demand",
        "url": f"{item.provider}:{item.instance_name}",
    }


def _last_snapshot(path: Path, error: Exception) -> LiveListings:
    """The offers fetched last, with a warning why they are used."""
    reason = f"{type(error).__name__}: {error}".rstrip(". ")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stated = datetime.fromisoformat(content["fetched_at"])
        # A time without a zone was written by other hands; it counts as UTC.
        fetched_at = (stated if stated.tzinfo else stated.replace(tzinfo=UTC)).astimezone(UTC)
        if not isinstance(content["offers"], list):
            raise TypeError("the offers are not a list")
        offers = len(content["offers"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as missing:
        raise ResourceError(
            "Live prices cannot be fetched, and none are kept from before.",
            f"{reason}.",
            "Check the network, or work with listing files only.",
        ) from missing
    warning = f"Live prices of {fetched_at:%Y-%m-%d %H:%M} UTC are used; fetching failed: {reason}."
    _logger.warning(warning)
    return LiveListings(path, fetched_at, offers, warning)
