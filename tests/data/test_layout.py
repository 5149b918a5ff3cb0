"""Which files a folder means: `data check` reads what training reads, what is not read is named, and odd names are
names.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from powers import as_an_ordinary_user

from data.check import WIDTH, check_folder, render
from data.sources import layout_of, load_rows, state_of_files
from data.sources.layout import find
from data.sources.listing import shown
from data.sources.load import _warn
from fedfinlora.cli import main
from fedfinlora.config.dataset import DatasetConfig
from fedfinlora.errors import UserError

FPB = {"context": "Say. Answer: ", "target": "neutral"}


def write(path: Path, rows: int = 1, bad: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(FPB | {"context": f"{shown(str(path))} {number} Answer:"}) + "\n" for number in range(rows))
        + "{\n" * bad
    )
    return path


def names(root: Path, layout: str, split: str = "train") -> list[str]:
    return [file.name for file in find(root, layout, split).files]


def reasons(root: Path, layout: str) -> dict[str, str]:
    return {entry.name: entry.reason for entry in check_folder(root, layout).not_read}


def checked(root: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = main(["data", "check", str(root), "model=tiny-random", *words])
    ended = capsys.readouterr()
    assert "Traceback" not in ended.err
    return status, ended.out


# A folder a bank


@pytest.fixture
def banks(tmp_path: Path) -> Path:
    """README's layout with one broken line."""
    write(tmp_path / "banks" / "north" / "fpb_train.jsonl", rows=3, bad=1)
    write(tmp_path / "banks" / "south" / "fpb_train.csv").write_text("context,target\np Answer:,neutral\n")
    write(tmp_path / "banks" / "south" / "2024" / "headline_train.JSONL", rows=2)
    write(tmp_path / "banks" / "test" / "fpb_test.jsonl", rows=4)
    return tmp_path / "banks"


def test_check_reads_a_folder_a_bank_as_training_does(banks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = checked(banks, capsys)
    assert status == 1
    assert "bad: north/fpb_train.jsonl:4: not JSON" in text
    assert "north: fpb 3 (1 bad)" in text
    assert "south: fpb 1, headline 2" in text
    assert "Test rows, for the evaluation alone: fpb 4" in text
    assert "partition=by_path banks=2" in text
    assert "read as dataset=jsonl" in text


@pytest.mark.parametrize("words", [(), ("dataset=jsonl",), ("dataset=finlora",)])
def test_check_and_training_read_the_same_files(banks: Path, words: tuple[str, ...]) -> None:
    source = "finlora" if words == ("dataset=finlora",) else "jsonl"
    report = check_folder(banks, source)
    for split in ("train", "test"):
        try:
            loaded = load_rows(DatasetConfig(source=source, root=str(banks)), split)
        except UserError:
            assert not any(file.rows for file in report.files if file.split == split)
            continue
        assert {file.name for file in report.files if file.split == split} == set(loaded.files)
        assert sum(file.rows for file in report.files if file.split == split) == len(loaded.rows)
        assert [bad for file in report.files if file.split == split for bad in file.bad_rows] == list(loaded.bad_rows)


def test_the_configured_layout_is_what_check_reads(banks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = checked(banks, capsys, "dataset=finlora")
    assert status == 0
    assert "read as dataset=finlora" in text
    assert "north/fpb_train.jsonl" in text.split("Not read")[1]
    assert "3 files or folders not read" in text


def test_a_single_file_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "fpb_train.jsonl", rows=2)
    assert len(load_rows(DatasetConfig(source="jsonl", root=str(file)), "train").rows) == 2
    status, text = checked(file, capsys)
    assert status == 0
    assert "1 file, 2 rows" in text
    with pytest.raises(
        UserError,
        match=(
            r"No train rows .*Not read: rows\.xlsx \(an Excel workbook: save it as CSV "
            r"UTF-8\)"
        ),
    ):
        load_rows(DatasetConfig(source="jsonl", root=str(write(tmp_path / "rows.xlsx"))), "train")


# A bank's own folder with train/ and other files


def test_a_folder_with_train_and_other_files_names_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "train" / "fpb_train.jsonl", 10)
    write(tmp_path / "letters.jsonl", 80)
    write(tmp_path / "raw" / "fpb_train.jsonl", 5)
    write(tmp_path / "train" / "fbp_train.jsonl", 5)
    assert layout_of(tmp_path) == "finlora"
    _warn.cache_clear()
    with caplog.at_level(logging.WARNING, "fedfinlora.data"):
        for _ in range(3):
            loaded = load_rows(DatasetConfig(source="finlora", root=str(tmp_path)), "train")
    assert len(loaded.rows) == 10
    assert caplog.text.count("letters.jsonl") == 1
    assert {entry.name for entry in loaded.not_read} == {"letters.jsonl", "raw/", "train/fbp_train.jsonl"}
    found = reasons(tmp_path, "finlora")
    assert found["letters.jsonl"] == "its name is no benchmark's file name"
    assert found["train/fbp_train.jsonl"] == "its name is no benchmark's file name (did you mean fpb_train?)"
    assert "not in train/" in found["raw/fpb_train.jsonl"]
    assert "3 files or folders not read, named above" in render(check_folder(tmp_path, "finlora"))


