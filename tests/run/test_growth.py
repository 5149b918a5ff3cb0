"""What grows without an end does not: rounds beyond 9,999 are in their order, old rounds and runs go, caches have a
limit.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reliability import OUTCOMES
from report_runs import make_run, round_record
from round_runs import Runs
from tiny_runs import SCORED, adapter_bytes, result_of, rounds_of, same_run, write_rows
from watched_runs import bank_done

import client_app.prepared_rows
from benchmarks.long_run import Mark, faults, long_run, planned_for
from client_app.kept_state import KEPT_RUNS, KEPT_STATES, forget_old_runs, load_moments, save_moments
from client_app.prepared_rows import ROWS_BYTES, bank_rows, size_of
from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.deployment import run_list
from fedfinlora.deployment.run_list import note_run, watched_runs
from fedfinlora.files import append_line, write_bytes
from fedfinlora.run.checkpoint import Checkpoint, latest_round, load_checkpoint, save_checkpoint
from fedfinlora.run.events import RoundDone
from fedfinlora.run.folder import config_fingerprint
from fedfinlora.run.progress import EventWriter, ProgressState
from fedfinlora.run.retention import forget_old_rounds
from fedfinlora.system.bounded_cache import BoundedCache
from fedfinlora.system.numbered import by_number, number_of
from fedfinlora.train.optimizers import OptimizerState

AROUND = (9_998, 9_999, 10_000, 10_001, 10_002)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def runs(rows: Path, tmp_path: Path) -> Runs:
    return Runs(rows, tmp_path)


def checkpoint(number: int) -> Checkpoint:
    return Checkpoint(number, "layout", {"adapter": np.full(3, number, np.float32)}, {"round": number})


class TestRound10000:
    def test_it_comes_after_9999(self, tmp_path: Path) -> None:
        for number in reversed(AROUND):
            (tmp_path / f"round_{number:04d}").mkdir()
        assert [number_of(path) for path in by_number(tmp_path, "round_*")] == list(AROUND)
        (tmp_path / "round_trip").mkdir()
        assert len(by_number(tmp_path, "round_*")) == len(AROUND)

    def test_the_newest_checkpoints_are_kept_and_read(self, tmp_path: Path) -> None:
        for number in AROUND:
            save_checkpoint(tmp_path, checkpoint(number))
            assert load_checkpoint(tmp_path).round == latest_round(tmp_path) == number
        assert [number_of(file) for file in by_number(tmp_path / "state", "*.safetensors")] == list(AROUND[-2:])

    def test_a_banks_newest_moments_are_kept_and_read(self, tmp_path: Path) -> None:
        folder = tmp_path / "run" / "bank-0"
        for number in AROUND:
            save_moments(folder, number, OptimizerState(np.zeros(2, np.float32), np.ones(2, np.float32), number))
        for number in AROUND[-KEPT_STATES:]:
            found = load_moments(folder, number + 1)
            assert found is not None
            assert found.steps == number
        assert len(by_number(folder, "*")) == KEPT_STATES

    def test_a_run_that_is_resumed_on_the_way_gives_the_same_bytes(
        self, runs: Runs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rounds 9,998 to 10,002 of one run in one go, and stopped after each."""
        assert "to the same bytes" in OUTCOMES["round 10,000"].does
        begun = runs.start("run", rounds=1)
        as_if_after(begun, runs.folder, 9_997)
        shutil.copytree(begun, runs.folder / "whole")
        shutil.copytree(runs.folder / "states", runs.folder / "whole-states")
        planned_for(begun, 10_002)
        planned_for(runs.folder / "whole", 10_002)
        for number in AROUND:

            def stop(*arguments: object, last: int = number, **named: object) -> bool:
                return int(arguments[1]) < last  # type: ignore[call-overload, no-any-return]

            with monkeypatch.context() as patch:
                patch.setattr("eval.rounds.RunScores.more", stop)
                runs.resume(begun)
            assert load_checkpoint(begun).round == number
        shutil.rmtree(runs.folder / "states")
        (runs.folder / "whole-states").rename(runs.folder / "states")
        whole = runs.resume(runs.folder / "whole")
        assert same_run(begun, whole)
        assert [line["round"] for line in rounds_of(begun)] == [9_996, 9_997, *AROUND]
        assert result_of(begun)["rounds"] == 7


