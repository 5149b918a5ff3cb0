"""Every way into the rows, with real files: good ones, bad ones, FinLoRA's two layouts, a bank's folder and copies of
public sets.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.catalog import BENCHMARKS, select
from data.sample import FOLDER as SAMPLE_FOLDER
from data.sources import data_fingerprints, load_rows
from data.sources.files import SourceFile, read_file
from data.sources.issuers import issuer_in_question, issuer_of
from data.sources.public import tagged_entities
from fedfinlora.config.dataset import DatasetConfig
from fedfinlora.errors import ConfigError, UserError

REAL_ROWS = Path(__file__).resolve().parents[3] / "shared" / "data" / "finlora"
needs_real_rows = pytest.mark.skipif(not REAL_ROWS.is_dir(), reason=f"no FinLoRA rows at {REAL_ROWS}")
XBRL_TASKS = ("xbrl_tags_extract", "xbrl_value_extract", "xbrl_formula_extract", "xbrl_formula_calc_extract")


def write(path: Path, *rows: dict[str, Any] | str | bytes) -> Path:
    """A file of JSON lines; a text or bytes is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def row(text: str, target: str = "neutral", **more: Any) -> dict[str, Any]:
    return {"context": f"Instruction: judge this news.\nInput: {text}\nAnswer: ", "target": target, **more}


def finlora(root: Path, **more: Any) -> DatasetConfig:
    return DatasetConfig(source="finlora", root=str(root), **more)


def bank(root: Path, **more: Any) -> DatasetConfig:
    return DatasetConfig(source="jsonl", root=str(root), **more)


# One file


def read(path: Path, task: str = "fpb") -> tuple[list[str], list[tuple[int, str]]]:
    """Targets of the rows, and line and reason of the bad rows."""
    content = read_file(SourceFile(path, path.name, "train", task))
    return [row.target for row in content.rows], [(bad.line, bad.reason) for bad in content.bad_rows]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"context": "p Answer:", "target": "\xff\xfe"}', "not UTF-8 at byte 37 of the line"),
        (b'{"context": "p Answer:", "targ', "not JSON: Unterminated string starting at at character 26"),
        (b'["p Answer:", "t"]', "not a JSON object"),
        (b'{"target": "t"}', "no context"),
        (b'{"context": "p Answer:"}', "no target"),
        (b'{"context": "p Answer:", "target": "  "}', "target is empty"),
        (b'{"context": "", "target": "t"}', "context is empty"),
        (b'{"context": 5, "target": "t"}', "context is not text"),
        (b'{"context": "p Answer:", "target": null}', "target is not text"),
        (b'{"context": "p Answer:", "target": ["t"]}', "target is not text"),
        (b'{"context": "p Answer:", "target": true}', "target is not text"),
        (b'{"context": "p Answer:", "target": NaN}', "not JSON: NaN is not a number"),
        (b'{"context": "p Answer:", "target": "\\ud800"}', "target holds half a character (a lone surrogate)"),
        (b'{"context": "p Answer:", "target": "t", "issuer": ["x"]}', "issuer is not text"),
        (b'{"context": ' + b"[" * 100_000, "not JSON that can be read: nested too deeply"),
    ],
)
def test_a_bad_line_is_named_and_its_neighbours_are_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path / "fpb_train.jsonl", row("a", "first"), line, row("b", "last"))
    assert read(path) == (["first", "last"], [(2, reason)])


def test_reasons_never_quote_the_row(tmp_path: Path) -> None:
    secret = "ACCOUNT-4711"
    path = write(
        tmp_path / "x.jsonl",
        f'{{"context": "{secret}',
        f'["{secret}"]',
        {secret: secret},
        row(secret, " "),
        f"{secret} \\ud8",
    )
    assert read(path)[0] == []
    assert secret not in repr(read(path)[1])


def test_blank_lines_bom_and_windows_or_missing_line_ends_are_accepted(tmp_path: Path) -> None:
    lines = [json.dumps(row("a", "eins")), "", "  ", json.dumps(row("b", "zwei"), ensure_ascii=False), "nonsense"]
    (tmp_path / "fpb_train.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    targets, bad = read(tmp_path / "fpb_train.jsonl")
    assert targets == ["eins", "zwei"]
    assert [line for line, _ in bad] == [5]


def test_line_separators_inside_a_text_do_not_end_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "fpb_train.jsonl", json.dumps(row("one\u2028two\x85three"), ensure_ascii=False))
    assert read(path) == (["neutral"], [])


