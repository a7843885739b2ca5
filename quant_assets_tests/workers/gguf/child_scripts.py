"""Run `two_step.py` and `one_pass.py` on the same tasks, side by side."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quant_assets.formats.gguf_levels import GGUF_LEVELS, GgufLevel
from quant_assets.settings import PROJECT_ROOT

HERE = Path(__file__).parent
# ggml's IQ kernels search a grid for every group of weights and are much slower.
IQ_LEVELS = [level for level in GGUF_LEVELS if level.name.startswith("IQ")]
FAST_LEVELS = [level for level in GGUF_LEVELS if level not in IQ_LEVELS and not level.needs_imatrix]


def run_scripts(tasks_by_script: dict[str, list[dict[str, Any]]], folder: Path) -> dict[str, str]:
    """Run child scripts of this folder concurrently; returns the output of each."""
    running = {}
    for script, tasks in tasks_by_script.items():
        file = folder / f"{script}.{len(tasks)}.json"
        file.write_text(json.dumps(tasks))
        running[script] = subprocess.Popen(
            [sys.executable, HERE / script, file],
            env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    printed = {}
    for script, process in running.items():
        printed[script], errors = process.communicate()
        assert process.returncode == 0, errors[-3000:]
    return printed


def tasks(
    sources: dict[str, Path], levels: Sequence[GgufLevel], folder: Path, imatrices: dict[str, Path]
) -> list[dict[str, Any]]:
    """One task per source and level, in the form that both scripts take."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        {
            "source": str(source),
            "kind": "hf" if source.is_dir() else "gguf",
            "level": level.name,
            "ftype": level.ftype,
            "output": str(folder / f"{name}-{level}.gguf"),
            "imatrix": str(imatrices[name]) if name in imatrices else None,
        }
        for name, source in sources.items()
        for level in levels
    ]
