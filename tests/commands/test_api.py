"""`import fedfinlora as ff`: the commands as functions, without a terminal, with typed results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import adapter_bytes, overrides, write_rows

import fedfinlora as ff
from fedfinlora.api import words_of
from fedfinlora.commands.baselines import centralized
from fedfinlora.commands.bench import bench
from fedfinlora.compose import compose
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.files import sha256_of
from fedfinlora.run.events import Event

TINY: dict[str, object] = {"train.steps_per_round": 2, "train.batch_rows": 4, "model.threads": 1}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


def named(rows: Path, output: Path, name: str, **more: object) -> dict[str, Any]:
    settings = {**TINY, "dataset.root": rows, "evaluation.benchmarks": ["fpb"], "evaluation.limit": 2}
    values = {
        "dataset": "finlora",
        "model": "tiny-random",
        "banks": 2,
        "num_server_rounds": 2,
        "output_dir": output,
        "run_name": name,
    }
    return {"settings": settings, **values, **more}


def test_importing_the_package_loads_nothing() -> None:
    code = (
        "import sys, fedfinlora; print(sorted({'torch', 'flwr', 'numpy', 'rich'} & set(sys.modules)), "
        "fedfinlora.__version__)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("[] ")


def test_a_baseline_gives_its_typed_run_and_its_events(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[str] = []

    def take(event: Event) -> None:
        events.append(event.event)
        print("seen")

    run = ff.centralized(**named(rows, tmp_path, "Lauf Ü [1]"), on_event=take)
    assert run.folder == tmp_path / "Lauf Ü [1]"
    assert (run.result.status, run.result.rounds, [line.round for line in run.rounds]) == ("completed", 2, [1, 2])
    assert run.rounds[0].banks[0].is_ok
    assert run.scores["final"]["fpb"].n == 2
    assert (events[0], events[-1], events.count("round_done")) == ("run_start", "run_done", 2)
    assert set(capsys.readouterr().out.split()) == {"seen"}, "what on_event prints, and nothing else"
    assert ff.load_run(run.folder).result == run.result
    compared = ff.compare(run, run, ("base", "final"))
    assert compared.benchmarks["fpb"].rows == 2


def test_it_is_the_commands_own_run(rows: Path, tmp_path: Path) -> None:
    run = ff.centralized(**named(rows, tmp_path, "api", evaluation="none"))
    assert centralized(overrides(rows, tmp_path, name="command")) == 0
    assert adapter_bytes(run.folder) == adapter_bytes(tmp_path / "command")


def test_each_bank_alone_and_an_evaluation_of_their_adapters(rows: Path, tmp_path: Path) -> None:
    alone = ff.local(**named(rows, tmp_path, "alone", evaluation="none"))
    assert [run.folder.name for run in alone] == ["alone-bank-0", "alone-bank-1"]
    adapters = [run.folder / "adapters" / "final" for run in alone]
    scored = ff.evaluate(adapters, base=True, **named(rows, tmp_path, "scored"))
    assert sorted(scored.scores) == ["alone-bank-0-final", "alone-bank-1-final", "base"]
    words = [f"one={adapters[0]}:fpb", f"two={adapters[1]}:formula"]
    routed = ff.evaluate(words, route=["task", "arrow"], **named(rows, tmp_path, "routed"))
    assert sorted(routed.scores) == ["arrow", "one", "task", "two"]
    assert routed.scores["task"] == {"fpb": routed.scores["one"]["fpb"]}
    with pytest.raises(ConfigError, match="needs --gate DIR"):
        ff.evaluate(words, route="xlora", **named(rows, tmp_path, "gateless"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train.epoch": 1}, "Unknown configuration key train.epoch"),
        ({"banks": {}}, "banks must be a text, a number"),
        ({"peft": "lorra"}, "lorra"),
    ],
)
def test_settings_that_are_none_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ff.centralized(settings=settings)


def test_a_run_that_fails_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere"):
        ff.centralized(
            settings={"dataset.root": tmp_path / "nowhere"}, dataset="finlora", model="tiny-random", output_dir=tmp_path
        )


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the folder of a run"):
        ff.load_run(tmp_path)
    with pytest.raises(AttributeError, match="has no attribute 'simulated'"):
        ff.simulated  # noqa: B018


# --- a trainer of one's own -----------------------------------------------------------------------

SCRIPT = """\
import torch
from fedfinlora.model.adapter import trainable
from helper_next_to_it import RATE


