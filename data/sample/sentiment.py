"""The four sentiment sets: FPB and FiQA news, TFNS tweets (labels as their words say) and NWGI's seven levels."""

from __future__ import annotations

import random

from data.sample.drawing import SampleRow
from data.sample.words import fill

THREE_LEVELS = ("negative", "neutral", "positive")
SEVEN_LEVELS = (
    "strong negative",
    "moderately negative",
    "mildly negative",
    "neutral",
    "mildly positive",
    "moderately positive",
    "strong positive",
)

REPORTS = {
    "negative": (
        "{company} said its operating profit fell to EUR {low} mn from EUR {high} mn a year earlier .",
        "Net sales of {company} declined by {middle} % to EUR {low} mn as demand for {product} weakened .",
        "{company} issued a profit warning and expects a loss for the {quarter} .",
        "{company} will cut {count} jobs in {city} because orders for {product} have dried up .",
        "The order book of {company} shrank to EUR {low} mn , down from EUR {high} mn in {month} .",
        "Weak prices of {product} pushed {company} to a pretax loss of EUR {low} mn in the {quarter} .",
        "{company} closes its loss-making plant in {city} and writes down EUR {low} mn .",
        "The market share of {company} in {product} dropped to {low} % from {high} % .",
    ),
    "neutral": (
        "{company} will publish its report for the {quarter} in {month} .",
        "The head office of {company} is located in {city} , and the company makes {product} .",
        "{company} has appointed {person} as a member of its board of directors .",
        "The annual general meeting of {company} will be held in {city} in {month} .",
        "{company} employs {count} people and supplies {product} to the building trade .",
        "The shares of {company} are listed on the exchange in {city} under a new trading code .",
        "{company} owns two sites in {city} , where it stores {product} .",
        "The change in the number of votes held by {person} in {company} was entered in the register in {month} .",
    ),
    "positive": (
        "{company} said its operating profit rose to EUR {high} mn from EUR {low} mn a year earlier .",
        "Net sales of {company} grew by {middle} % to EUR {high} mn on strong demand for {product} .",
        "{company} won a EUR {high} mn order to deliver {product} to a customer in {city} .",
        "{company} raised its full-year outlook after a record {quarter} .",
        "The order book of {company} strengthened to EUR {high} mn from EUR {low} mn in {month} .",
        "{company} returned to profit in the {quarter} , earning EUR {low} mn .",
        "{company} hires {count} people in {city} to meet growing demand for {product} .",
        "Profitability of {company} improved clearly and the dividend was increased by {middle} % .",
    ),
}

HEADLINES = {
    "negative": (
        "{stem} shares slide {middle}% as {product} sales disappoint",
        "{stem} warns on profit after weak {quarter}",
        "{stem} loses {product} contract, cuts {count} jobs",
        "UPDATE: {stem} hit by fine in {city}, shares tumble",
        "{stem} debt worries deepen as losses widen",
    ),
    "neutral": (
        "{stem} names {person} as company secretary",
        "{stem} to hold investor day in {city} in {month}",
        "{stem} moves its {product} office to {city}",
        "{stem} says talks with {city} council continue",
        "{stem} publishes agenda of annual meeting",
    ),
    "positive": (
        "{stem} shares jump {middle}% on strong {product} sales",
        "{stem} lifts profit forecast after record {quarter}",
        "{stem} wins {city} contract for {product}",
        "{stem} beats expectations and raises dividend",
        "UPDATE: {stem} profit surges as {product} demand grows",
    ),
}

TRADER_NOTES = {
    "negative": (
        "{ticker} broke support at {low}, looks weak, I am short here",
        "{ticker} short it, this chart is falling apart {link}",
        "Sold all my {ticker}, sellers in control below {low}",
        "{ticker} bearish engulfing candle, downside target {low}",
    ),
    "neutral": (
        "{ticker} stuck between {low} and {high}, no position, just watching",
        "{ticker} chart for the watch list {link}",
        "Anyone know when {ticker} reports? {month}?",
        "{ticker} trading flat all day, waiting",
    ),
    "positive": (
        "{ticker} breakout above {high}, long and adding",
        "{ticker} bullish setup, upside target {high} {link}",
        "Bought more {ticker}, buyers stepping in at {low}",
        "{ticker} looks strong, new high coming, going long",
    ),
}

