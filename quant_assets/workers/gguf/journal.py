"""What of an unfinished file is durable: one line a finished layer, beside the `.part` file."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from quant_assets.atomic_files import write_text_atomically

_IDENTITY = "identity"
_DIGEST = "digest"


class Journal:
    """Records the digest of every finished layer of one job, durably and in order.

    The first line says which job it is. A line that was cut by a crash is ignored, and so is what
    follows it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> tuple[dict[str, str], list[str]]:
        """The identity of the job and the digests of its finished layers; empty when none."""
        try:
            lines = self._path.read_text(encoding="utf-8").split("\n")
        except (FileNotFoundError, UnicodeDecodeError):
            return {}, []
        identity: dict[str, str] = {}
        digests: list[str] = []
        # What follows the last newline was being written when the process died.
        for number, line in enumerate(lines[:-1]):
            try:
                entry = json.loads(line)
                if number == 0:
                    identity = dict(entry[_IDENTITY])
                else:
                    digests.append(str(entry[_DIGEST]))
            except (ValueError, KeyError, TypeError):
                break
        return identity, digests

    def start(self, identity: Mapping[str, str], digests: list[str]) -> None:
        """Begin anew with `identity` and the layers that are known to be whole."""
        lines = [json.dumps({_IDENTITY: identity}), *map(_line, digests)]
        write_text_atomically(self._path, "".join(f"{line}\n" for line in lines))

    def append(self, digest: str) -> None:
        """Add the next layer; durable when this returns."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, f"{_line(digest)}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """Delete the journal of a finished file."""
        self._path.unlink(missing_ok=True)


def _line(digest: str) -> str:
    return json.dumps({_DIGEST: digest})


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """In words, what makes the job `new` another one than `old`."""
    return [
        f"{key.replace('_', ' ')} was {old.get(key, 'unknown')}, is {new.get(key, 'unknown')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
