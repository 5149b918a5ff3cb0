"""The bundled sample: its bytes, its counts, its labels, and its answers worked out again by other means."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from pathlib import Path
from random import Random

import pytest

from data.sample import FOLDER
from data.sample.choices import Problem, multiple_choice, wrong_options
from data.sample.drawing import SampleRow, collect, pool
from data.sample.figures import show_dollars, show_percent, show_whole_dollars
from data.sample.generate import ALL_SETS, FLARE_SETS, SETS, write
from data.sample.tagging import FINER_TAGS, FNXL_TAGS
from data.sample.terms import TERMS
from data.sample.words import LAST_NAMES, STEMS
from data.sources import load_rows
from fedfinlora.config.dataset import DatasetConfig

SPLITS = ("train", "test")
CLOSED_LABELS = {
    "fpb": {"negative", "neutral", "positive"},
    "fiqa": {"negative", "neutral", "positive"},
    "tfns": {"negative", "neutral", "positive"},
    "nwgi": {
        "strong negative",
        "moderately negative",
        "mildly negative",
        "neutral",
        "mildly positive",
        "moderately positive",
        "strong positive",
    },
    "headline": {"Yes", "No"},
    "ner": {"person", "location", "organization"},
    "cfa_level1": set("ABC"),
    "cfa_level2": set("ABC"),
    "cfa_level3": set("ABC"),
    "cpa_reg": set("ABCD"),
}
EXTRACTION = ("xbrl_tags_extract", "xbrl_value_extract", "xbrl_formula_extract", "xbrl_formula_calc_extract")
CERTIFICATES = ("cfa_level1", "cfa_level2", "cfa_level3", "cpa_reg")
GENERAL = ("fpb", "fiqa", "tfns", "nwgi", "headline", "ner")


@cache
def rows(key: str, split: str) -> list[dict[str, str]]:
    """The committed rows of one file."""
    name = SETS[key].train_file if split == "train" else SETS[key].test_file
    return [json.loads(line) for line in (FOLDER / split / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def both(key: str) -> list[dict[str, str]]:
    return rows(key, "train") + rows(key, "test")


# --- files


def test_generating_again_gives_the_committed_bytes(tmp_path: Path) -> None:
    written = {path.relative_to(tmp_path): path.read_bytes() for path in write(tmp_path)}
    committed = {path.relative_to(FOLDER): path.read_bytes() for path in FOLDER.glob("*/*.jsonl")}
    assert sorted(written) == sorted(committed)
    assert [name for name in written if written[name] != committed[name]] == []


def test_nineteen_benchmarks_have_a_train_and_a_test_file() -> None:
    assert len(SETS) == 19
    assert len({chosen.train_file for chosen in SETS.values()}) == 19
    assert len({chosen.test_file for chosen in SETS.values()}) == 19


def test_all_files_together_are_below_one_and_a_half_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.glob("*/*.jsonl")) < 1_500_000


def test_the_readme_lists_every_file_with_its_rows() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)\.jsonl` \| (\d+) \| `(\w+)\.jsonl` \| (\d+) \|", text, re.MULTILINE)
    expected = [(s.train_file, str(s.train_rows), s.test_file, str(s.test_rows)) for s in ALL_SETS.values()]
    assert listed == expected


# --- rows


@pytest.mark.parametrize("key", SETS)
def test_every_set_has_its_rows_and_no_prompt_twice(key: str) -> None:
    chosen = SETS[key]
    assert (len(rows(key, "train")), len(rows(key, "test"))) == (chosen.train_rows, chosen.test_rows)
    assert chosen.train_rows >= 48
    assert chosen.test_rows >= 24
    prompts = [row["context"] for row in both(key)]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("key", SETS)
def test_prompts_end_as_finloras_do(key: str) -> None:
    ending = {"xbrl_finer": "\nOutput US GAAP tags:", "xbrl_fnxl": "\nOutput US GAAP tags:"}.get(key, "Answer:")
    ending = "\nAnswer: " if key in GENERAL else ending
    assert all(row["context"].endswith(ending) for row in both(key))
    assert all(row["context"].count("Answer:") <= 1 for row in both(key))


@pytest.mark.parametrize("key", SETS)
def test_every_row_has_an_answer_and_an_issuer_only_where_there_is_one(key: str) -> None:
    expected = {"context", "target"} | ({"issuer"} if key in (*EXTRACTION, "financebench") else set())
    for row in both(key):
        assert set(row) == expected
        assert row["target"] == row["target"].strip() != ""


@pytest.mark.parametrize("key", CLOSED_LABELS)
@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_valid_and_balanced_to_one_or_two_rows(key: str, split: str) -> None:
    counts = Counter(row["target"] for row in rows(key, split))
    assert set(counts) == CLOSED_LABELS[key]
    assert max(counts.values()) - min(counts.values()) <= 2


@pytest.mark.parametrize(
    "key", ["fpb", "fiqa", "tfns", "nwgi", "ner", *EXTRACTION, "financebench", "xbrl_finer", "xbrl_fnxl"]
)
def test_companies_and_surnames_of_test_rows_never_occur_in_train_rows(key: str) -> None:
    test_names = pool(STEMS, "test") + pool(LAST_NAMES, "test")
    train_text = " ".join(row["context"] for row in rows(key, "train"))
    assert [name for name in test_names if name in train_text] == []


@pytest.mark.parametrize("split", SPLITS)
def test_four_headline_questions_have_as_many_yes_as_no(split: str) -> None:
    counts = Counter((row["context"].split("?")[0], row["target"]) for row in rows("headline", split))
    assert len(counts) == 8
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize("split", SPLITS)
def test_ner_sentences_hold_the_entity_and_offer_all_three_types(split: str) -> None:
    for row in rows("ner", split):
        question, options, sentence = row["context"].split("\n")[:3]
        found = re.search(r"'(.+)'", question)
        assert found is not None
        assert found[1] in sentence
        assert sorted(options.removeprefix("Options: ").split(", ")) == ["location", "organization", "person"]


@pytest.mark.parametrize("key", SETS)
def test_prompts_stay_short(key: str) -> None:
    """Characters, a stand-in for tokens: SmolLM2 takes about 4 a token, about 3 in XBRL, where figures cost a token a
    digit.
    """
    limit = 1650 if key in EXTRACTION else 1500 if key in ("xbrl_finer", "xbrl_fnxl") else 800
    assert max(len(row["context"]) for row in both(key)) <= limit


# --- answers, worked out again


def read_numbers(text: str) -> list[float]:
    """Every number in reading order; a percentage becomes its fraction."""
    found = re.findall(r"(?<![\w.])(\d[\d,]*(?:\.\d+)?)(%?)", text)
    return [float(digits.replace(",", "")) / (100 if mark else 1) for digits, mark in found]


@pytest.mark.parametrize("split", SPLITS)
def test_financial_math_equals_the_printed_formula_on_its_figures(split: str) -> None:
    for row in rows("formula", split):
        found = re.search(
            r'Formula: .+? = (.+), Explanation: (.+)\. Question: {2}"(.+)"\. Answer:$', row["context"], re.DOTALL
        )
        assert found is not None
        expression, explanation, story = found.groups()
        names = re.findall(r"(?:^|, )([^:,]+): ", explanation)
        values = read_numbers(story)
        assert len(values) == len(names), row["context"]
        for place, name in sorted(enumerate(names), key=lambda pair: -len(pair[1])):
            expression = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", f"v[{place}]", expression)
        answer = eval(expression.replace("×", "*").replace("^", "**"), {"__builtins__": {}}, {"v": values})
        assert re.fullmatch(r"-?\d+\.\d\d", row["target"])
        assert float(row["target"]) == pytest.approx(answer, abs=0.00501), row["context"]


def read_facts(context: str) -> dict[str, int]:
    """Tag -> value of the fragment in a prompt."""
    return {tag: int(value) for tag, value in re.findall(r"<(us-gaap:\w+)>(-?\d+)</>", context)}


ITEM_TAGS = {
    "Total Revenue": {"Revenues", "RevenueFromContractWithCustomerExcludingAssessedTax"},
    "Cost of Goods Sold": {"CostOfRevenue", "CostOfGoodsAndServicesSold"},
    "Gross Profit": {"GrossProfit"},
    "Operating Expenses": {"OperatingExpenses", "SellingGeneralAndAdministrativeExpense"},
    "Operating Income": {"OperatingIncomeLoss"},
    "Net Income": {"NetIncomeLoss", "ProfitLoss"},
    "Current Assets": {"AssetsCurrent"},
    "Inventory": {"InventoryNet"},
    "Total Assets": {"Assets"},
    "Current Liabilities": {"LiabilitiesCurrent"},
    "Shareholders' Equity": {"StockholdersEquity"},
    "Cash Flow for Operating Activities": {"NetCashProvidedByUsedInOperatingActivities"},
    "Cash Flow for Investing Activities": {"NetCashProvidedByUsedInInvestingActivities"},
}
RATIO_PARTS = {
    "Gross Profit Margin": ("Gross Profit", "Total Revenue"),
    "Operating Profit Margin": ("Operating Income", "Total Revenue"),
    "Net Profit Margin": ("Net Income", "Total Revenue"),
    "Cash Flow Margin": ("Cash Flow for Operating Activities", "Total Revenue"),
    "Current Ratio": ("Current Assets", "Current Liabilities"),
    "Quick Ratio": ("Current Assets", "Inventory", "Current Liabilities"),
    "Equity Multiplier": ("Total Assets", "Shareholders' Equity"),
    "Asset Turnover": ("Total Revenue", "Total Assets"),
    "Return on Assets": ("Net Income", "Total Assets"),
    "Return on Equity": ("Net Income", "Shareholders' Equity"),
}


def find_asked(context: str, names: dict[str, object]) -> str:
    """The one item that the question names."""
    question = context.rsplit("Question: ", 1)[1]
    (name,) = [name for name in names if name in question]
    return name


def find_tag(item: str, facts: dict[str, int]) -> str:
    """The one tag of the fragment that may carry an item."""
    (tag,) = [tag for tag in facts if tag.removeprefix("us-gaap:") in ITEM_TAGS[item]]
    return tag


@pytest.mark.parametrize("split", SPLITS)
def test_xbrl_tags_and_values_are_those_of_the_fragment(split: str) -> None:
    for row in rows("xbrl_tags_extract", split):
        assert row["target"] == find_tag(find_asked(row["context"], dict(ITEM_TAGS)), read_facts(row["context"]))
    for row in rows("xbrl_value_extract", split):
        facts = read_facts(row["context"])
        assert row["target"].endswith(".0")
        assert float(row["target"]) == facts[find_tag(find_asked(row["context"], dict(ITEM_TAGS)), facts)]


@pytest.mark.parametrize("key", ["xbrl_formula_extract", "xbrl_formula_calc_extract"])
def test_xbrl_formulas_give_the_ratio_of_the_fragment(key: str) -> None:
    for row in both(key):
        facts = read_facts(row["context"])
        name = find_asked(row["context"], dict(RATIO_PARTS))
        first, *middle, last = (facts[find_tag(item, facts)] for item in RATIO_PARTS[name])
        expected = (first - sum(middle)) / last * (100 if "Margin" in name or "Return" in name else 1)
        with_values = row["target"]
        for tag in sorted(facts, key=len, reverse=True):
            with_values = with_values.replace(tag, str(facts[tag]))
        assert ("us-gaap:" in row["target"]) == (key == "xbrl_formula_extract")
        assert re.fullmatch(r"[\d\s()/*-]+", with_values)
        assert eval(with_values, {"__builtins__": {}}) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("key", EXTRACTION)
def test_eight_questions_share_each_fragment_and_statements_add_up(key: str) -> None:
    fragments: dict[str, set[str]] = {}
    for row in both(key):
        fragments.setdefault(row["issuer"], set()).add(row["context"].split("\n\nQuestion: ")[0])
    assert set(Counter(row["issuer"] for row in both(key)).values()) == {8}
    assert all(len(prefixes) == 1 for prefixes in fragments.values())
    for (prefix,) in fragments.values():
        facts = read_facts(prefix)
        value = {item: facts[find_tag(item, facts)] for item in ITEM_TAGS}
        assert value["Total Revenue"] - value["Cost of Goods Sold"] == value["Gross Profit"]
        assert value["Gross Profit"] - value["Operating Expenses"] == value["Operating Income"]
        assert 0 < value["Net Income"] < value["Operating Income"]
        assert 0 < value["Inventory"] < value["Current Assets"] < value["Total Assets"]
        assert 0 < value["Shareholders' Equity"] < value["Total Assets"] - value["Current Liabilities"]


# A phrase that only this question has -> the answer from the numbers of the question in reading order.
EXAM_ANSWERS: dict[str, Callable[..., float]] = {
    "deposits": lambda pv, r, n: pv * (1 + r) ** n,
    "preferred share": lambda d, r: d / r,
    "holding period": lambda p0, p1, d: (p1 + d) / p0 - 1,
    "Sharpe": lambda r, s, f: (r - f) / s,
    "CAPM": lambda f, m, b: f * (1 - b) + b * m,
    "equity multiplier": lambda m, t, e: m * t * e,
    "modified duration": lambda d, y: -d * y,
    "put-call": lambda s, c, k: c + k - s,
    "just paid a dividend": lambda d, g, r: d * (1 + g) / (r - g),
    "compounded quarterly": lambda r: (1 + r / 4) ** 4 - 1,
    "rest in bonds": lambda w, a, b: w * a + (1 - w) * b,
    "days of inventory": lambda c, i, d: d * i / c,
    "Residual income": lambda b, roe, r: b * roe - b * r,
    "one-year forward on a share": lambda s, d, r: s * (1 + r) - d * (1 + r),
    "binomial": lambda u, d, r: ((1 + r) - d) / (u - d),
    "weighted average cost": lambda w, d, e, t: (1 - w) * e + w * d - w * d * t,
    "Free cash flow": lambda e, d, c, w, t: e - e * t + d - c - w,
    "forward P/E": lambda p, g, r: p / (r - g),
    "covered parity": lambda s, p, b: s / (1 + b) * (1 + p),
    "regresses": lambda a, b, x: b * x + a,
    "Goodwill": lambda p, f, b: p - f,
    "foundation": lambda s, i, f: (1 + f) * (1 + i) * (1 + s) - 1,
    "raise the beta": lambda v, b0, b1, c, bf: (b1 - b0) / bf * (v * 1e6 / c),
    "basis point value": lambda a, li, c: (li - a) / c,
    "allocation effect": lambda h, n, s, t: h * s - n * s - h * t + n * t,
    "foreign share portfolio": lambda a, b: a + b + a * b,
    "stress test": lambda a, li, f, g: a - a * f - li - li * g,
    "information ratio": lambda r, b, s: (r - b) / s,
    "implementation shortfall": lambda n, p0, p1, fee: n * p1 - n * p0 + fee,
    "taxed at": lambda w, r, t, n: w * (1 + r - r * t) ** n,
    "outside basis": lambda c, b, w: c + b,
    "S corporation": lambda b, i, d: b + i - d,
    "like-kind": lambda b, w, c: min(c, w + c - b),
    "as a gift": lambda b, w, p: p - b,
    "inherits": lambda b, w, p: p - w,
    "carried forward": lambda losses, g, limit: losses - g - limit,
    "to charity": lambda i, g, s: min(g, s * i),
    "installment": lambda b, p, c: c * (1 - b / p),
    "receives dividends": lambda p, d, s: p + d - s * d,
    "a home with": lambda p, b, e: p - b - e,
    "control test": lambda b, w, c: min(c, w + c - b),
    "medical": lambda i, e, s, *again: e - s * i,
}


@pytest.mark.parametrize("key", CERTIFICATES)
def test_certificate_targets_are_the_one_right_option(key: str) -> None:
    for row in both(key):
        question, *options = row["context"].split("Question: ")[1].removesuffix("\nAnswer:").split("\n")
        printed = dict(option.split(". ", 1) for option in options)
        assert sorted(printed) == sorted(CLOSED_LABELS[key])
        assert len(set(printed.values())) == len(printed)
        (compute,) = [function for phrase, function in EXAM_ANSWERS.items() if phrase in question]
        answer = compute(*read_numbers(question))
        text = printed[row["target"]]
        unit = 10.0 ** -len(text.rstrip("%").partition(".")[2]) / (100 if text.endswith("%") else 1)
        sign = -1 if text.startswith("-") else 1
        assert sign * read_numbers(text.lstrip("-$"))[0] == pytest.approx(answer, abs=unit * 0.501), row["context"]


@pytest.mark.parametrize("key", ["xbrl_finer", "xbrl_fnxl"])
def test_tagging_rows_ask_for_four_listed_tags_of_their_figures(key: str) -> None:
    templates = FINER_TAGS if key == "xbrl_finer" else FNXL_TAGS
    for row in both(key):
        asked = re.findall(r'for entity "([^"]+)" in sentence: "([^"]+)"', row["context"])
        targets = row["target"].split(",")
        assert len(asked) == len(targets) == 4
        head = row["context"].split(" in sentence:")[0]
        listed = set(re.findall(r"[A-Z]\w+", head))
        for (figure, sentence), tag in zip(asked, targets, strict=True):
            assert sentence.count(figure) == 1
            assert tag in listed
            matching = [name for name, forms in templates.items() if any(_matches(form, sentence) for form in forms)]
            assert matching == [tag]


def _matches(template: str, sentence: str) -> bool:
    pattern = re.sub(r"\\\{\w+\\\}", ".+?", re.escape(template))
    return re.fullmatch(pattern, sentence.removesuffix("?")) is not None


@pytest.mark.parametrize("split", SPLITS)
def test_the_tag_list_is_a_shared_prefix(split: str) -> None:
    for key, start in (("xbrl_finer", "\n1. "), ("xbrl_fnxl", "\nWhat is the best")):
        assert len({row["context"].split(start)[0] for row in rows(key, split)}) == 1


def test_terms_and_their_meanings_are_all_different() -> None:
    assert len({name for name, _ in TERMS}) == len({meaning for _, meaning in TERMS}) == len(TERMS) >= 96


def test_financebench_figures_can_be_read_or_worked_out_from_the_page() -> None:
    for row in both("financebench"):
        page = row["context"].split("Document Pages Context:")[1]
        values = read_numbers(page)
        reachable = {round(v, 1) for v in values} | {abs(round(a - b, 1)) for a in values for b in values}
        reachable |= {round(v * 100, 1) for v in values}  # percentages were read as fractions
        reachable |= {round(abs(a - b) / b * 100, 1) for a in values for b in values if b}
        reachable |= {round(a / b * 100, 1) for a in values for b in values if b}
        reachable |= {float(round(a / b * 100)) for a in values for b in values if b}
        reachable |= {round(a + b + c, 1) for a in values for b in values for c in values}
        for number in re.findall(r"\d[\d,]*(?:\.\d+)?", row["target"]):
            assert float(number.replace(",", "")) in reachable, row


# --- the pieces


def test_pool_gives_every_third_item_to_test() -> None:
    assert pool("abcdefg", "test") == ["c", "f"]
    assert pool("abcdefg", "train") == ["a", "b", "d", "e", "g"]


def test_collect_says_when_templates_have_too_few_variants() -> None:
    with pytest.raises(RuntimeError, match="toy/train: no new prompt for row 1"):
        collect("toy", "train", 2, lambda rng, split, index: SampleRow("same", "x"), set())


def test_options_differ_even_when_mistakes_print_alike() -> None:
    problem = Problem("?", Decimal(1), (Decimal(1), Decimal(1)), str)
    assert len({*wrong_options(problem, 3), "1"}) == 4


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (show_dollars, "-1234.565", "-$1,234.57"),
        (show_whole_dollars, "1234.5", "$1,235"),
        (show_percent, "-0.00001", "0.00%"),
    ],
)
def test_figures_round_half_up_and_zero_has_no_sign(show: Callable[..., str], value: str, text: str) -> None:
    assert show(Decimal(value)) == text


def test_right_letters_take_turns() -> None:
    draw = multiple_choice([lambda rng: Problem("?", Decimal(4), (Decimal(5), Decimal(6)), str)], "ABC")
    assert Counter(draw(Random(0), "train", index).target for index in range(6)) == {"A": 2, "B": 2, "C": 2}


def test_no_prompt_is_one_of_the_public_sets() -> None:
    real = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "finlora"
    if not real.is_dir():
        pytest.skip(f"no real rows at {real}")
    public = {
        json.loads(line)["context"]
        for file in real.glob("*/*.jsonl")
        for line in file.read_text("utf-8").split("\n")
        if line
    }
    ours = {
        json.loads(line)["context"]
        for file in FOLDER.glob("*/*.jsonl")
        for line in file.read_text("utf-8").split("\n")
        if line
    }
    assert ours
    assert not ours & public


# --- FLARE


@pytest.mark.parametrize("key", FLARE_SETS)
def test_flares_sets_are_small_and_whole(key: str) -> None:
    chosen = FLARE_SETS[key]
    for split, count in (("train", chosen.train_rows), ("test", chosen.test_rows)):
        loaded = load_rows(DatasetConfig(), split, [key])
        assert (len(loaded.rows), loaded.bad_rows) == (count, ())
        assert 6 <= count <= 9
        assert all(row.prompt.endswith("\nAnswer:") for row in loaded.rows)
        assert len({row.prompt for row in loaded.rows}) == count
        assert not any(name in row.prompt for name in pool(STEMS, "test") for row in loaded.rows if split == "train")


@pytest.mark.parametrize("split", SPLITS)
def test_flares_percentages_are_those_of_the_table_shown(split: str) -> None:
    found = load_rows(DatasetConfig(), split, ["finqa", "convfinqa"]).rows
    asked = [row for row in found if "percentage" in row.prompt.split("Question:")[-1]]
    assert asked
    for row in asked:
        after, before = map(int, re.findall(r"revenue\|\$ (\d+)\|\$ (\d+)", row.prompt)[0])
        assert float(row.target) == pytest.approx((after - before) / before, abs=5.1e-6)
