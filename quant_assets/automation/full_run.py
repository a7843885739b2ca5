"""The whole graph once, through Dagster's own jobs and instance, from one process."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import dagster as dg

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.assets.benchmarks import BATCH_SIZE, VARIANT, benchmark_results_key
from quant_assets.assets.quality import variant_quality_key
from quant_assets.automation.jobs import (
    FULL_REBUILD,
    MEASURE_HOST,
    REFRESH_LISTINGS,
    REFRESH_MARTS,
    artifacts_job_name,
    benchmarks_job_name,
    quality_job_name,
    source_job_name,
)
from quant_assets.automation.partition_ranges import range_tags
from quant_assets.bench.artifact_finder import artifact_finder
from quant_assets.bench.record import BenchmarkRecord
from quant_assets.bench.results import ResultStore
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.variants import Variant, load_settings, load_variants
from quant_assets.errors import QuantAssetsError
from quant_assets.models.config import ModelConfig, load_models
from quant_assets.resources.executor import execute_here, patient_in_process_executor
from quant_assets.resources.failures import clear_failures
from quant_assets.resources.instance import dagster_instance
from quant_assets.resources.run_processes import end_dead_runs
from quant_assets.resources.stores import DataRoot
from quant_assets.settings import Settings
from quant_assets.speed.host_peaks import recorded_peaks

ReportLine = Callable[[str], None]
JobOf = Callable[[str], dg.JobDefinition]
"""The job of a name, among the definitions that are served."""

_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


USUAL_S = {
    "listings": 18.0,
    "host": 6.0,
    "source": 20.0,
    "artifacts": 22.0,
    "quality": 75.0,
    "benchmarks": 120.0,
    "marts": 18.0,
}
"""Seconds of each stage, as measured with SmolLM2-135M on two idle cores, nothing there before."""


class FullRun:
    """Runs the jobs of one installation one after the other."""

    def __init__(
        self,
        settings: Settings,
        instance: dg.DagsterInstance,
        job_of: JobOf,
        report_line: ReportLine,
    ) -> None:
        self._settings = settings
        self._instance = instance
        self._job_of = job_of
        self._report_line = report_line
        self._results = ResultStore(settings.results)
        self._stages = 0
        self._remaining: list[float] = []

    def run_all(
        self,
        overrides: Mapping[str, int],
        *,
        quality: Mapping[str, Any] | None = None,
        measure_again: bool = False,
    ) -> None:
        """Listings, then every model's source, artifacts, quality and benchmarks, then the marts.

        `overrides` go to the benchmarks and `quality` to the quality runs, as their config. Cells with
        a record of the same settings are left out unless `measure_again`.
        """
        settings = self._settings
        models = list(load_models(settings.models_yaml))
        of_a_model = [USUAL_S[stage] for stage in ("source", "artifacts", "quality", "benchmarks")]
        self._remaining = [
            USUAL_S["listings"],
            USUAL_S["host"],
            *(of_a_model * len(models)),
            USUAL_S["marts"],
        ]
        self._stages = len(self._remaining)
        self._begin("listings: reading offers and matching them to GPUs")
        self._run(REFRESH_LISTINGS)
        if measure_again or not recorded_peaks(settings.results):
            self._begin("host: measuring memory bandwidth and matrix throughput")
            self._run(MEASURE_HOST)
        else:
            self._skip("host: measured already")
        variants = load_variants(settings.variants_yaml)
        defaults = load_settings(settings.variants_yaml)
        bench_settings = BenchSettings.model_validate({**defaults.model_dump(), **overrides})
        for model in models:
            self._begin(f"{model.name}: preparing the source model")
            self._run(source_job_name(model))
            self._begin(f"{model.name}: artifacts {', '.join(model.gguf_levels)}")
            self._run(artifacts_job_name(model), keys=model.gguf_levels)
            self._begin(f"{model.name}: quality against F16")
            self._run(
                quality_job_name(model),
                keys=list(variants),
                run_config=_op_config(variant_quality_key(model), quality or {}),
            )
            self._measure(model, variants, bench_settings, overrides, measure_again)
        self._begin("marts: dbt build")
        self._run(REFRESH_MARTS)

    def _begin(self, title: str) -> None:
        """Say which stage begins, how long it usually takes, and what comes after it."""
        usual_s = self._remaining.pop(0)
        after = (
            f"then {_duration(sum(self._remaining))} for the {len(self._remaining)} after it"
            if self._remaining
            else "the last one"
        )
        self._report_line(f"{self._place()} {title} (usually {_duration(usual_s)}; {after})")

    def _skip(self, title: str) -> None:
        self._remaining.pop(0)
        self._report_line(f"{self._place()} skipped: {title}")

    def _place(self) -> str:
        return f"[{self._stages - len(self._remaining)} of {self._stages}]"

    def _measure(
        self,
        model: ModelConfig,
        variants: Mapping[str, Variant],
        bench_settings: BenchSettings,
        overrides: Mapping[str, int],
        measure_again: bool,
    ) -> None:
        self._begin(f"{model.name}: speed and memory of {len(variants)} variants")
        find_artifact = artifact_finder(ArtifactStore(self._settings.artifacts), model.name)
        for name, variant in variants.items():
            artifact = find_artifact(variant)
            if artifact is None:
                self._report_line(
                    f"  {name}: skipped, there is no {variant.format} {variant.level} artifact"
                )
                continue
            known = self._records(model, name, artifact.artifact_id, bench_settings)
            missing = [
                size for size in bench_settings.batch_sizes if measure_again or size not in known
            ]
            if not missing:
                self._report_line(f"  {name}: measured already")
            else:
                self._report_line(f"  {name}: measuring at batch {_listed(missing)}")
                self._run(
                    benchmarks_job_name(model),
                    keys=[
                        dg.MultiPartitionKey({VARIANT: name, BATCH_SIZE: str(size)})
                        for size in missing
                    ],
                    run_config=_op_config(benchmark_results_key(model), overrides),
                )
                known = self._records(model, name, artifact.artifact_id, bench_settings)
            for size, record in sorted(known.items()):
                self._report_line(
                    f"  {name} x {size}: p50 {record.p50_ms:.0f} ms, p95 {record.p95_ms:.0f} ms, "
                    f"decode {record.decode_tokens_per_s or 0:.0f} tokens/s, "
                    f"peak {(record.peak_rss_bytes or 0) / 1e6:.0f} MB"
                    + (" (contended)" if record.contended else "")
                )

    def _records(
        self, model: ModelConfig, variant: str, artifact_id: str, wanted: BenchSettings
    ) -> dict[int, BenchmarkRecord]:
        """The newest record of each batch size that was taken with the wanted settings."""
        found = self._results.find(model=model.name, variant=variant, artifact_id=artifact_id)
        return {
            record.metadata.batch_size: record
            for record in found
            if record.metadata.batch_size in wanted.batch_sizes
            and _lengths(record.metadata) == _lengths(wanted)
        }

    def _run(
        self,
        job_name: str,
        *,
        keys: Iterable[str] = (),
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        """Execute a job in this process; raise its failure with the three parts it carries.

        Raises `KeyboardInterrupt` when the process was told to end meanwhile.
        """
        result = execute_here(
            self._job_of(job_name),
            self._instance,
            run_config={**_QUIET, **(run_config or {})},
            tags=range_tags(list(keys)),
        )
        if not result.success:
            raise _failure(job_name, result)


def build_full_rebuild(job_of: JobOf) -> dg.JobDefinition:
    """The job that runs all the others in their order and measures every cell anew.

    A Dagster job holds one grid of partitions, so this one starts the others, each a run of its
    own that waits for its pool.
    """

    @dg.op(description="Runs listings, sources, artifacts, benchmarks and marts, in this order.")
    def rebuild_everything(context: dg.OpExecutionContext, data_root: DataRoot) -> None:
        with clear_failures():
            run = FullRun(data_root.settings, context.instance, job_of, context.log.info)
            run.run_all({}, measure_again=True)

    @dg.job(
        name=FULL_REBUILD,
        executor_def=patient_in_process_executor,
        description="Everything, with all benchmarks measured anew.",
    )
    def full_rebuild() -> None:
        rebuild_everything()

    return full_rebuild


def run_everything(
    settings: Settings,
    job_of: JobOf,
    *,
    overrides: Mapping[str, int],
    quality: Mapping[str, Any],
    report_line: ReportLine,
) -> None:
    """Run the whole graph once, see `FullRun.run_all`; `report_line` gets one line per stage.

    Runs that an earlier process left unfinished when it was killed are ended first.
    """
    with dagster_instance(settings) as instance:
        report_line(
            "times are those of a model of 135M parameters on two idle cores; what is there is reused"
        )
        for run in end_dead_runs(instance):
            report_line(f"ended run {run.run_id} of {run.job_name}: its process was killed")
        FullRun(settings, instance, job_of, report_line).run_all(overrides, quality=quality)


def _op_config(key: dg.AssetKey, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"ops": {key.to_python_identifier(): {"config": dict(config)}}}


def _lengths(settings: Any) -> tuple[int, int, int, int]:
    return (
        settings.warmups,
        settings.runs,
        settings.prompt_tokens,
        settings.generated_tokens,
    )


def _duration(seconds: float) -> str:
    return f"about {seconds:.0f} s" if seconds < 100 else f"about {seconds / 60:.0f} min"


def _listed(sizes: Iterable[int]) -> str:
    return ", ".join(str(size) for size in sizes)


def _failure(job_name: str, result: dg.ExecuteInProcessResult) -> QuantAssetsError:
    for event in result.all_events:
        if not event.is_step_failure:
            continue
        data = event.step_failure_data
        if data.user_failure_data is not None:
            parts = {name: value.value for name, value in data.user_failure_data.metadata.items()}
            if {"what", "why", "what to do next"} <= parts.keys():
                return QuantAssetsError(
                    str(parts["what"]), str(parts["why"]), str(parts["what to do next"])
                )
        if data.error is not None:
            cause = data.error.cause or data.error
            return QuantAssetsError(
                f"The step {event.step_key} of {job_name} failed.",
                cause.message.strip(),
                "Open the run in the Dagster UI (`make ui`) for its log.",
            )
    failures = [event.job_failure_data for event in result.all_events if event.is_job_failure]
    errors = [data.error for data in failures if data.error is not None]
    return QuantAssetsError(
        f"The job {job_name} failed.",
        (errors[0].cause or errors[0]).message.strip() if errors else "No step says why.",
        "Open the run in the Dagster UI (`make ui`) for its log.",
    )
