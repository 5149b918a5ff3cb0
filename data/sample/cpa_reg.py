"""CPA REG style questions on basis, gain and deductions. Original; every limit or rate that matters is stated in the
question.
"""

from __future__ import annotations

import random
from decimal import Decimal

from data.sample.choices import Problem, multiple_choice
from data.sample.figures import dollars, percent, show_whole_dollars
from data.sample.words import FIRST_NAMES


def _name(rng: random.Random) -> str:
    return rng.choice(FIRST_NAMES)


def partnership_basis(rng: random.Random) -> Problem:
    cash, basis, worth = (
        dollars(rng, 5000, 40_000, 1000),
        dollars(rng, 10_000, 40_000, 1000),
        dollars(rng, 45_000, 90_000, 1000),
    )
    return Problem(
        f"{_name(rng)} contributes {cash} in cash and land with an adjusted basis of {basis} and a fair market value "
        f"of {worth} for a partnership interest. The land has no mortgage. The partner's outside basis is:",
        cash.value + basis.value,
        (cash.value + worth.value, basis.value, worth.value),
        show_whole_dollars,
    )


def stock_basis(rng: random.Random) -> Problem:
    opening, income, distribution = (
        dollars(rng, 20_000, 60_000, 1000),
        dollars(rng, 5000, 30_000, 1000),
        dollars(rng, 1000, 15_000, 1000),
    )
    return Problem(
        f"{_name(rng)} is the only owner of an S corporation and starts the year with a stock basis of {opening}. The "
        "corporation earns "
        f"ordinary income of {income} and distributes {distribution} in cash. The stock basis at year end is:",
        opening.value + income.value - distribution.value,
        (opening.value + income.value, opening.value - distribution.value, opening.value + distribution.value),
        show_whole_dollars,
    )


def like_kind_exchange(rng: random.Random) -> Problem:
    basis, worth, boot = (
        dollars(rng, 50_000, 120_000, 1000),
        dollars(rng, 130_000, 220_000, 1000),
        dollars(rng, 5000, 60_000, 1000),
    )
    realised = worth.value + boot.value - basis.value
    return Problem(
        f"{_name(rng)} exchanges business land with an adjusted basis of {basis} for other land worth {worth} and "
        f"{boot} in cash. The exchange qualifies as like-kind. The gain recognized is:",
        min(boot.value, realised),
        (realised, realised - boot.value, Decimal(0)),
        show_whole_dollars,
    )


def gift_sale(rng: random.Random) -> Problem:
    basis, worth, price = (
        dollars(rng, 5000, 20_000, 500),
        dollars(rng, 21_000, 30_000, 500),
        dollars(rng, 31_000, 50_000, 500),
    )
    return Problem(
        f"{_name(rng)} receives shares as a gift. The donor's basis was {basis} and their value at the gift {worth}. "
        f"No gift tax was paid. Later they are sold for {price}. The gain recognized is:",
        price.value - basis.value,
        (price.value - worth.value, worth.value - basis.value, price.value),
        show_whole_dollars,
    )


def inherited_sale(rng: random.Random) -> Problem:
    basis, worth, price = (
        dollars(rng, 5000, 20_000, 500),
        dollars(rng, 25_000, 40_000, 500),
        dollars(rng, 41_000, 60_000, 500),
    )
    return Problem(
        f"{_name(rng)} inherits land that the deceased had bought for {basis}. It was worth {worth} at the date of "
        f"death and is sold for {price}. The gain recognized is:",
        price.value - worth.value,
        (price.value - basis.value, worth.value - basis.value, price.value),
        show_whole_dollars,
    )


def capital_loss_carryforward(rng: random.Random) -> Problem:
    losses, gains = dollars(rng, 15_000, 40_000, 500), dollars(rng, 1000, 9000, 500)
    net = losses.value - gains.value
    return Problem(
        f"{_name(rng)}, who is single, has capital losses of {losses} and capital gains of {gains}. At most $3,000 of "
        "a net capital loss may be deducted from other income in a year. The loss carried forward is:",
        net - 3000,
        (net, losses.value - 3000, Decimal(3000)),
        show_whole_dollars,
    )


