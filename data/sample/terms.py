"""XBRL Term: a term and what it means in one sentence, put together from a subject and what is said of it.

Test terms are new combinations of subjects and aspects that training has met apart. Names and wording are ours, no
taxonomy's: no prompt is one of a public set.
"""

from __future__ import annotations

import random

from data.sample.drawing import SampleRow, pool

ASSETS = {
    "Customer Balances": "money that customers owe for goods or services already delivered",
    "Goods on Hand": "goods that a company keeps to sell or to use in production",
    "Royalty Rights": "rights to be paid when others use the inventions of a company",
    "Loans by Written Promise": "written promises of others to repay money lent to them",
    "Unbilled Customer Work": "work done for customers that may not be billed yet",
    "Securities Kept for Income": "securities and other holdings bought to earn a return",
    "Land Held for Sale": "land that a company has decided to sell",
    "Loans to Employees": "money lent to the people who work for a company",
}
LIABILITIES = {
    "Supplier Balances": "what a company owes its suppliers for purchases not yet paid",
    "Debts by Written Promise": "written promises of a company to repay money it has borrowed",
    "Payments for Work to Come": "customer payments received before the work has been done",
    "Wages Owed": "pay that employees have earned but not yet received",
    "Warranty Obligations": "repairs that a company expects to owe on products it has sold",
    "Lease Obligations": "rent still to be paid for property a company has the right to use",
    "Pension Obligations": "retirement pay promised to employees for work already done",
    "Tax Owed": "tax that a company owes to the authorities",
}
EXPENSES = {
    "Product Promotion": "making products known to buyers",
    "Laboratory Work": "looking for new products and methods",
    "Staff Courses": "teaching employees new skills",
    "Outbound Carriage": "carrying goods to customers",
    "Plant Upkeep": "keeping plant and machines in working order",
    "Court Proceedings": "lawyers and court proceedings",
}

ASSET_ASPECTS = {
    "{name}, Current": "The part of {meaning} that should turn into cash within one year.",
    "{name}, Noncurrent": "The part of {meaning} that should turn into cash only after more than one year.",
    "{name}, Gross": "The full amount of {meaning}, before any allowance is taken off.",
    "{name}, Allowance": "The amount taken off {meaning} because it may not be recovered.",
    "{name}, Fair Value": "The price at which {meaning} could be sold in the market today.",
    "Increase (Decrease) in {name}": "The change during the year in {meaning}, shown in the cash flow statement.",
    "{name}, Impairment Loss": "The loss recorded when {meaning} turned out to be worth less than its book value.",
}
LIABILITY_ASPECTS = {
    "{name}, Current": "The part of {meaning} that must be settled within one year.",
    "{name}, Noncurrent": "The part of {meaning} that must be settled only after more than one year.",
    "{name}, Related Parties": "The part of {meaning} that is due to owners, managers or sister companies.",
    "Increase (Decrease) in {name}": "The change during the year in {meaning}, shown in the cash flow statement.",
    "{name}, Acquired in Business Combination": (
        "The part of {meaning} that was taken over together with a purchased business."
    ),
}
EXPENSE_ASPECTS = {
    "{name} Expense": "The cost of {meaning}, charged against income of the year.",
    "{name} Costs, Capitalized": "The cost of {meaning} that is carried as an asset and charged to later years.",
    "{name} Costs, Accrued": "The cost of {meaning} that has arisen but has not been billed or paid yet.",
    "{name} Expense, Related Parties": (
        "The cost of {meaning} that was bought from owners, managers or sister companies."
    ),
}


def _all_terms() -> list[tuple[str, str]]:
    """Every (term, meaning), in a seeded order so that each split meets every subject and aspect."""
    families = ((ASSETS, ASSET_ASPECTS), (LIABILITIES, LIABILITY_ASPECTS), (EXPENSES, EXPENSE_ASPECTS))
    terms = [
        (aspect.format(name=name), sentence.format(meaning=meaning))
        for subjects, aspects in families
        for name, meaning in subjects.items()
        for aspect, sentence in aspects.items()
    ]
    random.Random("fedfinlora sample/terms").shuffle(terms)
    return terms


TERMS = _all_terms()


def term(rng: random.Random, split: str, index: int) -> SampleRow:
    """The `index`-th term of a split; nothing is left to chance."""
    name, meaning = pool(TERMS, split)[index]
    return SampleRow(f"Explain this XBRL term briefly in one sentence: {name}. Answer:", meaning)
