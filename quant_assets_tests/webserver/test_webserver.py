"""The UI's own server: a backfill launched over GraphQL ends as rows in DuckDB."""

import json
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
from quant_assets_tests.installation import Installation, cell
from quant_assets_tests.process_trees import PROMISED_S, below, command_line, survivors

LAUNCH = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
RUN = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on RunConfigValidationInvalid { errors { message } }
    ... on LaunchRunSuccess { run { id } }
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


SELECTOR = {
    "repositoryLocationName": "quant_assets.definitions",
    "repositoryName": "__repository__",
    "jobName": "refresh_marts",
}


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


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def server(full_run: Installation) -> Iterator[Server]:
    port = free_port()
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
        end_with_everything(process, signal.SIGTERM)


def end_with_everything(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """End the UI by a signal; its webserver, daemon and code servers end within five seconds."""
    started = below(process.pid)
    process.send_signal(number)
    process.wait(timeout=PROMISED_S)
    assert not survivors(started)


def test_the_ui_ends_with_everything_it_started(tmp_path: Path):
    """Killed during startup; the `server` fixture covers an orderly end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "quant_assets.cli.app", "ui", "--port", str(free_port())],
        cwd=PROJECT_ROOT,
        env={**os.environ, "QUANT_ASSETS_HOME": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wanted = ("webserver", "daemon", "code-server")
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server did not start"
        lines = " ".join(command_line(item) for item in below(process.pid))
        if all(word in lines for word in wanted):
            break
        time.sleep(0.1)
    end_with_everything(process, signal.SIGKILL)


def runs(server: Server) -> list[str]:
    found = server.query("{ runsOrError { ... on Runs { results { id } } } }")
    return [run["id"] for run in found["runsOrError"]["results"]]


def cells_measured(connection: duckdb.DuckDBPyConnection) -> Counter[tuple[str, int]]:
    """How many records of the model there are, by variant and batch size."""
    rows = connection.execute(
        "select variant, batch_size from raw.benchmark_runs where model = 'tiny'"
    ).fetchall()
    return Counter(rows)


@pytest.mark.slow
def test_a_backfill_over_graphql_is_one_run_per_variant(server: Server, full_run: Installation):
    variants = ("f16", "q8_0-kv-hybrid")
    requested = [(variant, size) for variant in variants for size in (1, 4, 8)]
    warehouse = Warehouse(full_run.settings.warehouse)
    with warehouse.read() as reader:  # held open throughout
        before = cells_measured(reader)
        launched = server.query(
            LAUNCH,
            params={
                "assetSelection": [{"path": ["tiny", "benchmark_results"]}],
                "partitionNames": [str(cell(variant, size)) for variant, size in requested],
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
            assert cells_measured(reader) == before, "an open reader keeps its snapshot"
    assert backfill["status"] == "COMPLETED_SUCCESS", backfill
    assert len(backfill["runs"]) == len(variants)
    with warehouse.read() as reader:
        assert cells_measured(reader) - before == Counter(requested), "six new rows, one per cell"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("resource", "fields"),
    [
        ("data_root", ("home",)),
        ("data_root", ("home", "data")),
        ("dbt", ("project_dir",)),
        ("dbt", ("dbt_executable",)),
        ("io_manager", ("base_dir",)),
    ],
)
def test_a_launch_cannot_choose_folders_or_programs(
    server: Server, tmp_path: Path, resource: str, fields: tuple[str, ...]
):
    planted = tmp_path / "planted"
    before = runs(server)
    launched = server.query(
        RUN,
        params={
            "selector": SELECTOR,
            "runConfigData": {
                "resources": {resource: {"config": dict.fromkeys(fields, str(planted))}}
            },
        },
    )["launchRun"]
    assert launched["__typename"] == "RunConfigValidationInvalid", launched
    assert any("unexpected" in error["message"] for error in launched["errors"]), launched
    assert runs(server) == before
    assert not planted.exists()


@pytest.mark.slow
def test_a_foreign_page_launches_nothing(server: Server):
    before = runs(server)
    document = {"query": RUN, "variables": {"params": {"selector": SELECTOR}}}
    text = json.dumps(document)
    url = f"{server.url}/graphql"
    parameters = {"query": RUN, "variables": json.dumps(document["variables"])}
    foreign = {"Origin": "http://evil.example", "Content-Type": "application/json"}
    attempts = [
        requests.get(url, params=parameters, timeout=60),
        requests.post(url, data=text, headers={"Content-Type": "text/plain"}, timeout=60),
        requests.post(url, params=parameters, timeout=60),
        requests.post(url, data=text, headers=foreign, timeout=60),
        requests.post(url, json=document, headers={"Host": "evil.example"}, timeout=60),
        requests.post(url, json=document, headers={"Sec-Fetch-Site": "same-site"}, timeout=60),
    ]
    assert [attempt.status_code for attempt in attempts] == [405, 415, 415, 403, 403, 403]
    assert runs(server) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/runs", 200),
        ("/assets/gpus?view=events", 200),
        ("/locations/quant_assets.definitions/jobs/refresh_marts", 200),
        ("/graphql", 403),
        ("/logs/a/b.err", 403),
        ("/download_debug/a", 403),
        ("/notebook", 403),
        ("/favicon.png", 403),
    ],
)
def test_links_of_other_sites_open_only_pages(server: Server, path: str, status: int):
    visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    answer = requests.get(
        server.url + path, headers=visit | {"Sec-Fetch-Dest": "document"}, timeout=60
    )
    assert answer.status_code == status
