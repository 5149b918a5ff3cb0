"""Hugging Face Trainer with PEFT in `bench gpu`, as its documentation shows: padded batches, all logits."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.benches.gpu_setting import synchronize
from fedfinlora.config.schema import Config
from fedfinlora.model.loading import Session
from fedfinlora.model.packing import Example


def trainer_step_seconds(session: Session, config: Config, batch: Sequence[Example], steps: int) -> list[float]:
    """Seconds of each of `steps` optimiser steps over the same batch. Where a pass does not fit otherwise, layers are
    checkpointed.
    """
    try:
        return _steps(session, config, batch, steps, checkpoint=False)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
    return _steps(session, config, batch, steps, checkpoint=True)


def _steps(session: Session, config: Config, batch: Sequence[Example], steps: int, checkpoint: bool) -> list[float]:
    from torch.utils.data import Dataset
    from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

    class Rows(Dataset[Example]):
        def __len__(self) -> int:
            return len(batch) * steps

        def __getitem__(self, index: int) -> Example:
            return batch[index % len(batch)]

    longest = max(len(row.prompt_ids) + len(row.answer_ids) for row in batch)

    def collate(rows: list[Example]) -> dict[str, torch.Tensor]:
        found: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
        for row in rows:
            padding = longest - len(row.prompt_ids) - len(row.answer_ids)
            found["input_ids"].append([*row.prompt_ids, *row.answer_ids, *[0] * padding])
            found["labels"].append([-100] * len(row.prompt_ids) + [*row.answer_ids] + [-100] * padding)
            found["attention_mask"].append([1] * (longest - padding) + [0] * padding)
        return {name: torch.tensor(values) for name, values in found.items()}

    seconds: list[float] = []

    class Clock(TrainerCallback):
        begun_s = 0.0

        def on_step_begin(self, *arguments: Any, **named: Any) -> None:
            synchronize(session.device)
            self.begun_s = time.perf_counter()

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            synchronize(session.device)
            seconds.append(time.perf_counter() - self.begun_s)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=len(batch),
            learning_rate=config.train.learning_rate,
            max_grad_norm=config.train.clip_norm,
            lr_scheduler_type="constant",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=session.device.type == "cpu",
            bf16=session.device.type == "cuda",
            gradient_checkpointing=checkpoint,
            gradient_checkpointing_kwargs={"use_reentrant": False} if checkpoint else None,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
        )
        trainer = Trainer(
            model=session.model, args=arguments, train_dataset=Rows(), data_collator=collate, callbacks=[Clock()]
        )
        for printer in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(printer)
        try:
            trainer.train()
        finally:
            session.model.zero_grad(set_to_none=True)
            session.model.eval()
            if checkpoint:
                session.model.gradient_checkpointing_disable()  # type: ignore[operator]
    return seconds
