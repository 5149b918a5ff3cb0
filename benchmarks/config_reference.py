"""The configuration reference, made from the schema itself: `python -m benchmarks.config_reference >
docs/configuration.md`.

Keys, types and defaults are the dataclass fields in `fedfinlora.config`, meanings the strings below the fields, allowed
values the checks in `__post_init__`; options are the files under `conf/`. A test compares docs/configuration.md with
this module's output.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fedfinlora.compose import CONF_FOLDER, PROJECT_ROOT, group_options
from fedfinlora.config import schema, stages
from fedfinlora.report.values import shown
from fedfinlora.run.folder import flatten

INTRODUCTION = """\
# Configuration

Made by `python -m benchmarks.config_reference > docs/configuration.md`; do not edit.

A run's configuration is the schema's defaults (`fedfinlora/config/`, a file for each group), then the files under `conf/` that `conf/config.yaml` and
`experiment=` choose, then the `key=value` words of the command line, which win. `group=option` chooses a file, `group.key=value` sets
one value; lists are written `'dataset.tasks=[fpb,fiqa]'`, quoted for the shell. An unknown key or value ends the command with the
valid ones. What a run was given in the end is in its `config.yaml`.
"""
TYPES = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "tuple[str, ...]": "list of names",
}
SIGNS: dict[type[ast.cmpop], str] = {ast.Gt: "> ", ast.GtE: "≥ ", ast.Lt: "< ", ast.LtE: "≤ "}


def main() -> None:
    """Print the reference."""
    print(render(), end="")


def render() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION, _chosen(), _section("The run", schema.Config, "")]
    for item in dataclasses.fields(schema.Config):
        if isinstance(item.default_factory, type):
            parts.append(_section(f"`{item.name}`", item.default_factory, f"{item.name}."))
            for part in dataclasses.fields(item.default_factory):
                if isinstance(part.default_factory, type):
                    name = f"{item.name}.{part.name}"
                    parts.append(_section(f"`{name}`", part.default_factory, f"{name}."))
    parts += [_section("Stages", stages.StagesConfig, ""), _experiments(), _run_config()]
    return "\n".join(parts)


def meanings(cls: type[Any]) -> dict[str, str]:
    """Field -> the string below it in the source, "" where there is none."""
    body = _class(cls).body
    found: dict[str, str] = {}
    for statement, following in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = _string(following)
    return found


def allowed(cls: type[Any]) -> dict[str, str]:
    """Field -> what its checks in `__post_init__` demand: the choices, or bounds such as "> 0" or "in [0, 1)"."""
    found: dict[str, str] = {}
    for call, loop_names in _checks(cls):
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        if name == "choose":
            found[_field(call.args[0])] = ", ".join(
                f"`{choice}`" for choice in _choices(call.args[1], vars(sys.modules[cls.__module__]))
            )
        elif name == "require" and (bound := _bound(call.args[0])):
            for field_name in loop_names or [_field(_measured(call.args[0]))]:
                found[field_name] = bound
    return found


def _section(title: str, cls: type[Any], prefix: str) -> str:
    explained, limits = meanings(cls), allowed(cls)
    lines = [
        f"## {title}",
        "",
        inspect.getdoc(cls) or "",
        "",
        "| key | type | default | allowed | meaning |",
        "|---|---|---|---|---|",
    ]
    for item in dataclasses.fields(cls):
        if item.default is dataclasses.MISSING:
            continue
        cells = [
            f"`{prefix}{item.name}`", TYPES[str(item.type)], f"`{json.dumps(item.default, allow_nan=False)}`",
            limits.get(item.name, ""),
            explained[item.name],
        ]  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", *_options(prefix.rstrip(".")), ""])


def _options(group: str) -> list[str]:
    """The files of a group with the sentence that each opens with."""
    if not group:
        return []
    lines = []
    for name in group_options(group):
        sets = " ".join(f"{key}={value}" for key, value in _values(group, name).items())
        lines.append(f"- `{group}={name}`: {_introduction(group, name)}" + (f" Sets `{sets}`." if sets else ""))
    return lines


def _introduction(group: str, option: str) -> str:
    lines = (CONF_FOLDER / group / f"{option}.yaml").read_text("utf-8").splitlines()
    return next(line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line)


def _values(group: str, option: str) -> dict[str, str]:
    """Key -> value of everything that a file sets, and the files that it chooses in other groups."""
    import yaml

    text = (CONF_FOLDER / group / f"{option}.yaml").read_text("utf-8")
    values = yaml.safe_load(text)
    chosen: dict[str, str] = {}
    for choice in values.pop("defaults", []):
        if isinstance(choice, dict):
            chosen |= {key.removeprefix("override /"): name for key, name in choice.items()}
        elif choice != "_self_":  # another option of the group, which comes first
            chosen[group] = choice
    prefix = "" if text.startswith("# @package _global_") else f"{group}."
    return chosen | {f"{prefix}{key}": shown(value) for key, value in flatten(values).items()}


def _chosen() -> str:
    """What `conf/config.yaml` chooses when no word is given."""
    import yaml

    defaults = yaml.safe_load((CONF_FOLDER / "config.yaml").read_text("utf-8"))["defaults"]
    words = [
        f"{group}={name}" for choice in defaults if isinstance(choice, dict) for group, name in choice.items() if name
    ]
    return (
        f"Without any words: `{' '.join(words)}`. Defaults in the tables below are the schema's, before these files.\n"
    )


def _experiments() -> str:
    lines = [
        "## `experiment`",
        "",
        "Several groups and values under one name; words on the command line still win.",
        "",
    ]
    return "\n".join([*lines, *_options("experiment"), ""])


def _run_config() -> str:
    settings = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]["config"]
    lines = [
        "## Through plain `flwr run .`", "",
        ('Flower takes only the keys that pyproject.toml declares, as `--run-config "key=value …"`. Empty texts and 0 '
        'rounds mean: as in'),
        ("`conf/`. Paths must be absolute. `overrides` holds any further words of the command line, in one quoted "
         "text, "
        "and wins."), "",
        "| key | default |", "|---|---|",
    ]  # fmt: skip
    return "\n".join(
        [*lines, *(f"| `{key}` | `{json.dumps(value, allow_nan=False)}` |" for key, value in settings.items()), ""]
    )


# Reading the schema's source


def _class(cls: type[Any]) -> ast.ClassDef:
    found = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(found, ast.ClassDef)
    return found


def _string(statement: ast.stmt) -> str:
    if (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    ):
        return " ".join(statement.value.value.split())
    return ""


def _checks(cls: type[Any]) -> Iterator[tuple[ast.Call, list[str]]]:
    """Each call in `__post_init__`, with the field names of the loop around it, if it is in one."""
    method = next(
        item for item in _class(cls).body if isinstance(item, ast.FunctionDef) and item.name == "__post_init__"
    )
    for statement in method.body:
        names: list[str] = []
        inside: Iterable[ast.stmt] = [statement]
        if isinstance(statement, ast.For):
            try:
                names, inside = list(ast.literal_eval(statement.iter)), statement.body
            except ValueError:  # a loop over conditions, which has no bounds of its own
                inside = []
        for inner in inside:
            if isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Call):
                yield inner.value, names


def _choices(node: ast.expr, constants: Mapping[str, Any]) -> Iterable[str]:
    """The choices of a `choose` call: a constant of the class's module, or a tuple with such constants inside."""
    if isinstance(node, ast.Name):
        return list(constants[node.id])
    if isinstance(node, ast.Starred):
        return _choices(node.value, constants)
    if isinstance(node, ast.Tuple):
        return [choice for part in node.elts for choice in _choices(part, constants)]
    return [ast.literal_eval(node)]


