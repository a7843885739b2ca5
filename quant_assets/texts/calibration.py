"""Calibration text for quantizers: a file, a hub data set, or the default."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from quant_assets.duckdb_files import READ_OPTIONS, readable
from quant_assets.errors import InputError
from quant_assets.host.caches import is_kept, kept_text
from quant_assets.models.identity import sha256_of
from quant_assets.texts.hub import hub_file, reach_hub, wikitext

_HUB_PREFIX = "hub:"
_TEXT_FIELDS = ("text", "content", "prompt", "instruction", "question")
_SHORTEST_TEXT = 200  # characters; less is useless for calibration


class CalibrationText(BaseModel):
    """A text by name and content; `warning` is set if it is not the preferred one."""

    name: str
    path: Path
    sha256: str
    warning: str | None = None


def calibration_text(choice: str | None, cache: Path) -> CalibrationText:
    """The text named by `choice`: a file, `hub:owner/name`, or for None the default with a warning.

    A file is plain text (UTF-8), JSONL or Parquet; from the latter two, and from a data set, the
    first of the usual text columns is taken, `text` first. Raises `InputError` for a file that is
    missing, empty, too short or not text, and for a data set that cannot be fetched.
    """
    if choice is None:
        return _unnamed(default_calibration_text(cache))
    if choice.startswith(_HUB_PREFIX):
        repository = choice.removeprefix(_HUB_PREFIX)
        return _kept(repository, _joined(_hub_rows(repository), choice), cache)
    path = Path(choice).expanduser()
    if not path.is_file():
        raise InputError(
            f"There is no calibration text at {path}.",
            "The file does not exist.",
            "Check the path, or write hub:owner/name for a data set of the hub.",
        )
    if path.suffix in (".jsonl", ".json"):
        text = _joined(_json_rows(path), choice)
    elif path.suffix == ".parquet":
        text = _joined(_parquet_rows(path), choice)
    else:
        text = _read_utf8(path)
    return _kept(path.name, text, cache)


def _unnamed(text: CalibrationText) -> CalibrationText:
    """The default text with a warning that it was not named."""
    used = text.warning or "WikiText-2 (its training split) is used."
    warning = (
        f"No calibration set was named. {used} Text like that which the model will see calibrates "
        "better; name it with --calibration."
    )
    return text.model_copy(update={"warning": warning})


def _kept(name: str, text: str, cache: Path) -> CalibrationText:
    if len(text.strip()) < _SHORTEST_TEXT:
        raise InputError(
            f"The calibration text {name} is {'too short' if text.strip() else 'empty'}.",
            f"It has {len(text.strip())} characters.",
            "Use some pages of text similar to what the model will see.",
        )
    digest = hashlib.sha256(text.encode()).hexdigest()
    path = cache / "texts" / f"calibration-{digest[:16]}.txt"
    return CalibrationText(name=name, path=kept_text(path, text), sha256=digest)


def _read_utf8(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The calibration file {path} is not text.",
            f"Reading it as UTF-8 failed: {error}.",
            "Use plain text, JSONL with a field `text`, or Parquet with a column `text`.",
        ) from error
    if "\0" in text:
        raise InputError(
            f"The calibration file {path} is not text.",
            "It contains null bytes.",
            "Use plain text, JSONL with a field `text`, or Parquet with a column `text`.",
        )
    return text


def _joined(rows: Iterable[Any], choice: str) -> str:
    """The joined texts of rows, each a string or a mapping with a text field."""
    texts: list[str] = []
    for row in rows:
        if isinstance(row, dict):
            row = next((row[field] for field in _TEXT_FIELDS if row.get(field)), None)
        if isinstance(row, str):
            texts.append(row)
    if not texts:
        raise InputError(
            f"The calibration data {choice} has no text.",
            f"No row has a field {', '.join(_TEXT_FIELDS)}.",
            "Rename the field with the text to `text`.",
        )
    return "\n\n".join(texts)


def _json_rows(path: Path) -> Iterator[Any]:
    for number, line in enumerate(_read_utf8(path).splitlines(), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise InputError(
                    f"Line {number} of {path} is not JSON.", f"{error}.", "Correct the line."
                ) from error


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    import duckdb

    try:
        with duckdb.connect() as connection, readable(path) as pattern:
            table = connection.execute(f"from read_parquet(?, {READ_OPTIONS})", [pattern])
            columns = [column[0] for column in table.description or []]
            return [dict(zip(columns, row, strict=True)) for row in table.fetchall()]
    except duckdb.Error as error:
        raise InputError(
            f"The file {path} cannot be read as Parquet.", f"{error}.", "Write the file again."
        ) from error


def _hub_rows(repository: str) -> list[dict[str, Any]]:
    """The rows of the first Parquet file of a data set's training split."""
    from huggingface_hub import HfApi

    try:
        reach_hub()
        names = [
            name
            for name in HfApi().list_repo_files(repository, repo_type="dataset")
            if name.endswith(".parquet")
        ]
        name = next((name for name in names if "train" in name), names[0] if names else None)
        if name is None:
            raise FileNotFoundError("it has no Parquet file")
        file = hub_file(repository, name)
    except Exception as error:  # the hub's client raises many types
        raise InputError(
            f"The data set {repository} cannot be fetched.",
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            "Check its name and the network, or give a file.",
        ) from error
    return _parquet_rows(file)


def plain_calibration_text(path: Path | None, cache: Path) -> CalibrationText:
    """The plain text file at `path`, used as it is, or the default for None.

    Raises `InputError` when there is no such file.
    """
    if path is None:
        return default_calibration_text(cache)
    if not path.is_file():
        raise InputError(
            f"There is no text at {path}.", "The file does not exist.", "Check the path."
        )
    return CalibrationText(name=path.name, path=path, sha256=sha256_of(path))


def default_calibration_text(cache: Path) -> CalibrationText:
    """WikiText-2's training split from the hub, cached; offline, Python's language reference.

    Perplexity is measured on other text: WikiText-2's test split. Offline, calibration takes only
    the second half of the reference.
    """
    kept = cache / "texts" / "wikitext-2-train.txt"
    try:
        if not is_kept(kept):
            kept = kept_text(kept, wikitext("train"))
    except Exception as error:  # the hub's client raises many types without a network
        reference = kept_text(
            cache / "texts" / "python-reference-second-half.txt", _python_reference_second_half()
        )
        return CalibrationText(
            name="python-reference-second-half",
            path=reference,
            sha256=sha256_of(reference),
            warning="WikiText-2 cannot be fetched, so Python's language reference is used "
            f"({type(error).__name__}).",
        )
    return CalibrationText(name="wikitext-2-train", path=kept, sha256=sha256_of(kept))


def _python_reference_second_half() -> str:
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return text[len(text) // 2 :]
