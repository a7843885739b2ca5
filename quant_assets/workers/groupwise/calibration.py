"""Tokens of a calibration text, and windows of them."""

from pathlib import Path
from typing import Any

import torch
import transformers

from quant_assets.errors import InputError
from quant_assets.quantize.groupwise.job import CalibrationSize, text_too_short
from quant_assets.workers.torch.models import load_tokenizer

# Enough for several hundred windows; the rest of a longer text is ignored.
_CHARACTERS_READ = 8_000_000


def source_tokenizer(folder: Path) -> Any:
    """The tokenizer of the model in `folder`; raises `InputError` when it cannot be loaded."""
    try:
        return load_tokenizer(str(folder))
    except Exception as error:  # transformers and tokenizers raise many types
        raise InputError(
            f"The tokenizer in {folder} cannot be loaded.",
            f"transformers {transformers.__version__} raised {type(error).__name__}: {error}.",
            "Put the model's own tokenizer files into the folder.",
        ) from error


def calibration_tokens(tokenizer: Any, text_file: Path) -> list[int]:
    """The tokens of the text, or of its beginning if it is very long."""
    text = text_file.read_text(encoding="utf-8")[:_CHARACTERS_READ]
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tokens


def calibration_windows(
    tokenizer: Any, text_file: Path, samples: int, sequence_length: int
) -> torch.Tensor:
    """`samples` windows of `sequence_length` tokens, spread evenly over the text.

    Raises `InputError` when the text has fewer.
    """
    tokens = calibration_tokens(tokenizer, text_file)
    available = len(tokens) // sequence_length
    if available < samples:
        size = CalibrationSize(samples, sequence_length)
        raise text_too_short(text_file.name, len(tokens), size)
    starts = [number * available // samples * sequence_length for number in range(samples)]
    rows = [tokens[start : start + sequence_length] for start in starts]
    return torch.tensor(rows, dtype=torch.long)
