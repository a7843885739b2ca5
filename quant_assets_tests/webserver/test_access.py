"""Access to the webserver over real sockets: requests as browsers and programs send them."""

import http.client
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from quant_assets.webserver.access import AccessCheck, connecting_user

JSON = {"Content-Type": "application/json"}
VISIT = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
_NOBODY = 65534
HTML = {"Accept": "text/html"}


class Served(NamedTuple):
    """A server, and the requests that reached the application behind the check."""

    port: int
    reached: list[str]

    def ask(self, method: str, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, path, skip_host=True)
        filled = {"Host": "127.0.0.1:PORT", **headers}
        for name, values in filled.items():
            for value in values.split("\n"):
                connection.putheader(name, value.replace("PORT", str(self.port)))
        if method == "POST":
            connection.putheader("Content-Length", "2")
        connection.endheaders(b"{}" if method == "POST" else None)
        return connection.getresponse()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """The application behind the check answers 200 to every request and records it."""
    reached: list[str] = []

    async def answer(request: Request) -> PlainTextResponse:
        reached.append(f"{request.method} {request.url.path}")
        return PlainTextResponse("answered")

    async def talk(websocket: WebSocket) -> None:
        reached.append("websocket")
        await websocket.accept()
        await websocket.close()

    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    app = AccessCheck(
        Starlette(
            routes=[
                WebSocketRoute("/graphql", talk),
                Route("/{path:path}", answer, methods=["GET", "POST", "PUT", "DELETE", "OPTIONS"]),
            ]
        ),
        hosts=[f"127.0.0.1:{port}", f"localhost:{port}", "Box.example"],
        is_page=lambda scope: scope["path"].startswith("/runs"),
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", proxy_headers=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield Served(port, reached)
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/runs", {}),
        ("POST", "/graphql", JSON),
        ("POST", "/graphql", {"Content-Type": "Application/JSON; charset=utf-8"}),
        ("POST", "/graphql", JSON | {"Origin": "http://127.0.0.1:PORT"}),
        (
            "POST",
            "/graphql",
            JSON
            | {"Host": "localhost:PORT", "Origin": "http://localhost:PORT"}
            | {"Sec-Fetch-Site": "same-origin"},
        ),
        ("GET", "/graphql", HTML | VISIT | {"Sec-Fetch-Site": "same-origin"}),
        ("GET", "/logs/run/step.err", VISIT | {"Sec-Fetch-Site": "same-origin"}),
        ("GET", "/runs/1", HTML | VISIT | {"Sec-Fetch-Site": "none"}),
        ("GET", "/runs/1", HTML | VISIT | {"Sec-Fetch-Site": "cross-site"}),
        ("POST", "/graphql", JSON | {"Host": "box.EXAMPLE", "Origin": "https://box.example"}),
        ("POST", "/report_asset_materialization/a", JSON),
    ],
)
def test_own_pages_and_programs_are_answered(
    served: Served, method: str, path: str, headers: dict[str, str]
):
    answer = served.ask(method, path, headers)
    assert answer.status == 200
    assert served.reached[-1] == f"{method} {path}"
    assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert answer.headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize(
    ("status", "method", "path", "headers"),
    [
        # DNS rebinding: a foreign name that resolves to this machine
        (403, "GET", "/runs", {"Host": "evil.example"}),
        (403, "POST", "/graphql", JSON | {"Host": "evil.example:PORT"}),
        (403, "POST", "/graphql", JSON | {"Host": "127.0.0.1"}),
        (403, "POST", "/graphql", JSON | {"Host": "127.0.0.1:PORT@evil.example"}),
        (403, "POST", "/graphql", JSON | {"Host": "127.0.0.1:PORT\nevil.example"}),
        # pages of other sites, of other ports of this machine, of files
        (403, "POST", "/graphql", JSON | {"Origin": "http://evil.example"}),
        (403, "POST", "/graphql", JSON | {"Origin": "http://127.0.0.1:1"}),
        (403, "POST", "/graphql", JSON | {"Origin": "http://localhost:PORT"}),
        (403, "POST", "/graphql", JSON | {"Origin": "http://127.0.0.1:PORT.evil.example"}),
        (403, "POST", "/graphql", JSON | {"Origin": "null"}),
        (403, "POST", "/graphql", JSON | {"Origin": "http://127.0.0.1:PORT\nhttp://evil.example"}),
        (403, "GET", "/runs", {"Origin": "http://evil.example"}),
        (403, "POST", "/graphql", JSON | {"Sec-Fetch-Site": "cross-site"}),
        (403, "POST", "/graphql", JSON | {"Sec-Fetch-Site": "same-site"}),
        # images, scripts, frames, forms, and links to anything but pages
        (403, "GET", "/favicon.png", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "image"}),
        (403, "GET", "/runs", {"Sec-Fetch-Site": "same-site", **VISIT, "Sec-Fetch-Dest": "iframe"}),
        (403, "POST", "/runs", JSON | VISIT | {"Sec-Fetch-Site": "cross-site"}),
        (403, "GET", "/graphql", HTML | VISIT | {"Sec-Fetch-Site": "cross-site"}),
        (403, "GET", "/logs/run/step.err", VISIT | {"Sec-Fetch-Site": "cross-site"}),
        # requests that browsers without these headers send without a preflight
        (405, "GET", "/graphql?query=mutation%7Ba%7D", {}),
        (405, "HEAD", "/graphql?query=mutation%7Ba%7D", {}),
        (405, "GET", "/%67raphql?query=mutation%7Ba%7D", {"Accept": "*/*"}),
        (415, "POST", "/graphql", {"Content-Type": "text/plain"}),
        (415, "POST", "/graphql", {"Content-Type": "text/plain; application/json"}),
        (415, "POST", "/graphql", {"Content-Type": "text/plain\napplication/json"}),
        (415, "POST", "/graphql", {"Content-Type": "application/x-www-form-urlencoded"}),
        (415, "POST", "/graphql?query=mutation%7Ba%7D", {}),
        (415, "POST", "/report_asset_materialization/a", {"Content-Type": "text/plain"}),
        (415, "POST", "/report_asset_check/a", {}),
        # CORS preflights, and unused methods
        (405, "OPTIONS", "/graphql", {"Access-Control-Request-Method": "POST"}),
        (405, "PUT", "/graphql", JSON),
        (405, "DELETE", "/runs", JSON),
    ],
)
def test_requests_of_other_pages_are_refused(
    served: Served, status: int, method: str, path: str, headers: dict[str, str]
):
    before = len(served.reached)
    answer = served.ask(method, path, headers)
    # Two Host headers are refused by HTTP itself.
    assert answer.status == status or (answer.status == 400 and "\n" in headers.get("Host", ""))
    assert len(served.reached) == before
    assert answer.headers["Access-Control-Allow-Origin"] is None


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://127.0.0.1:PORT"}, 101),
        ({}, 101),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:PORT", "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_only_own_pages_can_open_websockets(served: Served, headers: dict[str, str], status: int):
    before = len(served.reached)
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    assert served.ask("GET", "/graphql", upgrade | headers).status == status
    assert len(served.reached) - before == (1 if status == 101 else 0)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc/net/tcp")
def test_the_kernel_identifies_the_connecting_user():
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as client,
    ):
        server, address = listening.accept()
        with server:
            assert connecting_user(address, server.getsockname()) == os.getuid()
            client.close()
            assert connecting_user(address, server.getsockname()) is None


@pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0, reason="only root can act as another user"
)
def test_other_users_of_the_machine_are_refused(served: Served):
    before = len(served.reached)
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    os.seteuid(_NOBODY)
    try:
        connection.connect()  # a socket belongs to the user who creates it
    finally:
        os.seteuid(0)
    connection.request("GET", "/runs")
    answer = connection.getresponse()
    assert answer.status == 403
    assert b"another user's" in answer.read()
    assert len(served.reached) == before
