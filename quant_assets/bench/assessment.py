"""Bring quality and obedience, measured once a variant, into the records of its cells."""

from quant_assets.bench.obedience import ObedienceResult
from quant_assets.bench.quality import QualityResult
from quant_assets.bench.record import BenchmarkRecord


def assessed(
    record: BenchmarkRecord,
    quality: QualityResult | None = None,
    obedience: ObedienceResult | None = None,
) -> BenchmarkRecord:
    """The record with everything that was measured; what was not keeps its value."""
    update: dict[str, float | None] = {}
    if quality is not None:
        measured = quality.measurement
        update |= {
            "perplexity": measured.perplexity,
            "perplexity_ratio": measured.perplexity_ratio,
            "kl_divergence": measured.kl_divergence,
            "top1_agreement": measured.top1_agreement,
        }
    if obedience is not None:
        update["obedience_pass_rate"] = obedience.pass_rate
    return record.model_copy(update=update)