def as_if_after(run: Path, folder: Path, number: int) -> None:
    """Let the run's only round have been the one of this number."""
    state = load_checkpoint(run)
    write_bytes(run / "rounds.jsonl", (json.dumps({**state.line, "round": number - 1}) + "\n").encode())
    save_checkpoint(run, replace(state, round=number, line={**state.line, "round": number}))
    for file in folder.glob("states/*/*/round_0001.safetensors"):
        file.rename(file.with_name(f"round_{number:04d}.safetensors"))


class TestOldRounds:
    def test_adapters_and_scored_rows_of_the_last_rounds_stay_and_all_metrics(self, runs: Runs) -> None:
        run = runs.start("run", *SCORED, "evaluation.every=1", "keep_rounds=2", rounds=5)
        assert sorted(path.name for path in (run / "adapters").iterdir()) == ["final", "round_004", "round_005"]
        assert [bool(line["scores"]) for line in rounds_of(run)] == [True] * 4 + [False]
        for number in (1, 2, 3, 4):
            names = {path.name for path in (run / "eval" / f"round_{number:03d}").iterdir()}
            assert "metrics.json" in names
            assert ("fpb.jsonl" in names) == (number == 4), number
        assert (run / "eval" / "final" / "fpb.jsonl").is_file()

    def test_a_run_that_keeps_fewer_has_the_same_bytes(self, runs: Runs) -> None:
        assert same_run(runs.start("few", "keep_rounds=1", rounds=3), runs.start("all", "keep_rounds=0", rounds=3))
        assert len(list((runs.folder / "all" / "adapters").glob("round_*"))) == 3
        assert config_fingerprint(Config(keep_rounds=0)) == config_fingerprint(Config())

    def test_all_stay_where_deltas_are_kept_to_compute_them_again(self, tmp_path: Path) -> None:
        for number in (1, 2, 3):
            (tmp_path / "adapters" / f"round_{number:03d}").mkdir(parents=True)
        for config in (Config(keep_rounds=0), Config(keep_rounds=1, strategy=StrategyConfig(keep_deltas=True))):
            forget_old_rounds(tmp_path, 3, config)
            assert len(list((tmp_path / "adapters").iterdir())) == 3

    def test_the_best_adapter_stays_however_old_it_is(self, runs: Runs) -> None:
        words = (*SCORED, "evaluation.every=1", "evaluation.validation_rows=2", "evaluation.keep=best", "keep_rounds=1")
        run = runs.start("run", *words, rounds=3)
        assert adapter_bytes(run) == adapter_bytes(run, "best")
        assert len(list((run / "adapters").glob("round_*"))) == 1


class TestOldRunsOfABank:
    def made(self, state: Path, run: str, days: float, bank: str = "north") -> Path:
        folder = state / run / bank
        save_moments(folder, 1, OptimizerState(np.zeros(2, np.float32), np.zeros(2, np.float32), 1))
        then = time.time() - 86400 * days
        os.utime(folder / "round_0001.safetensors", (then, then))
        return folder

    def test_those_that_were_not_used_for_longest_go_when_another_begins(self, tmp_path: Path) -> None:
        for number in range(KEPT_RUNS + 3):
            self.made(tmp_path, f"run-{number:02d}", days=20 - number)
        self.made(tmp_path, "new", days=0)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "new",
            *(f"run-{n:02d}" for n in range(4, KEPT_RUNS + 3)),
        ]

    def test_one_that_is_too_old_goes_however_few_there_are(self, tmp_path: Path) -> None:
        self.made(tmp_path, "old", days=31)
        recent = self.made(tmp_path, "recent", days=29)
        self.made(tmp_path, "new", days=0)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "recent"]
        assert recent.is_dir()

    def test_runs_of_today_stay_however_many_there_are(self, tmp_path: Path) -> None:
        for number in range(3 * KEPT_RUNS):
            self.made(tmp_path, f"run-{number:02d}", days=0.5)
        assert len(list(tmp_path.iterdir())) == 3 * KEPT_RUNS

    def test_nothing_else_is_touched(self, tmp_path: Path) -> None:
        """Neither history, keys and logs, nor other banks' moments, nor a folder with anything else in it."""
        others = [
            tmp_path / "history" / "north.jsonl",
            tmp_path / "sample.key",
            tmp_path / "worker.log",
            tmp_path / "mine" / "north" / "round_1.txt",
        ]
        for file in others:
            file.parent.mkdir(exist_ok=True, parents=True)
            file.write_text("x")
            os.utime(file, (1, 1))
        south = self.made(tmp_path, "shared", days=99, bank="south")
        north = self.made(tmp_path, "shared", days=99)
        assert forget_old_runs(tmp_path, "north") == [north]
        assert south.is_dir()
        assert all(file.is_file() for file in others)


