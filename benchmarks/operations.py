"""SC-003: the share of operations that end in a valid result without a user's intervention.

200 commands over models, formats, levels and faults, each one call of `quant-assets`. A fault is
something that the command has to overcome by itself: remains of an interrupted run, a damaged cache,
no network. Exit codes are not believed: what was written is read by the formats' own libraries,
compared with its source in number of weights and with its level in size, and loaded by
`quant-assets validate`. Operations that need an environment which is not installed are left out, and
counted.
"""

import argparse
import fcntl
import json
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice, product
from pathlib import Path
from threading import Timer
from typing import Any, Final, Literal, NamedTuple

import gguf
import numpy as np
from arguments import positive
from command_runs import AT_A_TIME, Command, Outcome, run_all
from criterion import DEMANDS, Criterion, Row
from rich.console import Console
from safetensors import safe_open
from stock import (
    ARCHITECTURES,
    CALIBRATION_OPTIONS,
    PACKAGED,
    TRAINED,
    Stock,
    has_environment,
    packaged_model,
)

from quant_assets.capacity.quantization_types import quantization_type
from quant_assets.formats.artifact_formats import GroupwiseFormat
from quant_assets.formats.gguf_levels import GGUF_LEVELS, parse_level

OPERATIONS: Final = 200
DEMANDED_SHARE: Final = 0.95
SPECIFIED_LEVELS: Final = (
    "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M", "Q5_0", "Q5_1",
    "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0",
)  # fmt: skip
"""The GGUF levels of FR-002."""
_SEED = 16
_ALIGNMENT = 32
_SIZE_TOLERANCE = 0.25
"""Tiny models have another share of embeddings than the 8B model of the level's exact bits."""
_LOCK_HELD_S = 4.0

Kind = Literal["gguf", "imatrix", "gptq", "awq", "convert", "validate", "info", "estimate"]
Options = tuple[str, ...]


@dataclass(frozen=True)
class Operation:
    """One command: its kind, its source (see `_source`), its options, and the fault it meets."""

    kind: Kind
    source: str
    options: Options = ()
    fault: str = "none"

    @property
    def name(self) -> str:
        """The operation in words."""
        return " ".join((self.kind, self.source, *self.options))

    @property
    def environments(self) -> set[GroupwiseFormat]:
        """The worker environments that it needs."""
        words = {self.kind, self.source.partition(":")[0], *self.options}
        methods: tuple[GroupwiseFormat, ...] = ("gptq", "awq")
        return {method for method in methods if method in words}

    @property
    def is_possible(self) -> bool:
        """Whether this machine has what it needs."""
        if self.source == PACKAGED and packaged_model() is None:
            return False
        return all(map(has_environment, self.environments))


class Result(NamedTuple):
    """An operation and what it came to; `problem` is None when its result is valid."""

    operation: Operation
    seconds: float
    problem: str | None


# --- The faults: each changes the command, or what it finds


class _Fault(NamedTuple):
    applied: Callable[[Command, Path], Command]
    writes_gguf_only: bool = False


def _with_variables(**variables: str | None) -> Callable[[Command, Path], Command]:
    def applied(command: Command, output: Path) -> Command:
        del output
        return replace(command, variables={**command.variables, **variables})

    return applied


def _with_prelude(prelude: str) -> Callable[[Command, Path], Command]:
    def applied(command: Command, output: Path) -> Command:
        del output
        return replace(command, prelude=prelude)

    return applied


def _damaged_hash_cache(command: Command, output: Path) -> Command:
    del output
    cache = command.folder / "home" / "cache"
    cache.mkdir(parents=True)
    (cache / "file_hashes.json").write_bytes(b'{"half an entry": "')
    return command


def _unwritable_cache(command: Command, output: Path) -> Command:
    del output
    (command.folder / "home").mkdir()
    (command.folder / "home" / "cache").write_text("a file where a folder should be")
    return command


def _unwritable_home(command: Command, output: Path) -> Command:
    del output
    (command.folder / "home").write_text("a file where a folder should be")
    return command


