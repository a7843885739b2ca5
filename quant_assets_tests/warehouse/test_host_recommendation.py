"""`recommend --cpu`: which records count, the ranking, each limit, and the command."""

import datetime
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quant_assets.artifacts.job import JobSpec
from quant_assets.artifacts.manifest import ArtifactFile, ArtifactManifest
from quant_assets.artifacts.store import ArtifactStore
from quant_assets.bench.jobs import QualityMeasurement, WindowSums
from quant_assets.bench.quality import QualityResult, QualityStore
from quant_assets.bench.results import ResultStore
from quant_assets.bench.settings import BenchSettings
from quant_assets.bench.variants import load_variants
from quant_assets.cli.app import app
from quant_assets.errors import InputError
from quant_assets.formats.gguf_levels import parse_level
from quant_assets.settings import get_settings
from quant_assets.warehouse import host_recommendation
from quant_assets.warehouse.host_recommendation import (
    HostAnswer,
    HostQuestion,
    recommend_for_host,
)
from quant_assets_tests.bench.made_records import MakeRecord

NOW = datetime.datetime(2026, 5, 4, 12, tzinfo=datetime.UTC)
VARIANTS = """
settings: {threads: 1}
variants:
  f16: {format: gguf, level: F16}
  q8: {format: gguf, level: Q8_0}
  q8-kv: {format: gguf, level: Q8_0, cache_type_k: q8_0, cache_type_v: q4_0}
  q4: {format: gguf, level: Q4_1}
  q5: {format: gguf, level: Q5_1}
"""
LEVELS = {"F16": 16.0, "Q8_0": 8.5, "Q4_1": 5.0}
SPEEDS = {"f16": 30.0, "q8": 55.0, "q8-kv": 54.0, "q4": 80.0}
LOSSES = {"q8": 0.001, "q8-kv": 0.02, "q4": 0.05}

Measure = Callable[..., None]


