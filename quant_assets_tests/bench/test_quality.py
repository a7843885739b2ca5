import datetime
from typing import Any

from quant_assets.bench.jobs import QualityMeasurement
from quant_assets.bench.obedience.measurement import ObedienceResult
from quant_assets.bench.quality import QualityResult, gate_breach

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
