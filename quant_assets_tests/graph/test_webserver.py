"""The UI's own server: a backfill launched over GraphQL ends as rows in DuckDB."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
import requests

from quant_assets.settings import PROJECT_ROOT
from quant_assets.warehouse.connection import Warehouse
from quant_assets_tests.graph.tiny_installation import Installation, cell

LAUNCH = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
STATUS = """
query Status($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    __typename
    ... on PartitionBackfill { status runs(limit: 10) { id status } }
  }
}
"""


class Server:
    """The webserver's GraphQL endpoint."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, text: str, **variables: object) -> dict[str, object]:
        response = requests.post(
            f"{self.url}/graphql", json={"query": text, "variables": variables}, timeout=60
        )
        response.raise_for_status()
        content = response.json()
        assert "errors" not in content, content["errors"]
        return content["data"]


@pytest.fixture
def server(full_run: Installation) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "quant_assets.cli.app", "ui", "--port", str(port)],
        cwd=PROJECT_ROOT,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    server = Server(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not start"
            try:
                server.query("{ version }")
                break
            except requests.RequestException:
                time.sleep(0.5)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def cells_measured(connection: duckdb.DuckDBPyConnection) -> Counter[tuple[str, int]]:
    """How many records of the model there are, by variant and batch size."""
    rows = connection.execute(
        "select variant, batch_size from raw.benchmark_runs where model = 'tiny'"
    ).fetchall()
    return Counter(rows)


@pytest.mark.slow
def test_a_backfill_over_graphql_is_one_run_a_variant(server: Server, full_run: Installation):
    variants = ("f16", "q8_0-kv-hybrid")
    asked = [(variant, size) for variant in variants for size in (1, 4, 8)]
    warehouse = Warehouse(full_run.settings.warehouse)
    with warehouse.read() as reader:  # held open all the time
        before = cells_measured(reader)
        launched = server.query(
            LAUNCH,
            params={
                "assetSelection": [{"path": ["tiny", "benchmark_results"]}],
                "partitionNames": [str(cell(variant, size)) for variant, size in asked],
            },
        )["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        deadline = time.monotonic() + 300
        while True:
            backfill = server.query(STATUS, id=launched["backfillId"])["partitionBackfillOrError"]
            if backfill["status"] not in ("REQUESTED", "COMPLETING"):
                break
            assert time.monotonic() < deadline, backfill
            time.sleep(1)
            assert cells_measured(reader) == before, "a reader sees one state of the file"
    assert backfill["status"] == "COMPLETED_SUCCESS", backfill
    assert len(backfill["runs"]) == len(variants)
    with warehouse.read() as reader:
        assert cells_measured(reader) - before == Counter(asked), "six new rows, one a cell"
