"""How the suite is shared between two processes: tests that use one expensive set-up stay together."""

import signal

import pytest
from hypothesis import settings

from quant_assets_tests.mutation import FUZZ_EXAMPLES

# The same examples in every run of the suite; `make fuzz` looks for others.
settings.register_profile("suite", derandomize=not FUZZ_EXAMPLES, deadline=None)
settings.load_profile("suite")

# The longest first, so that none of them is left over for one process at the end.
SHARED_SETUP = ("gguf", "graph", "groupwise", "marts", "bench")


def pytest_configure(config: pytest.Config) -> None:
    """Know the marker of pytest-xdist without it, and Ctrl-C in the background, where it is ignored."""
    config.addinivalue_line("markers", "xdist_group(name): tests that one process runs")
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the folders of `SHARED_SETUP` first, each as one group; other files are a group each."""

    def folder_of(item: pytest.Item) -> str:
        return item.path.parent.name

    def place(item: pytest.Item) -> int:
        folder = folder_of(item)
        return SHARED_SETUP.index(folder) if folder in SHARED_SETUP else len(SHARED_SETUP)

    for item in items:
        folder = folder_of(item)
        group = folder if folder in SHARED_SETUP else f"{folder}/{item.path.stem}"
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=place)
