"""SC-006: the share of failures whose message lets a user resolve them without other documents.

Every case provokes one failure of a command. Its message must name the cause and a next step in the
words written beside the case; the script then does what the step says and runs the command again,
or the command that the step recommends. A case is resolved when the step was there and the command
that follows it succeeds. Cases that need an environment which is not installed are left out, and
counted.
"""

import argparse
import fcntl
import json
import re
import shlex
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import gguf
from arguments import positive
from command_runs import AT_A_TIME, Command, ErrorMessage, Outcome, run_all
from criterion import DEMANDS, Criterion, Row
from local_servers import Completions, gated_hub, serving
from rich.console import Console
from stock import NARROW, TRAINED, Stock, has_environment

from quant_assets.formats.artifact_formats import GroupwiseFormat
from quant_assets.settings import PROJECT_ROOT

DEMANDED_SHARE: Final = 0.8
_TOKEN = "hf_of_a_test"
_UI_START_LIMIT_S = 240.0
_LISTING = "title,price,currency\nNVIDIA L4 24GB,2500,USD\nTesla P40 24G,199,EUR\n"

Script = Generator[Command, ErrorMessage, Command | Outcome]
"""Yields the failing command, is sent its message, and returns what follows the next step."""


class Scene:
    """The folder of one case, and the commands in it."""

    def __init__(self, folder: Path, stock: Stock) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.stock = stock

    def command(self, *arguments: str | Path, **variables: str | Path | None) -> Command:
        """A call of `quant-assets`; variables whose names begin with a capital are its environment."""
        values = {name: None if value is None else str(value) for name, value in variables.items()}
        return Command(arguments, self.folder, values)

    def quantize(
        self,
        source: str | Path | None = None,
        *options: str | Path,
        level: str = "Q4_0",
        output: str | Path = "out",
        **variables: str | Path | None,
    ) -> Command:
        """Quantize a model (a tiny GGUF file by default) to GGUF."""
        given = self.stock.gguf("llama") if source is None else source
        return self.command(
            "quantize", given, "--level", level, "--output-dir", output, *options, **variables
        )

    def checkpoint(self, method: GroupwiseFormat, *options: str | Path) -> Command:
        """The command that made the stock's checkpoint, which finds it done; `options` come last."""
        return self.command(*self.stock.checkpoint_arguments(method), *options)

    def copy(self, source: Path) -> Path:
        """A copy of a file or folder that the case may damage."""
        target = self.folder / source.name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
        return target

    def write(self, name: str, content: str | bytes) -> Path:
        """A file of the case."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def data(self) -> Path:
        """A copy of the project's data folder."""
        return self.copy(PROJECT_ROOT / "data")


@dataclass(frozen=True)
class Case:
    """One failure; `cause` and `step` are words that its message and its next step must have."""

    name: str
    cause: tuple[str, ...]
    step: tuple[str, ...]
    script: Callable[[Scene], Script]
    needs: tuple[GroupwiseFormat, ...] = ()


class Result(NamedTuple):
    """What a case came to; the problems are None where the message did what is asked of it."""

    case: Case
    message: str
    cause_problem: str | None
    step_problem: str | None


CASES: Final[list[Case]] = []


def _case(
    *, cause: Sequence[str], step: Sequence[str], needs: Sequence[GroupwiseFormat] = ()
) -> Callable[[Callable[[Scene], Script]], Callable[[Scene], Script]]:
    """Add the decorated script to `CASES` under its own name."""

    def added(script: Callable[[Scene], Script]) -> Callable[[Scene], Script]:
        name = script.__name__.strip("_").replace("_", " ")
        CASES.append(Case(name, tuple(cause), tuple(step), script, tuple(needs)))
        return script

    return added


def _after(words: str, text: str) -> str:
    """The first name after `words` in a message, as a user reads it off."""
    found = re.search(rf"{re.escape(words)}\s+[`'\"]?([\w./:+-]*[\w+])", text)
    if found is None:
        raise ValueError(f"the message has nothing after {words!r}: {text}")
    return found[1]


# --- Source models


@_case(cause=["no model at", "nowhere"], step=["full path", "GGUF file"])
def _missing_model(scene: Scene) -> Script:
    yield scene.quantize("./nowhere")
    return scene.quantize(scene.stock.gguf("llama").resolve())


@_case(cause=["cut off", "bytes"], step=["Fetch", "again"])
def _truncated_gguf(scene: Scene) -> Script:
    whole = scene.stock.gguf("llama")
    file = scene.copy(whole)
    file.write_bytes(file.read_bytes()[:-5000])
    yield scene.quantize(file)
    shutil.copy(whole, file)
    return scene.quantize(file)


@_case(cause=["header is damaged"], step=["Fetch", "again"])
def _damaged_gguf_header(scene: Scene) -> Script:
    whole = scene.stock.gguf("llama")
    file = scene.copy(whole)
    content = bytearray(file.read_bytes())
    content[8:200] = b"\xff" * 192
    file.write_bytes(content)
    yield scene.quantize(file)
    shutil.copy(whole, file)
    return scene.quantize(file)


@_case(cause=["is not a GGUF file"], step=["GGUF file", "Hugging Face folder"])
def _text_in_place_of_a_model(scene: Scene) -> Script:
    yield scene.quantize(scene.write("model.gguf", "These are notes about a model.\n"))
    return scene.quantize(scene.stock.gguf("llama"))


@_case(cause=["GGUF version 1"], step=["Convert the file", "llama.cpp"])
def _old_gguf_version(scene: Scene) -> Script:
    file = scene.copy(scene.stock.gguf("llama"))
    content = file.read_bytes()
    file.write_bytes(content[:4] + struct.pack("<I", 1) + content[8:])
    yield scene.quantize(file)
    file.write_bytes(content)
    return scene.quantize(file)


@_case(cause=["holds no tensors", "vocabulary"], step=["whole model"])
def _vocabulary_alone(scene: Scene) -> Script:
    file = scene.folder / "vocabulary.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_token_list(["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    yield scene.quantize(file)
    return scene.quantize(scene.stock.gguf("llama"))


@_case(cause=["cut off", "model.safetensors"], step=["Fetch", "again"])
def _truncated_shard(scene: Scene) -> Script:
    folder = scene.copy(scene.stock.model("llama"))
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    yield scene.quantize(folder)
    shutil.copy(scene.stock.model("llama") / shard.name, shard)
    return scene.quantize(folder)


