"""`python -m quant_assets.workers.groupwise.gptq`: one GPTQ job."""

from quant_assets.processes.protocol import EventChannel, serve
from quant_assets.quantize.groupwise.job import GroupwiseJob, GroupwiseResult
from quant_assets.workers.groupwise.steps import plan_steps

_LOAD = "load gptqmodel"


def handle(job: GroupwiseJob, channel: EventChannel) -> GroupwiseResult:
    """Quantize with gptqmodel's solver."""
    plan_steps(channel, _LOAD)
    channel.progress(_LOAD, 0, 1, "libraries")
    # Imported here: gptqmodel prints on import, and events no longer use standard output now.
    from quant_assets.workers.groupwise.gptq.solver import GptqQuantizer
    from quant_assets.workers.groupwise.loop import run

    channel.progress(_LOAD, 1, 1, "libraries")
    return run(job, channel, lambda model: GptqQuantizer(model, job.settings))


if __name__ == "__main__":
    serve(GroupwiseJob, handle)
