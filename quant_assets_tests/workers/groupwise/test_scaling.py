"""AWQ's scales on architectures that the engines' tables describe incorrectly."""

import io
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from quant_assets.errors import InputError
from quant_assets.formats.group_quantization import GroupQuantization
from quant_assets.models.source import resolve_source
from quant_assets.processes.environments import interpreter
from quant_assets.processes.protocol import EventChannel
from quant_assets.quantize.conversion.plain_weights import UnpackJob
from quant_assets.quantize.groupwise.gate import Checkpoint, measure_checkpoints
from quant_assets.quantize.groupwise.job import (
    AUTOAWQ_ARCHITECTURES,
    groupwise_settings,
    quantize_groupwise,
)
from quant_assets.settings import Settings
from quant_assets.texts.calibration import CalibrationText
from quant_assets.texts.evaluation import EvaluationText
from quant_assets.workers.checkpoint.unpack import unpack
from quant_assets.workers.groupwise.awq.scaling import (
    Run,
    apply_scales,
    change_since_now,
    norms_before,
    use_actual_norm,
    weight_offset,
)
from quant_assets.workers.groupwise.preflight import check_linears
from quant_assets.workers.groupwise.streaming import StreamedModel
from quant_assets_tests.models.tiny_models import make_model, tokenizer_model
from quant_assets_tests.workers.groupwise.groupwise_jobs import drive, job_of

GATE_AND_UP = ("mlp.gate_proj", "mlp.up_proj")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma") / "gemma3"
    return make_model(folder, "gemma3", tokenizer_model())


@pytest.mark.parametrize(
    ("norm", "offset"),
    [(Gemma3RMSNorm(64), 1), (LlamaRMSNorm(64), 0), (torch.nn.LayerNorm(64), 0)],
)
def test_weight_offset_of_norms(norm: torch.nn.Module, offset: int) -> None:
    with torch.no_grad():
        weight = norm.weight.uniform_(0.5, 2).clone()  # type: ignore[operator,union-attr]
        assert weight_offset(norm) == offset
        assert torch.equal(weight, norm.weight)  # type: ignore[arg-type]


@contextmanager
def first_layer(folder: Path) -> Iterator[tuple[torch.nn.Module, torch.Tensor, Run]]:
    """(a model's first layer, its inputs for random tokens, a function that computes its outputs)."""
    model = StreamedModel(folder, "cpu", torch.float32)
    tokens = random_tokens()
    with torch.no_grad():
        states, calls = model.first_inputs(tokens, only_calls=False)
        with model.layer(0) as layer:
            yield layer, states, lambda: torch.cat(list(model.run_layer(layer, states, calls[0])))


