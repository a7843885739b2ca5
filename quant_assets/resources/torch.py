"""The torch backend: quantizes to GPTQ and AWQ and measures such checkpoints in worker processes."""

import dagster as dg

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.bench.probes import TorchProbe, probe_torch
from quant_assets.bench.variants import Variant
from quant_assets.quantize.groupwise.artifact import (
    GroupwiseArtifact,
    GroupwiseSpec,
    make_groupwise_artifact,
)
from quant_assets.quantize.groupwise.calibration import CalibrationChoice, fitted_spec
from quant_assets.quantize.groupwise.gate import PerplexityGate
from quant_assets.resources.backend import ModelBackend
from quant_assets.resources.llama_cpp import LlamaCpp
from quant_assets.resources.worker_logs import worker_session
from quant_assets.settings import Settings
from quant_assets.texts.evaluation import evaluation_text


class Torch(ModelBackend["Torch"]):
    """torch with transformers and gptqmodel, in the worker environments."""

    def probe(self) -> TorchProbe:
        """torch's devices on this machine; raises `EnvironmentNotReady` where it cannot run."""
        return probe_torch(self.device)

    def quantize(
        self,
        context: dg.AssetExecutionContext,
        spec: GroupwiseSpec,
        choice: CalibrationChoice,
        store: ArtifactStore,
        settings: Settings,
    ) -> GroupwiseArtifact:
        """The artifact of `spec`, calibrated on the numbers of `choice` or as many as fit.

        It is quantized and gated unless the store has it; remarks are logged as warnings.
        """
        with worker_session(context) as session:
            fitted = fitted_spec(spec, choice, store, cache=settings.cache, session=session)
            for remark in fitted.remarks:
                context.log.warning(remark)
            return make_groupwise_artifact(
                fitted,
                store,
                gate=PerplexityGate(
                    text=evaluation_text("auto", settings.cache),
                    cache=settings.cache,
                    threads=self.threads,
                    device=self.device,
                ),
                threads=self.threads,
                device=self.device,
                session=session,
            )


def backend_of(variant: Variant, llama_cpp: LlamaCpp, torch: Torch) -> LlamaCpp | Torch:
    """The resource that runs a variant on this machine."""
    return llama_cpp if variant.backend == "llamacpp" else torch
