"""Parallel matching: child processes read a JSON job each and write their matches as JSON.

They are started as `python -m` this module, so a caller's own script is never executed twice.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from quant_assets.atomic_files import write_text_atomically
from quant_assets.gpus.registry import GpuRegistry
from quant_assets.listings.matching.matcher import TitleMatch, TitleMatcher
from quant_assets.processes.guarded import guarded

WORTH_A_PROCESS = 8_000
"""Titles matched in the time that a process takes to start and to index the names."""

_MATCHES = TypeAdapter(list[TitleMatch])


@dataclass(frozen=True)
class _Share:
    titles: Sequence[str]
    matches: Path
    process: subprocess.Popen[bytes]


class TitleMatching:
    """Matching of distinct titles: starts on construction, is completed by `matches`."""

    def __init__(self, titles: Sequence[str], registry: GpuRegistry, folder: Path) -> None:
        """Start one process per additional core that has enough work; jobs go to `folder`."""
        self._registry = registry
        shares = max(1, min(os.cpu_count() or 1, len(titles) // WORTH_A_PROCESS))
        self._own = titles[::shares]
        self._shares: list[_Share] = []
        if shares == 1:
            return
        registry_file = folder / "registry.json"
        registry_file.write_text(registry.model_dump_json(), encoding="utf-8")
        for number in range(1, shares):
            job, matches = folder / f"titles_{number}.json", folder / f"matches_{number}.json"
            job.write_text(json.dumps(titles[number::shares]), encoding="utf-8")
            command = [sys.executable, "-m", __name__, str(registry_file), str(job), str(matches)]
            process = subprocess.Popen(guarded(command), stdin=subprocess.DEVNULL)
            self._shares.append(_Share(titles[number::shares], matches, process))

    def matches(self) -> list[TitleMatch]:
        """The matches of all titles, unordered; the share of a process that died is redone here."""
        matcher = TitleMatcher(self._registry)
        found = [matcher.match(title) for title in self._own]
        for share in self._shares:
            if share.process.wait() == 0:
                found += _MATCHES.validate_json(share.matches.read_bytes())
            else:
                found += [matcher.match(title) for title in share.titles]
        return found


def _main(registry_file: Path, job: Path, matches: Path) -> None:
    registry = GpuRegistry.model_validate_json(registry_file.read_text(encoding="utf-8"))
    matcher = TitleMatcher(registry)
    found = [matcher.match(title) for title in json.loads(job.read_text(encoding="utf-8"))]
    write_text_atomically(matches, _MATCHES.dump_json(found).decode())


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))
