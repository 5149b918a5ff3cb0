"""Experts and routers: which runs the cells are, and what the table makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.experts import ROWS_A_TASK, words_of
from benchmarks.experts_results import MODELS, MULTI, Cell, experts_section, read_experts, routed_accuracy
from benchmarks.small_grid import TASKS, folder_of
from fedfinlora.compose import compose
from fedfinlora.files import write_json
from fedfinlora.run.typed import to_json


def cell(model: str, seed: int = 0, **accuracy: float) -> Cell:
    right = {**dict.fromkeys(TASKS, 0.5), **accuracy}
    return Cell(model, seed, "tiny", 120, accuracy=right, test_rows=240, rows=480)


def test_the_adapter_of_all_takes_as_many_rows_of_each_task(tmp_path: Path) -> None:
    found = {model: compose([*words_of(Cell(model, 1), ["dataset.root=rows"], tmp_path)]) for model in ("tfns", MULTI)}
    assert {one.dataset.max_rows_per_task for one in found.values()} == {ROWS_A_TASK}
    assert {one.train.batch_rows for one in found.values()} == {4}
    assert found["tfns"].dataset.tasks == ("tfns",)
    assert found[MULTI].dataset.tasks == TASKS
    assert {one.evaluation.benchmarks for one in found.values()} == {TASKS}


def test_the_router_by_task_takes_each_benchmark_from_its_own() -> None:
    cells = {task: cell(task, **{task: 0.6 + number / 10}) for number, task in enumerate(TASKS)}
    assert routed_accuracy(cells, "task") == pytest.approx({"fpb": 0.6, "fiqa": 0.7, "tfns": 0.8, "nwgi": 0.9})
    cells["fiqa"] = cell("fiqa", tfns=0.95)
    assert routed_accuracy(cells, "oracle") == pytest.approx({"fpb": 0.6, "fiqa": 0.5, "tfns": 0.95, "nwgi": 0.9})
    del cells["fpb"]
    assert routed_accuracy(cells, "task") == {}


def test_the_table_says_what_one_adapter_for_all_costs(tmp_path: Path) -> None:
    assert experts_section(tmp_path) == ""
    for one in (*(cell(task, **{task: 0.9}) for task in TASKS), cell(MULTI), cell("arrow"), cell("arrow", 1, fpb=0.7)):
        write_json(tmp_path / f"{one.name}.json", to_json(one))
    text = experts_section(tmp_path)
    assert "| one adapter of all four | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 1 |" in text
    assert "| the four, each benchmark by its own | 90.0 | 90.0 | 90.0 | 90.0 | 90.0 | 1 |" in text
    assert "| the four, by Arrow | 60.0 | 50.0 | 50.0 | 50.0 | 52.5 | 2 |" in text
    assert "-40.0 points (more than chance of the rows" in text


def test_kept_cells_of_experts_are_read() -> None:
    for one in read_experts(folder_of("experts")):
        assert one.model in MODELS
        assert one.test_rows == 240
        assert set(one.accuracy) == set(TASKS)
