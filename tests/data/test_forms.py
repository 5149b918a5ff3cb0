"""Every form in which rows come: the same rows give the same rows, faults name file and line, and no reason quotes a
row.
"""

from __future__ import annotations

import csv
import decimal
import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.partition import hold_out
from data.rows import Row
from data.sample import FOLDER as SAMPLE_FOLDER
from data.sources import load_rows
from data.sources.files import SourceFile, read_file
from data.sources.forms import FORMS, form_of
from fedfinlora.compose import compose
from fedfinlora.config.dataset import ColumnsConfig, DatasetConfig
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.privacy.cohorts import Rows, hash_rows

ROOT = Path(__file__).resolve().parents[2]
Records = list[dict[str, str]]
RECORDS: Records = [
    {"context": "Is this up?\nAnswer: ", "target": "positive", "issuer": "Acme"},
    {"context": 'He said "no; never",\tthen left. Answer:', "target": "007", "issuer": ""},
    {"context": "Größe in € 🙂 Answer: ", "target": "1.0", "issuer": "Bär & Söhne"},
    {"context": "NA\r\nAnswer: ", "target": "NA", "issuer": ""},
    {"context": " kept blanks  ", "target": "null", "issuer": ""},
]


def as_lines(records: Records) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def as_array(records: Records) -> bytes:
    return json.dumps(records, indent=2, ensure_ascii=False).encode()


def as_table(records: Records, separator: str = ",", start: str = "") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(records)
    return (start + text.getvalue()).encode()


def as_parquet(records: Records) -> bytes:
    import pyarrow as arrow
    from pyarrow import parquet

    sink = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(records), sink, row_group_size=2)
    return sink.getvalue()


WRITERS: dict[str, Callable[[Records], bytes]] = {
    ".jsonl": as_lines,
    ".JSONL": as_lines,
    ".ndjson": as_lines,
    ".json": as_array,
    ".Json": as_lines,
    ".jsonl.gz": lambda records: gzip.compress(as_lines(records)),
    ".JSON.GZ": lambda records: gzip.compress(as_array(records)),
    ".csv": as_table,
    ".CSV": lambda records: as_table(records, ";"),
    ".csv.gz": lambda records: gzip.compress(as_table(records, "\t")),
    ".tsv": lambda records: as_table(records, "\t"),
    ".parquet": as_parquet,
}


def bank(root: Path, **more: Any) -> DatasetConfig:
    return DatasetConfig(source="jsonl", root=str(root), **more)


def one(
    path: Path, content: bytes, columns: ColumnsConfig | None = None
) -> tuple[list[tuple[str, str]], list[tuple[int, str]]]:
    """(prompt and target of each row, line and reason of each fault) of one file."""
    path.write_bytes(content)
    found = read_file(SourceFile(path, path.name, "train", columns=columns or ColumnsConfig()))
    return [(row.prompt, row.target) for row in found.rows], [(bad.line, bad.reason) for bad in found.bad_rows]


def faults(path: Path, content: bytes, columns: ColumnsConfig | None = None) -> list[tuple[int, str]]:
    """Those of a file that gives no rows."""
    rows, bad = one(path, content, columns)
    assert not rows
    return bad


# The same rows in every form


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("source", ["jsonl", "finlora"])
def test_rows_ids_order_and_cohorts_do_not_depend_on_the_form(tmp_path: Path, ending: str, source: str) -> None:
    loaded: list[list[Row]] = []
    for name, writer in ((".jsonl", as_lines), (ending, WRITERS[ending])):
        folder = tmp_path / f"of{len(loaded)}" / "train"
        folder.mkdir(parents=True)
        (folder / f"fpb_train{name}").write_bytes(writer(RECORDS))
        (folder / f"tfns_train{name}").write_bytes(writer(RECORDS[:3]))
        found = load_rows(DatasetConfig(source=source, root=str(folder.parent)), "train")
        assert not found.bad_rows
        assert not found.not_read
        loaded.append(list(found.rows))
    assert loaded[0] == loaded[1]
    assert [row.target for row in loaded[1]][:5] == [record["target"] for record in RECORDS]
    first, second = (
        hash_rows(Rows(tuple(row.prompt for row in rows), tuple(row.issuer for row in rows)), b"key") for rows in loaded
    )
    assert first.rows.tobytes() == second.rows.tobytes()
    assert first.customers.tobytes() == second.customers.tobytes()
    assert hold_out(loaded[0], 0.5, 2, 7, "north") == hold_out(loaded[1], 0.5, 2, 7, "north")


