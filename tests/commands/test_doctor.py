"""`doctor` sees each fault that it is there for, says what to do, and leaves the machine as it is."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest
from tiny_runs import write_rows

from fedfinlora.cli import main
from fedfinlora.commands import doctor_checks as machine
from fedfinlora.commands.doctor import doctor, examine
from fedfinlora.commands.doctor_checks import FAIL, OK, WARN, Finding
from fedfinlora.commands.doctor_packages import packages, wanted_packages

TINY = ["model=tiny-random", "model.quantization=none", "peft=lora"]


def of(findings: list[Finding], name: str) -> Finding:
    return next(each for each in findings if each.name == name)


@pytest.fixture(autouse=True)
def without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_one_screen_without_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    assert main(["doctor", *TINY, f"output_dir={tmp_path}"]) == 0
    assert time.monotonic() - started < 10
    lines = capsys.readouterr().out.splitlines()
    assert 15 <= len(lines) <= 24
    assert all(line[:4].strip() in (OK, WARN) for line in lines)
    assert main(["doctor", "--json", *TINY, f"output_dir={tmp_path}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert {"name", "level", "text"} == set(found["findings"][0])
    assert not list(tmp_path.iterdir())


def test_a_run_that_would_fail_is_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor([*TINY, "output_dir=/proc/x", "dataset=jsonl", f"dataset.root={tmp_path / 'gone'}"]) == 1
    printed = capsys.readouterr().out
    assert "fail  runs" in printed
    assert "output_dir=FOLDER" in printed
    assert "fail  rows" in printed
    assert doctor(["sed=1"]) == 1
    assert "fail  settings" in capsys.readouterr().out
    assert doctor(["model.path=no/such-model"]) == 1
    assert "fail  hub" in capsys.readouterr().out


def test_odd_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("RAY_ADDRESS", "10.0.0.1:1"),
        ("all_proxy", "socks://u:secret@127.0.0.1:1"),
        ("OMP_NUM_THREADS", "abc"),
        ("HF_HOME", "/proc/x"),
    ):
        monkeypatch.setenv(name, value)
    found = examine(TINY)
    for name, variable in (
        ("ray", "RAY_ADDRESS"),
        ("proxies", "all_proxy"),
        ("threads", "OMP_NUM_THREADS"),
        ("hub cache", "HF_HOME"),
    ):
        assert of(found, name).level == WARN
        assert variable in of(found, name).text
    assert "secret" not in str(found)


def test_a_home_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/none")
    found = examine([*TINY, "output_dir=/proc/none"])
    assert of(found, "home").level == WARN
    assert of(found, "runs").level == FAIL


def test_a_gpu_that_is_not_there() -> None:
    found = machine.device("cuda:7", {"CUDA_VISIBLE_DEVICES": ""})
    assert found.level == FAIL
    assert "CUDA_VISIBLE_DEVICES" in found.text


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert machine.ports([port]).level == WARN
    assert machine.ports([port]).level == OK


def test_packages_are_compared_with_the_lock(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "run.txt").write_text(
        'torch==2.13.0 \\\n    --hash=sha256:0\npywin32==1 ; sys_platform == "win32" \\\nA_b==1\n'
    )
    source, wanted = wanted_packages(tmp_path)
    assert wanted == {"torch": "2.13.0", "a-b": "1"}
    assert packages(wanted, source, {"torch": "2.13.0+cpu", "a-b": "1"}).level == OK
    assert packages(wanted, source, {"torch": "2.13.0"}).level == FAIL
    assert packages(wanted, source, {"torch": "2.12.0", "a-b": "1"}).level == WARN
    assert wanted_packages(tmp_path / "none")[0] != source


def test_too_little_memory_and_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shutil
    from types import SimpleNamespace

    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**28, total=2**34))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**27))
    found = examine([*TINY, f"output_dir={tmp_path}"])
    assert of(found, "memory").level == FAIL
    assert of(found, "runs").level == FAIL


def test_bad_rows_are_counted(tmp_path: Path) -> None:
    rows = write_rows(tmp_path)
    with open(rows / "train" / "fpb_train.jsonl", "a") as stream:
        stream.write("not JSON\n")
    found = of(examine([*TINY, "dataset=finlora", f"dataset.root={rows}"]), "rows")
    assert (found.level, found.text) == (WARN, "24 train rows, 1 bad; `data check` names them")
