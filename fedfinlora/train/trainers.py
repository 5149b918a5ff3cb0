"""A Hugging Face `Trainer`, or anything of its form such as TRL's `SFTTrainer`, as the trainer of a bank."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedfinlora.errors import UserError
from fedfinlora.model.packing import Example
from fedfinlora.train.own_trainer import LocalTask, Trained, Trainer

if TYPE_CHECKING:
    import torch

__all__ = ["LocalTask", "Trained", "Trainer", "hugging_face"]
NO_LOSS = -100
"""The label of a token that carries no loss."""
Rows = list[dict[str, list[int]]]
MakeTrainer = Callable[[LocalTask, Any, Callable[[Rows], Mapping[str, Any]]], Any]


def hugging_face(make_trainer: MakeTrainer) -> Trainer:
    """A trainer that makes a Hugging Face `Trainer` by `make_trainer(task, dataset, collate)`, runs its `train()` and
    reports its loss, steps and rows:

        def make_trainer(task, dataset, collate):
            return Trainer(task.model, TrainingArguments(...), collate, dataset)

    `dataset` is a torch Dataset of `input_ids` and `labels`, prompts labelled -100; `collate` pads a batch of it on the
    right. The Trainer must train `task.model` itself. Give it `save_strategy="no"`: the run's own checkpoints are ours.
    """

    def train(task: LocalTask) -> Trained:
        collate = Collator(getattr(task.tokenizer, "pad_token_id", None) or 0)
        made = make_trainer(task, dataset_of(task.rows), collate)
        if not callable(getattr(made, "train", None)):
            raise UserError(f"make_trainer gave {type(made).__name__}, which has no train().")
        if _innermost(getattr(made, "model", None)) is not task.model:
            raise UserError("make_trainer's Trainer has another model than task.model; give it model=task.model.")
        _silence(made)
        done = made.train()
        steps, loss = getattr(done, "global_step", None), getattr(done, "training_loss", None)
        epochs = getattr(getattr(made, "state", None), "epoch", None)
        rows = round(epochs * len(task.rows)) if epochs else None
        known = float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else None
        return Trained(task.model, loss=known, rows=rows or None, steps=steps or None)

    train.__name__ = getattr(make_trainer, "__name__", "train")
    return train


def dataset_of(rows: Sequence[Example]) -> torch.utils.data.Dataset[dict[str, list[int]]]:
    """A torch Dataset of `input_ids` and `labels` of the rows, in their order."""
    from torch.utils.data import Dataset

    class Rows(Dataset[dict[str, list[int]]]):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> dict[str, list[int]]:
            row = rows[index]
            return {
                "input_ids": [*row.prompt_ids, *row.answer_ids],
                "labels": [NO_LOSS] * len(row.prompt_ids) + list(row.answer_ids),
            }

    return Rows()


class Collator:
    """Rows of `dataset_of` as one batch: `input_ids`, `labels` and `attention_mask`, each (rows, longest) int64."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        import torch

        longest = max(len(row["input_ids"]) for row in rows)

        def padded(values: Iterator[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([each + [fill] * (longest - len(each)) for each in values])

        return {
            "input_ids": padded((row["input_ids"] for row in rows), self.pad_id),
            "labels": padded((row["labels"] for row in rows), NO_LOSS),
            "attention_mask": padded(([1] * len(row["input_ids"]) for row in rows), 0),
        }


def _innermost(model: Any) -> Any:
    """The model inside what an accelerator puts around it."""
    while hasattr(model, "module") and not hasattr(model, "peft_config"):
        model = model.module
    return model


def _silence(made: Any) -> None:
    """Take away transformers' printed logs, where the Trainer has them: a run's progress is printed once."""
    with contextlib.suppress(ImportError, AttributeError):
        from transformers import PrinterCallback

        made.remove_callback(PrinterCallback)
