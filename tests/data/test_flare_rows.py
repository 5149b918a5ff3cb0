"""FLARE's forms: its JSON Lines, raw conversations and hub sets become rows; what is missing or cut off is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.catalog import BENCHMARKS, select
from data.check import check_folder, render
from data.sources import load_rows
from data.sources.flare import Conversations, reference_of, report_text
from data.sources.records import BadLine
from data.validation import set_aside
from fedfinlora.config.dataset import DatasetConfig
from fedfinlora.errors import UserError

REPORT = {
    "pre_text": ["alba sells cranes .", "in millions ."],
    "table": [["", "2023", "2022"], ["net | gross", "$ 12", "$ 10"]],
    "post_text": ["that is all ."],
}
TURNS = [
    {"question": "what is it in 2023?", "expected_answer": 12.0},
    {"question": "and in 2022?", "expected_answer": 10.0},
    {"question": "what is the change?", "expected_answer": 0.2},
]


def folder(root: Path, name: str, *records: Any) -> DatasetConfig:
    """A folder in FinLoRA's layout with one file."""
    file = root / name.rpartition("_")[2] / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return DatasetConfig(source="finlora", root=str(root))


def reasons(loaded) -> list[str]:
    return [bad.reason for bad in loaded.bad_rows]


def test_query_and_answer_are_a_row(tmp_path: Path) -> None:
    query = "Please answer.\nContext: |date|citi|\n|2017|193.5|\nQuestion: what?\nAnswer:"
    dataset = folder(
        tmp_path, "finqa_test", {"id": "finqa1", "query": query, "answer": 0.935, "choices": [], "gold": 0}
    )
    [row] = load_rows(dataset, "test", ["finqa"]).rows
    assert (row.id, row.task, row.prompt, row.target) == ("finqa/test/000000", "finqa", query, "0.935")


def test_missing_fields_of_flare_rows_are_named(tmp_path: Path) -> None:
    good = {"query": "What?\nAnswer:", "answer": "1.0"}
    dataset = folder(
        tmp_path, "finqa_test", good, {"query": "What?"}, {"id": "x", "answer": "1"}, good | {"answer": None},
        good | {"query": "  "}, good | {"answer": ["1"]}, '{"query": "cut',
    )  # fmt: skip
    loaded = load_rows(dataset, "test", ["finqa"])
    assert len(loaded.rows) == 1
    assert [reason.split(":")[0] for reason in reasons(loaded)] == [
        "no answer", "no context", "target is not text", "context is empty", "target is not text", "not JSON",
    ]  # fmt: skip
    bad_alone = folder(tmp_path / "alone", "finqa_test", {"query": "What?"}, {"query": "And?"})
    with pytest.raises(UserError, match=r"2 bad, the first test/finqa_test\.jsonl:1: no answer\."):
        load_rows(bad_alone, "test", ["finqa"])


def test_a_bank_may_have_flare_rows_by_task_or_in_a_table(tmp_path: Path) -> None:
    (tmp_path / "letters.jsonl").write_text('{"query": "Up?\\nAnswer:", "answer": "Rise", "task": "acl18"}\n')
    (tmp_path / "cikm18.csv").write_text('id,query,answer\n1,"Up, or down?\nAnswer:",Fall\n')
    rows = load_rows(DatasetConfig(source="jsonl", root=str(tmp_path)), "train").rows
    assert [(row.task, row.target) for row in rows] == [("cikm18", "Fall"), ("acl18", "Rise")]


