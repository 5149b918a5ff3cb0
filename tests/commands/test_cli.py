"""The command line with everything that a person may get wrong: one clear line on stderr, a true exit status, no
traceback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from powers import as_an_ordinary_user
from tiny_runs import SCORED, adapter_bytes, overrides, result_of, write_lines, write_rows

from fedfinlora.cli import main
from fedfinlora.commands.simulate import prepare
from fedfinlora.compose import compose
from fedfinlora.deployment.simulated_banks import crowded
from fedfinlora.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SCREEN_LINES, SCREEN_COLUMNS = 30, 80


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def trained(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    output = tmp_path_factory.mktemp("trained")
    assert main(["centralized", *overrides(rows, output, *SCORED)]) == 0
    return output / "run"


class Ending:
    """How a command ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def error(self) -> str:
        """The one line that says what is wrong."""
        assert "Traceback" not in self.err + self.out
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert self.err.rstrip().splitlines()[-1] == lines[0].rstrip(), "the error is not the last that one sees"
        assert 20 < len(lines[0]) < 600, lines[0]
        return lines[0]


Command = Callable[..., Ending]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process."""

    def call(*words: str) -> Ending:
        capsys.readouterr()
        try:
            status = main(list(words))
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        caught = capsys.readouterr()
        return Ending(status, caught.out, caught.err)

    return call


def process(*words: str, cwd: Path = ROOT, **environment: str) -> Ending:
    """Run a command as a person does."""
    done = subprocess.run(
        [sys.executable, "-m", "fedfinlora", *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": str(SCREEN_COLUMNS)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Ending(done.returncode, done.stdout, done.stderr)


class TestUsage:
    @pytest.mark.parametrize(
        "words",
        [
            pytest.param(words, id=" ".join(words))
            for words in (
                [],
                ["simulate"],
                ["centralized"],
                ["local"],
                ["evaluate"],
                ["report"],
                ["bench"],
                ["data"],
                ["data", "check"],
            )
        ],
    )
    def test_help_fits_a_screen(self, command: Command, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
        monkeypatch.setenv("COLUMNS", str(SCREEN_COLUMNS))
        ended = command(*words, "--help")
        assert ended.status == 0
        lines = ended.out.splitlines()
        assert 3 < len(lines) <= SCREEN_LINES
        assert max(map(len, lines)) <= SCREEN_COLUMNS
        assert "python -m fedfinlora" in lines[0]

    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["simulat"],
            ["simulate", "--bnaks", "2"],
            ["simulate", "--banks", "two"],
            ["report"],
            ["data"],
            ["data", "check"],
            ["data", "chek", "x"],
        ],
        ids=" ".join,
    )
    def test_bad_usage_is_status_2(self, command: Command, words: list[str]) -> None:
        ended = command(*words)
        assert ended.status == 2
        assert "usage: python -m fedfinlora" in ended.err
        assert "Traceback" not in ended.err

    def test_version(self, command: Command) -> None:
        ended = command("--version")
        assert ended.status == 0
        assert re.fullmatch(r"\d+\.\d+\.\d+\n", ended.out)


CONFIGURATION = {
    "unknown key": (["train.learning_rte=1"], r"train\.learning_rte.*learning_rate"),
    "unknown top key": (["rounds=3"], r"rounds.*(num_server_rounds|Groups)"),
    "unknown group": (["modle=tiny-random"], r"modle.*(model|Groups)"),
    "unknown option of a group": (["peft=lroa"], r"'lroa'.*dora, .*lora, .*lora_xs, .*qlora, rslora"),
    "unknown model": (["model=llama-9b"], r"llama-9b.*smollm2-135m"),
    "unknown experiment": (["experiment=demos"], r"demos.*demo, finlora, .*sentiment"),
    "unknown value": (["model.quantization=int4"], r"'int4'.*int8, nf4, none"),
    "unknown method": (["peft.method=adapter"], r"'adapter'.*dora, .*lora, .*lora_xs, .*qlora, rslora"),
    "unknown strategy": (["strategy.name=fedsgd"], r"fedsgd.*fedadam, .*fedavg, fedavgm"),
    "unknown weighting": (["strategy.weighting=loss"], r"loss.*equal, rows"),
    "unknown partition": (["partition=dirichlt"], r"dirichlt.*by_issuer, by_path, by_task, dirichlet, iid"),
    "unknown benchmark": (["evaluation.benchmarks=[fbp]"], r"fbp.*fpb"),
    "unknown task": (["dataset.tasks=[fbp]"], r"fbp.*fpb"),
    "unknown device": (["model.device=gpu"], r"'gpu'.*cuda"),
    "unknown embedded model": (["model.path=embedded:smollm3"], r"smollm3.*embedded:smollm2-135m"),
    "text for a number": (["num_server_rounds=three"], r"num_server_rounds.*int.*'three'"),
    "text for a fraction": (["train.learning_rate=fast"], r"train\.learning_rate.*float.*'fast'"),
    "a number for a switch": (["dataset.equalize_tasks=3"], r"dataset\.equalize_tasks.*bool.*3"),
    "nothing for a number": (["seed=null"], r"seed.*int"),
    "a value for a group": (["+train.x.y=3"], r"train\.x"),
    "zero rounds": (["num_server_rounds=0"], r"num_server_rounds.*1 or more.*0"),
    "zero banks": (["banks=0"], r"banks.*1 or more.*0"),
    "a seed below zero": (["seed=-1"], r"seed.*0 or more.*-1"),
    "a rate of zero": (["train.learning_rate=0"], r"train\.learning_rate.*above 0"),
    "a share above one": (["strategy.fraction_train=1.5"], r"strategy\.fraction_train.*1\.5"),
    "a quorum above the banks": (["strategy.quorum=3"], r"strategy\.quorum=3.*banks=2"),
    "qlora without nf4": (["peft=qlora", "model.quantization=int8"], r"qlora.*model\.quantization=nf4"),
    "finlora without a folder": (["dataset=finlora"], r"dataset\.root=FOLDER"),
    "no target modules": (["peft.target_modules=[]"], r"peft\.target_modules.*q_proj"),
    "no equals sign": (["foo"], r"key=value"),
    "unbalanced brackets": (["peft.target_modules=[q_proj"], r"q_proj.*[Qq]uote"),
    "a missing interpolation": (["seed=${nothing}"], r"nothing"),
    "fewer steps than rounds": (["train.max_steps=2", "num_server_rounds=3"], r"train\.max_steps=2.*3 rounds"),
}  # fmt: skip
"""Overrides on top of nothing -> what the line must say: the key, the value and what is valid."""


class TestConfiguration:
    @pytest.mark.parametrize("name", list(CONFIGURATION))
    def test_a_configuration_error_is_one_line_and_status_2(self, command: Command, tmp_path: Path, name: str) -> None:
        words, says = CONFIGURATION[name]
        quick = ["model=tiny-random", "evaluation=none", "train.steps_per_round=1", f"output_dir={tmp_path}"]
        ended = command("centralized", *quick, *words)
        assert re.search(says, ended.error), ended.error
        assert ended.status == 2
        assert not list(tmp_path.rglob("rounds.jsonl"))

    @pytest.mark.parametrize("name", ["simulate", "local", "evaluate"])
    def test_every_command_says_it(self, command: Command, name: str) -> None:
        ended = command(name, "train.learning_rte=1")
        assert "learning_rte" in ended.error
        assert ended.status == 2

    def test_the_process_says_it_too(self) -> None:
        ended = process("simulate", "train.learning_rte=1")
        assert ended.err.strip() == ended.error
        assert "learning_rate" in ended.error
        assert (ended.status, ended.out) == (2, "")

    def test_banks_on_the_command_line(self, command: Command) -> None:
        ended = command("simulate", "--banks", "0")
        assert "banks must be 1 or more" in ended.error
        assert ended.status == 2


def data_folder(tmp_path: Path, name: str) -> Path:
    """A folder with one thing wrong in its train rows; the test rows are sound."""
    folder = write_rows(tmp_path / "data", train=8)
    file = folder / "train" / "fpb_train.jsonl"
    good = file.read_text().splitlines()
    bad_line = {
        "not JSON": '{"context": "Say up. Answer:", ',
        "an array": '["Say up. Answer:", "up"]',
        "no context": '{"target": "up"}',
        "no target": '{"context": "Say up. Answer:"}',
        "an empty target": '{"context": "Say up. Answer:", "target": " "}',
        "an empty context": '{"context": "", "target": "up"}',
        "a context that is a number": '{"context": 5, "target": "up"}',
    }
    if name in bad_line:
        write_lines(file, [*good[:2], bad_line[name], *good[2:]])
    elif name == "too long":
        write_lines(file, [*good[:2], json.dumps({"context": "x" * 300 + " Answer:", "target": "up"}), *good[2:]])
    elif name == "empty file":
        file.write_text("")
    elif name == "not UTF-8":
        file.write_bytes(b"\xff\xfe\n")
    elif name == "a folder in its place":
        file.unlink()
        file.mkdir()
    elif name == "a dangling link":
        file.unlink()
        file.symlink_to(tmp_path / "gone")
    elif name == "no train file":
        file.unlink()
    elif name == "no file at all":
        shutil.rmtree(folder)
        folder.mkdir()
    elif name == "no folder":
        shutil.rmtree(folder)
    else:
        raise AssertionError(name)
    return folder


LINE_3 = (
    "not JSON",
    "an array",
    "no context",
    "no target",
    "an empty target",
    "an empty context",
    "a context that is a number",
)
UNUSABLE = {
    "empty file": r"fpb_train\.jsonl.*empty",
    "not UTF-8": r"fpb_train\.jsonl:1.*UTF-8",
    "a folder in its place": r"fpb_train\.jsonl.*cannot be read",
    "a dangling link": r"fpb_train\.jsonl.*cannot be read",
    "no train file": r"No train rows in .*data.*train/fpb_train\.jsonl",
    "no file at all": r"No train rows in .*data.*train/fpb_train\.jsonl",
    "no folder": r"dataset\.root .*data.*does not exist",
}


STEPS, ROWS_OF_STEP = 2 * 2 * 2, 4
"""Of two rounds of two steps at two banks that share 8 usable rows: a step of 100 rows takes the 4 on average that a
bank has, pooled or not.
"""


class TestRows:
    @pytest.mark.parametrize("name", LINE_3)
    def test_a_bad_row_stops_with_file_and_line(self, command: Command, tmp_path: Path, name: str) -> None:
        folder = data_folder(tmp_path, name)
        ended = command("centralized", *overrides(folder, tmp_path, "dataset.on_bad_row=stop"))
        assert "train/fpb_train.jsonl:3: " in ended.error
        assert "dataset.on_bad_row=skip" in ended.error
        assert ended.status == 1

    @pytest.mark.parametrize("name", LINE_3)
    def test_a_bad_row_is_skipped_and_the_others_are_trained_on(
        self, command: Command, tmp_path: Path, name: str
    ) -> None:
        folder = data_folder(tmp_path, name)
        ended = command("centralized", *overrides(folder, tmp_path, "train.batch_rows=100", "train.holdout_max_rows=0"))
        assert ended.status == 0
        assert result_of(tmp_path / "run")["rows_trained"] == STEPS * ROWS_OF_STEP

    def test_skipped_rows_are_counted(self, command: Command, tmp_path: Path) -> None:
        folder = data_folder(tmp_path, "not JSON")
        command("centralized", *overrides(folder, tmp_path))
        said = (tmp_path / "run" / "progress.jsonl").read_text() + (tmp_path / "run" / "result.json").read_text()
        assert re.search(r"1 (bad|unusable|skipped)|(bad|skipped)_rows\W+1", said)

    @pytest.mark.parametrize("name", UNUSABLE)
    def test_no_usable_rows_is_one_line(self, command: Command, tmp_path: Path, name: str) -> None:
        folder = data_folder(tmp_path, name)
        ended = command("centralized", *overrides(folder, tmp_path))
        assert re.search(UNUSABLE[name], ended.error), ended.error
        assert ended.status == 1

    @as_an_ordinary_user()
    def test_an_unreadable_file_is_one_line(self, command: Command, tmp_path: Path) -> None:
        folder = write_rows(tmp_path / "data")
        (folder / "train" / "fpb_train.jsonl").chmod(0)
        assert "cannot be read" in command("centralized", *overrides(folder, tmp_path)).error

    def test_a_row_longer_than_the_window_stops(self, command: Command, tmp_path: Path) -> None:
        folder = data_folder(tmp_path, "too long")
        more = ("model.context_tokens=100", "dataset.on_bad_row=stop")
        ended = command("centralized", *overrides(folder, tmp_path, *more))
        assert re.search(r"fpb/train/000002 has \d+ tokens.*100.*model\.context_tokens", ended.error), ended.error
        assert ended.status == 1

    def test_a_row_longer_than_the_window_is_skipped(self, command: Command, tmp_path: Path) -> None:
        folder = data_folder(tmp_path, "too long")
        more = ("model.context_tokens=100", "train.batch_rows=100", "train.holdout_max_rows=0")
        assert command("centralized", *overrides(folder, tmp_path, *more)).status == 0
        assert result_of(tmp_path / "run")["rows_trained"] == STEPS * ROWS_OF_STEP

    def test_no_row_fits_the_window(self, command: Command, tmp_path: Path, rows: Path) -> None:
        ended = command("centralized", *overrides(rows, tmp_path, "model.context_tokens=10"))
        assert "model.context_tokens" in ended.error
        assert ended.status == 1

    @pytest.mark.parametrize("name", ["centralized", "local"])
    def test_more_banks_than_rows(self, command: Command, tmp_path: Path, rows: Path, name: str) -> None:
        ended = command(name, *overrides(rows, tmp_path), "--banks", "25")
        assert re.search(r"more banks \(25\) than train rows \(24\)", ended.error)
        assert ended.status == 1

    @pytest.mark.parametrize("name", [*UNUSABLE, "not JSON", "more banks than rows"])
    def test_a_simulation_says_it_at_the_door(self, tmp_path: Path, name: str) -> None:
        """Before a SuperLink is started: from inside, a bank may only send a code."""
        folder = write_rows(tmp_path / "data") if name == "more banks than rows" else data_folder(tmp_path, name)
        words = [*overrides(folder, tmp_path / "out", "dataset.on_bad_row=stop"), "banks=25"]
        with pytest.raises(UserError, match=r"fpb_train|data|more banks"):
            prepare(words)


class TestOutput:
    @pytest.mark.parametrize("name", ["centralized", "local", "simulate", "evaluate"])
    def test_an_output_folder_below_a_file(self, command: Command, tmp_path: Path, rows: Path, name: str) -> None:
        (tmp_path / "file").write_text("in the way")
        ended = command(name, *overrides(rows, tmp_path / "file" / "runs", "evaluation.benchmarks=[fpb]"))
        assert re.search(r"Cannot write .*file/runs.*output_dir=FOLDER", ended.error), ended.error
        assert ended.status == 1

    @as_an_ordinary_user()
    def test_an_output_folder_that_may_not_be_written(self, command: Command, tmp_path: Path, rows: Path) -> None:
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "Cannot write" in command("centralized", *overrides(rows, tmp_path / "locked")).error

    @pytest.mark.parametrize("name", ["centralized", "simulate"])
    def test_an_earlier_run_is_not_overwritten(self, command: Command, trained: Path, rows: Path, name: str) -> None:
        before = adapter_bytes(trained)
        ended = command(name, *overrides(rows, trained.parent))
        assert re.search(r"run exists\. Resume it by resume=.*run_name=.*overwrite=true", ended.error), ended.error
        assert ended.status == 1
        assert adapter_bytes(trained) == before

    def test_overwrite_takes_no_folder_that_is_not_a_run(self, command: Command, tmp_path: Path, rows: Path) -> None:
        write_lines(tmp_path / "run" / "thesis.txt", ["years of work"])
        ended = command("centralized", *overrides(rows, tmp_path, "overwrite=true"))
        assert "not the folder of a run" in ended.error
        assert (tmp_path / "run" / "thesis.txt").is_file()

    @pytest.mark.parametrize("run_name", ["../escape", "a/b", "..", "."])
    def test_a_run_name_is_one_folder(self, command: Command, tmp_path: Path, rows: Path, run_name: str) -> None:
        ended = command("centralized", *overrides(rows, tmp_path / "runs", name=f'"{run_name}"'))
        assert "plain folder name" in ended.error
        assert ended.status in (1, 2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount file systems of a few hundred kilobytes."""
    mounted: list[Path] = []

    def mount(kilobytes: int) -> Path:
        place = tmp_path / f"disk-{kilobytes}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


