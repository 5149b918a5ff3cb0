"""The grid of private runs: order, resumption and the figures that are kept, with commands that only write what a run
would leave.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_lines

from benchmarks import private_grid
from benchmarks.private_grid import Cell, cells, figures_file, run_cells
from benchmarks.private_results import private_table, read_cells
from fedfinlora.compose import compose
from fedfinlora.errors import UserError
from fedfinlora.files import write_json

SECRET = "a sentence that only a bank may read"


@dataclass
class Commands:
    """In the place of `python -m fedfinlora`: notes the words and leaves the files of a finished run."""

    fails: str = ""
    """The run_name of a run that fails."""
    typed: list[list[str]] = field(default_factory=list)
    variables: list[Mapping[str, str]] = field(default_factory=list)

    def __call__(self, words: Sequence[str], variables: Mapping[str, str]) -> None:
        self.typed.append(list(words))
        self.variables.append(variables)
        named = dict(word.split("=", 1) for word in words if "=" in word)
        run = Path(named["resume"]) if "resume" in named else Path(named["output_dir"]) / named["run_name"]
        if run.name == self.fails:
            raise UserError("ended with status 1")
        private = "8" in run.name or "noise" in run.name
        scores = {"fpb": {"n": 50, "accuracy": 0.6, "accuracy_ci95": [0.46, 0.72], "matthews": 0.3, "rows": [SECRET]}}
        result = {
            "status": "completed", "scores": {"final": scores}, "banks": 4, "rounds": 8, "steps_trained": 32,
            "wall_s": {"total": 90.0},
            "rows_trained": None if private else 80,
        }  # fmt: skip
        write_json(run / "result.json", result)
        command = "python -m fedfinlora " + " ".join(words)
        write_json(run / "manifest.json", {"command": command, "git_commit": "abc", "cpus": 2, "platform": "Linux"})
        bank = {"delta": 1e-5, "epsilon_planned": 7.9, "epsilon_spent": 7.8, "rounds": 8}
        write_json(run / "privacy.json", {"banks": {f"bank-{number}": bank for number in range(4)}})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows, a folder for runs, and the figures' folder, all below one."""
    labels = ("positive", "negative", "neutral")
    for number, task in enumerate(("fpb", "fiqa", "tfns", "nwgi")):
        lines = [
            json.dumps({"context": f"{SECRET} {row} {number} Answer: ", "target": labels[row % 3]}) for row in range(90)
        ]
        write_lines(tmp_path / "data" / "train" / f"{task}_train.jsonl", lines)
    monkeypatch.setattr(private_grid, "FIGURES", tmp_path / "figures")
    return tmp_path


def run_all(place: Path, wanted: Sequence[Cell], commands: Commands, *more: str) -> list[Cell]:
    return run_cells(wanted, place / "data", place / "work", more, commands)


def test_without_privacy_and_epsilon_8_come_first_over_three_seeds() -> None:
    names = [cell.name for cell in cells()]
    assert names[:7] == [f"lora_xs-{rest}" for rest in ("start-0", "none-0", "8-0", "none-1", "8-1", "none-2", "8-2")]
    assert names[7:16] == [f"lora_xs-{kind}-{seed}" for kind in ("noise", "3", "1") for seed in (0, 1, 2)]
    assert len(names) == len(set(names))
    assert {name.rsplit("-", 2)[0] for name in names[16:]} == {"ffa", "lora"}


@pytest.mark.parametrize("cell", list(cells()), ids=lambda cell: cell.name)
def test_every_cell_composes(cell: Cell, tmp_path: Path) -> None:
    config = compose([*cell.words(), f"dataset.root={tmp_path}"])
    assert config.seed == cell.seed
    assert config.privacy.mode == ("none" if cell.kind in ("none", "start") else "example")
    public = compose(["experiment=sentiment_public", *private_grid.ADAPTERS[cell.adapter], f"seed={cell.start_seed}"])
    assert public.peft == config.peft, "a start of the same kind"
    assert public.seed == config.seed or not config.peft.freeze_a, "A comes from the seed"


