"""KV cache quality: where tokens are scored, and the figures of two sets of logits."""

import numpy as np
import pytest

from quant_assets.bench.divergence import LogitPairs, scored_targets
from quant_assets.bench.kv_cache import (
    logit_positions,
    measurable_contexts,
    rows_of,
    scored_positions,
)


def test_contexts_are_capped_at_the_models_own_and_at_half_the_text():
    assert measurable_contexts((8192, 512, 2048), 131_072, 100_000) == [512, 2048, 8192]
    assert measurable_contexts((512, 2048, 8192), 2048, 100_000) == [512, 2048]
    assert measurable_contexts((512, 2048), None, 3000) == [512, 1500]
    assert measurable_contexts((512, 2048), 256, 100_000) == [256]


@pytest.mark.parametrize("context", [16, 511, 512, 2048, 8192])
def test_the_last_tokens_of_a_context_are_scored_at_512_those_of_perplexity(context: int):
    positions = scored_positions(context)
    assert positions.stop == context
    assert len(positions) == min(255, context - 1 - context // 2)
    if context <= 512:
        assert list(positions) == scored_targets(np.arange(context)).tolist()


def test_a_pass_over_the_longest_context_has_the_logits_of_all():
    contexts = [40, 60, 2048]  # the first two overlap
    wanted = logit_positions(contexts)
    assert wanted == sorted(set(wanted)) and wanted[-1] == 2046
    for context in contexts:
        found = [wanted[row] for row in rows_of(context, wanted)]
        assert found == [at - 1 for at in scored_positions(context)]


def test_pairs_of_logits_match_the_definition():
    generator = np.random.default_rng(0)
    base, own = (generator.normal(0, 3, (2, 50, 97)).astype(np.float32) for _ in range(2))
    targets = generator.integers(0, 97, (2, 50)).astype(np.int32)
    pairs = LogitPairs()
    for window in range(2):
        pairs.add(base[window], own[window], targets[window])
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in map(np.float64, (base, own)))
    assert pairs.kl == pytest.approx((np.exp(p) * (p - q)).sum(-1).ravel(), rel=1e-5)
    expected = -np.take_along_axis(p, targets[..., None], -1).ravel()
    assert pairs.baseline_nll == pytest.approx(expected, abs=1e-5)
    assert pairs.top1_agreement == (base.argmax(-1) == own.argmax(-1)).mean()