class TestFullDisk:
    @pytest.mark.parametrize("kilobytes", [4, 16, 40, 64, 88, 112, 136, 160])
    def test_a_full_disk_is_one_line(
        self, command: Command, small_disk: Callable[[int], Path], rows: Path, kilobytes: int
    ) -> None:
        """The disk fills up at some point of the run; which file is the first not to fit differs from size to size."""
        place = small_disk(kilobytes)
        ended = command("centralized", *overrides(rows, place, *SCORED))
        assert re.search(r"Cannot write .*No space left", ended.error), ended.error
        assert ended.status == 1

    def test_with_free_space_again_the_run_resumes(
        self, command: Command, small_disk: Callable[[int], Path], rows: Path, tmp_path: Path
    ) -> None:
        place = small_disk(120)
        ended = command("centralized", *overrides(rows, place, rounds=6))
        assert ended.status == 1
        subprocess.run(["mount", "-o", "remount,size=4m", str(place)], check=True)
        assert command("centralized", f"resume={place / 'run'}").status == 0
        assert command("centralized", *overrides(rows, tmp_path, rounds=6, name="whole")).status == 0
        assert adapter_bytes(place / "run") == adapter_bytes(tmp_path / "whole")


class TestReport:
    @pytest.mark.parametrize("exists", [True, False])
    def test_no_run(self, command: Command, tmp_path: Path, exists: bool) -> None:
        folder = tmp_path / "nothing"
        if exists:
            folder.mkdir()
        ended = command("report", str(folder))
        assert (
            "nothing is not the folder of a run" if exists else "nothing', neither as a folder nor in"
        ) in ended.error
        assert ended.status == 1

    @pytest.mark.parametrize("file", ["result.json", "rounds.jsonl", "config.yaml"])
    @pytest.mark.parametrize("content", ["", "{", "[]", "null"], ids=["empty", "cut off", "a list", "null"])
    def test_a_damaged_run(self, command: Command, trained: Path, tmp_path: Path, file: str, content: str) -> None:
        """A report of what is readable, or one line that names the file."""
        folder = tmp_path / "damaged"
        shutil.copytree(trained, folder)
        (folder / file).write_text(content)
        ended = command("report", str(folder))
        if ended.status:
            assert file in ended.error
        else:
            assert (folder / "report.html").is_file()

    def test_an_output_that_cannot_be_written(self, command: Command, trained: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        ended = command("report", str(trained), "--output", str(tmp_path / "file" / "report.html"))
        assert "Cannot write" in ended.error
        assert ended.status == 1

    def test_a_run(self, command: Command, trained: Path) -> None:
        ended = command("report", str(trained))
        assert (ended.status, ended.out.strip()) == (0, str(trained / "report.html"))


class TestEvaluate:
    @pytest.mark.parametrize("exists", [True, False])
    def test_no_adapter(self, command: Command, tmp_path: Path, rows: Path, exists: bool) -> None:
        folder = tmp_path / "nothing"
        if exists:
            folder.mkdir()
        ended = command("evaluate", "--adapter", str(folder), *overrides(rows, tmp_path / "out", *SCORED))
        assert re.search(r"nothing is no PEFT adapter.*adapters/final", ended.error)
        assert ended.status == 1
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            ("adapter_model.safetensors", b""),
            ("adapter_model.safetensors", b"\x00" * 100),
            ("adapter_model.safetensors", None),
            ("adapter_config.json", b""),
            *(
                ("adapter_config.json", content)
                for content in (b"{}", b"[]", b'{"r": 4, "lora_alpha": 32, "target_modules": null}')
            ),
        ],
    )
    def test_a_damaged_adapter(
        self, command: Command, trained: Path, tmp_path: Path, rows: Path, file: str, content: bytes | None
    ) -> None:
        folder = tmp_path / "adapter"
        shutil.copytree(trained / "adapters" / "final", folder)
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content)
        ended = command("evaluate", "--adapter", str(folder), *overrides(rows, tmp_path / "out", *SCORED))
        assert file in ended.error
        assert ended.status == 1

    def test_another_models_adapter(self, command: Command, trained: Path, tmp_path: Path, rows: Path) -> None:
        more = (*SCORED, "peft.rank=2", "peft.alpha=4")
        ended = command(
            "evaluate", "--adapter", str(trained / "adapters" / "final"), *overrides(rows, tmp_path / "out", *more)
        )
        assert re.search(r"holds another kind of adapter.*peft\.rank=", ended.error)
        assert ended.status == 2

    def test_the_final_adapter_scores_as_in_its_run(
        self, command: Command, trained: Path, tmp_path: Path, rows: Path
    ) -> None:
        words = ("evaluate", "--adapter", str(trained / "adapters" / "final"))
        ended = command(*words, *overrides(rows, tmp_path / "out", *SCORED))
        assert ended.status == 0
        assert result_of(tmp_path / "out" / "run")["scores"]["final"] == result_of(trained)["scores"]["final"]
        assert result_of(tmp_path / "out" / "run")["mode"] == "evaluate"

    def test_the_base_scores_as_in_a_run(self, command: Command, trained: Path, tmp_path: Path, rows: Path) -> None:
        assert command("evaluate", *overrides(rows, tmp_path / "out", *SCORED)).status == 0
        assert result_of(tmp_path / "out" / "run")["scores"]["base"] == result_of(trained)["scores"]["base"]

    def test_no_test_rows(self, command: Command, tmp_path: Path) -> None:
        folder = write_rows(tmp_path / "data")
        (folder / "test" / "fpb_test.jsonl").unlink()
        ended = command("evaluate", *overrides(folder, tmp_path / "out", *SCORED))
        assert "test" in ended.error
        assert ended.status == 1

    def test_missing_benchmarks_are_skipped_with_the_reason(self, command: Command, tmp_path: Path, rows: Path) -> None:
        more = (*SCORED, "evaluation.benchmarks=[fpb,tfns]")
        assert command("evaluate", *overrides(rows, tmp_path / "out", *more)).status == 0
        result = result_of(tmp_path / "out" / "run")
        assert set(result["scores"]["base"]) == {"fpb"}
        assert "tfns_test.jsonl" in result["skipped"]["tfns"]


