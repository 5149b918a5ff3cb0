"""Odd files and folders of rows: each fault is named with its file and line, and what to do; none of them is guessed at
or lost.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from data.check import LongRow, check_folder, render
from data.check_text import SHOWN_LONG_ROWS
from data.encode import encode_prompts, encode_rows, encode_targets
from data.sources.files import SourceFile, read_file
from data.sources.load import _warn, load_rows
from data.sources.names import split_of, task_of
from fedfinlora.cli import main
from fedfinlora.commands.data import root_and_overrides
from fedfinlora.config.dataset import DatasetConfig
from fedfinlora.errors import ConfigError, UserError

ROW = '{"context": "p Answer: ", "target": "t"}'


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))
    return path


def faults(path: Path, content: str | bytes) -> list[tuple[int, str]]:
    """Line and reason of each bad row; nothing of a row's text is in a reason."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_file(SourceFile(path, path.name, "train"))
    assert not any("SECRET" in bad.reason for bad in found.bad_rows)
    return [(bad.line, bad.reason) for bad in found.bad_rows]


def text_of(*arguments: Any, **named: Any) -> str:
    return " ".join(render(check_folder(*arguments, **named)).split())


# --- rows that are too long -----------------------------------------------------------------------


def words(texts: list[str]) -> list[list[int]]:
    """A tokenizer that takes words for tokens."""
    return [list(range(len(text.split()))) for text in texts]


def test_rows_longer_than_the_window_are_named_by_line_with_their_lengths(tmp_path: Path) -> None:
    long = json.dumps({"context": "a b c d e f Answer:", "target": "t"})
    write(tmp_path / "fpb_train.jsonl", ROW, "", *[long] * 8)
    report = check_folder(tmp_path, "jsonl", words, 8)
    assert report.ok
    tokens = report.files[0].tokens
    assert tokens is not None
    assert tokens.over_window == tuple(LongRow(line, 9) for line in range(3, 11))
    text = " ".join(render(report).split())
    assert (
        "8 rows longer than the model's context window of 8 tokens, and skipped by a run: line 3 (9), line 4 (9)"
        in text
    )
    assert f"and {8 - SHOWN_LONG_ROWS} more. Shorten them, or raise model.context_tokens" in text