def test_numeric_targets_keep_their_spelling(tmp_path: Path) -> None:
    digits = "9" * 5000
    path = write(
        tmp_path / "v.jsonl",
        *(f'{{"context": "p Answer:", "target": {number}}}' for number in ("5.10", "-3", "1e3", digits)),
    )
    assert read(path) == (["5.10", "-3", "1e3", digits], [])


def test_a_missing_explanation_in_xbrl_term_is_bad_and_elsewhere_text(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", row("a", "nan"), row("b", "fine"))
    assert read(path, "xbrl_term") == (["fine"], [(1, 'target is the text "nan", a missing value')])
    assert read(path, "custom") == (["nan", "fine"], [])


def test_files_that_cannot_be_read_are_bad_rows_of_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty.jsonl").touch()
    assert read(tmp_path / "folder.jsonl") == ([], [(0, "cannot be read: Is a directory")])
    assert read(tmp_path / "dangling.jsonl") == ([], [(0, "cannot be read: No such file or directory")])
    assert read(tmp_path / "empty.jsonl") == ([], [(0, "the file is empty")])


# Issuers


@pytest.mark.parametrize(
    "question",
    [
        "Identify the US GAAP XBRL tag for Common Stock  as used by Dow & Sons Inc during the FY 2023. ",
        (
            "Please find the designated US GAAP XBRL tag for Total Assets reported by Dow & Sons Inc. at the end of FY "
            "2023. "
        ),
        (
            "What is the US GAAP XBRL tag for Inventory as reported by Dow & Sons Inc for the Fiscal Year ending in FY "
            "2022? "
        ),
        "Can you provide the XBRL tag under US GAAP for Net Income that was used by Dow & Sons Inc in the FY 2020? ",
        (
            "What XBRL tag corresponds to Cash Flow for Financing Activities for Dow & Sons Inc for the fiscal period "
            "concluding in FY 2021? "
        ),
        "Please find the Fiscal Year value of Cash Flow for Operating Activities for Dow & Sons Inc for FY 2023. ",
        "What was the reported value of Total Revenue for Dow & Sons  Inc at the end of the Fiscal Year FY 2023? ",
        "What is the value of Dow & Sons Inc's Shareholders' Equity for the Fiscal Year ending in FY 2023? ",
        "How much was Dow & Sons Inc's Quick Ratio for the Fiscal Year concluding in FY 2023?  Answer with a formula. ",
        "Can you provide the value for Cost of Goods Sold from Dow & Sons Inc for the Fiscal Year ending in FY 2023? ",
        (
            "What is the formula for the Return on Equity of Dow & Sons Inc, formatted with the relevant tags, for the "
            "fiscal year 2022?  * 100')"
        ),
        (
            "Can you provide the formula of the Quick Ratio for Dow & Sons Inc, using the appropriate tags, as it "
            "applies "
            "to the FY 2021? "
        ),
        (
            "What formula formatted with XBRL tags under US GAAP is used for Quick Ratio by Dow & Sons Inc for the "
            "fiscal "
            "year FY 2021? "
        ),
        (
            "I need the calculation formula for Current Ratio as used by Dow & Sons Inc in FY 2023, formatted with "
            "tags. "
            "Could you help? "
        ),
        (
            "Please find the formula that Dow & Sons Inc uses for Equity Multiplier, expressed with tags, for the "
            "period "
            "concluding in FY 2020. "
        ),
    ],
)
def test_the_filer_is_read_from_every_phrasing(question: str) -> None:
    assert issuer_in_question(question) == "Dow & Sons Inc"


def test_names_with_of_apostrophe_and_comma() -> None:
    assert (
        issuer_in_question("What is the formula for the Current Ratio of Bank of Ruritania, formatted with tags?")
        == "Bank of Ruritania"
    )
    assert (
        issuer_in_question("What is the value of Odell's Corp's Total Revenue for the Fiscal Year ending in FY 2023?")
        == "Odell's Corp"
    )
    assert (
        issuer_in_question("Identify the tag for Assets as used by Ruritania Depot, Inc. during the FY 2023.")
        == "Ruritania Depot, Inc"
    )
    assert issuer_in_question("Who is the chief executive?") == ""


def test_questions_on_one_filing_stay_together_when_no_filer_is_named() -> None:
    first, second, other = (
        issuer_of(f"Task.\n\nXML File: {fragment}\n\nQuestion: {question}\nAnswer:")
        for fragment, question in (("<a>1</>", "Who?"), ("<a>1</>", "What?"), ("<a>2</>", "Who?"))
    )
    assert first == second != other
    assert first.startswith("filing-")
    assert issuer_of("Instruction: judge.\nInput: gold up in FY 2020\nAnswer: ") == ""


@needs_real_rows
def test_the_filer_is_read_from_nearly_all_real_xbrl_questions() -> None:
    for split in ("train", "test"):
        rows = load_rows(finlora(REAL_ROWS), split, XBRL_TASKS).rows
        named = [row for row in rows if row.issuer and not row.issuer.startswith("filing-")]
        assert len(named) >= 0.95 * len(rows)
        of_fragment: dict[str, set[str]] = {}
        for each in rows:
            of_fragment.setdefault(
                each.prompt[each.prompt.find("XML File:") : each.prompt.rfind("Question:")], set()
            ).add(each.issuer)
        assert all(len(issuers) == 1 for issuers in of_fragment.values())


# FinLoRA's layout


def test_split_files_give_ids_tasks_and_fingerprints(tmp_path: Path) -> None:
    path = write(tmp_path / "train" / "fpb_train.jsonl", row("a"), "nonsense", row("b", issuer="Acme"))
    write(tmp_path / "test" / "fpb_test.jsonl", row("c"))
    loaded = load_rows(finlora(tmp_path), "train")
    assert [(row.id, row.task, row.issuer) for row in loaded.rows] == [
        ("fpb/train/000000", "fpb", ""),
        ("fpb/train/000002", "fpb", "Acme"),
    ]
    assert [(bad.file, bad.line) for bad in loaded.bad_rows] == [("train/fpb_train.jsonl", 2)]
    assert loaded.files == {"train/fpb_train.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert loaded.missing["ner"] == "no rows: there is no train/ner_train.jsonl"
    assert set(loaded.missing) == {benchmark.key for benchmark in select(["all"])} - {"fpb"}
    assert not loaded.synthetic
    test = load_rows(finlora(tmp_path), "test")
    assert list(data_fingerprints(test, loaded)) == ["test/fpb_test.jsonl", "train/fpb_train.jsonl"]


def test_files_may_lie_directly_in_the_root(tmp_path: Path) -> None:
    write(tmp_path / "fpb_train.jsonl", row("a"))
    write(tmp_path / "fpb_test.jsonl", row("b"))
    assert list(load_rows(finlora(tmp_path), "train").files) == ["fpb_train.jsonl"]
    assert list(load_rows(finlora(tmp_path), "test").files) == ["fpb_test.jsonl"]


def test_the_merged_file_serves_only_tasks_without_their_own_file(tmp_path: Path) -> None:
    def sentiment(kind: str, text: str, target: str) -> dict[str, str]:
        labels = (
            "strong negative/neutral/strong positive" if target.startswith("strong") else "negative/neutral/positive"
        )
        return {
            "context": (
                f"Instruction: What is the sentiment of this {kind}? Choose from {{{labels}}}.\nInput: {text}\nAnswer: "
            ),
            "target": target,
        }

    write(
        tmp_path / "train" / "finlora_sentiment_train.jsonl",
        sentiment("news", "a", "neutral"),
        sentiment("tweet", "b", "positive"),
        sentiment("news", "c", "strong negative"),
    )
    merged_only = load_rows(finlora(tmp_path), "train")
    assert [row.id for row in merged_only.rows] == ["fpb/train/000000", "tfns/train/000001", "nwgi/train/000002"]
    assert merged_only.missing["fiqa"] == "no usable row in train/finlora_sentiment_train.jsonl"
    write(tmp_path / "train" / "fpb_train.jsonl", row("own"))
    both = load_rows(finlora(tmp_path), "train")
    assert Counter(row.task for row in both.rows) == {"fpb": 1, "tfns": 1, "nwgi": 1}
    assert [row.prompt for row in both.rows if row.task == "fpb"] == [row("own")["context"]]


def test_two_files_of_one_task_give_different_ids(tmp_path: Path) -> None:
    for stem in ("regulations_train", "cpa_reg_train"):
        write(tmp_path / "train" / f"{stem}.jsonl", row(stem, "A"))
    ids = [row.id for row in load_rows(finlora(tmp_path), "train").rows]
    assert ids == ["cpa_reg/train/000000", "cpa_reg/train/cpa_reg_train/000000"]


def test_tasks_choose_files_and_unknown_ones_are_named(tmp_path: Path) -> None:
    for stem in ("fpb_train", "ner_train"):
        write(tmp_path / "train" / f"{stem}.jsonl", row(stem))
    assert {row.task for row in load_rows(finlora(tmp_path, tasks=("ner",)), "train").rows} == {"ner"}
    loaded = load_rows(finlora(tmp_path, tasks=("ner",)), "train", ["fpb", "tfns"])
    assert {row.task for row in loaded.rows} == {"fpb"}
    assert set(loaded.missing) == {"tfns"}
    with pytest.raises(ConfigError, match=r"Unknown task 'fbp'. Did you mean 'fpb'"):
        load_rows(finlora(tmp_path), "train", ["fbp"])
    with pytest.raises(ConfigError, match="Choose one of: test, train"):
        load_rows(finlora(tmp_path), "valid")


def test_stop_ends_at_the_first_bad_row_with_file_line_and_reason(tmp_path: Path) -> None:
    write(tmp_path / "train" / "fpb_train.jsonl", row("a"), row("b", ""), "nonsense")
    with pytest.raises(
        UserError, match=r"^train/fpb_train.jsonl:2: target is empty. Correct it, or set dataset.on_bad_row=skip"
    ):
        load_rows(finlora(tmp_path, on_bad_row="stop"), "train")
    (tmp_path / "train" / "fpb_train.jsonl").write_text("")
    with pytest.raises(UserError, match=r"^train/fpb_train.jsonl: the file is empty"):
        load_rows(finlora(tmp_path, on_bad_row="stop"), "train")


def test_nothing_to_read_says_where_was_looked_and_for_what(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"No train rows in .*: expected FinLoRA's files, such as train/fpb_train.jsonl"
    ):
        load_rows(finlora(tmp_path), "train")
    with pytest.raises(UserError, match=r"such as test/ner_test.jsonl, there or directly"):
        load_rows(finlora(tmp_path), "test", ["ner"])
    with pytest.raises(UserError, match=r"No train rows in .*: expected \*.jsonl files such as fpb_train.jsonl"):
        load_rows(bank(tmp_path), "train")
    with pytest.raises(UserError, match="does not exist"):
        load_rows(finlora(tmp_path / "nowhere"), "train")
    write(tmp_path / "train" / "fpb_train.jsonl", "nonsense")
    with pytest.raises(UserError, match="not a folder"):
        load_rows(finlora(tmp_path / "train" / "fpb_train.jsonl"), "train")
    with pytest.raises(UserError, match=r"No usable train rows: 1 bad, the first train/fpb_train.jsonl:1: not JSON"):
        load_rows(finlora(tmp_path), "train")


@needs_real_rows
def test_real_rows_load_in_full() -> None:
    train = load_rows(finlora(REAL_ROWS), "train")
    counts = Counter(row.task for row in train.rows)
    assert (counts["fpb"], counts["tfns"], counts["ner"], counts["xbrl_finer"], counts["xbrl_term"]) == (
        3634,
        9543,
        13634,
        500,
        5850,
    )
    assert [bad.file for bad in train.bad_rows] == ["train/xbrl_term_train.jsonl"] * 6
    assert set(train.missing) == {"cfa_level1", "cfa_level2", "cfa_level3", "cpa_reg", "xbrl_fnxl"}
    assert len({row.id for row in train.rows}) == len(train.rows)
    test = load_rows(finlora(REAL_ROWS), "test")
    assert set(test.missing) == {"cfa_level1", "cfa_level2", "cfa_level3", "cpa_reg"}
    assert not test.bad_rows


def test_copies_of_the_sample_are_known_as_synthetic(tmp_path: Path) -> None:
    shutil.copy(SAMPLE_FOLDER / "train" / "fpb_train.jsonl", tmp_path / "fpb_train.jsonl")
    assert load_rows(DatasetConfig(source="jsonl", root=str(tmp_path)), "train").synthetic
    assert load_rows(DatasetConfig(source="finlora", root=str(SAMPLE_FOLDER)), "test", ["fpb"]).synthetic


def test_the_sample_has_every_benchmark_in_both_splits() -> None:
    for split in ("train", "test"):
        loaded = load_rows(DatasetConfig(), split, tuple(BENCHMARKS))
        assert loaded.synthetic
        assert not loaded.missing
        assert not loaded.bad_rows
        assert {row.task for row in loaded.rows} == set(BENCHMARKS)
        plain = load_rows(DatasetConfig(), split)
        assert {row.task for row in plain.rows} == {benchmark.key for benchmark in select(["all"])}


# Sampling


def test_max_rows_per_task_is_a_seeded_sample_in_file_order(tmp_path: Path) -> None:
    write(tmp_path / "fpb_train.jsonl", *(row(str(number)) for number in range(50)))
    write(tmp_path / "ner_train.jsonl", *(row(str(number)) for number in range(3)))
    write(tmp_path / "fpb_test.jsonl", *(row(str(number)) for number in range(50)))
    config = finlora(tmp_path, max_rows_per_task=10)
    ids = [row.id for row in load_rows(config, "train", seed=1).rows]
    assert Counter(name.split("/")[0] for name in ids) == {"fpb": 10, "ner": 3}
    assert ids == sorted(ids)
    assert ids == [row.id for row in load_rows(config, "train", seed=1).rows]
    assert ids != [row.id for row in load_rows(config, "train", seed=2).rows]
    assert len(load_rows(config, "test").rows) == 50


@pytest.mark.parametrize(("limit", "count"), [(0, 5), (4, 4), (7, 7)])
def test_equalize_repeats_the_rows_of_small_tasks(tmp_path: Path, limit: int, count: int) -> None:
    write(tmp_path / "fpb_train.jsonl", *(row(str(number)) for number in range(5)))
    write(tmp_path / "ner_train.jsonl", *(row(str(number), issuer="Acme") for number in range(2)))
    rows = load_rows(finlora(tmp_path, max_rows_per_task=limit, equalize_tasks=True), "train").rows
    assert Counter(row.task for row in rows) == {"fpb": count, "ner": count}
    assert len({row.id for row in rows}) == len(rows)
    copies = [row.id for row in rows if row.task == "ner"]
    assert copies[:4] == ["ner/train/000000", "ner/train/000001", "ner/train/000000#2", "ner/train/000001#2"]
    assert {row.issuer for row in rows if row.task == "ner"} == {"Acme"}


# A bank's own folder


def test_a_banks_folder_gives_path_split_and_task(tmp_path: Path) -> None:
    write(tmp_path / "bank-a" / "fpb_train.jsonl", row("1"))
    write(tmp_path / "bank-a" / "2024" / "FiNER-train-q1.jsonl", row("2"))
    write(tmp_path / "bank-b" / "test" / "xbrl_extract_formula_calculations.jsonl", row("3", "1.5"))
    write(tmp_path / "bank-b" / "letters.jsonl", row("4"), row("5", task="complaints", issuer="Branch 7"))
    write(tmp_path / "test" / "formula_test.jsonl", row("6", "12"))
    write(tmp_path / "contest.jsonl", row("7"))
    write(tmp_path / ".ipynb_checkpoints" / "fpb_train.jsonl", row("8"))
    write(tmp_path / "bank-b" / "._fpb_train.jsonl", b"\x00\x05")
    (tmp_path / "notes.txt").write_text("not rows")
    assert [(row.path, row.task, row.id) for row in load_rows(bank(tmp_path), "train").rows] == [
        ("bank-a", "xbrl_finer", "bank-a/2024/FiNER-train-q1/000000"),
        ("bank-a", "fpb", "bank-a/fpb_train/000000"),
        ("bank-b", "custom", "bank-b/letters/000000"),
        ("bank-b", "complaints", "bank-b/letters/000001"),
        ("", "custom", "contest/000000"),
    ]
    assert [(row.path, row.task) for row in load_rows(bank(tmp_path), "test").rows] == [
        ("bank-b", "xbrl_formula_calc_extract"),
        ("", "formula"),
    ]


def test_tasks_of_a_banks_folder_may_be_its_own(tmp_path: Path) -> None:
    write(tmp_path / "letters.jsonl", row("1"), row("2", task="complaints"))
    write(tmp_path / "fpb.jsonl", row("3"))
    loaded = load_rows(bank(tmp_path), "train", ["complaints", "ner"])
    assert [row.task for row in loaded.rows] == ["complaints"]
    assert list(loaded.files) == ["letters.jsonl"]
    assert set(loaded.missing) == {"ner"}


def test_linked_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "fpb_train.jsonl", row("1"))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "bank-a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "root")
    assert [row.path for row in load_rows(bank(tmp_path / "root"), "train").rows] == ["bank-a"]


def test_relative_roots_are_taken_from_where_the_command_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "rows" / "fpb_train.jsonl", row("1"))
    monkeypatch.chdir(tmp_path)
    assert len(load_rows(bank(Path("rows")), "train").rows) == 1