class TestResume:
    @pytest.mark.parametrize("name", ["centralized", "simulate", "local"])
    def test_no_run(self, command: Command, tmp_path: Path, name: str) -> None:
        ended = command(name, f"resume={tmp_path / 'nothing'}")
        assert re.search("There is no run .*nothing.* It has no runs", ended.error)
        assert ended.status == 1

    @pytest.mark.parametrize("name", ["centralized", "simulate"])
    def test_another_configuration(self, command: Command, trained: Path, rows: Path, name: str) -> None:
        asked = overrides(rows, trained.parent, *SCORED, "train.learning_rate=7e-4")
        ended = command(name, f"resume={trained}", *asked)
        assert re.search(r"configuration: train\.learning_rate: [\d.]+ -> 0\.0007\. Resume", ended.error), ended.error
        assert ended.status == 1

    def test_another_number_of_banks(self, trained: Path, rows: Path) -> None:
        with pytest.raises(UserError, match="banks: 2 -> 3"):
            prepare([f"resume={trained}", *overrides(rows, trained.parent, *SCORED), "banks=3"])


class TestDataCheck:
    def test_the_bundled_sample_is_sound(self, command: Command) -> None:
        ended = command("data", "check", str(ROOT / "data" / "sample"), "model=tiny-random")
        assert ended.status == 0
        assert "Every line is a usable row." in ended.out
        assert "fpb_train.jsonl" in ended.out

    @pytest.mark.parametrize("name", LINE_3)
    def test_a_bad_row_is_named_by_file_and_line(self, command: Command, tmp_path: Path, name: str) -> None:
        ended = command("data", "check", str(data_folder(tmp_path, name)), "model=tiny-random")
        assert ended.status == 1
        assert "train/fpb_train.jsonl:3: " in ended.out
        assert "Traceback" not in ended.err

    @pytest.mark.parametrize("name", [name for name in UNUSABLE if name not in ("no folder", "no train file")])
    def test_an_unusable_file_or_folder(self, command: Command, tmp_path: Path, name: str) -> None:
        ended = command("data", "check", str(data_folder(tmp_path, name)), "model=tiny-random")
        assert ended.status == 1
        assert "train/fpb_train.jsonl" in ended.out

    def test_no_folder(self, command: Command, tmp_path: Path) -> None:
        ended = command("data", "check", str(tmp_path / "nothing"))
        assert "nothing is not a folder" in ended.error
        assert ended.status == 1

    def test_a_model_that_is_not_there(self, command: Command, rows: Path, tmp_path: Path) -> None:
        ended = command("data", "check", str(rows), f"model.path={tmp_path}")
        assert str(tmp_path) in ended.error
        assert ended.status == 1


