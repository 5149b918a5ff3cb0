"""Harness tasks: lm-evaluation-harness asks the same model, and its figures are our evaluator's."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import random_adapter, tiny_config
from tiny_runs import write_lines, write_rows

from data.catalog import BENCHMARKS
from data.rows import Row
from eval.evaluate import evaluate_models
from eval.harness.judging import metric, metric_names, process_results, rows_of
from eval.harness.tasks import task_yaml, write_tasks
from eval.models import LocalModel
from eval.scoring.records import score_rows
from eval.scoring.scorers import SCORERS
from fedfinlora.cli import main
from fedfinlora.commands.harness import harness
from fedfinlora.config.dataset import DatasetConfig
from fedfinlora.config.evaluation import EvaluationConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.adapter import save_adapter
from fedfinlora.model.embedded import TINY_RANDOM, embedded_folder
from fedfinlora.model.loading import get_session
from fedfinlora.run.general_knowledge import read_general_knowledge


def config_of(*benchmarks: str, limit: int = 3, knowledge: bool = False, **dataset: Any) -> Config:
    return replace(
        tiny_config(),
        dataset=DatasetConfig(**{"source": "sample", **dataset}),
        evaluation=EvaluationConfig(benchmarks=benchmarks, limit=limit, reuse=False, general_knowledge=knowledge),
    )


def scored_by_us(config: Config, run: Path, seed: int = 0) -> tuple[dict[str, dict[str, Any]], Path]:
    """(metrics by benchmark, the folder of the adapter) of a random adapter on the tiny model."""
    session = get_session(config)
    adapter = random_adapter(session.layout.size, seed)
    save_adapter(run / "adapter", adapter, session.layout, config.peft, config.model)
    found = evaluate_models({"final": LocalModel(session, config, adapter)}, config, run)["final"]
    return {key: metrics.as_json() for key, metrics in found.scores.items()}, run / "adapter"


def answers_of(run: Path, key: str) -> list[str]:
    lines = (run / "eval" / "final" / f"{key}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["output"] for line in lines]


def asked_by_the_harness(tasks: Path, adapter: Path, *names: str) -> dict[str, Any]:
    """What `lm_eval` gives for the tasks: figures by task, and each task's samples."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(embedded_folder(TINY_RANDOM)), "peft": str(adapter), "dtype": "float32"},
        tasks=list(names),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        device="cpu",
        batch_size=1,
        bootstrap_iters=0,
    )
    assert found is not None
    return found


def test_the_harness_and_our_evaluator_give_the_same_answers_and_figures(tmp_path: Path) -> None:
    """On bundled rows; where the target of every other row is what the model answers, accuracy is no plain zero."""
    keys = ("fpb", "xbrl_tags_extract")
    config = config_of(*keys, limit=4)
    scored_by_us(config, tmp_path / "first")
    write_tasks(tmp_path / "first", config)
    for key in keys:
        lines = (tmp_path / "first" / "rows" / f"{key}.jsonl").read_text("utf-8").splitlines()
        rows = [{"context": row["prompt"], "target": row["target"]} for row in map(json.loads, lines)]
        if not BENCHMARKS[key].labels:
            rows[1]["target"], rows[3]["target"] = answers_of(tmp_path / "first", key)[1::2]
        file = tmp_path / "rows" / "test" / f"{BENCHMARKS[key].test_file}.jsonl"
        write_lines(file, [json.dumps(row) for row in rows])
    config = config_of(*keys, limit=0, knowledge=True, source="finlora", root=str(tmp_path / "rows"))
    written = write_tasks(tmp_path / "tasks", config)
    assert written.tasks == {f"fedfinlora_{key}": 4 for key in keys} | {"fedfinlora_general_knowledge": 48}
    ours, adapter = scored_by_us(config, tmp_path / "run")
    theirs = asked_by_the_harness(tmp_path / "tasks", adapter, *written.tasks)
    for key in keys:
        samples = sorted(theirs["samples"][f"fedfinlora_{key}"], key=lambda sample: sample["doc_id"])
        assert [sample["resps"][0][0] for sample in samples] == answers_of(tmp_path / "run", key)
        for figure in metric_names(BENCHMARKS[key]):
            assert theirs["results"][f"fedfinlora_{key}"][f"{figure},none"] == pytest.approx(ours[key][figure])
    assert ours["xbrl_tags_extract"]["accuracy"] == 0.5
    knowledge = read_general_knowledge(tmp_path / "run", "final")
    assert knowledge is not None
    assert theirs["results"]["fedfinlora_general_knowledge"]["acc,none"] == knowledge.accuracy
    chosen = sorted(theirs["samples"]["fedfinlora_general_knowledge"], key=lambda sample: sample["doc_id"])
    assert tuple(bool(sample["acc"]) for sample in chosen) == knowledge.correct


