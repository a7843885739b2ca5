"""A connection for readers: it can change nothing and reach nothing but the published file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from quant_assets.errors import InputError
from quant_assets.warehouse.database_file import configure, is_damage

MEMORY_LIMIT = "2GB"
QUERY_LIMIT_S = 600

_REBUILD = (
    "Nothing is lost: the files of the data root are the record. Run `make demo`, which rebuilds it "
    "from them and repeats no measurement."
)


@contextmanager
def read_only_connection(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection to the published file `path`.

    It gives no access to other files, the network, extensions or variables of the process; its
    settings are locked, and a statement ends after `QUERY_LIMIT_S` seconds. Raises `InputError`
    when the file is missing or damaged, or lacks a table or column that the block asks for.
    """
    connection = _connect(path)
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
            raise _unreadable(path, error) from error
        raise
    finally:
        connection.close()


def require_a_file(path: Path) -> None:
    """Raise `InputError` when a folder or a device has the warehouse's name."""
    if not path.is_file():
        raise InputError(
            f"The warehouse {path} is not a file.",
            "A folder or a device has its name.",
            "Move it away, then run the same command again.",
        )


def _connect(path: Path) -> duckdb.DuckDBPyConnection:
    if not path.exists():
        raise InputError(
            f"There is no warehouse at {path}.",
            "Nothing has been loaded yet.",
            "Run `make demo`, or materialize the assets in the Dagster UI.",
        )
    require_a_file(path)
    with path.open("rb"):
        pass  # Python explains a refusal by the operating system better than DuckDB does.
    try:
        connection = duckdb.connect(
            str(path),
            read_only=True,
            config={
                "enable_external_access": "false",
                "autoload_known_extensions": "false",
                "autoinstall_known_extensions": "false",
                "allow_community_extensions": "false",
                "memory_limit": MEMORY_LIMIT,
                "temp_directory": "",
            },
        )
    except duckdb.Error as error:
        raise _unreadable(path, error) from error
    configure(connection)
    for setting in (
        "python_enable_replacements = false",
        f"max_execution_time = {QUERY_LIMIT_S * 1000}",
        "lock_configuration = true",
    ):
        connection.execute(f"set {setting}").fetchall()
    return connection


def _unreadable(path: Path, error: duckdb.Error) -> InputError:
    return InputError(
        f"The warehouse {path} cannot be read.",
        f"It is damaged, was written by another version of DuckDB, or is open for writing in another "
        f"program: {str(error).splitlines()[0]}",
        f"Close programs that have it open. {_REBUILD}",
    )
