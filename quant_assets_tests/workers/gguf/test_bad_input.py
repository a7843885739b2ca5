"""Invalid inputs are reported before any work, in words, and leave nothing behind."""

import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from quant_assets.errors import InputError, QuantAssetsError, ResourceError
from quant_assets.models.source import resolve_source
from quant_assets.processes.protocol import Event, EventChannel, ProgressEvent
from quant_assets.processes.session import WorkerSession
from quant_assets.quantize.gguf.job import QuantizeGgufJob, quantize_gguf
from quant_assets.settings import Settings
from quant_assets.workers.gguf.engine import quantize
from quant_assets.workers.gguf.imatrix_file import MatrixInputs, write_imatrix
from quant_assets_tests.models.tiny_models import make_model


def job_of(source: Path, output: Path, **changes: object) -> QuantizeGgufJob:
    return QuantizeGgufJob(
        source=source,
        source_kind="gguf" if source.is_file() else "hf",
        source_identity="a model",
        level="Q4_K_M",
        output=output / "model.gguf",
        threads=1,
        validate_output=False,
    ).model_copy(update=changes)


def refused(job: QuantizeGgufJob, kind: type[QuantAssetsError] = InputError) -> QuantAssetsError:
    """The error of a job, which leaves no output behind."""
    with pytest.raises(kind) as caught:
        quantize(job, EventChannel(io.StringIO()))
    if job.output.parent.exists():
        assert list(job.output.parent.iterdir()) == []
    assert caught.value.why
    assert caught.value.next_step
    return caught.value


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, tokenizer: bytes) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "model"
    return make_model(folder, "llama", tokenizer, max_shard_size="2MB")


