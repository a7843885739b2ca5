"""The steps of a GPTQ or AWQ job, with their usual shares of its time."""

from quant_assets.processes.protocol import EventChannel

CALIBRATE = "calibrate"
QUANTIZE = "quantize"
ASSEMBLE = "assemble"


def plan_steps(channel: EventChannel, loading: str) -> None:
    """Declare the steps; `loading` is the one that loads the engine."""
    channel.plan_steps({loading: 4, CALIBRATE: 1, QUANTIZE: 90, ASSEMBLE: 5})
