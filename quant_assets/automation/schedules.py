"""Schedules; all are off until turned on in the UI."""

from collections.abc import Iterable, Iterator, Mapping

import dagster as dg

from quant_assets.assets.partitions import cell_key
from quant_assets.automation.jobs import (
    REFRESH_LISTINGS,
    AssetJob,
    benchmarks_job_name,
    range_tags,
)
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.variants import Variant
from quant_assets.models.config import ModelConfig


def build_schedules(
    jobs: list[AssetJob],
    models: Iterable[ModelConfig],
    variants: Mapping[str, Variant],
    settings: BenchSettings,
    full_rebuild: dg.JobDefinition,
) -> list[dg.ScheduleDefinition]:
    """Listings daily, benchmarks weekly, everything monthly; times are UTC."""
    by_name = {job.name: job for job in jobs}

    def weekly(model: ModelConfig) -> dg.ScheduleDefinition:
        @dg.schedule(
            name=f"weekly_benchmarks_{model.slug}",
            job=by_name[benchmarks_job_name(model)],
            cron_schedule="0 2 * * 6",
            execution_timezone="UTC",
            default_status=dg.DefaultScheduleStatus.STOPPED,
            description=f"Measures every variant of {model.name} again, one run per variant.",
        )
        def weekly_benchmarks(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
            week = context.scheduled_execution_time.strftime("%G-W%V")
            for variant in variants:
                keys = [cell_key(variant, size) for size in settings.batch_sizes]
                yield dg.RunRequest(run_key=f"{week} {variant}", tags=range_tags(keys))

        return weekly_benchmarks

    daily_listings = dg.ScheduleDefinition(
        name="daily_listings",
        job=by_name[REFRESH_LISTINGS],
        cron_schedule="0 6 * * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Reads the listing files and refreshes the marts.",
    )
    monthly_rebuild = dg.ScheduleDefinition(
        name="monthly_rebuild",
        job=full_rebuild,
        cron_schedule="0 1 1 * *",
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description=(
            "Runs listings, sources, artifacts (reused unless something changed), all benchmarks "
            "(measured again) and marts."
        ),
    )
    return [daily_listings, monthly_rebuild, *(weekly(model) for model in models)]
