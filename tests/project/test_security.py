"""docs/security.md is what tests/helpers/security.py says, and every row has its test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from security import ATTACKERS, Attempt, page

ROOT = Path(__file__).resolve().parents[2]
ROWS = [row for attempts in ATTACKERS.values() for row in attempts]


def test_the_page_is_that_of_the_table() -> None:
    written = (ROOT / "docs" / "security.md").read_text("utf-8")
    assert written == page(), "write it again: python -m tests.helpers.security > docs/security.md"


def test_every_attacker_has_rows() -> None:
    assert all(ATTACKERS.values())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.tries[:60])
def test_every_row_has_its_test(row: Attempt) -> None:
    tree = ast.parse((ROOT / row.file).read_text("utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == row.test]
    assert len(found) == 1
    assert "skip" not in ast.unparse(found[0])
