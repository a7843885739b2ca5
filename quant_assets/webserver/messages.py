"""What Dagster's processes print: names and texts in their logs are shown, not obeyed."""

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
    """Show on standard error, line by line, what this process and its children print meanwhile.

    Colors are left out, other control characters come out as visible escapes. Dagster's log has texts of listings, files and
    servers in it, and its loggers cannot be replaced for runs that name none.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    output, errors = os.dup(1), os.dup(2)
    reader, writer = os.pipe()
    for descriptor in (1, 2):
        os.dup2(writer, descriptor)
    os.close(writer)
    shower = threading.Thread(target=_show, args=(reader, errors), daemon=True)
    shower.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(output, 1)
        os.dup2(errors, 2)
        os.close(output)
        # A child that is still there keeps the pipe open.
        shower.join(_DRAIN_S)


def _show(reader: int, errors: int) -> None:
    with (
        open(reader, encoding="utf-8", errors="surrogateescape", newline="\n") as lines,
        open(errors, "w", encoding="utf-8", newline="\n") as shown,
    ):
        for line in lines:
            shown.write(terminal_text(_COLOR.sub("", line)))
            shown.flush()
