"""Check an artifact on disk, whatever its format."""

from pathlib import Path

from quant_assets.artifacts.manifest import MANIFEST_NAME, ArtifactManifest, manifest_of
from quant_assets.errors import CheckFailed
from quant_assets.host.devices import Device, available_physical_cores
from quant_assets.models.identity import sha256_of
from quant_assets.models.integrity import check_gguf
from quant_assets.models.stored_quantization import groupwise_config
from quant_assets.processes.memory import peak_memory_facts
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.quantize.gguf.job import ValidateGgufJob, validate_gguf
from quant_assets.quantize.groupwise.gate import (
    GATE_WINDOWS,
    Checkpoint,
    measure_checkpoints,
)
from quant_assets.quantize.groupwise.layout import check_layout
from quant_assets.settings import get_settings
from quant_assets.texts.evaluation import WINDOW_TOKENS, evaluation_text


def validate_artifact(
    path: Path,
    *,
    text: Path | None = None,
    device: Device = "auto",
    session: WorkerSession = UNATTENDED,
) -> dict[str, str]:
    """Findings by check; perplexity is measured on `text`.

    Raises `CheckFailed` for the first check that fails, `InputError` for a path that is not an
    artifact.
    """
    findings: dict[str, str] = {}
    folder = path if path.is_dir() else path.parent
    model = path
    manifest = manifest_of(path)
    if manifest is not None:
        findings["files"] = _check_files(folder, manifest)
        if path.is_dir() and manifest.job.target_format == "gguf":
            model = folder / manifest.files[0].name
    elif (folder / MANIFEST_NAME).exists():
        findings["files"] = f"not compared: {folder / MANIFEST_NAME} does not list {path.name}"
    if model.is_file():
        check_gguf(model)
        seen = validate_gguf(ValidateGgufJob(path=model), session=session)
        findings["loads and generates"] = repr(seen.generated_text)
        findings |= peak_memory_facts(
            seen.peak_rss_bytes, seen.peak_own_bytes, seen.peak_vram_bytes
        )
        return findings
    method = groupwise_config(model).method
    findings["layout"] = f"{check_layout(model)} packed matrices match config.json"
    scored = evaluation_text(text or "auto", get_settings().cache)
    (measured,) = measure_checkpoints(
        [Checkpoint(path=model, format=method)],
        scored,
        threads=available_physical_cores(),
        device=device,
        windows=GATE_WINDOWS,
        context=WINDOW_TOKENS,
        session=session,
    )
    findings["loads and generates"] = repr(measured.generated_text)
    findings["perplexity"] = (
        f"{measured.perplexity:.3f} +/- {measured.standard_error:.3f} on {scored.name}"
    )
    return findings


def _check_files(folder: Path, manifest: ArtifactManifest) -> str:
    for file in manifest.files:
        path = folder / file.name
        if not path.is_file() or sha256_of(path) != file.sha256:
            raise CheckFailed(
                f"The artifact in {folder} is damaged.",
                f"{file.name} is {'changed' if path.is_file() else 'missing'}.",
                f"Delete {folder}, then run the command that made it again.",
            )
    return f"{len(manifest.files)} files match the manifest's checksums"
