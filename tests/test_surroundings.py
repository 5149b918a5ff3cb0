"""Odd machines, with real processes: no home, a deleted folder, modules of the same name, ASCII terminals, proxies, somebody else's cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_server import serving
from tiny_runs import overrides, write_rows

import fedfinlora.surroundings as surroundings
from fedfinlora.deployment.reach import check_address
from fedfinlora.errors import ConfigError, UserError

ROOT = Path(__file__).resolve().parents[1]
PROXIES = {"http_proxy": "http://127.0.0.1:9", "all_proxy": "socks://127.0.0.1:1"}


def run(
    *words: str, cwd: Path = ROOT, without: tuple[str, ...] = (), start: tuple[str, ...] = (), **environment: str
) -> tuple[int, str]:
    """(exit status, what was printed) of a command in an environment of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in without}
    done = subprocess.run(
        [*start, sys.executable, "-m", "fedfinlora", *words],
        cwd=cwd, env=kept | {"PYTHONPATH": str(ROOT)} | environment, capture_output=True, timeout=280,
    )  # fmt: skip
    return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")


def can_be_nobody() -> bool:
    program = shutil.which("unshare")
    words = [str(program), "--user", "--map-user=12345", "true"]
    return program is not None and subprocess.run(words, capture_output=True, check=False).returncode == 0


def in_one_line(printed: str) -> bool:
    return "Traceback" not in printed and len([line for line in printed.splitlines() if line.startswith("error:")]) == 1


class TestHome:
    STRANGER = ("unshare", "--user", "--map-user=12345")

    @pytest.mark.skipif(not can_be_nobody(), reason="this machine has no user namespaces")
    def test_a_user_id_without_an_entry_and_without_a_home(self) -> None:
        status, printed = run("--help", without=("HOME", "USER", "LOGNAME"), start=self.STRANGER)
        assert (status, "COMMAND" in printed) == (0, True)
        for words in (["centralized", "model=tiny-random"], ["bank", "status"]):
            status, printed = run(*words, without=("HOME", "USER", "LOGNAME"), start=self.STRANGER)
            assert status == 1
            assert "HOME" in printed
            assert in_one_line(printed), printed

    @pytest.mark.parametrize("home", ["/proc", "/dev/null"])
    def test_a_home_that_cannot_be_written(self, home: str) -> None:
        status, printed = run("centralized", "model=tiny-random", "model.quantization=none", "peft=lora", HOME=home)
        assert status == 1
        assert "output_dir=FOLDER, or set HOME" in printed
        assert in_one_line(printed), printed

    def test_a_cache_that_cannot_be_written_names_its_variable(self, tmp_path: Path) -> None:
        status, printed = run(
            "centralized", *overrides(write_rows(tmp_path / "rows"), tmp_path), FEDFINLORA_CACHE="/proc/cache"
        )
        assert status == 1
        assert "FEDFINLORA_CACHE" in printed
        assert in_one_line(printed), printed


class TestFolders:
    def test_a_deleted_working_directory(self, tmp_path: Path) -> None:
        script = f'cd {tmp_path} && rmdir {tmp_path} && exec {sys.executable} -m fedfinlora "$@"'
        for words, status in ((["--help"], 0), (["centralized"], 1)):
            tmp_path.mkdir(exist_ok=True)
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                ["sh", "-c", script, "sh", *words], env=environment, capture_output=True, text=True, timeout=60, cwd="/"
            )
            assert done.returncode == status, done.stderr
            assert "Traceback" not in done.stderr
        assert "was deleted" in done.stderr

    def test_no_temporary_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import tempfile

        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc", "/dev/null"])
        with pytest.raises(UserError, match="TMPDIR"):
            surroundings.prepare_process()

    def test_modules_of_the_same_name_in_the_way(self, tmp_path: Path) -> None:
        for name in ("data", "eval", "datasets", "client_app"):
            (tmp_path / "here" / name).mkdir(parents=True)
            (tmp_path / "here" / name / "__init__.py").write_text("raise SystemExit('the wrong module')\n")
        path = f"{tmp_path / 'here'}{os.pathsep}{ROOT}"
        words = overrides(write_rows(tmp_path / "rows"), tmp_path, rounds=1)
        status, printed = run("centralized", *words, cwd=tmp_path / "here", PYTHONPATH=path)
        assert status == 0, printed


def test_letters_that_the_terminal_does_not_have(tmp_path: Path) -> None:
    name = "Lauf Ü 日本"
    words = overrides(write_rows(tmp_path / "rows"), tmp_path, rounds=1, name=name)
    odd = {
        "PYTHONIOENCODING": "ascii",
        "LANG": "C",
        "OMP_NUM_THREADS": "abc",
        "CUDA_VISIBLE_DEVICES": "99",
        "HF_TOKEN": "wrong",
    }
    status, printed = run("centralized", *words, **odd)
    assert status == 0, printed
    assert "Lauf ?" in printed
    assert "OMP_NUM_THREADS='abc'" in printed
    assert (tmp_path / name / "result.json").is_file()


@pytest.mark.slow
def test_a_simulation_behind_proxies_with_odd_names_and_somebody_elses_cluster(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows ä [1]")
    name = 'Lauf "Ü" {x} $y=1,2'
    status, printed = run(
        "simulate", *overrides(rows, tmp_path / "o u t", rounds=1, name=name), RAY_ADDRESS="10.255.255.1:6379", **PROXIES
    )
    assert status == 0, printed
    assert "RAY_ADDRESS is set and ignored" in printed
    assert "all_proxy names no proxy" in printed
    assert (tmp_path / "o u t" / name / "result.json").is_file()


def test_a_model_behind_a_server_on_this_machine_is_asked_without_a_proxy(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows")
    words = [
        "dataset=finlora",
        f"dataset.root={rows}",
        f"output_dir={tmp_path}",
        "evaluation.benchmarks=[fpb]",
        "evaluation.limit=2",
    ]
    words += ["model=tiny-random", "model.quantization=none", "peft=lora"]
    with serving() as server:
        status, printed = run("evaluate", "--model-url", server.url, "--model-name", "some/model", *words, **PROXIES)
        assert status == 0, printed
        assert len(server.requests) == 2
    status, printed = run(
        "evaluate", "--model-url", "http://models.example/v1", "--model-name", "m", *words, **PROXIES | {"http_proxy": ""}
    )
    assert status == 1
    assert "all_proxy" in printed
    assert "no_proxy" in printed
    assert in_one_line(printed), printed


@pytest.mark.parametrize(
    "address",
    ["https://aggregator.example", "https://aggregator.example:9092/x", "aggregator.example", "a:b", ":9092", "a:0", "a b:1"],
)
def test_an_aggregators_address_is_host_and_port(address: str) -> None:
    with pytest.raises(ConfigError, match="must be HOST:PORT"):
        check_address(address)
