"""A run that is killed in the middle of a round and resumed gives the bytes of the unbroken one, under each rule that
keeps something at the server or at the banks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_grid import Tamper
from flwr.app import Message
from round_runs import Runs
from tiny_runs import same_run, write_rows

import server_app.federated
from fedfinlora.run.checkpoint import load_checkpoint

SGD = ("train.optimizer=sgd", "train.sgd_learning_rate=0.1")
HELD = ("peft.rank=4", "strategy.residual_rank=2")
WORDS: dict[str, tuple[str, ...]] = {
    "fedavg": (),
    "fedavgm": (),
    "fedadam": ("strategy.bias_correction=true", *SGD),
    "fedadamw": SGD,
    "fedadamw_local": ("train.learning_rate=1e-2",),
    "fedyogi": SGD,
    "fedadagrad": SGD,
    "scaffold": SGD,
    "residual": HELD,
    "flora": (*HELD, "train.optimizer_state=reset"),
    "rosa": (*HELD, "train.optimizer_state=reset"),
    "rolora": (),
    "fedavg by drift": ("strategy.sync=drift", "strategy.drift_limit=1e9", "strategy.drift_ceiling=2"),
}
"""Rule -> its settings. Under fedavg, fedavgm and residual the banks keep AdamW's moments."""
SHORT = ("train.steps_per_round=1", "train.batch_rows=2", "train.holdout_max_rows=0", "strategy.measure_average=false")


class Killed(BaseException):
    """In the place of kill -9: what comes after it in the process is not run (`finish` is taken away)."""


def killed_in(round_number: str) -> Tamper:
    """One bank has answered and is checked, the other has trained and its reply never arrives."""

    def tamper(bank: str, message: Message, reply: Message) -> Message:
        if bank == "bank-1" and message.metadata.group_id == round_number:
            raise Killed
        return reply

    return tamper


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = write_rows(tmp_path_factory.mktemp("rows"), train=12)
    return folder


@pytest.mark.parametrize("name", WORDS)
def test_killed_and_resumed_it_gives_the_same_bytes(
    name: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"strategy={name.split()[0]}", *SHORT, *WORDS[name])
    runs = Runs(rows, tmp_path)
    whole = runs.start("whole", *words, rounds=3)
    with monkeypatch.context() as patched:
        patched.setattr(server_app.federated, "finish", lambda *_: None)
        with pytest.raises(Killed):
            runs.start("run", *words, rounds=3, tamper=killed_in("2"))
    run = tmp_path / "run"
    assert not (run / "result.json").exists()
    assert load_checkpoint(run).round == 1
    runs.resume(run)
    assert same_run(run, whole)
    one, other = (load_checkpoint(folder).arrays for folder in (run, whole))
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key])