def train(task):
    optimizer = torch.optim.SGD(trainable(task.model).values(), lr=RATE)
    losses = []
    for row in task.rows[:2]:
        ids = torch.tensor([[*row.prompt_ids, *row.answer_ids]])
        labels = torch.tensor([[-100] * len(row.prompt_ids) + [*row.answer_ids]])
        loss = task.model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    import fedfinlora as ff

    return ff.trainers.Trained(task.model, loss=sum(losses) / 2, rows=2, steps=2)
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """my_banks_script.py in the working directory, with a file that it imports."""
    (tmp_path / "my_banks_script.py").write_text(SCRIPT, "utf-8")
    (tmp_path / "helper_next_to_it.py").write_text("RATE = 0.1\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_banks_of_a_real_run_train_with_ones_own_function(rows: Path, script: Path) -> None:
    values = named(rows, script, "own", evaluation="none", num_server_rounds=1, workers=1)
    run = ff.simulate(**values, trainer="my_banks_script:train")
    assert run.result.mode == "federated"
    [line] = run.rounds
    assert [entry.bank for entry in line.banks] == ["bank-0", "bank-1"]
    assert [(entry.rows, entry.steps, entry.is_ok) for entry in line.banks] == [(2, 2, True)] * 2
    assert all("tokens" in entry.withheld and entry.train_loss for entry in line.banks)
    assert run.manifest["data_sha256.trainer my_banks_script:train"] == sha256_of(SCRIPT.encode())
    alone = ff.local(**{**values, "run_name": "alone"}, trainer="my_banks_script:train")
    assert [each.rounds[0].train_loss for each in alone] == [entry.train_loss for entry in line.banks]
    (script / "my_banks_script.py").write_text(f"{SCRIPT}# changed\n", "utf-8")
    with pytest.raises(UserError, match=r"begun with something else: data trainer my_banks_script:train \(changed\)"):
        ff.simulate(resume=run.folder, settings={}, trainer="my_banks_script:train")


def test_a_baseline_takes_any_function_but_a_simulation_only_named_ones(rows: Path, tmp_path: Path) -> None:
    values = named(rows, tmp_path, "any", evaluation="none", num_server_rounds=1)
    run = ff.centralized(**values, trainer=lambda task: task.model)
    assert run.rounds[0].train_loss is None
    assert run.rounds[0].update_norm == 0
    with pytest.raises(ConfigError, match="run in other processes and cannot import"):
        ff.simulate(**values, trainer=lambda task: task.model)
    with pytest.raises(UserError, match=r"The trainer .*broken failed in round 1: ZeroDivisionError at "):
        ff.centralized(**{**values, "run_name": "broken"}, trainer=broken)
    assert ff.load_run(tmp_path / "broken").result.status == "failed"


def broken(task: ff.trainers.LocalTask) -> float:
    return 1 / 0


def test_a_private_run_refuses_a_trainer_by_name(script: Path) -> None:
    with pytest.raises(ConfigError, match="A trainer cannot go with privacy=example"):
        ff.simulate(privacy="example", model="tiny-random", trainer="my_banks_script:train")


@pytest.mark.parametrize(
    "value", [["a b", "c,d"], ["x'y", 'q"z'], ["[1]", "${a}", "null", "1", ""], ["end\\", '\\"'], []]
)
def test_texts_in_a_list_arrive_as_they_are(value: list[str]) -> None:
    assert list(compose(words_of({"dataset.tasks": value}, {})).dataset.tasks) == value


def test_bench_without_a_name_lists_them() -> None:
    with pytest.raises(ConfigError, match=r"needs the name of a benchmark: train, evaluate, .*gpu"):
        bench(["rows=3"], None)
