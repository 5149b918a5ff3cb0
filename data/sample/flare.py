"""FLARE's tasks in its wording, on invented companies: numbers from a report, conversations on one, stock movement and
entities.

Answers follow from the prompt: results are computed from the figures shown, a stock rises where its last three days
did, and a sentence is written around its entities.
"""

from __future__ import annotations

import random
from datetime import date, timedelta
from decimal import Decimal

from data.sample.drawing import SampleRow, pool
from data.sample.words import CITIES, LEGAL_FORMS, PRODUCTS, company, person, stem, ticker
from data.sources.flare import CONVERSATION_WORDING

FINQA_WORDING = "Please answer the given financial question based on the context."
TURNS = 3
"""Of each conversation: row 0, 1 and 2 of a file are the turns of its first one, and so on."""
MOVEMENT_WORDING = (
    "Given the data and tweets, could you project whether the closing price of {ticker} will grow or shrink at {day}? "
    "Please specify either Rise or Fall."
)
COLUMNS = "date,open,high,low,close,adj-close,inc-5,inc-10,inc-15,inc-20,inc-25,inc-30"
TWEETS = {
    "Rise": ("{ticker} keeps climbing on strong orders for {product}", "adding to {ticker} , buyers are back"),
    "Fall": ("{ticker} slips again as demand for {product} weakens", "selling {ticker} , the trend is broken"),
}
ENTITIES_WORDING = (
    "In the sentences extracted from financial agreements in U.S. SEC filings, identify the named entities that "
    "represent a person ('PER'), an organization ('ORG'), or a location ('LOC'). The required answer format is: "
    "'entity name, entity type'. For instance, in \"Ann Lee, treasurer of Alba Bank, signed in Graz.\", the entities "
    "would be: 'Ann Lee, PER\nAlba Bank, ORG\nGraz, LOC'"
)
SENTENCES = (
    "This loan agreement is made in {LOC} between {ORG} and {PER} , who acts for {ORG} .",
    "{PER} shall send notices to {ORG} , {LOC} , at its own cost .",
    "{ORG} grants the facility to the branch in {LOC} , which {PER} manages .",
)


def _report(rng: random.Random, split: str) -> tuple[str, dict[str, int]]:
    """(the page, its revenues and costs by year)."""
    name = company(rng, split)
    figures = {
        "revenue 2023": rng.randrange(400, 900),
        "revenue 2022": rng.randrange(400, 900),
        "costs 2023": rng.randrange(100, 390),
        "costs 2022": rng.randrange(100, 390),
    }
    page = (
        f"{name} sells {rng.choice(PRODUCTS)} . the following table shows its results , in millions .\n||2023|2022|\n"
        f"|revenue|$ {figures['revenue 2023']}|$ {figures['revenue 2022']}|\n"
        f"|operating costs|( {figures['costs 2023']} )|( {figures['costs 2022']} )|\ncosts are shown in brackets ."
    )
    return page, figures


def _result(value: Decimal) -> str:
    """As FLARE writes results: rounded to five decimals, at least one shown."""
    text = f"{value.quantize(Decimal('0.00001')):f}".rstrip("0")
    return f"{text}0" if text.endswith(".") else text


def finqa(rng: random.Random, split: str, index: int) -> SampleRow:
    """A question on a table: a difference, a ratio, a change or a comparison in turn."""
    page, of = _report(rng, split)
    profit = of["revenue 2023"] - of["costs 2023"]
    change = Decimal(of["revenue 2023"] - of["revenue 2022"]) / of["revenue 2022"]
    question, answer = (
        ("what is the operating profit in 2023 , in millions?", _result(Decimal(profit))),
        ("what was the percentage change of revenue from 2022 to 2023?", _result(change)),
        ("what portion of revenue was spent on operating costs in 2022?",
         _result(Decimal(of["costs 2022"]) / of["revenue 2022"])),
        ("did revenue rise in 2023?", "yes" if change > 0 else "no"),
    )[index % 4]  # fmt: skip
    return SampleRow(f"{FINQA_WORDING}\nContext: {page}\nQuestion: {question}\nAnswer:", answer)


def convfinqa(rng: random.Random, split: str, index: int) -> SampleRow:
    """A turn of a conversation on a table; the turns before it are in the prompt with their answers."""
    own = random.Random(f"fedfinlora sample/conversation/{split}/{index // TURNS}")
    page, of = _report(own, split)
    difference = Decimal(of["revenue 2023"] - of["revenue 2022"])
    turns = (
        ("what is the revenue in 2023?", _result(Decimal(of["revenue 2023"]))),
        ("what is the difference to 2022?", _result(difference)),
        ("what percentage change does this represent?", _result(difference / of["revenue 2022"])),
    )
    number = index % TURNS
    before = "".join(f"\nq{place}: {question} {answer}" for place, (question, answer) in enumerate(turns[:number]))
    question, answer = turns[number]
    prompt = f"{CONVERSATION_WORDING}\nContext: {page}\nConversations: {before}\nQuestion: {question}\nAnswer:"
    return SampleRow(prompt, answer, page.split(" sells ")[0])


def movement(rng: random.Random, split: str, index: int) -> SampleRow:
    """Ten days of changes in percent and two tweets; the direction of the last three days goes on."""
    target = ("Rise", "Fall")[index % 2]
    name, day = stem(rng, split), date(2020, 1, 6) + timedelta(days=rng.randrange(300))
    sign, rows = (1 if target == "Rise" else -1), []
    for before in range(10, 0, -1):
        close = (sign if before <= 3 else rng.choice((1, -1))) * rng.randrange(2, 25) / 10
        others = ",".join(f"{rng.randrange(-20, 20) / 10}" for _ in range(3))
        changes = ",".join(f"{-close + rng.randrange(-9, 9) / 10:.1f}" for _ in range(6))
        rows.append(f"{day - timedelta(days=before)},{others},{close},{close},{changes}")
    tweets = [text.format(ticker=ticker(name), product=rng.choice(PRODUCTS)) for text in TWEETS[target]]
    lines = "\n".join([COLUMNS, *rows, "", *(f"{day - timedelta(days=1)}: {text}" for text in tweets)])
    asked = MOVEMENT_WORDING.format(ticker=ticker(name), day=day)
    return SampleRow(f"{asked}\nContext: {lines}\nAnswer:", target)


def entities(rng: random.Random, split: str, index: int) -> SampleRow:
    """A sentence around a person, an organization and a place; its first form names the organization twice."""
    names = {
        "PER": person(rng, split),
        "ORG": f"{stem(rng, split)} {rng.choice(LEGAL_FORMS)}",
        "LOC": rng.choice(pool(CITIES, split)),
    }
    template = SENTENCES[index % len(SENTENCES)]
    places = sorted(
        (place, kind) for kind in names for place in range(len(template)) if template.startswith(f"{{{kind}}}", place)
    )
    answer = "\n".join(f"{names[kind]}, {kind}" for _, kind in places)
    return SampleRow(f"{ENTITIES_WORDING}\nText: {template.format(**names)}\nAnswer:", answer)
