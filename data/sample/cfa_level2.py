"""CFA Level II style questions: a short vignette, then a valuation step. Original; not taken from any exam or question
bank.
"""

from __future__ import annotations

import random

from data.sample.choices import Problem, multiple_choice
from data.sample.figures import (
    cents,
    dollars,
    number,
    percent,
    show_dollars,
    show_number,
    show_percent,
    show_rate,
    show_whole_dollars,
)
from data.sample.words import person


def _analyst(rng: random.Random) -> str:
    """Vignettes draw their names from the train and the test pool alike: nothing is asked about them."""
    return person(rng, rng.choice(("train", "test")))


def residual_income(rng: random.Random) -> Problem:
    book, earned, required = dollars(rng, 100, 900, 10), percent(rng, 100, 200), percent(rng, 60, 95)
    return Problem(
        f"{_analyst(rng)} values a regional bank. Opening book value of equity is {book} million, the expected return "
        "on equity is "
        f"{earned} and the cost of equity is {required}. Residual income of the year, in millions, is closest to:",
        book.value * (earned.value - required.value),
        (book.value * earned.value, book.value * required.value),
        show_dollars,
    )


def forward_price(rng: random.Random) -> Problem:
    spot, dividends, rate = cents(rng, 4000, 12_000), cents(rng, 60, 250), percent(rng, 15, 70)
    return Problem(
        f"{_analyst(rng)} prices a one-year forward on a share that trades at {spot}. The present value of the "
        "dividends of the year is "
        f"{dividends} and the annual risk-free rate is {rate}. The no-arbitrage forward price is closest to:",
        (spot.value - dividends.value) * (1 + rate.value),
        (spot.value * (1 + rate.value), (spot.value + dividends.value) * (1 + rate.value)),
        show_dollars,
    )


def risk_neutral_probability(rng: random.Random) -> Problem:
    up, down, rate = number(rng, 112, 140, 2), number(rng, 75, 95, 2), percent(rng, 10, 60)
    width = up.value - down.value
    return Problem(
        f"{_analyst(rng)} builds a one-period binomial tree with an up factor of {up} and a down factor of {down}. The "
        f"risk-free rate of the period is {rate}. The risk-neutral probability of an up move is closest to:",
        (1 + rate.value - down.value) / width,
        ((up.value - 1 - rate.value) / width, (1 - down.value) / width),
        show_percent,
    )


def cost_of_capital(rng: random.Random) -> Problem:
    debt, before_tax, tax, equity = (
        percent(rng, 200, 500, 50),
        percent(rng, 40, 80),
        percent(rng, 200, 300, 10),
        percent(rng, 85, 140),
    )
    rest = 1 - debt.value
    return Problem(
        f"{_analyst(rng)} reviews a utility financed with {debt} debt at a pretax cost of {before_tax} and the rest "
        f"equity at {equity}. The tax rate is {tax}. The weighted average cost of capital is closest to:",
        debt.value * before_tax.value * (1 - tax.value) + rest * equity.value,
        (
            debt.value * before_tax.value + rest * equity.value,
            rest * before_tax.value * (1 - tax.value) + debt.value * equity.value,
        ),
        show_percent,
    )


def free_cash_flow(rng: random.Random) -> Problem:
    ebit, tax = dollars(rng, 300, 900, 10), percent(rng, 200, 300, 10)
    depreciation, investment, working_capital = dollars(rng, 30, 90), dollars(rng, 40, 150), dollars(rng, 5, 40)
    after_tax = ebit.value * (1 - tax.value)
    change = depreciation.value - investment.value
    return Problem(
        f"{_analyst(rng)} forecasts, in millions, EBIT of {ebit}, depreciation of {depreciation}, capital expenditure "
        f"of {investment} and an increase in working capital of {working_capital}. The tax rate is {tax}. Free cash "
        "flow to the firm is closest to:",
        after_tax + change - working_capital.value,
        (after_tax + change + working_capital.value, ebit.value + change - working_capital.value),
        show_dollars,
    )


def justified_multiple(rng: random.Random) -> Problem:
    payout, required, growth = percent(rng, 300, 700, 50), percent(rng, 80, 120), percent(rng, 10, 50)
    spread = required.value - growth.value
    return Problem(
        f"{_analyst(rng)} expects a retailer to pay out {payout} of its earnings and to grow by {growth} a year for "
        f"ever. The required return is {required}. The justified forward P/E is closest to:",
        payout.value / spread,
        ((1 - payout.value) / spread, payout.value / required.value),
        show_number,
    )


def covered_parity(rng: random.Random) -> Problem:
    spot, price_rate, base_rate = number(rng, 10_500, 16_000, 4), percent(rng, 30, 80), percent(rng, 5, 25)
    return Problem(
        f"{_analyst(rng)} sees a spot rate of {spot} units of price currency for one of base currency. One-year rates "
        f"are {price_rate} in the price currency and {base_rate} in the base currency. By covered parity the one-year "
        "forward rate is closest to:",
        spot.value * (1 + price_rate.value) / (1 + base_rate.value),
        (spot.value * (1 + base_rate.value) / (1 + price_rate.value), spot.value * (1 + price_rate.value)),
        show_rate,
    )


def regression_forecast(rng: random.Random) -> Problem:
    intercept, slope, driver = number(rng, 10, 60, 1), number(rng, 110, 390, 2), number(rng, 20, 90, 1)
    return Problem(
        f"{_analyst(rng)} regresses sales growth on GDP growth, both in percent, and finds an intercept of {intercept} "
        f"and a slope of {slope}. If GDP grows by {driver}, predicted sales growth is closest to:",
        intercept.value + slope.value * driver.value,
        (slope.value * driver.value, intercept.value * driver.value + slope.value),
        show_number,
    )


def goodwill(rng: random.Random) -> Problem:
    price, fair, book = dollars(rng, 600, 950, 10), dollars(rng, 350, 500, 10), dollars(rng, 200, 340, 10)
    return Problem(
        f"{_analyst(rng)} studies a takeover: all shares were bought for {price} million. Identifiable net assets have "
        f"a fair value of {fair} million and a book value of {book} million. Goodwill, in millions, is closest to:",
        price.value - fair.value,
        (price.value - book.value, fair.value - book.value),
        show_whole_dollars,
    )


cfa_level2 = multiple_choice(
    (
        residual_income,
        forward_price,
        risk_neutral_probability,
        cost_of_capital,
        free_cash_flow,
        justified_multiple,
        covered_parity,
        regression_forecast,
        goodwill,
    ),
    "ABC",
)
