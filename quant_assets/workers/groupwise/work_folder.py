"""The work folder of a GPTQ or AWQ job: saves every finished layer and resumes after the last one.

It holds `job.json` (the job's identity), one safetensors file per finished layer, the hidden states
that the next layer takes, and `journal.jsonl`, one line per finished layer with the digests of
both. A line is appended once its files are durable, so the last complete line always names a state
that a killed run can resume from.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

from quant_assets.artifacts.output_record import differences
from quant_assets.atomic_files import atomic_path, write_text_atomically
from quant_assets.errors import ResourceError
from quant_assets.host.own_files import open_own_file, own_folder, read_own_file
from quant_assets.models.identity import sha256_of
from quant_assets.quantize.groupwise.job import JOURNAL_NAME

_JOB = "job.json"
# 200 bytes per line; no model has 100,000 layers.
_MAX_BYTES = 20_000_000
_IDENTITY: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str], config=ConfigDict(strict=True))


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    layer: int
    layer_sha256: str
    states_sha256: str


class WorkFolder:
    """The work folder of one job, locked by one process."""

    def __init__(self, folder: Path, identity: Mapping[str, str], *, resume: bool) -> None:
        """Open the work folder; `messages` says why an earlier run, if any, is not resumed.

        Raises `ResourceError` if another process holds the folder.
        """
        self.folder = folder
        self.messages: list[str] = []
        own_folder(folder)
        self._lock = FileLock(folder.with_name(f"{folder.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ResourceError(
                f"Another run is working in {folder}.",
                "Two runs must not write the same artifact.",
                "Wait for it to end, or choose another output folder.",
            ) from error
        self.done = self._finished_layers(dict(identity), resume=resume)
        if self.done == 0:
            self._start_over(dict(identity))
        else:
            self._keep_journal_lines(self.done)

    def close(self) -> None:
        """Release the folder."""
        self._lock.release()

    def layer_file(self, layer: int) -> Path:
        """The finished tensors of a layer."""
        return self.folder / f"layer-{layer:05d}.safetensors"

    def _states_file(self, layer: int) -> Path:
        return self.folder / f"states-{layer:05d}.safetensors"

    def states(self) -> torch.Tensor:
        """Input hidden states of the first unfinished layer."""
        return load_file(self._states_file(self.done))["states"]

    def save(self, layer: int, tensors: dict[str, torch.Tensor], states: torch.Tensor) -> None:
        """Save a finished layer and the next layer's inputs durably."""
        line = _Line(
            layer=layer,
            layer_sha256=_save(self.layer_file(layer), tensors),
            states_sha256=_save(self._states_file(layer + 1), {"states": states}),
        )
        journal = open_own_file(self.folder / JOURNAL_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with os.fdopen(journal, "a", encoding="utf-8") as stream:
            stream.write(line.model_dump_json() + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.done = layer + 1
        self._states_file(layer).unlink(missing_ok=True)

    def _finished_layers(self, identity: dict[str, str], *, resume: bool) -> int:
        try:
            known = _IDENTITY.validate_json(read_own_file(self.folder / _JOB, _MAX_BYTES))
        except ValidationError:
            return 0
        if not resume:
            self.messages.append("Discarding the work of an earlier run, as requested.")
            return 0
        if changed := differences(known, identity):
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
        """The complete lines, from the first layer on."""
        lines: list[_Line] = []
        # Text after the last line feed was being written when the process died.
        for raw in read_own_file(self.folder / JOURNAL_NAME, _MAX_BYTES).split(b"\n")[:-1]:
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
        write_text_atomically(self.folder / JOURNAL_NAME, text)

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
