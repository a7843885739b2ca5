"""Checkpoints after every layer, and the way back to the last whole one.

The work folder holds `job.json` (what the work is for), one safetensors file a finished layer, the
hidden states that the next layer takes, and `journal.jsonl`, one line a finished layer with the
digests of both. A line is appended after its files are durable, so whatever kills the process, the
last whole line names a state to go on from.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError
from safetensors.torch import load_file, save_file

from quant_assets.atomic_files import atomic_path, write_text_atomically
from quant_assets.errors import ResourceError
from quant_assets.models.identity import sha256_of

_JOB = "job.json"
_JOURNAL = "journal.jsonl"


class _Line(BaseModel):
    layer: int
    layer_sha256: str
    states_sha256: str


class Checkpoints:
    """The work folder of one job, held by one process alone."""

    def __init__(self, folder: Path, identity: Mapping[str, str], *, resume: bool) -> None:
        """Open the work folder; `messages` says why earlier work, if any, is not gone on with.

        Raises `ResourceError` when another process works there.
        """
        self.folder = folder
        self.messages: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder.with_name(f"{folder.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ResourceError(
                f"Another run is working in {folder}.",
                "Two runs must not write the same artifact.",
                "Wait for it to end, or choose another output folder.",
            ) from error
        self.done = self._whole_layers(dict(identity), resume=resume)
        if self.done == 0:
            self._start_over(dict(identity))
        else:
            self._keep_journal_lines(self.done)

    def close(self) -> None:
        """Let others work in the folder."""
        self._lock.release()

    def layer_file(self, layer: int) -> Path:
        """The finished tensors of a layer."""
        return self.folder / f"layer-{layer:05d}.safetensors"

    def _states_file(self, layer: int) -> Path:
        return self.folder / f"states-{layer:05d}.safetensors"

    def states(self) -> torch.Tensor:
        """The hidden states that the first layer still to do takes."""
        return load_file(self._states_file(self.done))["states"]

    def save(self, layer: int, tensors: dict[str, torch.Tensor], states: torch.Tensor) -> None:
        """Make a finished layer and the next layer's inputs durable."""
        line = _Line(
            layer=layer,
            layer_sha256=_save(self.layer_file(layer), tensors),
            states_sha256=_save(self._states_file(layer + 1), {"states": states}),
        )
        with (self.folder / _JOURNAL).open("a", encoding="utf-8") as stream:
            stream.write(line.model_dump_json() + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.done = layer + 1
        self._states_file(layer).unlink(missing_ok=True)

    def _whole_layers(self, identity: dict[str, str], *, resume: bool) -> int:
        try:
            known: dict[str, str] = json.loads((self.folder / _JOB).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0
        if not resume:
            self.messages.append("The work of an earlier run is discarded, as asked.")
            return 0
        changed = [
            f"{key.replace('_', ' ')} was {known.get(key)}, is {identity.get(key)}"
            for key in sorted(known.keys() | identity.keys())
            if known.get(key) != identity.get(key)
        ]
        if changed:
            self.messages.append(f"Starting over: {'; '.join(changed)}.")
            return 0
        lines = self._lines()
        for line in lines:
            if not _matches(self.layer_file(line.layer), line.layer_sha256):
                self.messages.append(f"Starting over: layer {line.layer} is damaged.")
                return 0
        if lines and not _matches(self._states_file(len(lines)), lines[-1].states_sha256):
            self.messages.append("Starting over: the inputs of the next layer are damaged.")
            return 0
        return len(lines)

    def _lines(self) -> list[_Line]:
        """The whole lines from the first layer on."""
        try:
            text = (self.folder / _JOURNAL).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return []
        lines: list[_Line] = []
        for raw in text.splitlines():
            try:
                line = _Line.model_validate_json(raw)
            except ValidationError:
                break
            if line.layer != len(lines):
                break
            lines.append(line)
        return lines

    def _keep_journal_lines(self, count: int) -> None:
        text = "".join(line.model_dump_json() + "\n" for line in self._lines()[:count])
        write_text_atomically(self.folder / _JOURNAL, text)

    def _start_over(self, identity: dict[str, str]) -> None:
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        write_text_atomically(self.folder / _JOB, json.dumps(identity, indent=2, sort_keys=True))


def _save(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        return sha256_of(temporary)


def _matches(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256
