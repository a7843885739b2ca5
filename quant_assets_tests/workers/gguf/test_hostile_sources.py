"""Hostile source folders: only the model's own files are opened, and nothing is executed."""

import io
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from quant_assets.errors import InputError
from quant_assets.formats.gguf_header import read_gguf_header
from quant_assets.models.integrity import check_gguf
from quant_assets.processes.protocol import EventChannel
from quant_assets.settings import PROJECT_ROOT
from quant_assets.workers.gguf.engine import quantize
from quant_assets.workers.groupwise.calibration import source_tokenizer
from quant_assets.workers.groupwise.streaming import StreamedModel
from quant_assets.workers.torch.models import load_model, load_tokenizer
from quant_assets_tests.models.tiny_models import make_model
from quant_assets_tests.mutation import EXTREME_INTEGERS, FUZZ_EXAMPLES
from quant_assets_tests.workers.gguf.test_bad_input import job_of

PICKLES = (
    "pytorch_model.bin", "pytorch_model-00001-of-00001.bin", "model.pt", "consolidated.00.pth",
    "tokenizer.pkl", "vocab.pickle", "training_args.bin", "adapter_model.bin",
)  # fmt: skip
INDEX = "model.safetensors.index.json"

_opened: list[str] | None = None


def _note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


sys.addaudithook(_note_opened)


@contextmanager
def nothing_planted_is_opened(witness: Path) -> Iterator[None]:
    """Fail if the block opens one of `PICKLES` or a model's code, or creates `witness`."""
    global _opened
    _opened = []
    try:
        yield
    finally:
        opened, _opened = _opened, None
    assert not [name for name in opened if Path(name).name in (*PICKLES, "evil.py")]
    assert not witness.exists()


class Bomb:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.witness,)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: bytes) -> Path:
    return make_model(
        tmp_path_factory.mktemp("clean") / "tiny", "llama", tokenizer, num_hidden_layers=2
    )


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    return tmp_path / "ran"


@pytest.fixture
def planted(model: Path, tmp_path: Path, witness: Path) -> Path:
    """The model with booby-trapped pickles, code, an adapter, and weights under an unusual name."""
    folder = Path(shutil.copytree(model, tmp_path / "planted" / "tiny"))
    names = list(json.loads(_header_text(folder / "model.safetensors")))
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    weight_map = {name: "weights.safetensors" for name in names if name != "__metadata__"}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for name in PICKLES:
        (folder / name).write_bytes(pickle.dumps(Bomb(witness)))
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(weight_map, "pytorch_model.bin")})
    )
    (folder / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(witness)!r}).touch()\nclass Evil: pass\n"
    )
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folder)})
    )
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content["auto_map"] = {
            "AutoConfig": "evil.Evil",
            "AutoModelForCausalLM": "evil.Evil",
            "AutoTokenizer": ["evil.Evil", "evil.Evil"],
        }
        (folder / name).write_text(json.dumps(content))
    return folder


def _header_text(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def test_the_bomb_works(witness: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(witness)))
    assert witness.exists()


def test_gguf_reads_only_the_weights(
    model: Path, planted: Path, witness: Path, tmp_path: Path
) -> None:
    """An index that names other files than model*.safetensors sent the converter to the pickle."""
    clean = job_of(model, tmp_path / "clean", level="Q8_0")
    quantize(clean, EventChannel(io.StringIO()))
    dirty = job_of(planted, tmp_path / "dirty", level="Q8_0")
    with nothing_planted_is_opened(witness):
        quantize(dirty, EventChannel(io.StringIO()))
    assert dirty.output.read_bytes() == clean.output.read_bytes()


def test_layer_by_layer_quantizers_read_only_the_weights(planted: Path, witness: Path) -> None:
    import torch

    with nothing_planted_is_opened(witness):
        streamed = StreamedModel(planted, "cpu", torch.float32)
        assert streamed.files.read("model.embed_tokens.weight").shape[1] == 256


