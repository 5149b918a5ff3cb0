"""`bench train`: our training loop and Hugging Face's `Trainer` on the same FPB rows, model and batches, in short turns
that alternate.

Both start each turn from the same adapter and see the same rows in the same steps, without dropout and with a constant
learning rate, so their losses must agree. The Trainer is used as its documentation shows: right padding to the longest
row of the batch, logits at every position. Its clock runs from the first step to the end of the last, without what it
prepares; ours includes that.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.benches.paired import alternately, judged, load
from data.encode import encode_rows
from data.sources import load_rows
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import write_adapter
from fedfinlora.model.base_checks import context_tokens
from fedfinlora.model.loading import Session, get_session, initial_adapter
from fedfinlora.model.packing import Example
from fedfinlora.train.loop import Stretch, train
from fedfinlora.train.row_order import rows_of_step

STEPS = 2
TURNS = 6


def bench_train(overrides: Sequence[str]) -> dict[str, Any]:
    """Tokens a second of both, their ratio and the largest difference of a step's loss."""
    given = compose(overrides)
    config = replace(
        given,
        peft=replace(given.peft, dropout=0.0),
        train=replace(given.train, schedule="constant", warmup_steps=0, weight_decay=0.0),
        dataset=replace(given.dataset, tasks=("fpb",)),
    )
    if not config.train.batch_rows:
        raise UserError(
            "`bench train` compares steps of a fixed size: set train.batch_rows=16 or another number above 0."
        )
    session = get_session(config)
    rows = load_rows(config.dataset, "train", ("fpb",), config.seed).rows
    examples = encode_rows(session.tokenizer, rows, context_tokens(config.model)).examples
    if len(examples) < config.train.batch_rows:
        raise UserError(
            f"{len(examples)} FPB rows, fewer than one step of {config.train.batch_rows}. Set dataset.root or "
            "train.batch_rows."
        )
    losses: dict[str, list[float]] = {}

    def side(name: str, run: Callable[..., tuple[float, list[float]]], steps: int = STEPS) -> Callable[[], float]:
        def timed() -> float:
            seconds, losses[name] = run(session, config, examples, steps)
            return seconds

        return timed

    for name, run in (("ours", _ours), ("theirs", _trainer)):
        side(name, run, 1)()  # caches and thread pools warm up
    ours: list[float] = []
    theirs: list[float] = []
    worst = 0.0
    for turn in range(TURNS):
        our_s, their_s = alternately(turn, side("ours", _ours), side("theirs", _trainer))
        ours.append(our_s)
        theirs.append(their_s)
        worst = max(worst, *(abs(one - other) for one, other in zip(losses["ours"], losses["theirs"], strict=True)))
        print(
            f"turn {turn + 1} of {TURNS}: ours {our_s:.2f} s, Trainer {their_s:.2f} s, "
            f"losses {losses['ours'][-1]:.4f} {losses['theirs'][-1]:.4f}, load {load()}",
            file=sys.stderr,
        )
    batch = [example for step in range(STEPS) for example in _batch(config, examples, step)]
    tokens = sum(len(example.prompt_ids) + len(example.answer_ids) for example in batch)
    return {
        **judged(ours, theirs),
        "ours": {"tokens_per_s": tokens / statistics.median(ours), "seconds": ours},
        "reference": {
            "name": "transformers.Trainer",
            "tokens_per_s": tokens / statistics.median(theirs),
            "seconds": theirs,
        },
        "differs": {"largest_step_loss_difference": worst},
        "rows": len(batch),
        "tokens": tokens,
        "steps": STEPS,
        "turns": TURNS,
        "model": config.model.name,
        "quantization": config.model.quantization,
        "dataset": config.dataset.source,
    }


def _batch(config: Config, examples: Sequence[Example], step: int) -> list[Example]:
    return [
        examples[index]
        for index in rows_of_step(step, len(examples), float(config.train.batch_rows), config.seed, "bench")
    ]


def _ours(session: Session, config: Config, examples: Sequence[Example], steps: int) -> tuple[float, list[float]]:
    write_adapter(session.model, initial_adapter(session, config))
    result = train(
        session.model,
        examples,
        Stretch(0, steps, steps, float(config.train.batch_rows)),
        config.train,
        seed=config.seed,
        bank="bench",
    )
    return result.wall_s, list(result.step_losses)


def _trainer(session: Session, config: Config, examples: Sequence[Example], steps: int) -> tuple[float, list[float]]:
    import torch
    from transformers import Trainer, TrainerCallback

    ordered = [example for step in range(steps) for example in _batch(config, examples, step)]
    losses: list[float] = []

    class Watch(TrainerCallback):
        """Losses, and seconds from the first step's begin to the last one's end."""

        began_s = ended_s = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.began_s = self.began_s or time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ended_s = time.monotonic()

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
        ) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    class InOrder(Trainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    write_adapter(session.model, initial_adapter(session, config))
    rows, collate = _rows(ordered, session.tokenizer.pad_token_id or 0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = _arguments(folder, session, config, steps)
        watch = Watch()
        trainer = InOrder(
            model=session.model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[watch]
        )
        trainer.remove_callback(_printer())
        trainer.train()
    session.model.eval()
    return watch.ended_s - watch.began_s, losses


def _rows(examples: Sequence[Example], pad_id: int) -> tuple[Any, Any]:
    """(the examples as a torch data set, how its rows become a padded batch)."""
    import torch
    from torch.utils.data import Dataset

    class Rows(Dataset[dict[str, list[int]]]):
        def __len__(self) -> int:
            return len(examples)

        def __getitem__(self, index: int) -> dict[str, list[int]]:
            example = examples[index]
            return {
                "input_ids": [*example.prompt_ids, *example.answer_ids],
                "labels": [-100] * len(example.prompt_ids) + list(example.answer_ids),
            }

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in rows)

        def padded(key: str, fill: int) -> torch.Tensor:
            return torch.tensor([row[key] + [fill] * (length - len(row[key])) for row in rows])

        mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows])
        return {"input_ids": padded("input_ids", pad_id), "labels": padded("labels", -100), "attention_mask": mask}

    return Rows(), collate


def _arguments(folder: str, session: Session, config: Config, steps: int) -> Any:
    """Hugging Face's arguments for the same training."""
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=config.train.batch_rows,
        learning_rate=config.train.learning_rate,
        adam_beta1=config.train.beta1,
        adam_beta2=config.train.beta2,
        weight_decay=0.0,
        max_grad_norm=config.train.clip_norm,
        lr_scheduler_type="constant",
        logging_steps=1,
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=session.device.type == "cpu",
        bf16=session.device.type == "cuda" and torch.cuda.is_bf16_supported(),
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        seed=config.seed,
    )


def _printer() -> Any:
    from transformers import PrinterCallback

    return PrinterCallback
