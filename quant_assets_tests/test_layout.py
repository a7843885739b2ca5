"""Tests mirror the package: a folder of tests has the name of the folder it proves."""

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
def test_a_folder_of_tests_names_the_folder_it_proves(folder: Path) -> None:
    assert (PROJECT_ROOT / "quant_assets" / folder).is_dir() or (PROJECT_ROOT / folder).is_dir()
