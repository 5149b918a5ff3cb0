"""YAML that people write by hand, read as a person means it.

YAML 1.1, which PyYAML reads, takes 012 for ten, 1:30 for ninety, 1_000 for a thousand, `no` for false and 1e-5 for a
text. Here numbers, true, false and null are what YAML 1.2's core schema calls so, 1e-5 is a number, and the others are
refused with the line and with what to write. No key may occur twice, and none is merged in.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

INT, FLOAT, BOOL, NULL, TEXT = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "null", "str"))
LARGEST_BYTES = 2**20
"""Of such a file."""
PLAIN = {
    INT: re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII),
    FLOAT: re.compile(
        r"[-+]?(\.inf|(0|[1-9][0-9]*)(\.[0-9]*)?([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?)|\.nan", re.ASCII
    ),
    BOOL: re.compile("true|false|True|False"),
    NULL: re.compile("null|~|"),
}
"""Tag -> how such a value is written."""
EXPONENT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+\Z", re.ASCII)
"""A number that YAML 1.1 takes for a text where point or sign is missing; matched whole, since a hash such as 0e1818cc…
is a text.
"""
HIDDEN_BREAKS = "\u0085\u2028\u2029"
"""Line breaks of YAML 1.1 that most editors do not show: a setting behind one looks like a comment."""
LONGEST_NUMBER = 40


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: a key is a word, not a list or a mapping")
            if key.tag == "tag:yaml.org,2002:merge" or key.value in seen:
                raise yaml.YAMLError(
                    f"line {key.start_mark.line + 1}: the key {key.value!a:.40} is there twice, or is a merge"
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if isinstance(node, yaml.ScalarNode):
            _check(node)
            if node.tag == FLOAT:
                value = float(node.value.replace(".inf", "inf").replace(".nan", "nan"))
                if value == 0 and re.search("[1-9]", re.split("[eE]", node.value)[0]):
                    raise yaml.YAMLError(
                        f"line {node.start_mark.line + 1}: {node.value} is too small, and would be read as 0"
                    )
                return value
        return super().construct_object(node, deep)


class _Dumper(yaml.SafeDumper):
    def represent_str(self, value: str) -> yaml.ScalarNode:
        style = None if value.isprintable() else '"'  # a line break of Unicode would be read as a blank
        return self.represent_scalar(TEXT, value, style=style)  # type: ignore[no-any-return]


_Dumper.add_representer(str, _Dumper.represent_str)


for _side in (_Loader, _Dumper):  # what one writes the other reads
    _side.add_implicit_resolver(FLOAT, EXPONENT, list("-+.0123456789"))


def _check(node: yaml.ScalarNode) -> None:
    if node.tag in (INT, FLOAT) and len(node.value) > LONGEST_NUMBER:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a number has more than {LONGEST_NUMBER} digits")
    if node.tag == TEXT or (node.tag in PLAIN and PLAIN[node.tag].fullmatch(node.value)):
        return
    where, shown = f"line {node.start_mark.line + 1}", ascii(node.value)[1:-1][:40]
    if node.tag == BOOL:
        raise yaml.YAMLError(f"{where}: write true or false, or '{shown}' in quotes for the word")
    raise yaml.YAMLError(
        f"{where}: {shown} can be read in two ways. Write a number as 12 or 1.5, and a text in quotes: '{shown}'"
    )


def read_yaml(content: bytes) -> Any:
    """The value of a YAML file. yaml.YAMLError for one that is none or too large; RecursionError.

    >>> read_yaml(b"{a: 12, b: 1e-5, c: '012', d: on-line}")
    {'a': 12, 'b': 1e-05, 'c': '012', 'd': 'on-line'}
    """
    if len(content) > LARGEST_BYTES:
        raise yaml.YAMLError(f"it has more than {LARGEST_BYTES:,} bytes")
    for mark in HIDDEN_BREAKS:
        if mark.encode() in content:
            raise yaml.YAMLError(
                f"it has the line break U+{ord(mark):04X}, which most editors do not show: take it out"
            )
    return yaml.load(content, _Loader)


def yaml_text(value: Any) -> str:
    """A value on one line, which `read_yaml` reads as the same.

    >>> yaml_text(["1e5", "012", "no", "a"]), yaml_text(1e-05)
    ("['1e5', '012', 'no', a]", '1.0e-05')
    """
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").strip()
