"""FinanceBench: a short page of an invented report, and a question that the page answers in a few words."""

from __future__ import annotations

import random
from collections.abc import Callable
from decimal import Decimal

from data.sample.drawing import SampleRow
from data.sample.figures import rounded
from data.sample.words import CITIES, PLACES, PRODUCTS, company, person

Page = tuple[str, str, str]
"""(question, page text, answer)"""


def _income_statement(rng: random.Random, filer: str, split: str) -> Page:
    before = rng.randrange(800, 4000)
    revenue = before + rng.randrange(-200, 600)
    cost = revenue * rng.randrange(48, 66) // 100
    overheads = revenue * rng.randrange(12, 26) // 100
    operating_income = revenue - cost - overheads
    page = (
        f"Consolidated Statements of Operations\n(FY2023, in millions)\nRevenue (FY2022: $ {before:,})\n$ "
        f"{revenue:,}\nCost of sales\n{cost:,}\n"
        f"Selling and administrative expenses\n{overheads:,}\nOperating income\n$ {operating_income:,}"
    )
    growth = Decimal(revenue - before) / before * 100
    margin = Decimal(operating_income) / revenue * 100
    tenth = Decimal("0.1")
    direction = "grew" if revenue >= before else "fell"
    answers = {
        "What was the FY2023 revenue of {filer} in USD millions?": f"{revenue:,}",
        "What was the FY2023 gross profit of {filer} in USD millions?": f"{revenue - cost:,}",
        "By how much did revenue of {filer} change from FY2022 to FY2023?": f"Revenue {direction} by {rounded(abs(growth), tenth)}%.",  # noqa: E501
        "What is the FY2023 operating margin of {filer}?": f"The operating margin was {rounded(margin, tenth)}%.",
    }
    question = rng.choice(list(answers))
    return question, page, answers[question]


def _cash_flow(rng: random.Random, filer: str, split: str) -> Page:
    operating = rng.randrange(200, 900)
    investment = rng.randrange(40, 190)
    dividends = rng.randrange(10, 90)
    page = (
        "Consolidated Statements of Cash Flows\n(In millions)\nNet cash provided by operating "
        f"activities\n{operating}\n"
        f"Purchases of property, plant and equipment\n({investment})\nDividends paid\n({dividends})"
    )
    answers = {
        "What was the FY2023 capital expenditure of {filer} in USD millions?": str(investment),
        "What was the FY2023 free cash flow of {filer} in USD millions (operating cash less capital expenditure)?": str(
            operating - investment
        ),
        "How much did {filer} pay in dividends in FY2023, in USD millions?": str(dividends),
    }
    question = rng.choice(list(answers))
    return question, page, answers[question]


def _segments(rng: random.Random, filer: str, split: str) -> Page:
    names = [product.capitalize() for product in rng.sample(PRODUCTS, 3)]
    sales = rng.sample(range(120, 990), 3)
    page = "Note 4 Segment Information\nNet sales (in millions)\n" + "\n".join(
        f"{n}\n{s}" for n, s in zip(names, sales, strict=True)
    )
    largest = names[sales.index(max(sales))]
    smallest = names[sales.index(min(sales))]
    answers = {
        "Which segment of {filer} had the largest net sales?": f"{largest} had the largest net sales.",
        "Which segment of {filer} had the smallest net sales?": f"{smallest} had the smallest net sales.",
        "What were total net sales of the three segments of {filer} in USD millions?": f"{sum(sales):,}",
    }
    question = rng.choice(list(answers))
    return question, page, answers[question]


def _workforce(rng: random.Random, filer: str, split: str) -> Page:
    city, elsewhere = rng.choice(CITIES), rng.randrange(600, 4000)
    local = rng.randrange(80, 500)
    page = (
        f"Item 1. Business: Our People\nAt year end {filer} had {local + elsewhere:,} employees, {local} of them at "
        f"its head office in {city}. About half of the others work shifts."
    )
    answers = {
        "How many employees did {filer} have at year end?": f"{local + elsewhere:,} employees.",
        "How many employees of {filer} work outside its head office?": f"{elsewhere:,} employees.",
        "Where is the head office of {filer}?": f"The head office is in {city}.",
    }
    question = rng.choice(list(answers))
    return question, page, answers[question]


