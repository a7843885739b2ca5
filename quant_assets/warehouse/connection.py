"""Every writer works on a copy of its own; what it published is whole, and all that readers see.

DuckDB lets one process write a file and then no other read it. So a writer takes a lock, copies the
published file, changes the copy and, when that has passed its checks, renames it over the published
one. The copy is nothing that lasts: a writer that fails or is killed leaves the published file as it
was, and the next one begins from there. Files of the data root are the record; a published file that
is missing or damaged is rebuilt from them by the next writer.
"""

import logging
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from quant_assets.atomic_files import replace_durably
from quant_assets.errors import CheckFailed, InputError, ResourceError
from quant_assets.host.locks import exclusive_lock

DEFAULT_WAIT_S = 600.0
READ_MEMORY_LIMIT = "2GB"
QUERY_LIMIT_S = 600

Seed = Callable[[duckdb.DuckDBPyConnection], None]
"""Fills the empty raw tables of a new file from the records."""

_SCHEMA = Path(__file__).with_name("schema.sql")
_REBUILD = (
    "Nothing is lost: the files of the data root are the record. Run `make demo`, which rebuilds it "
    "from them and measures nothing twice."
)
_log = logging.getLogger(__name__)


class Warehouse:
    """The DuckDB file that people query (`path`), and how it is written.

    `seed` fills a new file when there is none to begin from, or a damaged one. The copy that a
    writer changes has the file name of `path`: DuckDB calls a database by it, and views inside
    refer to it.
    """

    def __init__(
        self, path: Path, *, seed: Seed | None = None, wait_s: float = DEFAULT_WAIT_S
    ) -> None:
        self.path = path
        self._seed = seed
        self._wait_s = wait_s
        self._builds = path.parent / "build"

    @contextmanager
    def exclusive(self) -> Iterator[Path]:
        """Yield the path of a copy of the published file; publish it when the block succeeds.

        The copy has all raw tables. No other writer works meanwhile, in any process. Nothing is
        published when the block raises, when the copy cannot be read to its end, or when a table or
        view of the published file is missing in it (`CheckFailed`). Raises `ResourceError` when
        another writer takes longer than the waiting time, or the disk is full or cannot be
        written.
        """
        lock = self._builds / f"{self.path.name}.lock"
        with exclusive_lock(lock, f"the warehouse {self.path}", wait_s=self._wait_s):
            with self._writable():
                self._remove_what_killed_writers_left(lock)
                folder = self._builds / secrets.token_hex(6)
                folder.mkdir()
            try:
                build = folder / self.path.name
                with self._writable():
                    before = self._begin(build)
                yield build
                with self._writable():
                    self._publish(build, before)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def write(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a connection in one transaction; commit and publish when the block succeeds."""
        with self.exclusive() as build:
            with self._writable():
                connection = duckdb.connect(str(build))
            try:
                with self._writable():
                    _set_up(connection)
                    connection.begin()
                try:
                    yield connection
                except duckdb.Error as error:
                    # Large loads are written before the commit.
                    if is_damage(error):
                        raise self._unwritable(error) from error
                    raise
                with self._writable():
                    connection.commit()
            finally:
                # Closing rolls an open transaction back and folds the write-ahead log in.
                connection.close()

    @contextmanager
    def read(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a connection to the published file that can change nothing and reach nothing else.

        No other file, no network, no extension and no variable of the process can be read through
        it, its settings cannot be changed, and a statement ends after `QUERY_LIMIT_S` seconds.
        Raises `InputError` when there is no file, when it is damaged, or when it lacks what is
        asked of it.
        """
        connection = self._connect_read_only()
        try:
            yield connection
        except (duckdb.CatalogException, duckdb.BinderException) as error:
            raise InputError(
                "The marts have not been built yet, or by another version.",
                str(error).splitlines()[0],
                "Run `make demo`, or materialize the assets in the Dagster UI.",
            ) from error
        except duckdb.Error as error:
            if is_damage(error):
                raise self._unusable(error) from error
            raise
        finally:
            connection.close()

    def _connect_read_only(self) -> duckdb.DuckDBPyConnection:
        if not self.path.exists():
            raise InputError(
                f"There is no warehouse at {self.path}.",
                "Nothing has been loaded yet.",
                "Run `make demo`, or materialize the assets in the Dagster UI.",
            )
        self._require_a_file()
        with self.path.open("rb"):
            pass  # a refusal of the system is better told by Python than by DuckDB
        try:
            connection = duckdb.connect(
                str(self.path),
                read_only=True,
                config={
                    "enable_external_access": "false",
                    "autoload_known_extensions": "false",
                    "autoinstall_known_extensions": "false",
                    "allow_community_extensions": "false",
                    "memory_limit": READ_MEMORY_LIMIT,
                    "temp_directory": "",
                },
            )
        except duckdb.Error as error:
            raise self._unusable(error) from error
        _set_up(connection)
        for setting in (
            "python_enable_replacements = false",
            f"max_execution_time = {QUERY_LIMIT_S * 1000}",
            "lock_configuration = true",
        ):
            connection.execute(f"set {setting}").fetchall()
        return connection

    def _begin(self, build: Path) -> set[str]:
        """Make the copy; returns its tables and views. A damaged or foreign file is rebuilt."""
        if self.path.exists():
            self._require_a_file()
            shutil.copyfile(self.path, build)
            try:
                relations = _sound_relations(build)
                if any(name.startswith("raw.") for name in relations):
                    _create_raw_tables(build)
                    return relations
                why = "It has no raw tables, so something else wrote it."
            except duckdb.OutOfMemoryException:
                raise
            except duckdb.Error as error:
                why = str(error).splitlines()[0]
            kept = self.path.with_name(f"{self.path.name}.damaged")
            _log.warning(
                "The warehouse %s is damaged; it is kept as %s and rebuilt from the records. Its "
                "marts are missing until `make demo` or the job `refresh_marts` has built them. %s",
                self.path,
                kept,
                why,
            )
            self.path.replace(kept)
            for left in (build, _write_ahead_log(build)):
                left.unlink(missing_ok=True)
        _create_raw_tables(build, self._seed)
        return set()

    def _publish(self, build: Path, before: set[str]) -> None:
        connection = duckdb.connect(str(build))
        try:
            connection.execute("checkpoint").fetchall()
        finally:
            connection.close()
        lost = sorted(before - _sound_relations(build))
        if lost:
            raise CheckFailed(
                f"The new state of the warehouse {self.path} is not published.",
                f"It lacks {', '.join(lost)}, which the published one has.",
                "The published file is as it was. Run the command again; if that does not help, "
                "`make demo`.",
            )
        # A log beside the published file is of a program that wrote into it; it would be replayed.
        _write_ahead_log(self.path).unlink(missing_ok=True)
        replace_durably(build, self.path)

    def _remove_what_killed_writers_left(self, lock: Path) -> None:
        for left in self._builds.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            elif left != lock:
                left.unlink()

    def _require_a_file(self) -> None:
        if not self.path.is_file():
            raise InputError(
                f"The warehouse {self.path} is not a file.",
                "A folder or a device has its name.",
                "Move it away, then run the same command again.",
            )

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
            f"The warehouse {self.path} cannot be written; the published file is as it was.",
            f"The system said: {str(error).splitlines()[0]}",
            f"Free space in {self.path.parent} or make it writable, then run the same command "
            "again.",
        )

    def _unusable(self, error: duckdb.Error) -> InputError:
        return InputError(
            f"The warehouse {self.path} cannot be read.",
            f"It is damaged, of another version of DuckDB, or open for writing in another program: "
            f"{str(error).splitlines()[0]}",
            f"Close programs that have it open. {_REBUILD}",
        )


