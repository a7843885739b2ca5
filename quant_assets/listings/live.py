"""Live prices of cloud providers, through the optional library gpuhunt, as listings.

A fetched catalog is kept as a JSON file of listings, `live.json`, which `read_raw` reads like any
other. Without a network the previous one stays in use, with a warning that states its age.
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

LIVE_OFFERS_MAX_AGE = timedelta(days=2)
"""Older live offers are no longer fresh.

This is the age of the offers themselves, not that of the last read of listing files, whose limit is
the freshness check of `raw_listings`.
"""
MAX_CLOCK_ERROR = timedelta(minutes=10)
"""Offers from further in the future have a wrong timestamp, so their age is unknown."""

_SNAPSHOT = "live.json"
_TIMEOUT_S = 20.0
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveListings:
    """The file of the live offers and the time they were fetched."""

    path: Path
    fetched_at: datetime
    offers: int
    warning: str | None = None
    """Why the offers are not current; None when they are."""

    def is_fresh(self, now: datetime | None = None) -> bool:
        """Whether the last fetch succeeded and the offers' age is known and within the limit."""
        age = (now or datetime.now(UTC)) - self.fetched_at
        return self.warning is None and -MAX_CLOCK_ERROR <= age <= LIVE_OFFERS_MAX_AGE


def fetch_live_listings(
    folder: Path, *, providers: Sequence[str] | None = None, now: datetime | None = None
) -> LiveListings:
    """Fetch the offers of cloud providers into `folder`; fall back to the previous ones.

    `providers` are gpuhunt's names; default: all with a public catalog. The environment variable
    `GPUHUNT_CATALOG_URL` selects another catalog server. Raises `EnvironmentNotReady` when gpuhunt
    is not installed, and `ResourceError` when fetching fails and there are no previous offers.
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
    """All offers with GPUs from a fresh catalog; network errors are passed on."""
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
        raise ConnectionError("the catalogs contain no offer with a GPU")
    return [_listing(item) for item in items]


@contextmanager
def _network_timeout() -> Iterator[None]:
    """Limit the wait for servers; gpuhunt itself sets no timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _listing(item: Any) -> dict[str, Any]:
    """A catalog item as a listing; its price is for all its GPUs."""
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
    """The previous offers, with a warning that states why they are used."""
    reason = f"{type(error).__name__}: {error}".rstrip(". ")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stated = datetime.fromisoformat(content["fetched_at"])
        # This module writes UTC; a time without a zone was edited and counts as UTC.
        fetched_at = (stated if stated.tzinfo else stated.replace(tzinfo=UTC)).astimezone(UTC)
        if not isinstance(content["offers"], list):
            raise TypeError("the offers are not a list")
        offers = len(content["offers"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as missing:
        raise ResourceError(
            "Live prices cannot be fetched, and none are kept from earlier.",
            f"{reason}.",
            "Check the network, or work with listing files only.",
        ) from missing
    warning = f"Using live prices of {fetched_at:%Y-%m-%d %H:%M} UTC; fetching failed: {reason}."
    _logger.warning(warning)
    return LiveListings(path, fetched_at, offers, warning)
