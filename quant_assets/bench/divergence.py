"""Perplexity, KL divergence and top-1 agreement from logits, by llama.cpp's definitions.

A text is cut into windows of `context` tokens; the first token of each becomes BOS where the
vocabulary requires it; only the second half of each window is scored, so that every scored token
has at least half a window of context. The baseline's log probabilities are kept in the file format
of `llama-perplexity --kl-divergence-base` (16 bits per value, down to 16 nats below the most
likely token), so the files are interchangeable. Source of all formulas: llama.cpp,
tools/perplexity/perplexity.cpp.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from quant_assets.atomic_files import atomic_path
from quant_assets.errors import InputError

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]
Values = npt.NDArray[np.float64]

_MAGIC = b"_logits_"
_HEADER = struct.Struct("<8sIii")
_NATS_KEPT = np.float32(16)
_STEPS = np.float32(65535)
_ROW_HEADER = 4  # scale and lowest log probability: two float32 in four uint16
_BLOCK_ROWS = 32  # keeps the temporaries of a large vocabulary small


def scored_targets(window: Tokens) -> Tokens:
    """The tokens of a window that are scored: those after its middle token."""
    return window[len(window) // 2 + 1 :]


def scored_rows(context: int) -> int:
    """The number of scored tokens per window."""
    return context - 1 - context // 2


def _normalizer(logits: Logits) -> tuple[npt.NDArray[np.float32], Values]:
    """(largest logit, log of the sum of exponentials over it) of each row."""
    largest = logits.max(axis=1)
    sums = np.exp(logits - largest[:, None]).sum(axis=1, dtype=np.float64)
    return largest, np.log(sums)


def _target_logits(logits: Logits, targets: Tokens) -> npt.NDArray[np.float32]:
    picked: npt.NDArray[np.float32] = logits[np.arange(len(targets)), targets]
    return picked


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK_ROWS):
        yield slice(start, min(start + _BLOCK_ROWS, count))


def negative_log_likelihoods(logits: Logits, targets: Tokens) -> Values:
    """-log p(target) of each row, in nats."""
    values = np.empty(len(targets))
    for block in _blocks(len(targets)):
        largest, log_sum = _normalizer(logits[block])
        values[block] = log_sum - (_target_logits(logits[block], targets[block]) - largest)
    return values


def mean_and_standard_error(values: Values) -> tuple[float, float]:
    """Mean and its standard error."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, 0.0
    variance = max(0.0, float((values * values).mean()) - mean * mean)
    return mean, float(np.sqrt(variance / (len(values) - 1)))


class BaselineWriter:
    """Writes windows of log probabilities; see `baseline_writer`."""

    def __init__(self, stream: IO[bytes], n_vocab: int) -> None:
        self._stream = stream
        self._width = _row_width(n_vocab)
        self._n_vocab = n_vocab

    def append(self, logits: Logits) -> None:
        """Compress and write the scored rows of the next window."""
        for block in _blocks(len(logits)):
            self._stream.write(self._compressed(logits[block]).tobytes())

    def _compressed(self, logits: Logits) -> npt.NDArray[np.uint16]:
        largest, log_sum = _normalizer(logits)
        lowest = np.maximum(logits.min(axis=1), largest - _NATS_KEPT)
        scale = ((largest - lowest) / _STEPS).astype(np.float32)
        lowest_log_probability = (lowest - largest - log_sum.astype(np.float32)).astype(np.float32)
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
        steps = np.rint(inverse[:, None] * np.maximum(logits - lowest[:, None], 0))
        rows = np.zeros((len(logits), self._width), dtype=np.uint16)
        header = np.stack([scale, lowest_log_probability], axis=1).astype("<f4")
        rows[:, :_ROW_HEADER] = header.view("<u2")
        rows[:, _ROW_HEADER : _ROW_HEADER + self._n_vocab] = steps
        return rows


