"""Resume journal beside the `.part` file: one line per finished layer."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from quant_assets.atomic_files import write_text_atomically
from quant_assets.host.own_files import is_named, open_own_file, read_own_file

# 80 bytes per line; no model has 100,000 layers.
_MAX_BYTES = 8_000_000


class _Head(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    identity: dict[str, str]


class _Layer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    digest: str


class Journal:
    """Records the digest of every finished layer of one job, durably and in order.

    The first line identifies the job. A line truncated by a crash is ignored, as is everything
    after it. The caller checks the digests against the `.part` file. The journal belongs to the
    process that holds the lock of that file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def read(self) -> tuple[dict[str, str], list[str]]:
        """The identity of the job and the digests of its finished layers; empty if there are none."""
        lines = read_own_file(self.path, _MAX_BYTES).split(b"\n")
        identity: dict[str, str] = {}
        digests: list[str] = []
        # Text after the last newline was being written when the process died.
        for number, line in enumerate(lines[:-1]):
            try:
                if number == 0:
                    identity = _Head.model_validate_json(line).identity
                else:
                    digests.append(_Layer.model_validate_json(line).digest)
            except ValidationError:
                break
        return identity, digests

    def start(self, identity: Mapping[str, str], digests: list[str]) -> None:
        """Rewrite the journal with `identity` and the layers that were verified."""
        lines = [json.dumps({"identity": dict(identity)}), *map(_line, digests)]
        write_text_atomically(self.path, "".join(f"{line}\n" for line in lines))
        self.close()
        self._descriptor = open_own_file(self.path, os.O_WRONLY | os.O_APPEND)

    def append(self, digest: str) -> None:
        """Add the next layer to a started journal; durable on return."""
        assert self._descriptor is not None
        line = memoryview(f"{_line(digest)}\n".encode())
        while line:
            line = line[os.write(self._descriptor, line) :]
        os.fsync(self._descriptor)

    def remove(self) -> None:
        """Delete the journal of a finished file, unless a later run has started another one."""
        if self._descriptor is not None and is_named(self.path, self._descriptor):
            self.path.unlink()
        self.close()

    def close(self) -> None:
        """Close the file; it stays for a later run."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _line(digest: str) -> str:
    return json.dumps({"digest": digest})
