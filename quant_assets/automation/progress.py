"""Progress of a full run: stage, percentage, time left, and memory of this process and its workers."""

import datetime
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Literal

from quant_assets.processes.job_tracker import Clock
from quant_assets.processes.memory import MemoryUsage, TreeMemoryMeter
from quant_assets.processes.quantization_job import QuantizationJob

ReportLine = Callable[[str], None]
Stage = Literal["listings", "host", "source", "artifacts", "quality", "benchmarks", "marts"]

USUAL_S: dict[Stage, float] = {
    "listings": 18.0,
    "host": 6.0,
    "source": 20.0,
    "artifacts": 22.0,
    "quality": 205.0,
    "benchmarks": 120.0,
    "marts": 18.0,
}
"""Seconds per stage with SmolLM2-135M on two idle cores and an empty data root.

Quality is 75 s for perplexity and divergence, 80 s for two quantized KV caches at 2048 tokens, and
50 s for six variants that answer 24 prompts.
"""

LINE_INTERVAL_S: Final = 30.0
_SAMPLE_INTERVAL_S: Final = 5.0
"""Rarely enough not to disturb the measurements of the run."""


class Progress:
    """Reports the stages of one run, given in their order; each is begun or skipped once.

    Inside a `with` block, a line every `LINE_INTERVAL_S` says how far a long stage is. The time left
    is the usual time of the rest, scaled by what the finished stages took of their usual time.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        report_line: ReportLine,
        *,
        clock: Clock = time.monotonic,
        read_memory: Callable[[], MemoryUsage] | None = None,
    ) -> None:
        self._usual_s = [USUAL_S[stage] for stage in stages]
        self._report_line = report_line
        self._clock = clock
        self._read_memory = read_memory or TreeMemoryMeter().read
        self._n_begun = 0
        self._title: str | None = None
        self._begun_at = 0.0
        self._finished_s = self._finished_usual_s = 0.0
        self._start_time = datetime.datetime.now(datetime.UTC)
        self._status: Literal["running", "completed", "failed"] = "running"
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> "Progress":
        self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._ticker.join()
        if error is None:
            self._end_stage()
        self._status = "completed" if error is None else "failed"

    @property
    def job(self) -> QuantizationJob:
        """The run's state; its steps are the stages."""
        done = self._status == "completed"
        ended = self._status != "running"
        left = datetime.timedelta(seconds=0 if ended else self._left_s())
        measured = ended or self._finished_usual_s > 0
        return QuantizationJob(
            status=self._status,
            step=self._title,
            step_number=self._n_begun or None,
            n_steps=len(self._usual_s),
            progress_percentage=100 if done else self._percentage(),
            start_time=self._start_time,
            estimated_completion=datetime.datetime.now(datetime.UTC) + left if measured else None,
            memory_usage=self._read_memory(),
        )

    def begin(self, title: str) -> None:
        """Report the next stage, its usual time, and the usual time of all that follow."""
        self._end_stage()
        usual_s, *rest = self._usual_s[self._n_begun :]
        self._n_begun += 1
        self._begun_at = self._clock()
        after = (
            f"then {_duration(sum(rest))} for the {len(rest)} after it" if rest else "the last one"
        )
        self._report_line(f"{self._place()} {title} (usually {_duration(usual_s)}; {after})")
        self._title = title

    def skip(self, title: str) -> None:
        """Report that the next stage is skipped."""
        self._end_stage()
        self._usual_s[self._n_begun] = 0.0
        self._n_begun += 1
        self._report_line(f"{self._place()} skipped: {title}")

    def line(self, text: str) -> None:
        """Report a detail of the current stage."""
        self._report_line(f"  {text}")

    def report_running(self) -> None:
        """Report how far the current stage and the run are; nothing between two stages."""
        title = self._title
        if title is not None:
            took = _duration(self._clock() - self._begun_at)
            self._report_line(f"  {self._place()} {title}: running for {took}; {self._facts()}")

    def _end_stage(self) -> None:
        if self._title is None:
            return
        self._title = None
        took_s = self._clock() - self._begun_at
        self._finished_s += took_s
        self._finished_usual_s += self._usual_s[self._n_begun - 1]
        self._report_line(f"  done in {_duration(took_s)}; {self._facts()}")

    def _facts(self) -> str:
        left = (
            f"{_duration(self._left_s())} left"
            if self._finished_usual_s
            else "estimating the time left"
        )
        return f"whole run {self._percentage():.0f}%, {left}; memory {self._read_memory().text}"

    def _pace(self) -> float:
        """Seconds per usual second, by the finished stages."""
        return self._finished_s / self._finished_usual_s if self._finished_usual_s else 1.0

    def _stage_left_s(self) -> float:
        if self._title is None:
            return 0.0
        expected_s = self._pace() * self._usual_s[self._n_begun - 1]
        return max(0.0, expected_s - (self._clock() - self._begun_at))

    def _left_s(self) -> float:
        return self._stage_left_s() + self._pace() * sum(self._usual_s[self._n_begun :])

    def _percentage(self) -> float:
        """Usual time of the work that is done, of the usual time of all."""
        total = sum(self._usual_s)
        pace = self._pace()
        left = sum(self._usual_s[self._n_begun :])
        if self._title is not None:
            current = self._usual_s[self._n_begun - 1]
            left += min(current, self._stage_left_s() / pace) if pace else current
        return 100 * (1 - left / total) if total else 100.0

    def _tick(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(_SAMPLE_INTERVAL_S):
            self._read_memory()
            if time.monotonic() - last >= LINE_INTERVAL_S:
                last = time.monotonic()
                self.report_running()

    def _place(self) -> str:
        return f"[{self._n_begun} of {len(self._usual_s)}]"


def _duration(seconds: float) -> str:
    return f"about {seconds:.0f} s" if seconds < 100 else f"about {seconds / 60:.0f} min"