def is_damage(error: duckdb.Error) -> bool:
    """Whether DuckDB says that a file cannot be read or written, not that a query is wrong."""
    return isinstance(
        error,
        duckdb.IOException
        | duckdb.FatalException
        | duckdb.InternalException
        | duckdb.SerializationException,
    ) or type(error) in (duckdb.Error, duckdb.OperationalError, duckdb.DatabaseError)


def _create_raw_tables(build: Path, seed: Seed | None = None) -> None:
    connection = duckdb.connect(str(build))
    try:
        _set_up(connection)
        connection.execute(_SCHEMA.read_text(encoding="utf-8")).fetchall()
        if seed is not None:
            seed(connection)
    finally:
        connection.close()


def _sound_relations(path: Path) -> set[str]:
    """The tables and views of a file, as `schema.name`; every table is read to its end.

    Raises `duckdb.Error` for a file that is damaged anywhere: every block has a checksum.
    """
    connection = duckdb.connect(str(path), read_only=True)
    try:
        _set_up(connection)
        rows = connection.execute(
            "select table_schema, table_name, table_type from information_schema.tables "
            "where table_catalog = current_database()"
        ).fetchall()
        for schema, name, kind in rows:
            if kind == "BASE TABLE":
                table = ".".join('"' + part.replace('"', '""') + '"' for part in (schema, name))
                connection.execute(f"select bit_xor(hash(t)) from {table} t").fetchall()  # noqa: S608
        return {f"{schema}.{name}" for schema, name, _ in rows}
    finally:
        connection.close()


def _write_ahead_log(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")


def _set_up(connection: duckdb.DuckDBPyConnection) -> None:
    """Times in UTC; no progress bar, which would go to standard output."""
    connection.execute("set time zone 'UTC'").fetchall()
    connection.execute("set enable_progress_bar = false").fetchall()
