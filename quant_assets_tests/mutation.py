"""Mutated inputs for the fuzz tests, and the limits that every reader must keep on them.

`mutated` is a hypothesis strategy: a valid file with one to four edits, as a damaged disk, a cut
download or an attacker would make them. `make fuzz` runs more examples, with fresh seeds.
"""

import os
import resource
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FUZZ_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""Examples per kind of file; 0 means the suite's number, with fixed seeds."""

SUITE_EXAMPLES = 1500
TIME_LIMIT_S = 10
MEMORY_LIMIT_BYTES = 10**9

EXTREME_INTEGERS = (0, 1, 2, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1)
HOSTILE_TOKENS = (
    b"NaN", b"-Infinity", b"1e999", b"-1", b"300000000", b"9" * 400, b"null", b"true", b"[]", b"{}",
    b'""', b"[" * 5000, b'{"a":' * 5000, b'"\\ud800"', b"\xff\xfe", b"\x00", b"\xef\xbb\xbf",
    b'"../x.safetensors"', b'"/etc/passwd"', b"\n", b"\r", b"'", b'"', b",", b";", b"\x1b[2J",
)  # fmt: skip


def fuzz_settings(examples: int = SUITE_EXAMPLES) -> settings:
    """Settings of one fuzz test: `examples` in the suite, `FUZZ_EXAMPLES` if set."""
    return settings(
        max_examples=FUZZ_EXAMPLES or examples,
        derandomize=not FUZZ_EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def mutated(
    draw: st.DrawFn, originals: Sequence[bytes], tokens: Sequence[bytes] = HOSTILE_TOKENS
) -> bytes:
    """One of `originals` after one to four edits, some of which insert `tokens`."""
    data = bytearray(draw(st.sampled_from(list(originals))))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.integers(1, 64))
        edit = draw(
            st.sampled_from(("bits", "integer", "token", "cut", "delete", "repeat", "bytes"))
        )
        if edit == "bits" and data:
            data[position] ^= draw(st.integers(1, 255))
        elif edit == "integer":
            width = draw(st.sampled_from((1, 2, 4, 8)))
            value = draw(st.sampled_from(EXTREME_INTEGERS)) % 2 ** (8 * width)
            data[position : position + width] = value.to_bytes(width, "little")
        elif edit == "token":
            replaced = draw(st.integers(0, 16))
            data[position : position + replaced] = draw(st.sampled_from(list(tokens)))
        elif edit == "cut":
            del data[position:]
        elif edit == "delete":
            del data[position : position + length]
        elif edit == "repeat":
            data[position:position] = data[position : position + length] * draw(st.integers(1, 40))
        else:
            data[position : position + length] = draw(st.binary(min_size=1, max_size=64))
    return bytes(data)


class TooSlowError(AssertionError):
    """A reader took longer than `TIME_LIMIT_S`."""


@contextmanager
def bounded() -> Iterator[None]:
    """Fail the block if it runs for 10 s or takes 1 GB more address space than now."""

    def too_slow(_number: int, _frame: FrameType | None) -> None:
        raise TooSlowError(f"no answer within {TIME_LIMIT_S} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    statm = Path("/proc/self/statm")
    former = signal.signal(signal.SIGALRM, too_slow)
    if statm.exists():
        used = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_LIMIT_BYTES, limits[1]))
    signal.alarm(TIME_LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
        resource.setrlimit(resource.RLIMIT_AS, limits)
