"""A run resumes with the data, code, base model and packages that it began with, or says item by item what differs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import overrides, write_rows

import fedfinlora.run.folder
from fedfinlora.cli import main
from fedfinlora.commands.simulate import prepare
from fedfinlora.compose import compose
from fedfinlora.errors import UserError
from fedfinlora.model.embedded import TINY_RANDOM, embedded_folder
from fedfinlora.report.reading import read_run
from fedfinlora.run.folder import read_config
from fedfinlora.run.resuming import check_same, resumed_words


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `centralized` run that was stopped after its first round, over rows and a model folder of its own."""
    import shutil

    import fedfinlora.commands.baselines as baselines

    rows = write_rows(tmp_path / "rows")
    shutil.copytree(embedded_folder(TINY_RANDOM), tmp_path / "model")
    train, calls = baselines._stretch, [0]

    def once(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return train(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(baselines, "_stretch", once)
        words = overrides(rows, tmp_path, f"model.path={tmp_path / 'model'}", "model.quantization=none", "peft=lora")
        assert main(["centralized", *words]) == 1
    assert (tmp_path / "run" / "state" / "round_0001.safetensors").is_file()
    return tmp_path / "run"


def manifest_edited(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = run / "manifest.json"
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def spoil_rows(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = run.parent / "rows" / "train" / "fpb_train.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line.replace("positive", "negative") for line in lines[: len(lines) // 2]) + "\n")


def spoil_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = run.parent / "model" / "config.json"
    file.write_text(file.read_text() + "\n")


def spoil_code(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment more in one file, as the manifest's hash of that file sees it."""
    manifest_edited(run, lambda values: values["source_files"].update({"fedfinlora/train/loop.py": "0" * 64}))


def spoil_package(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest_edited(run, lambda values: values["versions"].update({"torch": "2.0.0"}))


def spoil_config(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["train"]["learning_rate"] *= 2
    (run / "config.yaml").write_text(yaml.safe_dump(values))


SPOILS = {
    "config": (spoil_config, r"config\.yaml \(changed\)"),
    "data": (spoil_rows, r"data .*fpb_train\.jsonl \(changed\)"),
    "model": (spoil_model, r"base model config\.json \(changed\)"),
    "code": (spoil_code, r"code fedfinlora/train/loop\.py \(changed\)"),
    "package": (spoil_package, r"package torch \(2\.0\.0 -> "),
}


@pytest.mark.parametrize("what", list(SPOILS))
def test_what_differs_is_named_and_refused_unless_it_is_wanted(
    begun: Path, what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, says = SPOILS[what]
    spoil(begun, monkeypatch)
    lines = (begun / "rounds.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["centralized", f"resume={begun}"]) == 1
    error = capsys.readouterr().err
    assert "resume_anyway=true" in error

    assert re.search(says, error), error
    assert (begun / "rounds.jsonl").read_bytes() == lines
    assert main(["centralized", f"resume={begun}", "resume_anyway=true"]) == 0
    assert not read_config(begun).resume_anyway
    [sentence] = resumed_words(begun)
    assert re.search(says, sentence)
    assert "after round 1" in sentence
    assert sentence in read_run(begun).missing
    assert "with something else" in (begun / "report.html").read_text()


def test_what_is_the_same_resumes_without_a_word(begun: Path) -> None:
    assert main(["centralized", f"resume={begun}"]) == 0
    assert resumed_words(begun) == []


def test_simulate_says_it_before_anything_is_started(begun: Path) -> None:
    spoil_rows(begun, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"fpb_train\.jsonl \(changed\)"):
        prepare([f"resume={begun}"])
    assert prepare([f"resume={begun}", "resume_anyway=true"]).resume_anyway


def test_an_older_manifest_is_no_false_refusal(begun: Path, caplog: pytest.LogCaptureFixture) -> None:
    def older(values: dict[str, Any]) -> None:
        del values["model_files"], values["source_files"], values["versions"]["tokenizers"]

    manifest_edited(begun, older)
    data = json.loads((begun / "manifest.json").read_text())["data_sha256"]
    assert check_same(begun, read_config(begun), data) == []
    assert [record.message for record in caplog.records if "base model" in record.message]
    manifest_edited(begun, lambda values: values.update(source_sha256="0" * 64))
    with pytest.raises(UserError, match=r"code \(some file\) \(changed\)"):
        check_same(begun, read_config(begun), data)


def test_an_evaluation_resumes_with_the_adapter_that_it_began_with(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["centralized", f"resume={begun}"]) == 0
    adapter = begun / "adapters" / "final"
    words = [
        word
        for word in overrides(tmp_path / "rows", tmp_path, name="scores")
        if not word.startswith(("evaluation=", "model="))
    ]
    words += [
        f"model.path={tmp_path / 'model'}",
        "model.quantization=none",
        "evaluation.benchmarks=[fpb]",
        "evaluation.limit=2",
    ]
    assert main(["evaluate", "--adapter", str(adapter), *words]) == 0
    assert main(["evaluate", f"resume={tmp_path / 'scores'}"]) == 0
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    capsys.readouterr()
    assert main(["evaluate", f"resume={tmp_path / 'scores'}"]) == 1
    assert "adapter final/adapter_model.safetensors (changed)" in capsys.readouterr().err
    assert main(["evaluate", f"resume={tmp_path / 'scores'}", "resume_anyway=true"]) == 0
    assert len(resumed_words(tmp_path / "scores")) == 1


def test_the_manifest_names_every_source_file(begun: Path) -> None:
    values = json.loads((begun / "manifest.json").read_text())
    assert values["source_files"] == fedfinlora.run.origin.source_files()
    assert "config.json" in values["model_files"]
    assert compose([]).resume_anyway is False
