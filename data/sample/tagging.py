"""FiNER and FNXL: four figures in four sentences, each to be given its US GAAP tag from a printed list."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from data.sample.drawing import SampleRow
from data.sample.words import CITIES, company

FIGURES_PER_ROW = 4

FINER_TAGS = {
    "InterestExpense": (
        "{company} recorded interest expense of $ {figure} million on its notes .",
        "Interest cost charged on borrowings of {company} was $ {figure} million .",
    ),
    "GoodwillImpairmentLoss": (
        "{company} wrote down the goodwill of its {city} unit by $ {figure} million .",
        "A goodwill impairment of $ {figure} million was booked by {company} .",
    ),
    "Revenues": (
        "Total revenues of {company} reached $ {figure} million .",
        "{company} reported revenues of $ {figure} million from its {city} stores .",
    ),
    "IncomeTaxExpenseBenefit": (
        "{company} recognized income tax expense of $ {figure} million .",
        "The provision for income taxes of {company} was $ {figure} million .",
    ),
    "LineOfCreditFacilityMaximumBorrowingCapacity": (
        "{company} may borrow up to $ {figure} million under its revolving credit facility .",
        "The maximum borrowing capacity of the credit line of {company} is $ {figure} million .",
    ),
    "DebtInstrumentInterestRateStatedPercentage": (
        "The senior notes of {company} bear interest at a stated rate of {rate} % .",
        "{company} issued bonds with a fixed coupon of {rate} % .",
    ),
    "AmortizationOfIntangibleAssets": (
        "Amortization of customer lists and other intangibles at {company} was $ {figure} million .",
        "{company} amortized intangible assets by $ {figure} million .",
    ),
    "RestructuringCharges": (
        "{company} took restructuring charges of $ {figure} million to close its {city} office .",
        "Severance and other restructuring cost {company} $ {figure} million .",
    ),
    "NumberOfReportableSegments": (
        "{company} has {count} reportable segments .",
        "The business of {company} is reported in {count} segments .",
    ),
    "StockRepurchasedDuringPeriodShares": (
        "{company} bought back {figure} million of its own shares .",
        "In the open market {company} repurchased {figure} million shares .",
    ),
    "OperatingLeaseExpense": (
        "Rent expense under operating leases of {company} was $ {figure} million .",
        "{company} paid $ {figure} million of operating lease cost for its {city} warehouse .",
    ),
    "ShareBasedCompensation": (
        "{company} expensed $ {figure} million of stock - based compensation .",
        "Share - based pay of employees cost {company} $ {figure} million .",
    ),
}

FNXL_TAGS = {
    "AccountsReceivableNetCurrent": (
        "{company} had net trade receivables of ${figure} million due within one year.",
        "Customers owed {company} ${figure} million, net of allowances, at year end.",
    ),
    "AdvertisingExpense": (
        "{company} spent ${figure} million on advertising.",
        "Advertising costs of {company} were ${figure} million.",
    ),
    "AssetRetirementObligation": (
        "{company} carries an asset retirement obligation of ${figure} million for its {city} mine.",
        "Dismantling the {city} plant is provided for with an asset retirement obligation of ${figure} million.",
    ),
    "PaymentsToAcquirePropertyPlantAndEquipment": (
        "Payments for property, plant and equipment at {company} were ${figure} million.",
        "{company} paid ${figure} million for new equipment in {city}.",
    ),
    "DebtInstrumentFaceAmount": (
        "{company} issued notes with a face amount of ${figure} million.",
        "The principal amount of the bonds of {company} is ${figure} million.",
    ),
    "DeferredRevenue": (
        "{company} deferred revenue of ${figure} million for services not yet delivered.",
        "Deferred revenue from prepaid contracts at {company} was ${figure} million.",
    ),
    "CommonStockDividendsPerShareDeclared": (
        "The board of {company} declared a dividend of ${rate} per common share.",
        "Dividends declared by {company} came to ${rate} a share.",
    ),
    "EarningsPerShareDiluted": (
        "Diluted earnings per share of {company} were ${rate}.",
        "{company} earned ${rate} per diluted share.",
    ),
    "InventoryWriteDown": (
        "{company} wrote down obsolete inventory by ${figure} million.",
        "An inventory write-down of ${figure} million was booked at the {city} depot.",
    ),
    "LitigationSettlementAmountAwardedToOtherParty": (
        "{company} settled the lawsuit in {city} for ${figure} million.",
        "A litigation settlement of ${figure} million was paid by {company}.",
    ),
    "PensionContributions": (
        "{company} contributed ${figure} million to its pension plan.",
        "Pension contributions of {company} were ${figure} million.",
    ),
    "ResearchAndDevelopmentExpense": (
        "{company} spent ${figure} million on research and development.",
        "Research and development expense of {company} was ${figure} million.",
    ),
}


def _sentences(
    rng: random.Random, split: str, index: int, templates: Mapping[str, Sequence[str]]
) -> tuple[list[tuple[str, str]], str]:
    """Four (figure, sentence) pairs and their tags. Tags take turns: a seeded shuffle of the whole list every three
    rows.
    """
    tags = list(templates)
    rows_per_shuffle = len(tags) // FIGURES_PER_ROW
    cycle, place = divmod(index, rows_per_shuffle)
    random.Random(f"fedfinlora sample/tag order/{split}/{cycle}/{tags[0]}").shuffle(tags)
    chosen = tags[place * FIGURES_PER_ROW : (place + 1) * FIGURES_PER_ROW]
    pairs = []
    for tag in chosen:
        template = rng.choice(templates[tag])
        figures = {
            "figure": f"{rng.randrange(101, 990) / 10:.1f}",
            "rate": f"{rng.randrange(105, 895) / 100:.2f}",
            "count": str(rng.randrange(2, 9)),
        }
        shown = next(value for name, value in figures.items() if f"{{{name}}}" in template)
        pairs.append((shown, template.format(company=company(rng, split), city=rng.choice(CITIES), **figures)))
    return pairs, ",".join(chosen)


def finer(rng: random.Random, split: str, index: int) -> SampleRow:
    """FiNER's form: the list first, the same for every row, then four numbered questions."""
    pairs, target = _sentences(rng, split, index, FINER_TAGS)
    head = (
        f"You are XBRL expert.  Here is a list of US GAAP tags options: ,{','.join(FINER_TAGS)}. Answer the following "
        "4 independent questions by providing only  4 US GAAP tags answers in the order of the questions. Each answer "
        "must be separated by a comma (,).  Provide nothing else. \n"
    )
    questions = [
        f'{number}. What is best tag for entity "{figure}" in sentence: "{sentence}?"\n'
        for number, (figure, sentence) in enumerate(pairs, start=1)
    ]
    return SampleRow(f"{head}{''.join(questions)}Output US GAAP tags:", target)


def fnxl(rng: random.Random, split: str, index: int) -> SampleRow:
    """FNXL's form: the instruction, the sorted list, then four questions."""
    pairs, target = _sentences(rng, split, index, FNXL_TAGS)
    head = (
        "You are XBRL expert. Choose the best XBRL US GAAP tag for each highlighted entity in the sentences below. "
        "Provide only the "
        "US GAAP tags, comma-separated, in the order of the sentences and highlighted entity. Provide nothing else\n"
        f"{', '.join(sorted(FNXL_TAGS))}\n"
    )
    questions = [
        f'What is the best us gaap tag for entity "{figure}" in sentence: "{sentence}"?\n' for figure, sentence in pairs
    ]
    return SampleRow(f"{head}{''.join(questions)}\nOutput US GAAP tags:", target)
