"""Evaluations from end to end: killed or not, together or alone, asked once or twice, the scores are the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import EOS, random_adapter, tiny_config
from evaluations import (
    Said,
    assert_same,
    cost_of,
    files_of,
    folder_of_rows,
    fpb_config,
    fpb_rows,
    lines_in,
    metrics_of,
    records_of,
    scored,
    words_for,
)  # fmt: skip
from tiny_runs import result_of

from benchmarks.benches.evaluate import products_flop
from data.catalog import BENCHMARKS
from data.encode import encode_prompts
from eval import models
from eval.answers import read_answers
from eval.decoding.generation import Answer, Generated
from eval.decoding.plain_generation import generate_plainly
from eval.evaluate import OnEvent, evaluate, evaluate_models
from eval.models import LocalModel, Model
from eval.rows import EvaluationRows
from fedfinlora.cli import main
from fedfinlora.config.evaluation import EvaluationConfig
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model.adapter import save_adapter
from fedfinlora.model.loading import Session, get_session, initial_adapter
from fedfinlora.run.typed import to_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_rows(tmp_path_factory.mktemp("rows"))


def evaluated(
    models: Mapping[str, Model], config: Config, run: Path, chosen_rows: EvaluationRows, on_event: OnEvent | None = None
) -> dict[str, dict[str, Any]]:
    """metrics.json by label."""
    return {
        label: to_json(found) for label, found in evaluate_models(models, config, run, on_event, chosen_rows).items()
    }


@dataclass
class Asked:
    """What the model was asked: the prompts of every call of `generate`, and how often labels were compared."""

    prompts: list[tuple[int, ...]] = field(default_factory=list)
    labelled: list[tuple[int, ...]] = field(default_factory=list)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    noted = Asked()
    generate, label_logprobs = models.generate, models.label_logprobs

    def noting(model: Any, prompts: Any, *arguments: Any, **options: Any) -> Generated:
        noted.prompts += prompts
        return generate(model, prompts, *arguments, **options)

    def noting_labels(model: Any, prompts: Any, *arguments: Any) -> list[list[float]]:
        noted.labelled += prompts
        return label_logprobs(model, prompts, *arguments)

    monkeypatch.setattr(models, "generate", noting)
    monkeypatch.setattr(models, "label_logprobs", noting_labels)
    return noted


# --- killed and gone on with ----------------------------------------------------------------------


def kill_in_the_middle(words: Sequence[str], partial: Path, lines: int) -> None:
    """Start an evaluation as a person does and end it with SIGKILL once `partial` holds so many lines."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "fedfinlora", "evaluate", *words], cwd=ROOT, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while lines_in(partial) < lines:
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def many_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_rows(tmp_path_factory.mktemp("many"), fpb=30, formula=12)