def _acquisition(rng: random.Random, filer: str, split: str) -> Page:
    price, product, place = rng.randrange(30, 800), rng.choice(PRODUCTS), rng.choice(PLACES)
    share = rng.choice([51, 60, 75, 80, 100])
    page = (
        f"Note 3 Business Combinations\nDuring the year {filer} acquired {share}% of a maker of {product} in {place} "
        f"for cash of ${price} million. The purchase adds to the sales network of the group."
    )
    answers = {
        "What did {filer} acquire during FY2023?": f"A {share}% interest in a maker of {product} in {place}.",
        "How much did {filer} pay for its FY2023 acquisition?": f"${price} million in cash.",
    }
    question = rng.choice(list(answers))
    return question, page, answers[question]


def _notes_due(rng: random.Random, filer: str, split: str) -> Page:
    amount, coupon, year = rng.randrange(2, 19) * 50, Decimal(rng.randrange(20, 75)) / 10, rng.randrange(2026, 2036)
    page = (
        f"Note 9 Debt\n{filer} has outstanding ${amount} million of senior notes with a coupon of {coupon}% that "
        f"mature in {year}. The notes rank equally with all other unsecured debt."
    )
    answers = {
        "When do the senior notes of {filer} mature?": f"The senior notes mature in {year}.",
        "What coupon do the senior notes of {filer} carry?": f"The coupon is {coupon}%.",
    }
    question = rng.choice(list(answers))
    return question, page, answers[question]


def _properties(rng: random.Random, filer: str, split: str) -> Page:
    owned, rented = rng.sample(CITIES, 2)
    area, ends = rng.randrange(12, 95) * 1000, rng.randrange(2025, 2034)
    page = (
        f"Item 2. Properties\n{filer} owns a works of {area:,} square metres in {owned} that makes "
        f"{rng.choice(PRODUCTS)}. It rents a warehouse in {rented} under a lease that ends in {ends}."
    )
    answers = {
        "How large is the works that {filer} owns?": f"The works covers {area:,} square metres.",
        "In which city does {filer} rent a warehouse?": f"It rents a warehouse in {rented}.",
        "When does the warehouse lease of {filer} end?": f"The lease ends in {ends}.",
    }
    question = rng.choice(list(answers))
    return question, page, answers[question]


def _outlook(rng: random.Random, filer: str, split: str) -> Page:
    product = rng.choice(PRODUCTS)
    direction, reason = rng.choice(
        [
            ("rise", "a new plant will open in spring"),
            ("rise", "two large buyers have signed long contracts"),
            ("rise", "a tariff on exports will be lifted"),
            ("fall", "a patent will expire in summer"),
            ("fall", "the oldest production line will be shut for rebuilding"),
            ("fall", "a long contract will run out"),
        ]
    )
    page = (
        f"Outlook\nThe board of {filer} expects sales of {product} to {direction} next year, as {reason}. Staff costs "
        f"should be stable. Exports to {rng.choice(PLACES)} will be reviewed."
    )
    return f"Why does {{filer}} expect sales of {product} to {direction} next year?", page, f"Because {reason}."


def _appointment(rng: random.Random, filer: str, split: str) -> Page:
    name, city = person(rng, split), rng.choice(CITIES)
    role = rng.choice(["Chief Executive Officer", "Chief Financial Officer", "Chair of the Audit Committee"])
    page = (
        f"Item 10. Directors and Executive Officers\n{name} became {role} of {filer} during FY2023, after leading its "
        f"{city} business for six years."
    )
    return f"Who became {role} of {{filer}} in FY2023?", page, name


PAGES: tuple[Callable[[random.Random, str, str], Page], ...] = (
    _income_statement,
    _cash_flow,
    _segments,
    _workforce,
    _acquisition,
    _notes_due,
    _properties,
    _outlook,
    _appointment,
)


def financebench(rng: random.Random, split: str, index: int) -> SampleRow:
    """The kinds of page take turns."""
    filer = company(rng, split)
    question, page, answer = PAGES[index % len(PAGES)](rng, filer, split)
    context = (
        "Answer the following question very briefly using scanned text from pages. No explanation needed. "
        f"Question: {question.format(filer=filer)}\nDocument Pages Context:\nPage {rng.randrange(12, 160)}:\n"
        f"{filer}\n{page}\n\nAnswer:"
    )
    return SampleRow(context, answer, issuer=filer)
