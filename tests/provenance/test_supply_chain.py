"""The locks hold every package that the project names, at the version that constraints.txt names, each with hashes;
what installs them asks for the hashes.
"""

from __future__ import annotations

import importlib.metadata
import re
import runpy
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "locks"
NAMES = ("base", "dev", "models", "run", "tools")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LINE = re.compile(r"([a-z0-9-]+)==(\S+) \\")
HASH = re.compile(r" {4}--hash=sha256:[0-9a-f]{64}(?: \\)?")


def lock(name: str) -> dict[str, str]:
    """Package -> version of a lock. Any line that is neither a comment, a package nor a hash, and any package without
    one, is an error.
    """
    found: dict[str, str] = {}
    hashes: dict[str, int] = {}
    package = ""
    for line in (LOCKS / f"{name}.txt").read_text("utf-8").splitlines():
        if line.startswith("#"):
            continue
        named = LINE.fullmatch(line)
        if named:
            package = named[1]
            assert package not in found
            found[package], hashes[package] = named[2], 0
            continue
        assert HASH.fullmatch(line), f"locks/{name}.txt: {line}"
        hashes[package] += 1
    assert min(hashes.values()) > 0
    return found


def constraints() -> dict[str, str]:
    lines = [
        line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line and not line.startswith("#")
    ]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def wanted(*extras: str) -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_every_line_of_a_lock_is_hashed_and_names_no_host_and_no_folder(name: str) -> None:
    assert lock(name)
    content = (LOCKS / f"{name}.txt").read_text("utf-8")
    assert [word for word in ("://", "--index", "--find-links", "--trusted", "/", "@") if word in content] == []


@pytest.mark.parametrize(("name", "extras"), [("run", ["train"]), ("dev", ["train", "dev"])])
def test_a_lock_has_every_direct_dependency_at_the_constrained_version(name: str, extras: list[str]) -> None:
    locked, constrained = lock(name), constraints()
    for requirement in wanted(*extras):
        package = canonicalize_name(requirement.name)
        version = constrained[package] if package == "torch" else locked.get(package)
        assert version is not None, f"{package} is not in locks/{name}.txt: run `make lock`"
        assert requirement.specifier.contains(version, prereleases=True), f"{package}: run `make lock`"
    differing = {
        each: (locked[each], constrained[each])
        for each in locked.keys() & constrained.keys()
        if locked[each] != constrained[each]
    }
    assert differing == {}, "run `make lock`"
    assert "torch" not in locked
    assert not [each for each in locked if each.startswith(("nvidia-", "triton", "cuda-"))]


def test_every_constraint_is_in_the_lock_or_is_torch() -> None:
    assert constraints().keys() - lock("dev").keys() == {"torch"}


def test_the_locks_agree_with_each_other() -> None:
    everything = lock("dev")
    for name in ("run", "base"):
        assert {package: everything.get(package) for package in lock(name)} == lock(name), (
            f"locks/{name}.txt: run `make lock`"
        )
    # What a lock was made from, and what came out.
    for name in ("base", "models", "tools"):
        lines = [line for line in (LOCKS / f"{name}.in").read_text("utf-8").splitlines() if not line.startswith("#")]
        for requirement in map(Requirement, lines):
            if requirement.name != "torch":
                assert requirement.specifier.contains(lock(name)[canonicalize_name(requirement.name)])


def test_a_lock_is_whole_no_package_needs_one_that_is_not_in_it() -> None:
    # By the metadata of what is installed here, which is what the lock says (next test).
    environment: Any = default_environment()
    for name, extras in (("run", {"train"}), ("dev", {"train", "dev"})):
        locked = lock(name)
        todo = [(canonicalize_name(each.name), frozenset(each.extras)) for each in wanted(*extras)]
        seen: set[tuple[str, frozenset[str]]] = set()
        while todo:
            package, asked = todo.pop()
            if (package, asked) in seen:
                continue
            seen.add((package, asked))
            assert package in locked or package == "torch" or package.startswith(("nvidia-", "triton", "cuda-")), (
                name,
                package,
            )
            for line in importlib.metadata.requires(package) or []:
                needed = Requirement(line)
                if needed.marker is None or any(
                    needed.marker.evaluate(environment | {"extra": extra}) for extra in ("", *asked)
                ):
                    todo.append((canonicalize_name(needed.name), frozenset(needed.extras)))


