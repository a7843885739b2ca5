"""`quant-assets ui` before Dagster starts."""

import socket

import pytest

from quant_assets.cli.ui import ui
from quant_assets.errors import ResourceError


def test_a_taken_port_is_reported_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"cannot listen on port {port}"):
            ui(port)
