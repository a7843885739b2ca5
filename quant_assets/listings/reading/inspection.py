"""One pass over a listing file: its hash, how its text is encoded, and how many lines it has."""

import codecs
import hashlib
from dataclasses import dataclass
from pathlib import Path

from quant_assets.errors import InputError

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class FileFacts:
    """The facts of one file that the parsers need."""

    sha256: str
    encoding: str
    """Name of a Python codec."""
    lines: int
    has_nul: bool


def inspect_file(path: Path) -> FileFacts:
    """Hash the file and detect its encoding.

    Text without a byte-order mark is UTF-8 when it decodes as such, Windows-1252 otherwise. Raises
    `InputError` for a file that is empty or cannot be read.
    """
    digest = hashlib.sha256()
    lines, size, has_nul, last = 0, 0, False, b"\n"
    decoder = codecs.getincrementaldecoder("utf-8")()
    utf8 = True
    bom = None
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                if size == 0:
                    bom = next((name for mark, name in _BOMS if block.startswith(mark)), None)
                digest.update(block)
                size += len(block)
                lines += block.count(b"\n")
                has_nul = has_nul or b"\0" in block
                last = block[-1:]
                if utf8:
                    try:
                        decoder.decode(block)
                    except UnicodeDecodeError:
                        utf8 = False
    except OSError as error:
        raise InputError(
            f"The file {path} cannot be read.", f"{error.strerror}.", "Check its permissions."
        ) from error
    if size == 0:
        raise InputError(
            f"The file {path} is empty (line 1).",
            "It has neither a header nor rows.",
            "Export the listings again, or leave the file out.",
        )
    encoding = bom or ("utf-8" if utf8 else "cp1252")
    return FileFacts(digest.hexdigest(), encoding, lines + (last != b"\n"), has_nul)