@_case(cause=["damaged header"], step=["Fetch", "again"])
def _damaged_shard(scene: Scene) -> Script:
    folder = scene.copy(scene.stock.model("llama"))
    shard = folder / "model.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:20] + b"\x00\xff\x00" + content[23:])
    yield scene.quantize(folder)
    shutil.copy(scene.stock.model("llama") / shard.name, shard)
    return scene.quantize(folder)


@_case(cause=["shards", "missing", "model-00002"], step=["Fetch the missing files"])
def _missing_shard(scene: Scene) -> Script:
    whole = scene.stock.model("llama", sharded=True)
    folder = scene.copy(whole)
    next(folder.glob("model-00002-*")).unlink()
    error = yield scene.quantize(folder)
    name = _after("Missing:", error.text)
    shutil.copy(whole / name, folder / name)
    return scene.quantize(folder)


@_case(
    cause=["no safetensors files", "pickle"], step=["save_pretrained", "safe_serialization=True"]
)
def _pickle_in_place_of_safetensors(scene: Scene) -> Script:
    folder = scene.copy(scene.stock.model("llama"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    yield scene.quantize(folder)
    # What save_pretrained writes.
    shutil.copy(scene.stock.model("llama") / "model.safetensors", folder)
    return scene.quantize(folder)


@_case(cause=["no config.json"], step=["folder that holds these files"])
def _no_config(scene: Scene) -> Script:
    whole = scene.stock.model("llama")
    folder = scene.folder / "weights"
    folder.mkdir()
    shutil.copy(whole / "model.safetensors", folder)
    yield scene.quantize(folder)
    return scene.quantize(whole)


@_case(cause=["config.json", "JSON"], step=["config.json"])
def _broken_config(scene: Scene) -> Script:
    folder = scene.copy(scene.stock.model("llama"))
    (folder / "config.json").write_text('{"architectures": [')
    yield scene.quantize(folder)
    shutil.copy(scene.stock.model("llama") / "config.json", folder)
    return scene.quantize(folder)


def _edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")


@_case(cause=["names no architecture"], step=["config.json", "published with"])
def _no_architecture(scene: Scene) -> Script:
    folder = scene.copy(scene.stock.model("llama"))
    _edit_config(folder, architectures=[])
    yield scene.quantize(folder)
    shutil.copy(scene.stock.model("llama") / "config.json", folder)
    return scene.quantize(folder)


@_case(cause=["contradicts its config.json", "500 layers"], step=["config.json", "published with"])
def _contradicting_config(scene: Scene) -> Script:
    folder = scene.copy(scene.stock.model("llama"))
    _edit_config(folder, num_hidden_layers=500)
    yield scene.quantize(folder)
    shutil.copy(scene.stock.model("llama") / "config.json", folder)
    return scene.quantize(folder)


@_case(
    cause=["LlamaForCausalLN", "not supported"],
    step=["Use a model of a supported architecture", "architectures"],
)
def _unsupported_architecture(scene: Scene) -> Script:
    folder = scene.copy(scene.stock.model("llama"))
    _edit_config(folder, architectures=["LlamaForCausalLN"])
    error = yield scene.quantize(folder)
    # The step says that config.json names it, the message which names are most similar.
    similar = re.findall(r"\b\w+ForCausalLM\b", error.text)
    _edit_config(folder, architectures=[max(similar, key=lambda name: name == "LlamaForCausalLM")])
    return scene.quantize(folder)


@_case(cause=["link that leads out", "leads to"], step=["QUANT_ASSETS_MODEL_ROOTS", "JSON list"])
def _link_out_of_the_folder(scene: Scene) -> Script:
    whole = scene.stock.model("llama")
    folder = scene.copy(whole)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(whole / "model.safetensors")
    yield scene.quantize(folder)
    return scene.quantize(folder, QUANT_ASSETS_MODEL_ROOTS=json.dumps([str(whole)]))


@_case(cause=["already quantized", "Q8_0"], step=["original weights", "F16"])
def _quantized_source(scene: Scene) -> Script:
    yield scene.quantize(scene.stock.gguf("llama", "Q8_0"))
    return scene.quantize(scene.stock.gguf("llama", "F16"))


@_case(cause=["invalid values", "NaN"], step=["Download the source model again"])
def _weights_that_are_not_numbers(scene: Scene) -> Script:
    folder = scene.copy(scene.stock.model("llama"))
    shard = folder / "model.safetensors"
    content = bytearray(shard.read_bytes())
    content[-64:] = b"\xc0\x7f" * 32  # NaN in bfloat16
    middle = len(content) // 2 // 2 * 2
    content[middle : middle + 64] = b"\xc0\x7f" * 32
    shard.write_bytes(content)
    yield scene.quantize(folder)
    shutil.copy(scene.stock.model("llama") / shard.name, shard)
    return scene.quantize(folder)


@_case(cause=["index", "weight_map"], step=["Fetch", "again"])
def _index_without_a_map(scene: Scene) -> Script:
    whole = scene.stock.model("llama", sharded=True)
    folder = scene.copy(whole)
    index = folder / "model.safetensors.index.json"
    index.write_text('{"metadata": {}}')
    yield scene.quantize(folder)
    shutil.copy(whole / index.name, index)
    return scene.quantize(folder)


@_case(cause=["tokenizer"], step=["tokenizer files"])
def _no_tokenizer(scene: Scene) -> Script:
    folder = scene.copy(scene.stock.model("llama"))
    (folder / "tokenizer.model").unlink()
    yield scene.quantize(folder)
    shutil.copy(scene.stock.model("llama") / "tokenizer.model", folder)
    return scene.quantize(folder)


@_case(cause=["owner/model", "could not be fetched"], step=["network", "local folder"])
def _hub_model_without_a_network(scene: Scene) -> Script:
    yield scene.quantize("owner/model")
    return scene.quantize(scene.stock.model("llama"))


@_case(cause=["could not be fetched", "Gated"], step=["gated", "HF_TOKEN"])
def _gated_model_without_a_token(scene: Scene) -> Script:
    with serving(gated_hub(scene.stock.model("llama"), _TOKEN)) as url:
        yield scene.quantize("owner/gated", HF_HUB_OFFLINE=None, HF_ENDPOINT=url)
        following = scene.quantize(
            "owner/gated", HF_HUB_OFFLINE=None, HF_ENDPOINT=url, HF_TOKEN=_TOKEN
        )
        return following.run()


# --- Options and outputs


@_case(cause=["no GGUF level", "Q4_K_XL", "Nearest"], step=["Use one of"])
def _level_that_does_not_exist(scene: Scene) -> Script:
    error = yield scene.quantize(level="Q4_K_XL")
    return scene.quantize(level=_after("Nearest are", error.text))


@_case(cause=["IQ2_XS", "needs an importance matrix"], step=["--imatrix", "quant-assets imatrix"])
def _level_without_an_importance_matrix(scene: Scene) -> Script:
    yield scene.quantize(level="IQ2_XS")
    matrix = scene.stock.imatrix("llama")
    return scene.quantize(None, "--imatrix", matrix, level="IQ2_XS")


@_case(cause=["lost.gguf", "missing"], step=["Check its path"])
def _missing_importance_matrix(scene: Scene) -> Script:
    yield scene.quantize(None, "--imatrix", "lost.gguf", level="IQ2_XS")
    return scene.quantize(None, "--imatrix", scene.stock.imatrix("llama"), level="IQ2_XS")


@_case(cause=["not", "GGUF"], step=["GGUF"])
def _importance_matrix_in_the_old_format(scene: Scene) -> Script:
    old = scene.write("imatrix.dat", struct.pack("<i", 2) + b"\x10\x00\x00\x00blk.0.attn_q.weight")
    yield scene.quantize(None, "--imatrix", old, level="IQ2_XS")
    return scene.quantize(None, "--imatrix", scene.stock.imatrix("llama"), level="IQ2_XS")


@_case(cause=["importance matrix does not fit"], step=["this same model", "quant-assets imatrix"])
def _importance_matrix_of_another_model(scene: Scene) -> Script:
    other = scene.stock.imatrix("llama_tied")
    yield scene.quantize(None, "--imatrix", other, level="IQ2_XS")
    return scene.quantize(None, "--imatrix", scene.stock.imatrix("llama"), level="IQ2_XS")


def _imatrix(scene: Scene, text: str | Path) -> Command:
    source = scene.stock.gguf("llama")
    return scene.command(
        "imatrix", source, "--text", text, "--chunks", "1", "--output-dir", "matrices"
    )


@_case(cause=["too short", "tokens", "one chunk has"], step=["longer text"])
def _text_that_is_too_short(scene: Scene) -> Script:
    yield _imatrix(scene, scene.write("short.txt", "A few words."))
    return _imatrix(scene, scene.stock.text)


@_case(cause=["no text at", "lost.txt"], step=["Check the path"])
def _missing_text(scene: Scene) -> Script:
    yield _imatrix(scene, "lost.txt")
    return _imatrix(scene, scene.stock.text)


@_case(cause=["cannot be written"], step=["another folder", "--output-dir"])
def _folder_that_cannot_be_written(scene: Scene) -> Script:
    # Not even root may create a folder here.
    yield scene.quantize(output="/proc/self/results")
    return scene.quantize(output=scene.folder / "another")


@_case(cause=["cannot be written"], step=["another folder", "--output-dir"])
def _file_in_place_of_the_output_folder(scene: Scene) -> Script:
    yield scene.quantize(output=scene.write("out", "a file"))
    return scene.quantize(output="another")


@_case(cause=["exists", "another model or tool"], step=["--overwrite"])
def _another_tools_file_in_place(scene: Scene) -> Script:
    scene.write(f"out/{scene.stock.gguf('llama').stem}-Q4_0.gguf", b"GGUF of another tool")
    yield scene.quantize()
    return scene.quantize(None, "--overwrite")


@_case(cause=["is a folder"], step=["Remove or rename the folder"])
def _folder_in_place_of_the_output(scene: Scene) -> Script:
    folder = scene.folder / "out" / f"{scene.stock.gguf('llama').stem}-Q4_0.gguf"
    folder.mkdir(parents=True)
    yield scene.quantize()
    folder.rename(scene.folder / "renamed")
    return scene.quantize()


@_case(cause=["disk filled up"], step=["Free some space", "run the same command again"])
def _full_disk(scene: Scene) -> Script:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))"
    whole = scene.quantize(level="Q8_0")
    yield Command(whole.arguments, whole.folder, whole.variables, prelude=limit)
    return whole


