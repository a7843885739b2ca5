"""Servers on this machine that stand in for the hub and for an inference server."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from quant_assets.models.identity import sha256_of

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Quiet(BaseHTTPRequestHandler):
    """HTTP/1.0: a response without a length ends with its connection."""

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def send_document(self, status: int, document: object, **headers: str) -> None:
        """Send a JSON document."""
        content = json.dumps(document).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], port: int = 0) -> Iterator[str]:
    """Serve on 127.0.0.1 while the block runs; yields the URL."""
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def gated_hub(model: Path, token: str) -> type[BaseHTTPRequestHandler]:
    """A hub with one gated model, `owner/gated`, the files of the folder `model`."""

    class Hub(_Quiet):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if self.headers.get("Authorization") != f"Bearer {token}":
                self.send_document(
                    401,
                    {"error": "Access to model owner/gated is restricted."},
                    X_Error_Code="GatedRepo",
                    X_Error_Message="Access to model owner/gated is restricted.",
                )
            elif path.startswith("/api/models/owner/gated"):
                files = sorted(model.iterdir())
                siblings = [{"rfilename": file.name} for file in files]
                tree = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0"}
                    for file in files
                ]
                info = {"id": "owner/gated", "sha": _COMMIT, "siblings": siblings}
                self.send_document(200, tree if "/tree/" in path else info)
            else:
                self._send_file(model / path.rpartition("/")[2])

        do_HEAD = do_GET

        def _send_file(self, file: Path) -> None:
            if not file.is_file():
                self.send_document(404, {"error": "not found"}, X_Error_Code="EntryNotFound")
                return
            self.send_response(200)
            self.send_header("ETag", f'"{sha256_of(file)}"')
            self.send_header("X-Repo-Commit", _COMMIT)
            self.send_header("Content-Length", str(file.stat().st_size))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(file.read_bytes())

    return Hub


class Completions(_Quiet):
    """An inference server with one model that streams as many words as it is asked for."""

    model: ClassVar[str] = "words"

    def do_GET(self) -> None:
        self.send_document(200, {"object": "list", "data": [{"id": self.model}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for number in range(asked["max_tokens"]):
            last = number + 1 == asked["max_tokens"]
            self._send({"text": f"word{number} ", "finish_reason": "length" if last else None})
        usage = {"prompt_tokens": 8, "completion_tokens": asked["max_tokens"]}
        self._line({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, choice: dict[str, Any]) -> None:
        self._line({"choices": [{"index": 0, **choice}]})

    def _line(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()