# Public sets, from copies on disk with the columns that they have on the hub


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for copies of public sets; what `datasets` keeps of them stays in the test's own folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield tmp_path / "hub"
    datasets.enable_progress_bars()


def public(copies: Path, task: str, split: str) -> list[tuple[str, str]]:
    """(prompt, target) of each row of one task."""
    loaded = load_rows(DatasetConfig(source="hub", root=str(copies)), split, [task])
    assert {row.task for row in loaded.rows} == {task}
    return [(row.prompt, row.target) for row in loaded.rows]


def test_public_sentiment_sets_become_finlora_prompts(copies: Path) -> None:
    tweets = copies / BENCHMARKS["tfns"].hub_id
    for name, codes in (("sent_train", "0"), ("sent_valid", "012")):
        tweets.mkdir(parents=True, exist_ok=True)
        with (tweets / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *((f"$ABC says {code}", code) for code in codes)])
    (tweets / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: sent_train.csv}\n"
        "  - {split: validation, path: sent_valid.csv}\n---\n"
    )
    assert public(copies, "tfns", "test") == [
        (
            "Instruction: What is the sentiment of this tweet? Please choose an answer from "
            "{negative/neutral/positive}.\n"
            f"Input: $ABC says {code}\nAnswer: ",
            target,
        )
        for code, target in enumerate(("negative", "positive", "neutral"))
    ]
    write(
        copies / BENCHMARKS["fiqa"].hub_id / "test.jsonl",
        {"sentence": "Up we go", "sentiment_score": 0.4, "format": "post"},
        {"sentence": "Down a bit", "sentiment_score": -0.1, "format": "headline"},
        {"sentence": "Down", "sentiment_score": -0.3, "format": "headline"},
    )
    found = public(copies, "fiqa", "test")
    assert [target for _, target in found] == ["positive", "neutral", "negative"]
    assert ["tweet" in prompt for prompt, _ in found] == [True, False, False]


