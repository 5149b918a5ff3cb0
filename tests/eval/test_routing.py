"""Several adapters as one model: Arrow against PEFT's own, routers by benchmark, and what cannot be joined."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from evaluations import files_of, folder_of_rows, metrics_of, scored, words_for
from routed import TOKENS, adapter_folder, config_of, logits_in
from tiny_runs import write_lines

from eval.arrow_model import TEMPERATURE, TOP_K, ArrowExpert, ArrowModel
from eval.models import LocalModel
from eval.recompute import recompute_scores
from eval.routing import by_score, by_task
from fedfinlora.cli import main
from fedfinlora.files import read_json
from fedfinlora.model.adapter import load_adapter, read_adapter
from fedfinlora.model.loading import Session, get_session, load_base
from fedfinlora.provenance.compared import Difference
from fedfinlora.run.evaluation import BenchmarkMetrics, Estimate, Evaluation


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    kinds: dict[str, dict[str, Any]] = {
        "one": {},
        "two": {},
        "three": {},
        "louder": {"alpha": 32},
        "wide": {"rank": 8},
        "keys": {"target_modules": ("k_proj",)},
        "dora": {"method": "dora"},
    }
    return {name: adapter_folder(root / name, number, **kind) for number, (name, kind) in enumerate(kinds.items())}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_rows(tmp_path_factory.mktemp("rows"), fpb=4, formula=2)


def arrow_of(adapters: Mapping[str, Path], *names: str) -> tuple[ArrowModel, Session]:
    config = config_of()
    session = get_session(config)
    experts = [
        ArrowExpert(
            replace(config.peft, alpha=int(read_json(adapters[name] / "adapter_config.json")["lora_alpha"])),
            load_adapter(adapters[name], session.layout),
        )
        for name in names
    ]
    return ArrowModel.of(session, config, experts), session


# --- Arrow ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_arrow_computes_what_pefts_own_model_computes(adapters: dict[str, Path]) -> None:
    """Four adapters, of which three share a token, one with another alpha."""
    from peft import ArrowConfig, create_arrow_model

    names = ("one", "two", "three", "louder")
    ours = logits_in(arrow_of(adapters, *names)[0])
    base, _ = load_base(tiny_config().model)
    arrow = ArrowConfig(top_k=TOP_K, router_temperature=TEMPERATURE, rng_seed=tiny_config().seed)
    theirs = create_arrow_model(base, [str(adapters[name]) for name in names], arrow).eval()
    with torch.no_grad():
        expected = theirs(input_ids=TOKENS).logits
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    model, session = arrow_of(adapters, "one", "two")
    single = logits_in(LocalModel(session, config_of(), model.experts[0].adapter))
    assert float((single - expected).abs().max()) > 1e-3


def test_arrow_over_copies_of_one_adapter_is_that_adapter(adapters: dict[str, Path]) -> None:
    """The weights of a token's adapters sum to 1."""
    model, session = arrow_of(adapters, "one", "one", "one")
    alone = LocalModel(session, config_of(), model.experts[0].adapter)
    torch.testing.assert_close(logits_in(model), logits_in(alone), rtol=1e-5, atol=1e-5)


def test_the_session_is_as_it_was_after_arrow(adapters: dict[str, Path]) -> None:
    """The same parameters with the same values, and the same of them trained."""
    model, session = arrow_of(adapters, "one", "two")
    before = {name: (value.requires_grad, value.clone()) for name, value in session.model.named_parameters()}
    vector = read_adapter(session.model)
    with pytest.raises(IndexError), model.in_place() as module:  # also where a pass fails
        module(input_ids=TOKENS + session.model.config.vocab_size)
    after = dict(session.model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name].requires_grad == trained for name, (trained, _) in before.items())
    assert all(torch.equal(after[name], value) for name, (_, value) in before.items())
    assert np.array_equal(read_adapter(session.model), vector)
    assert not any("lora_arrow" in name for name, _ in session.model.named_modules())


def test_arrow_is_another_model_with_another_adapter(adapters: dict[str, Path]) -> None:
    """Answers of one are never taken for the other's."""
    found = [arrow_of(adapters, *names)[0].identity for names in (("one", "two"), ("one", "three"), ("one", "louder"))]
    assert len({json.dumps(one, sort_keys=True) for one in found}) == 3


# --- the command ----------------------------------------------------------------------------------


