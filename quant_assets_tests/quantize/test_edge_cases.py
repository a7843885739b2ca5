"""The five edge cases of quantization, as a user meets them at the command line.

Each ends with a complete file, or with a message in three parts and nothing half-made.
"""

import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from quant_assets.models.identity import sha256_of
from quant_assets.quantize.gguf.job import QuantizeGgufResult
from quant_assets.settings import PROJECT_ROOT
from quant_assets_tests.models.tiny_models import tokenizer_model
from quant_assets_tests.process_trees import below, survivors
from quant_assets_tests.quantize.edge_models import write_gguf, write_llama

LIMIT_BYTES = 750_000_000
WAIT_S = 120.0


@dataclass(frozen=True)
class Answer:
    """What a finished command left."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> tuple[str, str, str]:
        """The message: what happened, why, and the next step."""
        assert "Traceback" not in self.stderr
        assert self.stdout == ""
        what, why, next_step = self.stderr[self.stderr.index("error: ") :].splitlines()
        assert why and next_step
        return what.removeprefix("error: "), why, next_step


class Command:
    """`quant-assets quantize` with a data root of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self, *arguments: str | Path, limits: dict[int, int] | None = None
    ) -> "subprocess.Popen[str]":
        """Start the command; `limits` are resource limits that its processes inherit."""

        def limit() -> None:
            for name, value in (limits or {}).items():
                resource.setrlimit(name, (value, value))

        process = subprocess.Popen(
            [
                sys.executable, "-c", "from quant_assets.cli.app import main; main()", "quantize",
                *map(str, arguments),
            ],
            env={
                **os.environ,
                "PYTHONPATH": str(PROJECT_ROOT),
                "QUANT_ASSETS_HOME": str(self.home),
                "HF_HUB_OFFLINE": "1",
                "OPENBLAS_NUM_THREADS": "1",  # its buffers grow with the cores of the machine
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limit,
        )  # fmt: skip
        self.started.append(process)
        return process

    def end(self) -> None:
        """End what a failed test left running or suspended."""
        for process in self.started:
            if process.poll() is None:
                for each in (*below(process.pid), process):
                    each.kill()
                process.communicate()

    def __call__(self, *arguments: str | Path, limits: dict[int, int] | None = None) -> Answer:
        process = self.start(*arguments, limits=limits)
        stdout, stderr = process.communicate(timeout=WAIT_S)
        return Answer(process.returncode, stdout, stderr)


@pytest.fixture(scope="module")
def tokenizer() -> bytes:
    return tokenizer_model()


@pytest.fixture(scope="module")
def model(tokenizer: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 M parameters in ten layers and three shards."""
    folder = tmp_path_factory.mktemp("model") / "model"
    return write_llama(folder, tokenizer, hidden=512, intermediate=1024, layers=10, shards=3)


@pytest.fixture(scope="module")
def whole_sha256(model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the file that an undisturbed run makes."""
    folder = tmp_path_factory.mktemp("whole")
    made = Command(folder / "home")(model, "--output-dir", folder, "--format", "json")
    assert made.exit_code == 0, made.stderr
    return QuantizeGgufResult.model_validate_json(made.stdout).sha256


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    made = Command(tmp_path / "home")
    yield made
    made.end()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The output folder: an existing, empty one."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def finished_layers(output: Path) -> int:
    """Layers that the journal of an unfinished file in `output` records."""
    journals = list(output.glob("*.part.journal"))
    return len(journals[0].read_bytes().splitlines()) - 1 if journals else 0


def wait_for_layers(process: "subprocess.Popen[str]", output: Path, layers: int) -> None:
    until = time.monotonic() + WAIT_S
    while finished_layers(output) < layers:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.001)


def assert_finishes_whole(command: Command, model: Path, output: Path, expected: str) -> None:
    """The same command resumes, makes the same bytes, and leaves its file and record alone."""
    again = command(model, "--output-dir", output, "--threads", "1", "--format", "json")
    assert again.exit_code == 0, again.stderr
    result = QuantizeGgufResult.model_validate_json(again.stdout)
    assert result.resumed_from_layer and result.validated
    assert result.sha256 == sha256_of(result.output) == expected
    assert files_of(output) == {result.output.name, f"{result.output.name}.job.json"}


@pytest.fixture
def large_model(tokenizer: bytes, tmp_path: Path) -> Iterator[Path]:
    """1 GB of weights."""
    folder = tmp_path / "large"
    yield write_llama(folder, tokenizer, hidden=2048, intermediate=5632, layers=11)
    shutil.rmtree(folder)


def test_source_larger_than_memory(large_model: Path, command: Command, output: Path) -> None:
    """No process of the run may hold as many bytes as the source has."""
    source_bytes = (large_model / "model.safetensors").stat().st_size
    assert source_bytes > 1.25 * LIMIT_BYTES
    limits = {resource.RLIMIT_DATA: LIMIT_BYTES}
    whole = subprocess.run(
        [sys.executable, "-c", f"bytearray({source_bytes})"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES)),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert "MemoryError" in whole.stderr, "the limit does not bite"

    arguments = (large_model, "--level", "Q8_0", "--output-dir", output)
    refused = command(*arguments, "--threads", "64", limits=limits)
    what, why, next_step = refused.error
    assert refused.exit_code == 4
    assert "too little memory" in what and "needs about" in why and "--threads" in next_step
    assert files_of(output) == set()

    made = command(*arguments, "--threads", "2", "--format", "json", limits=limits)
    assert made.exit_code == 0, made.stderr
    result = QuantizeGgufResult.model_validate_json(made.stdout)
    assert result.validated and result.output.stat().st_size == result.bytes
    assert files_of(output) == {"large-Q8_0.gguf", "large-Q8_0.gguf.job.json"}
    result.output.unlink()


def test_unsupported_architecture(
    model: Path, command: Command, output: Path, tmp_path: Path
) -> None:
    odd = Path(shutil.copytree(model, tmp_path / "odd"))
    config = (odd / "config.json").read_text()
    (odd / "config.json").write_text(config.replace("LlamaForCausalLM", "LlamaForCausalLMX"))
    odd_gguf = write_gguf(tmp_path / "odd.gguf", "llamax")
    for source, name, named_in_why in (
        (odd, "LlamaForCausalLMX", "LlamaForCausalLM"),
        (odd_gguf, "llamax", "unknown model architecture"),
    ):
        refused = command(source, "--output-dir", output)
        what, why, next_step = refused.error
        assert refused.exit_code == 3
        assert name in what and "not supported" in what and named_in_why in why
        assert "supported architecture" in next_step
        assert files_of(output) == set()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MB; the quantized model takes 15."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this user may not mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_disk_full_during_quantization(
    small_disk: Path, model: Path, command: Command, whole_sha256: str
) -> None:
    """Another program takes the rest of the disk after the first layer.

    `workers/gguf/test_unwritable_places.py` has the counterpart for users who may not mount.
    """
    output, filler = small_disk / "out", small_disk / "filler"
    output.mkdir()
    running = command.start(model, "--output-dir", output, "--threads", "1")
    wait_for_layers(running, output, 1)
    workers = below(running.pid)
    for worker in workers:
        worker.suspend()
    with suppress(OSError), filler.open("wb", buffering=0) as stream:
        while stream.write(bytes(1 << 16)):
            pass
    for worker in reversed(workers):
        worker.resume()
    stdout, stderr = running.communicate(timeout=WAIT_S)
    full = Answer(running.returncode, stdout, stderr)
    what, why, next_step = full.error
    assert full.exit_code == 4
    assert "disk filled up" in what and "No space left" in why and "Free some space" in next_step
    # What is left is the resumable part alone; nothing has the name of a finished file.
    assert files_of(output) == {"model-Q4_K_M.gguf.part", "model-Q4_K_M.gguf.part.journal"}
    filler.unlink()
    assert_finishes_whole(command, model, output, whole_sha256)