@_case(cause=["Another run is writing"], step=["Wait for it to end"])
def _output_that_another_run_writes(scene: Scene) -> Script:
    part = scene.write(f"out/{scene.stock.gguf('llama').stem}-Q4_0.gguf.part", b"")
    with part.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield scene.quantize()
    return scene.quantize()


@_case(cause=["name", "too long"], step=["shorter name"])
def _name_that_is_too_long(scene: Scene) -> Script:
    link = scene.folder / ("n" * 240 + ".gguf")
    link.symlink_to(scene.stock.gguf("llama"))
    copied = scene.folder / ("m" * 240 + ".gguf")
    shutil.copy(scene.stock.gguf("llama"), copied)
    yield scene.quantize(copied)
    return scene.quantize(copied.rename(scene.folder / "model.gguf"))


@_case(cause=["'--level'"], step=["requires an argument"])
def _option_without_a_value(scene: Scene) -> Script:
    yield scene.command("quantize", scene.stock.gguf("llama"), "--output-dir", "out", "--level")
    return scene.quantize()


@_case(cause=["--threads"], step=["greater than or equal to 1"])
def _no_threads(scene: Scene) -> Script:
    yield scene.quantize(None, "--threads", "0")
    return scene.quantize(None, "--threads", "1")


@_case(cause=["No such command", "quantise"], step=["Did you mean", "quantize"])
def _command_that_does_not_exist(scene: Scene) -> Script:
    wanted = scene.quantize()
    error = yield scene.command("quantise", *wanted.arguments[1:])
    return scene.command(_after("Did you mean", error.text), *wanted.arguments[1:])


# --- GPTQ and AWQ


