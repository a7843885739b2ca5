"""A GPTQ or AWQ artifact in the store: found finished, or made, gated and committed."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from quant_assets.artifacts.job import JobSpec, library_versions
from quant_assets.artifacts.manifest import ArtifactFile, ArtifactManifest
from quant_assets.artifacts.store import ArtifactStore
from quant_assets.errors import CheckFailed, InputError
from quant_assets.host.devices import Device
from quant_assets.models.identity import sha256_of
from quant_assets.models.inspection import inspect_model
from quant_assets.models.integrity import check_hf_folder
from quant_assets.models.source import SourceModel
from quant_assets.models.stored_quantization import detect_quantization
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.quantize.groupwise.gate import (
    GateCandidate,
    GateResult,
    PerplexityGate,
    Rounding,
    quality_warning,
)
from quant_assets.quantize.groupwise.job import (
    ENVIRONMENT,
    JOURNAL_NAME,
    CalibrationSize,
    GroupwiseJob,
    GroupwiseResult,
    GroupwiseSettings,
    check_shape,
    quantize_groupwise,
)
from quant_assets.quantize.groupwise.layout import check_layout
from quant_assets.texts.calibration import CalibrationText
from quant_assets.window_intervals import Interval

_SIZE_TOLERANCE = 0.02
_WORK = "work"
_GATE_SHARE = 0.3
"""Share of a job's time that its gate usually takes."""


class GroupwiseArtifact(NamedTuple):
    """A GPTQ or AWQ artifact, valid or rejected; `reused` if an earlier run made it."""

    manifest: ArtifactManifest
    folder: Path
    reused: bool

    @property
    def rejection(self) -> str | None:
        """Why it is rejected, or None."""
        return self.manifest.rejection

    @property
    def quality_warning(self) -> str | None:
        """A warning about a valid artifact that is of doubtful use, or None."""
        ratio = self.manifest.validation.get("ratio_to_source")
        return None if ratio is None or self.rejection else quality_warning(float(ratio))

    def valid(self) -> "GroupwiseArtifact":
        """This artifact; raises `CheckFailed` when it is rejected."""
        if self.rejection is None:
            return self
        raise CheckFailed(
            f"The artifact {self.manifest.job_id} is rejected.",
            self.rejection,
            f"It is kept in {self.folder}. Use more calibration samples, smaller groups or more "
            "bits.",
        )


@dataclass(frozen=True)
class GroupwiseSpec:
    """Everything that decides a GPTQ or AWQ artifact's bytes.

    `lineage` is the origin of a converted model, see `quantize.conversion`. `remarks` about the
    calibration are for the user; they do not decide any byte, and go into the manifest.
    """

    model_name: str
    source: SourceModel
    settings: GroupwiseSettings
    calibration: CalibrationText
    lineage: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def with_size(self, size: CalibrationSize) -> "GroupwiseSpec":
        """The same, calibrated on other numbers of samples and tokens."""
        return replace(self, settings=self.settings.model_copy(update=size._asdict()))

    @property
    def job(self) -> JobSpec:
        """The job, by whose id the store finds the artifact."""
        settings = self.settings
        parameters = settings.model_dump(exclude={"format"})
        return JobSpec(
            model_name=self.model_name,
            source_identity=self.source.identity,
            target_format=settings.format,
            level=settings.quantization.name.removeprefix(f"{settings.format}-"),
            parameters={**parameters, **self.lineage},
            calibration_identity=self.calibration.sha256,
            library_versions=library_versions(settings.format, ENVIRONMENT[settings.engine]),
        )


def find_groupwise_artifact(job: JobSpec, store: ArtifactStore) -> GroupwiseArtifact | None:
    """The finished artifact of a job, or None unless the store has all of its files."""
    manifest = store.find(job.job_id)
    if manifest is None:
        return None
    return GroupwiseArtifact(manifest, store.folder(job.job_id), reused=True)


def has_finished_layers(job: JobSpec, store: ArtifactStore) -> bool:
    """Whether an interrupted run of the job left layers that it can resume after."""
    return (store.staging_folder(job.job_id) / _WORK / JOURNAL_NAME).is_file()