def test_interruption(model: Path, command: Command, output: Path, whole_sha256: str) -> None:
    """SIGKILL at random moments, to the command and then to its worker, which is reported."""
    chance = random.Random(3)
    arguments = (model, "--output-dir", output, "--threads", "1")
    for victim in ("command", "worker"):
        running = command.start(*arguments)
        wait_for_layers(running, output, finished_layers(output) + chance.randint(1, 3))
        time.sleep(chance.random() * 0.05)
        family = below(running.pid)
        if victim == "command":
            running.kill()
        else:
            family[-1].kill()
        stdout, stderr = running.communicate(timeout=WAIT_S)
        assert survivors(family) == []
        assert files_of(output) == {"model-Q4_K_M.gguf.part", "model-Q4_K_M.gguf.part.journal"}
    died = Answer(running.returncode, stdout, stderr)
    what, why, next_step = died.error
    assert died.exit_code == 5
    assert (
        "SIGKILL" in what and "memory runs out" in why and "run the same command again" in next_step
    )
    assert_finishes_whole(command, model, output, whole_sha256)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)


def _index_names_another_file(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    text = index.read_text()
    index.write_text(text.replace("model-00002-of-00003", "model-00009-of-00009", 1))


SHARD = "model-00002-of-00003.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated shard": (lambda folder: _truncate(folder / SHARD), "is cut off"),
    "flipped header": (lambda folder: _flip(folder / SHARD, 12), SHARD),
    "missing shard": (lambda folder: (folder / SHARD).unlink(), "missing"),
    "index of a missing file": (_index_names_another_file, "missing"),
    "truncated GGUF": (lambda folder: _truncate(folder / "m.gguf"), "cut"),
    "flipped GGUF header": (lambda folder: _flip(folder / "m.gguf", 23), "m.gguf"),
    "GGUF cut in its header": (lambda folder: os.truncate(folder / "m.gguf", 200), "m.gguf"),
    "one part of a GGUF": (lambda folder: write_gguf(folder / "m.gguf", "llama", parts=3), "part"),
}  # fmt: skip


@pytest.fixture(scope="module")
def answers(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Answer, set[str]]]:
    """The answer to each damage and the files in its output folder; two commands run at a time."""

    def answer(name: str) -> tuple[Answer, set[str]]:
        folder = tmp_path_factory.mktemp("damaged")
        damage, _ = DAMAGES[name]
        if "GGUF" in name:
            source = write_gguf(folder / "m.gguf", "llama")
            damage(folder)
        else:
            source = folder / "model"
            shutil.copytree(model, source)
            damage(source)
        output = folder / "out"
        output.mkdir()
        return Command(folder / "home")(source, "--output-dir", output), files_of(output)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(DAMAGES, pool.map(answer, DAMAGES), strict=True))


@pytest.mark.parametrize("damage", DAMAGES)
def test_corrupted_or_incomplete_files(
    damage: str, answers: dict[str, tuple[Answer, set[str]]]
) -> None:
    answer, left = answers[damage]
    what, why, next_step = answer.error
    assert answer.exit_code == 3
    assert DAMAGES[damage][1] in what
    assert why.endswith(".") and next_step.endswith(".")
    assert left == set()