class TestLongRun:
    def test_rounds_around_round_10000_leave_no_more_than_is_kept(self, tmp_path: Path) -> None:
        marks, config = long_run(tmp_path / "run", 10_020, first=9_965, every=10)
        assert [mark.round for mark in marks][-1] == 10_020
        assert len(marks) >= 5
        assert faults(marks, config.keep_rounds) == []
        assert len(list((tmp_path / "run" / "run" / "adapters").glob("round_*"))) == config.keep_rounds

    def test_what_grows_is_found(self) -> None:
        start = Mark(100, 10**8, 10, 1000, 2000, 100, 1000, 0.1, 0.1)
        grown = Mark(1100, 2 * 10**8, 100, 10_000, 10_000, 100, 10**8, 0.1, 0.1)
        assert len(faults([start, grown], keep_rounds=20)) == 5
        assert faults([start, replace(start, round=1100)], keep_rounds=20) == []


class TestCaches:
    def test_it_holds_at_most_its_bytes_and_the_last_used(self) -> None:
        cache: BoundedCache[str] = BoundedCache(100)
        for key in "abc":
            cache.put(key, key, 40)
            assert cache.get("a") == ("a" if key != "z" else None)
        assert (cache.get("a"), cache.get("b"), cache.get("c"), cache.size_bytes) == ("a", None, "c", 80)
        cache.put("a", "A", 10)
        assert (cache.get("a"), cache.size_bytes, len(cache)) == ("A", 50, 2)
        cache.put("large", "l", 1000)
        assert (cache.get("large"), len(cache)) == ("l", 1)
        cache.clear()
        assert (len(cache), cache.size_bytes) == (0, 0)

    def test_the_status_page_keeps_one_reading_of_a_growing_run(self, tmp_path: Path) -> None:
        """64 readings of a run of 500 rounds with 10 banks had 600 MB."""
        run = tmp_path / "runs" / "run"
        make_run(run, rounds=1)
        note_run(tmp_path, run)
        run_list._known.clear()
        for number in range(2, 40):
            append_line(run / "rounds.jsonl", round_record(number, 2))
            with EventWriter(run / "progress.jsonl") as events:
                bank_done(events, number, "bank-0")
            [found] = watched_runs(tmp_path)
            assert found.replies["bank-0"].outcomes == {"ok": number - 1}
            assert (len(found.run.rounds), len(run_list._known)) == (number, 1)
        assert run_list._known.size_bytes < 10 * run_list.PARSED * (run / "rounds.jsonl").stat().st_size
        assert watched_runs(tmp_path) == [found], "nothing has changed: it is not read again"

    def test_the_time_left_needs_the_last_rounds_only(self) -> None:
        state = ProgressState()
        for number in range(1, 100):
            state.update(RoundDone(round=number, seconds=float(number)))
        assert state.round_seconds == [95.0, 96.0, 97.0, 98.0, 99.0]

    def test_a_banks_rows_stay_within_their_bytes(self, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
        from client_app.facts import bank_facts
        from fedfinlora.model.loading import get_session

        config = runs.config("run", banks=4)
        tokenizer = get_session(config).tokenizer
        monkeypatch.setattr(client_app.prepared_rows, "_rows", BoundedCache(0))
        facts = [bank_facts(node) for node in runs.nodes(4).values()]
        one = size_of(bank_rows(config, facts[0], tokenizer))
        assert 0 < one < ROWS_BYTES
        limited: BoundedCache[client_app.prepared_rows.BankRows] = BoundedCache(2 * one + one // 2)
        monkeypatch.setattr(client_app.prepared_rows, "_rows", limited)
        for seed in range(5):
            for each in facts:
                bank_rows(replace(config, seed=seed), each, tokenizer)
                assert limited.size_bytes <= limited.most_bytes
        assert len(limited) == 2
