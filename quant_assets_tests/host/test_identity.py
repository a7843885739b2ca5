"""The id of this machine in records."""

import hashlib
import socket
from pathlib import Path

import pytest

from quant_assets.host import identity
from quant_assets.host.identity import ID_LENGTH, host_id

KEY = "0123456789abcdef" * 2


@pytest.fixture
def machine_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two places of the system's machine id, both absent at first."""
    places = (tmp_path / "machine-id", tmp_path / "dbus")
    monkeypatch.setattr(identity, "_MACHINE_IDS", places)
    return places


def test_this_machine_has_one_id_for_every_data_root(
    tmp_path: Path, machine_ids: tuple[Path, Path]
):
    machine_ids[0].write_text(KEY + "\n")
    found = host_id(tmp_path / "one")
    assert len(found) == ID_LENGTH and int(found, 16) >= 0
    assert host_id(tmp_path / "two") == found
    assert not (tmp_path / "one").exists()


def test_it_reveals_neither_the_machine_id_nor_the_host_name(
    tmp_path: Path, machine_ids: tuple[Path, Path]
):
    machine_ids[0].write_text(KEY)
    hidden = [
        plain(text.encode()).hexdigest()
        for text in (KEY, KEY + "\n", socket.gethostname())
        for plain in (hashlib.sha256, hashlib.sha1, hashlib.md5)
    ]
    found = host_id(tmp_path)
    assert found not in KEY and not any(found in digest for digest in hidden)


def test_other_machines_have_other_ids(
    tmp_path: Path, machine_ids: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    machine_ids[1].write_text(KEY)
    first = host_id(tmp_path)
    machine_ids[0].write_text(KEY[::-1])
    second = host_id(tmp_path)
    # A container image that carries a machine id, on another processor.
    monkeypatch.setattr(identity, "cpu_name", lambda: "another processor")
    assert len({first, second, host_id(tmp_path)}) == 3


@pytest.mark.parametrize("content", [None, "", "uninitialized\n", "0" * 32, b"\xff\xfe"])
def test_without_a_machine_id_the_data_root_keeps_a_key(
    tmp_path: Path, machine_ids: tuple[Path, Path], content: str | bytes | None
):
    if content is not None:
        machine_ids[0].write_bytes(content if isinstance(content, bytes) else content.encode())
    found = host_id(tmp_path / "home")
    assert host_id(tmp_path / "home") == found
    assert host_id(tmp_path / "another") != found
    (tmp_path / "home" / "machine_key").write_text("damaged")
    replaced = host_id(tmp_path / "home")
    assert replaced != found and host_id(tmp_path / "home") == replaced