def test_lines_are_those_of_the_file_in_tables_and_arrays(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('context,target\n"p\np",t\n"a b c d e f",t\n')
    (tmp_path / "b.json").write_text('[\n{"context": "p",\n"target": "t"},\n{"context": "a b c d e f", "target": "t"}]')
    files = check_folder(tmp_path, "jsonl", words, 5).files
    assert [file.tokens and file.tokens.over_window for file in files] == [(LongRow(4, 8),), (LongRow(4, 8),)]


def test_a_row_whose_length_says_enough_is_not_tokenized(tmp_path: Path) -> None:
    long = json.dumps({"context": "a " * 900, "target": "t"})
    write(tmp_path / "fpb_train.jsonl", ROW, long, ROW)
    seen: list[str] = []

    def counting(texts: list[str]) -> list[list[int]]:
        seen.extend(texts)
        return words(texts)

    report = check_folder(tmp_path, "jsonl", counting, 8, least_tokens=lambda row: 180 if len(row.prompt) > 100 else 0)
    assert max(map(len, seen)) < 100
    tokens = report.files[0].tokens
    assert tokens is not None
    assert (tokens.over_window, tokens.longest, tokens.at_least) == ((LongRow(2, 180, True),), 180, True)
    text = " ".join(render(report).split())
    assert "line 2 (at least 180)" in text
    assert "≥180" in text


def test_a_test_row_needs_room_for_its_answers_budget(tmp_path: Path) -> None:
    write(tmp_path / "fpb_test.jsonl", ROW)
    assert text_of(tmp_path, "jsonl", words, 12).count("longer") == 0
    assert "longer with the answer's budget" in text_of(tmp_path, "jsonl", words, 11)


class BeginningTokenizer:
    """A tokenizer of words with a beginning-of-sequence token, as Llama 3 has one."""

    bos_token_id, eos_token_id, chat_template = 1, 2, None

    def __call__(self, texts: str | list[str], add_special_tokens: bool = True, **_: Any) -> dict[str, Any]:
        ids = [[3] * len(text.split()) for text in ([texts] if isinstance(texts, str) else texts)]
        ids = [[1, *found] if add_special_tokens else found for found in ids]
        return {"input_ids": ids[0] if isinstance(texts, str) else ids}


def test_the_named_rows_are_exactly_those_that_training_skips(tmp_path: Path) -> None:
    tokenizer = BeginningTokenizer()
    for count in range(1, 12):
        write(tmp_path / f"{count:02d}.jsonl", json.dumps({"context": "a " * count, "target": "t"}))
    rows = load_rows(DatasetConfig(source="jsonl", root=str(tmp_path)), "train").rows
    skipped = {name.split("/")[0] for name in encode_rows(tokenizer, rows, 8).too_long}
    report = check_folder(
        tmp_path,
        "jsonl",
        lambda texts: encode_prompts(tokenizer, texts),
        8,
        None,
        lambda texts: encode_targets(tokenizer, texts),
    )
    assert {file.name[:2] for file in report.files if file.tokens and file.tokens.over_window} == skipped
    assert 0 < len(skipped) < 11


# --- folders that are no bank ---------------------------------------------------------------------


def test_folders_without_a_usable_row_are_named_and_not_counted_as_banks(tmp_path: Path) -> None:
    for bank in ("east", "north"):
        write(tmp_path / bank / "fpb_train.jsonl", ROW)
    write(tmp_path / "south" / "fpb_train.jsonl", "{", "nonsense")
    write(tmp_path / "west" / "fpb_train.jsonl")
    text = text_of(tmp_path, "jsonl")
    assert "banks=2)" in text
    assert "no bank: south: no usable row (2 bad)" in text
    assert "no bank: west: no usable row (1 bad)" in text
    rows = load_rows(DatasetConfig(source="jsonl", root=str(tmp_path)), "train").rows
    assert {row.path for row in rows} == {"east", "north"}


def test_a_bank_none_of_whose_rows_fits_the_window_is_warned_of(tmp_path: Path) -> None:
    write(tmp_path / "north" / "fpb_train.jsonl", ROW)
    write(tmp_path / "south" / "fpb_train.jsonl", json.dumps({"context": "a " * 9, "target": "t"}))
    assert "warning: south: no row fits the context window" in text_of(tmp_path, "jsonl", words, 6)


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "root", "overrides"),
    [
        ("F", "F", []),
        ("model=m F", "F", ["model=m"]),
        ("dataset=jsonl F +a.b=c", "F", ["dataset=jsonl", "+a.b=c"]),
        ("F ~dataset.columns", "F", ["~dataset.columns"]),
        ("~/F a=b", "~/F", ["a=b"]),
        ("/data/year=2024 a=b", "/data/year=2024", ["a=b"]),
        ("dataset.columns={context: p} ./x=y", "./x=y", ["dataset.columns={context: p}"]),
    ],
)
def test_the_folder_may_be_typed_before_or_behind_settings(typed: str, root: str, overrides: list[str]) -> None:
    typed_words = typed.replace(": ", ":").split() if "{" in typed else typed.split()
    expected = [word.replace(": ", ":") for word in overrides]
    assert root_and_overrides(typed_words) == (Path(root), expected)


def test_a_folder_named_like_a_setting_is_found_where_it_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "year=2024").mkdir()
    assert root_and_overrides(["year=2024", "a=b"]) == (Path("year=2024"), ["a=b"])


def test_show_all_lists_every_bad_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "fpb_train.jsonl", ROW, *["{"] * 9)
    assert main(["data", "check", str(tmp_path), "model=tiny-random"]) == 1
    text = capsys.readouterr().out
    assert text.count("  bad: fpb_train.jsonl:") == 5
    assert "bad: and 4 more; show=all behind the folder lists them all" in text
    assert main(["data", "check", str(tmp_path), "model=tiny-random", "show=all"]) == 1
    text = capsys.readouterr().out
    assert text.count("  bad: fpb_train.jsonl:") == 9
    assert "more" not in text


