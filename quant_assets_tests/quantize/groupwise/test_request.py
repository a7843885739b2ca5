"""From a user's request to a groupwise artifact, without the quantizers' environments."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quant_assets.artifacts.store import ArtifactStore
from quant_assets.errors import InputError
from quant_assets.models.source import SourceModel, resolve_source
from quant_assets.processes.protocol import Event, LogEvent
from quant_assets.processes.session import WorkerSession
from quant_assets.quantize.groupwise import request as requests
from quant_assets.quantize.groupwise.request import GroupwiseRequest, make_requested_artifact
from quant_assets.settings import Settings
from quant_assets_tests.models.tiny_models import make_model, tokenizer_model


@pytest.fixture
def source(tmp_path: Path) -> SourceModel:
    folder = make_model(tmp_path / "tiny", "qwen3", tokenizer_model())
    return resolve_source(str(folder), Settings(home=tmp_path / "home"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("Some words to calibrate on. " * 50)
    return path


def test_settings_texts_and_warnings(
    source: SourceModel, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def make(spec: Any, store: ArtifactStore, **options: Any) -> Any:
        calls.append((spec, store, options))
        return SimpleNamespace(valid=lambda: SimpleNamespace(quality_warning="poor quality"))

    monkeypatch.setattr(requests, "make_groupwise_artifact", make)
    request = GroupwiseRequest(
        format="gptq", bits=8, group_size=32, calibration=str(text), calibration_samples=4,
        sequence_length=32, text=text, threads=2, resume=False,
    )  # fmt: skip
    events: list[Event] = []
    store = ArtifactStore(tmp_path / "out")
    for gate in (True, False):
        make_requested_artifact(
            source,
            request.model_copy(update={"gate": gate}),
            store,
            cache=tmp_path / "cache",
            lineage={"converted_from": "awq"},
            session=WorkerSession(events.append),
        )
    spec, used, options = calls[0]
    assert used is store and spec.source == source and spec.lineage == {"converted_from": "awq"}
    assert spec.settings.quantization.name == "gptq-8bit-g32"
    assert spec.calibration.name == "text.txt"
    assert (options["threads"], options["device"], options["resume"]) == (2, "auto", False)
    assert options["gate"].text.name == "text" and calls[1][2]["gate"] is None
    assert events == [LogEvent(level="warning", message="poor quality")] * 2


def test_groups_that_do_not_exist(source: SourceModel, text: Path, tmp_path: Path) -> None:
    request = GroupwiseRequest(format="awq", bits=8, calibration=str(text), text=text)
    with pytest.raises(InputError, match="no quantization 'awq-8bit-g128'"):
        make_requested_artifact(source, request, ArtifactStore(tmp_path), cache=tmp_path)
