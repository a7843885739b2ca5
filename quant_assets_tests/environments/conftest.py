"""The set-up modules, which are outside any package: they run before one is installed."""

import importlib
import sys
from types import ModuleType

import pytest

from quant_assets.settings import PROJECT_ROOT

sys.path.insert(0, str(PROJECT_ROOT / "environments"))


def _module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture
def bootstrap() -> ModuleType:
    return _module("bootstrap")


@pytest.fixture
def steps() -> ModuleType:
    return _module("steps")


@pytest.fixture
def turns() -> ModuleType:
    return _module("turns")


@pytest.fixture
def torch_build() -> ModuleType:
    return _module("torch_build")


@pytest.fixture
def llama_build() -> ModuleType:
    return _module("llama_wheel")