def _bound(condition: ast.expr) -> str:
    """ "> 0" for `x > 0`, "in [0, 1)" for `0 <= x < 1`, "not empty" for `len(x) > 0`; "" for anything that is no plain
    bound.
    """
    if not isinstance(condition, ast.Compare) or not _field(_measured(condition)):
        return ""
    if len(condition.ops) == 2 and isinstance(condition.left, ast.Constant):
        low, high = (isinstance(operator, ast.LtE) for operator in condition.ops)
        ends = condition.left.value, ast.literal_eval(condition.comparators[1])
        return f"in {'[' if low else '('}{ends[0]!r}, {ends[1]!r}{']' if high else ')'}"
    limit = condition.comparators[0]
    if len(condition.ops) != 1 or not isinstance(limit, ast.Constant) or type(condition.ops[0]) not in SIGNS:
        return ""
    if isinstance(condition.left, ast.Call) and ast.unparse(condition.left.func) == "len":
        return "not empty"
    return f"{SIGNS[type(condition.ops[0])]}{limit.value!r}"


def _measured(condition: ast.expr) -> ast.expr:
    """What a comparison is about: its left side, or its middle."""
    assert isinstance(condition, ast.Compare)
    return condition.comparators[0] if len(condition.ops) == 2 else condition.left


def _field(node: ast.expr) -> str:
    """`x` for `self.x` and `len(self.x)`, "*" for `getattr(self, name)` in a loop, "" for anything else."""
    if isinstance(node, ast.Call):
        if ast.unparse(node.func) == "getattr":
            return "*"
        return _field(node.args[0]) if ast.unparse(node.func) == "len" else ""
    return node.attr if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self" else ""


if __name__ == "__main__":
    main()