def test_what_is_installed_here_is_what_the_lock_says() -> None:
    # Not what setuptools brings along for itself, which is found too once it was imported.
    own = importlib.metadata.distributions(path=[sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    installed = {canonicalize_name(each.metadata["Name"]): each.version for each in own}
    locked = lock("dev") | lock("models")
    differing = {
        package: (version, installed.get(package))
        for package, version in locked.items()
        if installed.get(package) != version
    }
    assert differing == {}, "run `make venv`"


def test_the_lock_has_the_versions_that_torch_requires() -> None:
    reported = tomllib.loads((LOCKS / "uv.toml").read_text("utf-8"))["dependency-metadata"]
    assert [(one["name"], one["version"]) for one in reported] == [("torch", constraints()["torch"])]
    says = [line for line in importlib.metadata.requires("torch") or [] if "extra ==" not in line]
    own = {str(Requirement(line)) for line in says if not line.startswith(("nvidia-", "triton", "cuda-"))}
    assert {str(Requirement(line)) for line in reported[0]["requires-dist"]} == own
    (base,) = [line for line in (LOCKS / "base.in").read_text("utf-8").splitlines() if line.startswith("torch")]
    assert base == f"torch=={constraints()['torch']}"


def recipe(target: str) -> list[str]:
    """The commands that `make` would type for a target."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", target], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return [line for line in done.stdout.splitlines() if " pip install " in line]


def test_make_venv_installs_all_but_torch_with_a_hash() -> None:
    first, *others, last = recipe("venv")
    assert first.split()[-1] == f"torch=={constraints()['torch']}"
    assert "--no-deps --no-build-isolation -e ." in last
    assert all("--require-hashes --no-deps --only-binary :all:" in line for line in others)
    assert [re.findall(r"-r (\S+)", line) for line in others] == [
        ["locks/base.txt"],
        ["locks/dev.txt", "locks/models.txt"],
    ]


def test_make_check_and_make_test_need_no_tool_of_the_supply_chain() -> None:
    for target in ("check", "test"):
        done = subprocess.run(
            ["make", "--dry-run", "--always-make", target],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert ".tools" not in done.stdout


def test_a_file_whose_hash_is_not_the_locks_is_not_installed(tmp_path: Path) -> None:
    # pip itself, on a wheel made here: what `make venv` asks for is what keeps a changed file out.
    import zipfile

    wheel = tmp_path / "lent-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("lent.py", "")
        archive.writestr("lent-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: lent\nVersion: 1.0\n")
        archive.writestr("lent-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("lent-1.0.dist-info/RECORD", "")
    (tmp_path / "lock.txt").write_text(f"lent==1.0 --hash=sha256:{'0' * 64}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--isolated",
        "--no-index",
        "--find-links",
        str(tmp_path),
        "--no-deps",
    ]
    command += ["--require-hashes", "--target", str(tmp_path / "here"), "-r", str(tmp_path / "lock.txt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "here").exists()


def test_an_audit_that_could_not_ask_is_not_taken_for_a_clean_one() -> None:
    judged = runpy.run_path(str(LOCKS / "audit.py"))["judged"]
    clean = {"name": "a", "version": "1", "vulns": []}
    hit = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
    skipped = {"name": "c", "skip_reason": "not found on PyPI"}
    assert judged([clean], 1) == (0, "1 packages looked up, 0 known vulnerabilities.")
    assert judged([clean, hit], 2)[0] == 1
    assert "b 2: PYSEC-1, fixed in 2.1" in judged([clean, hit], 2)[1]
    for incomplete in ([clean, hit, skipped], [clean]):
        status, words = judged(incomplete, len(incomplete) + (incomplete == [clean]))
        assert status == 2
        assert "could not be looked up" in words
    assert judged([], 3)[0] == 2


def test_an_audit_without_its_service_says_so(tmp_path: Path) -> None:
    # pip-audit is not in this environment: the command ends without an answer, as it does without a network.
    (tmp_path / "pip_audit.py").write_text("import sys; sys.exit('no route to the service')")
    done = subprocess.run(
        [sys.executable, str(LOCKS / "audit.py")], capture_output=True, text=True, timeout=60, check=False,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "no route to the service" in done.stderr
    assert "says nothing about them" in done.stderr


def test_the_sbom_target_writes_cyclonedx_1_6_and_validates_it() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "sbom"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    (line,) = [line for line in done.stdout.splitlines() if "cyclonedx-py environment" in line]
    assert all(
        word in line for word in ("--spec-version 1.6", "--output-format JSON", "--validate", "outputs/sbom.json")
    )