def test_a_raw_conversation_is_a_row_a_turn_with_right_answers_before(tmp_path: Path) -> None:
    record = {"id": "Single_ALBA/2009/page_28.pdf-3", "financial_report": REPORT, "conversation": TURNS}
    rows = load_rows(folder(tmp_path, "convfinqa_train", record), "train", ["convfinqa"]).rows
    assert [row.id for row in rows] == [f"convfinqa/train/000000-{turn}" for turn in (1, 2, 3)]
    assert [(row.target, row.issuer) for row in rows] == [("12.0", "ALBA"), ("10.0", "ALBA"), ("0.2", "ALBA")]
    assert "\nConversations: \nQuestion: what is it in 2023?\nAnswer:" in rows[0].prompt
    asked = "\nq0: what is it in 2023? 12.0\nq1: and in 2022? 10.0\nQuestion: what is the change?\nAnswer:"
    assert rows[2].prompt.endswith(asked)


@pytest.mark.parametrize(
    ("cut", "turns", "reason"),
    [
        ({"conversation": [*TURNS[:2], {"question": "and"}]}, 2, "turn 3 of 3 has no expected_answer"),
        ({"conversation": [TURNS[0], {"expected_answer": 1.0}, TURNS[2]]}, 1, "turn 2 of 3 has no question"),
        ({"conversation": [TURNS[0], None]}, 1, "turn 2 of 2 has no question"),
        ({"conversation": []}, 0, "no conversation, a list of turns"),
        ({"financial_report": None}, 0, "no financial_report, an object"),
        ({"financial_report": {"table": "|1|"}}, 0, "financial_report has no pre_text, table and post_text"),
        ({"financial_report": {"table": ["1"]}}, 0, "the table of financial_report is not a list of rows"),
    ],
)
def test_a_conversation_cut_in_the_middle_keeps_the_turns_before(tmp_path: Path, cut, turns: int, reason: str) -> None:
    record = {"id": "a", "financial_report": REPORT, "conversation": TURNS} | cut
    dataset = folder(tmp_path, "convfinqa_test", record, {"query": "What?\nAnswer:", "answer": "1.0"})
    loaded = load_rows(dataset, "test", ["convfinqa"])
    assert len(loaded.rows) == turns + 1
    assert len(reasons(loaded)) == 1
    assert reasons(loaded)[0].startswith(reason)


def test_pipes_inside_a_tables_cells_move_no_column() -> None:
    lines = report_text(REPORT).split("\n")
    assert lines[1:3] == ["||2023|2022|", "|net / gross|$ 12|$ 10|"]


def test_published_conversations_get_the_answers_of_earlier_turns() -> None:
    read = Conversations()
    first = {"query": "q0 {x}?", "answer": "7.0", "dialogue_id": 4, "turn": 0}
    second = {"query": "q0: {answer0} q1?", "answer": "8.0", "dialogue_id": 4, "turn": 1}
    assert next(read.turns(first)).prompt == "q0 {x}?"
    turn = next(read.turns(second))
    assert (turn.prompt, turn.issuer) == ("q0: 7.0 q1?", "conversation 4")
    with pytest.raises(BadLine, match="needs the answer of turn 0, which is not above it"):
        next(read.turns(second | {"dialogue_id": 5}))


def test_validation_never_divides_a_conversation(tmp_path: Path) -> None:
    records = [
        {"id": f"Single_CO{'ABCDEF'[number]}/2009/page_1.pdf", "financial_report": REPORT, "conversation": TURNS}
        for number in range(6)
    ]
    rows = load_rows(folder(tmp_path, "convfinqa_train", *records), "train", ["convfinqa"]).rows
    rest, validation = set_aside(rows, ["convfinqa"], 4, seed=1)
    assert len(validation) == 4
    assert {row.issuer for row in rest}.isdisjoint(row.issuer for row in validation)


def test_finloras_sentiment_rows_are_asked_in_flares_wording(tmp_path: Path) -> None:
    row = {"context": "Instruction: Which?\nInput: Sales rose .\nAnswer: ", "target": "positive"}
    dataset = folder(tmp_path, "fpb_test", row)
    [asked] = load_rows(dataset, "test", ["flare_fpb"]).rows
    assert asked.prompt.startswith("Analyze the sentiment of this statement extracted from a financial news article.")
    assert asked.prompt.endswith("negative, positive, or neutral.\nText: Sales rose .\nAnswer:")
    assert (asked.id, asked.target) == ("flare_fpb/test/000000", "positive")
    [plain] = load_rows(dataset, "test").rows
    assert (plain.task, plain.prompt) == ("fpb", row["context"])
    folder(tmp_path, "flare_fpb_test", {"query": "Own?\nAnswer:", "answer": "neutral"})
    assert [row.prompt for row in load_rows(dataset, "test", ["flare_fpb"]).rows] == ["Own?\nAnswer:"]


