"""One intent, four backends: parameters, refusals, and detection by `auto`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from quant_assets.cli.app import app
from quant_assets.errors import InputError
from quant_assets.gpus.registry import Gpu, load_registry
from quant_assets.models.quantization_intent import Backend, Method
from quant_assets.models.stored_quantization import detect_quantization
from quant_assets.serving.backend import BackendParams
from quant_assets.serving.intent import UnifiedQuantizationConfig
from quant_assets.settings import get_settings


def gpu(name: str) -> Gpu:
    return load_registry().variants(name)[0]


@pytest.mark.parametrize(
    ("method", "backend", "card", "expected"),
    [
        ("int4", "vllm", "L4", {"quantization": "awq_marlin"}),
        ("int4", "vllm", "T4", {"quantization": "awq", "dtype": "float16"}),
        ("int4", "vllm", "V100", {"quantization": "gptq"}),
        ("int4", "vllm", None, {"quantization": "awq"}),
        ("int8", "vllm", "A100", {"quantization": "gptq_marlin"}),
        ("fp8", "vllm", "H100", {"quantization": "fp8"}),
        ("int4", "vllm", "MI300X", {"quantization": "gptq"}),
        ("int8", "pytorch", "T4", {"load_in_8bit": True, "torch_dtype": "float16"}),
        (
            "int4",
            "pytorch",
            "L4",
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "torch_dtype": "bfloat16"},
        ),
        ("none", "pytorch", None, {"torch_dtype": "bfloat16"}),
        # Calibrated, as weight_only is not stated.
        ("int8", "tensorrt", "L4", {"qformat": "int8_sq", "calib_size": 512}),
        ("fp8", "tensorrt", "H100", {"qformat": "fp8", "calib_size": 512}),
        ("int4", "tensorrt", "A100", {"qformat": "int4_awq"}),
        ("int8", "llamacpp", None, {"level": "Q8_0"}),
        ("int4", "llamacpp", "RTX 4090", {"level": "Q4_K_M"}),
    ],
)
def test_parameters(
    method: Method, backend: Backend, card: str | None, expected: dict[str, object]
) -> None:
    config = UnifiedQuantizationConfig(method=method)
    answer = config.to_backend_params(backend, gpu(card) if card else None)
    assert expected.items() <= answer.params.items()
    assert answer.launch


@pytest.mark.parametrize(
    ("method", "backend", "card", "nearest"),
    [
        ("fp8", "pytorch", None, "int8 on pytorch"),
        ("fp8", "vllm", "A100", "int8 on vllm"),
        ("fp8", "vllm", "MI210", "through GPTQ"),
        ("fp8", "tensorrt", "A100", "int8 on tensorrt"),
        ("fp8", "llamacpp", None, "Q8_0"),
        ("int4", "vllm", "Tesla P100 PCIe 16GB", "llamacpp"),
        ("int8", "pytorch", "GTX 1080 Ti", "int4 on pytorch"),
        ("int4", "vllm", "M2 Max", "llamacpp"),
    ],
)
def test_impossible_pairs_name_the_nearest_possible(
    method: Method, backend: Backend, card: str | None, nearest: str
) -> None:
    with pytest.raises(InputError) as caught:
        UnifiedQuantizationConfig(method=method).to_backend_params(
            backend, gpu(card) if card else None
        )
    assert nearest in caught.value.next_step


def test_activations_and_calibration_reach_tensorrt() -> None:
    config = UnifiedQuantizationConfig(method="int8", weight_only=False, calibration="mine")
    params = config.to_backend_params("tensorrt").params
    assert (params["qformat"], params["calib_dataset"]) == ("int8_sq", "mine")


def test_backend_method_is_checked_against_backend_and_gpu() -> None:
    config = UnifiedQuantizationConfig(method="int4", backend_method="gptq_marlin")
    assert config.to_backend_params("vllm", gpu("L4")).params["quantization"] == "gptq_marlin"
    with pytest.raises(InputError, match="gptq_marlin kernel"):
        config.to_backend_params("vllm", gpu("T4"))
    with pytest.raises(InputError, match="llamacpp has no method"):
        config.to_backend_params("llamacpp")
    with pytest.raises(ValueError, match="does int4, not fp8"):
        UnifiedQuantizationConfig(method="fp8", backend_method="awq")


def test_enabled_and_bits() -> None:
    assert not UnifiedQuantizationConfig().enabled
    assert all(UnifiedQuantizationConfig(method=m).enabled for m in ("int8", "int4", "fp8", "auto"))
    methods: list[Method] = ["none", "int8", "int4", "fp8", "auto"]
    # Without quantization, and for auto until a model's files are known, there is no number.
    bits = [UnifiedQuantizationConfig(method=m).bits for m in methods]
    assert bits == [None, 8, 4, 8, None]


def checkpoint(folder: Path, quantization: dict[str, object] | None) -> Path:
    config: dict[str, object] = {"model_type": "llama"}
    if quantization is not None:
        config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("quantization", "method", "name"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "int4", "awq_marlin"),
        ({"quant_method": "gptq", "bits": 8}, "int8", "gptq_marlin"),
        ({"quant_method": "gptq", "bits": 3}, "int4", "gptq"),
        ({"quant_method": "fp8"}, "fp8", "fp8"),
        (None, "none", None),
    ],
)
def test_auto_reads_the_models_own_config(
    tmp_path: Path, quantization: dict[str, object] | None, method: Method, name: str | None
) -> None:
    model = checkpoint(tmp_path, quantization)
    answer = UnifiedQuantizationConfig(method="auto").to_backend_params("vllm", gpu("L4"), model)
    assert answer.method == method
    assert answer.params.get("quantization") == name


@pytest.mark.parametrize(
    ("backend", "card", "nearest"),
    [
        ("vllm", "T4", "llamacpp"),
        ("pytorch", "T4", "llamacpp"),
        ("vllm", None, "awq_marlin"),
        ("vllm", "L4", None),
        ("pytorch", None, None),
    ],
)
def test_activations_beyond_float16_need_bfloat16(
    tmp_path: Path, backend: Backend, card: str | None, nearest: str | None
) -> None:
    model = tmp_path / "gemma"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "gemma3_text"}')
    config, card_or_none = UnifiedQuantizationConfig(method="int4"), gpu(card) if card else None
    if nearest is None:
        answer = config.to_backend_params(backend, card_or_none, model)
        assert "float16" not in answer.params.values()
        return
    with pytest.raises(InputError, match="gemma3_text") as caught:
        config.to_backend_params(backend, card_or_none, model)
    assert nearest in caught.value.next_step


def test_auto_refuses_what_the_backend_cannot_load(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, {"quant_method": "awq", "bits": 4})
    config = UnifiedQuantizationConfig(method="auto")
    with pytest.raises(InputError) as caught:
        config.to_backend_params("llamacpp", model=model)
    assert "convert" in caught.value.next_step
    with pytest.raises(InputError, match="engine"):
        config.to_backend_params("tensorrt", model=model)
    with pytest.raises(InputError, match=r"quantization of .* is not supported"):
        detect_quantization(checkpoint(tmp_path, {"quant_method": "marvel"}))


def test_auto_reads_a_gguf_header(tmp_path: Path) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    for kind, block_bytes, method in (
        (GGMLQuantizationType.Q4_0, 18, "int4"),
        (GGMLQuantizationType.Q8_0, 34, "int8"),
    ):
        path = tmp_path / f"{kind.name}.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_tensor(
            "blk.0.ffn_up.weight", np.zeros((4, 2 * block_bytes), dtype=np.uint8), raw_dtype=kind
        )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert detect_quantization(path).method == method


def test_command_prints_parameters_and_launch_line() -> None:
    run = CliRunner().invoke(
        app, ["intent", "int4", "--backend", "vllm", "--gpu", "L4", "--format", "json"]
    )
    assert run.exit_code == 0
    answer = json.loads(run.stdout)
    assert answer["params"]["quantization"] == "awq_marlin"
    assert answer["launch"].startswith("vllm serve MODEL --quantization awq_marlin")


@pytest.mark.parametrize(
    ("quantization", "weight_only", "card", "works"),
    [
        ({"quant_method": "awq", "bits": 4}, True, "L4", True),
        ({"quant_method": "awq", "bits": 4}, False, "L4", False),
        ({"quant_method": "fp8"}, False, "H100", True),
        ({"quant_method": "fp8"}, True, "H100", False),
        ({"quant_method": "fp8"}, True, "A100", True),
        (None, True, "L4", True),
        (None, False, "L4", False),
    ],
)
def test_auto_honours_or_refuses_weight_only(
    tmp_path: Path,
    quantization: dict[str, object] | None,
    weight_only: bool,
    card: str,
    works: bool,
) -> None:
    model = checkpoint(tmp_path, quantization)
    config = UnifiedQuantizationConfig(method="auto", weight_only=weight_only)
    if works:
        assert config.to_backend_params("vllm", gpu(card), model).launch
        return
    with pytest.raises(InputError) as caught:
        config.to_backend_params("vllm", gpu(card), model)
    assert "auto without weight_only" in caught.value.next_step


def test_auto_takes_the_named_kernel_of_the_stored_format(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, {"quant_method": "gptq", "bits": 4})
    plain = UnifiedQuantizationConfig(method="auto", backend_method="gptq")
    assert plain.to_backend_params("vllm", gpu("L4"), model).params["quantization"] == "gptq"
    other = UnifiedQuantizationConfig(method="auto", backend_method="awq")
    with pytest.raises(InputError, match="stored, here as gptq"):
        other.to_backend_params("vllm", gpu("L4"), model)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["intent", *arguments])


def test_command_without_a_backend_answers_for_all() -> None:
    answers = json.loads(run("fp8", "--gpu", "H100", "--format", "json").stdout)["answers"]
    assert [answer["backend"] for answer in answers] == ["pytorch", "vllm", "tensorrt", "llamacpp"]
    assert answers[1]["params"]["quantization"] == "fp8"
    assert "no fp8" in answers[3]["what"]
    assert answers[3]["next_step"]


def test_command_fails_where_no_backend_can() -> None:
    failed = run("fp8", "--gpu", "GTX 1080 Ti")
    assert isinstance(failed.exception, InputError)
    assert "No backend fulfils fp8" in failed.exception.what


def test_command_states_the_form_and_the_calibration() -> None:
    answered = run(
        "int8", "--backend", "tensorrt", "--activations", "--calibration", "hub:a/b",
        "--calibration-samples", "9", "--sequence-length", "64", "--format", "json",
    )  # fmt: skip
    assert json.loads(answered.stdout)["params"] == {
        "qformat": "int8_sq",
        "calib_dataset": "a/b",
        "calib_size": 9,
        "calib_max_seq_length": 64,
    }
    answered = run("int8", "--backend", "tensorrt", "--weight-only", "--format", "json")
    assert json.loads(answered.stdout)["params"] == {"qformat": "int8_wo"}


MODELS = """
models:
  - {name: tiny, source: models/tiny, quantization: {method: int4}, gguf_levels: [F16]}
  - {name: hub, source: owner/name, quantization: {method: int8, calibration: hub:a/b}}
  - {name: plain, source: owner/name}