def test_the_layout_of_a_banks_folder_is_one_rule_for_bank_and_check(tmp_path: Path) -> None:
    from client_app.facts import BankFacts
    from client_app.own_rows import bank_dataset

    for name in ("with", "without"):
        write(tmp_path / name / ("train" if name == "with" else "") / "fpb_train.jsonl")
        facts = BankFacts("north", 0, 0, str(tmp_path / name), tmp_path / "state")
        assert bank_dataset(DatasetConfig(), facts).source == layout_of(tmp_path / name)


# Doubles


@pytest.mark.parametrize("layout", ["finlora", "jsonl"])
@pytest.mark.parametrize(
    "other", ["fpb_train.json", "fpb_train.JSONL", "FPB_train.jsonl", "fpb_train.csv", "fpb_train.jsonl.gz"]
)
def test_doubles_are_refused_by_name_and_none_is_read(tmp_path: Path, layout: str, other: str) -> None:
    for name in ("fpb_train.jsonl", other, "tfns_train.jsonl"):
        write(tmp_path / "train" / name)
    with pytest.raises(UserError) as raised:
        load_rows(DatasetConfig(source=layout, root=str(tmp_path)), "train")
    assert "train/fpb_train.jsonl" in str(raised.value)
    assert f"train/{other}" in str(raised.value)
    report = check_folder(tmp_path, layout)
    assert not report.ok
    assert [file.name for file in report.files] == ["train/tfns_train.jsonl"]
    assert "no run begins" in render(report)
    assert len(load_rows(DatasetConfig(source=layout, root=str(tmp_path)), "train", ("tfns",)).rows) == 1


@pytest.mark.parametrize(
    ("other", "how"),
    [
        ("FPB_train.jsonl", "differ only in letter case:"), ("fpb_train.JSONL", "differ only in letter case:"),
        ("fpb_train.csv", "differ only in their endings:"),
        ("FPB_train.csv", "differ only in their endings and in letter case:"),
    ],
)  # fmt: skip
def test_what_doubles_differ_in_is_said(tmp_path: Path, other: str, how: str) -> None:
    for name in ("fpb_train.jsonl", other):
        write(tmp_path / name)
    (refused,) = find(tmp_path, "jsonl", "train").refused
    assert how in refused.reason


def test_files_of_one_task_with_names_of_their_own_are_all_read(tmp_path: Path) -> None:
    for name in ("finer_q1.jsonl", "finer_q2.csv", "finer.jsonl"):
        write(tmp_path / name)
    (tmp_path / "finer_q2.csv").write_text("context,target\np,t\n")
    assert len(load_rows(DatasetConfig(source="jsonl", root=str(tmp_path)), "train").rows) == 3


def test_the_same_bytes_twice_are_a_warning(tmp_path: Path) -> None:
    shutil.copy(write(tmp_path / "fpb_train.jsonl"), tmp_path / "fpb_train (1).jsonl")
    report = check_folder(tmp_path, "jsonl")
    assert report.ok
    assert [file.same_as for file in report.files] == ["", "fpb_train (1).jsonl"]
    assert "the same bytes as fpb_train (1).jsonl" in render(report)


def test_of_two_places_train_wins_and_the_other_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train" / "fpb_train.jsonl")
    write(tmp_path / "fpb_train.csv")
    assert names(tmp_path, "finlora") == ["train/fpb_train.jsonl"]
    assert reasons(tmp_path, "finlora") == {"fpb_train.csv": "the one in train/ is read"}


@pytest.mark.parametrize("layout", ["finlora", "jsonl"])
def test_a_benchmarks_own_file_wins_over_the_merged_one(tmp_path: Path, layout: str) -> None:
    merged = write(tmp_path / "train" / "finlora_sentiment_train.jsonl")
    news = (
        "Instruction: What is the sentiment of this {}? Choose from {{negative/neutral/positive}}.\nInput: a\nAnswer: "
    )
    merged.write_text(
        "".join(json.dumps({"context": news.format(kind), "target": "neutral"}) + "\n" for kind in ("news", "tweet"))
    )
    write(tmp_path / "train" / "fpb_train.jsonl")
    loaded = load_rows(DatasetConfig(source=layout, root=str(tmp_path)), "train")
    assert sorted(row.task for row in loaded.rows) == ["fpb", "tfns"]
    for task in ("tfns", "fiqa", "nwgi"):
        write(tmp_path / "train" / f"{task}_train.jsonl")
    assert sorted(row.task for row in load_rows(DatasetConfig(source=layout, root=str(tmp_path)), "train").rows) == [
        "fiqa", "fpb", "nwgi", "tfns",
    ]  # fmt: skip
    assert "merged file" in reasons(tmp_path, layout)["train/finlora_sentiment_train.jsonl"]


