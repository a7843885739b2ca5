"""Shared fixtures, and the split of the suite over two processes by expensive set-up."""

import signal
from typing import Any

import pytest
from hypothesis import settings

from quant_assets_tests.bench.made_records import new_record, q4_variant
from quant_assets_tests.installation import full_run, installation
from quant_assets_tests.marts_world import marts_home, marts_warehouse
from quant_assets_tests.models.shipped_model import fixed_text, smollm2
from quant_assets_tests.mutation import FUZZ_EXAMPLES
from quant_assets_tests.speed.gpu_runs import gpu_warehouse, small_registry

# Fixtures that tests of several folders share; each is created once per process.
__all__ = [
    "fixed_text", "full_run", "gpu_warehouse", "installation", "marts_home", "marts_warehouse",
    "new_record", "q4_variant", "small_registry", "smollm2",
]  # fmt: skip

# Every run of the suite uses the same examples; `make fuzz` searches for new ones.
settings.register_profile("suite", derandomize=not FUZZ_EXAMPLES, deadline=None)
settings.load_profile("suite")

# Files whose tests share fixtures that take many seconds to create. They run first, so that none of
# them keeps a single process busy at the end.
SHARED_SETUPS = {
    "every model at every level": (
        "workers/gguf/test_parity.py", "workers/gguf/test_type_policy.py", "workers/gguf/test_importance_matrix.py",
    ),
    "an installation after every job": (
        "automation/test_automation.py", "automation/test_full_run.py", "assets/test_groupwise_assets.py",
        "assets/test_model_quantization.py",
        "webserver/test_webserver.py",
    ),
    "a trained model": ("workers/groupwise/test_bad_input.py", "workers/groupwise/test_calibration_size.py",
                        "workers/groupwise/test_conversion.py",
                        "workers/groupwise/test_graph_artifacts.py",
                        "workers/groupwise/test_kernels.py", "workers/groupwise/test_scaling.py",
                        "workers/groupwise/test_work_folder.py"),
    "marts": ("dbt_like_sql/test_marts.py", "warehouse/test_recommendation.py", "report/decision/test_decision_report.py"),
}  # fmt: skip


def group_of(node_id: str) -> str:
    """The set-up that a test shares, or else its file."""
    file = node_id.split("::")[0]
    place = file.removeprefix("quant_assets_tests/")
    shared = (name for name, files in SHARED_SETUPS.items() if place in files)
    return next(shared, file)


def pytest_configure() -> None:
    """Let commands under test receive signals as in a terminal, even in the background or with nohup.

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
