"""Access to the webserver: its own pages, and programs of the user who started it.

Dagster's webserver answers every request that reaches its port, and any web page can make a browser
send requests there. Browsers report where a request comes from (`Origin`, `Sec-Fetch-Site`) and
which name they resolved (`Host`; an unknown name means DNS rebinding). A page cannot forge these
headers. Older browsers omit some; their requests without a CORS preflight (links, images, forms)
are refused by method or content type.
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
    """The response to a refused request."""

    status: HTTPStatus
    reason: str


class AccessCheck:
    """ASGI middleware that refuses requests which must not reach the application.

    `hosts` are the names of this server with ports, as browsers write them into `Host`. `is_page`
    identifies pages, which links from other sites may open. `any_user` admits other users of this
    machine.
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
                f"This server answers only to {', '.join(sorted(self._hosts))}. For another name, "
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
                "This server is another user's. Its owner can admit all users of this machine with "
                "QUANT_ASSETS_UI_ANY_USER=true.",
            )
        return None if scope["type"] == "websocket" else _form_refusal(scope)

    def _is_visit(self, scope: Scope) -> bool:
        """Whether this is a link, from any site, that opens a page of the UI in a window or tab."""
        headers = Headers(scope=scope)
        return (
            scope["type"] == "http"
            and scope["method"] == "GET"
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
            and self._is_page(scope)
        )


def _form_refusal(scope: Scope) -> Refusal | None:
    """The refusal of methods and content types that a page can send without a CORS preflight."""
    headers = Headers(scope=scope)
    if scope["method"] in ("GET", "HEAD"):
        # A browser's Accept header gets the query editor, which executes nothing by itself.
        if scope["path"] == _GRAPHQL and "text/html" not in headers.get("accept", ""):
            return Refusal(
                HTTPStatus.METHOD_NOT_ALLOWED, "GraphQL needs POST with application/json."
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
    """`send` with headers that keep other pages from reading or framing the responses."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _RESPONSE_HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers


def _is_own_user(scope: Scope) -> bool:
    """Whether this process's user or root opened the connection; true where this is unknown."""
    if sys.platform != "linux":
        return True
    return connecting_user(scope["client"], scope["server"]) in (os.getuid(), _ROOT)


def connecting_user(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """The user id at the other end of an open IPv4 connection within this machine (Linux)."""
    ends = [_kernel_address(*client), _kernel_address(*server)]
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        # "number: local remote state queues timer retransmissions user ..."
        fields = line.split()
        # Once its process has closed a connection, the kernel no longer knows the user.
        if fields[1:3] == ends and fields[3] == _ESTABLISHED:
            return int(fields[7])
    return None


def _kernel_address(host: str, port: int) -> str:
    return f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"
