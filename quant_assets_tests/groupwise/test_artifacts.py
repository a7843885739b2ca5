"""Both formats end to end on a tiny trained model: made, judged, committed, found again."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from quant_assets.bench.evaluation_text import EvaluationText
from quant_assets.errors import CheckFailed, InputError
from quant_assets.formats.group_quantization import GroupQuantization
from quant_assets.models.identity import sha256_of
from quant_assets.models.source import SourceModel
from quant_assets.quantize.calibration import CalibrationText
from quant_assets.quantize.groupwise import Engine, groupwise_settings
from quant_assets.quantize.groupwise_artifact import make_groupwise_artifact
from quant_assets.quantize.groupwise_layout import check_layout
from quant_assets.quantize.perplexity_gate import Verdict
from quant_assets.quantize.store import ArtifactStore
from quant_assets.settings import Settings
from quant_assets.workers.protocol import Event


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> EvaluationText:
    """The first half of what the model learnt from."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("evaluation") / "text.txt"
    path.write_text("\n".join(topics[name] for name in sorted(topics))[:60_000], encoding="utf-8")
    return EvaluationText(name="topics", path=path, sha256=sha256_of(path))


@pytest.mark.parametrize(
    ("method", "engine"),
    [("gptq", "gptqmodel"), ("awq", "autoawq")],
)
def test_better_than_rounding_and_found_again(
    method: str,
    engine: Engine,
    source: SourceModel,
    calibration: CalibrationText,
    text: EvaluationText,
    settings: Settings,
    tmp_path: Path,
) -> None:
    store = ArtifactStore(tmp_path / "store")
    chosen = groupwise_settings(
        GroupQuantization.model_validate({"method": method, "bits": 4, "group_size": 32}),
        engine=engine, samples=64, sequence_length=64,
    )  # fmt: skip
    events: list[Event] = []

    def make():  # type: ignore[no-untyped-def]
        return make_groupwise_artifact(
            "tiny", source, chosen, calibration, store, text=text, cache=settings.cache,
            threads=1, device="cpu", on_event=events.append,
        )  # fmt: skip

    made = make()
    manifest = made.manifest
    assert manifest.status == "valid"
    assert manifest.validation["ratio_to_rounding"] < 1  # type: ignore[operator]
    assert 1 < manifest.validation["ratio_to_source"] < 1.2  # type: ignore[operator]
    assert check_layout(made.path) == 3 * 7
    assert (made.path / "tokenizer.model").read_bytes() == (
        source.path / "tokenizer.model"
    ).read_bytes()
    assert manifest.job.library_versions["torch"]
    assert sorted(p.name for p in made.path.iterdir()) == sorted(
        [*(file.name for file in manifest.files), "manifest.json"]
    )
    events.clear()
    again = make()
    assert again.reused and again.manifest == manifest and not events


def test_a_failed_gate_rejects_and_keeps_apart(
    source: SourceModel,
    calibration: CalibrationText,
    text: EvaluationText,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = ArtifactStore(tmp_path / "store")
    verdict = Verdict(
        text="a text", scored_tokens=1, perplexity=9.0, source_perplexity=2.0,
        rounding_perplexity=3.0, generated_text="The", rejection="Worse than rounding.",
    )  # fmt: skip
    monkeypatch.setattr("quant_assets.quantize.groupwise_artifact.judge", lambda *_, **__: verdict)
    chosen = groupwise_settings(
        GroupQuantization(method="awq", bits=4, group_size=32), samples=8, sequence_length=64
    )
    with pytest.raises(CheckFailed, match="Worse than rounding"):
        make_groupwise_artifact(
            "tiny", source, chosen, calibration, store, text=text, cache=settings.cache,
            threads=1, device="cpu",
        )  # fmt: skip
    assert store.all() == []
    (kept,) = (store.root / ".rejected").iterdir()
    assert json.loads((kept / "manifest.json").read_text())["rejection"] == "Worse than rounding."


def test_a_gguf_source_is_refused_with_the_way_to_go(
    source: SourceModel,
    calibration: CalibrationText,
    text: EvaluationText,
    settings: Settings,
    tmp_path: Path,
) -> None:
    chosen = groupwise_settings(GroupQuantization(method="gptq", bits=4, group_size=32))
    with pytest.raises(InputError) as caught:
        make_groupwise_artifact(
            "tiny", source.model_copy(update={"kind": "gguf"}), chosen, calibration,
            ArtifactStore(tmp_path), text=text, cache=settings.cache,
        )  # fmt: skip
    assert "convert" in caught.value.next_step


def test_damaged_layout_is_found(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32},
            }
        )
    )
    tensors = {
        "a.qweight": np.zeros((64, 8), np.int32),
        "a.qzeros": np.zeros((2, 8), np.int32),
        "a.scales": np.zeros((2, 64), np.float16),
    }
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    assert check_layout(tmp_path) == 1
    save_file({**tensors, "a.scales": np.zeros((1, 64), np.float16)}, file)
    with pytest.raises(CheckFailed, match=r"a\.scales"):
        check_layout(tmp_path)
    del tensors["a.qzeros"]
    save_file(tensors, file)
    with pytest.raises(CheckFailed, match="is missing"):
        check_layout(tmp_path)
    assert load_file(file)["a.qweight"].shape == (64, 8)
