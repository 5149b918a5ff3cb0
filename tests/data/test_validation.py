"""Public validation: rows set aside before anybody divides the rest, the best round by them, early stop, and all of it
after a resume.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_grid import FakeGrid, simulated_banks
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import adapter_bytes, overrides, result_of, rounds_bytes, rounds_of, same_run, write_rows
from validated_runs import federated, start

import client_app.bank
import client_app.prepared_rows
import eval.rounds
from client_app.facts import BankFacts
from client_app.own_rows import divide
from data.partition import original_id
from data.rows import Row
from data.sources import load_rows
from data.validation import set_aside
from fedfinlora.cli import main
from fedfinlora.commands.baselines import centralized, local
from fedfinlora.compose import compose
from fedfinlora.config.dataset import DatasetConfig
from fedfinlora.config.evaluation import EvaluationConfig
from fedfinlora.config.schema import Config
from fedfinlora.config.train import TrainConfig
from fedfinlora.errors import UserError
from fedfinlora.files import write_json
from fedfinlora.report.tensorboard import round_scalars
from fedfinlora.run.checkpoint import load_checkpoint
from fedfinlora.run.evaluation import BenchmarkMetrics, Estimate, Evaluation
from fedfinlora.run.events import RoundDone, StoppedEarly
from fedfinlora.run.folder import config_fingerprint, read_config
from fedfinlora.run.opening import OpenRun, differences, run_result
from fedfinlora.run.progress import ProgressState
from fedfinlora.run.progress_lines import plain_line
from fedfinlora.run.records import RoundLine, Validation
from fedfinlora.run.selection import Selection, selection_of
from server_app.federated import run_federated

TASKS = ("fpb", "fiqa", "xbrl_tags_extract", "xbrl_value_extract")
ROOT = Path(__file__).resolve().parents[2]


def row(task: str, number: int, issuer: str = "", copy: int = 1) -> Row:
    name = f"{task}/train/{number:06d}" + (f"#{copy}" if copy > 1 else "")
    return Row(name, task, f"prompt {task} {number}", "up", issuer)


@st.composite
def train_rows(draw: st.DrawFn) -> list[Row]:
    """Rows of several tasks, with and without issuers and copies."""
    rows = []
    for task in TASKS:
        for number in range(draw(st.integers(0, 9))):
            issuer = (
                draw(st.sampled_from(["", "Alpha Inc", "ALPHA INC", "Beta", "Gamma", "Delta"]))
                if "xbrl" in task
                else ""
            )
            rows += [row(task, number, issuer, copy) for copy in range(1, draw(st.integers(1, 3)) + 1)]
    return draw(st.permutations(rows))


class TestSetAside:
    @given(rows=train_rows(), count=st.integers(0, 12), seed=st.integers(0, 5))
    def test_laws(self, rows: list[Row], count: int, seed: int) -> None:
        """Nothing twice, nothing invented, orders kept, at most `count` and half of a task, no original next to its
        copies; seeded.
        """
        try:
            rest, validation = set_aside(rows, TASKS, count, seed)
        except UserError:
            assert count > 0
            assert not any(total > 1 for total in Counter(each.task for each in rows).values())
            return
        assert set_aside(rows, TASKS, count, seed) == (rest, validation)
        assert rest == [each for each in rows if each in rest]
        assert validation == [each for each in rows if each in validation]
        assert all(each.id == original_id(each) for each in validation)
        assert not {original_id(each) for each in rest} & {each.id for each in validation}
        before, after = (Counter(each.task for each in some) for some in (rows, rest))
        assert all(2 * after[task] >= total for task, total in before.items())
        assert max(Counter(each.task for each in validation).values(), default=0) <= count
        if count == 0:
            assert (rest, validation) == (rows, [])

    def test_as_many_rows_of_each_benchmark_as_asked_for(self) -> None:
        rows = [row(task, number) for task in TASKS for number in range(20)]
        rest, validation = set_aside(rows, ("fpb", "fiqa"), 5, 0)
        assert Counter(each.task for each in validation) == {"fpb": 5, "fiqa": 5}
        assert len(rest) == len(rows) - 10

    def test_a_smaller_draw_is_part_of_a_larger_one(self) -> None:
        rows = [row("fpb", number) for number in range(40)]
        small, large = (set_aside(rows, ["fpb"], count, 0)[1] for count in (5, 15))
        assert set(small) < set(large)

    def test_another_seed_draws_other_rows(self) -> None:
        rows = [row("fpb", number) for number in range(40)]
        assert set_aside(rows, ["fpb"], 5, 0)[1] != set_aside(rows, ["fpb"], 5, 1)[1]

    def test_one_tasks_draw_does_not_depend_on_the_others(self) -> None:
        rows = [row(task, number) for task in TASKS for number in range(20)]
        alone = set_aside([each for each in rows if each.task == "fpb"], ["fpb"], 5, 0)[1]
        assert alone == [each for each in set_aside(rows, TASKS, 5, 0)[1] if each.task == "fpb"]

    def test_copies_leave_with_their_original(self) -> None:
        rows = [row("fpb", number, copy=copy) for copy in (1, 2, 3) for number in range(10)]
        rest, validation = set_aside(rows, ["fpb"], 4, 0)
        assert len(validation) == 4
        assert len(rest) == 18

    def test_a_task_keeps_at_least_half_of_its_rows(self) -> None:
        rest, validation = set_aside([row("fpb", number) for number in range(9)], ["fpb"], 100, 0)
        assert (len(rest), len(validation)) == (5, 4)

    def test_a_validation_filing_is_trained_on_in_no_task(self) -> None:
        """Also not in tasks that are not evaluated: their prompts hold the same filing."""
        rows = [
            row(task, 10 * filer + number, f"Filer {filer}")
            for task in TASKS[2:]
            for filer in range(6)
            for number in range(8)
        ]
        rest, validation = set_aside(rows, [TASKS[2]], 5, 0)
        filers = {each.issuer for each in validation}
        assert len(validation) == 5
        assert len(filers) == 1
        assert not filers & {each.issuer for each in rest}
        assert len(rest) == len(rows) - 16

    def test_tasks_share_the_filers_that_leave(self) -> None:
        rows = [
            row(task, 10 * filer + number, f"Filer {filer}")
            for task in TASKS[2:]
            for filer in range(6)
            for number in range(8)
        ]
        rest, validation = set_aside(rows, TASKS, 16, 0)
        assert Counter(each.task for each in validation) == dict.fromkeys(TASKS[2:], 16)
        assert len({each.issuer for each in validation}) == 2
        assert len({each.issuer for each in rest}) == 4

    def test_a_filer_too_large_to_leave_gives_single_rows(self) -> None:
        rows = [row(TASKS[2], number, "The only one") for number in range(12)]
        rest, validation = set_aside(rows, TASKS, 4, 0)
        assert (len(rest), len(validation)) == (8, 4)

    def test_single_rows_make_up_what_whole_filers_do_not_give(self) -> None:
        rows = [row(TASKS[2], number, "Large") for number in range(12)]
        rows += [row(TASKS[2], 100 + number, "small") for number in range(2)]
        rest, validation = set_aside(rows, TASKS, 5, 0)
        assert Counter(each.issuer for each in validation) == {"Large": 3, "small": 2}
        assert {each.issuer for each in rest} == {"Large"}

    @pytest.mark.parametrize("benchmarks", [(), ("nwgi",), ("nwgi", "headline")])
    def test_no_benchmark_with_train_rows_is_an_error(self, benchmarks: Sequence[str]) -> None:
        with pytest.raises(UserError, match=r"evaluation\.validation_rows=3.*train rows to spare"):
            set_aside([row("fpb", number) for number in range(9)], benchmarks, 3, 0)

    def test_the_bundled_sample(self) -> None:
        """Every benchmark gives its rows, and no filer of the four filing benchmarks is on both sides."""
        rows = load_rows(DatasetConfig(), "train").rows
        keys = list(dict.fromkeys(each.task for each in rows))
        rest, validation = set_aside(rows, keys, 4, 0)
        assert set(Counter(each.task for each in validation).values()) == {4}
        filers = {each.issuer for each in validation if each.issuer}
        assert filers
        assert not filers & {each.issuer for each in rest}


SCORES = (None, 0.5, 0.5, 0.75, 0.25, 0.75)


class TestSelection:
    def lines(self, scores: Sequence[float | None]) -> list[RoundLine]:
        return [RoundLine(number, validation=Validation(score)) for number, score in enumerate(scores, 1)]

    def test_the_earlier_of_two_equal_rounds_is_best(self) -> None:
        found = [selection_of(self.lines(SCORES[:count])) for count in range(len(SCORES) + 1)]
        assert [each.best_round for each in found] == [None, None, 2, 2, 4, 4, 4]
        assert [each.since for each in found] == [0, 1, 0, 1, 0, 1, 2]

    def test_rounds_without_a_validation_count_for_nothing(self) -> None:
        lines = self.lines([0.5, 0.4])
        lines[1:1] = [RoundLine(9)]
        assert selection_of(lines) == Selection(1, 0.5, 1)

    @pytest.mark.parametrize(
        ("since", "patience", "stops"), [(0, 0, False), (9, 0, False), (1, 2, False), (2, 2, True), (3, 2, True)]
    )
    def test_patience(self, since: int, patience: int, stops: bool) -> None:
        assert Selection(1, 0.5, since).stops(patience) is stops


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"), train=40)


VALIDATED = (
    "evaluation=default", "evaluation.benchmarks=[fpb]", "evaluation.limit=2", "evaluation.base=false",
    "evaluation.every=1",
    "evaluation.validation_rows=6", "evaluation.reuse=false",
)  # fmt: skip


def resumed_run(mode: str, run: Path, states: Path) -> Path:
    if mode == "federated":
        return run_federated(FakeGrid(simulated_banks(read_config(run).banks, states)), compose_resumed(run))
    assert main(["centralized", f"resume={run}"]) == 0
    return run


def compose_resumed(run: Path) -> Config:
    from server_app.app import config_of

    return config_of({"resume": str(run)})


def scripted(monkeypatch: pytest.MonkeyPatch, scores: Sequence[float]) -> list[str]:
    """Let the validation of round n have scores[n - 1]. Returns the labels that are evaluated, as they come."""
    true, labels = eval.rounds.evaluate, []

    def evaluate(session: Any, config: Config, label: str, *more: Any) -> Evaluation:
        labels.append(label)
        summary = true(session, config, label, *more)
        if not label.startswith("validation_"):
            return summary
        accuracy = Estimate(scores[int(label.rpartition("_")[2]) - 1])
        metrics = summary.scores["fpb"]
        changed = replace(metrics, estimates={**metrics.estimates, "accuracy": accuracy})
        return replace(summary, scores={"fpb": changed})

    monkeypatch.setattr(eval.rounds, "evaluate", evaluate)
    return labels


def progress_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "progress.jsonl").read_text("utf-8").splitlines()]


def same_choice(one: Path, other: Path) -> bool:
    """Whether two runs gave the same bytes, best adapter and result included, but for what took how long."""
    keys = (
        "status",
        "rounds",
        "best_round",
        "validation_score",
        "final_round",
        "stopped_early_after_round",
        "scores",
        "rows_trained",
    )
    return (
        same_run(one, other)
        and adapter_bytes(one, "best") == adapter_bytes(other, "best")
        and all(result_of(one)[key] == result_of(other)[key] for key in keys)
    )


class TestRowsOfTheRun:
    def test_no_bank_trains_on_validation_rows(self, rows: Path, tmp_path: Path) -> None:
        config = compose(overrides(rows, tmp_path, *VALIDATED, banks=3))
        asked = eval.rounds.validation_rows(config, lambda *a, **k: None)
        assert asked is not None
        public = {each.id for each in asked.rows["fpb"]}
        parts = [{each.id for each in part} for part in divide(config, 3)]
        assert len(public) == 6
        assert sum(map(len, parts)) == len(set().union(*parts)) == 34
        assert not public & set().union(*parts)

    def test_banks_are_divided_again_when_only_the_validation_rows_change(self, rows: Path, tmp_path: Path) -> None:
        counts = []
        for more in (
            (),
            VALIDATED,
            (*VALIDATED, "evaluation.validation_rows=10"),
            (*VALIDATED, "evaluation.validation_rows=0"),
        ):
            config = compose(overrides(rows, tmp_path, *more))
            session = client_app.bank.get_session(config)
            facts = [BankFacts(f"bank-{index}", index, 2, "", tmp_path) for index in range(2)]
            found = [client_app.prepared_rows.bank_rows(config, each, session.tokenizer) for each in facts]
            counts.append(sum(len(each.train) + len(each.holdout) for each in found))
        assert counts == [40, 34, 30, 40]

    def test_a_bank_with_rows_of_its_own_keeps_them_all(self, rows: Path, tmp_path: Path) -> None:
        config = compose(overrides(rows, tmp_path, *VALIDATED))
        session = client_app.bank.get_session(config)
        own = client_app.prepared_rows.bank_rows(
            config, BankFacts("alpha", 0, 0, str(rows), tmp_path), session.tokenizer
        )
        assert len(own.train) + len(own.holdout) == 40

    @pytest.mark.parametrize("mode", ["federated", "centralized"])
    def test_validation_is_on_the_rows_set_aside(self, rows: Path, tmp_path: Path, mode: str) -> None:
        words = overrides(rows, tmp_path, *VALIDATED)
        run = start(mode, words, tmp_path / "states")
        asked = eval.rounds.validation_rows(compose(words), lambda *a, **k: None)
        assert asked is not None
        for number in (1, 2):
            file = run / "eval" / f"validation_round_{number:03d}" / "fpb.jsonl"
            records = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
            assert [record["id"] for record in records] == [each.id for each in asked.rows["fpb"]]

    def test_benchmarks_without_train_rows_are_named_and_the_run_continues(self, rows: Path, tmp_path: Path) -> None:
        run = federated(
            overrides(rows, tmp_path, *VALIDATED, "evaluation.benchmarks=[fpb,fiqa,ner]"), tmp_path / "states"
        )
        said = [
            event["text"] for event in progress_of(run) if event["event"] == "message" and event["level"] == "warning"
        ]
        assert any("fiqa, ner" in text and "fpb" not in text for text in said)
        assert result_of(run)["status"] == "completed"
        assert set(rounds_of(run)[0]["validation"]["scores"]) == {"fpb"}

    def test_more_validation_rows_than_can_be_spared_is_said(self, rows: Path, tmp_path: Path) -> None:
        run = federated(
            overrides(rows, tmp_path, *VALIDATED, "evaluation.validation_rows=1000", rounds=1), tmp_path / "states"
        )
        assert any("fpb 20" in event.get("text", "") for event in progress_of(run))
        assert rounds_of(run)[0]["validation"]["scores"]["fpb"]["n"] == 20

    @pytest.mark.parametrize("mode", ["federated", "centralized", "local"])
    @pytest.mark.parametrize("benchmarks", ["fiqa", "none"])
    def test_no_train_rows_at_all_is_an_error_before_anything_is_trained(
        self, rows: Path, tmp_path: Path, mode: str, benchmarks: str
    ) -> None:
        words = overrides(rows, tmp_path, *VALIDATED, f"evaluation.benchmarks=[{benchmarks}]")
        with pytest.raises(UserError, match=r"evaluation\.validation_rows=6"):
            local(words) if mode == "local" else start(mode, words, tmp_path / "states")
        runs = [path for path in tmp_path.iterdir() if path.name.startswith("run")]
        assert len(runs) == (mode == "federated"), "a baseline is refused before its folder is made"
        for run in runs:
            assert result_of(run)["status"] == "failed"
            assert not (run / "rounds.jsonl").exists()
            assert not (run / "adapters").exists()

    def test_a_simulation_says_it_at_the_door(self, rows: Path, tmp_path: Path) -> None:
        from fedfinlora.commands.simulate import prepare

        with pytest.raises(UserError, match=r"evaluation\.validation_rows=6"):
            prepare(overrides(rows, tmp_path, *VALIDATED, "evaluation.benchmarks=[fiqa]"))
        assert not (tmp_path / "run").exists()


class TestRounds:
    @pytest.mark.parametrize("mode", ["federated", "centralized"])
    def test_every_second_round_and_the_last_one(self, rows: Path, tmp_path: Path, mode: str) -> None:
        run = start(mode, overrides(rows, tmp_path, *VALIDATED, "evaluation.every=2", rounds=5), tmp_path / "states")
        lines = rounds_of(run)
        assert [bool(line["scores"]) for line in lines] == [False, True, False, True, True]
        assert [line["validation"] is not None for line in lines] == [False, True, False, True, True]
        for line in lines:
            assert set(line["timings"]) >= ({"evaluate_s", "validate_s"} if line["validation"] else set())
            assert ("validate_s" in line["timings"]) == (line["validation"] is not None)
        labels = {path.name for path in (run / "eval").iterdir()}
        assert labels == {
            "final",
            *(f"{kind}round_{number:03d}" for kind in ("", "validation_") for number in (2, 4, 5)),
        }
        assert set(result_of(run)["scores"]) == {"final"}

    def test_without_validation_the_last_round_is_scored_once(self, rows: Path, tmp_path: Path) -> None:
        run = federated(overrides(rows, tmp_path, *VALIDATED, "evaluation.validation_rows=0"), tmp_path / "states")
        assert [bool(line["scores"]) for line in rounds_of(run)] == [True, False]
        assert [line["validation"] for line in rounds_of(run)] == [None, None]
        assert not (run / "adapters" / "best").exists()
        result = result_of(run)
        assert (result["best_round"], result["validation_score"], result["final_round"]) == (None, None, 2)

    def test_scores_of_a_round_are_on_a_part_of_the_final_rows(self, rows: Path, tmp_path: Path) -> None:
        words = overrides(rows, tmp_path, *VALIDATED, "evaluation.limit=0", "evaluation.round_limit=3")
        run = federated(words, tmp_path / "states")

        def ids(label: str) -> set[str]:
            file = run / "eval" / label / "fpb.jsonl"
            return {json.loads(line)["id"] for line in file.read_text("utf-8").splitlines()}

        assert len(ids("round_001")) == 3
        assert len(ids("final")) == 6
        assert ids("round_001") == ids("round_002") < ids("final")

    def test_both_limits_0_score_every_row_in_each_round(self, rows: Path, tmp_path: Path) -> None:
        run = federated(overrides(rows, tmp_path, *VALIDATED, "evaluation.limit=0"), tmp_path / "states")
        assert [line["scores"]["fpb"]["n"] for line in rounds_of(run)] == [6, 6]

    @pytest.mark.parametrize("mode", ["federated", "centralized"])
    def test_validation_changes_nothing_in_the_training_on_the_rest(
        self, rows: Path, tmp_path: Path, mode: str
    ) -> None:
        """Scoring between rounds, or not: the same rows, the same bytes."""
        words = overrides(rows, tmp_path, *VALIDATED, rounds=3)
        often = start(mode, [*words, "run_name=often"], tmp_path / "states")
        once = start(mode, [*words, "run_name=once", "evaluation.every=0"], tmp_path / "states")
        assert adapter_bytes(often) == adapter_bytes(once)

    def test_the_score_is_the_mean_over_benchmarks_of_their_headline(self, tmp_path: Path) -> None:
        run = federated(
            [*overrides(tmp_path, tmp_path, *VALIDATED, rounds=1), "dataset=sample", "dataset.root=''",
                "dataset.tasks=[fpb,xbrl_term]",
             "evaluation.benchmarks=[fpb,xbrl_term]", "evaluation.bertscore_model=embedded",
             "evaluation.validation_rows=2",
             "model.context_tokens=4096"],
            tmp_path / "states",
        )  # fmt: skip
        validation = rounds_of(run)[0]["validation"]
        scores = validation["scores"]
        assert validation["score"] == pytest.approx(
            (scores["fpb"]["accuracy"] + scores["xbrl_term"]["bertscore_f1"]) / 2
        )
        assert (scores["fpb"]["n"], scores["xbrl_term"]["n"]) == (2, 2)

    def test_the_same_run_twice_gives_the_same_bytes(self, rows: Path, tmp_path: Path) -> None:
        one, two = (
            federated(overrides(rows, tmp_path, *VALIDATED, "evaluation.keep=best", name=name), tmp_path / "states")
            for name in ("one", "two")
        )
        assert same_choice(one, two)

    @pytest.mark.parametrize("baseline", [local, centralized], ids=["local", "centralized"])
    def test_one_bank_equals_no_federation(
        self, rows: Path, tmp_path: Path, baseline: Callable[[Sequence[str]], int]
    ) -> None:
        words = overrides(rows, tmp_path, *VALIDATED, "evaluation.keep=best", rounds=3, banks=1)
        run = federated(words, tmp_path / "states")
        assert baseline([*words, "run_name=alone"]) == 0
        alone = tmp_path / ("alone-bank-0" if baseline is local else "alone")
        assert [line["validation"] for line in rounds_of(alone)] == [line["validation"] for line in rounds_of(run)]
        for label in ("final", "best"):
            assert adapter_bytes(alone, label) == adapter_bytes(run, label)


@pytest.mark.parametrize("mode", ["federated", "centralized"])
class TestChoice:
    def test_the_best_round_is_kept(
        self, rows: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        labels = scripted(monkeypatch, [0.2, 0.6, 0.6, 0.1])
        run = start(mode, overrides(rows, tmp_path, *VALIDATED, "evaluation.keep=best", rounds=4), tmp_path / "states")
        assert (
            adapter_bytes(run)
            == adapter_bytes(run, "best")
            == adapter_bytes(run, "round_002")
            != adapter_bytes(run, "round_004")
        )
        assert [line["validation"]["best"] for line in rounds_of(run)] == [True, True, False, False]
        result = result_of(run)
        assert (result["best_round"], result["validation_score"], result["final_round"]) == (2, 0.6, 2)
        assert result["stopped_early_after_round"] is None
        assert labels[-1] == "final"
        assert (run / "eval" / "final" / "fpb.jsonl").read_bytes() == (
            run / "eval" / "round_002" / "fpb.jsonl"
        ).read_bytes()

    def test_the_last_round_is_kept_unless_asked_otherwise(
        self, rows: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scripted(monkeypatch, [0.6, 0.2])
        run = start(mode, overrides(rows, tmp_path, *VALIDATED), tmp_path / "states")
        assert adapter_bytes(run) == adapter_bytes(run, "round_002")
        assert adapter_bytes(run, "best") == adapter_bytes(run, "round_001")
        result = result_of(run)
        assert (result["best_round"], result["validation_score"], result["final_round"]) == (1, 0.6, 2)

    def test_a_run_stops_early(self, rows: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        scripted(monkeypatch, [0.2, 0.6, 0.6, 0.1, 0.9, 0.9])
        more = ("evaluation.keep=best", "evaluation.patience=2")
        run = start(mode, overrides(rows, tmp_path, *VALIDATED, *more, rounds=6), tmp_path / "states")
        result = result_of(run)
        assert (result["status"], result["rounds"], result["stopped_early_after_round"]) == ("completed", 4, 4)
        assert (result["best_round"], result["final_round"]) == (2, 2)
        [event] = [event for event in progress_of(run) if event["event"] == "stopped_early"]
        assert (event["round"], event["validations"], event["best_round"]) == (4, 2, 2)
        before = (rounds_bytes(run), adapter_bytes(run))
        assert (rounds_bytes(resumed_run(mode, run, tmp_path / "states")), adapter_bytes(run)) == before
        assert result_of(run)["stopped_early_after_round"] == 4

    def test_rates_are_those_of_the_whole_run(
        self, rows: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A run that stops early has the first rounds of one that does not."""
        scripted(monkeypatch, [0.5] * 4)
        words = overrides(rows, tmp_path, *VALIDATED, "train.schedule=cosine", rounds=4)
        whole = start(mode, [*words, "run_name=whole"], tmp_path / "states")
        early = start(mode, [*words, "evaluation.patience=1"], tmp_path / "states")
        assert len(rounds_of(early)) == 2
        assert adapter_bytes(early) == adapter_bytes(whole, "round_002")

    def test_patience_used_up_in_the_last_round_is_not_early(
        self, rows: Path, tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scripted(monkeypatch, [0.5, 0.5])
        run = start(mode, overrides(rows, tmp_path, *VALIDATED, "evaluation.patience=1"), tmp_path / "states")
        assert result_of(run)["stopped_early_after_round"] is None
        assert not [event for event in progress_of(run) if event["event"] == "stopped_early"]


class Stop(BaseException):
    """Ends a run as a signal would, past every `except Exception`."""


@pytest.mark.parametrize("mode", ["federated", "centralized"])
@pytest.mark.parametrize(
    "label", ["round_002", "validation_round_001", "validation_round_002", "validation_round_003", "final"]
)
def test_a_run_stopped_while_it_is_scored_resumes_to_the_same_bytes(
    rows: Path, tmp_path: Path, mode: str, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And trains no round again: only the scores are made again."""
    words = overrides(rows, tmp_path, *VALIDATED, "evaluation.keep=best", "evaluation.patience=2", rounds=3)
    whole = start(mode, [*words, "run_name=whole"], tmp_path / "states")
    true = eval.rounds.evaluate
    with monkeypatch.context() as patch:

        def evaluate(session: Any, config: Config, asked: str, *more: Any) -> Evaluation:
            if asked == label:
                raise Stop
            return true(session, config, asked, *more)

        patch.setattr(eval.rounds, "evaluate", evaluate)
        with pytest.raises(Stop):
            start(mode, words, tmp_path / "states")
    run = tmp_path / "run"
    closed = len(rounds_of(run)) if (run / "rounds.jsonl").exists() else 0
    trained = load_checkpoint(run).round
    assert closed == (3 if label == "final" else trained - 1)
    stopped_at = len(progress_of(run))
    assert same_choice(whole, resumed_run(mode, run, tmp_path / "states"))
    started_again = [event["round"] for event in progress_of(run)[stopped_at:] if event["event"] == "round_start"]
    assert started_again == list(range(trained + 1, 4))


KILLED = """
import json, os, signal, sys, traceback
from pathlib import Path

import eval.rounds
from fedfinlora.compose import compose
from fedfinlora.model.loading import load_base
from validated_runs import start

evaluate, append_line = eval.rounds.evaluate, eval.rounds.append_line


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def evaluate_or_die(session, config, label, run, on_event, *more):
    def event(found):
        on_event(found)
        if label == moment and found.event == "evaluate":
            kill()

    return evaluate(session, config, label, run, event, *more)


def append_or_die(path, line):
    if moment == f"before line {line['round']}":
        kill()
    append_line(path, line)
    if moment == f"after line {line['round']}":
        kill()


eval.rounds.evaluate, eval.rounds.append_line = evaluate_or_die, append_or_die
ended = []
for moment, mode, states, *words in json.load(sys.stdin):
    if not ended:
        load_base(compose(words).model)  # and every library once, not in each child
    child = os.fork()
    if not child:
        try:
            start(mode, words, Path(states))
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print()
print(json.dumps(ended))
"""
"""Runs that each kill their own process at one moment, as an operating system would."""
MODES = ("federated", "centralized")
MOMENTS = ("validation_round_002", "before line 2", "after line 2")


def words_of_killed(rows: Path, place: Path, name: str = "run") -> list[str]:
    return overrides(rows, place, *VALIDATED, "evaluation.keep=best", rounds=3, name=name)


@pytest.fixture(scope="module")
def killed(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Mode and moment -> the folder in which a run of that mode was killed at that moment."""
    places = {(mode, moment): tmp_path_factory.mktemp("killed") for mode in MODES for moment in MOMENTS}
    jobs = [
        [moment, mode, str(place / "states"), *words_of_killed(rows, place)] for (mode, moment), place in places.items()
    ]
    folders = os.pathsep.join(str(place) for place in (ROOT, ROOT / "tests" / "helpers"))
    ended = subprocess.run(
        [sys.executable, "-c", KILLED], input=json.dumps(jobs).encode(),
        env=os.environ | {"PYTHONPATH": folders, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr.decode()[-2000:]
    assert json.loads(ended.stdout.splitlines()[-1]) == [-signal.SIGKILL] * len(jobs), ended.stderr.decode()[-2000:]
    return places


@pytest.fixture(scope="module")
def never_killed(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Mode -> the same run without an end on the way."""
    places = {mode: tmp_path_factory.mktemp("whole") for mode in MODES}
    return {
        mode: start(mode, words_of_killed(rows, place, "whole"), place / "states") for mode, place in places.items()
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_really_killed_resumes_to_the_same_bytes(
    killed: dict[tuple[str, str], Path], never_killed: dict[str, Path], mode: str, moment: str
) -> None:
    place = killed[mode, moment]
    assert not (place / "run" / "result.json").exists()
    assert same_choice(never_killed[mode], resumed_run(mode, place / "run", place / "states"))


class TestResumedConfiguration:
    FASTER = Config(
        train=TrainConfig(memory_gib=3.0),
        evaluation=EvaluationConfig(
            reuse=False, answers_dir="elsewhere", cache_gib=9.0, requests_at_once=9, requests_per_minute=9.0,
            request_timeout_s=9.0,
            request_retries=9,
        ),
    )  # fmt: skip

    def test_what_decides_no_number_is_in_no_fingerprint_and_no_difference(self) -> None:
        assert config_fingerprint(Config()) == config_fingerprint(self.FASTER)
        assert differences(Config(), self.FASTER) == []

    @pytest.mark.parametrize("name", ["validation_rows", "round_limit", "limit", "every", "shots"])
    def test_what_decides_numbers_is_in_both(self, name: str) -> None:
        other = Config(evaluation=EvaluationConfig(**{name: 5}))
        assert config_fingerprint(Config()) != config_fingerprint(other)
        [said] = differences(Config(), other)
        assert said.startswith(f"evaluation.{name}: ")

    def test_a_resumed_run_takes_it_as_asked(self, rows: Path, tmp_path: Path) -> None:
        """Whoever ran out of memory resumes with less."""
        words = overrides(rows, tmp_path)
        assert centralized(words) == 0
        run = tmp_path / "run"
        before = rounds_bytes(run)
        assert centralized([*words, f"resume={run}", "evaluation.cache_gib=0.5", "train.memory_gib=1.5"]) == 0
        config = read_config(run)
        assert (config.evaluation.cache_gib, config.train.memory_gib) == (0.5, 1.5)
        assert (config.run_name, config.resume) == ("run", "")
        assert rounds_bytes(run) == before


def test_result_json_holds_the_scores_of_every_label_but_those_of_rounds(tmp_path: Path) -> None:
    for label in ("round_001", "validation_round_001", "round_1000", "zeta", "final", "round_trip", "base"):
        metrics = {
            "scores": {"fpb": {"n": 1}},
            "skipped": {label: "no rows"},
            "synthetic": True,
            "seconds": {"fpb": 1.0},
        }
        write_json(tmp_path / "eval" / label / "metrics.json", metrics)
    result = run_result(OpenRun(tmp_path, Config(), "", None), "completed", "", 1.0, "evaluate")
    assert list(result.scores) == ["base", "final", "round_trip", "zeta"]
    assert set(result.skipped) == {"base", "final", "round_trip", "zeta"}
    assert result.wall_s.evaluate == 4.0


class TestShown:
    DONE = RoundDone(t=9.0, round=3, train_loss=1.0, seconds=2.0)

    def test_the_round_line_shows_the_validation_score(self) -> None:
        state = ProgressState(rounds=8)
        event = replace(self.DONE, validation=0.6125, best_round=2)
        state.update(event)
        assert "validation 61.3 % (best: round 2), 2 s" in plain_line(event, state)
        later = replace(self.DONE, round=4, best_round=2)
        state.update(later)
        assert "validation" not in plain_line(later, state)

    def test_an_early_stop_is_said_and_ends_the_waiting_for_rounds(self) -> None:
        state = ProgressState(rounds=8)
        state.update(self.DONE)
        assert state.seconds_left(9.0) == 10.0
        event = StoppedEarly(t=9.0, round=3, validations=2, best_round=1)
        state.update(event)
        assert state.seconds_left(9.0) == 0.0
        assert plain_line(event, state) == (
            "stopped early after round 3: no better validation score in 2 validations, best round 1"
        )

    def test_tensorboard_has_the_validation_score_by_round(self) -> None:
        fpb = BenchmarkMetrics(estimates={"accuracy": Estimate(0.25)})
        line = RoundLine(3, validation=Validation(0.5, {"fpb": fpb}, best=True))
        scalars = dict(round_scalars(line))
        assert scalars["validation/score"] == 0.5
        assert scalars["validation_accuracy/fpb"] == 0.25
        assert "validation/score" not in dict(round_scalars(RoundLine(3)))
