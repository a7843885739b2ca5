"""Records kept as JSON files: read within limits, and ordered by time despite wrong clocks.

A record is damaged if its file is truncated, is not a regular file, is not JSON of the record's
schema, or holds impossible numbers. Each reader decides whether damage is an error or repaired.
"""

import datetime
import logging
import math
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, TypeAdapter, ValidationError
from pydantic_core import from_json

from quant_assets.atomic_files import write_text_atomically
from quant_assets.errors import InputError, ResourceError

MAX_BYTES = 256 * 2**20
"""Far above a day's records of one variant, at about 2 kB each."""

MAX_TOKENS = 10_000_000
MAX_SEQUENCES = 10_000

CLOCK_TOLERANCE = datetime.timedelta(days=1)
"""A time further ahead than this comes from a wrong clock, not from a time zone."""

_MAX_INTEGER = 2**63 - 1  # the limit of a warehouse column
_MOST_PROBLEMS = 3
_Record = TypeVar("_Record")
_LOG = logging.getLogger(__name__)


def _in_utc(at: datetime.datetime) -> datetime.datetime:
    if at.tzinfo is None:
        return at.replace(tzinfo=datetime.UTC)
    try:
        return at.astimezone(datetime.UTC)
    except OverflowError as error:
        raise ValueError("it is outside the calendar") from error


def _up_to(limit: int) -> AfterValidator:
    def check(value: int) -> int:
        if not 0 <= value <= limit:
            raise ValueError(f"it is not between 0 and {limit:,}")
        return value

    return AfterValidator(check)


UtcTime = Annotated[datetime.datetime, AfterValidator(_in_utc)]
"""A time in UTC; without a time zone, UTC is assumed."""

TokenCount = Annotated[int, _up_to(MAX_TOKENS)]
SequenceCount = Annotated[int, _up_to(MAX_SEQUENCES)]
Count = Annotated[int, _up_to(2**31 - 1)]


def recency(at: datetime.datetime) -> tuple[bool, datetime.datetime]:
    """The sort key of records, newest last.

    A time more than `CLOCK_TOLERANCE` ahead of this machine's clock comes from a wrong clock. It
    counts as older than every other, so that the next measurement replaces it; in the marts, the
    macro `newest_first` does the same.
    """
    return at <= datetime.datetime.now(datetime.UTC) + CLOCK_TOLERANCE, at


def read_record(path: Path, form: TypeAdapter[_Record], name: str, next_step: str) -> _Record:
    """The content of the JSON file `path`; errors call it `name`, such as "host peaks".

    Raises `InputError` with `next_step` when the file is missing or damaged.
    """
    try:
        if not path.is_file():
            raise ValueError("it is missing, or is not a regular file")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        _check_numbers(from_json(data, allow_inf_nan=False))
        return form.validate_json(data)
    except (OSError, ValueError) as error:
        raise InputError(
            f"The {name} {path} cannot be read.",
            f"Its content is damaged: {_why(error)}.",
            next_step,
        ) from error


def readable_record(
    path: Path, form: TypeAdapter[_Record], name: str, next_step: str
) -> _Record | None:
    """The content of `path` as `read_record` returns it; None, with a warning, where it raises."""
    try:
        return read_record(path, form, name, next_step)
    except InputError as error:
        _LOG.warning("%s", error)
        return None


def write_record(path: Path, text: str, name: str) -> None:
    """Write `text` to `path`, completely or not at all; errors call it `name`.

    Raises `ResourceError` when the disk is full or the folder cannot be written.
    """
    try:
        write_text_atomically(path, text)
    except OSError as error:
        raise ResourceError(
            f"The {name} {path} cannot be written, so this measurement is not kept.",
            f"The system reported: {error.strerror or error}. Earlier records are unchanged.",
            "Free some space, make the folder writable, or choose another data root with "
            "QUANT_ASSETS_HOME; then measure again.",
        ) from error


def _check_numbers(content: Any) -> None:
    values = [content]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list):
            values += value
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError("it holds a number that is not finite")
        elif isinstance(value, int) and abs(value) > _MAX_INTEGER:
            raise ValueError("it holds an integer of more than 64 bits")


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if not isinstance(error, ValidationError):
        return str(error)
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [
        f"{'.'.join(map(str, problem['loc'])) or 'the whole record'}: {problem['msg']}"
        for problem in problems[:_MOST_PROBLEMS]
    ]
    more = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")
