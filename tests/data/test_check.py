"""`data check`: what it finds in folders made for the purpose, and that its text fits the terminal."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from data.check import SHOWN_BAD_ROWS, WIDTH, CheckReport, FileReport, LongRow, check_folder, render
from fedfinlora.errors import ConfigError, UserError

REAL_ROWS = Path(__file__).resolve().parents[3] / "shared" / "data" / "finlora"


def write(path: Path, *rows: dict[str, Any] | str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")


def row(text: str, target: str = "neutral") -> dict[str, str]:
    return {"context": f"Input: {text}\nAnswer: ", "target": target}


def words(texts: list[str]) -> list[list[int]]:
    """A tokenizer that takes words for tokens."""
    return [list(range(len(text.split()))) for text in texts]


def of(report: CheckReport, name: str) -> FileReport:
    return next(file for file in report.files if file.name == name)


def test_counts_labels_duplicates_and_overlap(tmp_path: Path) -> None:
    write(tmp_path / "train" / "fpb_train.jsonl", row("a"), row("a", "positive"), row("b"), row("c", "Neutral"))
    write(tmp_path / "test" / "fpb_test.jsonl", row("a"), row("d"), row("c"))
    report = check_folder(tmp_path)
    train, test = of(report, "train/fpb_train.jsonl"), of(report, "test/fpb_test.jsonl")
    assert (train.rows, train.duplicates, train.in_train, train.strange_labels) == (4, 1, 0, 1)
    assert train.answers == (("negative", 0), ("neutral", 2), ("positive", 1))
    assert (test.rows, test.duplicates, test.in_train) == (3, 0, 2)
    assert report.ok
    text = render(report)
    assert "labels: negative 0, neutral 2, positive 1" in text
    assert "warning: 1 target outside the label set" in text
    assert "warning: 2 prompts also in the train files" in text
    assert "Every line is a usable row." in text


def test_overlap_is_found_across_files(tmp_path: Path) -> None:
    write(tmp_path / "train" / "tfns_train.jsonl", row("a"))
    write(tmp_path / "test" / "fpb_test.jsonl", row("a"))
    assert of(check_folder(tmp_path), "test/fpb_test.jsonl").in_train == 1


def test_bad_rows_are_listed_with_file_and_line_up_to_five(tmp_path: Path) -> None:
    bad: list[dict[str, Any] | str | bytes] = [
        b'{"context": "\xff"}',
        '{"context": "x',
        row("a", ""),
        "[]",
        '{"context": "x"}',
        '{"target": "x"}',
        "nonsense",
    ]
    write(tmp_path / "train" / "fpb_train.jsonl", row("a"), *bad)
    report = check_folder(tmp_path)
    assert not report.ok
    assert [each.line for each in report.files[0].bad_rows] == [2, 3, 4, 5, 6, 7, 8]
    text = render(report)
    assert "bad: train/fpb_train.jsonl:2: not UTF-8 at byte 14 of the line" in text
    assert text.count("  bad: train/") == SHOWN_BAD_ROWS
    assert "bad: and 2 more" in text
    assert "7 faults to put right" in text


def test_unreadable_and_empty_files_are_reported(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "fpb_test.jsonl").mkdir()
    (tmp_path / "test" / "ner_test.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "test" / "tfns_test.jsonl").touch()
    write(tmp_path / "test" / "headline_test.jsonl", row("a", "Yes"))
    report = check_folder(tmp_path)
    assert not report.ok
    assert len(report.files) == 4
    text = render(report)
    assert "bad: test/fpb_test.jsonl: cannot be read: Is a directory" in text
    assert "bad: test/ner_test.jsonl: cannot be read: No such file or directory" in text
    assert "bad: test/tfns_test.jsonl: the file is empty" in text


def test_tokens_only_with_a_tokenizer(tmp_path: Path) -> None:
    write(tmp_path / "train" / "fpb_train.jsonl", row("one"), row("one two three"))
    without = check_folder(tmp_path)
    assert without.files[0].tokens is None
    assert "no tokenizer was given" in render(without)
    tokens = check_folder(tmp_path, tokenizer=words, context_tokens=6).files[0].tokens
    assert tokens is not None
    assert (tokens.mean, tokens.longest, tokens.over_window) == (4.0, 5, (LongRow(2, 7),))
    text = render(check_folder(tmp_path, tokenizer=words, context_tokens=6))
    assert (
        "1 row longer than the model's context window of 6 tokens, and skipped by a run: line 2 (7). Shorten"
        in " ".join(text.split())
    )
    assert "no tokenizer" not in text
    no_window = check_folder(tmp_path, tokenizer=words).files[0].tokens
    assert no_window is not None
    assert no_window.over_window == ()


def test_only_the_tasks_of_a_run_are_looked_at_and_the_others_are_named(tmp_path: Path) -> None:
    """A broken row of a task that is not trained is no fault of this run; one that is trained and has no file is
    named.
    """
    write(tmp_path / "train" / "fpb_train.jsonl", row("a"))
    write(tmp_path / "train" / "headline_train.jsonl", "broken")
    write(tmp_path / "train" / "finlora_sentiment_train.jsonl", row("b"))
    write(tmp_path / "test" / "fpb_test.jsonl", row("d"))
    write(tmp_path / "test" / "ner_test.jsonl", "broken")
    assert not check_folder(tmp_path).ok
    report = check_folder(tmp_path, wanted={"train": ("fpb", "xbrl_finer"), "test": ("fpb",)})
    assert [file.name for file in report.files] == ["train/fpb_train.jsonl", "test/fpb_test.jsonl"]
    assert report.ok
    assert report.passed_over == ("fiqa", "headline", "ner", "nwgi", "tfns")
    assert report.missing == ("xbrl_finer: no rows: there is no train/finer_train_batched.jsonl",)
    text = render(report)
    assert (
        "Not looked at, as dataset.tasks and evaluation.benchmarks leave it out: fiqa, headline, ner, nwgi, tfns."
        in text
    )
    assert "warning: xbrl_finer: no rows" in text


def test_files_of_other_names_are_named(tmp_path: Path) -> None:
    write(tmp_path / "train" / "fbp_train.jsonl", row("a"))
    report = check_folder(tmp_path)
    assert report.ignored == ("train/fbp_train.jsonl",)
    assert not report.ok
    text = render(report)
    assert "train/fbp_train.jsonl" in text
    assert "No rows: expected files such as train/fpb_train.jsonl" in text


def test_a_banks_folder_and_the_sample(tmp_path: Path) -> None:
    write(tmp_path / "bank-a" / "letters.jsonl", row("a", "pay by Monday"), row("b", "pay by Monday"), row("c", "no"))
    report = check_folder(tmp_path, "jsonl")
    assert report.files[0].answers == (("pay by Monday", 2), ("no", 1))
    assert report.files[0].tasks == ("custom",)
    assert report.ok
    assert check_folder("", "sample").ok


def test_wrong_folder_or_source_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        check_folder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="Choose one of: finlora, jsonl, sample"):
        check_folder(tmp_path, "hub")


@pytest.mark.parametrize("tokenizer", [None, words])
def test_every_line_fits_the_terminal(tmp_path: Path, tokenizer: Any) -> None:
    long = "desk-" + "x" * 90
    write(
        tmp_path / long / "deeper" / "letters.jsonl",
        row("a", "y" * 300),
        row("b", "z " * 300),
        "nonsense",
        *("{" for _ in range(4)),
    )
    write(
        tmp_path / "xbrl_extract_formula_calculations_train.jsonl",
        *(row(str(number), str(number)) for number in range(9)),
    )
    for line in render(check_folder(tmp_path, "jsonl", tokenizer)).splitlines():
        assert len(line) <= WIDTH


def test_100_000_rows_are_checked_within_ten_seconds(tmp_path: Path) -> None:
    write(tmp_path / "train" / "ner_train.jsonl", *(row(f"sentence {number}", "person") for number in range(100_000)))
    start = time.perf_counter()
    assert of(check_folder(tmp_path), "train/ner_train.jsonl").rows == 100_000
    assert time.perf_counter() - start < 10


@pytest.mark.skipif(not REAL_ROWS.is_dir(), reason=f"no FinLoRA rows at {REAL_ROWS}")
def test_real_rows_show_their_known_faults() -> None:
    report = check_folder(REAL_ROWS)
    assert {file.name: len(file.bad_rows) for file in report.files if file.bad_rows} == {
        "train/xbrl_term_train.jsonl": 6
    }
    assert of(report, "test/fiqa_test.jsonl").in_train > 0
    assert of(report, "test/ner_test.jsonl").duplicates == 100
    assert all(len(line) <= WIDTH for line in render(report).splitlines())
