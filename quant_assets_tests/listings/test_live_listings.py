"""Live prices from a catalog served on localhost, and the fallback when it is unreachable."""

import io
import threading
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from quant_assets.errors import ResourceError
from quant_assets.listings.live import LIVE_OFFERS_MAX_AGE, LiveListings, fetch_live_listings
from quant_assets.listings.pipeline import run_pipeline

pytest.importorskip("gpuhunt")

CATALOG = """\
instance_name,location,price,cpu,memory,gpu_count,gpu_name,gpu_memory,spot,disk_size,gpu_vendor
g6.xlarge,us-east-1,0.8048,4,16,1,L4,24,False,,nvidia
g6.12xlarge,us-east-1,4.6016,48,192,4,L4,24,False,,nvidia
g6.xlarge,us-east-1,0.3,4,16,1,L4,24,True,,nvidia
m5.large,us-east-1,0.096,2,8,0,,,False,,
"""


class CatalogServer(BaseHTTPRequestHandler):
    """Serves the catalog of one provider; the others do not exist."""

    def do_GET(self) -> None:
        if self.path == "/aws/version":
            body = b"20260101"
        elif self.path == "/aws/20260101/catalog.zip":
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr("aws.csv", CATALOG)
            body = buffer.getvalue()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def catalog(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), CatalogServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_offers_become_listings_with_hourly_prices(
    catalog: ThreadingHTTPServer, tmp_path: Path
) -> None:
    live = fetch_live_listings(tmp_path)
    assert (live.offers, live.warning, live.is_fresh()) == (3, None, True)
    frame = run_pipeline([live.path]).enriched.frame()
    assert set(frame["canonical_name"]) == {"L4"}
    assert set(frame["price_kind"]) == {"hourly"}
    found = sorted(zip(frame["gpu_count"], frame["price_per_gpu_usd"], strict=True))
    assert found == [(1, 0.3), (1, 0.8048), (4, pytest.approx(1.1504))]
    assert set(frame["condition"]) == {"spot", "on demand"}


def test_without_network_the_previous_offers_are_used_with_a_warning(
    catalog: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = fetch_live_listings(tmp_path)
    content = fetched.path.read_bytes()
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", "http://127.0.0.1:9")
    stale = fetch_live_listings(tmp_path)
    assert stale.warning is not None and "fetching failed" in stale.warning
    assert (stale.fetched_at, stale.offers) == (fetched.fetched_at, 3)
    assert not stale.is_fresh()
    assert stale.path.read_bytes() == content


def test_without_network_and_without_a_snapshot_it_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", "http://127.0.0.1:9")
    with pytest.raises(ResourceError, match="none are kept from earlier"):
        fetch_live_listings(tmp_path)


def test_fetched_offers_expire(catalog: ThreadingHTTPServer, tmp_path: Path) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    live = fetch_live_listings(tmp_path, now=now)
    assert live.is_fresh(now + LIVE_OFFERS_MAX_AGE)
    assert not live.is_fresh(now + LIVE_OFFERS_MAX_AGE + timedelta(seconds=1))


def test_a_time_in_the_future_is_not_fresh(tmp_path: Path) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert LiveListings(tmp_path, now + timedelta(minutes=5), 1).is_fresh(now)
    assert not LiveListings(tmp_path, now + timedelta(days=1), 1).is_fresh(now)


@pytest.mark.parametrize(
    "kept",
    [
        "[]",
        "[" * 100_000,
        '{"fetched_at": 1, "offers": []}',
        '{"fetched_at": "2026-01-01", "offers": 5}',
    ],
)
def test_a_damaged_snapshot_is_one_error(
    kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", "http://127.0.0.1:9")
    (tmp_path / "live.json").write_text(kept)
    with pytest.raises(ResourceError, match="none are kept"):
        fetch_live_listings(tmp_path)
    (tmp_path / "live.json").write_text('{"fetched_at": "2026-01-01T10:00", "offers": []}')
    assert fetch_live_listings(tmp_path).fetched_at == datetime(2026, 1, 1, 10, tzinfo=UTC)