def test_a_cell_makes_its_start_once_and_has_a_ledger_of_its_own(place: Path) -> None:
    commands = Commands()
    wanted = [Cell("lora_xs", "none", 0), Cell("lora_xs", "8", 1)]
    assert run_all(place, wanted, commands, "model.threads=2") == []
    starts, runs = commands.typed[:1], commands.typed[1:]
    assert [words[0] for words in (*starts, *runs)] == ["centralized", "simulate", "simulate"]
    assert all("model.threads=2" in words for words in commands.typed)
    adapter = f"start_adapter={place / 'work' / 'public-lora_xs-0' / 'adapters' / 'final'}"
    assert all(adapter in words for words in runs)
    sizes = [next(word for word in words if word.startswith("strategy.sizes=")) for words in runs]
    counts = [int(entry.split(":")[1]) for entry in sizes[0].partition("[")[2].rstrip("]").split(",")]
    assert len(counts) == 4
    assert sum(counts) == pytest.approx(4 * 90, rel=0.1), "all rows, rounded"
    assert sizes[0] != sizes[1], "another seed divides otherwise"
    ledgers = [variables["FEDFINLORA_LEDGER"] for variables in commands.variables[1:]]
    assert len(set(ledgers)) == 2


def test_finished_cells_are_skipped_and_begun_runs_resume(place: Path) -> None:
    none, eight = Cell("lora_xs", "none", 0), Cell("lora_xs", "8", 0)
    run_all(place, [none], Commands())
    state = place / "work" / eight.name / "state"
    state.mkdir(parents=True)
    (state / "round_0003.safetensors").write_bytes(b"")
    commands = Commands()
    run_all(place, [none, eight], commands)
    assert commands.typed == [["simulate", f"resume={place / 'work' / eight.name}"]]
    assert commands.variables[0]["FEDFINLORA_LEDGER"].endswith(eight.name)


def test_a_cell_that_fails_is_named_and_the_others_continue(place: Path) -> None:
    none, eight = Cell("lora_xs", "none", 0), Cell("lora_xs", "8", 0)
    assert run_all(place, [none, eight], Commands(fails=none.name)) == [none]
    assert not figures_file(none).is_file()
    assert figures_file(eight).is_file()


def test_figures_hold_scores_and_what_was_spent_and_never_a_row(place: Path) -> None:
    wanted = [Cell("lora_xs", kind, 0) for kind in ("start", "none", "8", "noise")]
    run_all(place, wanted, Commands())
    found: dict[str, dict[str, Any]] = {cell.kind: json.loads(figures_file(cell).read_text()) for cell in wanted}
    eight = found["8"]
    assert eight["scores"]["fpb"] == {"n": 50, "accuracy": 0.6, "accuracy_ci95": [0.46, 0.72], "matthews": 0.3}
    assert eight["mean"] == 0.6
    assert [bank["epsilon_spent"] for bank in eight["privacy"]] == [7.8] * 4
    assert all(0 < bank["sampling_rate"] < 1 and bank["noise_multiplier"] > 0 for bank in eight["privacy"])
    assert eight["noise_to_signal"] > 0
    assert {bank["noise_multiplier"] for bank in found["noise"]["privacy"]} == {float(private_grid.NOISE_MULTIPLIER)}
    assert found["none"]["rows_processed"] == 80
    assert "privacy" not in found["none"]
    assert "rounds" not in found["start"]
    assert (eight["commit"], eight["minutes"], eight["machine"]["cpus"]) == ("abc", 1.5, 2)
    assert not any(SECRET in file.read_text() for file in private_grid.FIGURES.iterdir())
    assert str(place) not in figures_file(wanted[2]).read_text(), "no path of one machine"
    assert private_table(read_cells(private_grid.FIGURES)).count("\n") == 5


def test_words_after_two_dashes_go_to_every_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[list[str], Sequence[str]]] = []

    def note(wanted: Sequence[Cell], data: Path, work: Path, more: Sequence[str]) -> list[Cell]:
        seen.append(([cell.name for cell in wanted], more))
        return []

    monkeypatch.setattr(private_grid, "run_cells", note)
    monkeypatch.setattr("os.nice", lambda step: 0)
    places = ["--data", str(tmp_path), "--work", str(tmp_path)]
    for given in ([*places, "--cells", "lora-8-0"], ["--cells", "lora-8-0", *places]):
        monkeypatch.setattr("sys.argv", ["private_grid", *given, "--", "workers=1", "model.threads=2"])
        private_grid.main()
    assert seen == [(["lora-8-0"], ["workers=1", "model.threads=2"])] * 2