def test_a_public_set_in_parquet_without_a_test_part_is_divided_once(copies: Path) -> None:
    import datasets

    folder = copies / BENCHMARKS["fpb"].hub_id
    folder.mkdir(parents=True)
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "neutral", "positive"])}
    )
    table = {
        "sentence": [f"Sales were {number} ." for number in range(40)],
        "label": [number % 3 for number in range(40)],
    }
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(folder / "train.parquet"))
    train, test = public(copies, "fpb", "train"), public(copies, "fpb", "test")
    assert (len(train), len(test)) == (30, 10)
    assert len({prompt for prompt, _ in train + test}) == 40
    assert {target for _, target in train} == {"negative", "neutral", "positive"}
    assert test == public(copies, "fpb", "test")


def test_public_instruction_triples_and_levels(copies: Path) -> None:
    triple = {"instruction": "Does the news headline talk about price going up? Please choose an answer from {Yes/No}."}
    write(copies / BENCHMARKS["headline"].hub_id / "test.jsonl", {**triple, "input": "gold up", "output": "Yes"})
    assert public(copies, "headline", "test") == [
        (f"Instruction: {triple['instruction']}\nInput: gold up\nAnswer: ", "Yes")
    ]
    write(
        copies / BENCHMARKS["nwgi"].hub_id / "test.jsonl",
        {"news": "Shares soar.", "label": "strong positive", "prompt": "x", "out": "y"},
        {"news": "Shares do what?", "label": "no idea", "prompt": "x", "out": "y"},
    )
    loaded = load_rows(DatasetConfig(source="hub", root=str(copies)), "test", ["nwgi"])
    assert [row.target for row in loaded.rows] == ["strong positive"]
    assert [(bad.line, bad.reason[:27]) for bad in loaded.bad_rows] == [(2, "the label is not one of str")]
    assert loaded.files.keys() == {f"{BENCHMARKS['nwgi'].hub_id}/test"}


