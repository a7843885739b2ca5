"""How the suite is shared between two processes: tests that use one expensive set-up stay together."""

import signal

import pytest
from hypothesis import settings

from quant_assets_tests.mutation import FUZZ_EXAMPLES

# The same examples in every run of the suite; `make fuzz` looks for others.
settings.register_profile("suite", derandomize=not FUZZ_EXAMPLES, deadline=None)
settings.load_profile("suite")

# Fixtures that take many seconds to make. Their tests come first, the longest before the others, so
# that none of them is left over for one process at the end.
EXPENSIVE_FIXTURES = ("both_ways", "installation", "trained", "home")


def pytest_configure(config: pytest.Config) -> None:
    """Know the marker of pytest-xdist without it, and Ctrl-C in the background, where it is ignored."""
    config.addinivalue_line("markers", "xdist_group(name): tests that one process runs")
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Before pytest-xdist reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests that share an expensive fixture into one group; other files are a group each."""

    def place(item: pytest.Item) -> int:
        names = getattr(item, "fixturenames", ())
        found = (i for i, fixture in enumerate(EXPENSIVE_FIXTURES) if fixture in names)
        return next(found, len(EXPENSIVE_FIXTURES))

    for item in items:
        shared = place(item) < len(EXPENSIVE_FIXTURES)
        group = item.path.parent if shared else item.path
        item.add_marker(pytest.mark.xdist_group(group.name))
    items.sort(key=place)
