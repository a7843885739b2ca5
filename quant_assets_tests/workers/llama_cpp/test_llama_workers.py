"""The llama.cpp workers on a real model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quant_assets.bench.artifact_finder import LocatedArtifact
from quant_assets.bench.cell import MeasuredCell, run_cell
from quant_assets.bench.kv_cache import kv_cache_results, measure_kv_cache
from quant_assets.bench.obedience.measurement import measure_obedience
from quant_assets.bench.obedience.prompts import load_prompts
from quant_assets.bench.quality import QualityStore, measure_quality
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.subject import Subject
from quant_assets.bench.variants import CacheType, Variant
from quant_assets.errors import InputError
from quant_assets.models.identity import sha256_of
from quant_assets.processes.protocol import Event, ProgressEvent
from quant_assets.processes.session import WorkerSession
from quant_assets.settings import PROJECT_ROOT
from quant_assets.texts.evaluation import EvaluationText

SETTINGS = BenchSettings(
    batch_sizes=(1,), warmups=1, runs=2, prompt_tokens=16, generated_tokens=3, device="cpu",
    threads=1,  # another test process uses the other core
)  # fmt: skip
# The backend's own figure comes from its log, which rounds each sequence's buffer to 0.01 MiB.
LOG_ROUNDING_BYTES = 0.005 * 2**20

CONTEXT = 512


def _subject(model: Path, variant: Variant) -> Subject:
    size = model.stat().st_size if model.exists() else 0
    return Subject("smollm2", variant, LocatedArtifact(model, "id", size), SETTINGS)


def _measure(
    model: Path, tmp_path: Path, batch_size: int = 1, k: CacheType = "f16", v: CacheType = "f16"
) -> MeasuredCell:
    variant = Variant(name="q4", format="gguf", level="Q4_1", cache_type_k=k, cache_type_v=v)
    return run_cell(_subject(model, variant), batch_size, locks=tmp_path)


def test_a_batch_is_decoded_together_and_summarized(smollm2: Path, tmp_path: Path) -> None:
    record, samples = _measure(smollm2, tmp_path, batch_size=4)
    assert [len(sample.token_ms) for sample in samples] == [3, 3]
    for sample in samples:
        assert sample.total_ms == pytest.approx(
            sample.time_to_first_token_ms + sum(sample.token_ms)
        )
    assert record.decode_tokens_per_s == pytest.approx(
        4 * (record.decode_tokens_per_s_per_sequence or 0)
    )
    assert record.peak_rss_bytes and record.peak_rss_bytes > smollm2.stat().st_size / 2
    assert record.load_time_ms and record.metadata.cpu_name and record.metadata.build_flags
    in_runs_ms = sum(sample.total_ms for sample in samples)
    assert record.command_duration_ms is not None
    assert record.command_duration_ms > record.load_time_ms + in_runs_ms
    assert record.p95_flagged and record.peak_vram_bytes is None
    assert record.metadata.host_load is not None
    assert "llama.cpp" in record.metadata.library_versions


@pytest.mark.parametrize(
    ("k", "v", "row_bytes"),
    [("f16", "f16", 192 * 2 * 2), ("q4_0", "q4_0", 6 * 18 * 2), ("q8_0", "q4_0", 6 * 34 + 6 * 18)],
)
def test_the_kv_cache_has_the_expected_size(
    smollm2: Path, tmp_path: Path, k: CacheType, v: CacheType, row_bytes: int
) -> None:
    record, _ = _measure(smollm2, tmp_path, batch_size=2, k=k, v=v)
    # 30 layers, 3 heads of 64 values, and llama.cpp's minimum of 256 cells per sequence.
    assert record.kv_cache_bytes_expected == 30 * 2 * 256 * row_bytes
    assert record.kv_cache_bytes is not None
    assert abs(record.kv_cache_bytes - record.kv_cache_bytes_expected) <= LOG_ROUNDING_BYTES


def test_a_missing_or_damaged_file_is_an_error_in_the_parent(smollm2: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model file"):
        _measure(tmp_path / "absent.gguf", tmp_path)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(smollm2.read_bytes()[:1_000_000])
    with pytest.raises(InputError, match=r"cannot load .*broken\.gguf"):
        _measure(broken, tmp_path)


def reference(model: Path, text: Path) -> dict[str, float]:
    """The same figures by definition, measured by llama.cpp on this processor."""
    script = Path(__file__).with_name("reference_perplexity.py")
    done = subprocess.run(
        [sys.executable, script, model, text, str(CONTEXT)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def test_quality_agrees_with_its_definition(
    smollm2: Path, fixed_text: Path, tmp_path: Path
) -> None:
    expected = reference(smollm2, fixed_text)
    text = EvaluationText(name="fixed", path=fixed_text, sha256=sha256_of(fixed_text))
    store = QualityStore(tmp_path / "results", tmp_path / "cache")
    variant = Variant(
        name="kv", format="gguf", level="Q4_1", cache_type_k="q4_0", cache_type_v="q4_0"
    )
    subject = _subject(smollm2, variant)
    events: list[Event] = []
    result = measure_quality(
        subject, subject.artifact, text, store,
        windows=None, session=WorkerSession(events.append), locks=tmp_path,
    )  # fmt: skip
    measured = result.measurement
    assert measured.windows == 2 and measured.scored_tokens == 2 * 255
    assert measured.context == CONTEXT
    assert measured.baseline_perplexity == pytest.approx(expected["baseline"], rel=1e-3)
    assert measured.perplexity == pytest.approx(expected["kv"], rel=2e-3)
    assert measured.kl_divergence == pytest.approx(expected["kl"], rel=2e-2)
    assert measured.top1_agreement == pytest.approx(expected["top1"], abs=1e-2)
    assert {event.step for event in events if isinstance(event, ProgressEvent)} == {"perplexity"}

    seen = len(events)
    again = measure_quality(
        subject, subject.artifact, text, store,
        windows=None, session=WorkerSession(events.append), locks=tmp_path,
    )  # fmt: skip
    assert again == result and len(events) == seen


def test_a_kv_cache_is_compared_with_f16_at_several_contexts(
    smollm2: Path, fixed_text: Path, tmp_path: Path
) -> None:
    text = EvaluationText(name="fixed", path=fixed_text, sha256=sha256_of(fixed_text))
    variant = Variant(
        name="kv", format="gguf", level="Q4_1", cache_type_k="q4_0", cache_type_v="q4_0"
    )
    subject = _subject(smollm2, variant)
    store = QualityStore(tmp_path / "results", tmp_path / "cache")
    alone = measure_quality(
        subject, subject.artifact, text, store, windows=None, locks=tmp_path
    ).measurement
    result = measure_kv_cache(
        subject, text, tmp_path / "results", contexts=(CONTEXT, 128, 10**6), windows=2,
        locks=tmp_path,
    )  # fmt: skip
    # The text has two windows of a little more than 512 tokens.
    short, window, longest = result.contexts
    assert [short.context, window.context] == [128, CONTEXT] and longest.context > CONTEXT
    assert (short.scored_tokens, window.scored_tokens) == (2 * 63, 2 * 255)
    assert all(found.windows == 2 for found in result.contexts)
    # An F16 cache in place of the F16 artifact: the baseline of perplexity is the same model here.
    assert window.baseline_perplexity == pytest.approx(alone.baseline_perplexity, rel=0.2)
    for found in result.contexts:
        assert found.kl_divergence is not None and found.kl_divergence > 0
        assert found.perplexity_ratio_interval is not None
        assert found.perplexity_ratio == pytest.approx(
            found.perplexity / (found.baseline_perplexity or 0)
        )
    again = measure_kv_cache(
        subject, text, tmp_path / "results", contexts=(CONTEXT, 128, 10**6), windows=2,
        locks=tmp_path,
    )  # fmt: skip
    assert again == result and kv_cache_results(tmp_path / "results") == [result]
    plain = variant.model_copy(update={"cache_type_k": "f16", "cache_type_v": "f16"})
    same = measure_kv_cache(
        _subject(smollm2, plain), text, tmp_path / "results", contexts=(64,), windows=2,
        locks=tmp_path,
    ).contexts[0]  # fmt: skip
    assert same.kl_divergence == pytest.approx(0, abs=1e-6) and same.top1_agreement == 1
    assert same.perplexity_ratio == pytest.approx(1, abs=1e-6)


def test_a_model_answers_through_its_chat_template(smollm2: Path, tmp_path: Path) -> None:
    prompts = [
        prompt
        for prompt in load_prompts(PROJECT_ROOT / "data" / "obedience")
        if prompt.id in ("counting-up", "only-ok")
    ]
    variant = Variant(name="q4", format="gguf", level="Q4_1")
    result = measure_obedience(_subject(smollm2, variant), prompts, tmp_path, locks=tmp_path)
    assert [item.id for item in result.transcripts] == [prompt.id for prompt in prompts]
    counting = next(item for item in result.transcripts if item.id == "counting-up")
    assert counting.answer.startswith("1, 2, 3")
    assert 0 <= result.pass_rate <= 1
    (kept,) = (tmp_path / "obedience").iterdir()
    assert kept.name.startswith("q4_")