@pytest.mark.parametrize("key", BENCHMARKS)
def test_every_benchmark_has_a_task_whose_names_exist(key: str) -> None:
    functions: list[str] = []

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: functions.append(node.value) or node.value)
    task = yaml.load(task_yaml(BENCHMARKS[key]), Loader)
    assert task["task"] == f"fedfinlora_{key}"
    assert task["generation_kwargs"] == {
        "until": [], "do_sample": False, "max_gen_toks": BENCHMARKS[key].budget_tokens,
    }  # fmt: skip
    names = [entry["metric"] for entry in task["metric_list"]]
    assert names == list(metric_names(BENCHMARKS[key]))
    assert functions == ["processing.rows", "processing.process", *(f"processing.{name}" for name in names)]


@pytest.mark.parametrize("key", [key for key, entry in BENCHMARKS.items() if SCORERS[entry.scorer].judged])
def test_a_task_reports_every_figure_that_the_evaluator_has(key: str) -> None:
    target = BENCHMARKS[key].labels[0] if BENCHMARKS[key].labels else "1"
    rows = [Row(f"{key}/test/{number}", key, "?", target) for number in range(2)]
    _, metrics = score_rows(BENCHMARKS[key], rows, [target, "x"])
    assert set(metric_names(BENCHMARKS[key])) == set(metrics.estimates)


def document(row: Row, moved_space: bool = False) -> dict[str, Any]:
    return {"benchmark": row.task, "row": json.dumps(asdict(row)), "moved_space": moved_space}


def test_figures_over_rows_are_computed_from_all_items_of_a_task() -> None:
    rows = [Row(f"fpb/test/{n}", "fpb", f"{n}? Answer:", target) for n, target in enumerate(["positive", "neutral"])]
    items = [process_results(document(row), ["positive"])["accuracy"] for row in rows]
    assert metric("accuracy")(items) == 0.5
    assert metric("unparsed_share")(items) == 0.0
    assert metric("f1_weighted")(items) == pytest.approx(1 / 3)
    unread = process_results(document(rows[0]), ["?"])
    assert metric("unparsed_share")([unread["unparsed_share"]]) == 1.0


def test_the_moved_space_of_an_answer_is_taken_off_again(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows")
    write_tasks(tmp_path / "tasks", config_of("fpb", source="finlora", root=str(rows), answer_space=True))
    [first, *_] = rows_of(tmp_path / "tasks", "fpb")["test"]
    assert first["prompt"].endswith("Answer:")
    assert first["target"].startswith(" ")
    assert process_results(first, [" positive"])["accuracy"][2] == "positive"


def test_rows_stay_in_the_folder_of_the_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache of the datasets library gets a copy of a bank's rows."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_tasks(tmp_path / "tasks", config_of("fpb"))
    assert len(rows_of(tmp_path / "tasks", "fpb")["test"]) == 3
    assert not (tmp_path / "cache").exists()


def test_shots_and_a_folder_without_rows_are_refused(tmp_path: Path) -> None:
    config = config_of("fpb")
    with pytest.raises(ConfigError, match=r"evaluation\.shots is not for harness tasks"):
        write_tasks(tmp_path, replace(config, evaluation=replace(config.evaluation, shots=2)))
    with pytest.raises(UserError, match="No benchmark has rows: fpb"):
        write_tasks(tmp_path, config_of("fpb", source="finlora", root=str(tmp_path)))


def test_the_command_replaces_no_file_of_others_and_wants_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "processing.py").write_text("mine")
    with pytest.raises(UserError, match="has other files already"):
        harness(tmp_path, None, ["dataset=sample", "evaluation.benchmarks=[fpb]"])
    assert (tmp_path / "processing.py").read_text() == "mine"
    with pytest.raises(UserError, match=r"has no adapter_config\.json"):
        harness(tmp_path / "tasks", tmp_path, ["dataset=sample", "evaluation.benchmarks=[fpb]"])
    for _ in range(2):  # its own folder is written again
        assert harness(tmp_path / "tasks", None, ["dataset=sample", "evaluation.benchmarks=[fpb]"]) == 0


def test_the_command_prints_what_is_left_out_and_how_the_harness_is_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows")
    words = ["dataset=finlora", f"dataset.root={rows}", "evaluation.benchmarks=[fpb,formula]", "model=tiny-random"]
    adapter = tmp_path / "some adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert main(["harness", str(tmp_path / "tasks"), "--adapter", str(adapter), *words]) == 0
    task, left_out, command = capsys.readouterr().out.splitlines()
    assert task == "fedfinlora_fpb: 6 rows"
    assert left_out.startswith("formula is left out: ")
    said = shlex.split(command)
    assert said[:3] == ["lm_eval", "--model", "hf"]
    assert said[4].endswith(f",peft={adapter}")
    run = tmp_path / "run"
    (run / "adapters").mkdir(parents=True)
    (run / "adapters" / "final").symlink_to(adapter)
    assert main(["harness", str(tmp_path / "tasks"), "--adapter", str(run), *words]) == 0
    assert capsys.readouterr().out.splitlines()[-1].count(f",peft={run}/adapters/final") == 1
    (tmp_path / "file").write_text("")
    assert main(["harness", str(tmp_path / "file"), *words]) == 1
