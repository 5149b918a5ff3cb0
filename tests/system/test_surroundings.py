"""Odd machines, with real processes: no home, a deleted folder, modules of the same name, ASCII terminals, proxies,
somebody else's cluster.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_server import serving
from tiny_runs import overrides, result_of, write_rows

import fedfinlora.system.shadows as shadows
import fedfinlora.system.surroundings as surroundings
from fedfinlora.deployment.reach import check_address
from fedfinlora.errors import ConfigError, UserError

ROOT = Path(__file__).resolve().parents[2]
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

    @pytest.mark.skipif(not can_be_nobody(), reason="this machine has no user namespaces")
    @pytest.mark.parametrize("command", ["doctor", "centralized"])
    def test_a_user_id_without_an_entry_that_has_a_home(self, tmp_path: Path, command: str) -> None:
        words = overrides(write_rows(tmp_path / "rows"), tmp_path, rounds=1)
        status, printed = run(
            command, *words, without=("USER", "LOGNAME"), start=self.STRANGER, HOME=str(tmp_path), HF_HUB_OFFLINE="1"
        )
        assert status == 0, printed
        assert "Traceback" not in printed

    @pytest.mark.parametrize(("home", "code"), [("/proc", 1), ("/dev/null", 2)])
    def test_a_home_that_cannot_be_written(self, home: str, code: int) -> None:
        status, printed = run("centralized", "model=tiny-random", "model.quantization=none", "peft=lora", HOME=home)
        assert status == code
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

    @pytest.mark.parametrize(("given", "ray", "said"), [
        ({}, None, ""),
        ({"TMPDIR": "/var/tmp"}, None, ""),
        ({"TMPDIR": "/scratch/" + "x" * 200}, "/tmp", ""),
        ({"RAY_TMPDIR": "/scratch/" + "x" * 200}, "/tmp", "RAY_TMPDIR is longer than 34 bytes"),
    ])  # fmt: skip
    def test_the_sockets_of_ray_have_a_folder_with_a_short_path(
        self, given: dict[str, str], ray: str | None, said: str
    ) -> None:
        environment = dict(given)
        assert said in " ".join(surroundings.correct(environment))
        assert environment.get("RAY_TMPDIR") == ray

    def test_no_short_folder_for_the_sockets_of_ray_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(surroundings, "_writable", lambda folder: False)
        [said] = surroundings.correct({"RAY_TMPDIR": "/scratch/" + "x" * 200})
        assert "Set RAY_TMPDIR to a shorter one" in said

    def test_modules_of_the_same_name_in_the_way(self, tmp_path: Path) -> None:
        for name in ("data", "eval", "datasets", "client_app"):
            (tmp_path / "here" / name).mkdir(parents=True)
            (tmp_path / "here" / name / "__init__.py").write_text("raise SystemExit('the wrong module')\n")
        words = overrides(write_rows(tmp_path / "rows"), tmp_path, rounds=1)
        status, printed = run("centralized", *words, cwd=tmp_path / "here", PYTHONPATH=str(ROOT))
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
def test_a_simulation_runs_behind_odd_proxies_and_another_cluster(tmp_path: Path) -> None:
    """A private one: what its banks have spent is in the ledger of this environment and on the run's card.

    Ray's sockets do not fit into its folder for temporary files.
    """
    temporary = tmp_path / ("temporary " * 10)
    temporary.mkdir()
    rows = write_rows(tmp_path / "rows ä [1]", train=60)
    name = 'Lauf "Ü" {x} $y=1,2'
    words = ("privacy=example", "privacy.epsilon=8", "workers=1")
    status, printed = run(
        "simulate",
        *overrides(rows, tmp_path / "o u t", *words, rounds=1, name=name),
        RAY_ADDRESS="10.255.255.1:6379",
        FEDFINLORA_LEDGER=str(tmp_path / "ledger"),
        TMPDIR=str(temporary),
        **PROXIES,
    )
    assert status == 0, printed
    assert "RAY_ADDRESS is set and ignored" in printed
    assert "all_proxy names no proxy" in printed
    assert "epsilon spent" in printed
    assert result_of(tmp_path / "o u t" / name)["privacy"]["epsilon"] <= 8
    card = json.loads((tmp_path / "o u t" / name / "privacy.json").read_text("utf-8"))
    assert (card["void"], [bank["rounds"] for bank in card["banks"].values()]) == ("", [1, 1])
    assert list((tmp_path / "ledger").rglob("ledger.jsonl"))


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
        "evaluate",
        "--model-url",
        "http://models.example/v1",
        "--model-name",
        "m",
        *words,
        **PROXIES | {"http_proxy": ""},
    )
    assert status == 1
    assert "all_proxy" in printed
    assert "no_proxy" in printed
    assert in_one_line(printed), printed


@pytest.mark.parametrize(
    "address",
    [
        "https://aggregator.example",
        "https://aggregator.example:9092/x",
        "aggregator.example",
        "a:b",
        ":9092",
        "a:0",
        "a b:1",
    ],
)
def test_an_aggregators_address_is_host_and_port(address: str) -> None:
    with pytest.raises(ConfigError, match="must be HOST:PORT"):
        check_address(address)


class TestShadows:
    NAMES = ("json", "random", "torch", "typing", "argparse", "re", "runpy", "logging", "numpy", "psutil")

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """A working directory with files that have the names of libraries, each of which ends whoever imports it."""
        for name in self.NAMES:
            (tmp_path / f"{name}.py").write_text(f"raise SystemExit('imported {name}')\n")
        for name in ("flwr", "data", "yaml"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('imported {name}')\n")
        (tmp_path / "torchvision").mkdir()  # no package: Python passes over it
        (tmp_path / "notes.py").write_text("")
        return tmp_path

    def test_what_has_a_librarys_name_is_found(self, folder: Path) -> None:
        found = {entry.name for entry in shadows.shadowing([folder])}
        assert found == {*(f"{name}.py" for name in self.NAMES), "flwr", "data", "yaml"}
        assert shadows.shadowing([ROOT]) == []

    def test_commands_run_where_files_have_the_names_of_libraries(self, folder: Path) -> None:
        for words in (
            ["--help"],
            ["list", "."],
            ["evaluate", "model=tiny-random", "evaluation.benchmarks=[none]", "peft=lora"],
        ):
            _, printed = run(*words, cwd=folder, HOME=str(folder))
            assert "imported" not in printed
            assert "Traceback" not in printed, printed

    def test_the_doctor_names_them(self, folder: Path) -> None:
        _, printed = run("doctor", "model=tiny-random", cwd=folder, HF_HUB_OFFLINE="1")
        [line] = [line for line in printed.splitlines() if " directory " in line]
        assert line.startswith("warn")
        assert str(folder / "json.py") in line

    def test_a_folder_of_pythonpath_with_a_librarys_name_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "torch.py").write_text("raise SystemExit('imported')\n")
        status, printed = run("list", str(tmp_path), PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
        assert (status, in_one_line(printed)) == (1, True), printed
        assert f"{tmp_path / 'torch.py'} has the name of a library" in printed
        status, printed = run(
            "doctor", "model=tiny-random", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}", HF_HUB_OFFLINE="1"
        )
        assert (status, "Rename or move it" in printed) == (1, True), printed

    def test_the_project_comes_after_pythons_own_library_and_before_all_others(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            sys, "path", ["", str(ROOT), *[place for place in sys.path if place not in ("", str(ROOT))]]
        )
        shadows.own_modules_first()
        at = sys.path.index(str(ROOT))
        assert at > sys.path.index(os.path.dirname(os.__file__))
        assert not any("site-packages" in place for place in sys.path[:at])
        assert "" not in sys.path
