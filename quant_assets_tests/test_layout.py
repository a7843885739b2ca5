"""Tests mirror the package: each test folder is named after the package folder it tests."""

from pathlib import Path

import pytest

from quant_assets.settings import PROJECT_ROOT

_TESTS = Path(__file__).parent
_FOLDERS = sorted(
    path.relative_to(_TESTS)
    for path in _TESTS.rglob("*")
    if path.is_dir() and path.name != "__pycache__"
)


@pytest.mark.parametrize("folder", _FOLDERS, ids=str)
def test_each_test_folder_is_named_after_a_package_folder(folder: Path) -> None:
    assert (PROJECT_ROOT / "quant_assets" / folder).is_dir() or (PROJECT_ROOT / folder).is_dir()
