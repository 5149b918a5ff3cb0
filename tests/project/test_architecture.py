"""What may import what, what ships, and that every module says what it is."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from documents import left_behind

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "fedfinlora": {"fedfinlora"},
    "data": {"fedfinlora", "data"},
    "eval": {"fedfinlora", "data", "eval"},
    "client_app": {"fedfinlora", "data", "eval", "client_app"},
    "server_app": {"fedfinlora", "data", "eval", "server_app"},
}
"""Folder -> the project's folders that its files may import. What puts everything together (`is_root`) may import all.
"""
LAYERS = (
    "errors", "logs", "seeds", "files", "system", "config", "model", "train", "privacy", "wire", "run", "compose",
    "report", "serving", "provenance", "deployment", "commands", "api", "cli",
)  # fmt: skip
"""Files and packages of `fedfinlora`, in the order in which they build on each other: each imports itself and what is
to its left.
"""
MODULES = sorted(file for folder in MAY_IMPORT for file in (ROOT / folder).rglob("*.py"))
LEGACY_FLOWER = ("flwr.client", "flwr.server", "flwr.common")
HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "sklearn", "hydra", "flwr", "datasets", "bert_score", "ray")
LAYERS_OF_METHODS = "fedfinlora.model.peft_methods.modules"
"""Layers and nothing else: it loads torch, and who builds one imports it there and then."""


def module_id(file: Path) -> str:
    return str(file.relative_to(ROOT))


def imports(file: Path, top_level: bool = False, with_types: bool = True) -> set[str]:
    """Full names of all that a file imports: `from a.b import c` gives a.b and a.b.c. `top_level` skips lazy
    imports; without `with_types` what only a type checker sees is skipped.
    """
    tree = ast.parse(file.read_text("utf-8"))
    nodes = list(ast.walk(tree))
    if not with_types:
        only_types = {
            id(inner)
            for node in nodes
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for inner in ast.walk(node)
        }
        nodes = [node for node in nodes if id(node) not in only_types]
    if top_level:
        nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    package = ".".join(file.relative_to(ROOT).with_suffix("").parts[:-1])
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            origin = ".".join(filter(None, [start if node.level else "", node.module or ""]))
            names |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return names


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_the_tests_of_a_file_stay_in_one_worker(request: pytest.FixtureRequest) -> None:
    """Else `make test` spreads the tests of one deployment over two (tests/conftest.py groups them)."""
    if hasattr(request.config, "workerinput") and request.config.getvalue("loadgroup"):
        assert "@" in request.node.nodeid


def test_the_walk_sees_the_project() -> None:
    assert len(MODULES) > 50
    found = imports(ROOT / "client_app" / "bank.py")
    assert {"fedfinlora.train.loop", "fedfinlora.train.loop.mean_loss", "fedfinlora.wire.messages"} <= found
    assert "torch" in imports(ROOT / "fedfinlora" / "train" / "loop.py")
    assert "torch" not in imports(ROOT / "fedfinlora" / "train" / "loop.py", top_level=True)


def is_root(file: Path) -> bool:
    """Whether a file puts everything together: the commands, and the Python interface to them."""
    return file == ROOT / "fedfinlora" / "api.py" or file.is_relative_to(ROOT / "fedfinlora" / "commands")


@pytest.mark.parametrize("file", MODULES, ids=module_id)
def test_imports_go_down_only(file: Path) -> None:
    folder = file.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[folder]
    if is_root(file):
        allowed = set(MAY_IMPORT)
    wrong = {name for name in imports(file) if name.split(".")[0] in set(MAY_IMPORT) - allowed}
    assert not wrong


def test_test_files_have_names_of_their_own() -> None:
    names = [file.name for file in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names)), "pytest would not collect the second of two"


def test_the_library_is_built_in_layers() -> None:
    library = [file for file in MODULES if file.is_relative_to(ROOT / "fedfinlora") and module_id(file).count("/") > 1]
    assert {part.stem for part in (ROOT / "fedfinlora").iterdir() if part.stem.isidentifier()} - {
        *LAYERS, "__init__", "__main__", "__pycache__"
    } == set()  # fmt: skip
    upwards = {
        (module_id(file), name)
        for file in [*library, *(ROOT / "fedfinlora" / f"{layer}.py" for layer in LAYERS)]
        if file.is_file()
        for name in imports(file)
        if below(name, "fedfinlora")
        and (layer := name.split(".")[1:2])
        and layer[0] in LAYERS
        and LAYERS.index(layer[0]) > LAYERS.index(file.relative_to(ROOT / "fedfinlora").with_suffix("").parts[0])
    }
    assert upwards == set()


def test_no_file_imports_itself_by_way_of_others() -> None:
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in MODULES}
    waiting = {
        name: {found for found in imports(file, with_types=False) if found in names and not below(name, found)}
        for name, file in names.items()
        if name != "fedfinlora"
    }
    while leaves := {name for name, needs in waiting.items() if not needs & waiting.keys()}:
        waiting = {name: needs for name, needs in waiting.items() if name not in leaves}
    assert waiting == {}


@pytest.mark.parametrize("file", MODULES, ids=module_id)
def test_only_the_command_line_imports_the_commands(file: Path) -> None:
    if file == ROOT / "fedfinlora" / "cli.py" or is_root(file):
        return
    assert not {name for name in imports(file) if below(name, "fedfinlora.commands")}


@pytest.mark.parametrize("file", MODULES, ids=module_id)
def test_nothing_uses_flowers_legacy_interfaces(file: Path) -> None:
    assert not {name for name in imports(file) if any(below(name, legacy) for legacy in LEGACY_FLOWER)}


@pytest.mark.parametrize("file", MODULES, ids=module_id)
def test_nothing_of_the_project_imports_its_tests(file: Path) -> None:
    assert not {name for name in imports(file) if below(name, "tests") or below(name, "pytest")}


@pytest.mark.parametrize("file", MODULES, ids=module_id)
def test_every_module_says_what_it_is(file: Path) -> None:
    docstring = ast.get_docstring(ast.parse(file.read_text("utf-8")))
    assert docstring, "no docstring"


@pytest.mark.parametrize(
    "file", [file for file in MODULES if file.relative_to(ROOT).parts[0] == "fedfinlora"], ids=module_id
)
def test_the_library_imports_heavy_packages_only_where_they_are_used(file: Path) -> None:
    if file.is_relative_to(ROOT / "fedfinlora" / "commands"):
        return
    allowed = {"torch"} if module_id(file) == f"{LAYERS_OF_METHODS.replace('.', '/')}.py" else set()
    heavy = {*HEAVY, LAYERS_OF_METHODS} - allowed
    assert not {name for name in imports(file, top_level=True) if any(below(name, one) for one in heavy)}


@pytest.mark.parametrize(
    "file", [file for file in MODULES if re.search(r"^\s*>>> ", file.read_text("utf-8"), re.MULTILINE)], ids=module_id
)
def test_the_examples_in_docstrings_are_true(file: Path) -> None:
    module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_importing_the_apps_has_no_effect_on_the_process() -> None:
    program = (
        "import logging, os, warnings\nimport numpy\n"
        "before = (dict(os.environ), list(warnings.filters), logging.getLogger().level, "
        "list(logging.getLogger().handlers))\n"
        "import fedfinlora.cli, fedfinlora.model.loading, fedfinlora.train.loop, fedfinlora.wire.messages\n"
        "import fedfinlora.compose\n"
        "after = (dict(os.environ), list(warnings.filters), logging.getLogger().level, "
        "list(logging.getLogger().handlers))\n"
        "print(before == after)\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "True"


def test_what_starts_often_loads_little() -> None:
    """A command that loads no model, the client process of every message and the worker's other end start without torch
    and what belongs to it.
    """
    program = (
        "import sys\nimport fedfinlora.commands.bank, fedfinlora.commands.compare, fedfinlora.commands.coordinator, "
        "fedfinlora.commands.report\n"
        "print(*sorted(sys.modules), sep=',')\nimport client_app.app\nprint(*sorted(sys.modules), sep=',')\n"
        "from fedfinlora.model.quantized import import_bitsandbytes\nimport_bitsandbytes()\n"
        "print(*sorted(sys.modules), sep=',')\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    commands, client, bitsandbytes = (set(line.split(",")) for line in shown.stdout.splitlines())
    heavy = {*HEAVY, "scipy", "pandas", "opacus", "tensorboard"}
    assert not heavy & commands
    assert heavy & client == {"flwr"}
    assert "bitsandbytes" in bitsandbytes
    assert "torch._inductor.compile_fx" not in bitsandbytes, "torch's compiler"
    assert "kernels" not in shown.stderr, "bitsandbytes' advice to fetch kernels from the hub"


# --- what ships -----------------------------------------------------------------------------------


@pytest.fixture
def tracked_copy(tmp_path: Path) -> Path:
    """The files that git tracks, as they are now, with junk of a working folder next to them."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    copy = tmp_path / "project"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    junk = {
        "outputs/run/result.json": "{}",
        "outputs/run/state/round_0001.safetensors": "x",
        "clients.jsonl": '{"context": "secret", "target": "secret"}\n',
        "data/clients.jsonl": '{"context": "secret", "target": "secret"}\n',
        "data/bank/train.jsonl": '{"context": "secret", "target": "secret"}\n',
        "conf/notes.txt": "secret",
        "tests/test_mine.py": "",
        "notes.py": "",
        ".env": "HF_TOKEN=secret",
        "fedfinlora/weights.safetensors": "x",
    }
    for name, content in junk.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(content)
    return copy