class TestModels:
    def test_a_folder_that_is_no_model(self, command: Command, rows: Path, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        ended = command("centralized", *overrides(rows, tmp_path / "out", f"model.path={tmp_path / 'model'}"))
        assert re.search(r"model.*config\.json", ended.error)
        assert ended.status == 1

    def test_target_modules_that_the_model_lacks(self, command: Command, rows: Path, tmp_path: Path) -> None:
        ended = command("centralized", *overrides(rows, tmp_path, "peft.target_modules=[query]"))
        assert re.search(r"query.*q_proj", ended.error)
        assert ended.status in (1, 2)

    def test_no_such_gpu(self, command: Command, rows: Path, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        from fedfinlora.model import loading as models

        models._bases.clear()
        models._sessions.clear()
        ended = command("centralized", *overrides(rows, tmp_path, "model.device=cuda"))
        assert "model.device=cuda" in ended.error
        assert ended.status == 1


def test_a_process_that_fails_shows_one_line_and_no_traceback(tmp_path: Path) -> None:
    folder = data_folder(tmp_path, "not JSON")
    ended = process("centralized", *overrides(folder, tmp_path, "dataset.on_bad_row=stop"))
    assert ended.status == 1
    assert "train/fpb_train.jsonl:3: " in ended.error


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX limits")
def test_a_file_size_limit_is_one_line(tmp_path: Path, rows: Path) -> None:
    """The other way in which a write fails half-way: ulimit -f."""
    import resource

    done = subprocess.run(
        [sys.executable, "-m", "fedfinlora", "centralized", *overrides(rows, tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},  # Python would cut that off too, for every later process
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)),
    )
    ended = Ending(done.returncode, done.stdout, done.stderr)
    assert "Cannot write" in ended.error
    assert ended.status == 1


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        ([], False),
        (["model.threads=1"], False),
        (["model.threads=64", "workers=1"], True),
        (["model.threads=64", "workers=2"], True),
    ],
)
def test_more_threads_than_cores_are_warned_about(words: list[str], warned: bool) -> None:
    reported = crowded(compose([*words, "banks=2"]))
    assert bool(reported) == warned
    assert not warned or "they would wait for each other" in reported
