"""Servers that respond wrongly, endlessly or not at all: one error, in time, without secrets."""

import base64
import csv
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quant_assets.bench.collect import collect_csv
from quant_assets.bench.endpoint import Endpoint, EndpointLimits
from quant_assets.bench.endpoint_benchmark import run_endpoint_cell
from quant_assets.bench.results import ResultStore
from quant_assets.bench.settings import BenchSettings
from quant_assets.errors import InputError, QuantAssetsError, ResourceError

SETTINGS = BenchSettings(batch_sizes=(2,), warmups=0, runs=1, prompt_tokens=4, generated_tokens=3)
LIMITS = EndpointLimits(connect_s=2, silence_s=0.5, answer_s=1, answer_bytes=200_000)
Respond = Callable[[socket.socket, str], None]


class Server:
    """Accepts connections on loopback; `respond` gets each with the request it sent."""

    def __init__(self) -> None:
        self.respond: dict[str, Respond] = {}
        self.requests: list[str] = []
        self.stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self.stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(65536)
                text = request.decode()
                self.requests.append(text)
                path = text.split()[1].partition("?")[0]
                self.respond[path](connection, text)
            except OSError:
                pass  # the client has gone

    def close(self) -> None:
        self.stopped.set()
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.respond["/v1/models"] = whole(b'{"data": [{"id": "m"}]}')
    yield server
    server.close()


def head(status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "Connection: close", "", ""]).encode()


def whole(body: bytes, status: str = "200 OK", **headers: str) -> Respond:
    def respond(connection: socket.socket, _: str) -> None:
        connection.sendall(head(status, Content_Length=str(len(body)), **headers) + body)

    return respond


def until_the_end(body: bytes) -> Respond:
    """A response without a length, as servers of event streams send it."""
    return lambda connection, _: connection.sendall(head() + body)


def endless(piece: bytes, pause_s: float = 0.0, start: bytes | None = None) -> Respond:
    def respond(connection: socket.socket, _: str) -> None:
        connection.sendall(head() if start is None else start)
        while True:
            connection.sendall(piece)
            time.sleep(pause_s)

    return respond


def cut_short(body: bytes) -> Respond:
    return lambda connection, _: connection.sendall(head(Content_Length=str(len(body) + 9)) + body)


def event(content: object) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


TOKEN = event({"choices": [{"text": "x", "finish_reason": None}]})
USAGE = event({"choices": [], "usage": {"prompt_tokens": 4}})
GOOD = TOKEN * 3 + USAGE + b"data: [DONE]\n\n"

BAD_ANSWERS: dict[str, Respond] = {
    "list": whole(b"[]"),
    "null": whole(b"null"),
    "nothing": whole(b""),
    "no utf-8": whole(b'{"data": [{"id": "\xff"}]}'),
    "deep": whole(b"[" * 100_000),
    "no list": whole(b'{"data": {"id": "m"}}'),
    "empty list": whole(b'{"data": [], "choices": []}'),
    "wrong types": whole(b'{"data": [{"id": 7}], "choices": [{"message": "x"}]}'),
    "no objects": whole(b'{"data": ["m"], "choices": ["x"]}'),
    "null inside": whole(b'{"data": null, "choices": null}'),
    "endless": endless(b" " * 1000),
    "slow": endless(b" ", 0.2),
    "slow head": endless(b"X", 0.2, start=b"HTTP/1.1 200 OK\r\nA: "),
    "silent": endless(b"", 9, start=b""),
    "no http": whole(b"", status="what\r\n"),
    "cut short": cut_short(b'{"data": [{"id": "m"}]}'),
    "error": whole(b"oops", status="500 Internal Server Error"),
    "bomb": whole(gzip.compress(b" " * 10_000_000), Content_Encoding="gzip"),
    "another host": whole(b"", status="302 Found", Location="http://localhost:1/x"),
    "a file": whole(b"", status="307 Temporary Redirect", Location="file:///etc/passwd"),
    "itself": whole(b"", status="301 Moved", Location="/v1/models"),
}

