"""What a command's help says is what the command takes: options, positions and the words that are no configuration
keys.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.benches import ledger as bench_ledger
from data.check_text import ALL_ROWS
from fedfinlora import cli
from fedfinlora.commands import bench
from fedfinlora.errors import ConfigError

ROOT = Path(cli.__file__).parent


def parsers_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its actions, each once."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in {id(one): one for one in action.choices.values()}.values():
                yield from parsers_of(each)


PARSERS = {parser.prog.removeprefix("python -m fedfinlora").strip(): parser for parser in parsers_of(cli.parser())}
SOURCES = [cli.__file__, *(str(file) for file in (ROOT / "commands").rglob("*.py"))]


def options_read() -> set[str]:
    """Every attribute of a name `options` that the commands read."""
    trees = [ast.parse(Path(file).read_text("utf-8")) for file in SOURCES]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    plain = {
        node.attr for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "options"
    }  # fmt: skip
    named = {
        node.args[1].value for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"
        and len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
        and isinstance(node.args[0], ast.Name) and node.args[0].id == "options"
    }  # fmt: skip
    return plain | named


def test_every_option_is_explained_and_read_and_no_other_one_is_read() -> None:
    taken: set[str] = set()
    for name, parser in PARSERS.items():
        for action in parser._actions:
            taken.add(action.dest)
            listed = isinstance(action, argparse._SubParsersAction)
            assert listed or action.help, f"{name}: {action.dest} has no help"
        taken |= set(parser._defaults)
        assert parser.format_help().startswith("usage: python -m fedfinlora")
    read = options_read()
    assert taken - read <= {"help", "version", "given"}, "offered and never read"
    assert read - taken == set(), "read and never offered"


def test_words_that_are_no_configuration_keys_are_in_the_help() -> None:
    with pytest.raises(ConfigError) as benches:
        bench.bench(["nothing"], None)
    with pytest.raises(ConfigError) as sizes:
        bench_ledger.bench_ledger(["nothing=1"])
    of_bench = re.findall(r"[\w-]+", str(benches.value).split("one of:")[1]) + re.findall(
        r"\w+=(?=NUMBER)", str(sizes.value)
    )
    assert len(of_bench) >= 8
    for command, words in {"data check": [ALL_ROWS, "dataset.tasks="], "bench": of_bench}.items():
        text = PARSERS[command].format_help()
        assert not [word for word in words if not re.search(rf"(?<![\w-]){re.escape(word)}", text)], command