def make_groupwise_artifact(
    spec: GroupwiseSpec,
    store: ArtifactStore,
    *,
    gate: PerplexityGate | None,
    threads: int | None = None,
    device: Device = "auto",
    resume: bool = True,
    session: WorkerSession = UNATTENDED,
) -> GroupwiseArtifact:
    """Return the artifact of `spec`, quantizing and gating it unless the store has it.

    An interrupted job resumes after its last complete layer. With `gate` None perplexity is not
    measured; a later call with a gate makes up for it. A rejected artifact is kept apart in the
    store; `GroupwiseArtifact.valid` raises its reason. Raises what `quantize_groupwise` does.
    """
    check_source(spec.source, spec.settings)
    job = spec.job
    with store.staging(job.job_id) as staging:
        if found := find_groupwise_artifact(job, store):
            staging.rmdir()
            if gate is None or found.manifest.perplexity is not None:
                return found
            candidate = _candidate(spec, found.folder, found.manifest.n_parameters)
            checked = gate.check(candidate, session=session)
            manifest = found.manifest.model_copy(update=_gate_fields(checked, checked.rejection))
            return found._replace(manifest=manifest, folder=store.replace_manifest(manifest))
        result = quantize_groupwise(
            GroupwiseJob(
                source=spec.source.path,
                source_identity=spec.source.identity,
                output=staging,
                work=staging / _WORK,
                settings=spec.settings,
                calibration=spec.calibration.path,
                calibration_identity=spec.calibration.sha256,
                threads=threads,
                device=device,
                resume=resume,
            ),
            session=session if gate is None else session.part(0, 1 - _GATE_SHARE),
        )
        rejection, gated = _wrong_files(staging, result), None
        if gate is not None and rejection is None:
            candidate = _candidate(spec, staging, result.n_parameters)
            gated = gate.check(candidate, session=session.part(1 - _GATE_SHARE, 1))
            rejection = gated.rejection
        manifest = _manifest(spec, staging, result, gated, rejection)
        folder = store.commit(staging, manifest)
    return GroupwiseArtifact(manifest, folder, reused=False)


def _candidate(spec: GroupwiseSpec, folder: Path, n_parameters: int) -> GateCandidate:
    settings = spec.settings
    return GateCandidate(
        path=folder,
        format=settings.format,
        rounding=Rounding(bits=settings.bits, group_size=settings.group_size, sym=settings.sym),
        source=spec.source,
        n_parameters=n_parameters,
    )


def check_source(source: SourceModel, settings: GroupwiseSettings) -> None:
    """Raise `InputError` for a source that is not a sound folder of plain weights, or does not fit."""
    alternative = f"Use `quant-assets convert {source.path} --to {settings.format}`."
    if source.kind != "hf":
        raise InputError(
            f"{settings.format.upper()} is not made from a GGUF file directly.",
            "It takes a Hugging Face folder.",
            alternative,
        )
    check_hf_folder(source.path)
    stored = detect_quantization(source.path)
    if stored.format != "float":
        raise InputError(
            f"The model in {source.path} is already quantized.",
            f"It is {stored.format} with {stored.bits} bits; quantizing it again adds up both losses.",
            f"Use the original model, or {alternative[0].lower()}{alternative[1:]}",
        )
    check_shape(inspect_model(source.path), settings)


def _wrong_files(folder: Path, result: GroupwiseResult) -> str | None:
    try:
        check_layout(folder)
    except CheckFailed as error:
        return error.why
    if abs(result.bytes / result.expected_bytes - 1) > _SIZE_TOLERANCE:
        return f"Its tensors take {result.bytes} bytes, but should take {result.expected_bytes}."
    return None


def _manifest(
    spec: GroupwiseSpec,
    folder: Path,
    result: GroupwiseResult,
    gated: GateResult | None,
    rejection: str | None,
) -> ArtifactManifest:
    job = spec.job
    files = [folder / name for name in result.files]
    return ArtifactManifest(
        job=job,
        job_id=job.job_id,
        source_provenance=spec.source.provenance,
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
            "calibration": spec.calibration.name,
            "calibration tokens": str(result.calibration_tokens),
            "calibration samples": str(spec.settings.calibration_size),
            **({"calibration remarks": " ".join(spec.remarks)} if spec.remarks else {}),
            **result.library_versions,
        },
        seconds=result.seconds,
        peak_rss_bytes=result.peak_rss_bytes,
        peak_own_bytes=result.peak_own_bytes,
        peak_vram_bytes=result.peak_vram_bytes,
        quantization_job=result.quantization_job,
        created_at=datetime.datetime.now(datetime.UTC),
        **_gate_fields(gated, rejection),
    )


def _gate_fields(gated: GateResult | None, rejection: str | None) -> dict[str, Any]:
    """The fields of a manifest that the gate decides."""
    return {
        "status": "valid" if rejection is None else "rejected",
        "rejection": rejection,
        "validation": _validation(gated, layout_ok=rejection is None or gated is not None),
        "perplexity": gated.perplexity if gated else None,
    }


def _validation(
    gated: GateResult | None, *, layout_ok: bool
) -> dict[str, str | int | float | bool | None]:
    if gated is None:
        return {"layout": layout_ok, "loaded": False}
    return {
        "layout": True,
        "loaded": True,
        "generated_text": gated.generated_text,
        "text": gated.text,
        "scored_tokens": gated.scored_tokens,
        "perplexity_standard_error": gated.standard_error,
        "source_perplexity": gated.source_perplexity,
        "source_perplexity_standard_error": gated.source_standard_error,
        "rounding_perplexity": gated.rounding_perplexity,
        "rounding_perplexity_standard_error": gated.rounding_standard_error,
        "ratio_to_source": gated.ratio_to_source,
        "ratio_to_rounding": gated.ratio_to_rounding,
        **_bounds("ratio_to_source", gated.to_source_interval),
        **_bounds("ratio_to_rounding", gated.to_rounding_interval),
    }


def _bounds(name: str, interval: Interval | None) -> dict[str, float]:
    if interval is None:
        return {}
    return {f"{name}_low": interval.low, f"{name}_high": interval.high}