@pytest.mark.parametrize(
    ("typed", "message"), [([], "No folder"), (["a=b"], "No folder"), (["a", "b"], "not at a and b")]
)
def test_no_folder_or_two_are_a_clear_error(typed: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        root_and_overrides(typed)


@pytest.mark.parametrize(
    "typed", [["check", "--json", "F"], ["check", "F", "--json"], ["check", "--json=x", "a=b", "F"]]
)
def test_an_unknown_option_is_named_with_the_usage_of_its_command(
    typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["data", *typed])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "usage: python -m fedfinlora data check ROOT" in error
    assert "data check: error: unrecognized arguments: --json" in error


# --- a key twice ----------------------------------------------------------------------------------

TWICE = '{"context": "p", "target": "SECRET", "target": "u"}'


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", f"{ROW}\n{TWICE}\n{ROW}\n", [(2, "the key target occurs twice in one object")]),
        ("a.jsonl", '{"context": "p", "target": "t", "x": {"y": [{"k": 1, "k": 1}]}}',
        [(1, "the key k occurs twice in one object")]),
        ("a.jsonl", '{"messages": [{"role": "user", "role": "user", "content": "SECRET"}]}',
        [(1, "the key role occurs twice in one object")]),
        ("a.jsonl", '[{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]',
         [(1, "the key content occurs twice in one object")]),
        ("a.jsonl", '{"SECRET: a filing, say": 1, "SECRET: a filing, say": 2}',
        [(1, "the key of a value occurs twice in one object")]),
        ("a.json", f"[{ROW},\n{TWICE},\n{ROW}]", [(2, "the key target occurs twice in one object")]),
        ("a.json", f"{TWICE}\n{ROW}\n", [(1, "the key target occurs twice in one object")]),
        ("a.json", '[{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]',
         [(1, "the key content occurs twice in one object")]),
        ("a.csv", 'messages\n"[{""role"": ""user"", ""role"": ""user"", ""content"": ""SECRET""}]"\n',
         [(2, "the key role occurs twice in one object")]),
        ("a.csv", "context,target,task,task\np,t,fpb,nwgi\n", [(1, "two columns are called task")]),
    ],
)  # fmt: skip
def test_a_key_that_occurs_twice_is_a_bad_row(
    tmp_path: Path, name: str, content: str, expected: list[tuple[int, str]]
) -> None:
    assert faults(tmp_path / name, content) == expected


def test_a_parquet_table_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    columns = [pyarrow.array([text]) for text in ("p", "t", "u")]
    parquet.write_table(pyarrow.Table.from_arrays(columns, ["context", "target", "target"]), tmp_path / "a.parquet")
    found = read_file(SourceFile(tmp_path / "a.parquet", "a.parquet", "train"))
    assert not found.rows
    assert "two columns are called target" in found.bad_rows[0].reason


# --- nothing in it --------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", "[]", "{\n"])
def test_two_files_without_rows_are_not_the_same_rows_twice(tmp_path: Path, content: str) -> None:
    for name in ("fpb_train.json", "tfns_train.json"):
        (tmp_path / name).write_text(content)
    report = check_folder(tmp_path, "jsonl")
    assert not report.ok
    assert [file.same_as for file in report.files] == ["", ""]
    assert "twice" not in render(report).replace("bad  twice", "")
    if content != "{\n":
        assert render(report).count("the file is empty") == 2


@pytest.mark.parametrize("blank", ["\u200b", "\ufeff", " \u200b\u2060 "])
def test_characters_without_width_are_no_text(tmp_path: Path, blank: str) -> None:
    lines = [{"context": "about Acme. Answer: ", "target": blank}, {"context": blank, "target": "neutral"}]
    (tmp_path / "fpb_train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    said = render(check_folder(tmp_path, "jsonl"))
    assert "target is empty" in said
    assert "context is empty" in said


# --- names that leave the split open --------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "fpb_train_test.jsonl", "fpb_test_train.csv.gz", "FPB_TRAIN_TEST.JSONL", "fpbTrainTest.json",
        "test/fpb_train.jsonl",
        "train/north_test.csv", "TEST/Fpb-Train.jsonl", "north/test/fpb_training.jsonl", "train/test/fpb.jsonl",
        "fpbtraintest.jsonl", "traintest.csv", "train_test/fpb.jsonl", "Testing data/fpb_train.jsonl",
        "fpb_train_val.jsonl", "fpbTrainVal.csv", "trainval.jsonl", "evaluation_train.json", "train/fpb_val.jsonl",
    ],
)  # fmt: skip
def test_a_name_that_says_train_and_test_is_refused_and_not_guessed(tmp_path: Path, name: str) -> None:
    write(tmp_path / "fpb_good.jsonl", ROW)
    write(tmp_path / name, ROW)
    for split in ("train", "test"):
        with pytest.raises(UserError, match=r"rename it|move it out") as raised:
            load_rows(DatasetConfig(source="jsonl", root=str(tmp_path)), split)
        assert name in str(raised.value)
    report = check_folder(tmp_path, "jsonl")
    assert not report.ok
    assert name in "".join(refused.names[0] for refused in report.refused)
    assert "no run begins before the files under Refused are" in " ".join(render(report).split())