"""


@pytest.fixture
def model_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "models.yaml"
    path.write_text(MODELS)
    monkeypatch.setenv("QUANT_ASSETS_HOME", str(tmp_path))
    monkeypatch.setenv("QUANT_ASSETS_MODELS_FILE", str(path))
    get_settings.cache_clear()
    yield path
    get_settings.cache_clear()


def test_command_translates_the_block_of_a_listed_model(model_list: Path) -> None:
    tiny = model_list.parent / "models" / "tiny"
    tiny.mkdir(parents=True)
    checkpoint(tiny, None)
    answers = json.loads(run("--model-name", "tiny", "--gpu", "L4", "--format", "json").stdout)[
        "answers"
    ]
    params = {answer["backend"]: answer["params"] for answer in answers}
    assert params["pytorch"]["load_in_4bit"] is True
    assert params["vllm"]["quantization"] == "awq_marlin"
    assert params["tensorrt"]["qformat"] == "int4_awq"
    assert params["llamacpp"]["level"] == "Q4_K_M"
    assert all(str(tiny) in answer["launch"] for answer in answers[:3])
    assert "tiny-Q4_K_M.gguf" in answers[3]["launch"]


def test_command_names_a_hub_model_without_fetching_it(model_list: Path) -> None:
    del model_list
    answers = json.loads(run("--model-name", "hub", "--format", "json").stdout)["answers"]
    assert answers[1]["launch"].startswith("vllm serve owner/name --quantization gptq")
    assert "--calibration hub:a/b" in answers[1]["notes"][0]
    assert answers[2]["params"]["calib_dataset"] == "a/b"


def test_command_names_what_a_model_list_lacks(model_list: Path) -> None:
    failed = run("--model-name", "plain")
    assert isinstance(failed.exception, InputError)
    assert str(model_list) in failed.exception.why
    failed = run("--model-name", "other")
    assert isinstance(failed.exception, InputError)
    assert "tiny, hub, plain" in failed.exception.why


def test_a_revision_is_pinned_where_the_backend_takes_one() -> None:
    every = UnifiedQuantizationConfig(method="int4").for_every_backend(name="owner/name@v1")
    pytorch, vllm, tensorrt, llamacpp = every.answers
    assert isinstance(pytorch, BackendParams)
    assert "from_pretrained('owner/name', revision='v1'," in pytorch.launch
    assert isinstance(vllm, BackendParams)
    assert vllm.launch.startswith("vllm serve owner/name --revision v1 ")
    assert isinstance(tensorrt, BackendParams)
    assert "--model_dir owner/name " in tensorrt.launch
    assert any("takes no revision" in note for note in tensorrt.notes)
    assert isinstance(llamacpp, BackendParams)
    assert " name-Q4_K_M.gguf " in llamacpp.launch


def test_auto_without_files_says_so() -> None:
    (note,) = UnifiedQuantizationConfig(method="auto").to_backend_params("vllm").notes
    assert "none are here" in note


@pytest.mark.parametrize(
    "arguments",
    [[], ["int4", "--model-name", "tiny"], ["--model-name", "tiny", "--calibration", "x"]],
)
def test_command_takes_a_method_or_a_listed_model(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2
