"""Escaping of untrusted text for terminals and Markdown.

Titles, file names, model names and messages of other programs come from untrusted files and
servers. A terminal obeys control characters in them, a Markdown viewer links and HTML.
"""

import re
import unicodedata

_LINE_LAYOUT = "\n\t"
_JOINERS = "\u200c\u200d"
"""Zero-width joiner and non-joiner: scripts and emoji need them, and they do not reorder text."""

_OBEYED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Controls, formatting (bidirectional overrides, invisible characters), surrogates, separators."""

_MARKDOWN_CHARACTERS = re.compile(
    r"[\\`*_\[\]<>|#!~$&]|^[-+=](?=[-+= ]|$)"  # the latter: lists, rules, underlined headings
)
_LIST_NUMBER = re.compile(r"^(\d{1,9})([.)])(?= |$)")


def terminal_text(text: str) -> str:
    """`text` with each character that a terminal would obey as a visible escape such as `\\x1b`.

    Line feeds and tabs stay; C0 and C1 controls, DEL, bidirectional overrides, invisible characters
    and lone surrogates (bytes of file names that are not UTF-8) are escaped.
    """
    if text.isprintable():
        return text
    return "".join(_visible(char) if _is_obeyed(char) else char for char in text)


def terminal_line(text: str) -> str:
    """`terminal_text` for one line: line feeds and tabs are escaped too."""
    return terminal_text(text).replace("\n", "\\n").replace("\t", "\\t")


def json_text(document: str) -> str:
    """The JSON `document` with an equal value but no characters that a terminal would obey."""
    if document.isprintable():
        return document
    return "".join(_json_escape(char) if _is_obeyed(char) else char for char in document)


def markdown_text(text: str) -> str:
    """`text` as one line of literal Markdown, even in tables and where HTML is allowed.

    It produces no link, image, emphasis, code, formula, HTML or additional table cell.
    """
    line = terminal_text(" ".join(text.split()))
    escaped = _MARKDOWN_CHARACTERS.sub(lambda found: "\\" + found[0], line)
    return _LIST_NUMBER.sub(r"\1\\\2", escaped)


def _is_obeyed(char: str) -> bool:
    return (
        not char.isprintable()
        and char not in _LINE_LAYOUT
        and char not in _JOINERS
        and unicodedata.category(char) in _OBEYED_CATEGORIES
    )


def _visible(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
