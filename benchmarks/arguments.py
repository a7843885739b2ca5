"""Argument types for `argparse`, so that invalid arguments fail before any work begins."""

import math
from argparse import ArgumentTypeError
from pathlib import Path

from quant_assets.errors import InputError
from quant_assets.formats.gguf_levels import parse_level


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def positive_list(text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1, such as `1,4,8`, without repeats."""
    return tuple(dict.fromkeys(positive(part) for part in text.split(",")))


def existing_file(text: str) -> Path:
    """The path of an existing file."""
    path = Path(text)
    if not path.is_file():
        raise ArgumentTypeError(f"there is no file {text!r}")
    return path


def model_folder(text: str) -> Path:
    """A Hugging Face folder."""
    path = Path(text)
    if not (path / "config.json").is_file():
        raise ArgumentTypeError(f"{text!r} is not a folder with a config.json")
    return path


def model_file_or_folder(text: str) -> str:
    """The path of a Hugging Face folder or a GGUF file, as it was given."""
    path = Path(text)
    if path.suffix != ".gguf" or not path.is_file():
        model_folder(text)
    return text


def positive_number(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def existing_folder(text: str) -> Path:
    """The path of an existing folder."""
    path = Path(text)
    if not path.is_dir():
        raise ArgumentTypeError(f"there is no folder {text!r}")
    return path


def gguf_level(text: str) -> str:
    """A quantization level by llama.cpp's name."""
    try:
        return parse_level(text).name
    except InputError as error:
        raise ArgumentTypeError(f"{error.what} {error.next_step}") from error


def gguf_levels(text: str) -> tuple[str, ...]:
    """Quantization levels, such as `F16,Q4_K_M`, without repeats."""
    return tuple(dict.fromkeys(gguf_level(part) for part in text.split(",")))


def level_file(text: str) -> tuple[str, Path]:
    """`LEVEL=FILE` with an existing file."""
    level, equals, path = text.partition("=")
    if not equals:
        raise ArgumentTypeError(f"{text!r} is not LEVEL=FILE")
    return gguf_level(level), existing_file(path)
