"""Comparing two evaluations: differences by hand, McNemar against its definition, run folders, and what cannot be
compared.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.catalog import BENCHMARKS
from data.rows import Row
from eval.metrics.compare import compare_records, compare_runs, mcnemar_p
from eval.scoring.records import score_rows
from fedfinlora.cli import main
from fedfinlora.errors import UserError
from fedfinlora.run.evaluation import RowRecord
from fedfinlora.run.typed import to_json

FPB = BENCHMARKS["fpb"]


def rows_of(key: str, targets: list[str], marker: str = "") -> list[Row]:
    return [
        Row(f"{key}/test/{i:06d}", key, f"{marker}Question {i}\nAnswer:", target) for i, target in enumerate(targets)
    ]


def records_of(key: str, targets: list[str], outputs: list[str | None], marker: str = "") -> list[RowRecord]:
    return score_rows(BENCHMARKS[key], rows_of(key, targets, marker), outputs)[0]


def write_run(folder: Path, label: str, **records: list[RowRecord]) -> Path:
    (folder / "eval" / label).mkdir(parents=True, exist_ok=True)
    for key, lines in records.items():
        text = "".join(json.dumps(to_json(line), ensure_ascii=False) + "\n" for line in lines)
        (folder / "eval" / label / f"{key}.jsonl").write_text(text, encoding="utf-8")
    return folder


def bertscored(values: list[float], encoder: str = "MiniLM") -> list[RowRecord]:
    return [
        RowRecord(
            str(place), "x", "t", "o", "o", bertscore_precision=value, bertscore_recall=value, bertscore_f1=value,
            bertscore_model=encoder, bertscore_layer=5,
        )
        for place, value in enumerate(values)
    ]  # fmt: skip


# --- McNemar --------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_mcnemar_p_is_twice_the_tail_of_fair_coins(pairs) -> None:
    gained, lost = sum(not a and b for a, b in pairs), sum(a and not b for a, b in pairs)
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    assert mcnemar_p([a for a, _ in pairs], [b for _, b in pairs]) == pytest.approx(min(1.0, 2 * tail))


# --- records --------------------------------------------------------------------------------------


def test_difference_by_hand() -> None:
    targets = ["positive", "positive", "negative", "neutral"]
    one = records_of("fpb", targets, ["positive", "negative", "neutral", "?"])  # 1 of 4
    other = records_of("fpb", targets, ["positive", "positive", "negative", "?"])  # 3 of 4
    compared = compare_records(FPB, one, other)
    accuracy = compared.figures["accuracy"]
    assert (compared.rows, compared.only_one, compared.only_other) == (4, 0, 0)
    assert (accuracy.one, accuracy.other, accuracy.difference) == (0.25, 0.75, 0.5)
    assert accuracy.mcnemar_p == pytest.approx(0.5)  # two rows gained, none lost: 2 · (1/2)²
    low, high = accuracy.difference_ci95
    assert 0 <= low < 0.5 < high <= 1
    assert compared.figures["unparsed_share"].difference == 0
    assert {"f1_macro", "matthews", "finlora_accuracy", "finlora_f1"} <= compared.figures.keys()
    json.dumps(to_json(compared), allow_nan=False)


def test_the_same_records_differ_by_nothing() -> None:
    records = records_of(
        "xbrl_finer", ["NetIncomeLoss,Revenues", "GrossProfit,Goodwill"], ["NetIncomeLoss,Goodwill", "GrossProfit"]
    )
    for name, figure in compare_records(BENCHMARKS["xbrl_finer"], records, records).figures.items():
        assert (figure.difference, figure.difference_ci95) == (0, (0, 0)), name


def test_paired_interval_is_narrower_than_that_of_independent_rows() -> None:
    targets = ["positive", "negative"] * 200
    hard = ["?" if place % 4 < 2 else target for place, target in enumerate(targets)]  # both fail on the same half
    better = [
        target if place % 40 == 0 else output for place, (target, output) in enumerate(zip(targets, hard, strict=True))
    ]
    accuracy = compare_records(FPB, records_of("fpb", targets, hard), records_of("fpb", targets, better)).figures[
        "accuracy"
    ]
    assert accuracy.difference == pytest.approx(0.025)
    low, high = accuracy.difference_ci95
    # 10 rows of 400 gained and none lost: standard error sqrt(0.025 · 0.975 / 400) = 0.0078; unpaired it were 0.035.
    assert high - low == pytest.approx(2 * 1.96 * 0.0078, rel=0.15)
    assert low > 0
    assert accuracy.mcnemar_p == pytest.approx(2 / 2**10)


def test_other_way_round_changes_the_sign() -> None:
    one = records_of("formula", ["1.0", "2.0", "3.0", "4.0"], ["1.0", "2.0", "0", "x"])
    other = records_of("formula", ["1.0", "2.0", "3.0", "4.0"], ["1.00001", "0", "3.0", "4.0"])
    there, back = (compare_records(BENCHMARKS["formula"], *pair).figures for pair in ((one, other), (other, one)))
    for name in ("accuracy", "accuracy_exact", "f1_weighted"):
        assert back[name].difference == pytest.approx(-there[name].difference)
        assert back[name].mcnemar_p == there[name].mcnemar_p


def test_rows_are_joined_by_prompt_and_id() -> None:
    one = records_of("fpb", ["positive", "negative", "neutral"], ["positive", "negative", "neutral"])
    other = list(reversed(records_of("fpb", ["positive", "negative"], ["positive", "positive"])))
    compared = compare_records(FPB, one, other)
    assert (compared.rows, compared.only_one, compared.only_other) == (2, 1, 0)
    assert compared.figures["accuracy"].one == 1


def test_tags_have_no_mcnemar_test_but_rows_have() -> None:
    one = records_of("xbrl_finer", ["NetIncomeLoss,Revenues"] * 3, ["NetIncomeLoss,Revenues", "Revenues", ""])
    figures = compare_records(BENCHMARKS["xbrl_finer"], one, one).figures
    assert figures["accuracy"].mcnemar_p is None
    assert figures["row_accuracy"].mcnemar_p == 1


def test_labels_and_generated_answers_are_never_mixed() -> None:
    generated = records_of("fpb", ["positive", "negative"], ["positive", "positive"])
    labels = [
        replace(record, label_choice="positive") for record in records_of("fpb", ["positive", "negative"], [None, None])
    ]
    both = [replace(record, label_choice="negative") for record in generated]
    assert set(compare_records(FPB, labels, both).figures) == {
        "labels_accuracy", "labels_f1_macro", "labels_f1_weighted", "labels_matthews",
    }  # fmt: skip
    assert not any(name.startswith("labels") for name in compare_records(FPB, generated, both).figures)
    with pytest.raises(UserError, match="labels only"):
        compare_records(FPB, generated, labels)


def test_no_common_rows_is_said() -> None:
    one, other = (records_of("fpb", ["positive"], ["positive"], marker=marker) for marker in ("", "Example\n"))
    with pytest.raises(UserError, match=r"fpb: no row is in both evaluations \(1 and 1 rows\)"):
        compare_records(FPB, one, other)


def test_bertscores_of_two_encoders_are_not_compared() -> None:
    term = BENCHMARKS["xbrl_term"]
    figures = compare_records(term, bertscored([0.5, 0.6]), bertscored([0.7, 0.6])).figures
    assert figures["bertscore_f1"].difference == pytest.approx(0.1)
    with pytest.raises(UserError, match="MiniLM, layer 5 and finbert, layer 5"):
        compare_records(term, bertscored([0.5]), bertscored([0.5], "finbert"))


# --- runs -----------------------------------------------------------------------------------------


def test_runs_are_compared_on_every_common_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = ["positive", "negative"] * 20
    half = [target if place % 4 < 2 else "?" for place, target in enumerate(targets)]
    one = write_run(
        tmp_path / "one", "final", fpb=records_of("fpb", targets, half), xbrl_term=bertscored([0.5, 0.6]),
        ner=records_of("ner", ["person"], ["person"]), formula=records_of("formula", ["1"], ["1"]),
    )  # fmt: skip
    other = write_run(
        tmp_path / "other", "round_003", fpb=records_of("fpb", targets, targets),
        xbrl_term=bertscored([0.7, 0.8], "finbert"),
        formula=records_of("formula", ["1"], ["1"], marker="Example\n"), fiqa=records_of("fiqa", ["positive"], ["?"]),
    )  # fmt: skip
    result = compare_runs(one, "final", other, "round_003")
    assert list(result.benchmarks) == ["fpb"]
    assert set(result.skipped) == {"xbrl_term", "formula"}
    assert (result.only_one, result.only_other) == (("ner",), ("fiqa",))
    fpb = result.benchmarks["fpb"].figures["accuracy"]
    for means in (result.groups["general"], result.overall):
        assert means.score_difference == fpb.difference == 0.5
        assert means.score_difference_ci95 == pytest.approx(fpb.difference_ci95)
        assert means.finlora_score_difference == 0.5
    assert list(result.groups) == ["general"]

    file = tmp_path / "out" / "differences.json"
    assert main(["compare", str(one), str(other), "--labels", "final", "round_003", "--json", str(file)]) == 0
    assert json.loads(file.read_text("utf-8")) == to_json(result)
    shown = capsys.readouterr().out
    assert "+50.0" in shown
    assert "<0.001" in shown
    assert "Only in B: fiqa" in shown
    assert all(len(line) <= 80 for line in shown.splitlines()[2:8])


def test_one_row_and_all_labels_absent_still_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, "base", fpb=records_of("fpb", ["positive"], ["?"]))
    write_run(tmp_path, "final", fpb=records_of("fpb", ["positive"], ["positive"]))
    assert main(["compare", str(run), str(run), "--labels", "base", "final"]) == 0
    assert "+100.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("last", "base"), "no scores called 'last'. It has: base, empty"),
        (("empty", "base"), "holds no benchmark's records"),
    ],
)
def test_wrong_labels_are_said(tmp_path: Path, labels, message: str) -> None:
    run = write_run(tmp_path, "base", fpb=records_of("fpb", ["positive"], ["?"]))
    write_run(tmp_path, "empty")
    with pytest.raises(UserError, match=message):
        compare_runs(run, labels[0], run, labels[1])


def test_what_is_no_run_or_has_nothing_in_common_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_run(tmp_path / "one", "final", fpb=records_of("fpb", ["positive"], ["?"]))
    other = write_run(tmp_path / "other", "final", ner=records_of("ner", ["person"], ["person"]))
    third = write_run(tmp_path / "third", "final", fpb=records_of("fpb", ["positive"], ["?"], marker="Example\n"))
    broken = write_run(tmp_path / "broken", "final", fpb=[])
    (broken / "eval" / "final" / "fpb.jsonl").write_text('{"id": "1"}\n', encoding="utf-8")
    cut, empty = (
        write_run(tmp_path / name, "final", fpb=records_of("fpb", ["positive"] * 2, ["?", "?"]))
        for name in ("cut", "empty")
    )
    (cut / "eval" / "final" / "fpb.jsonl").write_text((cut / "eval" / "final" / "fpb.jsonl").read_text()[:-9])
    (empty / "eval" / "final" / "fpb.jsonl").write_text("")
    for second, message in (
        (cut, "fpb.jsonl is cut off after 1 row. Evaluate again"),
        (empty, "fpb.jsonl is empty. Evaluate again"),
        (tmp_path, "is not the folder of a run with scores"),
        (other, "No benchmark is in both"),
        (third, "Nothing can be compared. fpb: no row is in both"),
        (broken, "line 1 cannot be read: prompt_sha256 is missing"),
    ):
        assert main(["compare", str(one), str(second)]) == 1
        assert message in capsys.readouterr().err
