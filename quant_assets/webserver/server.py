"""The UI's processes: Dagster's webserver in this one, its code server and daemon as children.

It does what `dagster dev` does, with the webserver behind `AccessCheck`. Everything listens on
127.0.0.1 or on sockets in a folder that only this user can open. Dagster has no public interface
for embedding its webserver: the private names below are those that `dagster dev` uses.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import dagster as dg
import uvicorn
import yaml

# Starts the code servers, and restarts them when the UI reloads a code location.
from dagster._cli.proxy_server_manager import ProxyServerManager

# The context that the webserver is built on, and the type of its requests.
from dagster._core.workspace.context import BaseWorkspaceRequestContext, WorkspaceProcessContext

# Names the workspace.yaml to load.
from dagster._core.workspace.load_target import WorkspaceFileTarget

# Writes the instance for the daemon's `--instance-ref`.
from dagster_shared.serdes import serialize_value
from dagster_webserver.version import __version__
from dagster_webserver.webserver import DagsterWebserver
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from quant_assets.settings import PROJECT_ROOT, Settings
from quant_assets.webserver.access import AccessCheck
from quant_assets.webserver.messages import visible_messages

HOST = "127.0.0.1"
_POLL_INTERVAL_MS = 2000
_LOG_LEVEL = "warning"
_END_LIMIT_S = 1
"""Grace period for open connections, and then for the daemon."""


class LocalWebserver(DagsterWebserver[WorkspaceProcessContext, BaseWorkspaceRequestContext]):
    """Dagster's webserver for this machine and this user."""

    def __init__(
        self, context: WorkspaceProcessContext, *, hosts: Collection[str], any_user: bool
    ) -> None:
        self._hosts = hosts
        self._any_user = any_user
        super().__init__(context, live_data_poll_rate=_POLL_INTERVAL_MS)
        self._routes: list[BaseRoute] = self.build_routes()  # type: ignore[no-untyped-call]

    def build_middleware(self) -> list[Middleware]:
        """Dagster's middleware, inside the access check."""
        check = Middleware(
            AccessCheck, hosts=self._hosts, is_page=self._is_page, any_user=self._any_user
        )
        return [check, *super().build_middleware()]

    def _is_page(self, scope: Scope) -> bool:
        """Whether the request is for the UI itself: any path that no endpoint matches."""
        matching = (route for route in self._routes if _matches(route, scope))
        route = next(matching, None)
        return isinstance(route, Route) and route.endpoint == self.index_html_endpoint


def _matches(route: BaseRoute, scope: Scope) -> bool:
    return route.matches(scope)[0] is not Match.NONE


def serve(settings: Settings, port: int) -> None:
    """Serve the UI until SIGINT, SIGTERM or the daemon's end; DAGSTER_HOME names the instance."""
    hosts = [f"{name}:{port}" for name in (HOST, "localhost", "[::1]")]
    os.environ["DAGSTER_IS_DEV_CLI"] = "1"  # dbt's manifest is rebuilt when stale
    with (
        _private_temporary_folder() as folder,
        dg.DagsterInstance.get() as instance,
        ProxyServerManager(
            instance, WorkspaceFileTarget([str(PROJECT_ROOT / "workspace.yaml")]), _LOG_LEVEL
        ) as code_servers,
    ):
        workspace = folder / "workspace.yaml"
        workspace.write_text(yaml.dump({"load_from": code_servers.get_code_server_specs()}))
        with (
            WorkspaceProcessContext(
                instance,
                WorkspaceFileTarget([str(workspace)]),
                version=__version__,
                code_server_log_level=_LOG_LEVEL,
            ) as context,
            _daemon(instance, workspace) as daemon,
        ):
            webserver = LocalWebserver(
                context, hosts=[*hosts, *settings.ui_hosts], any_user=settings.ui_any_user
            )
            _listen(webserver, port, daemon)


def _listen(webserver: LocalWebserver, port: int, daemon: subprocess.Popen[bytes]) -> None:
    """Answer requests until a signal comes or the daemon ends."""
    server = uvicorn.Server(
        uvicorn.Config(
            webserver.create_asgi_app(),
            host=HOST,
            port=port,
            log_level=_LOG_LEVEL,
            proxy_headers=False,  # a forged `X-Forwarded-For` would hide the client's address
            server_header=False,
            timeout_graceful_shutdown=_END_LIMIT_S,
        )
    )

    def end_with_daemon() -> None:
        daemon.wait()
        server.should_exit = True

    threading.Thread(target=end_with_daemon, daemon=True).start()
    server.run()
    if daemon.poll() is not None:
        raise SystemExit(daemon.returncode or 1)


@contextmanager
def _private_temporary_folder() -> Iterator[Path]:
    """A folder that only this user can open, for temporary files of this process and its children."""
    with tempfile.TemporaryDirectory(prefix="quant-assets-ui-") as name:
        os.environ["TMPDIR"] = tempfile.tempdir = name
        try:
            yield Path(name)
        finally:
            tempfile.tempdir = None


@contextmanager
def _daemon(instance: dg.DagsterInstance, workspace: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Dagster's daemon, which evaluates schedules and sensors, while the block runs."""
    options = ["--workspace", str(workspace), "--instance-ref", serialize_value(instance.get_ref())]
    daemon = subprocess.Popen([sys.executable, "-m", "dagster._daemon", "run", *options])
    try:
        yield daemon
    finally:
        daemon.terminate()
        try:
            daemon.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def main(arguments: Sequence[str]) -> None:
    """Serve on the port that `arguments` names; SIGTERM ends it as Ctrl-C does."""

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        with visible_messages():
            serve(Settings(), int(arguments[0]))
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


if __name__ == "__main__":
    main(sys.argv[1:])
