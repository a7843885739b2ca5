"""Text from data, made harmless for where it is shown: terminals and Markdown.

Titles, file names, model names and messages of other programs come from files and servers that
nobody vouches for. A terminal obeys control characters in them, a Markdown viewer links and HTML.
"""

import re
import unicodedata

_LINE_LAYOUT = "\n\t"
_JOINERS = "\u200c\u200d"
"""Zero-width joiner and non-joiner: scripts and emoji need them, and they reorder nothing."""

_OBEYED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Controls, formatting (bidirectional overrides, invisible signs), surrogates, separators."""

_MARKDOWN_SIGNS = re.compile(
    r"[\\`*_\[\]<>|#!~$&]|^[-+=](?=[-+= ]|$)"  # the latter: lists, rules, underlined headings
)
_LIST_NUMBER = re.compile(r"^(\d{1,9})([.)])(?= |$)")


def terminal_text(text: str) -> str:
    """`text` with each character that a terminal would obey as a visible escape such as `\\x1b`.

    Line feeds and tabs stay; C0 and C1 controls, DEL, bidirectional overrides, invisible signs and
    lone surrogates (bytes of file names that are not UTF-8) do not.
    """
    if text.isprintable():
        return text
    return "".join(_visible(sign) if _is_obeyed(sign) else sign for sign in text)


def terminal_line(text: str) -> str:
    """`terminal_text` for one line: line feeds and tabs are shown as escapes, too."""
    return terminal_text(text).replace("\n", "\\n").replace("\t", "\\t")


def json_text(document: str) -> str:
    """The JSON `document`, of the same value, without a character that a terminal would obey."""
    if document.isprintable():
        return document
    return "".join(_json_escape(sign) if _is_obeyed(sign) else sign for sign in document)


def markdown_text(text: str) -> str:
    """`text` as one line of literal Markdown, also inside a table and where HTML is let through.

    No link, image, emphasis, code, formula or HTML comes out of it, and no further cell.
    """
    line = terminal_text(" ".join(text.split()))
    escaped = _MARKDOWN_SIGNS.sub(lambda found: "\\" + found[0], line)
    return _LIST_NUMBER.sub(r"\1\\\2", escaped)


def _is_obeyed(sign: str) -> bool:
    return (
        not sign.isprintable()
        and sign not in _LINE_LAYOUT
        and sign not in _JOINERS
        and unicodedata.category(sign) in _OBEYED_CATEGORIES
    )


def _visible(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")


def _json_escape(sign: str) -> str:
    units = sign.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