@_case(cause=["environment 'gptq' does not exist"], step=["make setup-groupwise"], needs=["gptq"])
def _missing_worker_environment(scene: Scene) -> Script:
    project = scene.folder / "project"
    project.mkdir()
    for name in ("quant_assets", "data", "dbt_like_sql"):
        shutil.copytree(PROJECT_ROOT / name, project / name)
    wanted = scene.command("validate", scene.stock.checkpoint("gptq"), "--text", scene.stock.text)
    wanted = Command(wanted.arguments, wanted.folder, project=project)
    yield wanted
    # What the set-up makes; it would take minutes here.
    (project / ".venvs").symlink_to(PROJECT_ROOT / ".venvs")
    return wanted


@_case(cause=["Groups of 128", "hidden size 64"], step=["Use --group-size"], needs=["gptq"])
def _group_size_that_does_not_divide(scene: Scene) -> Script:
    source, text = scene.stock.model(NARROW), scene.stock.text
    wanted = scene.command(
        "quantize", source, "--to", "gptq", "--calibration", text, "--text", text, "--no-gate",
        "--calibration-samples", "8", "--sequence-length", "32", "--output-dir", "out",
    )  # fmt: skip
    error = yield wanted
    size = _after("Use --group-size", error.next_step)
    return scene.command(*wanted.arguments, "--group-size", size)


@_case(cause=["no quantization", "gptq-5bit"], step=["--bits 4"], needs=["gptq"])
def _bits_that_do_not_exist(scene: Scene) -> Script:
    error = yield scene.checkpoint("gptq", "--bits", "5")
    return scene.checkpoint("gptq", "--bits", _after("--bits", error.next_step))


@_case(cause=["AWQ has no act-order"], step=["Omit --desc-act"], needs=["awq"])
def _act_order_in_awq(scene: Scene) -> Script:
    yield scene.checkpoint("awq", "--desc-act")
    return scene.checkpoint("awq")


@_case(cause=["one group per row"], step=["--group-size 128"], needs=["awq"])
def _awq_without_groups(scene: Scene) -> Script:
    error = yield scene.checkpoint("awq", "--group-size", "-1")
    return scene.checkpoint("awq", "--group-size", _after("--group-size", error.next_step))


@_case(cause=["Mixture-of-experts", "cannot be quantized to GPTQ"], step=["--to gguf"])
def _experts_in_gptq(scene: Scene) -> Script:
    source = scene.stock.model("mixtral")
    error = yield scene.command("quantize", source, "--to", "gptq", "--output-dir", "out")
    return scene.quantize(source, "--to", _after("--to", error.next_step))


@_case(cause=["not made from a GGUF file"], step=["quant-assets convert"], needs=["gptq"])
def _gguf_to_gptq(scene: Scene) -> Script:
    text = scene.stock.text
    options = (
        "--calibration", text, "--text", text, "--calibration-samples", "32",
        "--sequence-length", "64", "--output-dir", "out",
    )  # fmt: skip
    source = scene.stock.gguf(TRAINED)
    error = yield scene.command("quantize", source, "--to", "gptq", *options)
    _, *converting = shlex.split(error.next_step.split("`")[1])
    return scene.command(*converting, *options)


@_case(cause=["no calibration text", "lost.jsonl"], step=["Check the path"], needs=["gptq"])
def _missing_calibration(scene: Scene) -> Script:
    yield scene.checkpoint("gptq", "--calibration", "lost.jsonl")
    return scene.checkpoint("gptq")


@_case(cause=["calibration text", "too short"], step=["pages of text"], needs=["gptq"])
def _calibration_that_is_too_short(scene: Scene) -> Script:
    yield scene.checkpoint("gptq", "--calibration", scene.write("short.txt", "Hello there."))
    return scene.checkpoint("gptq", "--calibration", scene.stock.text)


@_case(cause=["is not text"], step=["field `text`"], needs=["gptq"])
def _calibration_that_is_not_text(scene: Scene) -> Script:
    yield scene.checkpoint("gptq", "--calibration", scene.write("text.bin", b"\xff\x00\xfe" * 900))
    return scene.checkpoint("gptq", "--calibration", scene.stock.text)


@_case(
    cause=["has no text", "No row has a field"], step=["Rename the field", "`text`"], needs=["gptq"]
)
def _calibration_rows_without_a_text(scene: Scene) -> Script:
    rows = scene.write("rows.jsonl", json.dumps({"words": "some words " * 900}) + "\n")
    yield scene.checkpoint("gptq", "--calibration", rows)
    # The text of the stock's checkpoint, so that it is found done.
    content = {"text": scene.stock.text.read_text(encoding="utf-8")}
    rows.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return scene.checkpoint("gptq", "--calibration", rows)


@_case(cause=["cannot use a GPU"], step=["device cpu"], needs=["gptq"])
def _no_gpu(scene: Scene) -> Script:
    artifact = scene.stock.checkpoint("gptq")
    wanted = ("validate", artifact, "--text", scene.stock.text, "--device")
    error = yield scene.command(*wanted, "cuda", CUDA_VISIBLE_DEVICES="")
    device = _after("device", error.next_step)
    return scene.command(*wanted, device, CUDA_VISIBLE_DEVICES="")


# --- Conversion, validation, description


@_case(cause=["quantized again", "Nothing was converted"], step=["--yes"], needs=["gptq"])
def _loss_without_agreement(scene: Scene) -> Script:
    wanted = scene.command(
        "convert", scene.stock.checkpoint("gptq"), "--to", "gguf", "--level", "Q4_0",
        "--output-dir", "out",
    )  # fmt: skip
    yield wanted
    return scene.command(*wanted.arguments, "--yes")


@_case(cause=["exists"], step=["Remove it", "--output-dir"])
def _folder_in_place_of_the_conversion(scene: Scene) -> Script:
    source = scene.stock.gguf(TRAINED)
    notes = scene.write(f"out/{source.stem}-hf/notes.txt", "mine")
    yield scene.command("convert", source, "--to", "hf", "--output-dir", "out")
    shutil.rmtree(notes.parent)
    return scene.command("convert", source, "--to", "hf", "--output-dir", "out")


@_case(cause=["fp8 checkpoint cannot be converted"], step=["original 16 bit checkpoint"])
def _checkpoint_that_cannot_be_converted(scene: Scene) -> Script:
    folder = scene.copy(scene.stock.model("llama"))
    _edit_config(folder, quantization_config={"quant_method": "fp8"})
    wanted = ("--to", "gguf", "--level", "Q4_0", "--yes", "--output-dir", "out")
    yield scene.command("convert", folder, *wanted)
    return scene.command("convert", scene.stock.model("llama"), *wanted)