def _held_lock(command: Command, output: Path) -> Command:
    """Another process holds the lock of the hash cache for some seconds."""
    del output
    lock = command.folder / "home" / "cache" / "file_hashes.json.lock"
    lock.parent.mkdir(parents=True)
    stream = lock.open("w")
    fcntl.flock(stream, fcntl.LOCK_EX)
    Timer(_LOCK_HELD_S, stream.close).start()
    return command


def _interrupted(command: Command, output: Path) -> Command:
    """An earlier run of the same command ended halfway: a limit of file sizes stands for a kill."""
    limit = 1_500_000
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    replace(command, prelude=limited).run()
    del output
    return command


def _damaged_journal(command: Command, output: Path) -> Command:
    _interrupted(command, output)
    for journal in output.parent.glob("*.journal"):
        journal.write_bytes(journal.read_bytes()[:-40] + b"\xff\x00 garbage")
    return command


def _foreign_remains(command: Command, output: Path) -> Command:
    """A part file and a journal that no run of this project wrote."""
    noise = random.Random(output.name).randbytes(300_000)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_name(f"{output.name}.part").write_bytes(noise)
    output.with_name(f"{output.name}.part.journal").write_bytes(noise[:2000])
    output.with_name(f".{output.name}.x1y2.tmp").write_bytes(noise[:100])
    return command