def test_the_order_of_files_does_not_depend_on_the_form(tmp_path: Path) -> None:
    stems = ["a", "a-b", "a.k", "a.b", "a_b", "B"]
    orders = []
    for ending in (".jsonl", ".csv", ".parquet", ".json.gz", ".TSV"):
        folder = tmp_path / ending
        folder.mkdir()
        writer = {**WRITERS, ".json.gz": WRITERS[".JSON.GZ"], ".TSV": WRITERS[".tsv"]}[ending]
        for stem in stems:
            (folder / f"{stem}{ending}").write_bytes(writer([{"context": stem, "target": "x"}]))
        orders.append([row.id for row in load_rows(bank(folder), "train").rows])
    assert len(orders[0]) == len(stems)
    assert all(order == orders[0] for order in orders)


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".json"])
def test_training_gives_the_same_adapter_from_every_form(tmp_path: Path, ending: str) -> None:
    from client_app.facts import BankFacts
    from client_app.prepared_rows import bank_rows
    from fedfinlora.model.loading import get_session

    config = compose(
        ["model=tiny-random", "model.quantization=none", "peft=lora", "dataset=jsonl", f"dataset.root={tmp_path}"],
    )
    tokenizer = get_session(config).tokenizer
    encoded = []
    for name, writer in ((".jsonl", as_lines), (ending, WRITERS[ending])):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"fpb_train{name}").write_bytes(writer(RECORDS))
        encoded.append(
            bank_rows(config, BankFacts("north", 0, 0, str(folder), tmp_path / "state", tmp_path / "ledger"), tokenizer)
        )
    assert encoded[0].train == encoded[1].train
    assert encoded[0].holdout == encoded[1].holdout
    assert encoded[0].in_ledger == encoded[1].in_ledger


_TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(_TEXT, _TEXT), min_size=1, max_size=6),
    st.sampled_from([".csv", ".CSV", ".json", ".tsv", ".parquet", ".jsonl.gz"]),
)
def test_any_text_comes_back_as_it_is_from_any_form(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], ending: str
) -> None:
    records = [{"context": context, "target": target} for context, target in pairs]
    rows, bad = one(tmp_path_factory.mktemp("any") / f"rows{ending}", WRITERS[ending](records))
    assert (rows, bad) == (pairs, [])


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(sorted(WRITERS)))
def test_no_bytes_raise(tmp_path_factory: pytest.TempPathFactory, content: bytes, ending: str) -> None:
    rows, bad = one(tmp_path_factory.mktemp("bytes") / f"rows{ending}", content)
    assert rows or bad


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(WRITERS)), st.data())
def test_a_file_that_is_cut_off_is_never_read_as_a_whole_one(
    tmp_path_factory: pytest.TempPathFactory, ending: str, data: Any
) -> None:
    content = WRITERS[ending](RECORDS)
    end = data.draw(st.integers(0, len(content) - 3))
    rows, bad = one(tmp_path_factory.mktemp("cut") / f"rows{ending}", content[:end])
    whole = [(record["context"], record["target"]) for record in RECORDS]
    assert bad or rows == whole[: len(rows)]
    assert len(rows) < len(RECORDS) or rows[:-1] == whole[:-1]


def test_the_documentation_lists_every_form() -> None:
    rows = [f"| `{form.ending}` | {form.meaning} | {'yes' if form.gzip else 'no'} |" for form in FORMS]
    table = "\n".join(["| ending | what is in it | with `.gz` |", "|---|---|---|", *rows])
    assert table in (ROOT / "docs" / "data.md").read_text("utf-8")
    assert {form.ending for form in FORMS} == {form_of(f"rows{ending}")[1].ending for ending in WRITERS}  # type: ignore[union-attr]


