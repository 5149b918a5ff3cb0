"""Several processes of one bank: the steps of one process, and an error that names the process that ends or fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import MakeSession, random_adapter, text_examples, tiny_config
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import SCORED, overrides, rounds_of, write_rows

from client_app.control import CorrectedStep
from client_app.local_training import train_received
from fedfinlora.commands.baselines import centralized
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.config.train import TrainConfig
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.adapter import Vector, read_adapter, write_adapter
from fedfinlora.model.loading import Session
from fedfinlora.model.packing import Example
from fedfinlora.system.process_identity import ProcessIdentity, start_of
from fedfinlora.train import parallel_group
from fedfinlora.train.gradient_step import PLAIN, FactorStep, GradientStep, StepTaken
from fedfinlora.train.loop import StepReport, Stretch, TrainResult
from fedfinlora.train.own_trainer import reason_against
from fedfinlora.train.parallel import ParallelStep, share_of, train_in_bank, with_innermost
from fedfinlora.train.parallel_group import end_group
from fedfinlora.train.parallel_peer import ProcessFault
from fedfinlora.wire.messages import BankError

SETTINGS = TrainConfig(learning_rate=1e-2, schedule="constant", warmup_steps=0, batch_rows=6, processes=2)


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    """The group lives from test to test, as from round to round; not longer."""
    yield
    end_group()


def run(
    session: Session,
    settings: TrainConfig,
    steps: int,
    *,
    on_step: Callable[[StepReport], None] | None = None,
    gradient: GradientStep = PLAIN,
    frozen: int = 0,
    config: Config | None = None,
) -> tuple[TrainResult, Vector]:
    """Train from one start on 10 rows; the result and the adapter afterwards, (size,) float32."""
    write_adapter(session.model, random_adapter(session.layout.size, 3))
    stretch = Stretch(0, steps, 100, float(settings.batch_rows))
    result = train_in_bank(
        session, text_examples(10), stretch, config or tiny_config(), settings, bank="bank-0", on_step=on_step,
        gradient=gradient, frozen=frozen,
    )  # fmt: skip
    return result, read_adapter(session.model)


def apart(one: Vector, other: Vector) -> float:
    """|one - other| relative to |other|."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


# --- the same steps --------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 9))
def test_each_row_is_in_one_share(rows: int, processes: int, seed: int) -> None:
    step = text_examples(rows, seed)
    shares = [share_of(step, rank, processes) for rank in range(processes)]
    assert sorted(row.index for share in shares for row in share) == list(range(rows))


def test_shares_have_about_as_many_tokens() -> None:
    rows = [Example((2,) * 100, (1,), index) for index in range(8)]
    assert [len(share_of(rows, rank, 4)) for rank in range(4)] == [2, 2, 2, 2]


def test_gradient_and_steps_are_those_of_one_process(tiny: Session) -> None:
    """One step of SGD at rate 1 moves the adapter by the gradient; AdamW after five steps has seen all of it."""
    for settings, steps, nearest in (
        (replace(SETTINGS, optimizer="sgd", clip_norm=0.0), 1, 1e-6),
        (SETTINGS, 5, 1e-5),
        (replace(SETTINGS, batch_rows=1), 3, 1e-5),  # one process has no row
        (replace(SETTINGS, proximal_mu=0.1, batch_tokens=30), 2, 1e-5),
    ):
        one, alone = run(tiny, replace(settings, processes=1), steps)
        two, together = run(tiny, settings, steps)
        start = random_adapter(tiny.layout.size, 3)
        assert two.step_losses == pytest.approx(one.step_losses, rel=1e-6)
        assert apart(together - start, alone - start) <= nearest * 10
        assert apart(together, alone) <= nearest
        assert (two.rows, two.tokens, two.answer_tokens) == (one.rows, one.tokens, one.answer_tokens)
        assert apart(two.optimizer.first_moment + 1, one.optimizer.first_moment + 1) <= nearest


def test_steps_around_it_act_once(tiny: Session) -> None:
    """SCAFFOLD's correction is added once, not by each process; a factor and frozen ranks stay where they are."""
    correction = CorrectedStep(np.full(tiny.layout.size, 0.01, np.float32))
    for gradient, frozen in ((correction, 0), (FactorStep("lora_B"), 0), (PLAIN, 1)):
        settings = replace(SETTINGS, optimizer="sgd", clip_norm=0.0)
        _, alone = run(tiny, replace(settings, processes=1), 2, gradient=gradient, frozen=frozen)
        _, together = run(tiny, settings, 2, gradient=gradient, frozen=frozen)
        assert apart(together, alone) <= 1e-6


def test_two_runs_with_dropout_give_the_same_bytes(session_of: MakeSession) -> None:
    """Each process draws masks of its own, so the number of processes matters there, and nothing else."""
    session, config = session_of(dropout=0.5), tiny_config(dropout=0.5)
    first, again = (run(session, SETTINGS, 2, config=config)[1] for _ in range(2))
    one = run(session, replace(SETTINGS, processes=1), 2, config=config)[1]
    assert (first == again).all()
    assert not (first == one).all()


def test_a_pooled_run_gives_the_scores_of_one_process(tmp_path: Path) -> None:
    """Without dropout, whose masks depend on how rows are packed."""
    rows = write_rows(tmp_path / "rows")
    lines = []
    for processes in (1, 2):
        name = f"by-{processes}"
        settings = (f"train.processes={processes}", "peft.dropout=0", *SCORED)
        assert centralized(overrides(rows, tmp_path, *settings, name=name)) == 0
        lines.append(rounds_of(tmp_path / name))
        assert (tmp_path / name / "result.json").is_file()
    one, two = lines
    assert [line["train_loss"] for line in two] == pytest.approx([line["train_loss"] for line in one], rel=1e-6)
    scored = [(tmp_path / name / "eval" / "final" / "fpb.jsonl").read_text("utf-8") for name in ("by-1", "by-2")]
    assert scored[0] == scored[1]


