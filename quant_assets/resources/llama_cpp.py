"""The llama.cpp backend: quantizes and measures GGUF files in worker processes."""

from pathlib import Path

import dagster as dg

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.bench.probes import LlamaProbe, probe_llama_cpp
from quant_assets.models.source import SourceModel
from quant_assets.quantize.gguf.artifact import GgufArtifact, make_gguf_artifact
from quant_assets.quantize.gguf.importance_matrix import (
    ImportanceMatrixRecord,
    model_importance_matrix,
)
from quant_assets.quantize.gguf.job import DEFAULT_CHUNK_TOKENS, DEFAULT_CHUNKS
from quant_assets.resources.backend import ModelBackend
from quant_assets.resources.worker_logs import worker_session
from quant_assets.texts.calibration import CalibrationText


class LlamaCpp(ModelBackend["LlamaCpp"]):
    """llama.cpp on this machine."""

    def probe(self) -> LlamaProbe:
        """llama.cpp's devices on this machine; raises `EnvironmentNotReady` without the wanted one."""
        return probe_llama_cpp(self.device)

    def quantize(
        self,
        context: dg.AssetExecutionContext,
        model_name: str,
        source: SourceModel,
        level: str,
        store: ArtifactStore,
        imatrix: ImportanceMatrixRecord | None,
    ) -> GgufArtifact:
        """The artifact of a level; quantized unless the store has it."""
        with worker_session(context) as session:
            return make_gguf_artifact(
                model_name,
                source,
                level,
                store,
                imatrix=imatrix,
                threads=self.threads,
                session=session,
            )

    def importance_matrix(
        self,
        context: dg.AssetExecutionContext,
        model_name: str,
        source: SourceModel,
        folder: Path,
        calibration: CalibrationText,
        *,
        max_chunks: int = DEFAULT_CHUNKS,
        chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    ) -> ImportanceMatrixRecord:
        """The importance matrix of a source; measured unless `folder` has it."""
        with worker_session(context) as session:
            return model_importance_matrix(
                model_name,
                source,
                calibration,
                folder,
                max_chunks=max_chunks,
                chunk_tokens=chunk_tokens,
                threads=self.threads,
                session=session,
            )
