"""Words of the command line that are no settings: each is one line with status 2 that names the word and what it
takes.
"""

from __future__ import annotations

import pytest

from fedfinlora.compose import compose
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.loading import MOST_THREADS, load_base

ODD = {
    "seed=٣": "seed=٣",
    "train.learning_rate =1": "not of the form key=value",
    "train..learning_rate=1": "not of the form key=value",
    ".train=1": "not of the form key=value",
    "train.=1": "not of the form key=value",
    "=1": "not of the form key=value",
    "train.learning_rate=1,5": r"train\.learning_rate takes one value, not 1,5\. .*a fraction has a point",
    "dataset.tasks=fpb,tfns": r"dataset\.tasks takes one value, not fpb,tfns\. A list is written dataset\.tasks=\[a,b\]",  # noqa: E501
    "seed=range(1,3)": "seed takes one value",
    "dataset.tasks={fpb: 1}": r"dataset\.tasks does not take \{fpb: 1\}: docs/configuration\.md",
    "peft=[lora,dora]": r"Unknown peft '\[lora,dora\]'. Choose one of: dora, eva",
    "peft=null": "Unknown peft 'null'. Choose one of: dora, eva",
    "peft=lora/x": "Unknown peft 'lora/x'. Choose one of: dora, eva",
    "experiment=../config": "Unknown experiment '../config'. Choose one of: curriculum",
    "hydra.run.dir=/tmp/x": r"hydra\.run\.dir: Hydra itself is not configured here",
    "train.learning_rate=nan": "train.learning_rate must be a finite number",
    "dataset.equalize_tasks=yes": "dataset.equalize_tasks must be of type bool, not 'yes'",
    "dataset.tasks=[1]": "dataset.tasks must be a list of names",
    "run_name=a/b": "run_name='a/b' must be a plain folder name: it holds a slash",
    "run_name=..": "it names another folder",
    "run_name='night '": "it begins or ends with a blank",
    "run_name=night.": "ends with a point",
    "run_name=con": "Windows keeps this name for a device",
    "run_name=LPT1.2": "Windows keeps this name for a device",
    f"run_name={'n' * 300}": "it has 300 bytes, and 200 are possible",
    "stages={}": r"stages is a group of a file such as experiment=curriculum.*stages\.NAME\.KEY=",
    "+stages={a: {seed: 1}}": "stages is a group of a file",
    "Train.learning_rate=1": "Unknown configuration key Train.learning_rate",
}


@pytest.mark.parametrize("word", ODD)
def test_an_odd_word_is_named_with_what_its_key_takes(word: str) -> None:
    with pytest.raises(ConfigError, match=ODD[word]) as said:
        compose([word])
    assert "Exception" not in str(said.value)
    assert str(said.value).isprintable()


def test_words_that_are_settings_are_taken() -> None:
    """Names of any letters, a list of one element with and without brackets, the last of two, a group in quotes."""
    for name in ("Größe Ü", "a=b", "[a]", "-a", "~", "yes", "1e5", "$HOME", "it's"):
        assert compose([f"run_name={name}"]).run_name == name
    assert (
        compose(["dataset.tasks=fpb"]).dataset.tasks == compose(["dataset.tasks=[ 'fpb' ]"]).dataset.tasks == ("fpb",)
    )
    assert compose(["seed=1", "seed=2"]).seed == 2
    assert compose(["peft='dora'"]).peft.method == "dora"


@pytest.mark.parametrize("path", ["", "/no/such", "a b/c", "y" * 5000])
def test_a_model_that_is_no_folder_and_no_name_says_so(path: str) -> None:
    config = compose(["model=tiny-random", f"model.path={path}"])
    with pytest.raises(UserError, match=r"is no folder here, and no name of a model on the hub") as said:
        load_base(config.model)
    assert len(str(said.value)) < 400


def test_more_threads_than_any_machine_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=f"model.threads=100000 is above {MOST_THREADS:,}"):
        load_base(compose(["model=tiny-random", "model.threads=100000"]).model)