@pytest.fixture(scope="module")
def undisturbed(many_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = words_for(
        many_rows, tmp_path_factory.mktemp("undisturbed"), "evaluation.reuse=false", "evaluation.mode=both"
    )
    return scored(words)


@pytest.mark.parametrize(("reuse", "benchmark", "what"), [("true", "formula", "text"), ("false", "fpb", "labels")])
def test_a_killed_evaluation_resumes_to_the_same_result(
    many_rows: Path, undisturbed: Path, tmp_path: Path, asked: Asked, reuse: str, benchmark: str, what: str
) -> None:
    """By resume and by the same command; no row is lost, asked twice or scored twice."""
    words = words_for(many_rows, tmp_path, f"evaluation.reuse={reuse}", "evaluation.mode=both")
    run = tmp_path / "run"
    partial = run / "eval" / "base" / f"{benchmark}.{what}.partial"
    kill_in_the_middle([*words, "evaluation.cache_gib=1e-9"], partial, 4)
    assert not (run / "eval" / "base" / "metrics.json").exists()
    kept = {file.name: lines_in(file) - 1 for file in partial.parent.glob("*.partial")}
    texts_kept = sum(lines for name, lines in kept.items() if ".text." in name)
    labels_kept = sum(lines for name, lines in kept.items() if ".labels." in name)
    assert 0 < texts_kept < 45
    with open(partial, "ab") as stream:
        stream.write(b'{"prompt": "cut o')

    scored([f"resume={run}", *words])
    assert_same(run, undisturbed)
    assert len(asked.prompts) == len(set(asked.prompts)) == 45 - texts_kept
    assert len(asked.labelled) == len(set(asked.labelled)) == 30 - labels_kept
    assert cost_of(run)["reused"] == texts_kept + labels_kept
    assert result_of(run)["status"] == "completed"
    assert result_of(run)["scores"] == result_of(undisturbed)["scores"]
    ids = [record["id"] for key in ("fpb", "formula", "xbrl_finer") for record in records_of(run, key)]
    assert len(ids) == len(set(ids)) == 45

    asked.prompts.clear()
    again = scored([word.replace("=run", "=again") for word in words])
    assert_same(again, undisturbed)
    assert len(asked.prompts) == (45 if reuse == "false" else 0)


def test_the_same_command_resumes_from_the_answers_of_a_killed_one(
    many_rows: Path, undisturbed: Path, tmp_path: Path, asked: Asked
) -> None:
    """The answers that a killed process leaves, cut where it was killed, without its run's folder."""
    words = words_for(many_rows, tmp_path, "evaluation.mode=both")
    scored(words)
    total = len(asked.prompts)
    for file in (tmp_path / "answers").iterdir():
        content = file.read_bytes()
        file.write_bytes(content[: len(content) * 2 // 3])
    kept = sum(len(read_answers(file)) for file in (tmp_path / "answers").iterdir())
    shutil.rmtree(tmp_path / "run")
    asked.prompts.clear()
    asked.labelled.clear()
    run = scored(words)
    assert_same(run, undisturbed)
    assert 0 < len(asked.prompts) < total
    assert cost_of(run)["reused"] == kept
    assert len(asked.prompts) + len(asked.labelled) + kept == 45 + 30


def test_an_interrupted_evaluation_says_how_to_resume(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generate = models.generate

    def interrupted(*arguments: Any, on_answer: Any, **options: Any) -> Generated:
        reported: list[int] = []

        def on_answer_or_ctrl_c(number: int, answer: Answer) -> None:
            on_answer(number, answer)
            reported.append(number)
            if len(reported) == 5:
                raise KeyboardInterrupt

        return generate(*arguments, on_answer=on_answer_or_ctrl_c, **options)

    monkeypatch.setattr(models, "generate", interrupted)
    words = words_for(rows, tmp_path, "evaluation.reuse=false")
    assert main(["evaluate", *words]) == 1
    run = tmp_path / "run"
    assert f"evaluate resume={run}" in capsys.readouterr().err
    assert result_of(run)["status"] == "stopped"
    monkeypatch.setattr(models, "generate", generate)
    scored([f"resume={run}"])
    assert cost_of(run)["reused"] == 5
    assert result_of(run)["status"] == "completed"


# --- resume takes what the run was about ----------------------------------------------------------


def adapter_folder(folder: Path, seed: int, **values: Any) -> Path:
    """A random adapter in a PEFT folder."""
    config = replace(
        tiny_config(),
        peft=PeftConfig(**{"dropout": 0.0, "rank": 4, "alpha": 8, "target_modules": ("q_proj",), **values}),
    )
    session = get_session(config)
    vector = initial_adapter(session, config) + random_adapter(session.layout.size, seed)
    folder.mkdir(parents=True)
    save_adapter(folder, vector, session.layout, config.peft, config.model)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two of one kind, one of another method and rank."""
    root = tmp_path_factory.mktemp("adapters")
    return {
        "one": adapter_folder(root / "one", 1),
        "two": adapter_folder(root / "two", 2),
        "three": adapter_folder(root / "three", 3, method="dora", rank=2, target_modules=("q_proj", "v_proj")),
    }


def test_resume_keeps_settings_of_the_adapter_that_were_typed(
    rows: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    typed = ("peft.rank=4", "peft.alpha=64", "peft.target_modules=[q_proj]", "evaluation.reuse=false")
    words = words_for(rows, tmp_path, *typed, benchmarks="fpb")
    run = scored(words, "--adapter", str(adapters["one"]))
    before = files_of(run, "final")
    assert metrics_of(run, "final")["model"]["alpha"] == "64"
    scored([f"resume={run}"])
    assert files_of(run, "final") == before
    scored([f"resume={run}", *words], "--adapter", str(adapters["one"]))
    assert files_of(run, "final") == before


@pytest.mark.parametrize("typed", [(), ("peft.dropout=0",), ("model.quantization=none",)])
def test_an_adapters_own_settings_win_over_typed_ones(rows: Path, tmp_path: Path, typed: tuple[str, ...]) -> None:
    folder = adapter_folder(tmp_path / "large-alpha", 1, alpha=64, method="rslora")
    run = scored(words_for(rows, tmp_path, *typed, benchmarks="fpb"), "--adapter", str(folder))
    model = metrics_of(run, "final")["model"]
    assert (model["alpha"], model["rank"], model["method"]) == ("64", "4", "rslora")


def test_a_typed_setting_that_the_adapter_contradicts_is_refused(
    rows: Path, adapters: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for word, says_what in (("peft.rank=8", "peft.rank=4 (here 8)"), ("peft=dora", "peft.method=lora (here dora)")):
        words = words_for(rows, tmp_path, word, benchmarks="fpb")
        assert main(["evaluate", "--adapter", str(adapters["one"]), *words]) == 2
        assert says_what in capsys.readouterr().err


def test_resume_takes_adapters_from_the_run_or_equal_ones_as_arguments(
    rows: Path, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = words_for(rows, tmp_path, benchmarks="fpb")
    options = ("--adapter", str(adapters["three"]), "--base")
    run = scored(words, *options)
    before = files_of(run, "final"), files_of(run, "base")
    monkeypatch.setattr(models, "generate", None)
    monkeypatch.chdir(adapters["three"].parent)
    for more in ([], words):
        for given in ((), options, ("--adapter", "three", "--base")):
            scored([f"resume={run}", *more], *given)
            assert (files_of(run, "final"), files_of(run, "base")) == before


def test_resume_refuses_other_models_other_settings_and_other_folders(
    rows: Path, adapters: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_for(rows, tmp_path, benchmarks="fpb")
    run = scored(words)
    for arguments, says_what in (
        (["--adapter", str(adapters["one"]), f"resume={run}"], "is about other models"),
        ([f"resume={run}", *words, "evaluation.mode=both"], "evaluation.mode: generate -> both"),
        ([f"resume={tmp_path}"], "is not a run's folder"),
    ):
        assert main(["evaluate", *arguments]) == 1
        assert says_what in capsys.readouterr().err
    (run / "state" / "evaluate.json").unlink()
    assert main(["evaluate", f"resume={run}"]) == 1
    assert "is not the folder of an evaluation" in capsys.readouterr().err


# --- asked once -----------------------------------------------------------------------------------


def test_what_a_model_has_answered_is_not_asked_again_in_another_run(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = words_for(rows, tmp_path, "evaluation.mode=both")
    first = scored(words)
    assert cost_of(first)["reused"] == 0
    monkeypatch.setattr(models, "generate", None)
    monkeypatch.setattr(models, "label_logprobs", None)
    second = scored([word.replace("=run", "=second") for word in words])
    assert files_of(second) == files_of(first)
    cost = cost_of(second)
    assert cost["reused"] == 24 + 24 + 6 + 3, "texts and labels of fpb, texts of the others"
    assert cost["tokens"] == {"prompts": 0, "read": 0, "written": 0}
    fewer = scored(
        [word.replace("=run", "=fewer") for word in words] + ["evaluation.limit=2", "evaluation.mode=labels"]
    )
    assert cost_of(fewer)["reused"] == 2


def test_without_reuse_nothing_is_kept_or_taken(rows: Path, tmp_path: Path, asked: Asked) -> None:
    words = words_for(rows, tmp_path, "evaluation.reuse=false", benchmarks="fpb")
    first = scored(words)
    second = scored([word.replace("=run", "=second") for word in words])
    assert files_of(second) == files_of(first)
    assert len(asked.prompts) == 2 * 24
    assert not (tmp_path / "answers").exists()


def test_no_partial_file_is_left_behind(rows: Path, tmp_path: Path) -> None:
    run = scored(words_for(rows, tmp_path, "evaluation.mode=both"))
    assert sorted(files_of(run)) == ["formula.jsonl", "fpb.jsonl", "metrics.json", "xbrl_finer.jsonl"]


def test_equal_prompts_are_asked_once_and_scored_each(tmp_path: Path) -> None:
    rows = fpb_rows(("a", "positive"), ("b", "negative"), ("a", "neutral"), ("a", "positive"))
    model = Said({"a": "positive", "b": "positive"})
    events: list[int] = []
    metrics = evaluated(
        {"base": model},
        fpb_config(),
        tmp_path,
        rows,
        lambda event: events.append(getattr(event, "rows_done", -1)),
    )["base"]
    assert model.calls == ["a", "b"]
    assert metrics["scores"]["fpb"]["n"] == 4
    assert metrics["scores"]["fpb"]["accuracy"] == 0.5
    assert metrics["reused"] == 0
    assert [done for done in events if done >= 0] == [0, 3, 4]


def test_answers_stay_out_of_the_users_home(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the default, too, of a configuration that never went through the command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = replace(fpb_config(), evaluation=EvaluationConfig(benchmarks=("fpb",)))
    evaluated({"base": Said({"a": "positive"})}, config, tmp_path / "run", chosen_rows=fpb_rows(("a", "positive")))
    assert len(list((tmp_path / "home" / ".fedfinlora" / "answers").iterdir())) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "run"]


# --- several models in one run --------------------------------------------------------------------


def test_several_models_in_one_run_give_what_each_gives_alone(
    rows: Path, adapters: dict[str, Path], tmp_path: Path, asked: Asked
) -> None:
    words = words_for(
        rows, tmp_path, "evaluation.mode=both", "evaluation.reuse=false", "evaluation.shots=1", benchmarks="fpb,formula"
    )
    options = [word for folder in adapters.values() for word in ("--adapter", str(folder))]
    together = scored(words, *options, "--base")
    assert {folder.name for folder in (together / "eval").iterdir()} == {"base", "one", "two", "three"}
    outputs = set()
    for label in ("base", *adapters):
        more = [word.replace("=run", f"={label}") for word in words]
        alone = scored(more, *(("--adapter", str(adapters[label])) if label in adapters else ()))
        own = "final" if label in adapters else "base"
        expected = files_of(alone, own)
        found = files_of(together, label)
        metrics = json.loads(expected.pop("metrics.json")) | {"label": label}
        assert json.loads(found.pop("metrics.json")) == metrics
        assert found == expected
        assert result_of(together)["scores"][label] == result_of(alone)["scores"][own]
        outputs.add(found["fpb.jsonl"])
    assert len(outputs) == 4


def test_adapters_that_compute_the_same_share_their_answers(
    rows: Path, adapters: dict[str, Path], tmp_path: Path, asked: Asked
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(adapters["one"], copy)
    words = words_for(rows, tmp_path, benchmarks="fpb")
    run = scored(words, "--adapter", str(adapters["one"]), "--adapter", str(copy))
    assert len(asked.prompts) == 24
    assert cost_of(run, "copy")["reused"] == 24
    assert records_of(run, "fpb", "one") == records_of(run, "fpb", "copy")


# --- examples -------------------------------------------------------------------------------------


def test_shots_change_every_prompt_and_are_the_same_for_all_rows(
    rows: Path, adapters: dict[str, Path], tmp_path: Path, asked: Asked
) -> None:
    options = ("--adapter", str(adapters["one"]), "--base")
    plain = scored(words_for(rows, tmp_path, benchmarks="fpb"), *options)
    plain_prompts = set(asked.prompts)
    asked.prompts.clear()
    shot = scored(words_for(rows, tmp_path, "evaluation.shots=2", benchmarks="fpb", name="shot"), *options)
    assert (metrics_of(plain)["shots"], metrics_of(shot)["shots"]) == (0, 2)
    assert Counter(Counter(asked.prompts).values()) == {2: 24}, "each prompt by both models"
    assert not plain_prompts & set(asked.prompts)
    assert len({prompt[:60] for prompt in asked.prompts}) == 1
    assert {tuple(prompt[-20:]) for prompt in asked.prompts} == {prompt[-20:] for prompt in plain_prompts}
    hashes = {
        label: [record["prompt_sha256"] for record in records_of(shot, "fpb", label)] for label in ("base", "final")
    }
    assert hashes["base"] == hashes["final"]
    assert set(hashes["base"]).isdisjoint(record["prompt_sha256"] for record in records_of(plain, "fpb"))
    assert cost_of(shot)["tokens"]["read"] < cost_of(shot)["tokens"]["prompts"] / 2, "examples are read once"


def test_a_benchmark_without_examples_is_skipped_and_too_few_are_reported(rows: Path, tmp_path: Path) -> None:
    run = scored(words_for(rows, tmp_path, "evaluation.shots=20", benchmarks="fpb,formula"))
    metrics = metrics_of(run)
    assert set(metrics["scores"]) == {"fpb"}
    assert "evaluation.shots=20" in metrics["skipped"]["formula"]
    assert "of 20 examples" in metrics["shortages"]["fpb"]


# --- labels ---------------------------------------------------------------------------------------


def test_generated_answers_and_compared_labels_are_never_mixed(rows: Path, tmp_path: Path, asked: Asked) -> None:
    runs = {
        mode: scored(
            words_for(
                rows, tmp_path, f"evaluation.mode={mode}", "evaluation.reuse=false", benchmarks="fpb,formula", name=mode
            )
        )
        for mode in ("generate", "labels", "both")
    }
    scores = {mode: metrics_of(run)["scores"] for mode, run in runs.items()}
    assert set(scores["generate"]) == set(scores["both"]) == {"fpb", "formula"}
    assert set(scores["labels"]) == {"fpb"}
    assert "no closed label set" in metrics_of(runs["labels"])["skipped"]["formula"]
    assert scores["both"]["formula"] == scores["generate"]["formula"]
    written = {name for name in scores["generate"]["fpb"] if name not in ("n", "too_long")}
    chosen = {name for name in scores["labels"]["fpb"] if name not in ("n", "too_long")}
    assert not written & chosen
    assert {name.startswith("labels_") for name in chosen} == {True}
    assert scores["both"]["fpb"] == scores["generate"]["fpb"] | scores["labels"]["fpb"]
    for mode, run in runs.items():
        for record in records_of(run, "fpb"):
            assert (record["output"] is None) == (mode == "labels")
            assert ("label_choice" in record) == (mode != "generate")
            if mode != "generate":
                assert record["label_choice"] == max(record["label_logprobs"], key=record["label_logprobs"].get)
    assert [r["label_choice"] for r in records_of(runs["both"], "fpb")] == [
        r["label_choice"] for r in records_of(runs["labels"], "fpb")
    ]
    assert len(asked.labelled) == 2 * 24
    assert len(asked.prompts) == 2 * 30


def test_only_open_benchmarks_leave_nothing_to_compare(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["evaluate", *words_for(rows, tmp_path, "evaluation.mode=labels", benchmarks="formula,xbrl_finer")]) == 1
    )
    assert "Nothing was scored: evaluation.mode=labels" in capsys.readouterr().err
    assert result_of(tmp_path / "run")["status"] == "failed"


def test_labels_score_by_the_most_probable_one(tmp_path: Path) -> None:
    rows = fpb_rows(("a", "positive"), ("b", "negative"))
    likely = {"negative": -3.0, "neutral": -2.0, "positive": -1.0}
    model = Said({}, {"a": likely, "b": likely})
    scores = evaluated({"base": model}, fpb_config(mode="labels"), tmp_path, chosen_rows=rows)["base"]["scores"]["fpb"]
    assert scores["labels_accuracy"] == 0.5
    assert "accuracy" not in scores
    assert "finlora_accuracy" not in scores


# --- few rows, one class, nothing readable --------------------------------------------------------


def test_no_rows_are_no_score(tmp_path: Path) -> None:
    config = fpb_config()
    (metrics,) = evaluated(
        {"base": Said({})}, config, tmp_path, chosen_rows=EvaluationRows({}, {"fpb": "none"}, {}, False)
    ).values()
    assert (metrics["scores"], metrics["skipped"]) == ({}, {"fpb": "none"})
    assert metrics["rows_per_s"] is None
    assert metrics["finlora_overall"]["value"] is None


@pytest.mark.parametrize(("said", "right"), [("positive", 1.0), ("negative", 0.0), ("", 0.0)])
def test_one_row(tmp_path: Path, said: str, right: float) -> None:
    scores = evaluated({"base": Said({"a": said})}, fpb_config(), tmp_path, chosen_rows=fpb_rows(("a", "positive")))
    fpb = scores["base"]["scores"]["fpb"]
    assert (fpb["n"], fpb["accuracy"], fpb["finlora_accuracy"]) == (1, right, right)
    assert fpb["unparsed"] == (said == "")


def test_rows_of_one_class(tmp_path: Path) -> None:
    rows = fpb_rows(*((str(number), "neutral") for number in range(4)))
    model = Said(dict(zip("0123", ["neutral", "neutral", "positive", "I see"], strict=True)))
    fpb = evaluated({"base": model}, fpb_config(), tmp_path, chosen_rows=rows)["base"]["scores"]["fpb"]
    assert (fpb["accuracy"], fpb["unparsed"], fpb["matthews"]) == (0.5, 1, None)


def test_nothing_readable_is_counted_and_wrong(tmp_path: Path) -> None:
    rows = fpb_rows(("a", "positive"), ("b", "negative"))
    fpb = evaluated({"base": Said({"a": "?", "b": ""})}, fpb_config(), tmp_path, chosen_rows=rows)["base"]["scores"][
        "fpb"
    ]
    assert (fpb["unparsed"], fpb["unparsed_share"], fpb["accuracy"], fpb["too_long"]) == (2, 1.0, 0.0, 0)
    json.dumps(fpb, allow_nan=False)


def test_lone_surrogates_in_an_answer_are_written_and_read(tmp_path: Path) -> None:
    rows = fpb_rows(("a", "positive"))
    config = replace(
        fpb_config(), evaluation=EvaluationConfig(benchmarks=("fpb",), answers_dir=str(tmp_path / "answers"))
    )
    for name in ("first", "second"):
        model = Said({"a": "positive \ud83d\u2028"})
        evaluated({"base": model}, config, tmp_path / name, chosen_rows=rows)
        assert len(model.calls) == (name == "first")
    assert (tmp_path / "first/eval/base/fpb.jsonl").read_bytes() == (
        tmp_path / "second/eval/base/fpb.jsonl"
    ).read_bytes()


# --- prompts that do not fit ----------------------------------------------------------------------


@pytest.fixture
def long_rows() -> EvaluationRows:
    return fpb_rows(("up? ", "positive"), ("x" * 51, "positive"), ("y" * 50, "neutral"), ("down? ", "negative"))


@pytest.mark.parametrize("mode", ["generate", "both", "labels"])
def test_prompts_longer_than_the_window_are_counted_and_not_cut(
    tiny: Session, tmp_path: Path, asked: Asked, long_rows: EvaluationRows, mode: str
) -> None:
    """The budget has to fit into the window too: 60 - 10 tokens are left for a prompt."""
    config = fpb_config(mode=mode)
    config = replace(config, model=replace(config.model, context_tokens=60))
    metrics = to_json(evaluate(tiny, config, "base", tmp_path, chosen_rows=long_rows))
    fpb = metrics["scores"]["fpb"]
    assert (fpb["n"], fpb["too_long"]) == (4, 1)
    fitting = encode_prompts(tiny.tokenizer, ["up? ", "y" * 50, "down? "])
    assert asked.prompts == ([] if mode == "labels" else fitting)
    assert asked.labelled == ([] if mode == "generate" else fitting)
    records = records_of(tmp_path, "fpb")
    assert [record.get("too_long", False) for record in records] == [False, True, False, False]
    if mode != "labels":
        expected = [tiny.tokenizer.decode(tokens) for tokens in generate_plainly(tiny.model, fitting, 10, [EOS])]
        assert [record["output"] for record in records] == [expected[0], "", *expected[1:]]
    if mode != "generate":
        assert ["label_choice" not in record for record in records] == [False, True, False, False]


def test_rows_that_are_all_too_long_are_all_wrong(tiny: Session, tmp_path: Path, long_rows: EvaluationRows) -> None:
    config = replace(fpb_config(), model=replace(tiny_config().model, context_tokens=11))
    fpb = to_json(evaluate(tiny, config, "base", tmp_path, chosen_rows=long_rows))["scores"]["fpb"]
    assert (fpb["n"], fpb["too_long"], fpb["accuracy"], fpb["unparsed"]) == (4, 4, 0.0, 4)


# --- the check against plain decoding -------------------------------------------------------------


def test_checked_rows_do_not_differ(rows: Path, tmp_path: Path) -> None:
    run = scored(words_for(rows, tmp_path, "evaluation.check_rows=4"))
    for key, checked in (("fpb", 4), ("formula", 4), ("xbrl_finer", 3)):
        assert metrics_of(run)["scores"][key]["decoding"] == {"rows_checked": checked, "rows_differ": 0}


def test_rows_that_differ_are_found(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Any, prompts: Sequence[Any], *arguments: Any, on_answer: Any, **options: Any) -> Generated:
        for number in range(len(prompts)):
            on_answer(number, Answer((70 + number,), ("end", "settled")[number % 2]))
        return Generated((), 0, 0, 0, 0)

    monkeypatch.setattr(models, "generate", wrong)
    run = scored(words_for(rows, tmp_path, "evaluation.check_rows=24", "evaluation.reuse=false", benchmarks="fpb"))
    decoding = metrics_of(run)["scores"]["fpb"]["decoding"]
    assert decoding["rows_checked"] == 24
    assert decoding["rows_differ"] >= 22


def test_a_row_that_stopped_early_agrees_with_its_full_answer(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = models.generate

    def early(*arguments: Any, stops_early: Any, **options: Any) -> Generated:
        return generate(*arguments, stops_early=lambda number, tokens, left: len(tokens) == 3, **options)

    monkeypatch.setattr(models, "generate", early)
    monkeypatch.setattr(models.StoppingRule, "stops", lambda *arguments: False)
    words = words_for(rows, tmp_path, "evaluation.check_rows=24", "evaluation.reuse=false", benchmarks="fpb")
    run = scored(words)
    assert {record["stopped"] for record in records_of(run, "fpb")} == {"settled"}
    differ = metrics_of(run)["scores"]["fpb"]["decoding"]["rows_differ"]
    broken = sum(record["output"].endswith("\ufffd") for record in records_of(run, "fpb"))
    assert differ <= broken, "only half a character at the end is no beginning of the whole text"


# --- names, faults, costs -------------------------------------------------------------------------


def test_adapters_with_equal_names_get_longer_names(rows: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    folders = [tmp_path / run / "adapters" / "final" for run in ("north", "south")]
    for folder, name in zip(folders, ("one", "two"), strict=True):
        shutil.copytree(adapters[name], folder)
    options = [word for folder in folders for word in ("--adapter", str(folder))]
    run = scored(words_for(rows, tmp_path, benchmarks="fpb"), *options, "--adapter", str(folders[0]))
    assert {folder.name for folder in (run / "eval").iterdir()} == {"north-final", "south-final"}


def test_answers_that_cannot_be_kept_are_refused_in_one_line(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "answers").write_text("in the way")
    assert main(["evaluate", *words_for(rows, tmp_path, benchmarks="fpb")]) == 2
    assert re.search(r"evaluation\.answers_dir=.*answers.* is a file, not a folder", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_broken_answer_of_a_callback_is_not_swallowed(tmp_path: Path) -> None:
    class Refuses(Said):
        def generate(self, *arguments: Any) -> None:
            raise UserError("no")

    with pytest.raises(UserError, match="no"):
        evaluated({"base": Refuses({"a": ""})}, fpb_config(), tmp_path, chosen_rows=fpb_rows(("a", "positive")))


# --- the benchmark of the evaluator ---------------------------------------------------------------


@pytest.mark.slow
def test_bench_evaluate_writes_the_ratio_and_finds_no_difference(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"
    words = words_for(rows, tmp_path, "evaluation.limit=6", benchmarks="fpb,formula")
    assert main(["bench", "evaluate", *words, "--json", str(file)]) == 0
    figures = json.loads(file.read_text("utf-8"))
    assert {"bench", "ratio", "ours", "reference", "differs", "machine"} <= set(figures)
    assert figures["bench"] == "evaluate"
    assert figures["ratio"] > 0
    assert figures["ratio"] == pytest.approx(figures["ours"]["rows_per_s"] / figures["reference"]["rows_per_s"])
    assert figures["differs"] == {"outputs": 0, "row_by_row": 0, "of": 12}
    assert figures["rows"] == 12
    for one in figures["benchmarks"].values():
        assert 0 < one["products_s_per_row"] < one["ours_s_per_row"]
    assert json.loads(capsys.readouterr().out[len("classification") :].split("\n", 1)[1])["bench"] == "evaluate"


def test_qlora_and_lora_on_the_same_base_are_one_model_to_the_kept_answers() -> None:
    """A run's own answers (peft=qlora) are found again when its folder, which says LoRA, is evaluated."""
    identities = []
    for method in ("lora", "qlora"):
        config = tiny_config("nf4", method)
        session = get_session(config)
        identities.append(dict(LocalModel(session, config, random_adapter(session.layout.size)).identity))
    assert identities[0] == identities[1]


def test_products_of_a_token_are_twice_the_weights_that_it_meets() -> None:
    """The tiny model's layers, one by one by its configuration: q, k, v, o, gate, up, down, and rank-r pairs on the
    adapted ones.
    """
    config = fpb_config()
    session = get_session(config)
    shape = session.model.config
    hidden, inner, layers = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    width = hidden // shape.num_attention_heads
    keys = width * shape.num_key_value_heads
    weights = layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner)
    assert products_flop(session) == (2.0 * (weights + session.layout.size), 2.0 * hidden * shape.vocab_size)


def test_budgets_of_the_rows_above_are_the_benchmarks_own() -> None:
    """The tests rely on short ones."""
    assert (BENCHMARKS["fpb"].budget_tokens, BENCHMARKS["formula"].budget_tokens) == (10, 50)
