"""The two ways in which a command ends badly; both become one line on the terminal, never a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user can put right. The message says what is wrong, where, and what to do. Exit status 1."""


class ConfigError(UserError):
    """A configuration key or value that does not exist or does not fit. Exit status 2."""


def choose(value: str, choices: Iterable[str], what: str) -> str:
    """Return `value` if it is one of `choices`, else raise a ConfigError that lists them and the nearest one."""
    listed = sorted(choices)
    if value in listed:
        return value
    near = get_close_matches(value, listed, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"Unknown {what} {value!r}.{hint} Choose one of: {', '.join(listed)}.")


def plural(amount: int, one: str, many: str = "") -> str:
    """A number and its noun; `many` where it is not `one` with an s.

    >>> plural(1, "bank"), plural(1200, "row"), plural(2, "reply", "replies")
    ('1 bank', '1,200 rows', '2 replies')
    """
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


def as_sentence(words: str) -> str:
    """With a capital letter.

    >>> as_sentence("killed")
    'Killed'
    """
    return words[:1].upper() + words[1:]


def printable(text: str) -> str:
    """A text of somebody else's for the terminal: what would move the cursor or hide a line is spelled out.

    >>> printable("north" + chr(27) + "[2J") == "north" + chr(92) + "x1b[2J", printable("Zürich")
    (True, 'Zürich')
    """
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
