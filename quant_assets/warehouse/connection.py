"""One writer, many readers: the warehouse is written in a build file and published whole.

DuckDB lets one process write a file and then no other read it. So writers take turns on a build
file, and after every write its copy replaces the public file atomically: who reads the public file
never waits, and never sees half of a load.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
from filelock import FileLock, Timeout

from quant_assets.atomic_files import atomic_path
from quant_assets.errors import InputError, ResourceError

DEFAULT_WAIT_S = 600.0
_SCHEMA = Path(__file__).with_name("schema.sql")


class Warehouse:
    """The DuckDB file that people query (`path`), and the build file behind it (`build_path`).

    Both have the same file name: DuckDB calls a database by it, and views inside refer to it.
    """

    def __init__(self, path: Path, *, wait_s: float = DEFAULT_WAIT_S) -> None:
        self.path = path
        self.build_path = path.parent / "build" / path.name
        self._wait_s = wait_s

    @contextmanager
    def exclusive(self) -> Iterator[Path]:
        """Hold the build file alone, also against other processes; publish it when the block ends.

        Yields the build file's path. When the block raises, nothing is published. Raises
        `ResourceError` when another writer holds it for longer than the waiting time.
        """
        self.build_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(f"{self.build_path}.lock").acquire(timeout=self._wait_s)
        except Timeout as error:
            raise ResourceError(
                f"The warehouse {self.path} is being written by another process.",
                f"It was not free for {self._wait_s:.0f} s.",
                "Wait for the other run to end, then run the same command again.",
            ) from error
        with lock:
            yield self.build_path
            with atomic_path(self.path) as copy:
                shutil.copyfile(self.build_path, copy)

    @contextmanager
    def write(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a connection in one transaction; commit and publish when the block succeeds."""
        with self.exclusive() as build_path:
            connection = duckdb.connect(str(build_path))
            try:
                _set_up(connection)
                connection.execute(_SCHEMA.read_text(encoding="utf-8")).fetchall()
                connection.begin()
                yield connection
                connection.commit()
            finally:
                # Closing rolls an open transaction back and folds the write-ahead log in.
                connection.close()

    @contextmanager
    def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a read-only connection to the published file; `InputError` when there is none."""
        if not self.path.exists():
            raise InputError(
                f"There is no warehouse at {self.path}.",
                "Nothing has been loaded yet.",
                "Run `make demo`, or materialize the assets in the Dagster UI.",
            )
        connection = duckdb.connect(str(self.path), read_only=True)
        try:
            _set_up(connection)
            yield connection
        finally:
            connection.close()


def _set_up(connection: duckdb.DuckDBPyConnection) -> None:
    """Times in UTC; no progress bar, which would go to standard output."""
    connection.execute("set time zone 'UTC'").fetchall()
    connection.execute("set enable_progress_bar = false").fetchall()
