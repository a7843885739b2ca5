"""Token windows from a calibration text."""

from pathlib import Path
from typing import Any

import torch

from quant_assets.errors import InputError

# Enough for several hundred windows; the rest of a longer text is ignored.
_CHARACTERS_READ = 8_000_000


def calibration_windows(
    tokenizer: Any, text_file: Path, samples: int, sequence_length: int
) -> torch.Tensor:
    """`samples` windows of `sequence_length` tokens, spread evenly over the text.

    Raises `InputError` when the text has fewer.
    """
    text = text_file.read_text(encoding="utf-8")[:_CHARACTERS_READ]
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    available = len(tokens) // sequence_length
    if available < samples:
        raise InputError(
            f"The calibration text {text_file.name} is too short.",
            f"It has {len(tokens)} tokens; {samples} samples of {sequence_length} tokens need "
            f"{samples * sequence_length}.",
            "Use a longer text, or fewer or shorter samples "
            "(--calibration-samples, --sequence-length).",
        )
    starts = [number * available // samples * sequence_length for number in range(samples)]
    rows = [tokens[start : start + sequence_length] for start in starts]
    return torch.tensor(rows, dtype=torch.long)
