"""CFA Level III style questions: a client or a portfolio, then a decision in figures. Original; not taken from any
exam.
"""

from __future__ import annotations

import random

from data.sample.choices import Problem, multiple_choice
from data.sample.figures import (
    dollars,
    number,
    percent,
    show_dollars,
    show_number,
    show_percent,
    show_whole,
    show_whole_dollars,
)


def required_return(rng: random.Random) -> Problem:
    spending, inflation, fees = percent(rng, 30, 60), percent(rng, 10, 40), percent(rng, 2, 9, 1)
    return Problem(
        f"A foundation spends {spending} of its assets a year, expects inflation of {inflation} and pays management "
        f"fees of {fees}. It "
        "wants to keep its real value and compounds the three rates. Its required nominal return is closest to:",
        (1 + spending.value) * (1 + inflation.value) * (1 + fees.value) - 1,
        (spending.value + inflation.value, (1 + spending.value) * (1 + fees.value) - 1),
        show_percent,
    )


def beta_contracts(rng: random.Random) -> Problem:
    value, now, wanted = dollars(rng, 20, 90, 5), number(rng, 70, 95, 2), number(rng, 105, 140, 2)
    contract = dollars(rng, 100_000, 250_000, 25_000)
    millions = value.value * 1_000_000
    return Problem(
        f"A manager wants to raise the beta of a {value} million share portfolio from {now} to {wanted} with index "
        f"futures. One contract is worth {contract} and has a beta of 1. The number of contracts to buy is closest to:",
        (wanted.value - now.value) * millions / contract.value,
        (wanted.value * millions / contract.value, now.value * millions / contract.value),
        show_whole,
    )


def duration_contracts(rng: random.Random) -> Problem:
    wanted, now, contract = (
        dollars(rng, 60_000, 120_000, 5000),
        dollars(rng, 10_000, 50_000, 5000),
        dollars(rng, 50, 95, 5),
    )
    return Problem(
        f"A pension fund has assets with a basis point value of {now} and liabilities with one of {wanted}. One bond "
        "futures contract has "
        f"a basis point value of {contract}. To hedge fully, the number of contracts to buy is closest to:",
        (wanted.value - now.value) / contract.value,
        (wanted.value / contract.value, (wanted.value + now.value) / contract.value),
        show_whole,
    )


def allocation_effect(rng: random.Random) -> Problem:
    held, neutral = percent(rng, 300, 450, 50), percent(rng, 100, 250, 50)
    sector, total = percent(rng, 80, 160), percent(rng, 10, 60)
    active = held.value - neutral.value
    return Problem(
        f"A fund holds {held} in technology against {neutral} in its benchmark. The benchmark's technology sector "
        f"returned {sector} and the whole benchmark {total}. The allocation effect of technology is closest to:",
        active * (sector.value - total.value),
        (active * sector.value, held.value * (sector.value - total.value)),
        show_percent,
    )


def domestic_currency_return(rng: random.Random) -> Problem:
    local, currency = percent(rng, 30, 150), percent(rng, 10, 90)
    return Problem(
        f"A foreign share portfolio returned {local} in its own currency while that currency gained {currency} against "
        "the investor's. Unhedged, the return in the investor's currency is closest to:",
        (1 + local.value) * (1 + currency.value) - 1,
        (local.value - currency.value, (1 + local.value) / (1 + currency.value) - 1),
        show_percent,
    )


def surplus_after_shock(rng: random.Random) -> Problem:
    assets, liabilities = dollars(rng, 500, 900, 10), dollars(rng, 300, 480, 10)
    fall, rise = percent(rng, 20, 100, 10), percent(rng, 10, 60, 10)
    return Problem(
        f"A plan has assets of {assets} million and liabilities of {liabilities} million. In a stress test its assets "
        f"lose {fall} and its liabilities gain {rise}. The surplus afterwards, in millions, is closest to:",
        assets.value * (1 - fall.value) - liabilities.value * (1 + rise.value),
        (assets.value * (1 - fall.value) - liabilities.value, assets.value - liabilities.value),
        show_dollars,
    )


def information_ratio(rng: random.Random) -> Problem:
    fund, benchmark, risk = percent(rng, 70, 140), percent(rng, 20, 65), percent(rng, 20, 80)
    return Problem(
        f"A fund returned {fund} against {benchmark} for its benchmark, with an active risk of {risk}. Its "
        "information ratio is closest to:",
        (fund.value - benchmark.value) / risk.value,
        (fund.value / risk.value, benchmark.value / risk.value),
        show_number,
    )


def implementation_shortfall(rng: random.Random) -> Problem:
    shares, decision, paid = number(rng, 5000, 20_000, step=1000), number(rng, 3000, 6000, 2), number(rng, 5, 60, 2)
    executed, fee = decision.value + paid.value, dollars(rng, 100, 900, 50)
    return Problem(
        f"A manager decides to buy {shares} shares at ${decision}. All are bought at ${executed:.2f}, and commissions "
        f"are {fee}. The implementation shortfall is closest to:",
        shares.value * paid.value + fee.value,
        (shares.value * paid.value, shares.value * paid.value - fee.value),
        show_whole_dollars,
    )


def wealth_after_annual_tax(rng: random.Random) -> Problem:
    wealth, earned, tax, years = (
        dollars(rng, 1, 9),
        percent(rng, 40, 90),
        percent(rng, 150, 350, 50),
        number(rng, 3, 12),
    )
    return Problem(
        f"A client invests {wealth} million at {earned} a year. Returns are taxed at {tax} each year as they accrue. "
        f"After {years} years the wealth, in millions, is closest to:",
        wealth.value * (1 + earned.value * (1 - tax.value)) ** int(years.value),
        (
            wealth.value * (1 + earned.value) ** int(years.value),
            wealth.value * (1 + earned.value * tax.value) ** int(years.value),
        ),
        show_dollars,
    )


cfa_level3 = multiple_choice(
    (
        required_return,
        beta_contracts,
        duration_contracts,
        allocation_effect,
        domestic_currency_return,
        surplus_after_shock,
        information_ratio,
        implementation_shortfall,
        wealth_after_annual_tax,
    ),
    "ABC",
)