def test_tokenizers_run_no_code(planted: Path, witness: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    Tokenizer(WordLevel({"word": 0, "other": 1}, "other")).save(str(planted / "tokenizer.json"))
    (planted / "tokenizer.model").unlink()
    config = json.loads((planted / "tokenizer_config.json").read_text())
    for kind in ("PreTrainedTokenizerFast", "EvilTokenizer"):
        content = json.dumps({**config, "tokenizer_class": kind})
        (planted / "tokenizer_config.json").write_text(content)
        with nothing_planted_is_opened(witness):
            for load in (source_tokenizer, load_tokenizer):
                with suppress(InputError, ValueError):
                    assert load(planted).encode("word") == [0]


def test_a_checkpoint_is_loaded_only_from_its_weights(planted: Path, witness: Path) -> None:
    with nothing_planted_is_opened(witness):
        loaded = load_model(str(planted), "hf", "cpu")
    assert loaded.config.num_hidden_layers == 2


@pytest.mark.parametrize("read", [StreamedModel, load_model], ids=["streamed", "loaded"])
def test_workers_follow_no_path_out_of_the_folder(
    read: Callable[..., Any], model: Path, tmp_path: Path
) -> None:
    import torch

    folder = Path(shutil.copytree(model, tmp_path / "tiny"))
    (tmp_path / "victim.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    names = list(json.loads(_header_text(folder / "model.safetensors")))
    index = {"weight_map": dict.fromkeys(names, "../victim.safetensors")}
    (folder / INDEX).write_text(json.dumps(index))
    arguments = ("cpu", torch.float32) if read is StreamedModel else ("hf", "cpu")
    with pytest.raises(InputError, match="does not name a safetensors file in its folder"):
        read(folder, *arguments)
    job = job_of(folder, tmp_path / "output")
    with pytest.raises(InputError, match="does not name a safetensors file in its folder"):
        quantize(job, EventChannel(io.StringIO()))


N_MUTATED = FUZZ_EXAMPLES // 50 or 30
MOST_ABORTS = 0.1
"""llama.cpp aborts on some vocabularies (duplicate tokens); the header check does not detect them."""


@pytest.mark.fuzz
def test_workers_survive_what_the_header_check_passes(model: Path, tmp_path: Path) -> None:
    whole = job_of(model, tmp_path / "whole", level="BF16")
    quantize(whole, EventChannel(io.StringIO()))
    content = whole.output.read_bytes()
    end = read_gguf_header(whole.output).data_start
    vocabulary = content.index(b"tokenizer.ggml.tokens") + 60
    folder = tmp_path / "mutated"
    folder.mkdir()
    generator = random.Random(FUZZ_EXAMPLES)
    while len(list(folder.iterdir())) < N_MUTATED:
        data = bytearray(content)
        for _ in range(generator.randint(1, 2)):
            # Half of the edits before the vocabulary, which is most of the header.
            position = generator.randrange(generator.choice((vocabulary, end - 8)))
            width = generator.choice((1, 2, 4, 8))
            value = generator.choice((*EXTREME_INTEGERS, generator.getrandbits(64)))
            data[position : position + width] = (value % 256**width).to_bytes(width, "little")
        path = folder / f"{len(list(folder.iterdir())):05d}.gguf"
        path.write_bytes(data)
        try:
            check_gguf(path)
        except InputError:
            path.unlink()
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "quant_assets_tests.workers.gguf.mutated_ggufs",
            folder,
            tmp_path / "out",
        ],
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "GGML_NO_BACKTRACE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    # llama.cpp prints to standard output when it aborts.
    answers = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(answers) == N_MUTATED
    died = [answer for answer in answers if answer["answer"] not in ("made", "refused")]
    assert {answer["signal"] for answer in died} <= {int(signal.SIGABRT)}, run.stderr[-3000:]
    assert len(died) <= MOST_ABORTS * N_MUTATED, died
