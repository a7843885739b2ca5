"""Sensors: runs for changed listing files and for new models of the model list."""

import hashlib
import json
from collections.abc import Iterable

import dagster as dg

from quant_assets.automation.jobs import (
    REFRESH_LISTINGS,
    AssetJob,
    artifacts_job_name,
    range_tags,
    source_job_name,
)
from quant_assets.models.config import ModelConfig, load_models
from quant_assets.models.identity import HashCache
from quant_assets.resources.stores import DataRoot

LISTING_SUFFIXES = (".csv", ".parquet", ".json")
_INTERVAL_S = 30


def build_sensors(jobs: list[AssetJob], models: Iterable[ModelConfig]) -> list[dg.SensorDefinition]:
    """The sensors of the listings drop folder and of the model list; both are off by default."""
    served = {model.name: model for model in models}

    @dg.sensor(
        name="listing_files",
        job=next(job for job in jobs if job.name == REFRESH_LISTINGS),
        minimum_interval_seconds=_INTERVAL_S,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Refreshes the listings when files of the drop folder are added, changed or removed.",
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
            return dg.SkipReason(f"The {len(seen)} files in {folder} are unchanged.")
        changed = sorted(name for name in {*seen, *known} if seen.get(name) != known.get(name))
        state = json.dumps(seen, sort_keys=True)
        run_key = hashlib.sha256(f"{context.cursor}>{state}".encode()).hexdigest()
        request = dg.RunRequest(run_key=run_key, tags={"listing_files": ", ".join(changed)[:200]})
        return dg.SensorResult(run_requests=[request], cursor=state)

    @dg.sensor(
        name="model_entries",
        jobs=[job for job in jobs if job.name.endswith(("_source", "_artifacts"))],
        minimum_interval_seconds=_INTERVAL_S,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Fetches and quantizes each model that is added to the model list, once.",
    )
    def model_entries(
        context: dg.SensorEvaluationContext, data_root: DataRoot
    ) -> dg.SensorResult | dg.SkipReason:
        listed = {model.name for model in load_models(data_root.settings.models_yaml)}
        if listed - served.keys():
            return dg.SkipReason(
                f"Reload the code location to serve {', '.join(sorted(listed - served.keys()))}."
            )
        known = set(json.loads(context.cursor)) if context.cursor else set()
        new = [model for name, model in served.items() if name not in known]
        if not new:
            return dg.SkipReason(f"All {len(served)} models have been requested.")
        requests = []
        for model in new:
            key = f"{model.name} {model.source}"
            requests += [
                dg.RunRequest(run_key=f"source {key}", job_name=source_job_name(model)),
                dg.RunRequest(
                    run_key=f"artifacts {key}",
                    job_name=artifacts_job_name(model),
                    tags=range_tags(model.gguf_levels),
                ),
            ]
        return dg.SensorResult(run_requests=requests, cursor=json.dumps(sorted(served)))

    return [listing_files, model_entries]
