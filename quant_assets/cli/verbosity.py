"""`--verbosity`: which log records of the project reach standard error.

Commands and the code below them report through Python's logging; `configure_logging` is the only
place that decides what is shown, and every line is free of secrets and control characters.
"""

import logging
from enum import StrEnum

from quant_assets.cli.output import message_console
from quant_assets.redaction import redact

NOTICE = 25
"""Level of messages for everybody, such as where a file was written: below a warning."""

_LOG = logging.getLogger(__name__)
_PROJECT = "quant_assets"
_TIMED = "%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s"


class Verbosity(StrEnum):
    """How much standard error shows.

    `quiet`: errors alone. `normal`: also warnings, messages and the steps of workers. `verbose`:
    also the start, end and duration of each operation, and the exact times of steps. `debug`: also
    debugging records with their time, every event of a worker, and the traceback of an error.
    """

    QUIET = "quiet"
    NORMAL = "normal"
    VERBOSE = "verbose"
    DEBUG = "debug"


_LEVELS = {
    Verbosity.QUIET: logging.ERROR,
    Verbosity.NORMAL: NOTICE,
    Verbosity.VERBOSE: logging.INFO,
    Verbosity.DEBUG: logging.DEBUG,
}


class _MessageHandler(logging.Handler):
    """Prints records on the standard error of the moment, which a test or a caller may replace."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        try:
            message_console().print(redact(self.format(record)))
        except Exception:
            self.handleError(record)


class _PlainFormatter(logging.Formatter):
    """The message alone; warnings and errors say that they are."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        return f"{record.levelname.lower()}: {text}"


def configure_logging(verbosity: Verbosity) -> None:
    """Show the project's log records on standard error as `verbosity` demands."""
    logging.addLevelName(NOTICE, "NOTICE")
    logger = logging.getLogger(_PROJECT)
    for handler in [item for item in logger.handlers if isinstance(item, _MessageHandler)]:
        logger.removeHandler(handler)
    handler = _MessageHandler()
    if verbosity is Verbosity.DEBUG:
        handler.setFormatter(logging.Formatter(_TIMED, datefmt="%Y-%m-%d %H:%M:%S"))
    else:
        handler.setFormatter(_PlainFormatter())
    logger.addHandler(handler)
    logger.setLevel(_LEVELS[verbosity])


def notify(text: str) -> None:
    """Tell the user something that is not the answer, unless output is quiet."""
    _LOG.log(NOTICE, "%s", text)


def warn(text: str | None) -> None:
    """Warn the user, if there is a warning, unless output is quiet."""
    if text:
        _LOG.warning("%s", text)
