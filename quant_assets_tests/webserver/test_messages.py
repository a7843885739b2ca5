"""Output of Dagster's processes cannot control the terminal."""

import os
import subprocess
import sys

import pytest

from quant_assets.webserver.messages import visible_messages


def test_output_of_children_is_shown_as_text(capfdbinary: pytest.CaptureFixture[bytes]):
    hostile = rb"\x1b]0;owned\x07 \x9b2J \xc2\x9b2J \xe2\x80\xae\r[red]"
    script = f"import os; os.write(1, b'out {hostile.decode()}\\n'); os.write(2, b'\\x1b[32mh\\xc3\\xa9\\x1b\\x1b[0m[2J\\n')"
    with visible_messages():
        subprocess.run([sys.executable, "-c", script], check=True)
        os.write(1, b"own \x1b[2J\n")
    os.write(1, b"after\n")
    captured = capfdbinary.readouterr()
    assert captured.err.decode().splitlines() == [
        r"out \x1b]0;owned\x07 \udc9b2J \x9b2J \u202e\r[red]",
        r"hé\x1b[2J",
        r"own \x1b[2J",
    ]
    assert captured.out == b"after\n"