@_case(
    cause=["is damaged", "model.safetensors is changed"],
    step=["Delete", "run the command that made it"],
    needs=["gptq"],
)
def _damaged_artifact(scene: Scene) -> Script:
    artifact = scene.copy(scene.stock.checkpoint("gptq"))
    weights = artifact / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 0xFF
    weights.write_bytes(content)
    wanted = scene.command("validate", artifact, "--text", scene.stock.text)
    error = yield wanted
    named = Path(error.next_step.partition("Delete ")[2].partition(", then")[0])
    shutil.rmtree(named)
    made = scene.checkpoint("gptq").run()
    if made.exit_code:
        return made
    shutil.copytree(scene.stock.checkpoint("gptq"), artifact)
    return wanted


@_case(cause=["cannot load"], step=["Delete the file"])
def _damaged_gguf_artifact(scene: Scene) -> Script:
    scene.quantize().run()
    (file,) = (scene.folder / "out").glob("*.gguf")
    content = bytearray(file.read_bytes())
    key = content.index(b"llama.block_count")
    content[key : key + 17] = b"llama.block_kount"
    file.write_bytes(content)
    yield scene.command("validate", file)
    file.unlink()
    again = scene.quantize().run()
    return scene.command("validate", file) if again.exit_code == 0 else again


@_case(cause=["not a GPTQ or AWQ folder"], step=["GGUF file"])
def _validating_plain_weights(scene: Scene) -> Script:
    yield scene.command("validate", scene.stock.model("llama"))
    return scene.command("validate", scene.stock.gguf("llama"))


@_case(cause=["is not a GGUF file"], step=["GGUF file", "Hugging Face folder"])
def _describing_a_text(scene: Scene) -> Script:
    yield scene.command("info", scene.write("notes.txt", "These are notes.\n"))
    return scene.command("info", scene.stock.gguf("llama"))


# --- Benchmarks


@_case(cause=["no variant", "q9"], step=["Choose among these"])
def _unknown_variant(scene: Scene) -> Script:
    error = yield scene.command("bench", "--dry-run", "--variant", "q9")
    known = _after("variants file has", error.text)
    return scene.command("bench", "--dry-run", "--variant", known)


@_case(cause=["no model", "'gpt-9'"], step=["Choose one of these"])
def _unknown_model_in_bench(scene: Scene) -> Script:
    error = yield scene.command("bench", "--dry-run", "--model", "gpt-9")
    known = _after("model list has", error.text)
    return scene.command("bench", "--dry-run", "--model", known)


@_case(
    cause=["model list", "cannot be used", "line 3"], step=["Correct the file", "data/models.yaml"]
)
def _broken_model_list(scene: Scene) -> Script:
    models = scene.write("models.yaml", "models:\n  - {name: tiny, source: [\n")
    wanted = scene.command("bench", "--dry-run", QUANT_ASSETS_MODELS_FILE=models)
    yield wanted
    shutil.copy(PROJECT_ROOT / "data" / "models.yaml", models)
    return wanted


@_case(
    cause=["variants file", "cannot be used", "colour"], step=["Correct the file", "data/variants"]
)
def _broken_variants(scene: Scene) -> Script:
    variants = scene.write("v.yaml", "variants: {a: {format: gguf, level: F16, colour: red}}\n")
    wanted = scene.command("bench", "--dry-run", QUANT_ASSETS_VARIANTS_FILE=variants)
    yield wanted
    shutil.copy(PROJECT_ROOT / "data" / "variants.yaml", variants)
    return wanted


@_case(cause=["thresholds", "cannot be used"], step=["Correct the file", "bench_thresholds.yaml"])
def _broken_thresholds(scene: Scene) -> Script:
    limits = scene.write("limits.yaml", "models: {'*': {q8_0: {speed: fast}}}\n")
    wanted = scene.command("bench", "--dry-run", "--check", "--thresholds", limits)
    yield wanted
    shutil.copy(PROJECT_ROOT / "data" / "bench_thresholds.yaml", limits)
    return wanted


@_case(cause=["settings are invalid", "runs"], step=["RUNS"])
def _impossible_settings(scene: Scene) -> Script:
    yield scene.command("bench", "--dry-run", RUNS="none")
    return scene.command("bench", "--dry-run", RUNS="3")


def _endpoint_bench(scene: Scene, url: str) -> Command:
    return scene.command(
        "bench", "--endpoint", url, "--runs", "2", "--warmups", "0", "--batch-size", "1",
        "--results-dir", "results",
    )  # fmt: skip


@_case(cause=["endpoint", "does not respond"], step=["Start the server"])
def _endpoint_that_is_down(scene: Scene) -> Script:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    wanted = _endpoint_bench(scene, f"http://127.0.0.1:{port}")
    yield wanted
    with serving(Completions, port):
        return wanted.run()


@_case(cause=["is not an endpoint"], step=["Give a URL", "http://"])
def _endpoint_that_is_not_a_url(scene: Scene) -> Script:
    with serving(Completions) as url:
        yield _endpoint_bench(scene, url.removeprefix("http://"))
        return _endpoint_bench(scene, url).run()


@_case(cause=["no benchmark records"], step=["quant-assets bench"])
def _no_records_to_collect(scene: Scene) -> Script:
    wanted = scene.command("collect", "--results-dir", "results", "--output-csv", "all.csv")
    yield wanted
    with serving(Completions) as url:
        measured = _endpoint_bench(scene, url).run()
    return wanted if measured.exit_code == 0 else measured


@_case(cause=["cannot be read", "damaged"], step=["out of the results folder"])
def _damaged_record(scene: Scene) -> Script:
    with serving(Completions) as url:
        _endpoint_bench(scene, url).run()
    damaged = scene.write("results/q4_20260101.json", '[{"p50_ms": ')
    wanted = scene.command("collect", "--results-dir", "results", "--output-csv", "all.csv")
    yield wanted
    damaged.rename(scene.folder / damaged.name)
    return wanted


