from pathlib import Path

import pytest

from quant_assets.bench.artifact_finder import LocatedArtifact
from quant_assets.bench.jobs import ChatReplies
from quant_assets.bench.obedience import measurement
from quant_assets.bench.obedience.measurement import (
    ObedienceResult,
    check_answers,
    measure_obedience,
)
from quant_assets.bench.obedience.prompts import ObediencePrompt, load_prompts, spread_prompts
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.statistics import wilson_interval
from quant_assets.bench.subject import Subject
from quant_assets.bench.variants import Variant
from quant_assets.errors import InputError
from quant_assets.settings import PROJECT_ROOT

PROMPTS = load_prompts(PROJECT_ROOT / "data" / "obedience")


def test_there_are_enough_prompts_in_every_category() -> None:
    assert len(PROMPTS) >= 40
    assert {prompt.category for prompt in PROMPTS} == {
        "format", "length", "language", "refusal_to_add",
        "json_schema", "counting", "copying", "ordering",
    }  # fmt: skip


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.id)
def test_every_check_accepts_good_answers_and_rejects_bad_ones(prompt: ObediencePrompt) -> None:
    for answer in prompt.good:
        assert prompt.failure(f"\n{answer} \n") is None
    for answer in [*prompt.bad, ""]:
        assert prompt.failure(answer)


def test_fewer_prompts_are_spread_over_the_categories() -> None:
    categories = {prompt.category for prompt in PROMPTS}
    one_each = spread_prompts(PROMPTS, len(categories))
    assert [prompt.category for prompt in one_each] == sorted(
        categories, key=[prompt.category for prompt in PROMPTS].index
    )
    for count in range(1, len(PROMPTS)):
        chosen = spread_prompts(PROMPTS, count)
        assert len({prompt.id for prompt in chosen}) == count
        assert spread_prompts(PROMPTS, count - 1 or None) == (chosen[:-1] or PROMPTS)
    assert spread_prompts(PROMPTS) == spread_prompts(PROMPTS, 10_000) == PROMPTS


def test_pass_rates_and_transcripts() -> None:
    answers = [
        prompt.good[0] if prompt.category == "copying" else prompt.bad[0] for prompt in PROMPTS
    ]
    result = check_answers(PROMPTS, answers, variant="v", model="m", artifact_id="a")
    assert result.pass_rate_by_category["copying"] == 1.0
    assert result.pass_rate_by_category["counting"] == 0.0
    assert result.pass_rate == sum(p.category == "copying" for p in PROMPTS) / len(PROMPTS)
    assert [t.answer for t in result.transcripts] == answers
    assert all((t.failure is None) == (t.category == "copying") for t in result.transcripts)


@pytest.mark.parametrize(
    "content",
    [
        "category: c\nprompts: []\n",
        "category: c\nprompts:\n  - {id: a, prompt: p, checks: [], good: [x], bad: [y]}\n",
        "category: c\nprompts:\n"
        "  - {id: a, prompt: p, checks: [{kind: magic}], good: [x], bad: [y]}\n",
        "category: [",
    ],
)
def test_invalid_prompt_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "broken.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"broken\.yaml"):
        load_prompts(tmp_path)


def test_an_empty_folder_and_a_repeated_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There are none"):
        load_prompts(tmp_path)
    prompt = (
        "category: c\nprompts:\n"
        "  - {id: a, prompt: p, checks: [{kind: exact, accepted: [x]}], good: [x], bad: [y]}\n"
    )
    for name in ("one.yaml", "two.yaml"):
        (tmp_path / name).write_text(prompt, encoding="utf-8")
    with pytest.raises(InputError, match="occur twice: a"):
        load_prompts(tmp_path)


def test_a_pass_rate_has_the_interval_of_its_prompts() -> None:
    answers = [prompt.good[0] for prompt in PROMPTS]
    result = check_answers(PROMPTS, answers, variant="v", model="m", artifact_id="a")
    assert result.pass_rate_interval == wilson_interval(len(PROMPTS), len(PROMPTS))
    for category, interval in result.pass_rate_interval_by_category.items():
        count = sum(prompt.category == category for prompt in PROMPTS)
        assert interval == wilson_interval(count, count)
        assert interval.low < result.pass_rate_interval.low


def test_answers_of_an_earlier_run_are_checked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, q4_variant: Variant
) -> None:
    """A result keeps its answers and its time; what a corrected check says of them is new."""
    prompts = PROMPTS[:2]
    asked: list[object] = []

    def answer(*arguments: object, **_: object) -> ChatReplies:
        asked.append(arguments)
        return ChatReplies(replies=[prompt.good[0] for prompt in prompts])

    monkeypatch.setattr(measurement, "run_worker", answer)
    artifact = LocatedArtifact(tmp_path / "model.gguf", "artifact", 1)
    subject = Subject("m", q4_variant, artifact, BenchSettings())

    def measure() -> ObedienceResult:
        return measure_obedience(subject, prompts, tmp_path, locks=tmp_path / "locks")

    first = measure()
    (file,) = (tmp_path / "obedience").iterdir()
    stale = [item.model_copy(update={"failure": "a wrong check"}) for item in first.transcripts]
    file.write_text(
        first.model_copy(update={"transcripts": stale, "pass_rate": 0.0}).model_dump_json()
    )
    assert measure() == first and len(asked) == 1
    assert ObedienceResult.model_validate_json(file.read_text()) == first
