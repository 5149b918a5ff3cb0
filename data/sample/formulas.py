"""Financial Math: a formula is printed, a story gives its figures, and the answer is the number with two decimals."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from data.sample.drawing import SampleRow
from data.sample.figures import Figure, cents, dollars, number, percent, rounded

Figures = tuple[Figure, ...]


@dataclass(frozen=True)
class Formula:
    """One formula. Figures are in the order of the explanation and of every story."""

    name: str
    expression: str
    explanation: str
    draw: Callable[[random.Random], Figures]
    compute: Callable[..., Decimal]
    stories: tuple[str, ...]


TRADES = (
    "bakery",
    "toy maker",
    "shipping firm",
    "software house",
    "garden centre",
    "print shop",
    "brewery",
    "cinema chain",
)


def _multiple(rng: random.Random, quarters: int = 24) -> Figures:
    """Two amounts whose ratio is a multiple of one quarter, so that the answer can be seen without long division."""
    base = rng.randrange(4, 60) * 4000
    top = base * rng.randrange(2, quarters + 1) // 4
    return Figure(Decimal(top), f"${top:,}"), Figure(Decimal(base), f"${base:,}")


def _share(rng: random.Random, low: int, high: int) -> Figures:
    """A part and its whole, the part a whole number of percent of it."""
    whole = rng.randrange(5, 90) * 10_000
    part = whole * rng.randrange(low, high) // 100
    return Figure(Decimal(part), f"${part:,}"), Figure(Decimal(whole), f"${whole:,}")


FORMULAS = (
    Formula(
        "Future Value (FV)",
        "FV = PV × (1 + r)^n",
        "PV: Amount paid in today, r: Interest rate of one year, n: Number of years",
        lambda rng: (dollars(rng, 1000, 20_000, 500), percent(rng, 10, 100, 10), number(rng, 2, 4)),
        lambda present, rate, years: present * (1 + rate) ** int(years),
        (
            "A saver pays {0} into an account at {1} a year and leaves it for {2} years. What will it hold?",
            "Deposit (PV): {0}\n    Yearly rate (r): {1}\n    Years (n): {2}\n    Calculate the future value.",
        ),
    ),
    Formula(
        "Simple Interest",
        "Interest = P × r × t",
        "P: Principal, r: Interest rate of one year, t: Number of years",
        lambda rng: (dollars(rng, 1000, 30_000, 1000), percent(rng, 20, 100, 10), number(rng, 2, 9)),
        lambda principal, rate, years: principal * rate * years,
        (
            "A {trade} borrows {0} at {1} simple interest for {2} years. How much interest does it pay?",
            "What simple interest does a loan of {0} at {1} cost over {2} years?",
        ),
    ),
    Formula(
        "Current Ratio",
        "Current Ratio = Current Assets / Current Liabilities",
        "Current Assets: What turns into cash within a year, Current Liabilities: What is due within a year",
        lambda rng: _multiple(rng, 16),
        lambda assets, liabilities: assets / liabilities,
        (
            "A {trade} has current assets of {0} and current liabilities of {1}. What is its current ratio?",
            "With {0} of current assets against {1} due within the year, work out the current ratio of a {trade}.",
        ),
    ),
    Formula(
        "Quick Ratio",
        "Quick Ratio = (Current Assets - Inventory) / Current Liabilities",
        "Current Assets: What turns into cash within a year, Inventory: Goods in stock, Current Liabilities: What "
        "is due within a year",
        lambda rng: (
            dollars(rng, 200_000, 600_000, 10_000),
            dollars(rng, 20_000, 160_000, 10_000),
            dollars(rng, 50_000, 400_000, 50_000),
        ),
        lambda assets, inventory, liabilities: (assets - inventory) / liabilities,
        (
            "Current assets of a {trade} are {0}, of which {1} is stock, and its current liabilities are {2}. Find "
            "the quick ratio.",
            "A {trade} reports {0} of current assets, {1} of inventory and {2} of current liabilities. What is the "
            "quick ratio?",
        ),
    ),
    Formula(
        "Debt-to-Equity Ratio",
        "Debt-to-Equity Ratio = Total Liabilities / Shareholders' Equity",
        "Total Liabilities: All that is owed, Shareholders' Equity: What belongs to the owners",
        lambda rng: _multiple(rng, 12),
        lambda liabilities, equity: liabilities / equity,
        (
            "A {trade} owes {0} in all and its owners' equity is {1}. What is the debt-to-equity ratio?",
            "Total liabilities: {0}\n    Shareholders' equity: {1}\n    Calculate the debt-to-equity ratio of this "
            "{trade}.",
        ),
    ),
    Formula(
        "Net Profit Margin",
        "Net Profit Margin = (Net Income / Revenue) × 100",
        "Net Income: Profit after all costs, Revenue: Total sales",
        lambda rng: _share(rng, 3, 35),
        lambda income, revenue: income / revenue * 100,
        (
            "A {trade} earned {0} after all costs on sales of {1}. What is its net profit margin?",
            "Net income of {0} on revenue of {1}: what net profit margin does the {trade} have?",
        ),
    ),
    Formula(
        "Days Sales Outstanding (DSO)",
        "DSO = (Accounts Receivable / Total Credit Sales) × Number of Days",
        "Accounts Receivable: What customers owe, Total Credit Sales: Sales on credit, Number of Days: Length of "
        "the period",
        lambda rng: (
            dollars(rng, 20_000, 90_000, 10_000),
            dollars(rng, 200_000, 800_000, 100_000),
            number(rng, 360, 365),
        ),
        lambda receivable, sales, days: receivable / sales * days,
        (
            "Customers owe a {trade} {0} after credit sales of {1} over {2} days. Compute the DSO.",
            "A {trade} shows receivables of {0} and credit sales of {1} for a period of {2} days. What is the DSO?",
        ),
    ),
    Formula(
        "Inventory Turnover",
        "Inventory Turnover = Cost of Goods Sold / Average Inventory",
        "Cost of Goods Sold: Cost of what was sold, Average Inventory: Mean stock of the period",
        lambda rng: _multiple(rng, 40),
        lambda cost, inventory: cost / inventory,
        (
            "Goods sold by a {trade} cost {0} and its stock averaged {1}. What is the inventory turnover?",
            "Cost of goods sold: {0}\n    Average inventory: {1}\n    How often did the {trade} turn over its stock?",
        ),
    ),
    Formula(
        "Earnings Per Share (EPS)",
        "EPS = (Net Income - Preferred Dividends) / Shares",
        "Net Income: Profit after all costs, Preferred Dividends: Paid to preferred holders, Shares: Common shares "
        "outstanding",
        lambda rng: (
            dollars(rng, 300_000, 900_000, 50_000),
            dollars(rng, 10_000, 50_000, 10_000),
            number(rng, 100_000, 900_000, step=100_000),
        ),
        lambda income, preferred, shares: (income - preferred) / shares,
        (
            "A {trade} earned {0}, paid {1} to preferred holders and has {2} common shares. What are its EPS?",
            "Net income is {0}, preferred dividends are {1} and {2} shares are outstanding. Calculate EPS of the "
            "{trade}.",
        ),
    ),
    Formula(
        "Price-to-Earnings Ratio (P/E)",
        "P/E = Share Price / EPS",
        "Share Price: Market price of one share, EPS: Earnings of one share",
        lambda rng: (dollars(rng, 12, 160, 4), cents(rng, 100, 800)),
        lambda price, earnings: price / earnings,
        (
            "A share of a {trade} costs {0} and earns {1}. What is the P/E ratio?",
            "Share price: {0}\n    Earnings per share: {1}\n    Calculate the P/E of the {trade}.",
        ),
    ),
    Formula(
        "Return on Equity (ROE)",
        "ROE = (Net Income / Shareholders' Equity) × 100",
        "Net Income: Profit after all costs, Shareholders' Equity: What belongs to the owners",
        lambda rng: _share(rng, 4, 30),
        lambda income, equity: income / equity * 100,
        (
            "A {trade} made {0} with {1} of its owners' money. Find its ROE.",
            "Net income is {0} and shareholders' equity {1}. What is the return on equity of the {trade}?",
        ),
    ),
    Formula(
        "Sharpe Ratio",
        "Sharpe Ratio = (R_p - R_f) / σ_p",
        "R_p: Return of the portfolio, R_f: Risk-free rate, σ_p: Standard deviation of the portfolio",
        lambda rng: (percent(rng, 80, 180, 10), percent(rng, 10, 50, 10), percent(rng, 80, 250, 10)),
        lambda portfolio, free, deviation: (portfolio - free) / deviation,
        (
            "A fund returned {0} while bills paid {1}, and its standard deviation was {2}. What is its Sharpe ratio?",
            "Fund return (R_p): {0}\n    Bill rate (R_f): {1}\n    Volatility (σ_p): {2}\n    Calculate the Sharpe "
            "ratio.",
        ),
    ),
    Formula(
        "Capital Asset Pricing Model (CAPM)",
        "E = (R_f + β × (R_m - R_f)) × 100",
        "R_f: Risk-free rate, β: Sensitivity to the market, R_m: Expected return of the market",
        lambda rng: (percent(rng, 10, 40, 10), number(rng, 6, 18, 1), percent(rng, 60, 110, 10)),
        lambda free, beta, market: (free + beta * (market - free)) * 100,
        (
            "Bills pay {0}, a stock has a beta of {1} and the market should return {2}. What percent return does "
            "CAPM expect?",
            "Risk-free rate: {0}\n    Beta: {1}\n    Market return: {2}\n    Calculate the expected return in percent.",
        ),
    ),
    Formula(
        "Dividend Yield",
        "Dividend Yield = (Dividend / Share Price) × 100",
        "Dividend: Paid on one share in a year, Share Price: Market price of one share",
        lambda rng: (cents(rng, 50, 400), dollars(rng, 20, 100, 5)),
        lambda dividend, price: dividend / price * 100,
        (
            "A {trade} pays {0} a year on a share that costs {1}. What is the dividend yield?",
            "The yearly dividend is {0} and the share trades at {1}. Calculate the dividend yield of the {trade}.",
        ),
    ),
    Formula(
        "Gordon Growth Model",
        "P = D / (r - g)",
        "D: Dividend of next year, r: Required return, g: Growth rate of the dividend",
        lambda rng: (cents(rng, 100, 500), percent(rng, 80, 130, 10), percent(rng, 10, 50, 10)),
        lambda dividend, required, growth: dividend / (required - growth),
        (
            "Next year a {trade} pays a dividend of {0}. Holders want {1} and the dividend grows by {2} a year. "
            "Value the share.",
            "Dividend (D): {0}\n    Required return (r): {1}\n    Growth (g): {2}\n    What is the share worth?",
        ),
    ),
    Formula(
        "Break-Even Point",
        "Units = Fixed Costs / (Price - Variable Cost)",
        "Fixed Costs: Costs whatever is sold, Price: Price of one unit, Variable Cost: Cost of one unit",
        lambda rng: (dollars(rng, 10_000, 90_000, 5000), dollars(rng, 30, 60, 5), dollars(rng, 10, 25, 5)),
        lambda fixed, price, variable: fixed / (price - variable),
        (
            "A {trade} has fixed costs of {0}, sells a unit at {1} and makes it for {2}. How many units must it "
            "sell to break even?",
            "Fixed costs: {0}\n    Price: {1}\n    Variable cost: {2}\n    Find the break-even units of the {trade}.",
        ),
    ),
)


def formula(rng: random.Random, split: str, index: int) -> SampleRow:
    """The formulas take turns."""
    chosen = FORMULAS[index % len(FORMULAS)]
    figures = chosen.draw(rng)
    story = rng.choice(chosen.stories).format(*figures, trade=rng.choice(TRADES))
    context = (
        f"Use formula {chosen.name} to answer the question. Answer with a numerical answer with 2 decimal places and "
        "with no "
        f"explanations or other text. Formula: {chosen.expression}, Explanation: {chosen.explanation}. "
        f'Question:  "{story}". Answer:'
    )
    return SampleRow(context, str(rounded(chosen.compute(*(figure.value for figure in figures)))))
