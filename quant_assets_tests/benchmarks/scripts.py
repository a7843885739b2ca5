"""The benchmarks' modules, imported with their folder on the path, as when a script runs."""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from quant_assets.settings import PROJECT_ROOT

FOLDER = PROJECT_ROOT / "benchmarks"


def imported(name: str) -> Iterator[ModuleType]:
    """Yield the script; afterwards its folder and its modules are forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module(name)
    for file in FOLDER.glob("*.py"):
        sys.modules.pop(file.stem, None)
