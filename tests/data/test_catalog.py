"""The catalogue: complete, transcribed without slips, and clear when asked for something that does not exist."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.catalog import (
    BENCHMARKS,
    GROUPS,
    PUBLISHED_COLUMNS,
    PUBLISHED_FEDERATED,
    PUBLISHED_FEDERATED_TASKS,
    PUBLISHED_OVERALL,
    Benchmark,
    merged_files,
    select,
)
from data.merged import classify_merged
from eval.scoring.parsers import PARSERS
from eval.scoring.scorers import SCORERS
from fedfinlora.errors import ConfigError

REAL_ROWS = Path(__file__).resolve().parents[3] / "shared" / "data" / "finlora"
PUBLISHED = {key: benchmark for key, benchmark in BENCHMARKS.items() if benchmark.is_published}


def test_finlora_has_nineteen_benchmarks_in_four_groups() -> None:
    assert len(PUBLISHED) == 19
    assert {group: sum(b.group == group for b in PUBLISHED.values()) for group in GROUPS if group != "flare"} == {
        "general": 6,
        "certificate": 4,
        "reporting": 3,
        "analysis": 6,
    }


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=list(BENCHMARKS))
def test_every_entry_is_complete(benchmark) -> None:
    assert benchmark.group in GROUPS
    assert benchmark.parser in PARSERS
    assert benchmark.scorer in SCORERS
    assert benchmark.budget_tokens > 0
    assert list(benchmark.published) == list(PUBLISHED_COLUMNS)
    assert benchmark.source
    assert benchmark.licence


@pytest.mark.parametrize("benchmark", PUBLISHED.values(), ids=list(PUBLISHED))
def test_every_published_entry_has_all_of_finloras_figures(benchmark) -> None:
    assert benchmark.budget_tokens in (10, 20, 30, 50, 100)
    assert all((score.accuracy is None) == (benchmark.scorer == "bertscore") for score in benchmark.published.values())
    assert all(0 < score.f1 < 1 for score in benchmark.published.values())
    assert benchmark.best_other_name


@pytest.mark.parametrize("column", [column for column in PUBLISHED_COLUMNS if column != "best_other"])
def test_published_overall_is_the_mean_of_the_published_table(column) -> None:
    scores = [
        100 * s.f1 if s.accuracy is None else s.accuracy for s in (b.published[column] for b in PUBLISHED.values())
    ]
    assert sum(scores) / 19 == pytest.approx(PUBLISHED_OVERALL[column], abs=0.006)


def test_published_federated_mean_is_the_mean_of_its_tasks() -> None:
    federated = PUBLISHED_FEDERATED["federated"]
    assert sum(federated[task] for task in PUBLISHED_FEDERATED_TASKS) / 4 == pytest.approx(federated["mean"], abs=0.006)


def test_file_names_are_unique() -> None:
    stems = [stem for b in BENCHMARKS.values() for stem in (b.test_file, *b.train_files)] + list(merged_files())
    assert len(stems) == len(set(stems))
    assert merged_files() == {
        "finlora_sentiment_train": ("fpb", "fiqa", "tfns", "nwgi"),
        "xbrl_extract_train": (
            "xbrl_tags_extract",
            "xbrl_value_extract",
            "xbrl_formula_extract",
            "xbrl_formula_calc_extract",
        ),
    }


def test_select_expands_groups_and_keeps_table_order() -> None:
    assert [b.key for b in select(["all"])] == list(PUBLISHED)
    assert [b.key for b in select(["flare"])] == [key for key in BENCHMARKS if key not in PUBLISHED]
    assert [b.key for b in select(["finqa", "all"])] == [*PUBLISHED, "finqa"]
    assert select(["none"]) == ()
    assert [b.key for b in select(["reporting", "fpb", "xbrl_finer"])] == [
        "fpb",
        "xbrl_finer",
        "xbrl_fnxl",
        "xbrl_term",
    ]


def test_select_names_what_is_valid() -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"Unknown benchmark 'fbp'. Did you mean 'fpb'\? Choose one of: "
            r".*certificate.*fiqa"
        ),
    ):
        select(["fbp"])
    with pytest.raises(ConfigError, match="cannot be combined"):
        select(["none", "fpb"])


@pytest.mark.parametrize(
    ("context", "target", "key"),
    [
        ("Instruction: ... {strong negative/neutral}.\nInput: a tweet\nAnswer: ", "neutral", "nwgi"),
        ("Instruction: Sentiment?\nInput: x\nAnswer: ", "mildly positive", "nwgi"),
        ("Instruction: the sentiment of this tweet?\nInput: x\nAnswer: ", "neutral", "tfns"),
        ("Instruction: the sentiment of this news?\nInput: he wrote a tweet\nAnswer: ", "neutral", "fpb"),
    ],
)
def test_merged_sentiment_rows_are_distinguished_by_the_instruction_only(context, target, key) -> None:
    assert classify_merged("finlora_sentiment_train", context, target) == key


@pytest.mark.parametrize(
    ("target", "key"),
    [
        ("us-gaap:Assets", "xbrl_tags_extract"),
        ("-12.0", "xbrl_value_extract"),
        ("us-gaap:Assets / us-gaap:Liabilities", "xbrl_formula_extract"),
        ("(7 - 2) / 3", "xbrl_formula_calc_extract"),
    ],
)
def test_merged_xbrl_rows_without_an_example_go_by_the_target(target, key) -> None:
    assert classify_merged("xbrl_extract_train", "Question: ?\nAnswer:", target) == key


def test_classify_merged_refuses_other_files() -> None:
    with pytest.raises(ConfigError, match="merged train file 'fpb_train'"):
        classify_merged("fpb_train", "", "")


def test_real_merged_rows_are_distinguished() -> None:
    if not REAL_ROWS.is_dir():
        pytest.skip(f"no real rows at {REAL_ROWS}")
    exact = {"nwgi": "nwgi", "tfns": "tfns", "fpb": "fpb", **{key: key for key in merged_files()["xbrl_extract_train"]}}
    for key, expected in exact.items():
        benchmark = BENCHMARKS[key]
        with (REAL_ROWS / "train" / f"{benchmark.train_files[0]}.jsonl").open() as lines:
            rows = [json.loads(line) for line, _ in zip(lines, range(200), strict=False)]
        found = {classify_merged(benchmark.merged_train_file, row["context"], row["target"]) for row in rows}
        assert found == {expected}, key


# --- a twentieth benchmark ------------------------------------------------------------------------

TWENTIETH = Benchmark(
    key="esg_rating",
    title="ESG rating",
    group="analysis",
    test_file="esg_rating_test",
    train_files=("esg_rating_train",),
    labels=("low", "lower", "high"),
    budget_tokens=5,
    parser="label",
    scorer="exact",
    source="Invented for this test",
    licence="none",
)


@pytest.fixture
def twentieth(monkeypatch: pytest.MonkeyPatch) -> Iterator[Benchmark]:
    """The catalogue with one entry more."""
    from data.sources import names

    monkeypatch.setitem(BENCHMARKS, TWENTIETH.key, TWENTIETH)
    names._known_names.cache_clear()
    yield TWENTIETH
    names._known_names.cache_clear()


def write_rows(file: Path, targets: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"context": f"Filing {place}. Answer:", "target": target}) for place, target in enumerate(targets)
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("source", ["finlora", "jsonl"])
def test_a_twentieth_benchmark_is_found_and_checked(twentieth: Benchmark, tmp_path: Path, source: str) -> None:
    from data.check import check_folder, render
    from data.sources import load_rows
    from fedfinlora.config.dataset import DatasetConfig

    write_rows(tmp_path / "train" / "esg_rating_train.jsonl", ["low", "high"])
    write_rows(tmp_path / "test" / "esg_rating_test.jsonl", ["low", "lower", "medium"])
    dataset = DatasetConfig(source=source, root=str(tmp_path))
    assert [row.task for row in load_rows(dataset, "test").rows] == ["esg_rating"] * 3
    assert [row.task for row in load_rows(dataset, "train", ("esg_rating",)).rows] == ["esg_rating"] * 2
    assert select(["esg_rating"]) == (twentieth,)
    assert twentieth in select(["analysis"])
    report = check_folder(tmp_path, source)
    assert [(file.rows, file.strange_labels) for file in report.files] == [(2, 0), (3, 1)]
    assert "labels: low 1, lower 1, high 0" in render(report)


def test_a_twentieth_benchmark_is_scored_and_stays_out_of_finloras_average(twentieth: Benchmark) -> None:
    from data.rows import Row
    from eval.metrics.averages import finlora_overall, group_means
    from eval.scoring.records import score_rows

    rows = [
        Row(f"esg_rating/test/{place:06d}", "esg_rating", "Answer:", target)
        for place, target in enumerate(["low", "lower"])
    ]
    records, metrics = score_rows(twentieth, rows, ["Lower", "lower."])
    assert [record.parsed for record in records] == ["lower", "lower"]
    assert (metrics.value("accuracy"), metrics.value("finlora_accuracy"), metrics.finlora_ambiguous) == (0.5, 0.5, 2)
    assert metrics.confusion.labels == ("low", "lower", "high")
    assert group_means({"esg_rating": metrics})["analysis"].score == 0.5
    overall = finlora_overall({"esg_rating": metrics})
    assert overall.value is None
    assert len(overall.missing) == 19


def test_a_twentieth_benchmark_is_in_the_documentation_and_the_report(twentieth: Benchmark, tmp_path: Path) -> None:
    from benchmarks.benchmarks_reference import render
    from eval.report import write_run_report

    page = render()
    assert (
        "| `esg_rating` | ESG rating | `esg_rating_train` | `esg_rating_test` |  | Invented for this test | none |  |"
        in page
    )
    assert "| `esg_rating` | low, lower, high | 5 | `label` | `exact` |  |" in page
    (tmp_path / "result.json").write_text(json.dumps({"scores": {"final": {"esg_rating": {"n": 2, "accuracy": 0.5}}}}))
    assert "ESG rating" in write_run_report([tmp_path], tmp_path / "report.html").read_text("utf-8")
