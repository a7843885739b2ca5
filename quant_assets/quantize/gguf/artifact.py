"""A GGUF artifact in the store: found finished, or quantized, validated and committed."""

import datetime
from pathlib import Path
from typing import NamedTuple

from quant_assets.artifacts.job import JobSpec, library_versions
from quant_assets.artifacts.manifest import ArtifactFile, ArtifactManifest
from quant_assets.artifacts.store import ArtifactStore
from quant_assets.models.source import SourceModel
from quant_assets.processes.session import UNATTENDED, WorkerSession
from quant_assets.quantize.gguf.importance_matrix import ImportanceMatrixRecord
from quant_assets.quantize.gguf.job import QuantizeGgufJob, quantize_gguf


class GgufArtifact(NamedTuple):
    """A GGUF artifact; `reused` if an earlier run made it."""

    manifest: ArtifactManifest
    folder: Path
    reused: bool

    @property
    def path(self) -> Path:
        """The model file."""
        return self.folder / self.manifest.files[0].name


def gguf_job(
    model_name: str, source: SourceModel, level: str, imatrix: ImportanceMatrixRecord | None = None
) -> JobSpec:
    """The job that quantizes `source` to a GGUF file at `level`, weighted by `imatrix` if given."""
    return JobSpec(
        model_name=model_name,
        source_identity=source.identity,
        target_format="gguf",
        level=level,
        calibration_identity=imatrix.sha256 if imatrix else None,
        library_versions=library_versions("gguf"),
    )


def make_gguf_artifact(
    model_name: str,
    source: SourceModel,
    level: str,
    store: ArtifactStore,
    *,
    imatrix: ImportanceMatrixRecord | None = None,
    threads: int | None = None,
    session: WorkerSession = UNATTENDED,
) -> GgufArtifact:
    """Return the artifact of a level, quantizing and validating it unless the store has it.

    An interrupted job resumes in its staging folder. Raises what `quantize_gguf` does.
    """
    job = gguf_job(model_name, source, level, imatrix)
    with store.staging(job.job_id) as staging:
        # Looked up under the job's lock: another process may just have finished the same job.
        if found := store.find(job.job_id):
            staging.rmdir()
            return GgufArtifact(found, store.folder(job.job_id), reused=True)
        result = quantize_gguf(
            QuantizeGgufJob(
                source=source.path,
                source_kind=source.kind,
                source_identity=source.identity,
                level=level,
                output=staging / f"{model_name}-{level}.gguf",
                imatrix=imatrix.path if imatrix else None,
                threads=threads,
                record=True,
            ),
            session=session,
        )
        manifest = ArtifactManifest(
            job=job,
            job_id=job.job_id,
            status="valid",
            source_provenance=source.provenance,
            files=[
                ArtifactFile(name=result.output.name, size_bytes=result.bytes, sha256=result.sha256)
            ],
            n_parameters=result.n_parameters,
            bits_per_weight=result.bits_per_weight,
            tensor_types=result.tensor_types,
            engine={
                "pass": "one pass",
                "intermediate": result.intermediate,
                "type_policy": result.type_policy,
                "kernels": ", ".join(f"{name}: {of}" for name, of in result.kernels.items()),
                **result.library_versions,
            },
            validation={"loaded": result.validated, "generated_text": result.generated_text},
            seconds=result.seconds,
            peak_rss_bytes=result.peak_rss_bytes,
            peak_own_bytes=result.peak_own_bytes,
            peak_vram_bytes=result.peak_vram_bytes,
            quantization_job=result.quantization_job,
            created_at=datetime.datetime.now(datetime.UTC),
        )
        return GgufArtifact(manifest, store.commit(staging, manifest), reused=False)
