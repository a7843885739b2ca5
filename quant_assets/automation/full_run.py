"""The full run: all jobs of the graph in order, in one process, on the instance the UI shows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.assets.conventions import benchmark_results_key, variant_quality_key
from quant_assets.assets.partitions import cell_key
from quant_assets.automation.jobs import (
    FULL_REBUILD,
    MEASURE_HOST,
    REFRESH_LISTINGS,
    REFRESH_MARTS,
    artifacts_job_name,
    benchmarks_job_name,
    quality_job_name,
    range_tags,
    source_job_name,
)
from quant_assets.automation.progress import Progress, ReportLine, Stage
from quant_assets.bench.artifact_finder import artifact_finder
from quant_assets.bench.matrix import first_failure
from quant_assets.bench.obedience.prompts import load_prompts, spread_prompts
from quant_assets.bench.record import BenchmarkRecord, RecordMetadata
from quant_assets.bench.results import ResultStore
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.variants import Variant, load_settings, load_variants
from quant_assets.errors import QuantAssetsError
from quant_assets.host.conditions import cpu_name
from quant_assets.host.devices import available_physical_cores
from quant_assets.host.identity import host_id
from quant_assets.models.config import ModelConfig, load_models
from quant_assets.processes.quantization_job import QuantizationJob
from quant_assets.resources.executor import execute_here, patient_in_process_executor
from quant_assets.resources.failures import clear_failures, error_of
from quant_assets.resources.instance import dagster_instance
from quant_assets.resources.run_processes import end_dead_runs
from quant_assets.resources.stores import DataRoot
from quant_assets.settings import Settings
from quant_assets.speed.host_peaks import uncontended_peaks

JobOf = Callable[[str], dg.JobDefinition]
"""Resolves the name of a job that is served to the job."""

_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
_MODEL_STAGES: tuple[Stage, ...] = ("source", "artifacts", "quality", "benchmarks")


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
        self._results = ResultStore(settings.results)
        self._models = list(load_models(settings.models_yaml))
        stages: list[Stage] = ["listings", "host", *_MODEL_STAGES * len(self._models), "marts"]
        self._progress = Progress(stages, report_line)
        self._failures: dict[str, QuantAssetsError] = {}

    def run_all(
        self,
        overrides: Mapping[str, int],
        *,
        quality: Mapping[str, Any] | None = None,
        measure_again: bool = False,
    ) -> None:
        """Listings, then every model's source, artifacts, quality and benchmarks, then the marts.

        `overrides` configure the benchmarks, `quality` the quality runs. Cells that have a record
        with the same settings are skipped unless `measure_again`. Quality and variants that fail do
        not stop the others: they are reported, and the first failure is raised at the end.
        """
        with self._progress:
            self._run_stages(overrides, quality=quality, measure_again=measure_again)

    @property
    def job(self) -> QuantizationJob:
        """The run's state, final after `run_all`."""
        return self._progress.job

    def _run_stages(
        self,
        overrides: Mapping[str, int],
        *,
        quality: Mapping[str, Any] | None,
        measure_again: bool,
    ) -> None:
        settings, progress = self._settings, self._progress
        progress.begin("listings: reading offers and matching them to GPUs")
        self._run(REFRESH_LISTINGS)
        peaks = uncontended_peaks(
            settings.results, cpu_name(), available_physical_cores(), host_id()
        )
        if measure_again or peaks is None:
            progress.begin("host: measuring memory bandwidth and matrix throughput")
            self._run(MEASURE_HOST)
        else:
            progress.skip("host: already measured")
        variants = load_variants(settings.variants_yaml)
        defaults = load_settings(settings.variants_yaml)
        bench_settings = BenchSettings.model_validate({**defaults.model_dump(), **overrides})
        for model in self._models:
            progress.begin(f"{model.name}: preparing the source model")
            self._run(source_job_name(model))
            progress.begin(f"{model.name}: artifacts {', '.join(model.gguf_levels)}")
            self._run(artifacts_job_name(model), keys=model.gguf_levels)
            progress.begin(f"{model.name}: quality against F16{self._obedience(quality or {})}")
            self._run_independently(
                f"{model.name} quality",
                quality_job_name(model),
                keys=list(variants),
                run_config=_op_config(variant_quality_key(model), quality or {}),
            )
            progress.begin(f"{model.name}: speed and memory of {len(variants)} variants")
            self._measure(model, variants, bench_settings, overrides, measure_again)
        progress.begin("marts: dbt build")
        self._run(REFRESH_MARTS)
        if self._failures:
            raise first_failure(self._failures)

    def _obedience(self, quality: Mapping[str, Any]) -> str:
        if not quality.get("obedience", True):
            return ""
        known = load_prompts(self._settings.data / "obedience")
        asked = spread_prompts(known, quality.get("obedience_prompts"))
        return f", and obedience on {len(asked)} of {len(known)} prompts"

    def _measure(
        self,
        model: ModelConfig,
        variants: Mapping[str, Variant],
        bench_settings: BenchSettings,
        overrides: Mapping[str, int],
        measure_again: bool,
    ) -> None:
        report = self._progress.line
        find_artifact = artifact_finder(ArtifactStore(self._settings.artifacts), model.name)
        for name, variant in variants.items():
            artifact = find_artifact(variant)
            if artifact is None:
                report(f"{name}: skipped, there is no {variant.format} {variant.level} artifact")
                continue
            known = self._records(model, name, artifact.artifact_id, bench_settings)
            missing = [
                size for size in bench_settings.batch_sizes if measure_again or size not in known
            ]
            if not missing:
                report(f"{name}: already measured")
            else:
                report(f"{name}: measuring at batch {', '.join(map(str, missing))}")
                self._run_independently(
                    f"{model.name} {name}",
                    benchmarks_job_name(model),
                    keys=[cell_key(name, size) for size in missing],
                    run_config=_op_config(benchmark_results_key(model), overrides),
                )
                known = self._records(model, name, artifact.artifact_id, bench_settings)
            for size, record in sorted(known.items()):
                report(
                    f"{name} x {size}: p50 {record.p50_ms:.0f} ms, p95 {record.p95_ms:.0f} ms, "
                    f"decode {record.decode_tokens_per_s or 0:.0f} tokens/s, "
                    f"peak {(record.peak_rss_bytes or 0) / 1e6:.0f} MB"
                    + _obeyed(record)
                    + (" (contended)" if record.contended else "")
                )

    def _records(
        self, model: ModelConfig, variant: str, artifact_id: str, wanted: BenchSettings
    ) -> dict[int, BenchmarkRecord]:
        """The newest record of each batch size that was measured with the wanted settings."""
        found = self._results.find(model=model.name, variant=variant, artifact_id=artifact_id)
        return {
            record.metadata.batch_size: record
            for record in found
            if record.metadata.batch_size in wanted.batch_sizes
            and _run_lengths(record.metadata) == _run_lengths(wanted)
        }

    def _run_independently(self, title: str, job_name: str, **options: Any) -> None:
        """Execute a job whose failure is reported and kept until everything else is done."""
        try:
            self._run(job_name, **options)
        except QuantAssetsError as error:
            self._failures[title] = error
            self._progress.line(f"{title}: failed: {error}")

    def _run(
        self,
        job_name: str,
        *,
        keys: Sequence[str] = (),
        run_config: Mapping[str, Any] | None = None,
    ) -> None:
        """Execute a job in this process; a failed job raises its three-part error.

        Raises `KeyboardInterrupt` when the process was told to end during the job.
        """
        result = execute_here(
            self._job_of(job_name),
            self._instance,
            run_config={**_QUIET, **(run_config or {})},
            tags=range_tags(keys),
        )
        if not result.success:
            raise error_of(job_name, result)