@pytest.fixture
def home(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data root with three artifacts of one model, whose quality was measured."""
    (tmp_path / "variants.yaml").write_text(VARIANTS, encoding="utf-8")
    (tmp_path / "models.yaml").write_text("models: [{name: tiny, source: a/b}]", encoding="utf-8")
    monkeypatch.setenv("QUANT_ASSETS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QUANT_ASSETS_VARIANTS_FILE", str(tmp_path / "variants.yaml"))
    monkeypatch.setenv("QUANT_ASSETS_MODELS_FILE", str(tmp_path / "models.yaml"))
    monkeypatch.setattr("quant_assets.speed.host_records.cpu_name", lambda: "a processor")
    monkeypatch.setattr("quant_assets.speed.host_records.host_id", lambda: "a0" * 6)
    get_settings.cache_clear()
    for level in LEVELS:
        store_artifact(level, smollm2)
    for variant, loss in LOSSES.items():
        save_quality(variant, loss)
    yield tmp_path / "home"
    get_settings.cache_clear()


def store_artifact(level: str, gguf: Path) -> None:
    store = ArtifactStore(get_settings().artifacts)
    job = job_of(level)
    with store.staging(job.job_id) as folder:
        (folder / "m.gguf").symlink_to(gguf)
        store.commit(
            folder,
            ArtifactManifest(
                job=job, job_id=job.job_id, status="valid", source_provenance="test",
                files=[
                    ArtifactFile(name="m.gguf", size_bytes=gguf.stat().st_size, sha256="0" * 64)
                ],
                n_parameters=134_515_008, bits_per_weight=LEVELS[level], tensor_types={},
                engine={}, validation={}, seconds=1.0, created_at=NOW,
            ),
        )  # fmt: skip


def job_of(level: str) -> JobSpec:
    assert parse_level(level).name == level
    return JobSpec(
        model_name="tiny", source_identity="s", target_format="gguf", level=level,
        library_versions={},
    )  # fmt: skip


def artifact_of(variant: str) -> str:
    return job_of(load_variants(get_settings().variants_yaml)[variant].level).job_id


def save_quality(
    variant: str,
    loss: float,
    *,
    text: str = "a",
    minutes: int = 0,
    sums: WindowSums | None = None,
) -> None:
    settings = get_settings()
    result = QualityResult(
        variant=variant,
        model="tiny",
        artifact_id=artifact_of(variant),
        baseline_artifact_id=artifact_of("f16"),
        text=text,
        text_sha256=text * 64,
        timestamp=NOW + datetime.timedelta(minutes=minutes),
        measurement=QualityMeasurement(
            perplexity=10 * (1 + loss), perplexity_standard_error=0.1, scored_tokens=2048,
            windows=8, context=512, perplexity_ratio=1 + loss, seconds=1.0, window_sums=sums,
        ),
    )  # fmt: skip
    store = QualityStore(settings.results, settings.cache)
    store.save(load_variants(settings.variants_yaml)[variant], f"key-{text}", result)


@pytest.fixture
def measure(home: Path, new_record: MakeRecord) -> Measure:
    """Adds a record of a variant; `about` replaces fields of its metadata."""

    def add(
        variant: str,
        speed: float | None = None,
        batch: int = 1,
        about: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        known = load_variants(get_settings().variants_yaml)[variant]
        record, _ = new_record(
            variant=variant,
            batch_size=batch,
            model="tiny",
            artifact_id=artifact_of(variant),
            settings=BenchSettings(prompt_tokens=128, generated_tokens=32),
            timestamp=NOW,
            decode_tokens_per_s=speed or SPEEDS[variant],
            **fields,
        )
        described = {
            "level": known.level,
            "cache_type_k": known.cache_type_k,
            "cache_type_v": known.cache_type_v,
            "threads": 1,
            **(about or {}),
        }
        metadata = record.metadata.model_copy(update=described)
        ResultStore(get_settings().results).append(record.model_copy(update={"metadata": metadata}))

    return add


def ask(**question: Any) -> HostAnswer:
    return recommend_for_host(HostQuestion(model="tiny", **question), get_settings())


def variants_of(answer: HostAnswer) -> list[str]:
    return [option.variant for option in answer.options]


def speed_of(answer: HostAnswer, variant: str) -> float:
    (found,) = [item for item in answer.options if item.variant == variant]
    return found.decode_tokens_per_s


def test_measured_variants_are_ranked_by_their_speed_and_others_estimated(measure: Measure):
    for variant in ("f16", "q8", "q4"):
        measure(variant)
    answer = ask()
    assert variants_of(answer) == ["q4", "q8", "q8-kv", "f16"]
    by_name = {option.variant: option for option in answer.options}
    for variant in ("f16", "q8", "q4"):
        option = by_name[variant]
        assert (option.speed_basis, option.runs) == ("measured", 1)
        assert option.decode_tokens_per_s == pytest.approx(SPEEDS[variant])
        assert option.decode_tokens_per_s_low < SPEEDS[variant] < option.decode_tokens_per_s_high
    estimated = by_name["q8-kv"]
    assert (estimated.speed_basis, estimated.runs) == ("estimated", 3)
    assert estimated.decode_tokens_per_s_low < SPEEDS["q8-kv"] < estimated.decode_tokens_per_s_high
    assert (answer.cpu_name, answer.threads, answer.context) == ("a processor", 1, 160)
    assert answer.left_out == {"without an artifact": 1}
    assert answer.runs == 3 and answer.runs_left_out == {}


def test_another_batch_size_and_context_are_estimated_from_the_same_runs(measure: Measure):
    measure("q4")
    measure("q4", 200.0, batch=4)
    measure("q8")
    (four,) = [option for option in ask(batch=4).options if option.variant == "q4"]
    assert four.speed_basis == "measured"
    assert four.decode_tokens_per_s_per_sequence == pytest.approx(50.0)
    two = next(option for option in ask(batch=2).options if option.variant == "q4")
    assert two.speed_basis == "estimated" and 80 < two.decode_tokens_per_s < 200
    long = ask(context=4096)
    assert {option.speed_basis for option in long.options} == {"estimated"}
    assert long.context == 4096
    near, far = (
        next(option for option in answer.options if option.variant == "q4")
        for answer in (ask(), long)
    )
    assert far.decode_tokens_per_s < near.decode_tokens_per_s
    assert far.memory_gb > near.memory_gb


def test_quality_comes_first_where_it_is_asked_for(measure: Measure):
    for variant in SPEEDS:
        measure(variant)
    assert variants_of(ask(objective="quality")) == ["f16", "q8", "q8-kv", "q4"]
    losses = {option.variant: option.quality_loss for option in ask().options}
    assert losses == pytest.approx({"f16": 0.0, **LOSSES})
    bases = {option.variant: option.quality_basis for option in ask().options}
    assert bases["f16"] == "baseline" and bases["q4"] == "measured"


def test_each_limit_excludes_and_counts(measure: Measure):
    for variant in SPEEDS:
        measure(variant)
    slow = ask(objective="quality", min_tokens_per_s=50)
    assert variants_of(slow) == ["q8", "q8-kv", "q4"] and slow.left_out["too slow"] == 1
    good = ask(max_quality_loss=0.03)
    assert variants_of(good) == ["q8", "q8-kv", "f16"]
    assert good.left_out["over the limit on quality loss"] == 1
    sizes = {option.variant: option.memory_gb for option in ask().options}
    assert sizes["f16"] > sizes["q8"] > sizes["q8-kv"] > sizes["q4"]
    small = ask(max_memory_gb=(sizes["q8"] + sizes["q8-kv"]) / 2)
    assert variants_of(small) == ["q4", "q8-kv"]
    assert small.left_out["over the limit on memory"] == 2
    every = ask(min_tokens_per_s=50, max_quality_loss=0.03, max_memory_gb=sizes["q8"])
    assert variants_of(every) == ["q8", "q8-kv"]
    assert ask(min_tokens_per_s=1e6).options == []


def test_the_limit_on_speed_is_that_of_every_sequence(measure: Measure):
    measure("q4", 200.0, batch=4)
    assert "q4" in variants_of(ask(batch=4, min_tokens_per_s=49))
    assert "q4" not in variants_of(ask(batch=4, min_tokens_per_s=51))


def test_losses_on_different_texts_never_meet(measure: Measure):
    measure("q4")
    save_quality("q4", -0.5, text="b", minutes=5)
    losses = {option.variant: option.quality_loss for option in ask().options}
    assert losses["q8"] == pytest.approx(LOSSES["q8"])
    assert losses["q4"] is None or losses["q4"] == pytest.approx(LOSSES["q4"])
    quality = QualityStore(get_settings().results, get_settings().cache)
    (earlier,) = quality.folder.glob("q4_key-a.json")
    earlier.unlink()
    limited = ask(max_quality_loss=0.03)
    assert "q4" not in variants_of(limited)
    reason = "without a quality measured on the text of the other variants"
    assert limited.left_out[reason] == 1


def test_a_limit_on_quality_excludes_only_what_is_certainly_over_it(measure: Measure):
    measure("q4")
    for spread, qualifies in ((0.001, False), (0.5, True)):
        nll = [256 * (2.3 + math.log1p(LOSSES["q4"]) + spread * side) for side in (-1, 1) * 4]
        sums = WindowSums(nll=nll, baseline_nll=[256 * 2.3] * 8)
        save_quality("q4", LOSSES["q4"], sums=sums)
        (option,) = [item for item in ask().options if item.variant == "q4"]
        assert option.quality_loss == pytest.approx(LOSSES["q4"])
        assert option.quality_loss_low is not None and option.quality_loss_high is not None
        assert option.quality_loss_low < LOSSES["q4"] < option.quality_loss_high
        assert ("q4" in variants_of(ask(max_quality_loss=0.03))) is qualifies


def test_records_that_cannot_be_trusted_are_left_out_with_the_reason(measure: Measure):
    measure("q4")
    measure("q8", 1e6, contended=True)
    measure("q8", 1e6, contended=None)
    measure("q8", 1e6, about={"threads": 64})
    measure("q8", 1e6, about={"artifact_id": "gone"})
    measure("q8", 1e6, about={"level": "Q6_K"})
    measure("q8", 1e6, about={"cpu_name": "another"})
    measure("q8", 1e6, about={"host_id": "b1" * 6})
    measure("q8", 1e6, about={"device": "cuda"})
    answer = ask()
    assert answer.runs == 1
    assert answer.runs_left_out == {
        "measured while the machine was busy with something else": 2,
        "with 64 threads, not 1": 1,
        "of an artifact that is gone or damaged": 1,
        "of a variant that has changed or is gone": 1,
    }
    assert all(option.decode_tokens_per_s < 1000 for option in answer.options)


def test_this_machine_is_known_by_its_id_and_others_by_name_or_id(measure: Measure):
    measure("q4", 70.0, about={"host_id": "a0" * 6, "cpu_name": "renamed"})
    measure("q4", 10.0, about={"host_id": "b1" * 6, "cpu_name": "Other CPU", "threads": 8})
    measure("q8", 5.0, about={"host_id": "b1" * 6, "cpu_name": "Other CPU", "threads": 8})
    measure("q4", 99.0, about={"host_id": "c2" * 6, "cpu_name": "Other CPU", "threads": 8})
    own = ask()
    assert own.runs == 1 and speed_of(own, "q4") == pytest.approx(70.0)
    for name in ("other cpu", "b1" * 6):
        other = ask(cpu=name)
        assert (other.cpu_name, other.threads, other.runs) == ("Other CPU", 8, 2)
        assert speed_of(other, "q4") == pytest.approx(10.0)
    assert ask(cpu="other cpu").runs_left_out == {"of another machine with this processor": 1}


def test_what_cannot_be_answered_is_explained(home: Path, measure: Measure):
    with pytest.raises(InputError, match="no benchmark records of this machine"):
        ask()
    measure("q4", contended=True)
    with pytest.raises(
        InputError, match="No benchmark record of 'a processor' can be used"
    ) as unusable:
        ask()
    assert "1 measured while the machine was busy" in unusable.value.why
    measure("q4")
    with pytest.raises(InputError, match="no artifacts of a model 'm'") as unknown:
        recommend_for_host(HostQuestion(model="m"), get_settings())
    assert "tiny" in unknown.value.why
    with pytest.raises(InputError, match="'Z80'") as processor:
        ask(cpu="Z80")
    assert "a processor" in processor.value.why
    with pytest.raises(InputError, match="context of 1000000 tokens"):
        ask(context=1_000_000)


def test_a_damaged_artifact_is_ignored(home: Path, measure: Measure, caplog: Any):
    measure("q4")
    measure("q8")
    model = ArtifactStore(get_settings().artifacts).folder(artifact_of("q8")) / "m.gguf"
    size = model.stat().st_size
    model.unlink()
    with model.open("wb") as stream:
        stream.truncate(size)
    answer = ask()
    assert set(variants_of(answer)) == {"q4", "f16"}
    assert answer.left_out["without an artifact"] == 3
    assert answer.runs_left_out == {"of an artifact that is gone or damaged": 1}
    assert "is ignored" in caplog.text


def test_the_command_answers_in_words_and_in_json(measure: Measure):
    for variant in SPEEDS:
        measure(variant)
    arguments = ["recommend", "--model", "tiny", "--cpu", host_recommendation.THIS_MACHINE]
    arguments += ["--for", "quality", "--max-memory-gb", "1", "--min-tokens-per-second", "40"]
    words = CliRunner().invoke(app, arguments)
    data = CliRunner().invoke(app, [*arguments, "--format", "json"])
    assert words.exit_code == data.exit_code == 0
    assert "Number 1 of 3 suitable variants" in words.stdout
    assert "excluded: 1 too slow" in words.stdout
    answer = HostAnswer.model_validate(json.loads(data.stdout))
    assert answer.options[0].variant == "q8" and answer.question.max_memory_gb == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("--for", "quality"),
        ("--max-memory-gb", "4"),
        ("--cpu", "this-machine", "--max-price", "2/h"),
        ("--cpu", "this-machine", "--budget", "100"),
    ],
)
def test_options_of_offers_and_processors_do_not_mix(home: Path, arguments: tuple[str, ...]):
    result = CliRunner().invoke(app, ["recommend", "--model", "tiny", *arguments])
    assert isinstance(result.exception, InputError)
    assert "--cpu" in str(result.exception)
