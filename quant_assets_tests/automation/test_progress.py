"""Progress lines of a full run."""

import pytest

from quant_assets.automation.progress import Progress, Stage
from quant_assets.processes.memory import MemoryUsage

MEMORY = "memory 0.50 GB now, 0.75 GB peak"


class Run:
    """A run on a clock that the test moves; its lines in order."""

    def __init__(self, *stages: Stage) -> None:
        self.now = 0.0
        self.lines: list[str] = []
        self.progress = Progress(
            stages,
            self.lines.append,
            clock=lambda: self.now,
            read_memory=lambda: MemoryUsage(rss_bytes=500_000_000, peak_rss_bytes=750_000_000),
        )


def test_stages_are_counted_with_the_usual_time_of_the_rest() -> None:
    run = Run("listings", "host", "benchmarks", "marts")
    progress = run.progress
    progress.begin("reading offers")
    progress.line("a detail")
    run.now += 36  # twice the usual time
    progress.skip("host: already measured")
    progress.begin("measuring")
    run.now += 240
    progress.begin("dbt build")
    assert run.lines == [
        "[1 of 4] reading offers (usually about 18 s; then about 2 min for the 3 after it)",
        "  a detail",
        f"  done in about 36 s; whole run 11%, about 5 min left; {MEMORY}",
        "[2 of 4] skipped: host: already measured",
        "[3 of 4] measuring (usually about 2 min; then about 18 s for the 1 after it)",
        f"  done in about 4 min; whole run 88%, about 36 s left; {MEMORY}",
        "[4 of 4] dbt build (usually about 18 s; the last one)",
    ]


def test_there_is_no_time_left_before_a_stage_has_ended() -> None:
    run = Run("listings", "marts")
    run.progress.report_running()
    assert run.lines == []
    run.progress.begin("reading offers")
    run.now += 9
    run.progress.report_running()
    assert run.lines[-1] == (
        "  [1 of 2] reading offers: running for about 9 s; whole run 25%, "
        f"estimating the time left; {MEMORY}"
    )
    assert run.progress.job.estimated_completion is None


def test_a_stage_that_takes_longer_never_has_negative_time_left() -> None:
    run = Run("listings", "marts")
    run.progress.begin("reading offers")
    run.now += 18
    run.progress.begin("dbt build")
    run.now += 500
    run.progress.report_running()
    assert "whole run 100%, about 0 s left" in run.lines[-1]


def test_the_final_state_says_how_the_run_ended() -> None:
    run = Run("listings")
    with run.progress:
        run.progress.begin("reading offers")
        assert run.progress.job.status == "running"
        assert (run.progress.job.step, run.progress.job.n_steps) == ("reading offers", 1)
    job = run.progress.job
    assert (job.status, job.progress_percentage) == ("completed", 100)
    assert job.memory_usage is not None and job.memory_usage.peak_rss_bytes == 750_000_000


def test_a_run_that_fails_is_not_complete() -> None:
    run = Run("listings", "marts")
    with pytest.raises(ValueError, match="broken"), run.progress:
        run.progress.begin("reading offers")
        raise ValueError("broken")
    assert run.progress.job.status == "failed"
    assert run.progress.job.progress_percentage < 100
