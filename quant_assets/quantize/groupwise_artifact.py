"""A GPTQ or AWQ artifact in the store: found finished, or made, judged and committed."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from quant_assets.bench.evaluation_text import EvaluationText
from quant_assets.bench.settings import Device, available_physical_cores
from quant_assets.errors import CheckFailed, InputError
from quant_assets.models.identity import sha256_of
from quant_assets.models.inspection import inspect_model
from quant_assets.models.source import SourceModel
from quant_assets.quantize.calibration import CalibrationText
from quant_assets.quantize.groupwise import (
    ENVIRONMENT,
    EventHandler,
    GroupwiseJob,
    GroupwiseResult,
    GroupwiseSettings,
    check_shape,
    quantize_groupwise,
)
from quant_assets.quantize.groupwise_layout import check_layout
from quant_assets.quantize.job import JobSpec, library_versions
from quant_assets.quantize.manifest import ArtifactFile, ArtifactManifest
from quant_assets.quantize.perplexity_gate import Rounding, Verdict, judge
from quant_assets.quantize.store import ArtifactStore

_SIZE_TOLERANCE = 0.02


class MadeCheckpoint(NamedTuple):
    """A GPTQ or AWQ artifact: its manifest, its folder, and whether it was there already."""

    manifest: ArtifactManifest
    folder: Path
    reused: bool

    @property
    def path(self) -> Path:
        """What a loader is given: the folder."""
        return self.folder


def groupwise_job(
    model_name: str,
    source: SourceModel,
    settings: GroupwiseSettings,
    calibration: CalibrationText,
    lineage: Mapping[str, str] | None = None,
) -> JobSpec:
    """The job that makes `source` into a GPTQ or AWQ folder."""
    parameters = settings.model_dump(exclude={"format"})
    return JobSpec(
        model_name=model_name,
        source_identity=source.identity,
        target_format=settings.format,
        level=settings.quantization.name.removeprefix(f"{settings.format}-"),
        parameters={**parameters, **(lineage or {})},
        calibration_identity=calibration.sha256,
        library_versions=library_versions(settings.format, ENVIRONMENT[settings.engine]),
    )


def find_groupwise_artifact(job: JobSpec, store: ArtifactStore) -> MadeCheckpoint | None:
    """The finished artifact of a job, if the store has it whole."""
    manifest = store.find(job.job_id)
    if manifest is None:
        return None
    return MadeCheckpoint(manifest, store.folder(job.job_id), reused=True)


def make_groupwise_artifact(
    model_name: str,
    source: SourceModel,
    settings: GroupwiseSettings,
    calibration: CalibrationText,
    store: ArtifactStore,
    *,
    text: EvaluationText,
    cache: Path,
    threads: int | None = None,
    device: Device = "auto",
    resume: bool = True,
    gate: bool = True,
    lineage: Mapping[str, str] | None = None,
    on_event: EventHandler | None = None,
    extra_env: Mapping[str, str] | None = None,
) -> MadeCheckpoint:
    """Return the artifact of a job, quantizing and judging it unless the store has it.

    An interrupted job goes on after its last whole layer. `text` is what perplexity is measured on;
    `gate=False` leaves that out. An artifact that fails goes to the store's rejected ones, and
    `CheckFailed` is raised. Raises also what `quantize_groupwise` does.
    """
    if source.kind != "hf":
        raise InputError(
            f"{settings.format.upper()} is not made of a GGUF file directly.",
            "It takes a Hugging Face folder.",
            f"Use `quant-assets convert {source.path} --to {settings.format}`.",
        )
    check_shape(inspect_model(source.path), settings)
    job = groupwise_job(model_name, source, settings, calibration, lineage)
    with store.staging(job.job_id) as staging:
        if found := find_groupwise_artifact(job, store):
            staging.rmdir()
            return found
        result = quantize_groupwise(
            GroupwiseJob(
                source=source.path,
                source_identity=source.identity,
                output=staging,
                work=staging / "work",
                settings=settings,
                calibration=calibration.path,
                calibration_identity=calibration.sha256,
                threads=threads,
                device=device,
                resume=resume,
            ),
            on_event=on_event,
            extra_env=extra_env,
        )
        rejected = _wrong_files(staging, result)
        verdict = None
        if gate and rejected is None:
            verdict = judge(
                staging,
                settings.format,
                Rounding(bits=settings.bits, group_size=settings.group_size, sym=settings.sym),
                source,
                result.n_parameters,
                text,
                cache,
                threads=threads or available_physical_cores(),
                device=device,
                on_event=on_event,
                extra_env=extra_env,
            )
            rejected = verdict.rejection
        manifest = _manifest(job, source, calibration, staging, result, verdict, rejected)
        folder = store.commit(staging, manifest)
    if rejected is not None:
        raise CheckFailed(
            f"The artifact {job.job_id} is rejected.",
            rejected,
            f"It is kept in {folder}. Use more calibration samples, smaller groups or more bits.",
        )
    return MadeCheckpoint(manifest, folder, reused=False)


def _wrong_files(folder: Path, result: GroupwiseResult) -> str | None:
    try:
        check_layout(folder)
    except CheckFailed as error:
        return error.why
    if abs(result.bytes / result.expected_bytes - 1) > _SIZE_TOLERANCE:
        return f"Its tensors take {result.bytes} bytes, by arithmetic {result.expected_bytes}."
    return None


def _manifest(
    job: JobSpec,
    source: SourceModel,
    calibration: CalibrationText,
    folder: Path,
    result: GroupwiseResult,
    verdict: Verdict | None,
    rejected: str | None,
) -> ArtifactManifest:
    files = [folder / name for name in result.files]
    return ArtifactManifest(
        job=job,
        job_id=job.job_id,
        status="valid" if rejected is None else "rejected",
        rejection=rejected,
        source_provenance=source.provenance,
        files=[
            ArtifactFile(name=file.name, size_bytes=file.stat().st_size, sha256=sha256_of(file))
            for file in files
        ],
        n_parameters=result.n_parameters,
        bits_per_weight=result.bits_per_weight,
        tensor_types=result.tensor_types,
        engine={
            "pass": "layer by layer",
            "device": result.device,
            "calibration": calibration.name,
            "calibration tokens": str(result.calibration_tokens),
            **result.library_versions,
        },
        validation=_validation(verdict),
        perplexity=verdict.perplexity if verdict else None,
        seconds=result.seconds,
        peak_rss_bytes=result.peak_rss_bytes,
        created_at=datetime.datetime.now(datetime.UTC),
    )


def _validation(verdict: Verdict | None) -> dict[str, str | int | float | bool | None]:
    if verdict is None:
        return {"layout": True, "loaded": False}
    return {
        "layout": True,
        "loaded": True,
        "generated_text": verdict.generated_text,
        "text": verdict.text,
        "scored_tokens": verdict.scored_tokens,
        "source_perplexity": verdict.source_perplexity,
        "rounding_perplexity": verdict.rounding_perplexity,
        "ratio_to_source": verdict.ratio_to_source,
        "ratio_to_rounding": verdict.ratio_to_rounding,
    }
