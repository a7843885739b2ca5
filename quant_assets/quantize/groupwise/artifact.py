"""A GPTQ or AWQ artifact in the store: found finished, or made, judged and committed."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from quant_assets.artifacts.job import JobSpec, library_versions
from quant_assets.artifacts.manifest import ArtifactFile, ArtifactManifest
from quant_assets.artifacts.store import ArtifactStore
from quant_assets.errors import CheckFailed, InputError
from quant_assets.host.devices import Device, available_physical_cores
from quant_assets.models.identity import sha256_of
from quant_assets.models.inspection import inspect_model
from quant_assets.models.integrity import check_hf_folder
from quant_assets.models.source import SourceModel
from quant_assets.models.stored_quantization import detect_quantization
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.quantize.groupwise.gate import Rounding, Verdict, caution, judge
from quant_assets.quantize.groupwise.job import (
    ENVIRONMENT,
    GroupwiseJob,
    GroupwiseResult,
    GroupwiseSettings,
    check_shape,
    quantize_groupwise,
)
from quant_assets.quantize.groupwise.layout import check_layout
from quant_assets.texts.calibration import CalibrationText
from quant_assets.texts.evaluation import EvaluationText

_SIZE_TOLERANCE = 0.02


class JudgedArtifact(NamedTuple):
    """A GPTQ or AWQ artifact, valid or rejected, and whether it was there already."""

    manifest: ArtifactManifest
    folder: Path
    reused: bool

    @property
    def rejection(self) -> str | None:
        """Why it is rejected, or None."""
        return self.manifest.rejection

    @property
    def caution(self) -> str | None:
        """What to say of a valid artifact that is of doubtful use, or None."""
        ratio = self.manifest.validation.get("ratio_to_source")
        return None if ratio is None or self.rejection else caution(float(ratio))

    def valid(self) -> "JudgedArtifact":
        """Itself; raises `CheckFailed` when it is rejected."""
        if self.rejection is None:
            return self
        raise CheckFailed(
            f"The artifact {self.manifest.job_id} is rejected.",
            self.rejection,
            f"It is kept in {self.folder}. Use more calibration samples, smaller groups or more "
            "bits.",
        )


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


def find_groupwise_artifact(job: JobSpec, store: ArtifactStore) -> JudgedArtifact | None:
    """The finished artifact of a job, if the store has it whole."""
    manifest = store.find(job.job_id)
    if manifest is None:
        return None
    return JudgedArtifact(manifest, store.folder(job.job_id), reused=True)


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
    session: WorkerSession = UNATTENDED,
) -> JudgedArtifact:
    """Return the artifact of a job, quantizing and judging it unless the store has it.

    An interrupted job goes on after its last whole layer. `text` is what perplexity is measured on;
    `gate=False` leaves that out, and a later call makes up for it. An artifact that fails goes to
    the store's rejected ones and says why; `valid` raises it. Raises what `quantize_groupwise` does.
    """
    _check_source(source, settings)
    job = groupwise_job(model_name, source, settings, calibration, lineage)

    def verdict_of(folder: Path, n_parameters: int) -> Verdict:
        return judge(
            folder,
            settings.format,
            Rounding(bits=settings.bits, group_size=settings.group_size, sym=settings.sym),
            source,
            n_parameters,
            text,
            cache,
            threads=threads or available_physical_cores(),
            device=device,
            session=session,
        )

    with store.staging(job.job_id) as staging:
        if found := find_groupwise_artifact(job, store):
            staging.rmdir()
            if not gate or found.manifest.perplexity is not None:
                return found
            verdict = verdict_of(found.folder, found.manifest.n_parameters)
            manifest = found.manifest.model_copy(update=_judgement(verdict, verdict.rejection))
            return found._replace(manifest=manifest, folder=store.judge(manifest))
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
            session=session,
        )
        rejected = _wrong_files(staging, result)
        judged = verdict_of(staging, result.n_parameters) if gate and rejected is None else None
        if judged is not None:
            rejected = judged.rejection
        manifest = _manifest(job, source, calibration, staging, result, judged, rejected)
        folder = store.commit(staging, manifest)
    return JudgedArtifact(manifest, folder, reused=False)


def _check_source(source: SourceModel, settings: GroupwiseSettings) -> None:
    way = f"Use `quant-assets convert {source.path} --to {settings.format}`."
    if source.kind != "hf":
        raise InputError(
            f"{settings.format.upper()} is not made of a GGUF file directly.",
            "It takes a Hugging Face folder.",
            way,
        )
    check_hf_folder(source.path)
    stored = detect_quantization(source.path)
    if stored.format != "float":
        raise InputError(
            f"The model in {source.path} is quantized already.",
            f"It is {stored.format} with {stored.bits} bits; quantizing it again adds up both losses.",
            f"Use the original model, or {way[0].lower()}{way[1:]}",
        )
    check_shape(inspect_model(source.path), settings)


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
        seconds=result.seconds,
        peak_rss_bytes=result.peak_rss_bytes,
        created_at=datetime.datetime.now(datetime.UTC),
        **_judgement(verdict, rejected),
    )


def _judgement(verdict: Verdict | None, rejected: str | None) -> dict[str, Any]:
    """The fields of a manifest that the judgement decides."""
    return {
        "status": "valid" if rejected is None else "rejected",
        "rejection": rejected,
        "validation": _validation(verdict, whole=rejected is None or verdict is not None),
        "perplexity": verdict.perplexity if verdict else None,
    }


def _validation(
    verdict: Verdict | None, *, whole: bool
) -> dict[str, str | int | float | bool | None]:
    if verdict is None:
        return {"layout": whole, "loaded": False}
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
