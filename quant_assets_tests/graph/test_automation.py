"""Schedules and sensors, by evaluating them."""

import datetime
import json

import dagster as dg
from conftest import LISTINGS, Installation


def evaluate(installation: Installation, cursor: str | None) -> dg.SensorResult | dg.SkipReason:
    sensor = installation.definitions.resolve_sensor_def("listing_files")
    with dg.build_sensor_context(
        instance=installation.instance,
        cursor=cursor,
        resources=dict(installation.definitions.resources or {}),
    ) as context:
        result = sensor(context)
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def test_new_changed_and_removed_files_are_noticed_once(installation: Installation):
    drop = installation.settings.listings_drop_folder
    first = evaluate(installation, None)
    assert isinstance(first, dg.SensorResult)
    assert first.run_requests is not None
    assert len(first.run_requests) == 1
    assert isinstance(evaluate(installation, first.cursor), dg.SkipReason)
    extra = drop / "more.csv"
    try:
        keys = {first.run_requests[0].run_key}
        cursor = first.cursor
        for content in ("title\nNVIDIA L4\n", "title\nNVIDIA T4\n", None):
            if content is None:
                extra.unlink()
            else:
                extra.write_text(content)
            result = evaluate(installation, cursor)
            assert isinstance(result, dg.SensorResult)
            assert result.run_requests is not None
            assert result.run_requests[0].tags["listing_files"] == "more.csv"
            keys.add(result.run_requests[0].run_key)
            cursor = result.cursor
            assert isinstance(evaluate(installation, cursor), dg.SkipReason)
        assert len(keys) == 4, "each change is a run of its own"
        assert json.loads(cursor or "") == json.loads(first.cursor or "")
    finally:
        extra.unlink(missing_ok=True)
    assert (drop / "offers.csv").read_text() == LISTINGS


def test_a_file_that_is_no_listing_is_ignored(installation: Installation):
    cursor = evaluate(installation, None).cursor
    note = installation.settings.listings_drop_folder / "notes.txt"
    note.write_text("not a listing")
    try:
        assert isinstance(evaluate(installation, cursor), dg.SkipReason)
    finally:
        note.unlink()


def test_the_daily_schedule_asks_for_listings_and_marts(installation: Installation):
    schedule = installation.definitions.resolve_schedule_def("daily_listings")
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
    at = datetime.datetime(2026, 1, 2, 6, 0, tzinfo=datetime.UTC)
    with dg.build_schedule_context(
        instance=installation.instance, scheduled_execution_time=at
    ) as context:
        requests = schedule.evaluate_tick(context).run_requests
    assert len(requests or []) == 1
    job = installation.definitions.resolve_job_def(schedule.job_name)
    selected = {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
    assert {"raw_listings", "enriched_listings", "deployment_options"} <= selected
    assert not any("benchmark_results" in key for key in selected)
