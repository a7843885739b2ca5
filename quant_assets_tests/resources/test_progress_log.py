"""Progress of workers in Dagster's log: the facts at sensible intervals."""

from quant_assets.processes.job_tracker import ESTIMATING
from quant_assets.processes.protocol import MemoryEvent, ProgressEvent
from quant_assets.resources.worker_logs import PROGRESS_INTERVAL_S, ProgressLog


def test_a_line_when_a_step_begins_and_ends_and_at_intervals_in_between() -> None:
    lines: list[str] = []
    now = 0.0
    log = ProgressLog(lines.append, clock=lambda: now)
    log.show(MemoryEvent(rss_bytes=500_000_000, peak_rss_bytes=750_000_000))
    for done in range(101):
        log.show(
            ProgressEvent(
                step="quantize", done=done, total=100, unit="layers", step_number=3, n_steps=4,
                job_fraction=done / 200,
            )
        )  # fmt: skip
        now += 1
    assert [line.split(",")[0].split(";")[0] for line in lines] == [
        f"[3 of 4] quantize: {done}% ({done} of 100 layers)"
        for done in range(0, 101, int(PROGRESS_INTERVAL_S))
    ]
    assert ESTIMATING in lines[0]
    assert "60% (60 of 100 layers), 40 s left; whole job 30%, 2 min 20 s left" in lines[6]
    assert all("memory 0.50 GB now, 0.75 GB peak" in line for line in lines)
