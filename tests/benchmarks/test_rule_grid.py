"""The grid of rules: its files, killed and resumed cells of the tiny model, tuning by validation rows, its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import write_rows

from benchmarks import grid_cells
from benchmarks.grid import plan_text, run_grid
from benchmarks.grid_cells import KeptCell, KeptScore, Runner, ScoredRound, cell_file, course_of, read_cell
from benchmarks.grid_plan import Cell, Grid, Phase, Rule, Tuning, cells_of, read_grid, tuning_cells, words_of
from benchmarks.grid_results import GRIDS, first_near, grid_section, grid_text, paired_difference
from benchmarks.grid_runs import fedfinlora
from eval.rounds import RunScores
from fedfinlora import cli
from fedfinlora.commands.in_process import train_here
from fedfinlora.compose import compose, group_options
from fedfinlora.errors import UserError
from fedfinlora.files import write_json
from fedfinlora.run.folder import read_config
from fedfinlora.run.records import RoundLine, RoundTimings, Validation
from fedfinlora.run.typed import to_json

FILES = sorted(GRIDS.glob("*.yaml"))
TINY = Grid(
    name="tiny",
    banks=2,
    steps=4,
    common=(
        "dataset=finlora", "model=tiny-random", "model.threads=1", "train.batch_rows=0", "train.learning_rate=1e-3",
        "train.holdout_max_rows=0", "evaluation.benchmarks=[fpb]", "evaluation.limit=0", "evaluation.base=false",
        "evaluation.validation_rows=4", "evaluation.round_limit=1",
    ),
    rules={"pooled": Rule("pooled", "centralized"), "fedavg": Rule("FedAvg"), "local": Rule("alone", "local")},
    partitions={"iid": ("partition=iid",), "skewed": ("partition=dirichlet",)},
    phases=(Phase(("pooled", "fedavg"), ("iid", "skewed"), (2,), ("rows", "steps"), (0, 1)),),
    tune=Tuning(seed=9, rates=(1e-3, 2e-2), words=("evaluation.limit=1",)),
)  # fmt: skip
SCORES = {"fpb": KeptScore(2, 0.5, "a", right="10")}
POOLED, FEDAVG = Cell("pooled", "iid", 0, "rows", 0), Cell("fedavg", "iid", 2, "rows", 0)


def here(words: Sequence[str], variables: Mapping[str, str]) -> None:
    """`python -m fedfinlora WORDS` in this process; banks of `simulate` without Flower's processes."""
    if words[0] != "simulate":
        assert cli.main(words) == 0
        return
    resumed = words[1].removeprefix("resume=")
    train_here(read_config(Path(resumed)) if resumed != words[1] else compose(words[1:]))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(grid_cells, "FIGURES", tmp_path / "docs")
    rows: Path = write_rows(tmp_path / "data", train=40, test=9)
    return rows


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_name_their_cells_once_and_say_how_to_run_them(file: Path) -> None:
    grid = read_grid(file)
    names = [cell.name for cell in cells_of(grid)]
    assert grid.name == file.stem
    assert len(names) == len(set(names)) > 4
    assert f"python -m benchmarks.grid benchmarks/grids/{file.name} --dry-run" in file.read_text("utf-8")
    assert grid.tune.seed not in {cell.seed for cell in cells_of(grid)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_rules_are_there_and_cells_compose(file: Path, tmp_path: Path) -> None:
    grid = read_grid(file)
    words = [word for rule in grid.rules.values() for word in rule.words]
    named = {word.removeprefix("strategy=") for word in words if word.startswith("strategy=")}
    assert named <= set(group_options("strategy"))
    for cell in (cells_of(grid)[1], cells_of(grid)[-1]):
        config = compose([*words_of(grid, cell, "2e-3"), f"dataset.root={tmp_path}"])
        assert config.seed == cell.seed
        assert config.train.holdout_max_rows == 0, "all rules train on the same rows"
        assert config.evaluation.validation_rows > 0 or not grid.tune.rates


def test_budgets_share_the_batch_and_differ_in_steps() -> None:
    rows, steps = (
        compose(["dataset.root=/data", *words_of(TINY, replace(FEDAVG, budget=budget), "")]).train
        for budget in ("rows", "steps")
    )
    assert (rows.steps_per_round, steps.steps_per_round) == (2, 4), "two banks: twice the steps"
    assert rows.epochs / rows.steps_per_round == steps.epochs / steps.steps_per_round, "the same rows a step"


def test_a_killed_cell_resumes_and_tuning_chooses_by_validation(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(replace(TINY, course=2), data, data.parent / "work", command=here)
    close_round = RunScores.close_round

    def killed(scores: RunScores, arrays: object, line: object, selection: object) -> None:
        close_round(scores, arrays, line, selection)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    tuning = list(tuning_cells(TINY, FEDAVG))
    for number, cell in enumerate(tuning):
        write_json(cell_file(TINY, cell), to_json(KeptCell(**vars(cell), validation=0.25 + number / 4)))
    with monkeypatch.context() as patched:
        patched.setattr(RunScores, "close_round", killed)
        with pytest.raises(KeyboardInterrupt):
            runner.figures(FEDAVG)
    assert not cell_file(TINY, FEDAVG).exists()
    first = (runner.work / FEDAVG.name / "rounds.jsonl").read_text("utf-8")
    assert first.count("\n") == 1
    write_json(cell_file(TINY, FEDAVG), runner.figures(FEDAVG))
    assert (runner.work / FEDAVG.name / "rounds.jsonl").read_text("utf-8").startswith(first), "the round was kept"

    kept = read_cell(cell_file(TINY, FEDAVG))
    assert (kept.chosen_rate, kept.tuned) == ("0.02", {"0.001": 0.25, "0.02": 0.5})
    assert kept.validation is not None
    assert kept.sequential_steps == 4
    assert [one.round for one in kept.course] == [1, 2]
    assert kept.course[-1].size_bytes == kept.bytes_up + kept.bytes_down
    assert kept.course[-1].score == kept.validation
    assert len(kept.scores["fpb"].right) == kept.scores["fpb"].n == 9
    assert kept.bytes_up > 0
    assert "item" not in cell_file(TINY, FEDAVG).read_text("utf-8"), "no text of a row"
    assert str(data) not in cell_file(TINY, FEDAVG).read_text("utf-8"), "no place of one machine"

    untuned = replace(TINY, tune=Tuning())
    write_json(cell_file(TINY, POOLED), Runner(untuned, data, runner.work, command=here).figures(POOLED))
    pooled = read_cell(cell_file(TINY, POOLED))
    assert pooled.rows_trained == kept.rows_trained, "equal rows"
    assert pooled.sequential_steps == 2 * kept.sequential_steps
    assert pooled.scores["fpb"].rows_sha256 == kept.scores["fpb"].rows_sha256
    text = grid_text(TINY, [kept, pooled], [])
    assert "| FedAvg | 0 |" in text
    assert "done" in plan_text(TINY, [FEDAVG])


def test_done_cells_are_skipped_and_a_failed_one_does_not_stop_the_rest(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fails(runner: Runner, cell: Cell) -> dict[str, object]:
        asked.append(cell.name)
        if cell.rule == "pooled":
            raise UserError("ended with status 1")
        return to_json(KeptCell(**vars(cell)))

    monkeypatch.setattr(Runner, "figures", fails)
    assert run_grid(replace(TINY, tune=Tuning()), [POOLED, FEDAVG], data, data.parent, ()) == [POOLED]
    assert run_grid(replace(TINY, tune=Tuning()), [POOLED, FEDAVG], data, data.parent, ()) == [POOLED]
    assert asked == [POOLED.name, FEDAVG.name, POOLED.name]


def test_a_command_that_fails_is_an_error() -> None:
    with pytest.raises(UserError, match="status 2"):
        fedfinlora(["no-such-command"], {})


def cell(rule: str, right: str, seed: int = 0, rows: str = "rows", **more: str) -> KeptCell:
    score = KeptScore(len(right), right.count("1") / len(right), rows, right)
    return KeptCell(rule, "iid", 0 if rule == "pooled" else 2, "rows", seed, "", scores={"fpb": score}, **more)  # type: ignore[arg-type]


def test_differences_are_paired_by_seed_and_row() -> None:
    right, worse = "1101" * 25, "1100" * 25
    one = paired_difference([(cell("fedavg", worse), cell("pooled", right))])
    assert one is not None
    assert one.value == pytest.approx(-0.25)
    assert one.low is not None and one.high is not None and one.low < -0.25 < one.high < 0  # noqa: PT018
    same = paired_difference([(cell("fedavg", right, seed), cell("pooled", right, seed)) for seed in (0, 1)])
    assert same is not None
    assert (same.value, same.low, same.high) == (0, 0, 0), "rows that agree leave no doubt"
    seeds = [(cell("fedavg", worse, 0), cell("pooled", right, 0)), (cell("fedavg", right, 1), cell("pooled", right, 1))]
    wider = paired_difference(seeds)
    assert wider is not None and wider.high is not None and wider.high >= 0  # noqa: PT018
    assert paired_difference([(cell("fedavg", right, rows="others"), cell("pooled", right))]) is None


@pytest.mark.parametrize("count", [0, 1, 2])
def test_tables_work_with_no_some_and_all_cells(tmp_path: Path, count: int) -> None:
    name = read_grid(FILES[0]).name
    kept = [cell("pooled", "1101"), cell("fedavg", "1100")][:count]
    for one in kept:
        write_json(tmp_path / name / f"{one.rule}.json", to_json(replace(one, partition="by_issuer")))
    text = grid_section(tmp_path)
    assert (text == "") == (count == 0)
    assert text.count("| FedAvg, AdamW at the banks |") == (count == 2)
    assert ("-25.0" in text) == (count == 2), "a loss is shown"


def test_what_is_wrong_in_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    for text, words in {
        "": "no object",
        "[": "no YAML",
        json.dumps(
            {**to_json(TINY), "phases": [{"rules": ["fedavgg"], "partitions": ["iid"], "rounds": [1]}]}
        ): "fedavgg",
        json.dumps({**to_json(TINY), "rules": {"fedavg": {"mode": "fast"}, "pooled": {}, "local": {}}}): "fast",
    }.items():
        file.write_text(text, "utf-8")
        with pytest.raises(UserError, match=words):
            read_grid(file)
    with pytest.raises(UserError, match="evenly"):
        words_of(TINY, replace(FEDAVG, rounds=3), "")


def course(*scores: float) -> tuple[ScoredRound, ...]:
    return tuple(ScoredRound(number, score, 10**6 * number, 30.0 * number) for number, score in enumerate(scores, 1))


def test_rounds_to_the_pooled_score_minus_a_point_by_hand() -> None:
    pooled = [KeptCell("pooled", "iid", 0, "rows", seed, "", scores=SCORES, course=course(0.4, 0.7)) for seed in (0, 1)]
    fast = KeptCell("fedavg", "iid", 2, "rows", 0, "", scores=SCORES, course=course(0.5, 0.695, 0.6, 0.8))
    slow = replace(fast, seed=1, course=course(0.5, 0.6, 0.6, 0.69))
    never = replace(fast, seed=1, course=course(0.5, 0.68))

    def shown(*cells: KeptCell) -> str:
        [line] = [line for line in grid_text(TINY, [*pooled, *cells], []).splitlines() if line.startswith("| FedAvg")]
        return line.split(" | ")[-3]

    assert first_near(fast, pooled[0]) == ScoredRound(2, 0.695, 2 * 10**6, 60.0)
    assert shown(fast, slow) == "3 (3 MB, 1.5 min)"
    assert shown(fast, never) == "2 (2 MB, 1.0 min) in 1 of 2 seeds"
    assert shown(never) == "not in 2"
    assert shown(replace(fast, course=())) == "–"


def test_the_course_of_a_run_has_its_scored_rounds_alone() -> None:
    lines = [
        RoundLine(1, bytes_up=5, bytes_down=6, timings=RoundTimings(total_s=1.5)),
        RoundLine(2, bytes_up=5, bytes_down=6, timings=RoundTimings(total_s=2.0), validation=Validation(0.25)),
        RoundLine(3, bytes_up=5, timings=RoundTimings(total_s=1.0), validation=Validation(None)),
    ]
    assert course_of(lines) == (ScoredRound(2, 0.25, 22, 3.5),)


def test_measured_runs_are_scored_on_their_way_and_tuning_is_not() -> None:
    grid = replace(TINY, course=10)
    cells = [FEDAVG, replace(FEDAVG, rounds=40), next(tuning_cells(grid, FEDAVG))]
    grid = replace(grid, steps=40)
    found = [[word for word in words_of(grid, cell, "") if word.startswith("evaluation.every")] for cell in cells]
    assert found == [["evaluation.every=1"], ["evaluation.every=4"], []]
