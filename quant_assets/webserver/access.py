"""Who may use the webserver: its own pages, and programs of the user who started it.

Dagster's webserver takes whatever reaches its port, and a browser carries requests of any web page
there. Browsers say where a request comes from (`Origin`, `Sec-Fetch-Site`) and which name they
looked up (`Host`; another one means that a foreign name was pointed at this machine). A page can
forge none of the three. Older browsers leave some out; what they send without a check in advance
(links, images, forms) is refused by its method or its content type.
"""

import os
import socket
import sys
from collections.abc import Callable, Collection
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_GRAPHQL = "/graphql"
_POLICY_VIOLATION = 1008  # RFC 6455, 7.4.1
_ESTABLISHED = "01"  # linux/tcp_states.h
_ROOT = 0

_RESPONSE_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
}


class Refusal(NamedTuple):
    """Why a request is not answered."""

    status: HTTPStatus
    reason: str


class AccessCheck:
    """ASGI middleware that answers in place of the application what must not reach it.

    `hosts` are the names of this server with their ports, as a browser writes them into `Host`.
    `is_page` tells pages, which links may lead to from anywhere, from everything else. With
    `any_user`, other users of this machine are let in.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str],
        is_page: Callable[[Scope], bool],
        any_user: bool = False,
    ) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}
        self._is_page = is_page
        self._any_user = any_user

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or websocket, or pass it on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            answer = PlainTextResponse(refusal.reason + "\n", refusal.status)
            await answer(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        hosts = [host.lower() for host in headers.getlist("host")]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return Refusal(
                HTTPStatus.FORBIDDEN,
                f"This server answers to {', '.join(sorted(self._hosts))} alone. For another name, "
                "set QUANT_ASSETS_UI_HOSTS, such as '[\"gpu-box:3000\"]'.",
            )
        own = {f"http://{hosts[0]}", f"https://{hosts[0]}"}
        if any(origin.lower() not in own for origin in headers.getlist("origin")):
            return Refusal(HTTPStatus.FORBIDDEN, "Requests of other web pages are refused.")
        sites = headers.getlist("sec-fetch-site")
        if any(site not in ("same-origin", "none") for site in sites) and not self._is_visit(scope):
            return Refusal(HTTPStatus.FORBIDDEN, "Requests of other web pages are refused.")
        if not self._any_user and not _is_own_user(scope):
            return Refusal(
                HTTPStatus.FORBIDDEN,
                "This server is another user's. Its owner can let all users of this machine in by "
                "QUANT_ASSETS_UI_ANY_USER=true.",
            )
        return None if scope["type"] == "websocket" else _wrong_form(scope)

    def _is_visit(self, scope: Scope) -> bool:
        """Whether a link, wherever it stands, opens a page in a window of its own."""
        headers = Headers(scope=scope)
        return (
            scope["type"] == "http"
            and scope["method"] == "GET"
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
            and self._is_page(scope)
        )


def _wrong_form(scope: Scope) -> Refusal | None:
    """Why this method or content type is refused: a page could send it without being asked."""
    headers = Headers(scope=scope)
    if scope["method"] in ("GET", "HEAD"):
        # With a browser's Accept it is the editor of queries, which executes nothing by itself.
        if scope["path"] == _GRAPHQL and "text/html" not in headers.get("accept", ""):
            return Refusal(
                HTTPStatus.METHOD_NOT_ALLOWED, "GraphQL is taken by POST, as application/json."
            )
        return None
    if scope["method"] != "POST":
        return Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "Only GET, HEAD and POST are served.")
    types = [value.partition(";")[0].strip().lower() for value in headers.getlist("content-type")]
    if types != ["application/json"]:
        return Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "POST needs the content type application/json."
        )
    return None


def _with_headers(send: Send) -> Send:
    """`send` with headers that keep answers out of other pages, as frames or otherwise."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _RESPONSE_HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers


def _is_own_user(scope: Scope) -> bool:
    """Whether the connection is of this process's user, or of root; true where nothing tells."""
    if sys.platform != "linux":
        return True
    return connecting_user(scope["client"], scope["server"]) in (os.getuid(), _ROOT)


def connecting_user(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """The user id at the other end of an open IPv4 connection within this machine (Linux)."""
    ends = [_kernel_address(*client), _kernel_address(*server)]
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        # "number: local remote state queues timer retransmissions user ..."
        fields = line.split()
        # The kernel forgets the user of a connection that its process has closed.
        if fields[1:3] == ends and fields[3] == _ESTABLISHED:
            return int(fields[7])
    return None


def _kernel_address(host: str, port: int) -> str:
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"
