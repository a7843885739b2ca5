"""Progress lines of a full run."""

from quant_assets.automation.progress import Progress


def test_stages_are_counted_with_the_usual_time_of_the_rest() -> None:
    lines: list[str] = []
    progress = Progress(["listings", "host", "benchmarks", "marts"], lines.append)
    progress.begin("reading offers")
    progress.line("a detail")
    progress.skip("host: already measured")
    progress.begin("measuring")
    progress.begin("dbt build")
    assert lines == [
        "[1 of 4] reading offers (usually about 18 s; then about 2 min for the 3 after it)",
        "  a detail",
        "[2 of 4] skipped: host: already measured",
        "[3 of 4] measuring (usually about 2 min; then about 18 s for the 1 after it)",
        "[4 of 4] dbt build (usually about 18 s; the last one)",
    ]