def test_routes_add_labels_that_compare_and_report_show(
    rows: Path, adapters: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`task` has the rows of the adapter that was named for a benchmark, the oracle those of the best."""
    words = words_for(rows, tmp_path, "evaluation.check_rows=1", benchmarks="fpb,formula")
    options = ["--adapter", f"mood={adapters['one']}:fpb", "--adapter", f"sums={adapters['louder']}:formula"]
    run = scored(words, *options, "--route", "task", "--route", "oracle", "--route", "arrow")
    labels = {folder.name for folder in (run / "eval").iterdir()}
    assert labels == {"mood", "sums", "task", "oracle_on_test_rows", "arrow"}
    for key, label in (("fpb", "mood"), ("formula", "sums")):
        assert files_of(run, "task")[f"{key}.jsonl"] == files_of(run, label)[f"{key}.jsonl"]
        assert metrics_of(run, "task")["scores"][key] == metrics_of(run, label)["scores"][key]
        best = max(metrics_of(run, one)["scores"][key]["accuracy"] for one in ("mood", "sums"))
        assert metrics_of(run, "oracle_on_test_rows")["scores"][key]["accuracy"] == best
        assert metrics_of(run, "arrow")["scores"][key]["decoding"] == {"rows_checked": 1, "rows_differ": 0}
    assert metrics_of(run, "task")["model"]["choice"] == {"fpb": "mood", "formula": "sums"}
    assert metrics_of(run, "oracle_on_test_rows")["model"]["chosen_on"] == "test rows"
    assert not [found for found in recompute_scores(run, []) if isinstance(found, Difference)]
    report = (run / "report.html").read_text("utf-8")
    assert all(label in report for label in labels)
    capsys.readouterr()
    assert main(["compare", str(run), str(run), "--labels", "task", "arrow"]) == 0
    before = {label: files_of(run, label) for label in labels}
    scored([f"resume={run}", *words], *options, "--route", "task", "--route", "oracle", "--route", "arrow")
    assert {label: files_of(run, label) for label in labels} == before


def test_a_runs_adapter_brings_the_tasks_that_it_was_trained_on(
    rows: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """From config.yaml next to adapters/; a benchmark that none was trained on is skipped with the reason."""
    folders = []
    for name, tasks in (("one", "[fpb]"), ("two", "[xbrl_finer]")):
        folders.append(tmp_path / f"run-{name}" / "adapters" / "final")
        shutil.copytree(adapters[name], folders[-1])
        made = scored(words_for(rows, tmp_path, f"dataset.tasks={tasks}", benchmarks="formula", name=f"base-{name}"))
        shutil.copy(made / "config.yaml", folders[-1].parent.parent)
    options = [word for folder in folders for word in ("--adapter", str(folder))]
    run = scored(words_for(rows, tmp_path, benchmarks="fpb,formula"), *options, "--route", "task")
    found = metrics_of(run, "task")
    assert found["model"]["choice"] == {"fpb": "run-one-final"}
    assert "no adapter was trained on it" in found["skipped"]["formula"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a={one}", "--route", "task"], "--route joins several adapters"),
        (["{one}", "{one}", "--route", "oracle"], "--route joins several adapters"),
        (["a={one}", "b={one}x", "--route", "oracle"], "onex is no PEFT adapter"),
        (["a={one}", "a={two}", "--route", "oracle"], "two adapters are called a"),
        (["task={one}", "b={two}"], "task is the name of other scores"),
        (["a={one}", "b={other}", "--route", "oracle"], "was made for acme/other-7b"),
        (["a={one}", "b={two}", "--route", "task"], "its tasks are not known"),
        (["a={one}:fbp", "b={two}"], "Did you mean 'fpb'"),
        (["a={one}", "b={two}", "--route", "arow"], "Did you mean 'arrow'"),
        (["a={one}", "b={wide}", "--route", "arrow"], "peft.rank is 4 for a and 8 for b"),
        (["a={one}", "b={keys}", "--route", "arrow"], "peft.target_modules is q_proj for a and k_proj for b"),
        (["a={one}", "b={dora}", "--route", "arrow"], "b is of peft=dora"),
        (["--model-url", "http://127.0.0.1:9/v1", "--model-name", "x", "--route", "task"], "leave --adapter, --route"),
    ],
)
def test_what_cannot_be_joined_is_refused_in_one_line(
    rows: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    """Before a run's folder is made."""
    other = shutil.copytree(adapters["two"], tmp_path / "other-base")
    values = read_json(other / "adapter_config.json") | {"base_model_name_or_path": "acme/other-7b"}
    write_lines(other / "adapter_config.json", [json.dumps(values)])
    places = {**adapters, "other": other}
    typed: list[str] = []
    for word in words:
        option = [] if word.startswith("-") or (typed and typed[-1].startswith("--")) else ["--adapter"]
        typed += [*option, word.format(**places)]
    assert main(["evaluate", *typed, *words_for(rows, tmp_path / "out", benchmarks="fpb")]) in (1, 2)
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "out" / "run").exists()


# --- the choice -----------------------------------------------------------------------------------


def evaluation_of(**accuracies: float | None) -> Evaluation:
    return Evaluation(
        scores={key: BenchmarkMetrics(estimates={"accuracy": Estimate(value)}) for key, value in accuracies.items()}
    )


def test_the_oracle_takes_the_best_and_of_equal_ones_the_first() -> None:
    found = {"a": evaluation_of(fpb=0.5, tfns=0.5, nwgi=None), "b": evaluation_of(fpb=0.5, tfns=0.75, nwgi=0.1)}
    assert by_score(found, ["fpb", "tfns", "nwgi", "finer"]) == {"fpb": "a", "tfns": "b", "nwgi": "b"}


def test_the_adapter_with_the_fewest_tasks_takes_a_benchmark() -> None:
    tasks = {"all": ("fpb", "tfns", "formula"), "mood": ("fpb", "tfns"), "late": ("tfns", "fpb")}
    assert by_task(tasks, ["formula", "fpb", "nwgi"]) == {"formula": "all", "fpb": "mood"}