@pytest.fixture
def damaged(sharded: Path, tmp_path: Path) -> Path:
    """A copy of the sharded model, for a test to damage."""
    return Path(shutil.copytree(sharded, tmp_path / "source"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Settings(home=tmp_path / "home")


def a_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[1]


def test_no_such_path(settings: Settings) -> None:
    with pytest.raises(InputError, match=r"There is no model at '\./nowhere'"):
        resolve_source("./nowhere", settings)


def test_no_such_hub_id_offline(settings: Settings) -> None:
    with pytest.raises(InputError, match="could not be fetched") as caught:
        resolve_source("nobody/no-such-model", settings)
    assert "network" in caught.value.next_step


def test_no_config(damaged: Path, output: Path) -> None:
    (damaged / "config.json").unlink()
    assert "has no config.json" in refused(job_of(damaged, output)).what


def test_config_without_architecture(damaged: Path, output: Path) -> None:
    (damaged / "config.json").write_text("{}")
    assert "names no architecture" in refused(job_of(damaged, output)).what


def test_unsupported_architecture(damaged: Path, output: Path) -> None:
    config = json.loads((damaged / "config.json").read_text())
    config["architectures"] = ["LlamaForCausalLMX"]
    (damaged / "config.json").write_text(json.dumps(config))
    error = refused(job_of(damaged, output))
    assert "LlamaForCausalLMX is not supported" in error.what
    assert "LlamaForCausalLM" in error.why


def test_truncated_shard(damaged: Path, output: Path) -> None:
    shard = a_shard(damaged)
    size = shard.stat().st_size
    with shard.open("r+b") as stream:
        stream.truncate(size - 100)
    error = refused(job_of(damaged, output))
    assert f"{shard} is cut off" in error.what
    assert f"{size} bytes, it has {size - 100}" in error.why


@pytest.mark.parametrize("position", [3, 8, 40])
def test_corrupted_header(damaged: Path, output: Path, position: int) -> None:
    shard = a_shard(damaged)
    content = bytearray(shard.read_bytes())
    content[position] ^= 0xFF
    shard.write_bytes(content)
    assert shard.name in refused(job_of(damaged, output)).what


def test_header_with_a_wrong_shape(damaged: Path, output: Path) -> None:
    shard = a_shard(damaged)
    content = shard.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].replace(b'"BF16"', b'"F16" ', 1).replace(b"[256,", b"[255,", 1)
    shard.write_bytes(content[:8] + header + content[end:])
    assert "damaged header" in refused(job_of(damaged, output)).what


def test_missing_shard(damaged: Path, output: Path) -> None:
    shard = a_shard(damaged)
    shard.unlink()
    error = refused(job_of(damaged, output))
    assert "are missing" in error.what
    assert shard.name in error.why


def test_missing_shard_without_an_index(damaged: Path, output: Path) -> None:
    shard = a_shard(damaged)
    shard.unlink()
    (damaged / "model.safetensors.index.json").unlink()
    assert shard.name in refused(job_of(damaged, output)).why


def test_pickled_weights(damaged: Path, output: Path) -> None:
    for shard in damaged.glob("*.safetensors*"):
        shard.unlink()
    (damaged / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert "no safetensors files" in refused(job_of(damaged, output)).what


def test_code_in_the_folder_is_not_run(damaged: Path, output: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    (damaged / "evil.py").write_text(f"open({str(witness)!r}, 'w').close()\nclass Evil: pass\n")
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((damaged / name).read_text())
        content["auto_map"] = {
            "AutoConfig": "evil.Evil",
            "AutoTokenizer": ["evil.Evil", "evil.Evil"],
        }
        content.pop("model_type", None)
        (damaged / name).write_text(json.dumps(content))
    config = json.loads((damaged / "config.json").read_text())
    # This converter asks transformers to trust the folder's code for its tokenizer.
    config["architectures"] = ["ChatGLMForConditionalGeneration"]
    (damaged / "config.json").write_text(json.dumps(config))
    refused(job_of(damaged, output))
    assert not witness.exists()


def test_truncated_gguf(larger_bf16: Path, tmp_path: Path, output: Path) -> None:
    source = tmp_path / "cut.gguf"
    source.write_bytes(larger_bf16.read_bytes()[:-1000])
    assert "cut" in refused(job_of(source, output)).what


def test_gguf_with_a_damaged_header(larger_bf16: Path, tmp_path: Path, output: Path) -> None:
    source = tmp_path / "damaged.gguf"
    content = bytearray(larger_bf16.read_bytes())
    content[16] = 0xFF  # the count of key-values
    source.write_bytes(content)
    assert "cannot be read" in refused(job_of(source, output)).what


def test_quantized_source(larger_bf16: Path, tmp_path: Path, output: Path) -> None:
    quantized = job_of(larger_bf16, tmp_path / "first")
    quantize(quantized, EventChannel(io.StringIO()))
    error = refused(job_of(quantized.output, output, level="Q3_K_M"))
    assert "is already quantized" in error.what


def test_nan_in_the_weights(larger_bf16: Path, tmp_path: Path, output: Path) -> None:
    from gguf import GGUFReader

    source = tmp_path / "nan.gguf"
    shutil.copy(larger_bf16, source)
    tensor = next(t for t in GGUFReader(source).tensors if t.name == "blk.3.ffn_up.weight")
    with source.open("r+b") as stream:
        stream.seek(int(tensor.data_offset) + 2048)
        stream.write(b"\xc0\x7f")  # a bfloat16 NaN
    with pytest.raises(InputError, match=r"blk\.3\.ffn_up\.weight has invalid values"):
        quantize(job_of(source, output), EventChannel(io.StringIO()))
    assert not (output / "model.gguf").exists()


def test_unknown_level(larger_bf16: Path, output: Path) -> None:
    error = refused(job_of(larger_bf16, output, level="Q4_K_X"))
    assert "Q4_K_M" in error.why


def test_level_that_needs_an_importance_matrix(larger_bf16: Path, output: Path) -> None:
    error = refused(job_of(larger_bf16, output, level="IQ2_XS"))
    assert "needs an importance matrix" in error.what


def test_importance_matrix_of_another_model(
    larger_bf16: Path, tmp_path: Path, output: Path
) -> None:
    matrix = tmp_path / "other.gguf"
    inputs = {"blk.0.ffn_up.weight": MatrixInputs(np.ones((1, 4096)), np.array([1]))}
    write_imatrix(matrix, inputs, dataset="d", n_chunks=1, chunk_tokens=512)
    error = refused(job_of(larger_bf16, output, imatrix=matrix))
    assert "does not fit the tensor blk.0.ffn_up.weight" in error.what
    assert "has 4096 values where the tensor needs 512" in error.why


def test_a_model_in_place_of_an_importance_matrix(larger_bf16: Path, output: Path) -> None:
    error = refused(job_of(larger_bf16, output, imatrix=larger_bf16))
    assert "holds no importances" in error.what


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A 20 MB disk, of which the tiny model needs 18 MB at Q4_K_M."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this user may not mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_disk_too_small(larger_bf16: Path, small_disk: Path) -> None:
    job = job_of(larger_bf16, small_disk / "out", level="Q8_0")
    with pytest.raises(ResourceError, match="too little space") as caught:
        quantize(job, EventChannel(io.StringIO()))
    assert "0.026 GB" in caught.value.why


def test_disk_that_fills_up_during_the_run(larger_bf16: Path, small_disk: Path) -> None:
    job = job_of(larger_bf16, small_disk)
    filler = small_disk / "filler"

    def fill(event: Event) -> None:
        if isinstance(event, ProgressEvent) and event.step == "quantize" and not filler.exists():
            free = shutil.disk_usage(small_disk).free
            filler.write_bytes(bytes(max(0, free - 8_000_000)))

    with pytest.raises(ResourceError, match="disk filled up"):
        quantize_gguf(job, session=WorkerSession(fill))
    assert not job.output.exists()
    filler.unlink()
    assert quantize_gguf(job).resumed_from_layer is not None


def test_read_only_folder(larger_bf16: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    error = refused(job_of(larger_bf16, small_disk), ResourceError)
    assert "cannot be written" in error.what
    assert "Read-only" in error.why


def test_output_folder_that_is_a_file(larger_bf16: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        quantize(job_of(larger_bf16, tmp_path / "file"), EventChannel(io.StringIO()))


def test_too_little_memory(
    larger_bf16: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quant_assets.host.resources.available_memory", lambda: -(10**9))
    with pytest.raises(ResourceError, match="too little memory"):
        quantize(job_of(larger_bf16, output), EventChannel(io.StringIO()))
