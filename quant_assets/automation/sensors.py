"""Sensors: what happens in the file system becomes a run."""

import hashlib
import json

import dagster as dg

from quant_assets.automation.jobs import REFRESH_LISTINGS, AssetJob
from quant_assets.models.identity import HashCache
from quant_assets.resources.stores import DataRoot

LISTING_SUFFIXES = (".csv", ".parquet", ".json")
_INTERVAL_S = 30


def build_sensors(jobs: list[AssetJob]) -> list[dg.SensorDefinition]:
    """A sensor that runs the listings when a file in the drop folder is new, changed or gone."""

    @dg.sensor(
        name="listing_files",
        job=next(job for job in jobs if job.name == REFRESH_LISTINGS),
        minimum_interval_seconds=_INTERVAL_S,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Notices new, changed and removed files in the listings drop folder.",
    )
    def listing_files(
        context: dg.SensorEvaluationContext, data_root: DataRoot
    ) -> dg.SensorResult | dg.SkipReason:
        settings = data_root.settings
        folder = settings.listings_drop_folder
        hashes = HashCache(settings.cache / "file_hashes.json")
        seen = {
            path.name: hashes.sha256(path)
            for path in sorted(folder.glob("*"))
            if path.suffix.lower() in LISTING_SUFFIXES and path.is_file()
        }
        known: dict[str, str] = json.loads(context.cursor) if context.cursor else {}
        if seen == known:
            return dg.SkipReason(f"The {len(seen)} files in {folder} are as they were.")
        changed = sorted(name for name in {*seen, *known} if seen.get(name) != known.get(name))
        state = json.dumps(seen, sort_keys=True)
        run_key = hashlib.sha256(f"{context.cursor}>{state}".encode()).hexdigest()
        request = dg.RunRequest(run_key=run_key, tags={"listing_files": ", ".join(changed)[:200]})
        return dg.SensorResult(run_requests=[request], cursor=state)

    return [listing_files]
