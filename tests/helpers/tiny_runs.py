"""Runs small enough for a test: a folder of short rows in FinLoRA's layout, the overrides that go with it, and how to
compare two runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def fault(reason: str) -> pytest.MarkDecorator:
    """Marks a test of something that does not work yet; it fails as soon as it does, so that the mark goes."""
    return pytest.mark.xfail(strict=True, reason=reason)


LABELS = ("negative", "neutral", "positive")


def write_rows(root: Path, train: int = 24, test: int = 6, word: str = "item", target: str = "") -> Path:
    """`root`/train/fpb_train.jsonl and `root`/test/fpb_test.jsonl with prompts of some 30 bytes. Returns `root`."""
    for split, count in (("train", train), ("test", test)):
        lines = [
            json.dumps(
                {
                    "context": f"{split} {word} {index} up {index * 7 % 11}. Answer: ",
                    "target": target or LABELS[index % 3],
                }
            )
            for index in range(count)
        ]
        write_lines(root / split / f"fpb_{split}.jsonl", lines)
    return root


def write_lines(file: Path, lines: list[str]) -> Path:
    """One line each, and the file's folder with it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def overrides(rows: Path, output: Path, *more: str, name: str = "run", rounds: int = 2, banks: int = 2) -> list[str]:
    """Hydra overrides of a run of well under a second: the tiny model, two steps of four rows a round, no scores."""
    return [
        "dataset=finlora", f"dataset.root={rows}", f"output_dir={output}", f"run_name={name}",
        "model=tiny-random", "model.threads=1", f"num_server_rounds={rounds}", f"banks={banks}",
        "train.steps_per_round=2", "train.batch_rows=4", "evaluation=none", *more,
    ]  # fmt: skip


SCORED = ("evaluation=default", "evaluation.benchmarks=[fpb]", "evaluation.limit=2")
"""Overrides that switch the scores on again, two rows of one benchmark."""


def rounds_of(run: Path) -> list[dict[str, Any]]:
    """rounds.jsonl as it is."""
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text("utf-8").splitlines()]


def rounds_bytes(run: Path) -> str:
    """rounds.jsonl without its timings and the heads of the banks' ledgers, whose keys are secret, line by line, in the
    order and spelling of the file."""
    lines = rounds_of(run)
    for line in lines:
        line.pop("timings")
        for bank in line["banks"]:
            bank.pop("ledger", None)
    return "\n".join(json.dumps(line) for line in lines)


def adapter_bytes(run: Path, label: str = "final") -> bytes:
    """The saved tensors of an adapter."""
    return (run / "adapters" / label / "adapter_model.safetensors").read_bytes()


def result_of(run: Path) -> dict[str, Any]:
    """result.json."""
    result: dict[str, Any] = json.loads((run / "result.json").read_text("utf-8"))
    return result


def same_run(one: Path, other: Path) -> bool:
    """Whether two runs gave the same bytes, but for their timings."""
    return rounds_bytes(one) == rounds_bytes(other) and adapter_bytes(one) == adapter_bytes(other)
