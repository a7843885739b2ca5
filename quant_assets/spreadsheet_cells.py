"""Untrusted text in CSV files, kept from running as a spreadsheet formula.

An apostrophe is put before a text that begins with a formula character, or with a character that
spreadsheets drop before they look for one. Another is put after each separator inside a text that a
formula character follows, because a spreadsheet that splits there turns the rest into a cell.
Columns of numbers are left as they are.

The escaping is reversible: remove the apostrophe at the beginning if `_LEADING` matches after it,
then the one after each separator where `_INSIDE` matches without it, except where
`_NOTHING_TO_RUN` matches. A text that already has an apostrophe there gets one more.
"""

import re
from typing import Final

_SIGNS: Final = "=+\\-@" + "\uff1d\uff0b\uff0d\uff20" + "\ufe66\ufe62\ufe63\ufe6b" + "\u2212"
"""Plain, full-width and small forms, and the minus character U+2212."""
_BREAKS: Final = "\t\n\x0b\x0c\r\x85\u2028\u2029"
_UNSEEN: Final = (
    "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\xa0\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u08e2"
    "\u115f\u1160\u1680\u180b-\u180e\u2000-\u200f\u202a-\u202f\u205f-\u206f\u2800\u3000\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0001\U000e0020-\U000e01ef"
)
"""Controls, zero-width characters and spaces, except line breaks, tabs and the plain space."""
_SKIPPED: Final = f" '{_UNSEEN}"
_LEADING: Final = f"^([{_SKIPPED}{_BREAKS}]*[{_SIGNS}|]|'*[{_BREAKS}{_UNSEEN}])"
_INSIDE: Final = f"([;|{_BREAKS}])([{_SKIPPED}]*[{_SIGNS}])"
_NOTHING_TO_RUN: Final = f"([;|{_BREAKS}])'([{_SKIPPED}]*[{_SIGNS}][{_SKIPPED}{_SIGNS}]*)"
"""Formula characters at the end of a text, after `_INSIDE`'s apostrophe; they have no operand."""


def neutralized(text: str) -> str:
    """The text as a CSV cell that no spreadsheet runs as a formula."""
    text = re.sub(_INSIDE, r"\1'\2", text)
    text = re.sub(rf"{_NOTHING_TO_RUN}\Z", r"\1\2", text)
    return re.sub(_LEADING, r"'\1", text)


def neutralized_sql(column: str) -> str:
    """`neutralized` as an SQL expression over a column or a variable (not an expression)."""
    leading, inside, nothing = map(_literal, (_LEADING, _INSIDE, rf"{_NOTHING_TO_RUN}\z"))
    guarded = rf"regexp_replace({column}, {inside}, '\1''\2', 'g')"
    guarded = rf"regexp_replace({guarded}, {nothing}, '\1\2')"
    guarded = rf"regexp_replace({guarded}, {leading}, '''\1')"
    return (
        f"CASE WHEN regexp_matches({column}, {leading}) OR regexp_matches({column}, {inside}) "
        f"THEN {guarded} ELSE {column} END"
    )


def _literal(text: str) -> str:
    """A text as an SQL literal, with control characters as RE2 escapes."""
    shown = "".join(f"\\x{ord(sign):02x}" if sign < " " else sign for sign in text)
    return "'" + shown.replace("'", "''") + "'"