BAD_STREAMS: dict[str, Respond] = {
    **{name: answer for name, answer in BAD_ANSWERS.items() if name not in ("deep", "bomb")},
    "list event": until_the_end(event([1])),
    "number event": until_the_end(event(1) + GOOD),
    "null choices": until_the_end(event({"choices": None}) * 3 + b"data: [DONE]\n\n"),
    "text choices": until_the_end(event({"choices": "abc"}) + GOOD),
    "number choice": until_the_end(event({"choices": [1]}) + GOOD),
    "usage of text": until_the_end(TOKEN + event({"usage": "many"}) + GOOD),
    "usage of billions": until_the_end(TOKEN + event({"usage": {"prompt_tokens": 10**12}}) + GOOD),
    "no json": until_the_end(b"data: {\n\n" + GOOD),
    "bytes": until_the_end(b'data: {"choices": "\xff"}\n\n' + GOOD),
    "deep event": until_the_end(b"data: " + b"[" * 50_000 + b"\n\n"),
    "reported": until_the_end(TOKEN + event({"error": {"message": "out of memory"}})),
    "closed in the middle": until_the_end(TOKEN * 2),
    "endless tokens": endless(TOKEN),
    "slow tokens": endless(TOKEN, 0.2),
    "endless line": endless(b"data: " + b"x" * 1000),
    "endless comments": endless(b": nothing\n"),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_wrong_list_of_models_is_one_error(server: Server, name: str):
    server.respond["/v1/models"] = BAD_ANSWERS[name]
    started = time.monotonic()
    with pytest.raises(ResourceError, match="does not respond as expected"):
        Endpoint(f"http://{server.address}", limits=LIMITS)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("name", ["null inside", "wrong types", "slow", "another host"])
def test_a_wrong_chat_response_is_one_error(server: Server, name: str):
    server.respond["/v1/chat/completions"] = BAD_ANSWERS[name]
    with pytest.raises(ResourceError, match="does not respond as expected"):
        Endpoint(f"http://{server.address}", "m", LIMITS).chat("x", 5)


@pytest.mark.parametrize("name", BAD_STREAMS)
def test_a_wrong_stream_is_one_error(server: Server, name: str, tmp_path: Path):
    server.respond["/v1/completions"] = BAD_STREAMS[name]
    endpoint = Endpoint(f"http://{server.address}", "m", LIMITS)
    started = time.monotonic()
    with pytest.raises(ResourceError, match=r"does not respond as expected|sent an empty answer"):
        run_endpoint_cell(endpoint, 2, SETTINGS, locks=tmp_path)
    assert time.monotonic() - started < 10


def test_the_good_stream_is_measured(server: Server, tmp_path: Path):
    server.respond["/v1/completions"] = until_the_end(GOOD)
    endpoint = Endpoint(f"http://{server.address}/v1/")
    assert endpoint.model == "m"
    record, samples = run_endpoint_cell(endpoint, 2, SETTINGS, locks=tmp_path)
    assert [len(sample.token_ms) for sample in samples] == [2]
    assert record.metadata.prompt_tokens == 4


def test_credentials_go_into_requests_and_nowhere_else(server: Server, tmp_path: Path):
    server.respond["/v1/completions"] = until_the_end(GOOD)
    url = f"http://us%40er:pass-w0rd%21@{server.address}/v1?api_key=k3y-value&x=1#frag-ment"
    endpoint = Endpoint(url)
    store = ResultStore(tmp_path / "results")
    record, samples = run_endpoint_cell(endpoint, 1, SETTINGS, locks=tmp_path)
    store.append(record, samples)
    collect_csv(store.folder, tmp_path / "all.csv")
    with (tmp_path / "all.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["artifact_id"] == endpoint.base_url == f"http://{server.address}"
    written = "".join(
        path.read_text() for path in tmp_path.rglob("*") if path.suffix in (".csv", ".json")
    )
    token = base64.b64encode(b"us@er:pass-w0rd!").decode()
    for request in server.requests:
        assert f"Basic {token}" in request and "?api_key=k3y-value&x=1" in request
    errors = []
    for status in ("401 pass-w0rd! k3y-value", "302 Found"):
        for path in ("/v1/models", "/v1/completions", "/v1/chat/completions"):
            server.respond[path] = whole(b"", status=status, Location=f"http://{url}")
        errors.append(failure(lambda: Endpoint(url)))
        errors.append(failure(lambda: endpoint.chat("x", 1)))
        errors.append(failure(lambda: endpoint.stream_all(["x"], 1)))
    server.close()
    errors.append(failure(lambda: Endpoint(url)))
    for text in (written, *errors):
        for secret in ("us@er", "us%40er", "pass-w0rd", "k3y-value", "frag-ment", token):
            assert secret not in text, text


def failure(call: Callable[[], object]) -> str:
    with pytest.raises(QuantAssetsError) as raised:
        call()
    return str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://user:pass-w0rd@host",
        "user:pass-w0rd@host:8000",
        "http://",
        "http:///v1?key=pass-w0rd",
        "http://user:pass-w0rd@[::1",
        "http://user:pass-w0rd@host:99999999",
        "",
    ],
)
def test_a_wrong_url_is_refused_without_its_secrets(url: str):
    with pytest.raises(InputError, match="is not an endpoint") as refused:
        Endpoint(url)
    assert "pass-w0rd" not in str(refused.value)
