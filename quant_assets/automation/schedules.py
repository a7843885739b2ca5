"""Schedules; they are off until somebody turns them on in the UI."""

import dagster as dg

from quant_assets.automation.jobs import REFRESH_LISTINGS, AssetJob


def build_schedules(jobs: list[AssetJob]) -> list[dg.ScheduleDefinition]:
    """Listings and marts every day at 06:00 UTC."""
    by_name = {job.name: job for job in jobs}
    return [
        dg.ScheduleDefinition(
            name="daily_listings",
            job=by_name[REFRESH_LISTINGS],
            cron_schedule="0 6 * * *",
            execution_timezone="UTC",
            default_status=dg.DefaultScheduleStatus.STOPPED,
            description="Reads the listing files and refreshes the marts.",
        )
    ]
