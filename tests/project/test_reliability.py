"""docs/reliability.md is what tests/helpers/reliability.py says, and every row has its test, which looks for the row's
words.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from reliability import OUTCOMES, Outcome, page

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_that_of_the_table() -> None:
    written = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    assert written == page(), "write it again: python -m tests.helpers.reliability > docs/reliability.md"


@pytest.mark.parametrize("fault", OUTCOMES)
def test_every_row_has_its_test(fault: str) -> None:
    row: Outcome = OUTCOMES[fault]
    source = (ROOT / row.file).read_text("utf-8")
    found = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) and node.name == row.test
    ]
    assert len(found) == 1
    text = ast.unparse(found[0])
    assert "skip" not in text
    assert f"OUTCOMES['{fault}']" in text or (row.says and row.says in text)
