import datetime
import math
import os
from pathlib import Path
from typing import Any

from quant_assets.bench.jobs import QualityMeasurement, WindowSums
from quant_assets.bench.obedience.measurement import ObedienceResult
from quant_assets.bench.quality import (
    QualityResult,
    QualityStore,
    compare,
    gate_breach,
    on_one_text,
)

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def _result(ratio: float) -> QualityResult:
    return QualityResult(
        variant="q4_K_M", model="m", artifact_id="a", baseline_artifact_id="b", text="t",
        text_sha256="0", timestamp=NOW,
        measurement=QualityMeasurement(
            perplexity=10 * ratio, perplexity_standard_error=0.1, scored_tokens=255, windows=1,
            context=512, baseline_perplexity=10, perplexity_ratio=ratio, kl_divergence=0.02,
            top1_agreement=0.9, seconds=1,
        ),
    )  # fmt: skip


def test_the_gate_is_for_q4_k_m_of_large_models() -> None:
    assert "1.060 times" in (gate_breach(_result(1.06), "Q4_K_M", 1_000_000_000) or "")
    assert gate_breach(_result(1.05), "Q4_K_M", 1_000_000_000) is None
    assert gate_breach(_result(1.06), "Q4_K_M", 999_999_999) is None
    assert gate_breach(_result(1.06), "Q4_0", 7_000_000_000) is None


def test_quality_and_obedience_enter_the_record(new_record: Any) -> None:
    record, _ = new_record()
    obedience = ObedienceResult(
        variant="v", model="m", artifact_id="a", timestamp=NOW, pass_rate=0.25,
        pass_rate_by_category={}, transcripts=[],
    )  # fmt: skip
    full = record.with_quality(_result(1.1), obedience)
    assert (full.perplexity, full.perplexity_ratio, full.top1_agreement) == (11.0, 1.1, 0.9)
    assert full.obedience_pass_rate == 0.25
    assert record.with_quality() == record
    assert full.with_quality(obedience=obedience).perplexity == 11.0


def _measured(
    variant: str,
    *,
    sha256: str = "t1",
    day: int = 1,
    losses: tuple[float, ...] | None = None,
    windows: int = 4,
) -> QualityResult:
    """A result over `windows` windows of 10 scored tokens that lose `losses` nats each."""
    base = [20.0 + 2 * number for number in range(windows)]
    sums = losses and WindowSums(
        nll=[nll + 10 * loss for nll, loss in zip(base, losses, strict=True)], baseline_nll=base
    )
    measurement = _result(1.06).measurement.model_copy(
        update={"windows": windows, "scored_tokens": 10 * windows, "window_sums": sums or None}
    )
    return _result(1.06).model_copy(
        update={
            "variant": variant, "text_sha256": sha256, "measurement": measurement,
            "timestamp": NOW + datetime.timedelta(days=day),
        }
    )  # fmt: skip


def test_the_gate_fails_only_what_is_certainly_over_it() -> None:
    certain = _measured("q", losses=(0.058, 0.058, 0.059, 0.058))
    noisy = _measured("q", losses=(0.15, -0.03, 0.01, 0.103))
    assert "1.060 times (1.059 to 1.061)" in str(gate_breach(certain, "Q4_K_M", 10**9))
    assert gate_breach(noisy, "Q4_K_M", 10**9) is None
    # A record from before the losses of windows were kept has no interval.
    assert gate_breach(_measured("q"), "Q4_K_M", 10**9) is not None


def test_all_variants_of_a_model_are_taken_from_one_text() -> None:
    older = [_measured(name, sha256="wiki", day=1) for name in ("f16", "q8", "q4")]
    newer = [_measured(name, sha256="reference", day=2) for name in ("f16", "q4")]
    current = {(name, "a") for name in ("f16", "q8", "q4")}
    chosen = on_one_text([*older, *newer], current)
    assert chosen == {(result.variant, "a"): result for result in older}
    # The number of windows belongs to the identity, and of equals the newest text wins.
    more = [_measured(name, sha256="wiki", day=3, windows=8) for name in ("q8", "q4")]
    chosen = on_one_text([*older, *newer, *more], current)
    assert {key[0]: result.measurement.windows for key, result in chosen.items()} == {
        "q8": 8, "q4": 8,
    }  # fmt: skip
    # Results of artifacts that no variant runs any more do not count.
    assert set(on_one_text([*older, *newer], current - {("q8", "a")})) == {
        ("f16", "a"),
        ("q4", "a"),
    }
    assert on_one_text(newer, {("q8", "a")}) == {}


def test_baselines_used_longest_ago_make_room(tmp_path: Path) -> None:
    store = QualityStore(tmp_path / "results", tmp_path / "cache")
    store.baselines.mkdir(parents=True)
    for age, name in enumerate(("newest", "second", "third", "oldest")):
        path = store.baselines / f"{name}.kld"
        path.write_bytes(bytes(10))
        os.utime(path, (1e9 - age, 1e9 - age))
    store.make_room(store.baselines / "oldest.kld", limit_bytes=30)
    assert {path.stem for path in store.baselines.iterdir()} == {"oldest", "newest", "second"}
    store.make_room(store.baselines / "second.kld", limit_bytes=5)
    assert [path.stem for path in store.baselines.iterdir()] == ["second"]


def test_two_variants_are_compared_window_by_window() -> None:
    q8 = _measured("q8", losses=(0.01, 0.01, 0.012, 0.01))
    q4 = _measured("q4", losses=(0.06, 0.061, 0.06, 0.06))
    found = compare(q4, q8)
    assert found is not None
    assert 1.04 < found.low < math.exp(0.04975) < found.high < 1.06
    assert compare(q4, _measured("q8", sha256="other", losses=(0, 0, 0, 0))) is None
    assert compare(q4, _measured("q8")) is None