TWEETS = {
    "negative": (
        "{ticker} - {stem} cuts full-year outlook {link}",
        "{ticker}: analysts downgrade {stem} to Sell",
        "{stem} misses {quarter} estimates, stock down {middle}% {ticker}",
        "{ticker} {stem} shares sink {middle}% after {product} recall {link}",
        "{ticker} - {stem} suspends dividend as losses mount",
        "Price target on {stem} cut to {low} from {high} {ticker}",
    ),
    "neutral": (
        "{ticker} - {stem} to present at {city} conference in {month} {link}",
        "{stem} {quarter} conference call starts soon {ticker} {link}",
        "{ticker} {stem} appoints {person} as chief legal officer",
        "What {stem} told investors about {product} today {ticker} {link}",
        "{ticker} - {stem} files routine quarterly report {link}",
        "Market open: stocks on the calendar today include {stem} {ticker}",
    ),
    "positive": (
        "{ticker} - {stem} raises full-year outlook {link}",
        "{ticker}: analysts upgrade {stem} to Buy",
        "{stem} beats {quarter} estimates, stock up {middle}% {ticker}",
        "{ticker} {stem} shares rally {middle}% after {product} approval {link}",
        "{ticker} - {stem} lifts dividend and announces buyback",
        "Price target on {stem} raised to {high} from {low} {ticker}",
    ),
}

GRADED_NEWS = {
    "strong negative": (
        "{company} files for bankruptcy after its {product} business collapses, wiping out shareholders.",
        "{company} shares crash {large}% as fraud investigators raid its offices in {city}.",
        "Disaster at {company}: record loss of EUR {high} million and auditors doubt that it can survive.",
        "{company} defaults on its bonds and halts all {product} production, triggering a {large}% plunge.",
    ),
    "moderately negative": (
        "{company} cut its full-year forecast and its shares fell {middle}% after sales of {product} missed estimates.",
        "Analysts downgraded {company} to sell, pointing to falling demand for {product}.",
        "{company} posted a quarterly loss of EUR {low} million and will lay off {count} workers in {city}.",
        "Shares of {company} dropped {middle}% after it lost a large {product} customer.",
    ),
    "mildly negative": (
        "{company} shares edged down {small}% after sales of {product} came in slightly below forecasts.",
        "{company} sees a small delay to its {product} launch in {city}, a minor setback for the {quarter}.",
        "A touch of caution at {company}: margins slipped a little, by {small} points, in the {quarter}.",
        "{company} dipped {small}% as some investors took profits ahead of results.",
    ),
    "neutral": (
        "{company} will report results for the {quarter} in {month}, the company said in a calendar notice.",
        "{person}, head of {product} at {company}, speaks at a conference in {city} (transcript).",
        "Here is what to know about {company}, which makes {product} in {city}.",
        "{company} shares were unchanged as the company published the agenda of its annual meeting.",
    ),
    "mildly positive": (
        "{company} shares edged up {small}% after sales of {product} came in slightly above forecasts.",
        "{company} sees a modest pick-up in {product} orders from {city} in the {quarter}.",
        "A hint of progress at {company}: margins improved a little, by {small} points, in the {quarter}.",
        "{company} ticked up {small}% as an analyst said its outlook looks somewhat better.",
    ),
    "moderately positive": (
        "{company} raised its full-year forecast and its shares rose {middle}% after sales of {product} beat estimates.",  # noqa: E501
        "Analysts upgraded {company} to buy, pointing to growing demand for {product}.",
        "{company} posted a solid profit of EUR {high} million and will hire {count} workers in {city}.",
        "Shares of {company} gained {middle}% after it won a large {product} customer.",
    ),
    "strong positive": (
        "{company} shares soar {large}% to an all-time high after blowout {product} sales crush every estimate.",
        "Spectacular {quarter} for {company}: profit tripled to a record EUR {high} million.",
        "{company} rockets {large}% on a takeover bid at a huge premium for its {product} business.",
        "{company} stuns the market with explosive growth, and its shares skyrocket {large}% in {city}.",
    ),
}


def _row(kind: str, levels: tuple[str, ...], text: str, target: str) -> SampleRow:
    question = f"What is the sentiment of this {kind}? Please choose an answer from {{{'/'.join(levels)}}}."
    return SampleRow(f"Instruction: {question}\nInput: {text}\nAnswer: ", target)


def fpb(rng: random.Random, split: str, index: int) -> SampleRow:
    """A sentence from a company report."""
    target = THREE_LEVELS[index % 3]
    return _row("news", THREE_LEVELS, fill(rng.choice(REPORTS[target]), rng, split), target)


def fiqa(rng: random.Random, split: str, index: int) -> SampleRow:
    """A headline or a trader's note, half of each."""
    target = THREE_LEVELS[index % 3]
    kind, templates = ("tweet", TRADER_NOTES) if rng.random() < 0.5 else ("news", HEADLINES)
    return _row(kind, THREE_LEVELS, fill(rng.choice(templates[target]), rng, split), target)


def tfns(rng: random.Random, split: str, index: int) -> SampleRow:
    """A news tweet with a cashtag."""
    target = THREE_LEVELS[index % 3]
    return _row("tweet", THREE_LEVELS, fill(rng.choice(TWEETS[target]), rng, split), target)


def nwgi(rng: random.Random, split: str, index: int) -> SampleRow:
    """A news sentence whose words grade its mood in seven levels."""
    target = SEVEN_LEVELS[index % 7]
    return _row("news", SEVEN_LEVELS, fill(rng.choice(GRADED_NEWS[target]), rng, split), target)