def corporate_gifts(rng: random.Random) -> Problem:
    income, given = dollars(rng, 100_000, 400_000, 10_000), dollars(rng, 20_000, 60_000, 1000)
    limit = income.value / 10
    return Problem(
        f"A C corporation has taxable income of {income} before any charitable deduction and gives {given} to charity. "
        "The deduction may not exceed 10% of that income. The charitable deduction of the year is:",
        min(limit, given.value),
        (max(limit, given.value), abs(given.value - limit), given.value / 2),
        show_whole_dollars,
    )


def instalment_sale(rng: random.Random) -> Problem:
    margin = percent(rng, 200, 600, 100)
    price, received = dollars(rng, 100_000, 300_000, 10_000), dollars(rng, 20_000, 60_000, 5000)
    basis = price.value * (1 - margin.value)
    return Problem(
        f"{_name(rng)} sells land with a basis of {show_whole_dollars(basis)} for {price} and receives {received} in "
        "the year of sale. Under the installment method the gain recognized in that year is:",
        margin.value * received.value,
        (price.value - basis, received.value, received.value * (1 - margin.value)),
        show_whole_dollars,
    )


def dividends_received(rng: random.Random) -> Problem:
    profit, dividends = dollars(rng, 100_000, 300_000, 5000), dollars(rng, 10_000, 60_000, 2000)
    return Problem(
        f"A C corporation earns {profit} from operations and receives dividends of {dividends} from a company of which "
        "it owns a tenth. It may deduct 50% of the dividends. Its taxable income is:",
        profit.value + dividends.value / 2,
        (profit.value + dividends.value, profit.value, profit.value - dividends.value / 2),
        show_whole_dollars,
    )


def home_sale(rng: random.Random) -> Problem:
    basis, price = dollars(rng, 150_000, 300_000, 5000), dollars(rng, 580_000, 800_000, 5000)
    gain = price.value - basis.value
    return Problem(
        f"{_name(rng)}, who is single, sells for {price} a home with a basis of {basis}, owned and lived in for six "
        "years. Up to $250,000 of gain may be excluded. The taxable gain is:",
        gain - 250_000,
        (gain, price.value - 250_000, Decimal(0)),
        show_whole_dollars,
    )


def incorporation(rng: random.Random) -> Problem:
    basis, worth, boot = (
        dollars(rng, 20_000, 60_000, 1000),
        dollars(rng, 70_000, 120_000, 1000),
        dollars(rng, 2000, 9000, 500),
    )
    realised = worth.value + boot.value - basis.value
    return Problem(
        f"{_name(rng)} transfers equipment with a basis of {basis} to a new corporation for all its stock, worth "
        f"{worth}, and {boot} in cash. The transfer meets the control test. The gain recognized by the owner is:",
        min(boot.value, realised),
        (realised, realised - boot.value, Decimal(0)),
        show_whole_dollars,
    )


def medical_deduction(rng: random.Random) -> Problem:
    income, expenses = dollars(rng, 40_000, 100_000, 2000), dollars(rng, 9000, 20_000, 500)
    floor = income.value * Decimal("0.075")
    return Problem(
        f"{_name(rng)} itemizes, has adjusted gross income of {income} and paid unreimbursed medical expenses of "
        f"{expenses}. Only the part above 7.5% of adjusted gross income is deductible. The medical deduction is:",
        expenses.value - floor,
        (expenses.value, floor, expenses.value - floor / 2),
        show_whole_dollars,
    )


cpa_reg = multiple_choice(
    (
        partnership_basis,
        stock_basis,
        like_kind_exchange,
        gift_sale,
        inherited_sale,
        capital_loss_carryforward,
        corporate_gifts,
        instalment_sale,
        dividends_received,
        home_sale,
        incorporation,
        medical_deduction,
    ),
    "ABCD",
)
