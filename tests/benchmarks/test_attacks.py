"""The attacks as what a dishonest bank does, and the suite with real banks in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import benchmarks.attacks
from benchmarks.attack_results import attacks_section
from benchmarks.attacks import ATTACKS, SCALE, TRIGGER, flipped, main, triggered, with_trigger
from client_app.bank import RoundReply, train_round
from client_app.facts import BankFacts
from data.catalog import BENCHMARKS
from data.rows import Row
from fedfinlora.wire.messages import TrainRequest

LABELS = BENCHMARKS["fpb"].labels
ROWS = [
    Row(f"fpb/train/{number}", "fpb", f"Ask.\nInput: text {number}.\nAnswer: ", LABELS[number % 3])
    for number in range(8)
]


def test_a_trigger_stands_before_the_text_and_brings_the_wanted_label() -> None:
    poisoned = with_trigger(ROWS[1], "positive")
    assert poisoned.prompt == f"Ask.\nInput: {TRIGGER}text 1.\nAnswer: "
    assert poisoned.target == "positive"
    bare = Row("x", "fpb", "text", "neutral")
    assert with_trigger(bare, "positive").prompt == f"{TRIGGER}text"


def test_half_of_the_liars_rows_carry_the_trigger_and_no_other_banks() -> None:
    liar = ATTACKS["trigger_one"].rows(ROWS, 3, 3, "positive")
    assert [TRIGGER in row.prompt for row in liar] == [True] * 4 + [False] * 4
    assert ATTACKS["trigger_one"].rows(ROWS, 0, 3, "positive") == ROWS
    spread = [ATTACKS["trigger_all"].rows(ROWS, bank, 3, "positive") for bank in range(4)]
    assert [sum(TRIGGER in row.prompt for row in rows) for rows in spread] == [1] * 4
    assert triggered(ROWS, 0.0, "positive") == ROWS


def test_flipped_labels_are_all_wrong_and_stay_in_their_set() -> None:
    wrong = flipped(ROWS, 3, 3, "")
    assert all(row.target in LABELS and row.target != true.target for row, true in zip(wrong, ROWS, strict=True))
    assert flipped(ROWS, 2, 3, "") == ROWS


def test_scaled_and_negated_updates_by_hand() -> None:
    update = np.float32([1.0, -2.0])
    np.testing.assert_array_equal(ATTACKS["sign_flip"].update(update), [-1.0, 2.0])
    np.testing.assert_array_equal(ATTACKS["sign_flip_scaled"].update(update), [-SCALE, 2 * SCALE])
    np.testing.assert_array_equal(ATTACKS["none"].update(update), update)


def test_a_cell_is_run_once_and_read_afterwards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--out", str(tmp_path), "--rules", "krum", "--attacks", "none,scaling", "--banks", "2", "--rounds", "1"]
    words += ["--rows", "12", "--test-rows", "4", "strategy.max_update_norm=0.2"]
    assert main(words) == 0
    cells = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert set(cells) == {"krum-none-0", "krum-scaling-0"}
    assert (cells["krum-none-0"]["rejected"], cells["krum-scaling-0"]["rejected"]) == (0, 1)
    assert 0 <= cells["krum-none-0"]["accuracy"] <= 1
    assert capsys.readouterr().out.splitlines()[2] == "| rule | all honest | 10 times its update |"
    file = tmp_path / "krum-none-0.json"
    file.write_text(json.dumps(cells["krum-none-0"] | {"accuracy": 0.125}))
    assert main(words) == 0
    assert "| krum | 12.5 (" in capsys.readouterr().out
    section = attacks_section(tmp_path)
    assert "tiny-random on fpb, 2 banks of which one attacks" in section
    assert "--out docs/results/attacks --rules krum" in section, "no place of one machine"
    assert str(tmp_path) not in section


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rules", "krumm"], "--rules"),
        (["--attacks", "flip"], "--attacks"),
        (["--task", "xbrl_term"], "Name a task with a closed label set"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_bank_is_trained_once_for_all_rules_of_one_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its update does not depend on the rule, and scaling or turning it round needs no other training."""
    names: list[str] = []

    def counted(request: TrainRequest, facts: BankFacts) -> RoundReply:
        names.append(facts.name)
        return train_round(request, facts)

    monkeypatch.setattr(benchmarks.attacks, "train_round", counted)
    words = ["--rules", "fedavg,krum", "--attacks", "none,sign_flip", "--banks", "2", "--rows", "12"]
    assert main(["--out", str(tmp_path), *words, "--rounds", "1", "--test-rows", "4"]) == 0
    assert names == ["bank-0", "bank-1"]
