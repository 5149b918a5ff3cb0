"""The notebook of the documentation runs from top to bottom, and shows what it was committed with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FILE = Path(__file__).parents[2] / "docs" / "first_steps.ipynb"


def shown(notebook: Any) -> list[list[str]]:
    """The lines that each code cell shows, sorted and without numbers: these depend on the processor, the order of the
    banks on who is first.
    """
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
            cells.append(sorted(re.sub(r"[-+]?\d+(\.\d+)?", "#", "\n".join(texts)).split("\n")))
    return [[line for line in lines if line] for lines in cells]


def test_it_is_committed_with_its_outputs_and_without_a_path_of_a_machine() -> None:
    committed = nbformat.read(FILE, as_version=4)
    nbformat.validate(committed)
    assert [cell.execution_count for cell in committed.cells if cell.cell_type == "code"] == [1, 2, 3, 4, 5, 6]
    assert any("image/png" in output.get("data", {}) for cell in committed.cells for output in cell.get("outputs", []))
    assert not re.search(r"/(home|tmp|work|root)/", FILE.read_text("utf-8"))


@pytest.mark.slow
def test_it_runs_and_shows_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A federated run in it is a real one, through Flower."""
    monkeypatch.setenv("PYTHONPATH", str(FILE.parents[1]))
    notebook = nbformat.read(FILE, as_version=4)
    committed = shown(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FILE.parent)}}).execute()
    assert shown(notebook) == committed
