"""Errors that state what happened, why, and what to do next.

Every error that a user can see derives from `QuantAssetsError`. The CLI prints the three parts and
exits with `exit_code`; Dagster shows them as a Failure with metadata.
"""

import errno
import os
import re
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """Exit codes of every command; the table in docs/cli.md is this one.

    A command ended by a signal exits with 128 plus the signal's number.
    """

    meaning: str

    def __new__(cls, code: int, meaning: str = "") -> "ExitCode":
        """Create a member that is the number `code`."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    DONE = 0, "Done."
    FAILED = 1, "An unexpected error, or one that no other code describes."
    WRONG_USAGE = 2, "Wrong usage: an unknown command or option, or an invalid value."
    BAD_INPUT = 3, "An input is missing, damaged or not supported."
    NO_RESOURCES = 4, "Too little disk or memory, or a folder that cannot be written."
    WORKER_FAILED = 5, "A worker process died, hung, or broke its protocol."
    NOT_CONFIRMED = 6, "The operation loses something, and you have not agreed to it."
    CHECK_FAILED = 7, "A value breaches its threshold, or an artifact failed its validation."
    NOT_INSTALLED = 8, "An environment, package or tool that the operation needs is missing."
    HUNG_UP = 129, "Ended because the terminal closed (SIGHUP); finished work is kept."
    INTERRUPTED = 130, "Ended by Ctrl-C (SIGINT); finished work is kept."
    TERMINATED = 143, "Ended by SIGTERM; finished work is kept."


class QuantAssetsError(Exception):
    """Base of all errors of the project.

    `what` states what happened, `why` the cause as far as known, `next_step` what to do. Each is one
    or more complete sentences.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, what: str, why: str, next_step: str) -> None:
        super().__init__(f"{what} {why} {next_step}")
        self.what = what
        self.why = why
        self.next_step = next_step

    def __reduce__(self) -> tuple[type["QuantAssetsError"], tuple[str, str, str]]:
        """Make the error picklable, for Dagster's multiprocess executor."""
        return type(self), (self.what, self.why, self.next_step)


class UsageFault(QuantAssetsError):
    """The command line cannot be parsed: an unknown option, or a value that is not allowed."""

    exit_code = ExitCode.WRONG_USAGE


class InputError(QuantAssetsError):
    """An input (model, file, listing, configuration) is missing, damaged or not supported."""

    exit_code = ExitCode.BAD_INPUT


class ResourceError(QuantAssetsError):
    """Too little disk or memory, or a folder that cannot be written."""

    exit_code = ExitCode.NO_RESOURCES


class WorkerError(QuantAssetsError):
    """A worker process died, hung, or broke its protocol."""

    exit_code = ExitCode.WORKER_FAILED


class ConfirmationRequired(QuantAssetsError):
    """The operation loses something, and the user has not agreed to it."""

    exit_code = ExitCode.NOT_CONFIRMED


class CheckFailed(QuantAssetsError):
    """A measured value breaches its threshold, or an artifact failed its validation."""

    exit_code = ExitCode.CHECK_FAILED


class EnvironmentNotReady(QuantAssetsError):
    """A Python environment, package or tool that the operation needs is not installed."""

    exit_code = ExitCode.NOT_INSTALLED


_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


def explained(error: BaseException) -> QuantAssetsError | None:
    """The three-part error for a system error that a library raised: disk, permissions, memory.

    None for any other exception.
    """
    if isinstance(error, QuantAssetsError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError(
            "A process ran out of memory.",
            "An allocation failed.",
            "Close other programs, use a smaller model or level, or a machine with more memory.",
        )
    if isinstance(error, RecursionError):
        return InputError(
            "An input is nested too deeply.",
            "Python's recursion limit was reached while reading it.",
            "Check the JSON or YAML files that the command reads.",
        )
    if isinstance(error, OSError):
        return _system_error(error)
    # Libraries written in Rust pass the system's error on as text.
    found = _RUST_ERROR.search(str(error))
    if found is None:
        return None
    number = int(found[1])
    return _system_error(OSError(number, os.strerror(number)))


def _system_error(error: OSError) -> QuantAssetsError:
    name = error.filename2 or error.filename
    place = os.fsencode(name).decode(errors="backslashreplace") if isinstance(name, str) else None
    why = f"The system reported: {error.strerror or error}."
    if error.errno in _DISK_FULL:
        return ResourceError(
            f"The disk filled up while writing {f'to {place}' if place else 'the output'}.",
            why,
            "Free some space or choose another folder, then run the same command again.",
        )
    if error.errno in _REFUSED:
        return ResourceError(
            f"The system refuses access to {place or 'a file'}.",
            why,
            "Change its permissions, or choose another folder; QUANT_ASSETS_HOME names the data root.",
        )
    if error.errno == errno.ENAMETOOLONG:
        return InputError(
            f"The name {place} is too long.",
            f"{why} Names have up to 255 bytes, and unfinished and temporary files need some of them.",
            "Use a shorter name for the model or the folder.",
        )
    return QuantAssetsError(
        f"The system could not use {place}." if place else "A system call failed.",
        why,
        "Check that the command's files and folders exist and are of the right kind; "
        "QUANT_ASSETS_HOME names the data root.",
    )