def _row_width(n_vocab: int) -> int:
    return 2 * ((n_vocab + 1) // 2) + _ROW_HEADER


@contextmanager
def baseline_writer(path: Path, windows: Tokens, n_vocab: int) -> Iterator[BaselineWriter]:
    """Write a baseline file for `windows` (windows x context tokens), atomically."""
    count, context = windows.shape
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.write(_HEADER.pack(_MAGIC, context, n_vocab, count))
        stream.write(windows.astype("<i4").tobytes())
        yield BaselineWriter(stream, n_vocab)


class Baseline:
    """A baseline file: the windows' tokens and the log probabilities of their scored rows.

    Raises `InputError` when the file is invalid, truncated, or has token ids outside its vocabulary.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as stream:
                magic, self.context, self.n_vocab, self.count = _HEADER.unpack(
                    stream.read(_HEADER.size)
                )
                if magic != _MAGIC:
                    raise ValueError("it has another header")
                _check_size(
                    os.fstat(stream.fileno()).st_size, self.context, self.n_vocab, self.count
                )
                tokens = stream.read(4 * self.context * self.count)
            self.windows: Tokens = np.frombuffer(tokens, dtype="<i4").reshape(
                self.count, self.context
            )
            if self.windows.min() < 0 or self.windows.max() >= self.n_vocab:
                raise ValueError("it has token ids outside its vocabulary")
            self._rows: Any = np.memmap(
                path,
                dtype="<u2",
                mode="r",
                offset=_HEADER.size + len(tokens),
                shape=(self.count, scored_rows(self.context), _row_width(self.n_vocab)),
            )
        except (OSError, ValueError, struct.error) as error:
            raise InputError(
                f"{path} is not a valid file of baseline log probabilities.",
                f"Reading it failed: {error}.",
                "Delete it; the next run recomputes it.",
            ) from error

    def log_probabilities(self, window: int, block: slice) -> Logits:
        """Log probabilities of some scored rows of a window."""
        rows = np.ascontiguousarray(self._rows[window, block])
        header = rows[:, :_ROW_HEADER].copy().view("<f4")
        steps = rows[:, _ROW_HEADER : _ROW_HEADER + self.n_vocab].astype(np.float32)
        values: Logits = header[:, :1] * steps + header[:, 1:2]
        return values


def _check_size(size: int, context: int, n_vocab: int, count: int) -> None:
    if context < 2 or n_vocab < 1 or count < 1:
        raise ValueError("it has no windows, or windows without tokens")
    rows = scored_rows(context) * count * _row_width(n_vocab)
    whole = _HEADER.size + 4 * context * count + 2 * rows
    if size != whole:
        raise ValueError(f"it has {size:,} bytes instead of {whole:,}")


class TokenDivergence:
    """How a model's predictions of tokens differ from a baseline's; subclasses add the tokens."""

    def __init__(self) -> None:
        self._kl: list[Values] = []
        self._baseline_nll: list[Values] = []
        self._same_top = 0

    @property
    def kl(self) -> Values:
        """KL(baseline || model) of every scored token, in nats."""
        return np.concatenate(self._kl)

    @property
    def baseline_nll(self) -> Values:
        """-log p(target) of the baseline."""
        return np.concatenate(self._baseline_nll)

    @property
    def top1_agreement(self) -> float:
        """Fraction of scored tokens where both rank the same token first."""
        return self._same_top / len(self.kl)


class Divergence(TokenDivergence):
    """Compares a model's logits with a baseline file, window by window."""

    def __init__(self, baseline: Baseline) -> None:
        super().__init__()
        self._baseline = baseline

    def add(self, window: int, logits: Logits) -> None:
        """Add the scored rows of the window with this number."""
        targets = scored_targets(self._baseline.windows[window])
        for block in _blocks(len(targets)):
            base = self._baseline.log_probabilities(window, block)
            rows = logits[block]
            largest, log_sum = _normalizer(rows)
            normalizer = largest + log_sum.astype(np.float32)
            kept = base > -_NATS_KEPT
            terms = np.where(kept, np.exp(base) * (base - rows + normalizer[:, None]), 0)
            self._kl.append(terms.sum(axis=1, dtype=np.float64))
            self._baseline_nll.append(-_target_logits(base, targets[block]).astype(np.float64))
            self._same_top += int((rows.argmax(axis=1) == base.argmax(axis=1)).sum())


class LogitPairs(TokenDivergence):
    """Compares two sets of logits of the same tokens, window by window, without a file between.

    By the definition itself: nothing is cut or rounded.
    """

    def add(self, baseline: Logits, logits: Logits, targets: Tokens) -> None:
        """Add the scored rows of the next window."""
        self._baseline_nll.append(negative_log_likelihoods(baseline, targets))
        for block in _blocks(len(targets)):
            base, own = _log_softmax(baseline[block]), _log_softmax(logits[block])
            self._kl.append((np.exp(base) * (base - own)).sum(axis=1))
        self._same_top += int((logits.argmax(axis=1) == baseline.argmax(axis=1)).sum())


def _log_softmax(logits: Logits) -> Values:
    largest, log_sum = _normalizer(logits)
    return (logits - largest[:, None]).astype(np.float64) - log_sum[:, None]


def cut_windows(tokens: Sequence[int], context: int, limit: int | None) -> Tokens:
    """Whole windows of a text's tokens, at most `limit`.

    Raises `InputError` when the text is shorter than two windows, as llama.cpp does.
    """
    if len(tokens) < 2 * context:
        raise InputError(
            "The text is too short to measure perplexity.",
            f"It has {len(tokens)} tokens; {2 * context} are needed with a context of {context}.",
            "Use a longer text.",
        )
    count = min(len(tokens) // context, limit or len(tokens))
    return np.asarray(tokens[: count * context], dtype=np.int32).reshape(count, context)
