"""Writing the warehouse: every writer changes a private copy, which then replaces the published file.

While one process has a DuckDB file open for writing, no other process can read it. So a writer takes
a lock, copies the published file, changes the copy and, once that has passed its checks, renames it
over the published one. A writer that fails or is killed leaves the published file as it was, and the
next writer starts from there. The files of the data root are the record: when the published file is
missing or damaged, the next writer rebuilds it from them.
"""

import logging
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import duckdb

from quant_assets.atomic_files import replace_durably
from quant_assets.errors import CheckFailed, ResourceError
from quant_assets.host.locks import exclusive_lock
from quant_assets.warehouse.database_file import (
    Seed,
    configure,
    create_raw_tables,
    fold_log_in,
    is_damage,
    read_through,
    write_ahead_log,
)
from quant_assets.warehouse.read_only import read_only_connection, require_a_file

DEFAULT_WAIT_S = 600.0

_log = logging.getLogger(__name__)


class Warehouse:
    """The published DuckDB file `path`, how it is read and how it is written.

    `seed` fills a new file when the published one is missing or damaged. The copy that a writer
    changes keeps the file name of `path`: DuckDB names a database after its file, and the views in
    it refer to that name.
    """

    def __init__(
        self, path: Path, *, seed: Seed | None = None, wait_s: float = DEFAULT_WAIT_S
    ) -> None:
        self.path = path
        self._seed = seed
        self._wait_s = wait_s
        self._builds = path.parent / "build"

    def read(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A connection to the published file that only reads; see `read_only_connection`."""
        return read_only_connection(self.path)

    @contextmanager
    def write(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a connection in one transaction; commit and publish when the block succeeds."""
        with self.exclusive() as build:
            with self._writable():
                connection = duckdb.connect(str(build))
            try:
                with self._writable():
                    configure(connection)
                    connection.begin()
                try:
                    yield connection
                except duckdb.Error as error:
                    # Large loads reach the disk before the commit.
                    if is_damage(error):
                        raise self._unwritable(error) from error
                    raise
                with self._writable():
                    connection.commit()
            finally:
                # Closing rolls back an open transaction and folds in the write-ahead log.
                connection.close()

    @contextmanager
    def exclusive(self) -> Iterator[Path]:
        """Yield the path of a copy of the published file; publish it when the block succeeds.

        The copy has all raw tables. Meanwhile no other writer works, in any process. Nothing is
        published when the block raises, when the copy is damaged, or when it lacks a table or view
        of the published file (`CheckFailed`). Raises `ResourceError` when another writer holds the
        lock longer than the waiting time, or when the disk is full or not writable.
        """
        lock = self._builds / f"{self.path.name}.lock"
        with exclusive_lock(lock, f"the warehouse {self.path}", wait_s=self._wait_s):
            with self._writable():
                self._remove_leftovers(lock)
                folder = self._builds / secrets.token_hex(6)
                folder.mkdir()
            try:
                build = folder / self.path.name
                with self._writable():
                    published = self._start(build)
                yield build
                with self._writable():
                    self._publish(build, published)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _start(self, build: Path) -> set[str]:
        """Create the copy; return the published tables and views.

        A published file that is damaged, or that another program wrote, is set aside and rebuilt.
        """
        if self.path.exists():
            require_a_file(self.path)
            shutil.copyfile(self.path, build)
            try:
                if any(name.startswith("raw.") for name in read_through(build)):
                    return create_raw_tables(build)
                fault = "It has no raw tables, so another program wrote it."
            except duckdb.OutOfMemoryException:
                raise
            except duckdb.Error as error:
                fault = str(error).splitlines()[0]
            self._set_aside(fault)
            for leftover in (build, write_ahead_log(build)):
                leftover.unlink(missing_ok=True)
        create_raw_tables(build, self._seed)
        return set()

    def _set_aside(self, fault: str) -> None:
        kept = self.path.with_name(f"{self.path.name}.damaged")
        _log.warning(
            "The warehouse %s is damaged; it is kept as %s and rebuilt from the records. Its marts "
            "are missing until `make demo` or the job `refresh_marts` has built them. %s",
            self.path,
            kept,
            fault,
        )
        self.path.replace(kept)

    def _publish(self, build: Path, published: set[str]) -> None:
        fold_log_in(build)
        lost = sorted(published - read_through(build))
        if lost:
            raise CheckFailed(
                f"The new state of the warehouse {self.path} is not published.",
                f"It lacks {', '.join(lost)}, which the published one has.",
                "The published file is unchanged. Run the command again; if that does not help, run "
                "`make demo`.",
            )
        # Another program that wrote into the published file left this log; it would be replayed.
        write_ahead_log(self.path).unlink(missing_ok=True)
        replace_durably(build, self.path)

    def _remove_leftovers(self, lock: Path) -> None:
        """Remove what killed writers left in the build folder."""
        for leftover in self._builds.iterdir():
            if leftover.is_dir() and not leftover.is_symlink():
                shutil.rmtree(leftover)
            elif leftover != lock:
                leftover.unlink()

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """Turn what a full or protected disk does to the copy into a `ResourceError`."""
        try:
            yield
        except OSError as error:
            raise self._unwritable(error) from error
        except duckdb.Error as error:
            if is_damage(error):
                raise self._unwritable(error) from error
            raise

    def _unwritable(self, error: Exception) -> ResourceError:
        return ResourceError(
            f"The warehouse {self.path} cannot be written; the published file is unchanged.",
            f"The system reports: {str(error).splitlines()[0]}",
            f"Free space in {self.path.parent} or make it writable, then run the same command "
            "again.",
        )
