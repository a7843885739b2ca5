"""Schedules, sensors, automation conditions and freshness checks, evaluated directly."""

import datetime
import json
import time

import dagster as dg

from quant_assets_tests.installation import LISTINGS, Installation, cell


def evaluate(
    installation: Installation, cursor: str | None, name: str = "listing_files"
) -> dg.SensorResult | dg.SkipReason:
    sensor = installation.definitions.resolve_sensor_def(name)
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
        assert len(keys) == 4, "one run per change"
        assert json.loads(cursor or "") == json.loads(first.cursor or "")
    finally:
        extra.unlink(missing_ok=True)
    assert (drop / "offers.csv").read_text() == LISTINGS


def test_files_other_than_listings_are_ignored(installation: Installation):
    cursor = evaluate(installation, None).cursor
    note = installation.settings.listings_drop_folder / "notes.txt"
    note.write_text("not a listing")
    try:
        assert isinstance(evaluate(installation, cursor), dg.SkipReason)
    finally:
        note.unlink()


def test_the_daily_schedule_requests_listings_and_marts(installation: Installation):
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


def test_a_new_model_is_fetched_and_quantized_once(installation: Installation):
    result = evaluate(installation, json.dumps(["tiny"]), "model_entries")
    assert isinstance(result, dg.SensorResult)
    requests = result.run_requests or []
    assert [request.job_name for request in requests] == ["tiny_2_source", "tiny_2_artifacts"]
    assert requests[1].tags["dagster/asset_partition_range_start"] == "F16"
    assert isinstance(evaluate(installation, result.cursor, "model_entries"), dg.SkipReason)


def test_a_listed_model_that_is_not_served_yet_requests_a_reload(installation: Installation):
    models = installation.settings.models_yaml
    content = models.read_text()
    try:
        models.write_text(content + "  - {name: tiny-3, source: models/tiny-source}\n")
        skipped = evaluate(installation, None, "model_entries")
        assert isinstance(skipped, dg.SkipReason)
        assert "tiny-3" in str(skipped.skip_message)
    finally:
        models.write_text(content)


def test_the_weekly_schedule_requests_every_cell_with_one_run_per_variant(
    installation: Installation,
):
    schedule = installation.definitions.resolve_schedule_def("weekly_benchmarks_tiny")
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
    at = datetime.datetime(2026, 1, 3, 2, 0, tzinfo=datetime.UTC)
    with dg.build_schedule_context(
        instance=installation.instance, scheduled_execution_time=at
    ) as context:
        requests = schedule.evaluate_tick(context).run_requests or []
    ranges = {
        (
            request.tags["dagster/asset_partition_range_start"],
            request.tags["dagster/asset_partition_range_end"],
        )
        for request in requests
    }
    assert ranges == {
        ("1|f16", "8|f16"),
        ("1|q8_0-kv-hybrid", "8|q8_0-kv-hybrid"),
        ("1|q4_K_M", "8|q4_K_M"),
    }


def test_the_monthly_schedule_rebuilds_everything(installation: Installation):
    schedule = installation.definitions.resolve_schedule_def("monthly_rebuild")
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
    assert schedule.job_name == "full_rebuild"
    assert schedule.cron_schedule == "0 1 1 * *"


def test_tables_and_marts_follow_their_inputs(full_run: Installation):
    graph = full_run.definitions.resolve_asset_graph()
    before = dg.evaluate_automation_conditions(full_run.definitions, full_run.instance)
    assert full_run.run("tiny_2_benchmarks", cell("f16", 1)).success
    after = dg.evaluate_automation_conditions(
        full_run.definitions, full_run.instance, cursor=before.cursor
    )
    requested = {
        key.to_user_string()
        for key in graph.executable_asset_keys
        if after.get_num_requested(key) > 0
    }
    assert {"benchmark_runs", "stg_benchmark_runs", "variant_summary"} <= requested
    assert "raw_listings" not in requested
    assert "stg_listings" not in requested


def test_a_stale_listing_fails_its_freshness_check(full_run: Installation):
    checks = dg.build_last_update_freshness_checks(
        assets=["raw_listings"], lower_bound_delta=datetime.timedelta(seconds=0)
    )
    served = [
        key.name
        for key in full_run.definitions.resolve_asset_graph().asset_check_keys
        if key.asset_key == dg.AssetKey("raw_listings")
    ]
    assert served == ["freshness_check"]
    time.sleep(1)
    for lower_bound, passed in ((checks, False), (None, True)):
        definitions = (
            full_run.definitions
            if lower_bound is None
            else dg.Definitions(assets=[dg.AssetSpec("raw_listings")], asset_checks=lower_bound)
        )
        job = dg.define_asset_job(
            "freshness",
            selection=dg.AssetSelection.checks(
                dg.AssetCheckKey(dg.AssetKey("raw_listings"), "freshness_check")
            ),
        )
        merged = dg.Definitions.merge(definitions, dg.Definitions(jobs=[job]))
        result = merged.resolve_job_def("freshness").execute_in_process(instance=full_run.instance)
        (evaluation,) = result.get_asset_check_evaluations()
        assert evaluation.passed is passed