@_case(cause=["nothing to compare called 'q9'"], step=["result file", "variant"])
def _comparing_what_was_not_measured(scene: Scene) -> Script:
    with serving(Completions) as url:
        _endpoint_bench(scene, url).run()
    files = sorted((scene.folder / "results").glob("*.json"))
    yield scene.command("bench", "compare", "q9", files[0])
    return scene.command("bench", "compare", files[0], files[0])


# --- Listings


def _enrich(
    scene: Scene, source: str | Path, *options: str | Path, output: str = "o.csv"
) -> Command:
    return scene.command("enrich", "--input", source, "--output", output, *options)


@_case(cause=["is empty", "neither a header nor rows"], step=["Export the listings again"])
def _empty_listing(scene: Scene) -> Script:
    listing = scene.write("in.csv", "")
    yield _enrich(scene, listing)
    listing.write_text(_LISTING)
    return _enrich(scene, listing)


@_case(cause=["no rows", "only a header"], step=["Export the listings again"])
def _listing_with_only_a_header(scene: Scene) -> Script:
    listing = scene.write("in.csv", "title,price\n")
    yield _enrich(scene, listing)
    listing.write_text(_LISTING)
    return _enrich(scene, listing)


@_case(cause=["no column with a title", "'colour'"], step=["Name one column 'title'"])
def _listing_without_titles(scene: Scene) -> Script:
    listing = scene.write("in.csv", "colour,price\nNVIDIA L4 24GB,2500\n")
    error = yield _enrich(scene, listing)
    name = _after("Name one column", error.next_step)
    listing.write_text(listing.read_text().replace("colour", name))
    return _enrich(scene, listing)


@_case(cause=["unknown extension", ".csv"], step=["Rename or convert"])
def _listing_of_an_unknown_kind(scene: Scene) -> Script:
    listing = scene.write("in.dat", _LISTING)
    yield _enrich(scene, listing)
    return _enrich(scene, listing.rename(scene.folder / "in.csv"))


@_case(cause=["lost.csv", "does not exist"], step=["Check the path"])
def _missing_listing(scene: Scene) -> Script:
    yield _enrich(scene, "lost.csv")
    return _enrich(scene, scene.write("found.csv", _LISTING))


@_case(cause=["not valid JSON", "line 1"], step=["list of objects"])
def _broken_json_listing(scene: Scene) -> Script:
    listing = scene.write("in.json", '{"title": "L4 24GB", ')
    yield _enrich(scene, listing)
    listing.write_text('[{"title": "L4 24GB", "price": "2500 USD"}]')
    return _enrich(scene, listing)


@_case(cause=["cannot be read as Parquet"], step=["CSV or JSON"])
def _damaged_parquet_listing(scene: Scene) -> Script:
    yield _enrich(scene, scene.write("in.parquet", b"PAR1 and nothing else"))
    return _enrich(scene, scene.write("in.csv", _LISTING))


@_case(cause=["contains no listing files", ".csv"], step=["Put a listing file there"])
def _folder_without_listings(scene: Scene) -> Script:
    scene.write("offers/readme.md", "nothing")
    yield _enrich(scene, "offers")
    scene.write("offers/in.csv", _LISTING)
    return _enrich(scene, "offers")


@_case(cause=["unknown extension", ".parquet"], step=["Use one of these extensions"])
def _output_of_an_unknown_kind(scene: Scene) -> Script:
    listing = scene.write("in.csv", _LISTING)
    yield _enrich(scene, listing, output="o.xls")
    return _enrich(scene, listing, output="o.parquet")


@_case(cause=["lies in the input"], step=["another folder"])
def _output_among_the_inputs(scene: Scene) -> Script:
    scene.write("offers/in.csv", _LISTING)
    yield _enrich(scene, "offers", output="offers/o.csv")
    return _enrich(scene, "offers", output="o.csv")


@_case(cause=["already has the column"], step=["--force"])
def _columns_that_are_there_already(scene: Scene) -> Script:
    first = _enrich(scene, scene.write("in.csv", _LISTING), output="first.csv")
    first.run()
    yield _enrich(scene, "first.csv")
    return _enrich(scene, "first.csv", "--force")


@_case(cause=["no heuristic", "Available"], step=["Use one of them"])
def _unknown_heuristic(scene: Scene) -> Script:
    listing = scene.write("in.csv", _LISTING)
    error = yield _enrich(scene, listing, "--heuristic", "value")
    return _enrich(scene, listing, "--heuristic", _after("Available:", error.text))


def _with_data(scene: Scene, data: Path, *options: str) -> Command:
    listing = scene.write("in.csv", _LISTING)
    command = _enrich(scene, listing, *options)
    return Command(command.arguments, command.folder, {"QUANT_ASSETS_DATA": str(data)})


@_case(cause=["heuristics.yaml", "cannot be read"], step=["Correct or restore the file"])
def _broken_heuristics(scene: Scene) -> Script:
    data = scene.data()
    (data / "heuristics.yaml").write_text("quantization_capable: [unclosed")
    wanted = _with_data(scene, data, "--heuristic", "quantization_capable")
    yield wanted
    shutil.copy(PROJECT_ROOT / "data" / "heuristics.yaml", data)
    return wanted


@_case(cause=["option", "'min_vram_gb'", "invalid"], step=["Correct it in", "heuristics.yaml"])
def _impossible_heuristic_option(scene: Scene) -> Script:
    data = scene.data()
    file = data / "heuristics.yaml"
    file.write_text(file.read_text().replace("min_vram_gb: 24", "min_vram_gb: plenty"))
    wanted = _with_data(scene, data, "--heuristic", "quantization_capable")
    yield wanted
    file.write_text(file.read_text().replace("plenty", "24"))
    return wanted


@_case(cause=["exchange_rates.yaml", "cannot be used"], step=["Restore or correct the file"])
def _missing_exchange_rates(scene: Scene) -> Script:
    data = scene.data()
    (data / "exchange_rates.yaml").unlink()
    wanted = _with_data(scene, data)
    yield wanted
    shutil.copy(PROJECT_ROOT / "data" / "exchange_rates.yaml", data)
    return wanted


@_case(cause=["gpus.yaml", "not valid"], step=["Correct the entry"])
def _broken_gpu_registry(scene: Scene) -> Script:
    data = scene.data()
    (data / "gpus.yaml").write_text("- {canonical_name: L4, vram_gb: much}\n")
    wanted = _with_data(scene, data)
    yield wanted
    shutil.copy(PROJECT_ROOT / "data" / "gpus.yaml", data)
    return wanted


