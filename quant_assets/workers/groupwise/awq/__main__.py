"""`python -m quant_assets.workers.groupwise.awq`: one AWQ job."""

from typing import TYPE_CHECKING

from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.quantize.groupwise.job import GroupwiseJob, GroupwiseResult
from quant_assets.workers.groupwise.steps import plan_steps

if TYPE_CHECKING:
    from quant_assets.workers.groupwise.awq.quantizer import AwqQuantizer
    from quant_assets.workers.groupwise.streaming import StreamedModel


def handle(job: GroupwiseJob, channel: EventChannel) -> GroupwiseResult:
    """Quantize with the job's engine."""
    engine = job.settings.engine
    loading = f"load {engine}"
    plan_steps(channel, loading)
    channel.progress(loading, 0, 1, "libraries")
    # Imported here: libraries print on import, and events no longer use standard output now.
    from quant_assets.workers.groupwise.awq.quantizer import AwqQuantizer
    from quant_assets.workers.groupwise.loop import run

    def warn(message: str) -> None:
        channel.log(message, "warning")

    def make(model: "StreamedModel") -> "AwqQuantizer":
        if engine == "autoawq":
            from quant_assets.workers.groupwise.awq.autoawq_engine import AutoAwqEngine

            return AwqQuantizer(model, job.settings, AutoAwqEngine(model, job.settings), warn)
        from quant_assets.workers.groupwise.awq.gptqmodel_engine import GptqmodelEngine

        return AwqQuantizer(model, job.settings, GptqmodelEngine(model, job.settings), warn)

    channel.progress(loading, 1, 1, "libraries")
    return run(job, channel, make)


if __name__ == "__main__":
    serve(GroupwiseJob, handle)
