"""Opening and locking files safely in folders that other users can write to.

A name in a shared folder can be a link to another user's file, a pipe, or a hard link to a file
that must not be touched. A file that is to be changed in place is therefore opened without
following links and inspected before use.
"""

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quant_assets.errors import ResourceError

_MODE = 0o644
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a pipe must not block
# Errors of `open` for a link (Linux and macOS, FreeBSD), a socket and a folder.
_NOT_A_FILE = frozenset({errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EOPNOTSUPP, errno.EISDIR})
_MOST_TRIES = 100


def open_own_file(path: Path, flags: int) -> int:
    """Open `path` with the `flags` of `os.open`; returns the descriptor.

    Raises `ResourceError` unless it is a regular file of this user without hard links, `OSError`
    when it cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | _FLAGS, _MODE)
    except OSError as error:
        if error.errno in _NOT_A_FILE:
            raise _refused(path, "is a link, a folder or a device, not a regular file") from error
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _refused(path, "is a pipe or a device, not a regular file")
        if status.st_nlink > 1:
            raise _refused(path, "is a hard link to another file")
        if status.st_uid != os.geteuid() and status.st_uid != _owner_of_new_files(path.parent):
            raise _refused(path, f"belongs to another user (number {status.st_uid})")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_own_file(path: Path, most_bytes: int) -> bytes:
    """The content of a small file of this user; empty if it is missing, longer, or another kind."""
    try:
        descriptor = open_own_file(path, os.O_RDONLY)
    except (OSError, ResourceError):
        return b""
    with os.fdopen(descriptor, "rb") as stream:
        content = stream.read(most_bytes + 1)
    return b"" if len(content) > most_bytes else content


def _owner_of_new_files(folder: Path) -> int:
    """The owner that the file system gives new files; some use one owner for all users."""
    with tempfile.TemporaryFile(dir=folder) as new:
        return os.fstat(new.fileno()).st_uid


def _refused(path: Path, why: str) -> ResourceError:
    return ResourceError(
        f"Nothing is written to {path}.",
        f"It {why}; another user's data could be lost.",
        "Remove it, or choose another output folder.",
    )


def own_folder(path: Path) -> None:
    """Create the folder `path` and its parents unless it exists.

    Raises `ResourceError` if the name belongs to anything but a folder of this user: through a
    link, files would be written and removed in another user's folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise _refused(path, "is a link or a file, not a folder") from None
        if status.st_uid != os.geteuid() and status.st_uid != _owner_of_new_files(path.parent):
            raise _refused(path, f"belongs to another user (number {status.st_uid})") from None


def is_named(path: Path, descriptor: int) -> bool:
    """Whether `path` is still the name of the open file `descriptor`."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextmanager
def locked_file(path: Path, purpose: str, *, remove: bool = False) -> Iterator[int]:
    """Open and lock `path`, created if missing, while the block runs; yields its descriptor.

    If another process renames or removes the file between opening and locking, the new file of that
    name is locked instead. The content is not touched. The lock ends with the process. With
    `remove` the file is deleted at the end, still locked.

    Raises `ResourceError` when another process holds it, named by `purpose` ("the file x.gguf"),
    and what `open_own_file` raises.
    """
    descriptor = _open_locked(path, purpose)
    try:
        yield descriptor
    finally:
        if remove and is_named(path, descriptor):
            path.unlink()
        os.close(descriptor)


def _open_locked(path: Path, purpose: str) -> int:
    for _ in range(_MOST_TRIES):
        descriptor = open_own_file(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        except BaseException:
            os.close(descriptor)
            raise
        named = is_named(path, descriptor)
        if held and named:
            return descriptor
        os.close(descriptor)
        if named:
            break
    raise ResourceError(
        f"Another run is writing {purpose}.",
        f"It holds the lock of {path}.",
        "Wait for it to end, or choose another output folder.",
    )
