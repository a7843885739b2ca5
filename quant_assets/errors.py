"""Errors that say what happened, why, and what to do next.

Every error a user can meet derives from `QuantAssetsError`. The CLI prints the three parts and
exits with `exit_code`; Dagster shows them as a Failure with metadata.
"""

from typing import ClassVar


class QuantAssetsError(Exception):
    """Base of all errors of the project.

    `what` says what happened, `why` the cause as far as it is known, `next_step` what to do.
    Each is one or more whole sentences.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, why: str, next_step: str) -> None:
        super().__init__(f"{what} {why} {next_step}")
        self.what = what
        self.why = why
        self.next_step = next_step

    def __reduce__(self) -> tuple[type["QuantAssetsError"], tuple[str, str, str]]:
        """Survive the trip between the processes of Dagster's multiprocess executor."""
        return type(self), (self.what, self.why, self.next_step)


class InputError(QuantAssetsError):
    """An input (model, file, listing, configuration) is missing, damaged or not supported."""

    exit_code = 3


class ResourceError(QuantAssetsError):
    """The machine has too little disk or memory, or a folder cannot be written."""

    exit_code = 4


class WorkerError(QuantAssetsError):
    """A worker process died, hung, or broke its protocol."""

    exit_code = 5


class ConfirmationRequired(QuantAssetsError):
    """The operation loses something and nobody agreed to it."""

    exit_code = 6


class CheckFailed(QuantAssetsError):
    """A measured value breaches its threshold, or an artifact failed its validation."""

    exit_code = 7


class EnvironmentNotReady(QuantAssetsError):
    """A Python environment, package or tool that the operation needs is not installed."""

    exit_code = 8
