"""Output of Dagster's processes: control characters in it are displayed, not executed."""

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from quant_assets.escaping import terminal_text

_DRAIN_S = 1.0
_COLOR = re.compile(r"\x1b\[[0-9;]*m")  # Dagster colors its log even in a pipe


@contextmanager
def visible_messages() -> Iterator[None]:
    """Write the output of this process and its children to standard error, line by line.

    Colors are removed and other control characters become visible escapes. Dagster's log contains
    text from listings, files and servers, and its loggers cannot be replaced for runs whose config
    names none.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    output, errors = os.dup(1), os.dup(2)
    reader, writer = os.pipe()
    for descriptor in (1, 2):
        os.dup2(writer, descriptor)
    os.close(writer)
    printer = threading.Thread(target=_print_lines, args=(reader, errors), daemon=True)
    printer.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(output, 1)
        os.dup2(errors, 2)
        os.close(output)
        # A child that is still running keeps the pipe open.
        printer.join(_DRAIN_S)


def _print_lines(reader: int, errors: int) -> None:
    with (
        open(reader, encoding="utf-8", errors="surrogateescape", newline="\n") as lines,
        open(errors, "w", encoding="utf-8", newline="\n") as output,
    ):
        for line in lines:
            output.write(terminal_text(_COLOR.sub("", line)))
            output.flush()
