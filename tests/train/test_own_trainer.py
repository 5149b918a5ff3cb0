"""A trainer of one's own: what it gets, what is taken from it, and what is refused with its name."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import random_adapter, text_examples, tiny_config

from fedfinlora.compose import compose
from fedfinlora.config.train import TrainConfig
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.adapter import read_adapter, trainable, write_adapter
from fedfinlora.train import trainer_names
from fedfinlora.train.loop import Stretch, TrainResult, train
from fedfinlora.train.own_trainer import LocalTask, Trained, reason_against, task_of, train_with
from fedfinlora.train.trainers import hugging_face

if TYPE_CHECKING:
    from fedfinlora.model.loading import Session

STRETCH = Stretch(0, 3, 3, 8.0)


def attempt(session: Session, trainer: Callable[[LocalTask], Any], **values: Any) -> TrainResult:
    """The result of a trainer called `mine:train` on eight rows in round 2."""
    task = task_of(session, text_examples(8), tiny_config(**values), "bank-0", 2, STRETCH)
    return train_with(trainer, "mine:train", session, task)


def one_step(task: LocalTask) -> Any:
    """A step of plain SGD on the first row, by hand."""
    row = task.rows[0]
    ids = torch.tensor([[*row.prompt_ids, *row.answer_ids]])
    labels = ids.clone()
    labels[0, : len(row.prompt_ids)] = -100
    loss = task.model(input_ids=ids, labels=labels).loss
    loss.backward()
    with torch.no_grad():
        for parameter in trainable(task.model).values():
            parameter -= 0.1 * parameter.grad
    return task.model


def test_it_gets_the_rows_the_adapter_and_a_seed(tiny: Session) -> None:
    before = read_adapter(tiny.model)
    seen: list[LocalTask] = []

    def look(task: LocalTask) -> Any:
        seen.append(task)
        assert task.model.training
        return one_step(task)

    result = attempt(tiny, look)
    [task] = seen
    assert (len(task.rows), task.bank, task.round, task.planned_rows) == (8, "bank-0", 2, 24)
    assert task.tokenizer is tiny.tokenizer
    assert not np.array_equal(read_adapter(tiny.model), before)
    assert (result.rows, result.steps, result.tokens) == (24, 3, 0)
    assert math.isnan(result.loss), "not reported is not 0"


def test_what_it_reports_is_counted(tiny: Session) -> None:
    result = attempt(tiny, lambda task: Trained(one_step(task), loss=1.5, rows=1, steps=1, tokens=9, answer_tokens=2))
    assert (result.loss, result.rows, result.steps, result.tokens, result.answer_tokens) == (1.5, 1, 1, 9, 2)


@pytest.mark.parametrize("form", ["model", "tensors", "vector"])
def test_the_adapter_is_read_in_three_forms(tiny: Session, form: str) -> None:
    wanted = random_adapter(tiny.layout.size, 5)

    def give(task: LocalTask) -> Any:
        if form == "model":
            write_adapter(task.model, wanted)
            return task.model
        return wanted if form == "vector" else {k: torch.tensor(v) for k, v in tiny.layout.views(wanted).items()}

    attempt(tiny, give)
    assert np.array_equal(read_adapter(tiny.model), wanted)


def test_pefts_own_state_dict_is_taken(tiny: Session) -> None:
    from peft import get_peft_model_state_dict

    attempt(tiny, lambda task: get_peft_model_state_dict(one_step(task)))


def test_the_same_seed_draws_the_same_and_nothing_is_left(tiny: Session) -> None:
    drawn: list[tuple[float, ...]] = []

    def draw(task: LocalTask) -> Any:
        numbers = (random.random(), np.random.rand(), float(torch.rand(())), float(task.generator.random()))  # noqa: NPY002
        drawn.append(numbers)
        task.model.forward = task.model.forward  # as an accelerator leaves its own forward on the model
        return one_step(task)

    random.seed(1)
    torch.manual_seed(1)
    state, torch_state = random.getstate(), torch.get_rng_state()
    attempt(tiny, draw)
    attempt(tiny, draw)
    assert drawn[0] == drawn[1]
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert "forward" not in vars(tiny.model)
    assert not tiny.model.training
    assert all(parameter.grad is None for parameter in tiny.model.parameters())


def nan(task: LocalTask) -> Any:
    write_adapter(task.model, np.full(sum(p.numel() for p in trainable(task.model).values()), np.nan, np.float32))
    return task.model


def fails(task: LocalTask) -> Any:
    raise ValueError("the text of a row")


def half(task: LocalTask) -> Any:
    return dict(list(trainable(task.model).items())[:1])


def turned(task: LocalTask) -> Any:
    return {name: value.detach().T for name, value in trainable(task.model).items()}


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        (nan, "numbers that are NaN or infinite"),
        (fails, "failed in round 2: ValueError at "),
        (half, "another layout than the"),
        (turned, "of shape"),
        (lambda task: None, "gave back NoneType. Return task.model"),
        (lambda task: np.zeros(3, np.float32), "an array of shape (3,)"),
        (lambda task: Trained(task.model, loss=math.nan), "reported loss=nan"),
        (lambda task: Trained(task.model, rows=0), "reported rows=0"),
        (lambda task: Trained(task.model, tokens=1.5), "reported tokens=1.5"),  # type: ignore[arg-type]
        (lambda task: exec("raise SystemExit(3)"), "SystemExit"),
    ],
)
def test_a_wrong_result_is_one_line_with_its_name(tiny: Session, trainer: Any, said: str) -> None:
    with pytest.raises(UserError) as raised:
        attempt(tiny, trainer)
    line = str(raised.value)
    assert line.startswith("The trainer mine:train ")
    assert said in line
    assert "\n" not in line
    assert "the text of a row" not in line


def test_a_changed_base_model_is_refused_and_loaded_again(tiny: Session) -> None:
    def merge(task: LocalTask) -> Any:
        with torch.no_grad():
            next(p for n, p in task.model.named_parameters() if ".lora_" not in n).add_(1.0)
        return task.model

    with pytest.raises(UserError, match="has changed the base model"):
        attempt(tiny, merge)
    from fedfinlora.model.loading import get_session

    assert get_session(tiny_config()).model is not tiny.model


def test_what_is_a_step_of_our_own_loop_is_refused() -> None:
    assert reason_against(tiny_config()) == ""
    assert "privacy=example" in reason_against(compose(["privacy=example", "model=tiny-random"]))
    scaffold = compose(["strategy=scaffold", "train.optimizer=sgd", "train.epochs=0", "model=tiny-random"])
    assert "strategy=scaffold" in reason_against(scaffold)
    assert "proximal_mu" in reason_against(tiny_config(train=TrainConfig(proximal_mu=0.1)))


# --- names ----------------------------------------------------------------------------------------


def test_a_function_of_a_module_has_a_name_and_others_get_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_script.py").write_text("def train(task):\n    return task.model\nnothing = 3\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    found = trainer_names.named("my_own_script:train")
    assert found == ("my_own_script:train", str(tmp_path))
    assert trainer_names.load(found).__name__ == "train"
    assert trainer_names.named(trainer_names.load(found)) == found
    for wrong in (lambda task: task.model, hugging_face(lambda *given: None)):
        with pytest.raises(ConfigError, match=r"%%writefile my_training\.py"):
            trainer_names.named(wrong)
    with pytest.raises(ConfigError, match="is not MODULE:FUNCTION"):
        trainer_names.named("os.system('true')")
    with pytest.raises(ConfigError, match="there is no module nowhere_to_be_found"):
        trainer_names.named("nowhere_to_be_found:train")
    with pytest.raises(UserError, match="has no other"):
        trainer_names.load(found._replace(name="my_own_script:other"))
    with pytest.raises(UserError, match="is no function, but int"):
        trainer_names.load(found._replace(name="my_own_script:nothing"))


def test_a_file_with_a_librarys_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tabnanny.py").write_text("def train(task):\n    return task.model\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="Python has another tabnanny at"):
        trainer_names.load(trainer_names.named("tabnanny:train"))


# --- Hugging Face ---------------------------------------------------------------------------------


def arguments(folder: Path, **values: Any) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(folder), max_steps=3, per_device_train_batch_size=8, learning_rate=1e-2, weight_decay=0.0,
        max_grad_norm=0.0, lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True, use_cpu=True, remove_unused_columns=False, dataloader_pin_memory=False, **values,
    )  # fmt: skip


def test_a_hugging_face_trainer_gives_the_losses_of_our_own_loop(tiny: Session, tmp_path: Path) -> None:
    """All rows in each step, so that the order in which they are drawn does not matter."""
    from transformers import Trainer

    start = read_adapter(tiny.model)
    trainers: list[Trainer] = []

    def make(task: LocalTask, dataset: Any, collate: Any) -> Any:
        made = Trainer(task.model, arguments(tmp_path), train_dataset=dataset, data_collator=collate)
        trainers.append(made)
        return made

    theirs = attempt(tiny, hugging_face(make))
    their_adapter = read_adapter(tiny.model)
    write_adapter(tiny.model, start)
    config = TrainConfig(learning_rate=1e-2, schedule="constant", warmup_steps=0, clip_norm=0.0, batch_rows=8)
    ours = train(tiny.model, text_examples(8), STRETCH, replace(config, weight_decay=0.0), seed=0, bank="bank-0")
    steps = [entry["loss"] for entry in trainers[0].state.log_history if "loss" in entry]
    assert np.allclose(steps, ours.step_losses, atol=1e-3)
    assert theirs.loss == pytest.approx(np.mean(ours.step_losses), abs=1e-3)
    assert (theirs.rows, theirs.steps) == (24, 3)
    assert np.allclose(their_adapter, read_adapter(tiny.model), atol=1e-3)


def test_a_trainer_of_another_model_is_refused(tiny: Session) -> None:
    class Other:
        model = torch.nn.Linear(1, 1)

        def train(self) -> None: ...

    with pytest.raises(UserError, match="The trainer mine:train: make_trainer's Trainer has another model"):
        attempt(tiny, hugging_face(lambda task, dataset, collate: Other()))


@pytest.mark.parametrize("file", ["my_training.py", "hf_training.py"])
def test_the_scripts_of_the_documentation_train(
    tiny: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "running.md").read_text("utf-8")
    [block] = re.findall(rf"```python\n# {file}\n(.*?)```", page, re.DOTALL)
    module: dict[str, Any] = {}
    exec(block, module)
    monkeypatch.chdir(tmp_path)
    before = read_adapter(tiny.model)
    result = attempt(tiny, module["train"])
    assert result.loss > 0
    assert not np.array_equal(read_adapter(tiny.model), before)
