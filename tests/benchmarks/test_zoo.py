"""The table of PEFT methods: which runs its cells are, and what it says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.small_grid import folder_of
from benchmarks.zoo import cells_of, config_of, rank_for
from benchmarks.zoo_results import ROUNDS, STEPS, ZOO, Cell, read_zoo, zoo_section
from fedfinlora.config.peft import PEFT_METHODS, PeftConfig
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import write_json
from fedfinlora.privacy.forecast import adapter_parameters
from fedfinlora.run.typed import to_json

SHAPES = {f"layers.{layer}.{name}": shape for layer in (0, 1) for name, shape in
          {"q_proj": (576, 576), "k_proj": (576, 192), "v_proj": (576, 192)}.items()}  # fmt: skip
BUDGET = adapter_parameters(PeftConfig(rank=8), SHAPES)


@pytest.mark.parametrize(
    ("method", "rank"),
    [("lora", 8), ("pissa", 8), ("miss", 22), ("qalora", 21), ("lora_xs", 84), ("ir_qlora", 8), ("vera", 128)],
)
def test_a_method_gets_the_highest_rank_within_loras_parameters(method: str, rank: int) -> None:
    peft = PeftConfig(method=method)
    assert rank_for(peft, BUDGET, SHAPES) == rank
    spent = adapter_parameters(replace(peft, rank=rank), SHAPES)
    assert spent <= BUDGET + 2 * len(SHAPES)


def test_a_method_that_cannot_be_so_small_is_refused() -> None:
    with pytest.raises(UserError, match="more parameters at rank 1"):
        rank_for(PeftConfig(), 10, SHAPES)


def test_pooled_and_federated_cells_take_the_same_rows_and_steps(tmp_path: Path) -> None:
    found = [config_of(cell, ["dataset.root=rows", "model=tiny-random"], tmp_path) for cell in cells_of(
        ["lora_plus"], ["pooled", "federated"], [0])]  # fmt: skip
    assert [one.train.batch_rows * one.banks for one in found] == [4, 4]
    assert {(one.train.max_steps, one.num_server_rounds, one.peft.loraplus_ratio) for one in found} == {
        (STEPS, ROUNDS, 16)
    }


def test_every_entry_is_a_method_and_an_unknown_one_is_named() -> None:
    assert {word.removeprefix("peft=") for entry in ZOO.values() for word in entry.words} <= {
        *PEFT_METHODS,
        "lora_plus",
    }
    with pytest.raises(ConfigError, match="adalora"):
        cells_of(["adalora"], ["pooled"], [0])


def test_the_table_has_the_kept_cells_and_their_interval(tmp_path: Path) -> None:
    assert zoo_section(tmp_path) == ""
    for method, mode, right in (("lora", "pooled", 0.6), ("lora", "federated", 0.5), ("vera", "federated", 0.25)):
        cell = Cell(method, mode, 0, "tiny", 8, 1024, 1e-3, 12 * 4096 if mode == "federated" else 0,
                    accuracy={"fpb": right, "fiqa": right}, test_rows=240, rows=480)  # fmt: skip
        write_json(tmp_path / f"{cell.name}.json", to_json(cell))
    lines = zoo_section(tmp_path).splitlines()
    assert lines[2:4] == [
        "| LoRA | 8 | 1,024 | 0.001 | 60.0 | 50.0 | 1 | 4 |", "| VeRA | 8 | 1,024 | 0.001 | – | 25.0 | 1 | 4 |",
    ]  # fmt: skip
    assert "interval of one cell is 6.3 points" in lines[-1]
    assert "Federated, 0 of 1 are no further from LoRA than chance." in lines[-1]
    assert "Pooled, " not in lines[-1]


def test_kept_cells_are_read() -> None:
    for cell in read_zoo(folder_of("zoo")):
        assert cell.test_rows == 240
        assert set(cell.accuracy) == {"fpb", "fiqa", "tfns", "nwgi"}