@pytest.mark.parametrize("name", ["validation.jsonl", "fpb_dev.csv", "val/fpb.jsonl", "Eval.json", "fpbval.csv"])
def test_rows_for_validation_are_named_and_not_trained_on(tmp_path: Path, name: str) -> None:
    write(tmp_path / "fpb_train.jsonl", ROW)
    write(tmp_path / name, ROW)
    loaded = load_rows(DatasetConfig(source="jsonl", root=str(tmp_path)), "train")
    assert len(loaded.rows) == 1
    assert [entry.name for entry in loaded.not_read if entry.looks_like_rows] == [name]


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("fpb_test1", "test"), ("fpbTest", "test"), ("FPBTest", "test"), ("fpb_testset", "test"),
        ("Training_FPB", "train"),
        ("tests/fpb", "test"), ("Test set/fpb", "test"), ("test1/fpb", "train"), ("latest", "train"),
        ("contest", "train"),
        ("testimony", "train"), ("north/fpb", "train"), ("test/fpb_test", "test"), ("val/fpb_train", "train"),
        ("fpbtest", "test"), ("testfpb", "test"), ("fpbtest2024", "test"), ("fpbtestdata_v2", "test"),
        ("FPBTEST", "test"),
        ("xbrl_termtest", "test"), ("testxbrl_term", "test"), ("cfalevel1test", "test"), ("finertestbatched", "test"),
        ("fpbtrain", "train"), ("trainfpb", "train"), ("interval", "train"), ("trainer", "train"), ("DevOps", "train"),
        ("Testing data/fpb", "test"), ("north test rows/fpb", "test"), ("StressTest/fpb", "test"),
        ("fpbtest/a", "test"),
        ("Training data/fpb", "train"), ("train_test_split/test/fpb", "test"), ("train_test_split/train/fpb", "train"),
        ("Contest/fpb", "train"), ("North Training/fpb", "train"),
    ],
)  # fmt: skip
def test_the_split_that_names_say(path: str, split: str) -> None:
    *parents, stem = path.split("/")
    assert split_of(stem, parents).name == split


@pytest.mark.parametrize(
    ("stem", "task"),
    [("fpbtest", "fpb"), ("testfpb", "fpb"), ("FiNERtest", "xbrl_finer"), ("xbrl_termtest", "xbrl_term")],
)
def test_a_benchmarks_name_counts_where_the_split_is_glued_to_it(stem: str, task: str) -> None:
    assert task_of(stem) == (task, "")


def test_a_folder_of_testing_data_is_no_bank(tmp_path: Path) -> None:
    write(tmp_path / "north" / "fpb.jsonl", ROW)
    write(tmp_path / "Testing data" / "fpb.jsonl", ROW)
    loaded = load_rows(DatasetConfig(source="jsonl", root=str(tmp_path)), "train")
    assert [row.path for row in loaded.rows] == ["north"]
    assert len(load_rows(DatasetConfig(source="jsonl", root=str(tmp_path)), "test").rows) == 1


DOUBT = "read as train: its name contains 'test'"


@pytest.mark.parametrize(
    ("name", "doubtful"),
    [
        ("mytest.jsonl", True), ("stresstest_2024.csv", True), ("train/tfnsxtest.jsonl", True),
        ("mytest_train.jsonl", False),
        ("latest.jsonl", False), ("contest.jsonl", False), ("backtests.jsonl", False), ("attestation.jsonl", False),
    ],
)  # fmt: skip
def test_a_name_with_test_in_a_longer_word_is_warned_of(
    tmp_path: Path, name: str, doubtful: bool, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / name, *(["context,target", "p,t"] if name.endswith("csv") else [ROW]))
    _warn.cache_clear()
    assert (f"warning: {DOUBT}" in text_of(tmp_path, "jsonl")) == doubtful
    assert len(load_rows(DatasetConfig(source="jsonl", root=str(tmp_path)), "train").rows) == 1
    assert (f"{name}: {DOUBT}" in caplog.text) == doubtful


def test_in_finloras_layout_such_a_name_is_not_read_and_says_why(tmp_path: Path) -> None:
    write(tmp_path / "train" / "fpb_train.jsonl", ROW)
    write(tmp_path / "train" / "fpb_train_test.jsonl", ROW)
    assert "its name says both train and test" in text_of(tmp_path)