def test_nothing_heavy_is_imported_before_a_parquet_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "fpb.csv").write_bytes(as_table(RECORDS))
    program = (
        "import sys\nfrom data.check import check_folder\nassert check_folder(sys.argv[1], 'jsonl').ok\n"
        "print(*({'pandas', 'pyarrow', 'datasets', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_a_copy_of_the_sample_is_synthetic_in_another_form_too(tmp_path: Path) -> None:
    lines = (SAMPLE_FOLDER / "train" / "fpb_train.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    (tmp_path / "fpb_train.csv").write_bytes(as_table(records))
    assert load_rows(bank(tmp_path), "train").synthetic
    (tmp_path / "fpb_train.csv").write_bytes(as_table(records[1:]))
    assert not load_rows(bank(tmp_path), "train").synthetic


# Tables


@pytest.mark.parametrize("start", ["", "\ufeff", "\n\r\n", "sep=;\r\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_marks_and_blank_lines_before_the_names(tmp_path: Path, separator: str, start: str) -> None:
    if start.startswith("sep"):
        start = start.replace(";", separator)
    rows, bad = one(tmp_path / "rows.csv", as_table(RECORDS, separator, start))
    assert (len(rows), bad) == (5, [])


def test_a_tables_cells_stay_the_text_in_the_file(tmp_path: Path) -> None:
    targets = ["007", "1.0", "1e3", "NA", "null", "nan", "None", "TRUE", "2024-01-31", "1,5", "-"]
    content = as_table([{"context": "p", "target": target} for target in targets])
    assert [target for _, target in one(tmp_path / "rows.csv", content)[0]] == targets


def test_faults_of_a_table_name_the_line_where_the_record_begins(tmp_path: Path) -> None:
    content = (
        b'context,target\n"two\nlines Answer:",up\n\nno target,\nthree,cells,here\n"also\ntwo",\none\n,,\nlast,down\n'
    )
    rows, bad = one(tmp_path / "rows.csv", content)
    assert [target for _, target in rows] == ["up", "down"]
    assert bad == [
        (5, "target is empty"),
        (6, "3 cells, but the first line names 2 columns"),
        (7, "target is empty"),
        (9, "1 cells, but the first line names 2 columns"),
    ]


def test_a_quote_that_never_closes_swallows_nothing_silently(tmp_path: Path) -> None:
    content = b'context,target\nfirst,up\n"second,up\nthird,up\n'
    assert faults(tmp_path / "rows.csv", content) == [(3, "a quote that never closes; no row of the file is read")]
    content = b'context,target\nfirst,up\n"a"b,up\n'
    assert faults(tmp_path / "rows.csv", content) == [(3, "text after a closing quote; no row of the file is read")]


def test_windows_text_says_what_to_do_and_its_neighbours_are_read(tmp_path: Path) -> None:
    content = "context,target\nGröße,up\nsize,down\n".encode("cp1252")
    rows, bad = one(tmp_path / "rows.csv", content)
    assert rows == [("size", "down")]
    assert bad[0][0] == 2
    assert "iconv -f CP1252 -t UTF-8" in bad[0][1]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_text_says_what_to_do(tmp_path: Path, ending: str, encoding: str) -> None:
    content = WRITERS[ending](RECORDS).decode().encode(encoding)
    ((line, reason),) = faults(tmp_path / f"rows{ending}", content)
    assert line == 1
    assert "iconv -f UTF-16 -t UTF-8" in reason


def test_a_table_with_missing_or_other_names_lists_them_and_quotes_no_row(tmp_path: Path) -> None:
    ((line, reason),) = faults(tmp_path / "rows.csv", b"\nprompt,answer,source file\np,a,s\n")
    assert line == 2
    assert reason.startswith(
        "no column context and target; it has prompt, answer, source file. Name them with 'dataset.columns="
    )
    ((_, reason),) = faults(tmp_path / "rows.csv", b"Pay ACCOUNT-4711 now. Answer:,positive\nb,c\n")
    assert reason == "no column context and target: its first line must name the columns"
    ((_, reason),) = faults(tmp_path / "rows.parquet", as_parquet([{"prompt": "p", "answer": "a"}]))
    assert "it has prompt, answer" in reason
    ((_, reason),) = faults(tmp_path / "rows.csv", b"context,target,target\na,b,c\n")
    assert reason == "two columns are called target"
    assert faults(tmp_path / "rows.csv", b"context,target\n\n") == [(0, "no rows below its first line")]


def test_long_cells_are_read(tmp_path: Path) -> None:
    rows, bad = one(tmp_path / "rows.csv", as_table([{"context": "x" * 3_000_000, "target": "up"}]))
    assert len(rows[0][0]) == 3_000_000
    assert not bad


# Parquet


def test_numbers_of_a_parquet_table_become_text_and_gaps_are_named(tmp_path: Path) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    columns = {
        "whole": (arrow.array([7, None, 2**60, -1]), ["7", "target is empty", str(2**60), "-1"]),
        "float": (arrow.array([1.0, 5.1, float("nan"), 1e22]), ["1.0", "5.1", "target is empty", "1e+22"]),
        "single": (arrow.array([1.0, 5.1, 0.1, 3.0], arrow.float32()), ["1.0", "5.1", "0.1", "3.0"]),
        "decimal": (
            arrow.array([decimal.Decimal(text) for text in ("5.10", "0.00", "1.00", "2.50")]),
            ["5.10", "0.00", "1.00", "2.50"],
        ),
        "truth": (
            arrow.array([True, False, None, True]),
            ["target is not text"] * 2 + ["target is empty", "target is not text"],
        ),
        "coded": (arrow.array(["a", "b", "a", None]).dictionary_encode(), ["a", "b", "a", "target is empty"]),
    }
    for values, expected in columns.values():
        table = arrow.table({"context": ["p"] * 4, "target": values, "ignored": arrow.array([[1]] * 4)})
        parquet.write_table(table, tmp_path / "rows.parquet")
        rows, bad = one(tmp_path / "rows.parquet", (tmp_path / "rows.parquet").read_bytes())
        by_line = dict(bad)
        targets = iter(target for _, target in rows)
        assert [by_line.get(line) or next(targets) for line in range(1, 5)] == expected


def test_a_parquet_file_that_is_none(tmp_path: Path) -> None:
    assert "not a Parquet table" in faults(tmp_path / "rows.parquet", b"PAR1 nonsense PAR1")[0][1]
    assert faults(tmp_path / "rows.parquet", b"") == [(0, "the file is empty")]


# JSON


def test_one_object_a_line_in_a_json_file_keeps_its_neighbours(tmp_path: Path) -> None:
    content = as_lines(RECORDS[:1]) + b"nonsense\n" + as_lines(RECORDS[1:2])
    rows, bad = one(tmp_path / "rows.json", content)
    assert len(rows) == 2
    assert [line for line, _ in bad] == [2]


def test_objects_over_several_lines_and_single_ones(tmp_path: Path) -> None:
    content = "\n".join(json.dumps(record, indent=1) for record in RECORDS).encode()
    assert len(one(tmp_path / "rows.json", content)[0]) == 5
    assert len(one(tmp_path / "rows.json", json.dumps(RECORDS[0], indent=1).encode())[0]) == 1
    assert len(one(tmp_path / "rows.json", json.dumps(RECORDS[0]).encode())[0]) == 1


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b'[\n{"context": "p", "target": "t"},\n{"context": "p" "target"}\n]', 3, "not JSON: Expecting ',' delimiter"),
        (b'[\n{"context": "p", "target": "t"},\n', 2, "not JSON: a comma without a value"),
        (b'[\n{"context": "p", "target": "t"}\n', 2, "not JSON: the array does not end"),
        (b'[\n{"context": "p", "target": "t"}\n{"context": "p", "target": "t"}\n]', 3, "not JSON: a comma is missing"),
        (b'[{"context": "p", "target": "t"}]\n7', 1, "not JSON: something follows the array"),
        (b"[" * 100_000, 1, "nested too deeply"),
        (b'[\n{"context": "\xff"}]', 2, "not UTF-8: save the file as UTF-8"),
        (b"[]", 0, "the file is empty"),
        (b"  \n", 0, "the file is empty"),
        (
            b'{"data": [{"context": "p", "target": "t"}]}',
            1,
            "wrapped in the key data: write that array alone (jq .data FILE > OTHER.json)",
        ),
    ],
)
def test_an_array_with_a_fault_gives_no_rows(tmp_path: Path, content: bytes, line: int, reason: str) -> None:
    ((found_line, found),) = faults(tmp_path / "rows.json", content)
    assert found_line == line
    assert reason in found


def test_elements_of_an_array_that_are_no_rows_are_named_by_line(tmp_path: Path) -> None:
    content = b'[\n{"context": "p", "target": 5.10},\n\n"text",\n{"context": "p",\n "target": NaN}\n]'
    rows, bad = one(tmp_path / "rows.json", content)
    assert rows == [("p", "5.10")]
    assert bad == [(4, "not a JSON object"), (5, "target is not text")]


# Compressed, and other than it says


def test_damaged_and_disguised_files_say_what_they_are(tmp_path: Path) -> None:
    packed = gzip.compress(as_lines(RECORDS * 100))
    assert "damaged gzip data" in faults(tmp_path / "rows.jsonl.gz", packed[:-9])[0][1]
    assert "take .gz from its name" in faults(tmp_path / "rows.csv.gz", b"context,target\na,b\n")[0][1]
    assert "cut off what follows" in faults(tmp_path / "rows.jsonl.gz", packed + b"JUNKJUNK")[0][1]
    assert faults(tmp_path / "rows.jsonl", packed) == [(0, "gzip-compressed: let its name end in .gz")]
    assert faults(tmp_path / "rows.csv", as_parquet(RECORDS)) == [(0, "a Parquet file: let its name end in .parquet")]
    assert "Excel workbook" in faults(tmp_path / "rows.csv", b"PK\x03\x04....")[0][1]
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    for ending in (".jsonl", ".parquet", ".csv"):
        assert "git lfs pull" in faults(tmp_path / f"rows{ending}", pointer)[0][1]


# Other names of columns


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    columns = ColumnsConfig(context="prompt", target="the answer", issuer="client", task="desk")
    records = [{"prompt": "p", "the answer": "a", "client": "Acme", "desk": "letters", "context": "not this"}]
    for ending in (".csv", ".jsonl", ".parquet", ".json"):
        folder = tmp_path / ending
        folder.mkdir()
        (folder / f"rows{ending}").write_bytes(WRITERS[ending](records))
        (row,) = load_rows(bank(folder, columns=columns), "train").rows
        assert (row.prompt, row.target, row.issuer, row.task) == ("p", "a", "Acme", "letters")


def test_a_file_without_the_named_columns_lists_those_that_it_has(tmp_path: Path) -> None:
    (tmp_path / "fpb.jsonl").write_bytes(as_lines([{"question": "q", "answer": "a"}] * 3))
    with pytest.raises(
        UserError, match=r"3 bad, the first fpb.jsonl:1: no column prompt and reply; it has question, answer\. Name"
    ):
        load_rows(bank(tmp_path, columns=ColumnsConfig(context="prompt", target="reply")), "train")
    (tmp_path / "fpb.jsonl").write_bytes(as_lines([{"ACCOUNT-4711": "q"}] * 3))
    with pytest.raises(UserError) as raised:
        load_rows(bank(tmp_path), "train")
    assert "4711" not in str(raised.value)


def test_columns_are_set_on_the_command_line_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    words = ["dataset=jsonl", f"dataset.root={tmp_path}"]
    named = compose([*words, "dataset.columns={context: prompt, target: answer}"]).dataset.columns
    assert named == ColumnsConfig(context="prompt", target="answer")
    assert compose([*words, "dataset.columns.target=label"]).dataset.columns == ColumnsConfig(target="label")
    with pytest.raises(ConfigError, match=r"dataset\.columns.*context, target, task, issuer, messages"):
        compose([*words, "dataset.columns={contxt: prompt}"])
    with pytest.raises(ConfigError, match=r"dataset\.columns\.contxt.*context, target, task, issuer, messages"):
        compose([*words, "dataset.columns.contxt=prompt"])
    with pytest.raises(ConfigError, match=r"dataset\.columns: target is named for two things"):
        compose([*words, "dataset.columns.context=target"])
    with pytest.raises(ConfigError, match="a column's name is empty"):
        compose([*words, "dataset.columns.context=''"])


def test_no_server_names_the_columns_of_a_deployed_bank(tmp_path: Path) -> None:
    from client_app.facts import BankFacts
    from client_app.own_rows import bank_dataset
    from fedfinlora.deployment.bank_settings import BankSettings, read_settings, settings_text

    asked = bank(tmp_path, columns=ColumnsConfig(target="account_number"))
    facts = BankFacts("north", 0, 0, str(tmp_path), tmp_path / "state")
    assert bank_dataset(asked, facts).columns == ColumnsConfig()
    own = ColumnsConfig(context="prompt", target="the: answer")
    assert bank_dataset(asked, replace(facts, columns=own)).columns == own
    settings = BankSettings(name="north", data=str(tmp_path), coordinator="host:1", columns=own)
    (tmp_path / "bank.yaml").write_text(settings_text(settings), "utf-8")
    assert read_settings(tmp_path / "bank.yaml")[0] == settings


# Conversations

SYSTEM, USER, ANSWER = ({"role": role, "content": role.upper()} for role in ("system", "user", "assistant"))


@pytest.mark.parametrize(
    ("messages", "context"),
    [
        ([USER, ANSWER], "USER"),
        ([SYSTEM, USER, ANSWER], "SYSTEM\n\nUSER"),
        ([USER, {"role": "assistant", "content": "first"}, USER, ANSWER], "USER\n\nfirst\n\nUSER"),
    ],
)
def test_the_last_answer_is_the_target_and_all_before_it_the_context(
    tmp_path: Path, messages: Any, context: str
) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    expected = [(context, "ASSISTANT")] * 2
    for content in ({"messages": messages}, messages):
        lines = (json.dumps(content) + "\n").encode() * 2
        assert one(tmp_path / "rows.jsonl", lines) == (expected, [])
        assert one(tmp_path / "rows.json", lines) == (expected, [])
        assert one(tmp_path / "rows.json", json.dumps([content, content], indent=1).encode()) == (expected, [])
    assert one(tmp_path / "rows.json", json.dumps(messages).encode()) == (expected[:1], [])
    parquet.write_table(arrow.Table.from_pylist([{"messages": messages}] * 2), tmp_path / "rows.parquet")
    assert one(tmp_path / "rows.parquet", (tmp_path / "rows.parquet").read_bytes()) == (expected, [])
    assert one(tmp_path / "rows.csv", as_table([{"messages": json.dumps(messages)}] * 2)) == (expected, [])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([USER], "the last message is not the assistant's"),
        ([USER, ANSWER, USER], "the last message is not the assistant's"),
        ([ANSWER], "there is no message before the assistant's"),
        (
            [{"role": "ACCOUNT-4711", "content": "x"}, ANSWER],
            "the role of message 1 is none of system, developer, user, assistant",
        ),
        ([USER, {"role": "assistant", "content": None}], "the content of message 2 is not text"),
        ([USER, {"role": "assistant"}], "the content of message 2 is not text"),
        ([USER, {"role": "assistant", "content": 5}], "the content of message 2 is not text"),
        ([USER, {"role": "assistant", "content": " "}], "target is empty"),
        (
            [USER, {"role": ["assistant"], "content": "x"}],
            "the role of message 2 is none of system, developer, user, assistant",
        ),
        ([USER, "text"], "messages is not a list of messages, each with role and content"),
        ([], "messages is not a list of messages, each with role and content"),
        ("text", "messages is not a list of messages"),
        (7, "messages is not a list of messages, each with role and content"),
    ],
)
def test_a_conversation_with_a_fault_is_a_bad_row(tmp_path: Path, messages: Any, reason: str) -> None:
    good = json.dumps({"messages": [USER, ANSWER]}).encode()
    rows, bad = one(tmp_path / "rows.jsonl", good + b"\n" + json.dumps({"messages": messages}).encode() + b"\n")
    assert (len(rows), bad) == (1, [(2, reason)])


