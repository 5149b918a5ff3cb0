"""What is typed for a text field arrives as it was typed: in the configuration, and through Flower's run config at the
server.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args
from hypothesis import given
from hypothesis import strategies as st

from fedfinlora.compose import compose
from fedfinlora.config.checks import LONGEST_NAME_BYTES
from fedfinlora.config.words import split_text, text_keys, toml_text, word
from fedfinlora.deployment.flower_link import run_config_toml
from fedfinlora.errors import ConfigError
from server_app.app import config_of

NAMES = [
    "Lauf Ü",
    "2024_01",
    "007",
    "null",
    "true",
    "1e5",
    "a=b,c",
    "[x]{y}",
    "it's",
    'say "hi"',
    "$HOME ${seed}",
    "~x",
    "a\\",
    "-",
    "#1",
    "a: b",
    "日本",
]
ANY = st.text(alphabet=st.sampled_from("ab \\\"'$={}[],:#~Ü\n\t"), max_size=12)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stays_what_was_typed(name: str, tmp_path: Path) -> None:
    config = compose([f"run_name={name}", f"output_dir={tmp_path / name}"])
    assert config.run_name == name
    assert config.output_dir == str(tmp_path / name)


def test_a_value_may_be_quoted() -> None:
    assert compose(['run_name="Lauf Ü"']).run_name == "Lauf Ü"
    assert compose(["run_name='007'"]).run_name == "007"
    assert compose(["++run_name=a"]).run_name == "a"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_passes_through_flowers_run_config(name: str, tmp_path: Path) -> None:
    model, rows = tmp_path / f"model {name}", tmp_path / f"rows {name}"
    model.mkdir()
    rows.mkdir()
    typed = [
        "dataset=jsonl",
        f"dataset.root={rows}",
        f"model.path={model}",
        f"output_dir={tmp_path}",
        f"run_name={name}",
    ]
    config = compose([*typed, "dataset.tasks=[fpb]", "seed=7"])
    file = tmp_path / f"run config {name}.toml"
    file.write_text(run_config_toml(config), "utf-8")
    assert config_of({"seed": 0, "evaluation": "quick", **parse_config_args([str(file)])}) == config
    assert (config.run_name, config.model.path, config.dataset.root) == (name, str(model), str(rows))
    assert config.model.name == model.name


@given(ANY)
def test_a_word_reads_back_as_the_same_text(value: str) -> None:
    assert split_text([word("model.path", value)]) == ({"model.path": value}, [])


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_toml_takes_every_text(value: str) -> None:
    written = f"key={toml_text(value)}"
    assert tomllib.loads(written)["key"] == value
    assert parse_config_args([written])["key"] == value


@pytest.mark.parametrize("name", ["a/b", ".", "..", "a\nb", "a\x1b[2J", "x" * (LONGEST_NAME_BYTES + 1), "Ü" * 101])
def test_a_name_that_no_folder_can_have_is_refused_at_once(name: str) -> None:
    with pytest.raises(ConfigError, match=r"run_name=.*plain folder name"):
        compose([f"run_name={name}"])


def test_bytes_that_are_no_utf8_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.root holds bytes"):
        compose(["dataset.root=\udcff"])
    with pytest.raises(ConfigError, match="zero byte"):
        compose(["dataset.root=a\0b"])


def test_other_fields_are_read_by_hydra() -> None:
    assert {"run_name", "model.path", "dataset.root", "resume"} <= text_keys()
    assert not {"seed", "peft.target_modules", "overwrite"} & text_keys()
    config = compose(["peft.target_modules=[q_proj]", "seed=3"])
    assert (config.peft.target_modules, config.seed) == (("q_proj",), 3)
