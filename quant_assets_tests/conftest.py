"""How the suite is shared between two processes: tests that use one expensive set-up stay together."""

import signal
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import settings

from quant_assets_tests.mutation import FUZZ_EXAMPLES

# The same examples in every run of the suite; `make fuzz` looks for others.
settings.register_profile("suite", derandomize=not FUZZ_EXAMPLES, deadline=None)
settings.load_profile("suite")

# Files whose tests share fixtures that take many seconds to make. They come first, so that none of
# them is left over for one process at the end.
SHARED_SETUPS = {
    "every model at every level": (
        "gguf/test_parity.py", "gguf/test_type_policy.py", "gguf/test_importance_matrix.py",
    ),
    "an installation after every job": (
        "graph/test_automation.py", "graph/test_full_run.py", "graph/test_groupwise_assets.py",
        "graph/test_webserver.py",
    ),
    "a trained model": ("groupwise/test_bad_input.py", "groupwise/test_graph_artifacts.py",
                        "groupwise/test_kernels.py", "groupwise/test_scaling.py",
                        "groupwise/test_checkpoints.py"),
    "marts": ("marts/test_marts.py", "marts/test_recommendation.py", "marts/test_decision_report.py",
              "marts/test_speed_validation.py"),
}  # fmt: skip


def group_of(node_id: str) -> str:
    """The set-up that a test shares, or else its file."""
    file = node_id.split("::")[0]
    place = "/".join(PurePosixPath(file).parts[-2:])
    shared = (name for name, files in SHARED_SETUPS.items() if place in files)
    return next(shared, file)


def pytest_configure() -> None:
    """Let the commands under test meet signals as in a terminal, also in the background or under nohup.

    Signals that are ignored here would be ignored in every child; handlers are not inherited.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests with a shared set-up first."""
    order = list(SHARED_SETUPS)

    def place(item: pytest.Item) -> int:
        group = group_of(item.nodeid)
        return order.index(group) if group in order else len(order)

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Send each group of tests to one process."""
    from xdist.scheduler import LoadScopeScheduling

    class SharedSetupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return SharedSetupScheduling(config, log)
