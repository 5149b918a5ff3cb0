"""Federated runs with PEFT methods that are no LoRA: trained, resumed, verified, exported and taken apart again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from round_runs import Runs
from tiny_runs import result_of, same_run, write_rows
from torch import nn

from fedfinlora.cli import main
from fedfinlora.commands.verify import verify
from fedfinlora.errors import UserError
from fedfinlora.model.adapter_folder import WEIGHTS_FILE
from fedfinlora.serving.many_adapters import ManyAdapters

WORDS = ("peft.rank=4", "model.quantization=none", "train.learning_rate=0.01")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


def changed(file: Path, end: str) -> None:
    """One number of the first tensor with this end is another."""
    from safetensors.numpy import load_file, save_file

    tensors = {name: tensor.copy() for name, tensor in load_file(file).items()}
    name = next(name for name in sorted(tensors) if name.endswith(end))
    tensors[name].flat[0] += np.float32(1e-3)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_stopped_run_resumes_to_the_same_bytes(rows: Path, tmp_path: Path) -> None:
    runs = Runs(rows, tmp_path)

    def stop(bank: str, message: Message, reply: Message) -> Message:
        if message.metadata.group_id == "2":
            raise KeyboardInterrupt
        return reply

    words = ("peft=vera", *WORDS)
    reference = runs.start("reference", *words)
    with pytest.raises(KeyboardInterrupt):
        runs.start("run", *words, tamper=stop)
    assert same_run(reference, runs.resume(runs.folder / "run"))
    numbers = 2 * (2 * 4 + 64 + 32)  # two layers, q (64 outputs) and v (32), rank 4
    assert result_of(reference)["bytes_up"] >= 4 * 4 * numbers


def test_verify_finds_a_changed_number(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Runs(rows, tmp_path).start("run", "peft=pissa", *WORDS, rounds=1)
    verify(run)
    assert "nothing is wrong" in capsys.readouterr().out
    changed(run / "adapters" / "final" / WEIGHTS_FILE, "lora_A.weight")
    verify(run)
    assert "it is not the adapter of round 1" in capsys.readouterr().out


@pytest.mark.parametrize(("method", "status"), [("vera", 0), ("hira", 1)])
def test_a_run_is_exported_or_refused_by_name(
    rows: Path, tmp_path: Path, method: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Runs(rows, tmp_path).start("run", f"peft={method}", *WORDS, rounds=1)
    assert main(["export", str(run), "--for", "vllm", "--out", str(tmp_path / "vllm")]) == status
    assert main(["export", str(run), "--for", "merged", "--out", str(tmp_path / "merged")]) == 0
    said = capsys.readouterr()
    assert ("is a HIRA adapter, and no plain LoRA" in said.err) == bool(status)
    if status:
        with pytest.raises(UserError, match="HIRA adapter"):
            ManyAdapters(nn.Module(), "memory:tiny-random", {"a": run / "adapters" / "final"}, 1)