def random_tokens() -> torch.Tensor:
    """Two fixed windows."""
    return torch.randint(4, 500, (2, 32), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("fits", [True, False])
def test_scaling_changes_no_output(gemma: Path, fits: bool) -> None:
    with first_layer(gemma) as (layer, states, run):
        expected, modules = run(), dict(layer.named_modules())
        norms = norms_before(layer, run)
        assert norms[modules["self_attn.q_proj"]] is modules["input_layernorm"]
        assert norms[modules["mlp.up_proj"]] is modules["pre_feedforward_layernorm"]
        assert modules["mlp.down_proj"] not in norms
        group = {
            "prev_op": modules["post_attention_layernorm"],
            "layers": [modules[name] for name in GATE_AND_UP],
        }
        if fits:
            use_actual_norm(group, norms)
        names = {id(module): name for name, module in modules.items()}
        scaled = (names[id(group["prev_op"])], GATE_AND_UP, torch.linspace(0.3, 3, 256))
        features = {name: torch.ones(2, 32, 256) for name in GATE_AND_UP}
        weights = modules["mlp.up_proj"].weight.clone()
        change = change_since_now(run, states)
        assert apply_scales(layer, scaled, features, change) == fits
        assert torch.allclose(run(), expected, rtol=1e-3, atol=1e-3)
        grown = scaled[2] if fits else torch.ones(256)
        assert torch.allclose(modules["mlp.up_proj"].weight, weights * grown)
        assert torch.allclose(features["mlp.up_proj"][0, 0] * grown, torch.ones(256))


@pytest.mark.parametrize("heads", [4, 2])
def test_scales_of_values_need_as_many_heads(heads: int, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "llama", "llama", tokenizer_model(), num_key_value_heads=heads)
    with first_layer(folder) as (layer, states, run):
        scaled = ("self_attn.v_proj", ("self_attn.o_proj",), torch.linspace(0.3, 3, 256))
        features = {"self_attn.o_proj": torch.ones(2, 32, 256)}
        change = change_since_now(run, states)
        assert apply_scales(layer, scaled, features, change) == (heads == 4)


@pytest.mark.quantizers
@pytest.mark.slow
def test_architectures_that_tables_describe_incorrectly(
    gemma: Path,
    calibration: CalibrationText,
    text: EvaluationText,
    settings: Settings,
    tmp_path: Path,
) -> None:
    """Gemma 3's norms, Phi 3's fused matrices, StarCoder 2's few values, GPT-NeoX's names."""
    folders = {
        "gemma3_text": gemma,
        "phi3": tiny(tmp_path / "phi3", "phi3"),
        "starcoder2": tiny(tmp_path / "starcoder2", "starcoder2"),
        "gpt_neox": tiny(tmp_path / "gpt_neox", "gpt_neox", num_key_value_heads=4),
    }
    jobs = [
        job_of(
            resolve_source(str(folder), settings),
            calibration,
            tmp_path / f"{architecture}-{method}",
            method,
            engine="gptqmodel",
        )
        for architecture, folder in folders.items()
        for method in ("gptq", "awq")
    ]
    drive(jobs)
    tokens = random_tokens()
    checkpoints = []
    for job in jobs:
        architecture = job.output.name.split("-")[0]
        # Activations of the Gemma family exceed float16.
        dtype = "bfloat16" if architecture == "gemma3_text" else "float16"
        plain = job.output.with_name(f"{job.output.name}-plain")
        unpack(UnpackJob(source=job.output, output=plain), EventChannel(io.StringIO()))
        for folder in (job.output, plain):
            assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
        expected, found = (_log_probabilities(path, tokens) for path in (job.source, plain))
        divergence = torch.nn.functional.kl_div(found, expected, log_target=True, reduction="sum")
        assert divergence / tokens.numel() < 0.1, job.output.name
        checkpoints += [
            Checkpoint(path=job.output, format=job.settings.format),
            Checkpoint(path=plain, format="hf"),
        ]
    measured = measure_checkpoints(
        checkpoints, text, threads=1, device="cpu", windows=2, context=64
    )
    for job, packed, restored in zip(jobs, measured[::2], measured[1::2], strict=True):
        assert packed.perplexity == pytest.approx(restored.perplexity, rel=0.01), job.output.name


def tiny(folder: Path, architecture: str, **changes: int) -> Path:
    """A random model that tolerates 4 bits, unlike `make_model`'s with their large norms."""
    values = {
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **changes,
    }  # fmt: skip
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **values))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
            else:
                parameter.add_(torch.rand_like(parameter) / 2)
    model.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer_model())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    return folder


def test_the_default_engine_supports_the_architecture() -> None:
    quantization = GroupQuantization(method="awq", bits=4, group_size=64)
    for architecture, engine in (("gemma3_text", "gptqmodel"), ("llama", "autoawq")):
        chosen = groupwise_settings(quantization, architecture=architecture)
        assert chosen.engine == engine
    assert groupwise_settings(quantization, architecture="x", engine="autoawq").engine == "autoawq"


def test_a_model_without_linear_modules_is_rejected(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "gpt2", "gpt2", n_embd=128, n_layer=2, n_head=4)
    with pytest.raises(InputError, match="gpt2 are not quantized"):
        check_linears(StreamedModel(folder, "cpu", torch.float32))


@pytest.mark.quantizers
def test_the_worker_rejects_a_model_without_linear_modules(
    calibration: CalibrationText, settings: Settings, tmp_path: Path
) -> None:
    folder = tiny(tmp_path / "gpt2", "gpt2", n_embd=128, n_layer=2, n_head=4)
    with pytest.raises(InputError, match="gpt2 are not quantized"):
        quantize_groupwise(
            job_of(resolve_source(str(folder), settings), calibration, tmp_path / "out")
        )


def _log_probabilities(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=tokens).logits
    return logits.flatten(0, 1).log_softmax(-1)


@pytest.mark.quantizers
def test_autoawq_supports_the_listed_architectures() -> None:
    script = "from awq.models.auto import AWQ_CAUSAL_LM_MODEL_MAP as models; print(*models)"
    done = subprocess.run(
        [interpreter("awq"), "-c", script], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.splitlines()[-1].split()) == AUTOAWQ_ARCHITECTURES