# --- what can go wrong -----------------------------------------------------------------------------


def of_rank_1(signal_number: int) -> Callable[[StepReport], None]:
    """After the first step the further process gets a signal."""

    def on_step(step: StepReport) -> None:
        if step.step == 1:
            assert parallel_group._group is not None
            os.kill(parallel_group._group.peers[0].process.pid, signal_number)

    return on_step


def test_a_loss_that_is_not_finite_is_the_loops_own_error(tiny: Session) -> None:
    settings = replace(SETTINGS, processes=1, optimizer="sgd", sgd_learning_rate=1e30, clip_norm=0.0)
    with pytest.raises(UserError, match=r"training loss of bank-0 is nan at step 1"):
        run(tiny, settings, 3, gradient=ParallelStep(0, 1, lambda flat, step: None))


def test_processes_with_other_rows_are_an_error(tiny: Session) -> None:
    """Both send the same share: the answer tokens do not add up to those of the step."""
    with pytest.raises(ProcessFault, match=r"do not have the same rows at step 0"):
        run(tiny, replace(SETTINGS, processes=1), 1, gradient=ParallelStep(0, 1, lambda flat, step: flat.mul_(2)))


def test_a_process_that_is_killed_is_named(tiny: Session) -> None:
    with pytest.raises(ProcessFault, match=r"of rank 1 was killed by signal 9"):
        run(tiny, SETTINGS, 3, on_step=of_rank_1(signal.SIGKILL))
    assert parallel_group._group is None


def test_a_process_that_hangs_is_named(tiny: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between two steps. Where it is a step ahead it goes on, and is stopped after the next one."""
    stopped: list[int] = []

    def stop(step: StepReport) -> None:
        assert parallel_group._group is not None
        peer = parallel_group._group.peers[0]
        if peer.process.pid in stopped:
            return
        os.kill(peer.process.pid, signal.SIGSTOP)
        while psutil.Process(peer.process.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        peer.look()
        if peer.reached >= step.step:
            os.kill(peer.process.pid, signal.SIGCONT)
            return
        stopped.append(peer.process.pid)
        monkeypatch.setattr(parallel_group, "STEP_S", 0.5)

    with pytest.raises(ProcessFault, match=r"of rank 1 did not finish step \d+ within 0\.5 s"):
        run(tiny, SETTINGS, 20, on_step=stop)
    assert not start_of(stopped[0])


def test_an_error_in_one_process_is_one_line_of_the_bank(tiny: Session) -> None:
    config = tiny_config(train=SETTINGS)
    config = replace(config, model=replace(config.model, path="/no/such/model"))
    start = random_adapter(tiny.layout.size, 3)
    with pytest.raises(BankError, match=r"of rank 1 failed: .*/no/such/model") as caught:
        train_received(tiny, start, text_examples(10), Stretch(0, 1, 100, 6.0), config, "bank-0")
    assert caught.value.code == "internal"
    assert "\n" not in str(caught.value)


def test_a_process_ends_with_rank_0(tmp_path: Path) -> None:
    """However rank 0 ends, here by SIGKILL, and whether or not the connection to it is open."""
    folder = tmp_path / "group"
    folder.mkdir()
    first = subprocess.Popen(["sleep", "60"])
    ours, theirs = Pipe()
    with ours, theirs:
        words = [str(theirs.fileno()), "1", "2", str(folder), str(ProcessIdentity(first.pid, start_of(first.pid)))]
        command = [sys.executable, "-m", "fedfinlora.train.parallel_process", *words]
        further = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        with pytest.raises(subprocess.TimeoutExpired):
            further.wait(2)
        first.kill()
        first.wait()
        assert further.wait(60) == 0
    assert not folder.exists()


def test_more_processes_than_cores_are_refused(tiny: Session) -> None:
    with pytest.raises(UserError, match=r"train\.processes=1000 is more than the \d+ CPU cores"):
        run(tiny, replace(SETTINGS, processes=1000), 1)


@pytest.mark.parametrize(("mode", "noise"), [("example", "epsilon=8"), ("dp_lora", "noise_multiplier=1")])
def test_private_steps_are_refused_at_composition(mode: str, noise: str) -> None:
    with pytest.raises(ConfigError, match=rf"privacy={mode} does not go with train\.processes=2"):
        compose(["model=tiny-random", f"privacy={mode}", f"privacy.{noise}", "train.processes=2"])


def test_what_has_no_plain_step_inside_is_refused() -> None:
    class Private:
        is_private = True

        def take(self, local: object, step: int) -> StepTaken:
            raise AssertionError

    with pytest.raises(UserError, match=r"train\.processes=1"):
        with_innermost(FactorStep("lora_A", Private()), PLAIN)


def test_what_does_not_go_with_it_is_refused_by_name() -> None:
    config = tiny_config(train=replace(SETTINGS))
    assert "train.processes=2" in reason_against(config)
    with pytest.raises(ConfigError, match=r"model\.device_map"):
        replace(config, model=replace(config.model, device_map="balanced"))
    with pytest.raises(ConfigError, match=r"train\.processes must be above 0"):
        TrainConfig(processes=0)
