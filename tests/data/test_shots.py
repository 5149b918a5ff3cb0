"""Few-shot prompts: the same seeded examples for all rows, none of them evaluated, and the row's prompt still the
end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import tiny_config
from hypothesis import given
from hypothesis import strategies as st

from data.catalog import BENCHMARKS
from data.rows import Row
from data.shots import few_shot_rows, with_shots
from fedfinlora.config.dataset import DatasetConfig
from fedfinlora.config.evaluation import EvaluationConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError

FPB = BENCHMARKS["fpb"]
FORMULA = BENCHMARKS["formula"]


def made(
    split: str, count: int, task: str = "fpb", labels: Sequence[str] = ("positive", "negative", "neutral")
) -> list[Row]:
    return [
        Row(f"{task}/{split}/{index:06d}", task, f"Rate {split} text {index}. Answer: ", labels[index % len(labels)])
        for index in range(count)
    ]


TEST, TRAIN = made("test", 5), made("train", 30)


def test_rows_keep_everything_but_get_the_examples_in_front() -> None:
    shot = with_shots(TEST, TRAIN, 3, 0, FPB)
    first, second, third = shot.examples
    expected = "".join(f"{example.prompt}{example.target}\n\n" for example in (first, second, third))
    assert [row.prompt for row in shot.rows] == [expected + row.prompt for row in TEST]
    assert [replace(row, prompt="") for row in shot.rows] == [replace(row, prompt="") for row in TEST]
    assert (shot.shortage, shot.skipped) == ("", "")


def test_zero_shots_change_nothing() -> None:
    assert with_shots(TEST, TRAIN, 0, 0, FPB).rows == tuple(TEST)
    assert with_shots([], TRAIN, 3, 0, FPB).skipped == ""


def test_finlora_still_reads_the_answer_after_the_last_marker() -> None:
    shot = with_shots(TEST, TRAIN, 3, 0, FPB)
    for row in shot.rows:
        assert f"{row.prompt}neutral".split("Answer:")[-1].strip() == "neutral"


def test_one_blank_precedes_an_answer_also_if_the_prompt_ends_in_one() -> None:
    train = [Row("a", "fpb", "One. Answer:", "positive"), Row("b", "fpb", "Two. Answer: ", " negative ")]
    prompt = with_shots(TEST, train, 2, 0, FPB).rows[0].prompt
    assert {"One. Answer: positive\n", "Two. Answer: negative\n"} <= set(prompt.splitlines(keepends=True))


def test_the_same_seed_gives_the_same_examples_and_another_seed_others() -> None:
    one, again, other = (with_shots(TEST, TRAIN, 3, seed, FPB).examples for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_examples_do_not_depend_on_how_many_rows_are_evaluated() -> None:
    assert with_shots(TEST, TRAIN, 3, 0, FPB).examples == with_shots(TEST[:1], TRAIN, 3, 0, FPB).examples


@given(st.integers(0, 20), st.integers(1, 8), st.sets(st.integers(0, 19)))
def test_no_example_has_the_prompt_of_an_evaluated_row(seed: int, shots: int, shared: set[int]) -> None:
    train = made("train", 20)
    rows = TEST + [
        replace(train[index], id=f"fpb/test/x{index}", prompt=f" {train[index].prompt}\n") for index in shared
    ]
    shot = with_shots(rows, train, shots, seed, FPB)
    evaluated = {row.prompt.strip() for row in rows}
    assert not evaluated & {example.prompt.strip() for example in shot.examples}
    assert len(shot.examples) == min(shots, 20 - len(shared))
    assert bool(shot.skipped) == (len(shared) == 20)


@given(st.integers(0, 50))
def test_examples_of_a_closed_label_set_take_turns_over_the_labels(seed: int) -> None:
    uneven = [replace(row, target="positive") for row in TRAIN[:24]] + TRAIN[24:]
    assert {row.target for row in with_shots(TEST, uneven, 3, seed, FPB).examples} == set(FPB.labels)
    counts = [row.target for row in with_shots(TEST, uneven, 5, seed, FPB).examples]
    assert sorted(counts.count(label) for label in FPB.labels) == [1, 2, 2]


def test_labels_that_the_train_part_lacks_are_made_up_by_others() -> None:
    train = made("train", 9, labels=("positive", "negative"))
    assert len(with_shots(TEST, train, 3, 0, FPB).examples) == 3


def test_repeated_train_rows_count_once() -> None:
    train = [replace(row, id=f"{row.id}#{copy}") for copy in range(3) for row in made("train", 2)]
    shot = with_shots(TEST, train, 3, 0, FPB)
    assert len({example.prompt for example in shot.examples}) == len(shot.examples) == 2


def test_fewer_train_rows_than_shots_are_used_and_reported() -> None:
    shot = with_shots(TEST, TRAIN[:2], 3, 0, FPB)
    assert len(shot.examples) == 2
    assert shot.shortage.startswith("2 of 3 examples")
    assert len(shot.rows) == len(TEST)


@pytest.mark.parametrize(
    "train", [[], made("train", 5, "fiqa"), TEST], ids=["none", "another task's", "the evaluated ones"]
)
def test_no_train_rows_skip_the_benchmark_with_the_reason(train: list[Row]) -> None:
    shot = with_shots(TEST, train, 3, 0, FPB)
    assert (shot.rows, shot.examples) == ((), ())
    assert "no train row" in shot.skipped


def test_long_examples_are_passed_over_so_that_the_longest_prompt_fits() -> None:
    long = [replace(row, prompt="word " * 300 + row.prompt) for row in made("train", 40, "formula", "1234")]
    short = [replace(row, prompt=f"Short {row.prompt}") for row in made("train", 4, "formula", "1234")]
    rows = [*made("test", 3, "formula"), Row("x", "formula", "word " * 100 + "Answer:", "1")]
    shot = with_shots(rows, [*long, *short], 3, 0, FORMULA, len, 1000)
    assert all(example.prompt.startswith("Short") for example in shot.examples)
    assert len(shot.examples) == 3
    assert max(len(row.prompt) for row in shot.rows) <= 1000


def test_examples_that_never_fit_skip_the_benchmark_as_too_long() -> None:
    long = [replace(row, prompt="word " * 300 + row.prompt) for row in TRAIN]
    shot = with_shots(TEST, long, 3, 0, FPB, len, 400)
    assert "too long" in shot.skipped
    assert "model.context_tokens" in shot.skipped


def test_a_row_that_is_too_long_by_itself_leaves_the_others_their_examples() -> None:
    rows = [*TEST, Row("x", "fpb", "word " * 500 + "Answer:", "positive")]
    assert len(with_shots(rows, TRAIN, 3, 0, FPB, len, 400).examples) == 3


def test_only_so_many_train_rows_are_measured() -> None:
    measured: list[str] = []

    def length(text: str) -> int:
        measured.append(text)
        return len(text)

    long = [replace(row, prompt="word " * 300 + row.prompt) for row in made("train", 2000)]
    assert with_shots(TEST, long, 3, 0, FPB, length, 400).skipped
    assert len(measured) <= 505


def test_every_benchmark_of_the_sample_has_three_shots() -> None:
    config = tiny_config(evaluation=EvaluationConfig(shots=3))
    for benchmark in BENCHMARKS.values():
        rows = made("test", 2, benchmark.key)
        shot = few_shot_rows(config, benchmark, rows)
        assert len(shot.examples) == 3, benchmark.key
        assert {example.task for example in shot.examples} == {benchmark.key}
        assert shot.examples == few_shot_rows(config, benchmark, rows).examples


def finlora_folder(root: Path, on_bad_row: str = "skip") -> Config:
    (root / "train").mkdir()
    (root / "test").mkdir()
    dataset = DatasetConfig(source="finlora", root=str(root), on_bad_row=on_bad_row)
    return tiny_config(dataset=dataset, evaluation=EvaluationConfig(shots=3))


def test_a_benchmark_without_a_train_part_is_skipped_with_the_reason(tmp_path: Path) -> None:
    shot = few_shot_rows(finlora_folder(tmp_path), FPB, TEST)
    assert shot.rows == ()
    assert "evaluation.shots=3" in shot.skipped
    assert "fpb_train" in shot.skipped


def test_a_bad_train_row_stops_where_bad_rows_are_to_stop(tmp_path: Path) -> None:
    config = finlora_folder(tmp_path, "stop")
    (tmp_path / "train" / "fpb_train.jsonl").write_text('{"context": ""}\n')
    with pytest.raises(UserError, match=r"fpb_train\.jsonl:1"):
        few_shot_rows(config, FPB, TEST)