@_case(cause=["Missing option", "--output"], step=["--output"])
def _missing_option(scene: Scene) -> Script:
    listing = scene.write("in.csv", _LISTING)
    yield scene.command("enrich", "--input", listing)
    return _enrich(scene, listing)


# --- Warehouse


def _recommend(scene: Scene, home: Path, *options: str) -> Command:
    return scene.command(
        "recommend", "--context", "4096", "--batch", "1", *options, QUANT_ASSETS_HOME=home
    )


@_case(cause=["no warehouse at"], step=["make demo"])
def _marts_that_are_not_built(scene: Scene) -> Script:
    yield _recommend(scene, scene.folder / "home", "--model", "m")
    # What `make demo` builds, on figures that are quick to load.
    shutil.copytree(scene.stock.marts, scene.folder / "home", dirs_exist_ok=True)
    return _recommend(scene, scene.folder / "home", "--model", "m")


@_case(cause=["no options for the model 'x'"], step=["Name one of these models"])
def _unknown_model_in_recommend(scene: Scene) -> Script:
    error = yield _recommend(scene, scene.stock.marts, "--model", "x")
    return _recommend(scene, scene.stock.marts, "--model", _after("They have", error.text))


@_case(cause=["do not cover 900000 tokens"], step=["Choose less"])
def _context_beyond_the_grid(scene: Scene) -> Script:
    error = yield _recommend(scene, scene.stock.marts, "--model", "m", "--context", "900000")
    most = _after("go up to", error.text)
    return _recommend(scene, scene.stock.marts, "--model", "m", "--context", most)


@_case(cause=["price", "'cheap'"], step=["--max-price 2.0/h"])
def _price_that_is_not_one(scene: Scene) -> Script:
    error = yield _recommend(scene, scene.stock.marts, "--model", "m", "--max-price", "cheap")
    written = _after("--max-price", error.next_step)
    return _recommend(scene, scene.stock.marts, "--model", "m", "--max-price", written)


@_case(cause=["quality loss", "'3'"], step=["--max-quality-loss 0.03"])
def _loss_that_is_not_a_share(scene: Scene) -> Script:
    options = ("--model", "m", "--max-quality-loss")
    error = yield _recommend(scene, scene.stock.marts, *options, "3")
    written = _after("or `--max-quality-loss", error.next_step)
    return _recommend(scene, scene.stock.marts, *options, written)


def _sql(scene: Scene, query: str) -> Command:
    return scene.command("sql", query, QUANT_ASSETS_HOME=scene.stock.marts)


@_case(cause=["query failed", "deployment_option"], step=["show all tables"])
def _wrong_table_in_sql(scene: Scene) -> Script:
    error = yield _sql(scene, "from marts.deployment_option")
    shown = _sql(scene, error.next_step.split("'")[1]).run()
    known = re.findall(r"\bdeployment_options\b", shown.output)
    return _sql(scene, f"from marts.{known[0]} limit 1") if known else shown


@_case(cause=["was not run", "Only statements that read"], step=["change the files"])
def _writing_sql(scene: Scene) -> Script:
    yield _sql(scene, "drop table marts.deployment_options")
    # The step says that the warehouse follows from files; reading it is what is allowed.
    return _sql(scene, "select count(*) from marts.deployment_options")


@_case(cause=["warehouse", "cannot be read", "damaged"], step=["make demo", "rebuilds"])
def _damaged_warehouse(scene: Scene) -> Script:
    home = scene.folder / "home"
    shutil.copytree(scene.stock.marts, home)
    file = home / "warehouse" / "quant_assets.duckdb"
    file.write_bytes(b"not a database" * 1000)
    yield scene.command("sql", "select 1")
    shutil.copy(scene.stock.marts / "warehouse" / file.name, file)
    return scene.command("sql", "select 1")


# --- The data root, the UI, estimates and intents


@_case(cause=["home"], step=["QUANT_ASSETS_HOME"])
def _data_root_inside_a_file(scene: Scene) -> Script:
    scene.write("file", "not a folder")
    scene.write("in.csv", _LISTING)
    arguments = ("report", "--input", "in.csv")
    yield scene.command(*arguments, QUANT_ASSETS_HOME=scene.folder / "file" / "home")
    return scene.command(*arguments, QUANT_ASSETS_HOME=scene.folder / "home")


@_case(cause=["data root", "question mark"], step=["Set QUANT_ASSETS_HOME"])
def _data_root_with_a_question_mark(scene: Scene) -> Script:
    yield scene.command("report", QUANT_ASSETS_HOME=scene.folder / "what?")
    return scene.command("report", QUANT_ASSETS_HOME=scene.folder / "home")


@_case(cause=["cannot listen on port"], step=["--port"])
def _busy_port(scene: Scene) -> Script:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield scene.command("ui", "--port", str(taken.getsockname()[1]))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    return _served(scene.command("ui", "--port", str(port)), port)


def _served(command: Command, port: int) -> Outcome:
    """Start a server, wait until it accepts connections, and end it."""
    started = time.monotonic()
    answers = False
    with command.start() as process:
        while not answers and process.poll() is None:
            if time.monotonic() - started > _UI_START_LIMIT_S:
                break
            with socket.socket() as probe:
                answers = probe.connect_ex(("127.0.0.1", port)) == 0
            time.sleep(0.2)
        process.terminate()
        output, messages = process.communicate()
    return Outcome(0 if answers else 1, output, messages, time.monotonic() - started)


@_case(cause=["fp8", "V100", "7.0"], step=["Nearest possible alternative"])
def _fp8_on_an_old_gpu(scene: Scene) -> Script:
    error = yield scene.command("intent", "fp8", "--backend", "vllm", "--gpu", "V100")
    method = _after("alternative:", error.next_step)
    return scene.command("intent", method, "--backend", "vllm", "--gpu", "V100")


@_case(cause=["contradicts itself"], step=["Omit --backend-method"])
def _intent_that_contradicts_itself(scene: Scene) -> Script:
    wanted = ("intent", "fp8", "--backend", "vllm", "--gpu", "H100")
    yield scene.command(*wanted, "--backend-method", "awq")
    return scene.command(*wanted)


