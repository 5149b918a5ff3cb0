"""The four XBRL extraction sets: questions on one fragment of an invented filing, the fragment first and the same for
all.

A filer's figures are drawn once and tie up: gross profit is revenue less cost, assets are liabilities plus equity, and
so on.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from data.sample.drawing import SampleRow, pool
from data.sample.words import STEMS

QUESTIONS_PER_FILER = 8

INSTRUCTION = (
    "You are a knowledgeable XBRL assistant. Your task is to analyze the XBRL context and provide an accurate and very "
    "concise answer to the question, The example question can help you to learn the answer format. DO NOT output xml, "
    "code, explanation or create new question. \nExample question: {question}\nExample answer: {answer}\n\nXML File: "
    "{fragment}\n\nQuestion: "
)
TAG_EXAMPLE = (
    "What is the US GAAP XBRL tag for Cash and Cash Equivalents as reported by Example Company Inc for the Fiscal Year "
    "ending in FY 2022",
    "us-gaap:AnExampleTagName",
)
VALUE_EXAMPLE = ("What is the value of Example company's income for the Fiscal year ending in FY 2020?", "80000000")
FORMULA_EXAMPLE = (
    "What is the formula for the Gross Profit Margin of Example Inc, formatted with the relevant US GAAP XBRL tags",
    "(us-gaap:ExampleTag / us-gaap:AnotherExampleTag) * 100",
)
CALCULATION_EXAMPLE = (
    "Can you provide the formula for Operating Profit Margin from Example Corp for the Fiscal Year ending in FY 2022?",
    "(50000000 / 3590000000) * 100",
)

TAG_QUESTIONS = (
    "What is the US GAAP XBRL tag for {item} as reported by {filer} for the Fiscal Year ending in {year}? ",
    "Identify the US GAAP XBRL tag for {item} as used by {filer} during the {year}. ",
    "What XBRL tag corresponds to {item} for {filer} for the fiscal period concluding in {year}? ",
    "Can you provide the XBRL tag under US GAAP for {item} that was used by {filer} in the {year}? ",
)
VALUE_QUESTIONS = (
    "What is the value of {filer}'s {item} for the Fiscal Year ending in {year}? ",
    "How much was {filer}'s {item} for the Fiscal Year concluding in {year}? ",
    "Please find the Fiscal Year value of {item} for {filer} for {year}. ",
    "Can you provide the value for {item} from {filer} for the Fiscal Year ending in {year}? ",
)
FORMULA_QUESTIONS = (
    "What is the formula for the {item} of {filer}, formatted with the relevant US GAAP XBRL tags, for the fiscal "
    "year ending in {year}? ",
    "Can you provide the formula of the {item} for {filer}, using the appropriate US GAAP XBRL tags, as it applies "
    "to the {year}? ",
    "What formula formatted with XBRL tags under US GAAP is used for {item} by {filer} for the fiscal year {year}? ",
)
CALCULATION_QUESTIONS = tuple(
    f"{question} Answer with a formula substituted with values. " for question in VALUE_QUESTIONS
)


@dataclass(frozen=True)
class Filing:
    """One invented annual report. Facts map a role (`revenue`, `assets`, …) to its tag and its value in dollars."""

    filer: str
    year: str
    tags: dict[str, str]
    values: dict[str, int]
    fragment: str


ITEMS = {
    "revenue": "Total Revenue",
    "cost": "Cost of Goods Sold",
    "gross_profit": "Gross Profit",
    "overheads": "Operating Expenses",
    "operating_income": "Operating Income",
    "net_income": "Net Income",
    "current_assets": "Current Assets",
    "inventory": "Inventory",
    "assets": "Total Assets",
    "current_liabilities": "Current Liabilities",
    "equity": "Shareholders' Equity",
    "operating_cash": "Cash Flow for Operating Activities",
    "investing_cash": "Cash Flow for Investing Activities",
}

RATIOS = {
    "Gross Profit Margin": "({gross_profit} / {revenue}) * 100",
    "Operating Profit Margin": "({operating_income} / {revenue}) * 100",
    "Net Profit Margin": "({net_income} / {revenue}) * 100",
    "Cash Flow Margin": "({operating_cash} / {revenue}) * 100",
    "Current Ratio": "{current_assets} / {current_liabilities}",
    "Quick Ratio": "({current_assets} - {inventory}) / {current_liabilities}",
    "Equity Multiplier": "{assets} / {equity}",
    "Asset Turnover": "{revenue} / {assets}",
    "Return on Assets": "({net_income} / {assets}) * 100",
    "Return on Equity": "({net_income} / {equity}) * 100",
}


def _tags(rng: random.Random) -> dict[str, str]:
    """The tag of each role; where filers differ in practice, so do these."""
    return {
        "revenue": rng.choice(["Revenues", "RevenueFromContractWithCustomerExcludingAssessedTax"]),
        "cost": rng.choice(["CostOfRevenue", "CostOfGoodsAndServicesSold"]),
        "gross_profit": "GrossProfit",
        "overheads": rng.choice(["OperatingExpenses", "SellingGeneralAndAdministrativeExpense"]),
        "operating_income": "OperatingIncomeLoss",
        "net_income": rng.choice(["NetIncomeLoss", "ProfitLoss"]),
        "current_assets": "AssetsCurrent",
        "inventory": "InventoryNet",
        "assets": "Assets",
        "current_liabilities": "LiabilitiesCurrent",
        "equity": "StockholdersEquity",
        "operating_cash": "NetCashProvidedByUsedInOperatingActivities",
        "investing_cash": "NetCashProvidedByUsedInInvestingActivities",
    }


def _values(rng: random.Random) -> dict[str, int]:
    """The value of each role in dollars, whole millions; the statements tie up."""

    def share(of: int, low: int, high: int) -> int:
        return of * rng.randrange(low, high) // 100

    revenue = rng.randrange(900, 9900)
    cost = share(revenue, 45, 70)
    gross_profit = revenue - cost
    overheads = share(gross_profit, 40, 70)
    operating_income = gross_profit - overheads
    net_income = share(operating_income, 60, 80)
    assets = share(revenue, 90, 180)
    current_assets = share(assets, 30, 50)
    current_liabilities = share(current_assets, 40, 90)
    equity = assets - current_liabilities - share(assets, 10, 30)
    millions = {
        "revenue": revenue,
        "cost": cost,
        "gross_profit": gross_profit,
        "overheads": overheads,
        "operating_income": operating_income,
        "net_income": net_income,
        "current_assets": current_assets,
        "inventory": share(current_assets, 20, 50),
        "assets": assets,
        "current_liabilities": current_liabilities,
        "equity": equity,
        "operating_cash": net_income + share(revenue, 3, 9),
        "investing_cash": -share(revenue, 4, 12),
    }
    return {role: value * 1_000_000 for role, value in millions.items()}


def filing(split: str, number: int) -> Filing:
    """The `number`-th filing of a split: always the same one, whichever set asks for it."""
    rng = random.Random(f"fedfinlora sample/filing/{split}/{number}")
    name = f"{pool(STEMS, split)[number]} {rng.choice(['Inc', 'Corp', 'Co'])}"
    tags, values = _tags(rng), _values(rng)
    roles = tuple(ITEMS)
    statements = [roles[:6], roles[6:11], roles[11:]]
    rng.shuffle(statements)
    lines = [f"<us-gaap:{tags[role]}>{values[role]}</>" for statement in statements for role in statement]
    return Filing(name, f"FY {rng.randrange(2021, 2025)}", tags, values, "\n".join(lines))


def _row(found: Filing, example: tuple[str, str], question: str, item: str, target: str) -> SampleRow:
    head = INSTRUCTION.format(question=example[0], answer=example[1], fragment=found.fragment)
    asked = question.format(item=item, filer=found.filer, year=found.year)
    return SampleRow(f"{head}{asked}\nAnswer:", target, issuer=found.filer)


def _turn(split: str, index: int, names: dict[str, str]) -> tuple[Filing, str]:
    """The filing of row `index`, and what it asks for: eight different things of each filing, other ones for the
    next.
    """
    number, turn = divmod(index, QUESTIONS_PER_FILER)
    keys = tuple(names)
    return filing(split, number), keys[(turn + number * 3) % len(keys)]


def tags_extract(rng: random.Random, split: str, index: int) -> SampleRow:
    """Which tag carries an item?"""
    found, role = _turn(split, index, ITEMS)
    return _row(found, TAG_EXAMPLE, rng.choice(TAG_QUESTIONS), ITEMS[role], f"us-gaap:{found.tags[role]}")


def value_extract(rng: random.Random, split: str, index: int) -> SampleRow:
    """What is the value of an item? The target ends in `.0`, as FinLoRA's do."""
    found, role = _turn(split, index, ITEMS)
    return _row(found, VALUE_EXAMPLE, rng.choice(VALUE_QUESTIONS), ITEMS[role], f"{found.values[role]}.0")


def formula_extract(rng: random.Random, split: str, index: int) -> SampleRow:
    """Which tags make up a ratio?"""
    found, ratio = _turn(split, index, RATIOS)
    target = RATIOS[ratio].format(**{role: f"us-gaap:{tag}" for role, tag in found.tags.items()})
    return _row(found, FORMULA_EXAMPLE, rng.choice(FORMULA_QUESTIONS), ratio, target)


def formula_calculations_extract(rng: random.Random, split: str, index: int) -> SampleRow:
    """Which values make up a ratio?"""
    found, ratio = _turn(split, index, RATIOS)
    target = RATIOS[ratio].format(**found.values)
    return _row(found, CALCULATION_EXAMPLE, rng.choice(CALCULATION_QUESTIONS), ratio, target)
