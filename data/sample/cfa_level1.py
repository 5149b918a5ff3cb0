"""CFA Level I style questions: one tool, one step. Original; not taken from any exam or question bank."""

from __future__ import annotations

import random
from decimal import Decimal

from data.sample.choices import Problem, multiple_choice
from data.sample.figures import cents, dollars, number, percent, show_dollars, show_number, show_percent


def future_value(rng: random.Random) -> Problem:
    deposit, rate, years = dollars(rng, 2000, 50_000, 1000), percent(rng, 20, 90), number(rng, 2, 8)
    growth = 1 + rate.value
    return Problem(
        f"An analyst deposits {deposit} today at {rate} compounded annually. After {years} years the deposit is "
        "worth closest to:",
        deposit.value * growth ** int(years.value),
        (deposit.value * (1 + rate.value * years.value), deposit.value * growth ** int(years.value - 1)),
        show_dollars,
    )


def perpetuity(rng: random.Random) -> Problem:
    dividend, required = cents(rng, 200, 900), percent(rng, 50, 110)
    return Problem(
        f"A preferred share pays a fixed annual dividend of {dividend} for ever. With a required return of "
        f"{required} its value is closest to:",
        dividend.value / required.value,
        (dividend.value / (1 + required.value), dividend.value * (1 + required.value) / required.value),
        show_dollars,
    )


def holding_period_return(rng: random.Random) -> Problem:
    bought, sold, dividend = dollars(rng, 40, 90), dollars(rng, 45, 110), cents(rng, 100, 400)
    gain = sold.value - bought.value
    return Problem(
        f"A share bought at {bought} is sold at {sold} after paying a dividend of {dividend}. The holding period "
        "return is closest to:",
        (gain + dividend.value) / bought.value,
        (gain / bought.value, (gain + dividend.value) / sold.value),
        show_percent,
    )


def sharpe_ratio(rng: random.Random) -> Problem:
    earned, free, deviation = percent(rng, 70, 160), percent(rng, 10, 45), percent(rng, 80, 240)
    return Problem(
        f"A fund earned {earned} with a standard deviation of {deviation} while the risk-free rate was {free}. Its "
        "Sharpe ratio is closest to:",
        (earned.value - free.value) / deviation.value,
        (earned.value / deviation.value, (earned.value + free.value) / deviation.value),
        show_number,
    )


def capital_asset_pricing(rng: random.Random) -> Problem:
    free, beta, market = percent(rng, 10, 45), number(rng, 60, 180, 2), percent(rng, 60, 110)
    return Problem(
        f"The risk-free rate is {free}, the expected market return is {market} and a stock has a beta of {beta}. "
        "By the CAPM its expected return is closest to:",
        free.value + beta.value * (market.value - free.value),
        (free.value + beta.value * market.value, beta.value * market.value),
        show_percent,
    )


def dupont(rng: random.Random) -> Problem:
    margin, turnover, leverage = percent(rng, 30, 120), number(rng, 60, 180, 2), number(rng, 130, 320, 2)
    return Problem(
        f"A company has a net profit margin of {margin}, an asset turnover of {turnover} and an equity multiplier of "
        f"{leverage}. Its return on equity is closest to:",
        margin.value * turnover.value * leverage.value,
        (margin.value * turnover.value, margin.value * leverage.value),
        show_percent,
    )


def bond_price_change(rng: random.Random) -> Problem:
    duration, rise = number(rng, 25, 95, 1), percent(rng, 3, 15, 1)
    return Problem(
        f"A bond has a modified duration of {duration}. If its yield rises by {rise}, its price changes by "
        "approximately:",
        -duration.value * rise.value,
        (duration.value * rise.value, -duration.value * rise.value / 2),
        show_percent,
    )


def put_call_parity(rng: random.Random) -> Problem:
    stock, present_strike = dollars(rng, 40, 60), dollars(rng, 45, 62)
    call = cents(rng, 300, 900)
    call_above = max(stock.value - present_strike.value, Decimal(0)) + call.value
    return Problem(
        f"A stock trades at ${stock.value}.00. A European call on it costs ${call_above:.2f}, and the present value of "
        "its strike is "
        f"${present_strike.value}.00. By put-call parity the European put with the same strike is worth closest to:",
        call_above + present_strike.value - stock.value,
        (call_above, call_above + stock.value - present_strike.value, call.value + stock.value),
        show_dollars,
    )


def constant_growth(rng: random.Random) -> Problem:
    dividend, growth, required = cents(rng, 80, 400), percent(rng, 10, 45), percent(rng, 75, 120)
    spread = required.value - growth.value
    return Problem(
        f"A share has just paid a dividend of {dividend}, which will grow by {growth} a year for ever. "
        f"With a required return of {required} its value is closest to:",
        dividend.value * (1 + growth.value) / spread,
        (dividend.value / spread, dividend.value * (1 + growth.value) / required.value),
        show_dollars,
    )


def effective_annual_rate(rng: random.Random) -> Problem:
    stated = percent(rng, 40, 180)
    return Problem(
        f"A loan states an annual rate of {stated}, compounded quarterly. Its effective annual rate is closest to:",
        (1 + stated.value / 4) ** 4 - 1,
        (stated.value, (1 + stated.value / 2) ** 2 - 1),
        show_percent,
    )


def portfolio_return(rng: random.Random) -> Problem:
    weight, first, second = percent(rng, 550, 850, 50), percent(rng, 60, 140), percent(rng, 10, 50)
    rest = 1 - weight.value
    return Problem(
        f"A portfolio holds {weight} in shares expected to return {first} and the rest in bonds expected to return "
        f"{second}. Its expected return is closest to:",
        weight.value * first.value + rest * second.value,
        ((first.value + second.value) / 2, rest * first.value + weight.value * second.value),
        show_percent,
    )


def days_of_inventory(rng: random.Random) -> Problem:
    cost, inventory = dollars(rng, 400_000, 900_000, 10_000), dollars(rng, 40_000, 160_000, 5000)
    return Problem(
        f"Cost of goods sold was {cost} and average inventory {inventory}. In a year of 365 days, days of "
        "inventory on hand are closest to:",
        inventory.value / cost.value * 365,
        (cost.value / inventory.value, inventory.value / cost.value * 250),
        show_number,
    )


cfa_level1 = multiple_choice(
    (
        future_value,
        perpetuity,
        holding_period_return,
        sharpe_ratio,
        capital_asset_pricing,
        dupont,
        bond_price_change,
        put_call_parity,
        constant_growth,
        effective_annual_rate,
        portfolio_return,
        days_of_inventory,
    ),
    "ABC",
)