@_case(cause=["'seven'", "number of parameters"], step=["Write 7B"])
def _parameters_that_are_not_a_number(scene: Scene) -> Script:
    error = yield scene.command("estimate", "--params", "seven")
    return scene.command("estimate", "--params", _after("Write", error.next_step))


@_case(cause=["number of parameters", "between"], step=["Write 7B"])
def _absurd_number_of_parameters(scene: Scene) -> Script:
    error = yield scene.command("estimate", "--params", "9e40B")
    return scene.command("estimate", "--params", _after("Write", error.next_step))


@_case(cause=["no model at", "published shape"], step=["--params 7B"])
def _estimate_of_an_unknown_model(scene: Scene) -> Script:
    error = yield scene.command("estimate", "somebody/model")
    return scene.command("estimate", "--params", _after("--params", error.next_step))


@_case(cause=["No GPU is called", "'RTX 9999'"], step=["Nearest names"])
def _unknown_gpu(scene: Scene) -> Script:
    error = yield scene.command("estimate", "--params", "7B", "--gpu", "RTX 9999")
    name = error.next_step.partition("Nearest names: ")[2].split(",")[0].rstrip(".")
    return scene.command("estimate", "--params", "7B", "--gpu", name)


@_case(cause=["KV cache cannot be of type", "q9_0"], step=["Use one of"])
def _unknown_cache_type(scene: Scene) -> Script:
    error = yield scene.command("estimate", "--params", "7B", "--kv-type", "q9_0")
    kind = _after("Use one of", error.next_step)
    return scene.command("estimate", "--params", "7B", "--kv-type", kind)


@_case(cause=["V cache", "flash attention"], step=["--flash-attention"])
def _quantized_cache_without_flash_attention(scene: Scene) -> Script:
    wanted = ("estimate", "--params", "7B", "--kv-type", "q8_0")
    yield scene.command(*wanted, "--no-flash-attention")
    return scene.command(*wanted, "--flash-attention")


# --- The judge and the criterion


def run_case(case: Case, stock: Stock, folder: Path) -> Result:
    """Provoke the failure in `folder` (created), judge its message, and follow its next step."""
    message = ""
    try:
        script = case.script(Scene(folder, stock))
        failed = next(script).run()
        message = failed.error.text
        cause_problem = _cause_problem(case, failed)
        step_problem = _missing(case.step, failed.error.next_step, "the next step")
        try:
            script.send(failed.error)
        except StopIteration as followed:
            ended = followed.value
            outcome = ended.run() if isinstance(ended, Command) else ended
            if outcome.exit_code and step_problem is None:
                step_problem = f"after following it: {outcome.summary}"
        else:
            raise AssertionError("a script yields once")
    except Exception as error:  # a step that cannot be followed is a failure of the message
        reason = f"{type(error).__name__}: {error}"[:500]
        return Result(case, message, None if message else reason, reason)
    return Result(case, message, cause_problem, step_problem)


def _cause_problem(case: Case, failed: Outcome) -> str | None:
    if failed.exit_code == 0:
        return "the command did not fail"
    if failed.has_traceback:
        return "a traceback was printed"
    if failed.exit_code < 0:
        return f"the command was ended by signal {-failed.exit_code}"
    return _missing(case.cause, failed.error.text, "the message")


def _missing(words: Sequence[str], text: str, place: str) -> str | None:
    absent = [word for word in words if word.lower() not in text.lower()]
    return f"{place} lacks {', '.join(map(repr, absent))}" if absent else None


def measure(folder: Path, *, count: int | None = None, console: Console | None = None) -> Criterion:
    """Run `count` cases (all by default) below `folder` (empty); takes minutes."""
    chosen = CASES[:count]
    return judged(chosen, folder, console=console)


def judged(cases: Sequence[Case], folder: Path, *, console: Console | None = None) -> Criterion:
    """The criterion from running `cases` below `folder`."""
    possible = [case for case in cases if all(map(has_environment, case.needs))]
    stock = Stock(folder / "stock")

    def run(case: Case) -> Result:
        return run_case(case, stock, folder / case.name)

    def show(number: int, result: Result) -> None:
        if console is not None:
            problems = [text for text in (result.cause_problem, result.step_problem) if text]
            console.print(
                f"{number}/{len(possible)} {result.case.name}: {'; '.join(problems) or 'resolved'}",
                markup=False,
                soft_wrap=True,
            )

    results = run_all(run, possible, show)
    return criterion(results, left_out=len(cases) - len(possible))


def criterion(results: Sequence[Result], *, left_out: int = 0) -> Criterion:
    """The criterion from the results of its cases."""
    named = sum(result.cause_problem is None for result in results)
    resolved = [result for result in results if result.step_problem is None]
    both = sum(result.cause_problem is None for result in resolved)
    share = both / len(results) if results else 0.0
    notes = [
        f"{each.case.name}: {each.cause_problem or each.step_problem}; it said: {each.message}"
        for each in results
        if each.cause_problem or each.step_problem
    ]
    if left_out:
        notes.append(f"Left out for want of an environment: {left_out}.")
    return Criterion(
        id="SC-006",
        demand=DEMANDS["SC-006"],
        measured=f"{both} of {len(results)} provoked failures name their cause and were resolved by "
        f"following the next step ({share:.1%}); {named} name the cause, {len(resolved)} were resolved",
        how="The command fails, its message is searched for cause and step, the step is followed, and "
        f"the command that follows must succeed; {AT_A_TIME} cases at a time.",
        met=share >= DEMANDED_SHARE if results else None,
        details=[_row(result) for result in results],
        notes=notes,
    )


def _row(result: Result) -> Row:
    return {
        "failure": result.case.name,
        "names the cause": result.cause_problem is None,
        "resolved": result.step_problem is None,
    }


def main() -> None:
    """Run the cases and print the criterion."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=positive, help="number of cases; all by default")
    parser.add_argument("--only", help="cases whose name contains this text")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    arguments = parser.parse_args()
    chosen = [case for case in CASES if (arguments.only or "") in case.name][: arguments.count]
    with tempfile.TemporaryDirectory(prefix="failures-") as temporary:
        folder = arguments.folder or Path(temporary)
        measured = judged(chosen, folder, console=Console(stderr=True))
    print(measured.measured)
    for note in measured.notes:
        print(note)


if __name__ == "__main__":
    main()
