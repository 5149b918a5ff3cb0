"""A run that was stopped, killed or spoilt resumes to the same bytes, or says why it cannot."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from fake_grid import Tamper
from flwr.app import Message
from round_runs import Runs, raising
from tiny_runs import SCORED, adapter_bytes, overrides, result_of, rounds_bytes, rounds_of, same_run, write_rows

from fedfinlora.errors import UserError


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def runs(rows: Path, tmp_path: Path) -> Runs:
    return Runs(rows, tmp_path)


class Stop(BaseException):
    """Ends a run as a signal would, past every `except Exception`."""


def stop_in_round(number: int, error: BaseException) -> Tamper:
    """Let bank-0 answer round `number`, then end the server while bank-1 is asked."""

    def tamper(bank: str, message: Message, reply: Message) -> Message:
        if bank == "bank-1" and message.metadata.group_id == str(number):
            raise error
        return reply

    return tamper


class TestResume:
    @pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam"])
    @pytest.mark.parametrize("stopped_in", [1, 2, 3])
    def test_a_stopped_run_resumes_to_the_same_bytes(self, runs: Runs, strategy: str, stopped_in: int) -> None:
        more = [f"strategy={strategy}", "peft.dropout=0.1"]
        reference = runs.start("reference", *more, rounds=3)
        with pytest.raises(KeyboardInterrupt):
            runs.start("run", *more, rounds=3, tamper=stop_in_round(stopped_in, KeyboardInterrupt()))
        run = runs.folder / "run"
        assert result_of(run)["status"] == "stopped"
        assert len(rounds_of(run) if (run / "rounds.jsonl").is_file() else []) == stopped_in - 1
        assert same_run(reference, runs.resume(run))
        assert runs.grid is not None
        assert {number for number, _ in runs.grid.trained()} == set(range(stopped_in, 4))
        done, whole = result_of(run), result_of(reference)
        for key in ("status", "rounds", "rows_trained", "steps_trained", "tokens_trained", "bytes_up", "bytes_down"):
            assert done[key] == whole[key], key

    def test_a_run_stopped_twice_resumes_to_the_same_bytes(self, runs: Runs) -> None:
        reference = runs.start("reference", rounds=4)
        with pytest.raises(Stop):
            runs.start("run", rounds=4, tamper=stop_in_round(2, Stop()))
        with pytest.raises(Stop):
            runs.resume(runs.folder / "run", tamper=stop_in_round(3, Stop()))
        assert same_run(reference, runs.resume(runs.folder / "run"))

    def test_scores_of_a_resumed_run_are_those_of_a_whole_one(self, runs: Runs) -> None:
        reference = runs.start("reference", *SCORED)
        with pytest.raises(Stop):
            runs.start("run", *SCORED, tamper=stop_in_round(2, Stop()))
        run = runs.resume(runs.folder / "run")
        for label in ("base", "final"):
            assert (run / "eval" / label / "fpb.jsonl").read_bytes() == (
                reference / "eval" / label / "fpb.jsonl"
            ).read_bytes()
        assert result_of(run)["scores"] == result_of(reference)["scores"]

    def test_a_run_stopped_while_the_base_is_scored_can_be_resumed(
        self, runs: Runs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Minutes go by before round 1; who stops then can resume, too."""
        import eval.rounds

        reference = runs.start("reference", *SCORED)
        with monkeypatch.context() as patch:
            patch.setattr(eval.rounds, "evaluate", raising(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                runs.start("run", *SCORED)
        run = runs.resume(runs.folder / "run")
        assert same_run(reference, run)
        assert set(result_of(run)["scores"]) == {"base", "final"}

    def test_a_run_stopped_in_the_final_scores_can_be_resumed(
        self, runs: Runs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import eval.rounds

        reference = runs.start("reference", *SCORED)
        true = eval.rounds.evaluate
        with monkeypatch.context() as patch:
            patch.setattr(
                eval.rounds,
                "evaluate",
                lambda *a, **k: raising(KeyboardInterrupt())() if "final" in a else true(*a, **k),
            )
            with pytest.raises(KeyboardInterrupt):
                runs.start("run", *SCORED)
        assert same_run(reference, runs.resume(runs.folder / "run"))
        assert runs.grid is not None
        assert runs.grid.trained() == []
        assert set(result_of(runs.folder / "run")["scores"]) == {"base", "final"}

    def test_a_completed_run_is_left_as_it_is(self, runs: Runs) -> None:
        run = runs.start("run")
        before = (rounds_bytes(run), adapter_bytes(run))
        runs.resume(run)
        assert runs.grid is not None
        assert runs.grid.trained() == []
        assert (rounds_bytes(run), adapter_bytes(run)) == before

    def test_a_line_torn_by_the_crash_is_written_again(self, runs: Runs) -> None:
        reference = runs.start("reference", rounds=3)
        with pytest.raises(Stop):
            runs.start("run", rounds=3, tamper=stop_in_round(3, Stop()))
        run = runs.folder / "run"
        lines = (run / "rounds.jsonl").read_text().splitlines()
        (run / "rounds.jsonl").write_text(lines[0] + "\n" + lines[1][:40])
        assert same_run(reference, runs.resume(run))

    @pytest.mark.parametrize("damage", [b"", b"\x00" * 40, None], ids=["emptied", "overwritten", "cut off"])
    def test_a_damaged_checkpoint_gives_way_to_the_one_before(self, runs: Runs, damage: bytes | None) -> None:
        reference = runs.start("reference", rounds=3)
        with pytest.raises(Stop):
            runs.start("run", rounds=3, tamper=stop_in_round(3, Stop()))
        run = runs.folder / "run"
        last = run / "state" / "round_0002.safetensors"
        last.write_bytes(last.read_bytes()[:-100] if damage is None else damage)
        assert same_run(reference, runs.resume(run))
        assert runs.grid is not None
        assert {number for number, _ in runs.grid.trained()} == {2, 3}

    def test_a_checkpoint_that_was_not_saved_so_is_not_resumed_from(self, runs: Runs) -> None:
        """Whole in itself, but of a run with another server rule: the chain has the hash of the right one."""
        reference = runs.start("reference", rounds=3)
        other = runs.start("other", "strategy.server_learning_rate=0.5", rounds=3)
        with pytest.raises(Stop):
            runs.start("run", rounds=3, tamper=stop_in_round(3, Stop()))
        run = runs.folder / "run"
        shutil.copy(other / "state" / "round_0002.safetensors", run / "state")
        kept = run.parent / "kept"
        shutil.copytree(run, kept)
        assert same_run(reference, runs.resume(run))
        assert runs.grid is not None
        assert {number for number, _ in runs.grid.trained()} == {2, 3}
        for file in (kept / "state").glob("round_*"):
            shutil.copy(other / "state" / "round_0002.safetensors", file)
        with pytest.raises(UserError, match=r"no checkpoint to resume from: .* provenance\.jsonl has another hash"):
            runs.resume(kept)

    def test_no_checkpoint_left_says_so(self, runs: Runs) -> None:
        run = runs.start("run")
        for file in (run / "state").glob("round_*"):
            file.write_bytes(b"")
        with pytest.raises(UserError, match="no checkpoint to resume from: damaged"):
            runs.resume(run)

    def test_another_configuration_is_an_error_that_lists_the_keys(self, runs: Runs) -> None:
        run = runs.start("run")
        asked = [*overrides(runs.rows, runs.folder), "train.learning_rate=7e-4", "strategy=fedavgm"]
        with pytest.raises(UserError) as error:
            runs.resume(run, asked=asked)
        assert re.search(r"train\.learning_rate: [\d.]+ -> 0\.0007", str(error.value))
        assert "strategy.name: fedavg -> fedavgm" in str(error.value)
        assert "train.batch_rows" not in str(error.value)
        assert "\n" not in str(error.value)

    def test_the_same_configuration_spelt_out_again_is_taken(self, runs: Runs) -> None:
        run = runs.start("run")
        assert runs.resume(run, asked=overrides(runs.rows, runs.folder)) == run

    def test_another_number_of_banks_is_an_error(self, runs: Runs) -> None:
        """Three nodes would divide the rows again: neither this run nor another one."""
        with pytest.raises(Stop):
            runs.start("run", tamper=stop_in_round(2, Stop()))
        with pytest.raises(UserError, match="banks"):
            runs.resume(runs.folder / "run", banks=3)

    @pytest.mark.parametrize(
        "content",
        [
            None,
            "model: 3\n",
            "",
            "just text",
            "model: [",
        ],
    )
    def test_a_folder_that_is_no_run_is_an_error_that_names_it(
        self, runs: Runs, tmp_path: Path, content: str | None
    ) -> None:
        folder = tmp_path / "no-run"
        folder.mkdir()
        if content is not None:
            (folder / "config.yaml").write_text(content)
        with pytest.raises(UserError, match=r"no-run|model"):
            runs.resume(folder)

    def test_a_centralised_run_is_not_resumed_as_a_federated_one(self, runs: Runs) -> None:
        from fedfinlora.commands.baselines import centralized

        assert centralized(overrides(runs.rows, runs.folder, name="pooled")) == 0
        with pytest.raises(UserError, match="centralized"):
            runs.resume(runs.folder / "pooled")