# What is not read


def test_everything_else_in_a_folder_is_named_with_its_reason(tmp_path: Path) -> None:
    write(tmp_path / "fpb_train.jsonl")
    write(tmp_path / "README.md")
    write(tmp_path / "rows.xlsx")
    write(tmp_path / "rows.jsonl.zst")
    write(tmp_path / "rows.pkl")
    write(tmp_path / ".fpb_train.jsonl")
    write(tmp_path / ".git" / "rows.jsonl")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty.jsonl", 0)
    os.mkfifo(tmp_path / "pipe.jsonl")
    found = reasons(tmp_path, "jsonl")
    assert found.keys() == {
        "README.md",
        "rows.xlsx",
        "rows.jsonl.zst",
        "rows.pkl",
        ".fpb_train.jsonl",
        ".git/",
        "pipe.jsonl",
    }
    assert "hidden" in found[".git/"]
    assert "a named pipe" in found["pipe.jsonl"]
    assert "its ending is none of" in found["README.md"]
    report = check_folder(tmp_path, "jsonl")
    assert report.ignored == ("pipe.jsonl", "rows.jsonl.zst", "rows.pkl", "rows.xlsx")
    assert "bad: empty.jsonl: the file is empty" in render(report)
    assert "Not read: 7" in render(report)


def test_sockets_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("rows.jsonl")
        assert reasons(Path(), "jsonl") == {"rows.jsonl": "not a file: a socket"}


@pytest.mark.parametrize("layout", ["finlora", "jsonl"])
def test_link_loops_end_and_are_named(tmp_path: Path, layout: str) -> None:
    write(tmp_path / "train" / "fpb_train.jsonl")
    (tmp_path / "train" / "loop").symlink_to(tmp_path)
    (tmp_path / "self.jsonl").symlink_to(tmp_path / "self.jsonl")
    (tmp_path / "twin").symlink_to(tmp_path / "train")
    assert "train/fpb_train.jsonl" in names(tmp_path, layout)
    assert "the same folder as train" in reasons(tmp_path, layout)["twin/"]
    if layout == "jsonl":
        bad = check_folder(tmp_path, layout).files[0].bad_rows[0]
        assert bad.reason == "cannot be read: Too many levels of symbolic links"


@as_an_ordinary_user()
def test_a_closed_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path / "closed" / "fpb_train.jsonl")
    (tmp_path / "closed").chmod(0)
    assert reasons(tmp_path, "jsonl") == {"closed/": "cannot be read: Permission denied"}
    (tmp_path / "closed").chmod(0o700)


# Names


ODD: list[Any] = [
    "with blank", "Zürich", "quote'quote\"", "new\nline", b"not-utf8-\xff", "-dash", "[brackets]", "{a,b}", "$HOME",
    "100%", "a=b", "*?",
    "\\back", "#1", "~", "trailing.", "tab\t", "\x1b[2J", "日本", "e\u0301", "(copy)", "a;b&c|d", ",", "'", "x" * 200,
]  # fmt: skip


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_folders_and_files_may_have_any_name(
    tmp_path: Path, name: str | bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    word = os.fsdecode(name)
    root = tmp_path / word
    write(root / word / f"fpb_train {word}.jsonl", 2, bad=1)
    write(root / word / f"fpb_test {word}.csv").write_text("context,target\np Answer:,neutral\n")
    loaded = load_rows(DatasetConfig(source="jsonl", root=str(root)), "train")
    assert [row.task for row in loaded.rows] == ["fpb"] * 2
    for text in (*loaded.files, *(row.path for row in loaded.rows), *(row.id for row in loaded.rows)):
        text.encode()
        assert text.isprintable()
    status, text = checked(root, capsys)
    text.encode()
    assert status == 1
    assert "2 files, 3 rows" in " ".join(text.split())
    assert all(len(line) <= WIDTH for line in text.splitlines()[2:])
    with pytest.raises(UserError) as raised:
        load_rows(DatasetConfig(source="jsonl", root=str(root), on_bad_row="stop"), "train")
    assert str(raised.value).isprintable()
    assert shown(word) in str(raised.value)
    assert len(state_of_files(root)) == 2


def test_a_change_in_a_linked_folder_is_noticed(tmp_path: Path) -> None:
    file = write(tmp_path / "elsewhere" / "fpb_train.jsonl")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    before = state_of_files(tmp_path / "root")
    write(file, 2)
    assert state_of_files(tmp_path / "root") != before