PRODUCT_FILE = re.compile(
    r"(fedfinlora|data|eval|client_app|server_app|benchmarks)/(.+/)?[^/]+\.py|fedfinlora/(.+/)?[^/]+\.j2|conf/(.+/)?[^/]+\.yaml"
    r"|data/sample/(train|test)/[^/]+\.jsonl|pyproject\.toml|LICENSE|(data/sample/)?README\.md"
)
"""What of a checkout travels to others."""


@pytest.mark.slow
def test_the_wheel_holds_the_app_in_its_own_package_and_runs_from_anywhere(tracked_copy: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*build, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path / "wheels"),
        str(tracked_copy)],
        check=True, timeout=300, capture_output=True,
    )  # fmt: skip
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name for name in names if not name.startswith("fedfinlora/_app/")} == {"fedfinlora/__init__.py"}
    app = {name.removeprefix("fedfinlora/_app/") for name in names if name.startswith("fedfinlora/_app/")} - {
        "constraints.txt"
    }
    assert [name for name in app if not PRODUCT_FILE.fullmatch(name)] == []
    assert {module_id(file) for file in MODULES if (tracked_copy / module_id(file)).exists()} <= app
    assert {"conf/config.yaml", "data/sample/test/fpb_test.jsonl", "pyproject.toml"} <= app

    # Installed next to the libraries of this Python, and run from a folder and a home with nothing in them.
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    subprocess.run(
        [*build, "install", "--no-deps", "--target", str(site), str(wheel)],
        check=True,
        timeout=300,
        capture_output=True,
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "HOME": str(empty)}
    program = "import fedfinlora as ff, sys\nprint(ff.simulate.__module__, ff.__file__)\n"
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=empty, env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == ["fedfinlora.api", str(site / "fedfinlora" / "__init__.py")]
    command = [
        str(site / "bin" / "fedfinlora"),
        "demo",
        "model=tiny-random",
        "num_server_rounds=1",
        "evaluation.benchmarks=[fpb]",
        "workers=1",
    ]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    run = empty / "outputs" / "demo"
    assert [name for name in left_behind() if not (run / name).exists()] == []
    assert json.loads((run / "result.json").read_text("utf-8"))["status"] == "completed"
    assert json.loads((run / "manifest.json").read_text("utf-8"))["git_commit"] == ""
    checked = subprocess.run(
        [*command[:1], "data", "check"],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "Traceback" not in checked.stderr


@pytest.mark.slow
def test_the_app_bundle_holds_code_configuration_and_the_sample_alone(tracked_copy: Path, tmp_path: Path) -> None:
    flwr = Path(sys.executable).with_name("flwr")
    if not flwr.exists():
        pytest.skip("the flwr command is not installed next to this Python")
    subprocess.run(
        [str(flwr), "build", "--app", str(tracked_copy)],
        cwd=tmp_path, check=True, timeout=300, capture_output=True,
        env={**os.environ, "FLWR_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    (bundle,) = [*tmp_path.glob("*.fab"), *tracked_copy.glob("*.fab")]
    names = [name for name in zipfile.ZipFile(bundle).namelist() if not name.startswith(".info/")]
    assert [name for name in names if not PRODUCT_FILE.fullmatch(name)] == []
    assert "notes.py" not in names
    assert sum(name.startswith("data/sample/") and name.endswith(".jsonl") for name in names) == 50
    assert {"client_app/app.py", "server_app/app.py", "conf/config.yaml", "fedfinlora/wire/messages.py"} <= set(names)
    content = b"".join(zipfile.ZipFile(bundle).read(name) for name in names)
    assert b'"secret"' not in content
