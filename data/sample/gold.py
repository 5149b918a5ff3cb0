"""Headline: yes/no questions about headlines on the price of gold."""

from __future__ import annotations

import random

from data.sample.drawing import SampleRow

QUESTIONS = {
    "up": "Does the news headline talk about price going up?",
    "down": "Does the news headline talk about price going down?",
    "flat": "Does the news headline talk about price staying constant?",
    "compare": "Does the news headline compare gold with any other asset?",
}

HEADLINES = {
    "up": (
        "{contract} climbs ${change} to ${price} an ounce on {reason}",
        "Gold rises {share}% as {reason} lifts demand",
        "{contract} up {share}% at ${price} in {place}",
        "Bullion jumps to {weeks}-week high on {reason}",
        "Gold gains for day {weeks} running, closes at ${price}",
    ),
    "down": (
        "{contract} drops ${change} to ${price} an ounce on {reason}",
        "Gold falls {share}% as {reason} hurts demand",
        "{contract} down {share}% at ${price} in {place}",
        "Bullion sinks to {weeks}-week low on {reason}",
        "Gold slips for day {weeks} running, closes at ${price}",
    ),
    "flat": (
        "{contract} steady at ${price} an ounce before {reason}",
        "Gold little changed near ${price} as {place} traders wait",
        "{contract} holds at ${price} in quiet {place} trade",
        "Bullion flat for week {weeks}, all eyes on {reason}",
        "Gold unchanged at ${price} after {reason}",
    ),
    "compare": (
        "Gold or {asset}: which suits a {weeks}-year saver better?",
        "Gold beats {asset} this year, {place} fund says",
        "Gold lags {asset} in week {weeks}, survey in {place} finds",
        "Why {place} savers prefer {asset} over gold",
        "{asset} against gold: returns over {weeks} years side by side",
    ),
    "other": (
        "{place} jewellers expect busy wedding season for gold, {reason} or not",
        "Gold miners meet in {place} to discuss {reason}",
        "{place} customs seize {weeks} kg of smuggled gold",
        "New gold vault opens in {place} for {weeks} banks",
        "Gold import rules under review in {place} after {reason}",
    ),
}
CONTRACTS = (
    "Gold",
    "Spot gold",
    "Feb. gold",
    "April gold",
    "June gold",
    "August gold",
    "Oct. gold",
    "Dec. gold",
    "Gold futures",
)
REASONS = (
    "rate talk",
    "dollar news",
    "inflation data",
    "a central bank meeting",
    "jobs figures",
    "trade tension",
    "bond yields",
)
PLACES = ("London", "New York", "Mumbai", "Zurich", "Shanghai", "Dubai", "Singapore", "Istanbul")
ASSETS = ("silver", "shares", "bonds", "bitcoin", "platinum", "property", "crude oil")


def headline(rng: random.Random, split: str, index: int) -> SampleRow:
    """Rows alternate Yes and No; the four questions take turns."""
    asked = tuple(QUESTIONS)[index // 2 % len(QUESTIONS)]
    is_yes = index % 2 == 0
    kind = asked if is_yes else rng.choice([other for other in HEADLINES if other != asked])
    text = rng.choice(HEADLINES[kind]).format(
        contract=rng.choice(CONTRACTS),
        reason=rng.choice(REASONS),
        place=rng.choice(PLACES),
        asset=rng.choice(ASSETS),
        change=f"{rng.randrange(110, 4900) / 100:.2f}",
        share=f"{rng.randrange(2, 29) / 10:.1f}",
        price=f"{rng.randrange(11000, 24000) / 10:,.1f}",
        weeks=rng.randrange(2, 19),
    )
    if rng.random() < 0.3:
        text = text.lower()
    text = text[0].upper() + text[1:] if rng.random() < 0.5 else text
    return SampleRow(
        f"Instruction: {QUESTIONS[asked]} Please choose an answer from {{Yes/No}}.\nInput: {text}\nAnswer: ",
        "Yes" if is_yes else "No",
    )
