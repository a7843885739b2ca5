"""The price history: when snapshots are written, which count, and how they are loaded."""

import datetime
from pathlib import Path

import pytest

from quant_assets.listings.stages import EnrichedListings
from quant_assets.listings.workspace import Workspace
from quant_assets.warehouse.connection import Warehouse
from quant_assets.warehouse.loads.listings import load_listing_history
from quant_assets.warehouse.price_history import intact_snapshots, record_prices

START = datetime.datetime(2026, 5, 4, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "w.duckdb")


def offers(*prices: float | None) -> EnrichedListings:
    """Offers of one card by different sellers."""
    workspace = Workspace.create()
    workspace.query(
        "create table offers as select md5(i::varchar) as row_id, 'shop ' || i as seller, "
        "'L4' as title, null::varchar as url, 'L4' as canonical_name, 1 as gpu_count, "
        "'purchase' as price_kind, price as price_usd, price as price_per_gpu_usd "
        "from (select unnest($prices::double[]) as price, generate_subscripts($prices, 1) as i)",
        {"prices": list(prices)},
    )
    return EnrichedListings(workspace, "offers")


def test_a_snapshot_is_written_only_when_a_price_changed(tmp_path: Path, warehouse: Warehouse):
    first = record_prices(offers(2500, 2600, None), tmp_path / "history", START)
    same = record_prices(offers(2500, 2600), tmp_path / "history", START + DAY)
    cheaper = record_prices(offers(2400, 2600), tmp_path / "history", START + 2 * DAY)
    back = record_prices(offers(2500, 2600), tmp_path / "history", START + 3 * DAY)
    assert first and cheaper and back and same is None
    assert len({first, cheaper, back}) == 3
    for _ in range(2):  # loading again replaces
        with warehouse.write() as connection:
            assert load_listing_history(connection, tmp_path / "history") == 6
    with warehouse.read() as connection:
        changes = connection.execute(
            "select recorded_at, price_usd from raw.listing_history where seller = 'shop 1' order by 1"
        ).fetchall()
    assert [(at.astimezone(datetime.UTC), price) for at, price in changes] == [
        (START, 2500.0),
        (START + 2 * DAY, 2400.0),
        (START + 3 * DAY, 2500.0),
    ]


def test_a_snapshot_from_the_future_hides_nothing_and_is_left_out(tmp_path: Path) -> None:
    folder, tomorrow = tmp_path / "history", START + 3 * DAY
    future = record_prices(offers(2500), folder, tomorrow)
    assert future and record_prices(offers(2500), folder, START) is None
    first = record_prices(offers(2400), folder, START)
    assert first and record_prices(offers(2400), folder, START + DAY) is None
    back = record_prices(offers(2500), folder, START + DAY)
    assert intact_snapshots(folder, START + DAY) == [first, back]
    assert intact_snapshots(folder, tomorrow) == [first, back, future]


def test_a_time_without_a_zone_is_utc(tmp_path: Path) -> None:
    path = record_prices(offers(2500), tmp_path, START.replace(tzinfo=None))
    assert path and path.name.startswith("20260504T000000.000000Z_")


def test_damaged_snapshots_are_set_aside_and_foreign_files_left_alone(
    tmp_path: Path, warehouse: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "[1] 'history'"
    paths = [record_prices(offers(price), folder, START + price * DAY) for price in (1, 2, 3, 4, 5)]
    empty, cut, other, changed, whole = [path for path in paths if path]
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:-9])
    other.write_bytes(changed.read_bytes())
    changed.write_bytes(
        bytes(byte ^ (index == 40) for index, byte in enumerate(whole.read_bytes()))
    )
    (folder / "mine.parquet").write_text("notes")
    assert intact_snapshots(folder, START + 9 * DAY) == [whole]
    assert all(path.with_name(f"{path.name}.damaged").exists() for path in (empty, cut, other))
    assert all(path.name in caplog.text for path in (empty, cut, other, changed))
    assert (folder / "mine.parquet").exists() and "mine.parquet" in caplog.text
    with warehouse.write() as connection:
        assert load_listing_history(connection, folder) == 1


def test_without_snapshots_the_history_is_empty(tmp_path: Path, warehouse: Warehouse):
    with warehouse.write() as connection:
        assert load_listing_history(connection, tmp_path / "nothing") == 0