def test_public_financebench_keeps_pages_and_company(copies: Path) -> None:
    evidence = [
        {"evidence_text": "part", "evidence_page_num": 7, "evidence_text_full_page": "the whole page"},
        {"evidence_text": "only this", "evidence_page_num": 9, "evidence_text_full_page": ""},
    ]
    record = {"company": "Acme", "question": "How much?", "answer": "$5", "evidence": evidence}
    write(copies / BENCHMARKS["financebench"].hub_id / "test.jsonl", record)
    loaded = load_rows(DatasetConfig(source="hub", root=str(copies)), "test", ["financebench"])
    assert loaded.rows[0].issuer == "Acme"
    assert loaded.rows[0].prompt.endswith(
        "Question: How much?\nDocument Pages Context:\nPage 7:\nthe whole page\nPage 9:\nonly this\n\nAnswer:"
    )


def test_public_finer_asks_for_four_entities_a_row(copies: Path) -> None:
    def sentence(number: int) -> dict[str, Any]:
        return {
            "tokens": ["Paid", str(number), "million", "and", "9"],
            "ner_tags": ["O", "B-Cost", "I-Cost", "O", "B-Debt"],
        }

    write(copies / BENCHMARKS["xbrl_finer"].hub_id / "test.jsonl", *(sentence(number) for number in range(5)))
    found = public(copies, "xbrl_finer", "test")
    assert [target for _, target in found] == ["Cost,Debt,Cost,Debt"] * 2
    assert ": ,Cost,Debt. Answer" in found[0][0]
    assert found[0][0].count("What is best tag for entity") == 4
    assert found[0][0].endswith("Output US GAAP tags:")
    assert "million" in found[0][0].split('entity "')[1].split('"')[0]


