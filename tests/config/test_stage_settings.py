"""Stages at the door: composed, stacked and checked before a model is loaded; errors name the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from data.catalog import BENCHMARKS, select
from fedfinlora.compose import CONF_FOLDER, compose, compose_stages
from fedfinlora.config.peft import PeftConfig
from fedfinlora.config.schema import Config
from fedfinlora.config.stages import StagesConfig, stages_of
from fedfinlora.config.values import to_plain
from fedfinlora.errors import ConfigError

CURRICULUM = "experiment=curriculum"
FIRST = ("+stages.first.peft.rank=4", "+stages.first.peft.alpha=8", "+stages.first.dataset.tasks=[formula]")
SECOND = ("+stages.second.peft.rank=8", "+stages.second.peft.alpha=32", "+stages.second.dataset.tasks=[fpb,formula]")
TWO = ("peft=lora", "model=tiny-random", *FIRST, *SECOND)


def test_the_curriculum_is_as_it_is_described() -> None:
    complex_one, simple = compose_stages([CURRICULUM])
    assert [stage.folder for stage in (complex_one, simple)] == ["stage-1-complex", "stage-2-simple"]
    first, second = complex_one.config, simple.placed("before")
    assert (first.peft.rank, first.peft.alpha, first.train.epochs) == (16, 32, 2)
    assert set(first.peft.target_modules) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert (simple.config.peft.rank, simple.config.peft.alpha, second.train.epochs) == (32, 64, 3)
    assert len(second.peft.target_modules) == 7
    assert (second.peft.rank, second.peft.alpha, second.peft.frozen_rank) == (48, 96, 16)
    assert second.peft.trained_modules == ()
    assert second.start_adapter == "before"
    assert not second.evaluation.base


def test_reversed_keeps_layers_that_a_stage_does_not_train() -> None:
    simple, complex_one = compose_stages([CURRICULUM, "stages_order=reversed"])
    assert (simple.name, complex_one.name, complex_one.order) == ("simple", "complex", "reversed")
    stacked = complex_one.stacked
    assert (stacked.rank, stacked.alpha, stacked.frozen_rank) == (48, 96, 32)
    assert set(stacked.trained_modules) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert set(stacked.target_modules) > set(stacked.trained_modules)


def test_mixed_has_all_tasks_and_rounds_in_one_stage() -> None:
    [mixed] = compose_stages([*TWO, "stages_order=mixed", "+stages.first.num_server_rounds=5"])
    assert mixed.config.dataset.tasks == ("formula", "fpb")
    assert mixed.config.num_server_rounds == 5 + 3
    assert mixed.config.peft.rank == 8
    assert [part.peft.rank for part in mixed.mixed] == [4, 8]


def test_three_stages_stack_one_on_another() -> None:
    stages = compose_stages([*TWO, "+stages.third.peft.rank=2", "+stages.third.peft.alpha=2"])
    assert [(stage.stacked.rank, stage.stacked.alpha, stage.stacked.frozen_rank) for stage in stages] == [
        (4, 8, 0), (12, 48, 4), (14, 14, 12)
    ]  # fmt: skip


def test_the_experiments_tasks_are_benchmarks_with_rows_to_train_on() -> None:
    for file in CONF_FOLDER.glob("experiment/curriculum*.yaml"):
        values = yaml.safe_load(file.read_text("utf-8"))
        tasks = [task for stage in values["stages"].values() for task in stage["dataset"]["tasks"]]
        assert len(set(tasks)) == len(tasks)
        assert set(tasks) <= set(BENCHMARKS)
        assert {one.key for one in select(values["evaluation"]["benchmarks"])} == set(tasks)


def test_one_stage_is_composed_by_its_name(tmp_path: Path) -> None:
    assert compose([*TWO, "stage=first"]).peft.frozen_rank == 0
    config = compose([*TWO, "stage=second", "start_adapter=there"], tmp_path)
    assert (config.peft.frozen_rank, config.start_adapter) == (4, str(tmp_path / "there"))
    assert config.dataset.tasks == ("fpb", "formula")


def test_a_stages_setting_may_be_changed_or_added() -> None:
    config = compose([CURRICULUM, "stages.complex.train.epochs=1", "stages.complex.train.learning_rate=1e-3",
                      "stage=complex"])  # fmt: skip
    assert (config.train.epochs, config.train.learning_rate) == (1, 1e-3)


def test_without_stages_nothing_changes() -> None:
    assert compose_stages(["model=tiny-random"]) == ()
    assert compose_stages([*TWO, "stage=first"]) == ()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ((), r"has 2 stages \(first, second\), which .* one after the other. Here name one: stage=first, then"),
        (("stages_order=mixed", "stage=mixed"), "Here name one: stage=first, then stage=second"),
        (("stage=second",), "stage second: it needs start_adapter="),
        (("dataset.tasks=[fpb]",), "dataset.tasks is set by stage first. Type stages.first.dataset.tasks="),
        (("stages.frst.train.epochs=1",), "Unknown stage 'frst'. Did you mean 'first'"),
        (("stages.first.peft.rnk=1",), "stage first: Unknown configuration key peft.rnk. Did you mean peft.rank"),
    ],
)
def test_wrong_words_are_refused_at_the_door(more: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        compose([*TWO, *more])


@pytest.mark.parametrize("more", [("stage=first",), ("stages_order=reversed",)])
def test_their_keys_go_with_stages(more: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="goes with a configuration that has stages"):
        compose([*more])


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        ([1], "stages must be groups of settings by name"),
        ({"first": 1}, "stage first must be groups"),
        ({"two words": {}}, "'two words' is no name for a stage"),
        ({"mixed": {}}, "'mixed' is no name for a stage"),
        ({"first": {"banks": 3}}, "stage first: banks is the same for all stages"),
        ({"first": {"model": {"name": "other"}}}, "stage first: model is the same for all stages"),
        ({"first": {"peft": {"rank": 0}}}, "stage first: peft.rank must be above 0"),
        ({"first": {"peft": {"rank": "many"}}}, "stage first: peft.rank must be of type int"),
        ({"first": {"peft": "dora"}}, "stage first: peft must be a group of keys"),
        ({"first": {}, "second": {"peft": {"rank": 3}}}, "stage second: peft.alpha=16 .* would be alpha 58.6667 of"),
        ({"first": {}, "second": {"peft": {"method": "dora"}}}, "stage second: a stage on top of .* peft=lora"),
        ({"first": {}, "second": {"peft": {"freeze_a": True}}}, "stage second: a stage on top .* peft.freeze_a=true"),
        ({"first": {}, "second": {"strategy": {"name": "hetlora"}}}, "stage second: .* not go with strategy=hetlora"),
    ],
)
def test_wrong_stages_are_refused_by_name(stages: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        stages_of(StagesConfig(stages=stages), to_plain(Config(peft=PeftConfig(method="lora"))))


@pytest.mark.parametrize(
    ("order", "stage", "reason"),
    [
        ("backwards", "", "Unknown stages_order 'backwards'"),
        ("given", "secnd", r"Unknown stage 'secnd'. Did you mean 'second'\?"),
        ("mixed", "second", "Unknown stage 'second'. Choose one of: mixed"),
    ],
)
def test_an_unknown_order_or_stage_is_refused(order: str, stage: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        StagesConfig({"first": {}, "second": {}}, order, stage)


def test_mixed_stages_must_have_the_same_rows() -> None:
    stages = StagesConfig({"first": {"dataset": {"max_rows_per_task": 9}}, "second": {}}, "mixed")
    with pytest.raises(ConfigError, match=r"needs the same dataset.max_rows_per_task in stages first"):
        stages_of(stages, to_plain(Config()))