@pytest.mark.parametrize(
    ("answer", "tags"),
    [
        ("Ann, PER\nAnn, PER", "B-PER O O O O B-PER"),  # repeated
        ("Ann, PER", "B-PER O O O O O"),
        ("Bank of Alba, ORG\nAlba, LOC", "O O B-ORG I-ORG I-ORG O"),  # nested: tags hold the outer one
    ],
)
def test_entities_become_tags_in_the_order_of_the_text(answer: str, tags: str) -> None:
    assert reference_of("Which?\nText: Ann of Bank of Alba Ann\nAnswer: ", answer).split("\n")[1] == tags


@pytest.mark.parametrize("answer", ["Ben, PER", "Ann", "Ann PER", ", PER"])
def test_an_entity_that_is_not_in_the_text_is_a_bad_row(tmp_path: Path, answer: str) -> None:
    row = {"query": "Which?\nText: Ann signed .\nAnswer:", "answer": answer, "label": ["B-PER", "O", "O"]}
    loaded = load_rows(folder(tmp_path, "flare_ner_test", row, row | {"answer": "Ann, PER"}), "test", ["flare_ner"])
    assert [row.reference for row in loaded.rows] == ["Ann signed .\nB-PER O O"]
    assert reasons(loaded) == ["entity 1 of its answer is not in its text, or has no type behind a comma"]


def test_flares_files_are_read_where_they_are_named_only(tmp_path: Path) -> None:
    dataset = folder(tmp_path, "finqa_train", {"query": "What?\nAnswer:", "answer": "1.0"})
    with pytest.raises(UserError, match="It has those of finqa, which are read where"):
        load_rows(dataset, "train")
    assert len(load_rows(dataset, "train", [benchmark.key for benchmark in select(["flare"])]).rows) == 1


def test_data_check_reads_flares_files(tmp_path: Path) -> None:
    folder(tmp_path, "acl18_train", *({"query": f"Up {n}?\nAnswer:", "answer": "Rise"} for n in range(3)))
    folder(tmp_path, "convfinqa_test", {"id": "a", "financial_report": REPORT, "conversation": TURNS[:2]})
    report = check_folder(tmp_path)
    assert [(file.name, file.tasks, file.rows) for file in report.files] == [
        ("train/acl18_train.jsonl", ("acl18",), 3),
        ("test/convfinqa_test.jsonl", ("convfinqa",), 2),
    ]
    assert report.ok
    assert "labels: Rise 3, Fall 0" in render(report)


@pytest.mark.parametrize("key", [benchmark.key for benchmark in select(["flare"])])
def test_hub_sets_in_flares_columns_become_rows(key: str) -> None:
    from datasets import Dataset

    from data.hub import rows_of

    entry = BENCHMARKS[key]
    target = entry.labels[0] if entry.labels else {"entities": "Ann, PER"}.get(entry.parser, "1.0")
    query = "Which?\nText: Ann signed .\nAnswer:"
    columns = {"query": [query, query, None], "answer": [target, "Nobody at all", target], "id": ["a", "b", "c"]}
    rows, bad = rows_of(key, Dataset.from_dict(columns), entry.hub_id, "test")
    assert rows[0].prompt == query
    assert bool(rows[0].reference) == (key == "flare_ner")
    assert [one.line for one in bad] == ([2, 3] if key == "flare_ner" else [3])
    assert entry.hub_id.startswith("TheFinAI/flare-")
