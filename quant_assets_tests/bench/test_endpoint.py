"""The endpoint backend against llama-cpp-python's own server."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from quant_assets.bench.endpoint import Endpoint
from quant_assets.bench.endpoint_benchmark import run_endpoint_cell
from quant_assets.bench.settings import BenchSettings
from quant_assets.errors import InputError, ResourceError

SETTINGS = BenchSettings(batch_sizes=(2,), warmups=1, runs=2, prompt_tokens=12, generated_tokens=5)
START_LIMIT_S = 120


@pytest.fixture(scope="module")
def server(smollm2: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable, "-m", "llama_cpp.server", "--model", str(smollm2),
            "--model_alias", "smollm2", "--host", "127.0.0.1", "--port", str(port),
            "--n_ctx", "512", "--n_threads", "1", "--interrupt_requests", "False",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                requests.get(f"{url}/v1/models", timeout=1)
                break
            except requests.ConnectionError:
                time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait()


def test_a_batch_is_streamed_and_every_token_is_timed(server: str, tmp_path: Path) -> None:
    endpoint = Endpoint(f"{server}/v1")
    assert endpoint.model == "smollm2"
    record, samples = run_endpoint_cell(endpoint, 2, SETTINGS, locks=tmp_path)
    assert [len(sample.token_ms) for sample in samples] == [4, 4]
    for sample in samples:
        assert 0 < sample.time_to_first_token_ms < sample.total_ms
    assert record.metadata.backend == "endpoint" and record.metadata.device == "remote"
    assert record.metadata.model == "smollm2"
    assert record.peak_rss_bytes is None and record.contended is None
    assert record.command_duration_ms is not None
    assert record.command_duration_ms > sum(sample.total_ms for sample in samples)
    assert record.decode_tokens_per_s == pytest.approx(
        2 * (record.decode_tokens_per_s_per_sequence or 0)
    )


def test_an_answer_goes_through_the_chat_template(server: str) -> None:
    prompt = "Count from 1 to 8. Write the numbers separated by commas and nothing else."
    assert Endpoint(server).chat(prompt, 12).startswith("1, 2")


def test_an_address_without_a_server_is_an_error() -> None:
    with pytest.raises(InputError, match="is not an endpoint"):
        Endpoint("file:///etc/passwd")
    with pytest.raises(ResourceError, match="does not respond"):
        Endpoint("http://127.0.0.1:9")
