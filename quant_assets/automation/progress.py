"""Progress of a full run: which stage begins, how long it usually takes, and how much remains."""

from collections.abc import Callable, Sequence
from typing import Literal

ReportLine = Callable[[str], None]
Stage = Literal["listings", "host", "source", "artifacts", "quality", "benchmarks", "marts"]

USUAL_S: dict[Stage, float] = {
    "listings": 18.0,
    "host": 6.0,
    "source": 20.0,
    "artifacts": 22.0,
    "quality": 125.0,
    "benchmarks": 120.0,
    "marts": 18.0,
}
"""Seconds per stage with SmolLM2-135M on two idle cores and an empty data root.

Quality is 75 s for perplexity and divergence, and 50 s for six variants that answer 24 prompts.
"""


class Progress:
    """Reports the stages of one run, given in their order; each is begun or skipped once."""

    def __init__(self, stages: Sequence[Stage], report_line: ReportLine) -> None:
        self._remaining_s = [USUAL_S[stage] for stage in stages]
        self._stages = len(stages)
        self._report_line = report_line

    def begin(self, title: str) -> None:
        """Report the next stage, its usual time, and the usual time of all that follow."""
        usual_s = self._remaining_s.pop(0)
        after = (
            f"then {_duration(sum(self._remaining_s))} for the {len(self._remaining_s)} after it"
            if self._remaining_s
            else "the last one"
        )
        self._report_line(f"{self._place()} {title} (usually {_duration(usual_s)}; {after})")

    def skip(self, title: str) -> None:
        """Report that the next stage is skipped."""
        self._remaining_s.pop(0)
        self._report_line(f"{self._place()} skipped: {title}")

    def line(self, text: str) -> None:
        """Report a detail of the current stage."""
        self._report_line(f"  {text}")

    def _place(self) -> str:
        return f"[{self._stages - len(self._remaining_s)} of {self._stages}]"


def _duration(seconds: float) -> str:
    return f"about {seconds:.0f} s" if seconds < 100 else f"about {seconds / 60:.0f} min"