def test_context_and_target_win_over_messages(tmp_path: Path) -> None:
    line = json.dumps({"context": "p", "target": "t", "messages": [USER, ANSWER]}).encode()
    assert one(tmp_path / "rows.jsonl", line) == ([("p", "t")], [])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_a_file_that_would_never_end_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fpb_train.jsonl")
    found = read_file(SourceFile(tmp_path / "fpb_train.jsonl", "fpb_train.jsonl", "train"))
    assert [bad.reason for bad in found.bad_rows] == ["cannot be read: a named pipe"]


@pytest.mark.parametrize("target", [float("inf"), float("-inf")])
def test_infinity_is_refused_in_every_form(tmp_path: Path, target: float) -> None:
    records = [{"context": "p", "target": target}]
    lines = json.dumps(records[0]).encode()
    for name, content in (
        ("rows.jsonl", lines), ("rows.json", json.dumps(records).encode()), ("rows.parquet", as_parquet(records)),
    ):  # fmt: skip
        rows, bad = one(tmp_path / name, content)
        assert (rows, len(bad)) == ([], 1), name
        assert "number" in bad[0][1]


@pytest.mark.parametrize("filled", ["context", "target"])
def test_half_a_row_next_to_messages_is_named(tmp_path: Path, filled: str) -> None:
    line = json.dumps({filled: "p", "messages": [USER, ANSWER]}).encode()
    reason = f"it has messages and {filled}: which of them is meant is a guess"
    assert one(tmp_path / "rows.jsonl", line) == ([], [(1, reason)])