def _stale_lock(command: Command, output: Path) -> Command:
    """The lock files that killed runs leave behind, which nobody holds."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_name(f"{output.name}.part").touch()
    output.with_name(f".{output.name}.lock").touch()
    cache = command.folder / "home" / "cache"
    cache.mkdir(parents=True)
    (cache / "file_hashes.json.lock").touch()
    return command


def _finished_before(command: Command, output: Path) -> Command:
    del output
    command.run()
    return command


FAULTS: Final[Mapping[str, _Fault]] = {
    "none": _Fault(_with_variables()),
    "no network": _Fault(
        _with_variables(
            HF_HUB_OFFLINE=None,
            HTTP_PROXY="http://127.0.0.1:9",
            HTTPS_PROXY="http://127.0.0.1:9",
            HF_HUB_ETAG_TIMEOUT="1",
        )
    ),
    "HOME unset": _Fault(_with_variables(HOME=None)),
    "HOME does not exist": _Fault(_with_variables(HOME="/nonexistent")),
    "no terminal, locale C": _Fault(
        _with_variables(PYTHONUTF8=None, LC_ALL="C", TERM="dumb", COLUMNS=None)
    ),
    "128 open files": _Fault(
        _with_prelude(
            "import resource\n"
            "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))"
        )
    ),
    "private umask": _Fault(_with_prelude("import os; os.umask(0o077)")),
    "wrong thread count": _Fault(_with_variables(OMP_NUM_THREADS="0", MKL_NUM_THREADS="many")),
    "damaged hash cache": _Fault(_damaged_hash_cache),
    "unwritable cache": _Fault(_unwritable_cache),
    "unwritable data root": _Fault(_unwritable_home),
    "lock held for seconds": _Fault(_held_lock),
    "finished before": _Fault(_finished_before),
    "interrupted before": _Fault(_interrupted, writes_gguf_only=True),
    "damaged journal": _Fault(_damaged_journal, writes_gguf_only=True),
    "foreign remains": _Fault(_foreign_remains, writes_gguf_only=True),
    "stale locks": _Fault(_stale_lock, writes_gguf_only=True),
}
_ANYWHERE: Final = tuple(name for name, fault in FAULTS.items() if not fault.writes_gguf_only)
_READING: Final = (
    "none", "no network", "HOME unset", "no terminal, locale C", "128 open files",
    "damaged hash cache", "unwritable cache", "unwritable data root",
)  # fmt: skip
_QUANTIZING: Final = ("none", *FAULTS, "none")


# --- The matrix


def operations(count: int = OPERATIONS) -> list[Operation]:
    """The first `count` operations of the matrix, in an order that mixes kinds; always the same."""
    listed = _matrix()
    random.Random(_SEED).shuffle(listed)
    return listed[:count]


def _matrix() -> list[Operation]:
    quantizing, anywhere, reading = cycle(_QUANTIZING), cycle(_ANYWHERE), cycle(_READING)
    levels = [level.name for level in GGUF_LEVELS]
    weighted = [level.name for level in GGUF_LEVELS if level.needs_imatrix]
    others = [name for name in levels if name not in (*SPECIFIED_LEVELS, *weighted)]
    folders = cycle(f"hf:{name}" for name in ARCHITECTURES)
    # Four architectures per level of the specification, another one left out each time.
    listed = [
        Operation("gguf", source, ("--level", level), next(quantizing))
        for level in SPECIFIED_LEVELS
        for source in islice(folders, 4)
    ]
    for names, sources in (
        (SPECIFIED_LEVELS, ("gguf:llama", "gguf:qwen3")),
        (others, ("gguf:gemma3", "gguf:mixtral")),
        (weighted, ("gguf:llama", "gguf:qwen3")),
    ):
        listed += [
            Operation("gguf", source, ("--level", level), next(quantizing))
            for level, source in product(names, sources)
        ]
    listed += [Operation("imatrix", f"gguf:{name}", (), next(anywhere)) for name in ARCHITECTURES]
    listed += [
        Operation("gptq", f"hf:{TRAINED}", ("--bits", bits, "--group-size", size), next(anywhere))
        for bits, size in (
            ("2", "32"), ("3", "32"), ("3", "128"), ("4", "32"), ("4", "64"), ("4", "128"),
            ("4", "-1"), ("8", "64"), ("8", "-1"),
        )
    ]  # fmt: skip
    listed += [
        Operation("awq", f"hf:{TRAINED}", ("--group-size", size), next(anywhere))
        for size in ("32", "64", "128")
    ]
    listed += [
        Operation("convert", source, ("--to", *target), next(anywhere))
        for source, *target in (
            ("gptq", "hf"), ("awq", "hf"), (f"gguf:{TRAINED}", "hf"), (f"gguf:{TRAINED}:Q8_0", "hf"),
            ("gptq", "gguf", "--level", "Q8_0"), ("awq", "gguf", "--level", "Q8_0"),
            ("gptq", "gguf", "--level", "Q4_0"), ("hf:qwen3", "gguf", "--level", "Q5_1"),
            ("hf:llama", "gguf", "--level", "F16"), (f"gguf:{TRAINED}", "gguf", "--level", "Q4_1"),
            (f"gguf:{TRAINED}", "gptq", "--group-size", "32"),
            (f"gguf:{TRAINED}", "awq", "--group-size", "32"),
            ("awq", "gptq", "--group-size", "64"), (PACKAGED, "hf"),
        )
    ]  # fmt: skip
    readable = (
        *(f"gguf:{name}" for name in ARCHITECTURES), f"gguf:{TRAINED}:Q8_0", "gptq", "awq", PACKAGED,
    )  # fmt: skip
    listed += [Operation("validate", source, (), next(reading)) for source in readable]
    listed += [Operation("info", source, (), next(reading)) for source in readable]
    listed += [Operation("info", f"hf:{name}", (), next(reading)) for name in ARCHITECTURES]
    sizes = ("500M", "1.5B", "7B", "13B", "70B")
    listed += [
        Operation("estimate", f"params:{size}", ("--level", level), next(reading))
        for size, level in zip(cycle(sizes), (*others, "gptq-4bit-g128"), strict=False)
    ]
    rest = cycle(product((f"gguf:{name}" for name in ARCHITECTURES), ("Q4_K_M", "Q8_0", "Q6_K")))
    listed += [
        Operation("estimate", source, ("--level", level), next(reading))
        for source, level in islice(rest, max(0, OPERATIONS - len(listed)))
    ]
    return listed[:OPERATIONS]


# --- Running one


def run_operation(operation: Operation, stock: Stock, folder: Path) -> Result:
    """Run the operation in `folder` (created; its name has a space) and judge what it left."""
    folder.mkdir(parents=True)
    output = folder / "the results"
    try:
        command = Command(_arguments(operation, stock, output), folder)
        with ExitStack() as ended:
            ended.enter_context(_freed(folder))
            command = FAULTS[operation.fault].applied(
                command, output / _file_name(operation, stock)
            )
            outcome = command.run()
        if outcome.exit_code:
            problem: str | None = f"exit code {outcome.exit_code}: {outcome.summary}"
        elif outcome.has_traceback:
            problem = "a traceback was printed"
        else:
            problem = _problem(operation, stock, output, outcome)
    except Exception as error:  # a result that cannot even be read is a failure like any other
        return Result(operation, 0.0, f"{type(error).__name__}: {error}"[:500])
    return Result(operation, outcome.seconds, problem)


@contextmanager
def _freed(folder: Path) -> Iterator[None]:
    """Afterwards the data root is usable again, for the judge."""
    yield
    home = folder / "home"
    for path in (home, home / "cache"):
        if path.is_file():
            path.unlink()


def _source(operation: Operation, stock: Stock) -> str:
    form, _, name = operation.source.partition(":")
    if form == "hf":
        return str(stock.model(name))
    if form == "gguf":
        model, _, level = name.partition(":")
        return str(stock.gguf(model, level or "F16"))
    if form == "gptq" or form == "awq":
        return str(stock.checkpoint("gptq" if form == "gptq" else "awq"))
    return str(packaged_model())


def _arguments(operation: Operation, stock: Stock, output: Path) -> tuple[str | Path, ...]:
    kind, options = operation.kind, operation.options
    if kind == "estimate" and operation.source.startswith("params:"):
        params = operation.source.removeprefix("params:")
        return ("estimate", "--params", params, *options, "--format", "json")
    source = _source(operation, stock)
    if kind in ("info", "estimate"):
        return (kind, source, *options, "--format", "json")
    if kind == "validate":
        return (kind, source, "--text", stock.text)
    to_folder = ("--output-dir", output)
    if kind == "imatrix":
        # Without --text: the default text, which is found offline as well.
        return (kind, source, "--chunks", "4", *to_folder)
    calibration = ("--calibration", stock.text, *CALIBRATION_OPTIONS, "--text", stock.text)
    if kind == "convert":
        extra = calibration if options[1] in ("gptq", "awq") else ()
        return (kind, source, *options, *extra, "--yes", *to_folder)
    if kind in ("gptq", "awq"):
        return ("quantize", source, "--to", kind, *options, *calibration, *to_folder)
    imatrix: tuple[str | Path, ...] = ()
    if parse_level(options[-1]).needs_imatrix:
        imatrix = ("--imatrix", stock.imatrix(Path(operation.source.partition(":")[2]).name))
    return ("quantize", source, *options, *imatrix, *to_folder)


def _file_name(operation: Operation, stock: Stock) -> str:
    """The name of the GGUF file that the operation makes; any name for the others."""
    source = Path(_source(operation, stock)) if operation.kind != "estimate" else Path("none")
    stem = source.stem if source.suffix == ".gguf" else source.name
    return f"{stem}-{operation.options[-1]}.gguf" if operation.options else f"{stem}.gguf"


# --- The judge


def _problem(operation: Operation, stock: Stock, output: Path, outcome: Outcome) -> str | None:
    """What is wrong with the result; None if nothing is."""
    kind = operation.kind
    if kind == "validate":
        return None if "loads and generates" in outcome.output else "it reports no generated text"
    if kind == "info":
        return _problem_of_info(json.loads(outcome.output), _source(operation, stock))
    if kind == "estimate":
        return _problem_of_estimate(json.loads(outcome.output))
    if kind == "imatrix":
        (file,) = output.glob("*.imatrix.gguf")
        return problem_of_imatrix(file)
    target = operation.options[1] if kind == "convert" else kind
    weights = count_weights(_source(operation, stock))
    if target == "gguf":
        (file,) = output.glob("*.gguf")
        return problem_of_gguf(file, weights, operation.options[-1]) or _refusal(file, output)
    (folder,) = (path.parent for path in output.glob("*/config.json") if path.parent.name[0] != ".") \
        if target == "hf" else _packed_folders(output)  # fmt: skip
    if target == "hf":
        return problem_of_plain_folder(folder, weights)
    bits = float(operation.options[1]) if kind == "gptq" else 4.0
    return problem_of_packed_folder(folder, bits) or _refusal(
        folder, output, "--text", str(stock.text)
    )


def _packed_folders(output: Path) -> list[Path]:
    return [
        path.parent
        for path in output.glob("*/config.json")
        if "quantization_config" in json.loads(path.read_text(encoding="utf-8"))
    ]


def _refusal(result: Path, output: Path, *options: str) -> str | None:
    """What `quant-assets validate` has against a result."""
    judged = Command(("validate", result, *options), output.parent).run()
    return f"validate: {judged.summary}" if judged.exit_code else None


def count_weights(source: str) -> int:
    """The number of weights in a Hugging Face folder or a GGUF file; 0 where it is not known."""
    path = Path(source)
    if path.is_file():
        return sum(int(np.prod(tensor.shape)) for tensor in gguf.GGUFReader(path).tensors)
    names: dict[str, int] = {}
    for file in path.glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118, the file is not a mapping
                names[name] = math.prod(tensors.get_slice(name).get_shape())
    packed = any(name.endswith(".qweight") for name in names)
    return 0 if packed else sum(names.values())


def problem_of_gguf(file: Path, weights: int, level: str) -> str | None:
    """What is wrong with a GGUF file made from `weights` weights at `level` (0: not known)."""
    tensors = gguf.GGUFReader(file).tensors
    made = sum(int(np.prod(tensor.shape)) for tensor in tensors)
    if weights and made != weights:
        return f"it has {made} weights, its source {weights}"
    end = max(tensor.data_offset + tensor.n_bytes for tensor in tensors)
    if not 0 <= file.stat().st_size - end < _ALIGNMENT:
        return f"it has {file.stat().st_size} bytes, its tensors end at {end}"
    bits = 8 * sum(int(tensor.n_bytes) for tensor in tensors) / made
    expected = quantization_type(level).exact_bits_per_weight
    # Rows that no block of the level divides, and the few layers of tiny models, take more bits.
    if not expected * (1 - _SIZE_TOLERANCE) < bits < max(expected * 2, expected + 1.5):
        return f"it has {bits:.2f} bits per weight; {level} has about {expected:.2f}"
    return None


def problem_of_imatrix(file: Path) -> str | None:
    """What is wrong with an importance matrix."""
    sums = [each for each in gguf.GGUFReader(file).tensors if each.name.endswith(".in_sum2")]
    if not sums:
        return "it has no sums of squared activations"
    for tensor in sums:
        if not np.isfinite(tensor.data).all() or (tensor.data < 0).any():
            return f"{tensor.name} has impossible values"
    return None if any(tensor.data.any() for tensor in sums) else "all of its sums are zero"


def problem_of_plain_folder(folder: Path, weights: int) -> str | None:
    """What is wrong with a folder of plain weights made from `weights` weights (0: not known)."""
    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        return "its config.json still declares a quantization"
    made = count_weights(str(folder))
    if not made or (weights and made != weights):
        return f"it has {made} weights, its source {weights}"
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118, the file is not a mapping
                if not np.isfinite(tensors.get_tensor(name)).all():
                    return f"{name} has values that are not finite"
    return None


def problem_of_packed_folder(folder: Path, bits: float) -> str | None:
    """What is wrong with a GPTQ or AWQ folder of `bits` bits."""
    packed = packed_weights = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118, the file is not a mapping
                if name.endswith(".qweight"):
                    packed += 1
                    shape = tensors.get_slice(name).get_shape()
                    packed_weights += math.prod(shape) * 32
    if not packed:
        return "it has no packed matrices"
    declared = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if declared["quantization_config"]["bits"] != bits:
        return f"it declares {declared['quantization_config']['bits']} bits instead of {bits}"
    return None if packed_weights % bits == 0 else "its packed matrices are not whole"


def _problem_of_info(facts: Mapping[str, Any], source: str) -> str | None:
    weights = count_weights(source)
    if weights and facts["parameters"] != weights:
        return f"it reports {facts['parameters']} parameters, the files have {weights}"
    return None if 1 < facts["bits_per_weight"] <= 32 else "its bits per weight are impossible"


def _problem_of_estimate(answer: Mapping[str, Any]) -> str | None:
    parts = answer["weights_bytes"] + answer["kv_cache_bytes"] + answer["compute_bytes"]
    if answer.get("total_bytes", parts) != parts or answer["weights_bytes"] <= 0:
        return "its parts do not add up"
    return None if 1 < answer["bits_per_weight"] <= 32.5 else "its bits per weight are impossible"


# --- The criterion


def measure(folder: Path, *, count: int = OPERATIONS, console: Console | None = None) -> Criterion:
    """Run the first `count` operations below `folder` (empty) and judge each; takes minutes."""
    return judged(operations(count), folder, console=console)


def judged(
    chosen: Sequence[Operation], folder: Path, *, console: Console | None = None
) -> Criterion:
    """The criterion from running the operations `chosen` below `folder` (empty)."""
    possible = [each for each in chosen if each.is_possible]
    stock = Stock(folder / "stock")
    numbered = list(enumerate(possible, 1))

    def run(item: tuple[int, Operation]) -> Result:
        number, operation = item
        return run_operation(operation, stock, folder / f"operation {number}")

    def show(number: int, result: Result) -> None:
        if console is not None:
            verdict = "valid" if result.problem is None else f"FAILED: {result.problem}"
            console.print(
                f"{number}/{len(possible)} {result.operation.name} [{result.operation.fault}] "
                f"{result.seconds:.1f} s: {verdict}",
                markup=False,
                soft_wrap=True,
            )

    return criterion(run_all(run, numbered, show), left_out=len(chosen) - len(possible))


def criterion(results: Sequence[Result], *, left_out: int = 0) -> Criterion:
    """The criterion from the results of its operations."""
    failed = [result for result in results if result.problem is not None]
    notes = [f"{each.operation.name} [{each.operation.fault}]: {each.problem}" for each in failed]
    if left_out:
        notes.append(f"Left out for want of an environment: {left_out}.")
    valid = len(results) - len(failed)
    share = valid / len(results) if results else 0.0
    return Criterion(
        id="SC-003",
        demand=DEMANDS["SC-003"],
        measured=f"{valid} of {len(results)} operations ended in a valid result ({share:.1%})",
        how="One command each, over models, formats, levels and faults, "
        f"{AT_A_TIME} at a time; results are read, compared with their source and loaded.",
        met=share >= DEMANDED_SHARE if results else None,
        details=_rows(results),
        notes=notes,
    )


def _rows(results: Sequence[Result]) -> list[Row]:
    rows: list[Row] = []
    for title, names in (
        ("kind", [result.operation.kind for result in results]),
        ("fault", [result.operation.fault for result in results]),
    ):
        for name in dict.fromkeys(names):
            of_name = [result for result, own in zip(results, names, strict=True) if own == name]
            rows.append(
                {
                    "by": title,
                    "value": str(name),
                    "operations": len(of_name),
                    "valid": sum(result.problem is None for result in of_name),
                    "median s": float(np.median([result.seconds for result in of_name])),
                }
            )
    return rows


def main() -> None:
    """Run the matrix and print the criterion."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=positive, default=OPERATIONS, help="number of operations")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="operations-") as temporary:
        measured = measure(
            arguments.folder or Path(temporary), count=arguments.count, console=console
        )
    print(measured.measured)
    for note in measured.notes:
        print(note)


if __name__ == "__main__":
    main()