def test_tagged_entities_end_where_the_tag_changes() -> None:
    tokens = ["1", "2", "3", "4", "5"]
    assert tagged_entities(tokens, ["B-A", "I-A", "B-A", "I-B", "O"]) == [("1 2", "A"), ("3", "A")]


def test_sets_without_a_mapping_or_a_copy_are_missing_with_a_reason(copies: Path) -> None:
    write(copies / BENCHMARKS["tfns"].hub_id / "test.jsonl", {"query": "q", "answer": "a"})
    write(copies / BENCHMARKS["headline"].hub_id / "test.jsonl", {"context": "ready Answer:", "target": "Yes"})
    loaded = load_rows(
        DatasetConfig(source="hub", root=str(copies)),
        "test",
        ["tfns", "headline", "ner", "formula", "xbrl_tags_extract"],
    )
    assert [row.prompt for row in loaded.rows] == ["ready Answer:"]
    assert loaded.missing["tfns"] == "no mapping to FinLoRA's prompts knows its columns (answer, query)"
    assert loaded.missing["ner"].startswith("there is no folder")
    assert loaded.missing["formula"].startswith("has no public set on the hub")
    assert "holds questions without their filings" in loaded.missing["xbrl_tags_extract"]
    with pytest.raises(
        UserError, match=r"No train rows from the public sets \(headline: .* has no train part, only test\)"
    ):
        load_rows(DatasetConfig(source="hub", root=str(copies)), "train", ["headline"])


def test_without_network_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"cannot be reached.*hf download.*dataset.source=finlora"):
        load_rows(DatasetConfig(source="hub"), "train")


def test_a_set_that_comes_as_a_program_is_read_from_the_converted_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[dict[str, Any]] = []

    def load_dataset(path: str, **options: Any) -> Any:
        asked.append(options)
        if not options:
            raise RuntimeError("Dataset scripts are no longer supported")
        return datasets.DatasetDict({"test": datasets.Dataset.from_dict({"sentence": ["Sales rose ."], "label": [2]})})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = load_rows(DatasetConfig(source="hub"), "test", ["fpb", "ner"])
    assert [row.target for row in loaded.rows] == ["positive"]
    assert asked[1] == {"data_dir": "sentences_50agree", "revision": "refs/convert/parquet"}
    assert loaded.missing == {"ner": "RuntimeError: Dataset scripts are no longer supported"}
