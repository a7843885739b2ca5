"""Files in shared folders: only this user's own regular files are opened or changed."""

import fcntl
import os
import socket
from pathlib import Path

import pytest

from quant_assets.atomic_files import atomic_path, write_text_atomically
from quant_assets.errors import ResourceError
from quant_assets.host import own_files
from quant_assets.host.own_files import locked_file, open_own_file, own_folder, read_own_file

WRITABLE = os.O_RDWR | os.O_CREAT
NOBODY = 65534


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("another user's")
    return path


def test_links_are_not_followed(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "soft").symlink_to(victim)
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    (tmp_path / "hard").hardlink_to(victim)
    for name in ("soft", "dangling", "hard"):
        with pytest.raises(ResourceError, match="link"):
            open_own_file(tmp_path / name, WRITABLE)
        assert read_own_file(tmp_path / name, 100) == b""
    assert not (tmp_path / "new").exists()


def test_only_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # socket paths must be short
    os.mkfifo("pipe")
    Path("folder").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name in ("pipe", "folder", "socket"):
            with pytest.raises(ResourceError, match="not a regular file"):
                open_own_file(Path(name), WRITABLE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_files_are_left_alone(tmp_path: Path, victim: Path) -> None:
    os.chown(victim, NOBODY, NOBODY)
    with pytest.raises(ResourceError, match="belongs to another user"):
        open_own_file(victim, WRITABLE)
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(ResourceError, match="belongs to another user"):
        own_folder(folder)


def test_a_folder_is_not_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResourceError, match="link"):
        own_folder(tmp_path / "link")
    own_folder(tmp_path / "made" / "here")
    own_folder(tmp_path / "made" / "here")
    assert (tmp_path / "made" / "here").is_dir()


def test_the_lock_belongs_to_the_file_that_has_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder renames the file between our opening and our locking."""
    path, final = tmp_path / "x.part", tmp_path / "x"
    path.write_text("finished")
    original = fcntl.flock

    def renamed_first(descriptor: int, how: int) -> None:
        monkeypatch.setattr(own_files.fcntl, "flock", original)
        path.rename(final)
        original(descriptor, how)

    monkeypatch.setattr(own_files.fcntl, "flock", renamed_first)
    with locked_file(path, "x") as descriptor:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b"new")
        with pytest.raises(ResourceError, match="Another run is writing x"):
            locked_file(path, "x").__enter__()
    assert final.read_text() == "finished"
    assert path.read_text() == "new"


def test_a_lock_file_is_removed_under_its_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked_file(path, "x", remove=True):
        assert path.exists()
    assert not path.exists()
    with locked_file(path, "x", remove=True):
        path.rename(tmp_path / "moved")
        path.write_text("another run's")
    assert path.read_text() == "another run's"


def test_a_temporary_file_is_new(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quant_assets.atomic_files.secrets.token_hex", lambda _: "guessed")
    (tmp_path / ".x.guessed.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_text_atomically(tmp_path / "x", "ours")
    assert victim.read_text() == "another user's"
    assert (tmp_path / ".x.guessed.tmp").is_symlink(), "foreign files are not removed"


def test_a_link_at_the_final_name_is_replaced(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "x").symlink_to(victim)
    write_text_atomically(tmp_path / "x", "ours")
    assert victim.read_text() == "another user's"
    assert not (tmp_path / "x").is_symlink()
    assert (tmp_path / "x").read_text() == "ours"


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "-x", "a\nb", "'\"[1]*?", b"\xff\xfe"])
def test_any_valid_file_name(tmp_path: Path, name: str | bytes) -> None:
    final = tmp_path / os.fsdecode(name)
    write_text_atomically(final, "whole")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]
    with pytest.raises(KeyError), atomic_path(final):
        raise KeyError
    assert list(tmp_path.iterdir()) == [final]