# --- rows inside something else -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (f'{{"data": [{ROW}]}}', "wrapped in the key data: write that array alone (jq .data FILE"),
        (f'{{"version": 1, "rows": [\n{ROW},\n{ROW}\n]}}', "wrapped in the key rows"),
        (
            f'{{\n"train": [{ROW}],\n"test": [{ROW}]\n}}',
            "wrapped in the keys train, test: write each array into a file of its own",
        ),
        (
            f'{{"data": {{"train": [{ROW}]}}}}',
            ("wrapped in the key data.train: write that array alone (jq .data.train FILE"),
        ),
        (f'{{"my rows": [{ROW}]}}', """(jq '.["my rows"]' FILE"""),
        (f'{{"SECRET, a text": [{ROW}]}}', "wrapped in the key …"),
        ('{"items": [{"messages": []}]}', "wrapped in the key items"),
        (f'{{"rows": [{{"row_idx": 0, "row": {ROW}}}]}}', "wrapped in the key rows"),
        (f'{{"row": {ROW}}}\n{{"row": {ROW}}}\n', "a row is wrapped in the key row: write it alone (jq -c .row FILE"),
        ('{"context": ["p", "q"], "target": ["t", "u"]}', "hold whole columns"),
        ('{"context": {"0": "p"}, "target": {"0": "t"}}', "hold whole columns"),
    ],
)
def test_rows_inside_something_else_get_advice(tmp_path: Path, content: str, advice: str) -> None:
    for name in (
        "rows.json",
        *(
            ["rows.jsonl"]
            if content.count("\n") in (0, 2) and content[1] != "\n" and '"version"' not in content
            else []
        ),
    ):
        found = faults(tmp_path / name, content)
        assert advice in found[0][1], (name, found)


# --- odd bytes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b"[\n" + ROW.encode() + b"\n]\n", "belongs into a file that ends in .json"),
        ("a.jsonl", (ROW + "\r" + ROW).encode(), "carriage returns alone"),
        ("a.jsonl", b'{"context": "p\x00", "target": "t"}', "not JSON: Invalid control character"),
        ("a.jsonl", ROW.encode("utf-16"), "UTF-16"),
        ("a.jsonl", ROW.encode("utf-16-le"), "UTF-16"),
        ("a.jsonl", ROW.encode("utf-32"), "UTF-16"),
        ("a.parquet", b"PAR1 cut", "not a Parquet table"),
        ("a.jsonl.gz", gzip.compress(ROW.encode(), mtime=0)[:-9], "damaged gzip data"),
        ("a.jsonl", b'{"context": "p", "target": null}', "target is not text"),
        ("a.jsonl", b'{"context": "p", "target": true}', "target is not text"),
        ("a.jsonl", b'{"context": 5, "target": "t"}', "context is not text"),
    ],
)
def test_odd_bytes_are_named(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    assert reason in faults(tmp_path / name, content)[0][1]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz"])
def test_a_file_that_unpacks_without_end_is_not_read_to_its_end(tmp_path: Path, name: str) -> None:
    """100 GB of blanks in 100 MB would be the same; here 80 MB, stopped at 64 MB."""
    ((line, reason),) = faults(tmp_path / name, gzip.compress(b" " * (1 << 20), mtime=0) * 80)
    assert (line, reason) == (0, "unpacks to more than 500 times its size: not rows; no row of it is read")


def test_what_is_fine_stays_fine(tmp_path: Path) -> None:
    million = json.dumps({"context": "x" * 10**6, "target": 5.10}).replace("5.1}", "5.10}")
    content = f"\ufeff{ROW}\r\n{million}\r\n"
    (tmp_path / "a.jsonl.GZ").write_bytes(gzip.compress(content.encode(), mtime=0))
    found = read_file(SourceFile(tmp_path / "a.jsonl.GZ", "a.jsonl.GZ", "train"))
    assert [row.target for row in found.rows] == ["t", "5.10"]
    assert found.lines == (1, 2)
    (tmp_path / "b.csv").write_bytes(b"context,target\rp,1.0\rq,None\r")
    assert [row.target for row in read_file(SourceFile(tmp_path / "b.csv", "b.csv", "train")).rows] == ["1.0", "None"]


def test_output_that_goes_to_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "fpb_train.jsonl").write_text(json.dumps({"context": "Is it up? Answer: ", "target": "positive"}))
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["data", "check", str(tmp_path), "model=tiny-random"]) == 1
    assert capfd.readouterr().err == (
        "error: What is printed cannot be written where it goes: no space left on the device. Send it to another "
        "file.\n"
    )
