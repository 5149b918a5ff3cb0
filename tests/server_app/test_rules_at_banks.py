"""RoLoRA and SCAFFOLD at the banks: what a round trains, keeps and sends; a stopped run gives the same bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config
from fake_grid import with_delta
from flwr.app import Message
from round_runs import Runs
from tiny_runs import rounds_of, same_run, write_rows

from fedfinlora.commands.verify import verify
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.strategy import StrategyConfig
from fedfinlora.errors import ConfigError
from fedfinlora.model.adapter import Layout
from fedfinlora.model.adapter_folder import read_tensors
from fedfinlora.model.parts import sent_part
from fedfinlora.run.records import read_rounds

LAYOUT = Layout(("a.lora_A.weight", "a.lora_B.weight", "b.lora_A.weight", "b.lora_B.weight"),
                ((2, 5), (4, 2), (2, 3), (6, 2)))  # fmt: skip
ROLORA = ("strategy=rolora", "strategy.keep_deltas=true")


def test_a_part_comes_back_whole_with_zeros_for_the_idle_factor() -> None:
    vector = np.arange(LAYOUT.size, dtype=np.float32) + 1
    odd, even = (sent_part("rolora", LAYOUT, number) for number in (1, 2))
    assert odd is not None
    assert even is not None
    assert (odd.size, even.size, odd.size + even.size) == (20, 16, LAYOUT.size)
    np.testing.assert_array_equal(odd.whole(odd.of(vector)) + even.whole(even.of(vector)), vector)
    assert not odd.whole(odd.of(vector))[:10].any()
    assert sent_part("fedavg", LAYOUT, 1) is None


def test_a_run_trains_b_then_a_exactly_and_sends_half(tmp_path: Path) -> None:
    runs = Runs(write_rows(tmp_path / "rows"), tmp_path)
    run = runs.start("run", *ROLORA, rounds=3)
    tensors = [read_tensors(run / "adapters" / f"round_{number:03d}") for number in (1, 2, 3)]
    for name in tensors[0]:
        kept = bool((tensors[0][name] == tensors[1][name]).all()), bool((tensors[1][name] == tensors[2][name]).all())
        assert kept == ((True, False) if ".lora_B." in name else (False, True)), name
    lines = read_rounds(run)
    assert [line.average.bias for line in lines if line.average] == [pytest.approx(0, abs=1e-9)] * 3
    sent = [[entry.bytes_up for entry in line.banks] for line in lines]
    whole = lines[0].banks[0].bytes_down
    assert sent[0][0] + sent[1][0] == whole
    assert verify(run) != 1


def interrupted_in_round_2(bank: str, message: Message, reply: Message) -> Message:
    if bank == "bank-1" and message.metadata.group_id == "2":
        raise KeyboardInterrupt
    return reply


def test_a_bank_that_sends_both_factors_or_nan_is_rejected(tmp_path: Path) -> None:
    def tamper(bank: str, message: Message, reply: Message) -> Message:
        if message.metadata.message_type != "train" or bank == "bank-2":
            return reply
        makes = {"bank-0": lambda delta: np.tile(delta, 2), "bank-1": lambda delta: delta * np.float32(np.nan)}
        return Message(with_delta(reply, makes[bank]), reply_to=message)

    run = Runs(write_rows(tmp_path / "rows"), tmp_path).start("run", *ROLORA, rounds=1, banks=3, tamper=tamper)
    assert [entry["code"] for entry in rounds_of(run)[0]["banks"]] == ["layout", "not-finite", ""]


@pytest.mark.parametrize("peft", [PeftConfig(method="dora"), PeftConfig(freeze_a=True), PeftConfig(method="lora_xs")])
def test_what_has_no_two_factors_to_take_turns_is_refused(peft: PeftConfig) -> None:
    with pytest.raises(ConfigError, match="strategy=rolora"):
        replace(tiny_config(strategy=StrategyConfig(name="rolora")), peft=peft)


def test_a_stopped_scaffold_run_gives_the_same_bytes(tmp_path: Path) -> None:
    """Its control variates are on the banks' disks, by round."""
    runs = Runs(write_rows(tmp_path / "rows"), tmp_path)
    words = ("strategy=scaffold", "train.optimizer=sgd", "train.sgd_learning_rate=0.1")
    whole = runs.start("whole", *words, rounds=3)
    with pytest.raises(KeyboardInterrupt):
        runs.start("run", *words, rounds=3, tamper=interrupted_in_round_2)
    assert same_run(runs.resume(tmp_path / "run"), whole)
    plain = runs.start("plain", "strategy=fedavg", "strategy.weighting=equal", *words[1:], rounds=3)
    [first, *later] = [line["update_norm"] for line in rounds_of(whole)]
    [first_plain, *later_plain] = [line["update_norm"] for line in rounds_of(plain)]
    assert first == first_plain
    assert later != later_plain, "from the second round on gradients are corrected"
