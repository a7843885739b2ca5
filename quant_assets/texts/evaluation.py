"""Evaluation text for perplexity: WikiText-2 from the hub, or Python's language reference offline."""

import hashlib
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel

from quant_assets.errors import InputError
from quant_assets.host.caches import is_kept, kept_text
from quant_assets.texts.hub import wikitext

WINDOW_TOKENS: Final = 512
"""Tokens per perplexity window: llama.cpp's default, so that its published values compare."""

TextChoice = Literal["auto", "wikitext-2", "python-reference"]


class EvaluationText(BaseModel):
    """A text by name and content; `path` is its UTF-8 file."""

    name: str
    path: Path
    sha256: str


def evaluation_text(choice: TextChoice | Path, cache: Path) -> EvaluationText:
    """The chosen text as a file; `auto` is WikiText-2 if the hub or its cache provides it.

    `python-reference` is the language reference that ships with Python (`pydoc_data.topics`), about
    700 KB of English. Raises `InputError` when the text is not available.
    """
    if isinstance(choice, Path):
        return _described(choice.stem, choice)
    if choice != "python-reference":
        try:
            return _described("wikitext-2", _wikitext(cache))
        except InputError:
            if choice == "wikitext-2":
                raise
    return _described("python-reference", _python_reference(cache))


def _described(name: str, path: Path) -> EvaluationText:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"The text {path} cannot be read.", str(error), "Name a readable text file."
        ) from error
    return EvaluationText(name=name, path=path, sha256=hashlib.sha256(content).hexdigest())


def _python_reference(cache: Path) -> Path:
    from pydoc_data.topics import topics

    path = cache / "texts" / "python-reference.txt"
    text = "\n\n".join(topics[name] for name in sorted(topics)) + "\n"
    return kept_text(path, text)


def _wikitext(cache: Path) -> Path:
    """The test split as a cached file."""
    path = cache / "texts" / "wikitext-2.txt"
    if is_kept(path):
        return path
    try:
        text = wikitext("test")
    except Exception as error:  # the hub's client raises many types without a network
        raise InputError(
            "WikiText-2 cannot be fetched.",
            f"{type(error).__name__}: {error}",
            "Check the network, or choose the text python-reference.",
        ) from error
    return kept_text(path, text)
