"""Words such as run_name=2024_01: a field of text gets exactly what was typed, also quotes, brackets or dollar signs.

Hydra would read 2024_01 as a number, null as nothing, and "Lauf Ü" not at all. So the words for text fields never reach
it: `split_text` takes them out and reads them, `compose` puts their values into what Hydra has composed. A value may be
in quotes, as Hydra's own may; `word` writes one that reads back as the same text.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Sequence
from functools import cache
from typing import Any

from fedfinlora.config.schema import Config
from fedfinlora.errors import ConfigError

QUOTES = ("'", '"')


@cache
def text_keys() -> frozenset[str]:
    """Every configuration key whose value is a text, e.g. run_name and model.path."""
    return frozenset(_text_keys(Config, ""))


def _text_keys(cls: type[Any], prefix: str) -> list[str]:
    found: list[str] = []
    for name, kind in typing.get_type_hints(cls).items():
        if kind is str:
            found.append(f"{prefix}{name}")
        elif dataclasses.is_dataclass(kind):
            found += _text_keys(typing.cast(type[Any], kind), f"{prefix}{name}.")
    return found


def split_text(overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(key -> value of the words for text fields, the last of each; all other words, for Hydra).

    >>> split_text(["peft=dora", "run_name=2024_01", "model.path='/data/my model'"])
    ({'run_name': '2024_01', 'model.path': '/data/my model'}, ['peft=dora'])
    """
    texts: dict[str, str] = {}
    others: list[str] = []
    for word in overrides:
        key, equals, value = word.partition("=")
        plain = key.removeprefix("++").strip()
        if not equals or plain not in text_keys():
            others.append(word)
            continue
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{plain} holds bytes that are no UTF-8. Rename the file or folder, or name a link to it."
            ) from error
        if "\0" in value:
            raise ConfigError(f"{plain} holds a zero byte, which no name has.")
        texts[plain] = _unquoted(value)
    return texts, others


def typed_keys(overrides: Sequence[str]) -> set[str]:
    """The keys and groups that the words set.

    >>> sorted(typed_keys(["peft=dora", "++run_name=a=b", "~privacy"]))
    ['peft', 'privacy', 'run_name']
    """
    return {word.lstrip("+~").split("=")[0] for word in overrides}


def word(key: str, value: str) -> str:
    r"""The word that gives a text field this value, however it is spelled.

    >>> word("run_name", "Lauf Ü [1]"), word("run_name", '"quoted"')
    ('run_name=Lauf Ü [1]', 'run_name="\\"quoted\\""')
    """
    if value == value.strip() and not _is_quoted(value):
        return f"{key}={value}"
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f'{key}="{escaped}{escaped[len(escaped) - trailing :]}"'


def toml_text(value: str) -> str:
    r"""A text as a TOML string that Flower's --run-config and --node-config take whole: without a quote or a line's end
    inside.

    >>> print(toml_text('a "b" \\ Ü'))
    "a \u0022b\u0022 \u005c Ü"
    """

    def spelled(letter: str) -> str:
        if letter.isprintable() and letter not in '"\\':
            return letter
        return f"\\U{ord(letter):08x}" if ord(letter) > 0xFFFF else f"\\u{ord(letter):04x}"

    return '"' + "".join(map(spelled, value)) + '"'


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] in QUOTES and value[-1] == value[0]


def _unquoted(value: str) -> str:
    """Without the quotes around it and the backslashes before quotes inside; blanks around are no part of it."""
    value = value.strip()
    if not _is_quoted(value):
        return value
    quote, inner = value[0], value[1:-1]
    return re.sub(rf"(\\+)(?={quote}|\Z)", lambda found: found[1][: len(found[1]) // 2], inner)