def build_full_rebuild(job_of: JobOf) -> dg.JobDefinition:
    """The job that runs the others in order and measures every cell again.

    A Dagster job has one partitions definition, so this one launches the others: each is a run of
    its own that waits for its pool.
    """

    @dg.op(description="Runs listings, sources, artifacts, quality, benchmarks and marts in order.")
    def rebuild_everything(context: dg.OpExecutionContext, data_root: DataRoot) -> None:
        with clear_failures():
            run = FullRun(data_root.settings, context.instance, job_of, context.log.info)
            run.run_all({}, measure_again=True)

    @dg.job(
        name=FULL_REBUILD,
        executor_def=patient_in_process_executor,
        description="Run everything in order, with all benchmarks measured again.",
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
) -> QuantizationJob:
    """Run the whole graph once (see `FullRun.run_all`) and return the run's final state.

    `report_line` receives its progress. Unfinished runs of processes that were killed are ended first.
    """
    with dagster_instance(settings) as instance:
        report_line(
            "usual times are for a model of 135M parameters on two idle cores; existing results "
            "are reused"
        )
        for dead in end_dead_runs(instance):
            report_line(f"ended run {dead.run_id} of {dead.job_name}: its process was killed")
        run = FullRun(settings, instance, job_of, report_line)
        run.run_all(overrides, quality=quality)
        return run.job


def _op_config(key: dg.AssetKey, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"ops": {key.to_python_identifier(): {"config": dict(config)}}}


def _run_lengths(settings: BenchSettings | RecordMetadata) -> tuple[int, int, int, int]:
    return (
        settings.warmups,
        settings.runs,
        settings.prompt_tokens,
        settings.generated_tokens,
    )


def _obeyed(record: BenchmarkRecord) -> str:
    if record.obedience_pass_rate is None:
        return ""
    low, high = record.obedience_pass_rate_low, record.obedience_pass_rate_high
    if low is None or high is None:
        return f", obeyed {record.obedience_pass_rate:.0%}"
    return (
        f", obeyed {record.obedience_pass_rate:.0%} of {record.obedience_prompts} prompts "
        f"({low:.0%} to {high:.0%})"
    )
