"""What each parser takes, by example: the tests feed every row of this table, and docs/benchmarks.md shows it.

The labels on offer are LABELS[parser]. An answer of None is unparsed.
"""

from __future__ import annotations

from typing import NamedTuple

from eval.parsers import Answer

LABELS: dict[str, tuple[str, ...]] = {
    "label": ("negative", "neutral", "positive"),
    "choice": ("A", "B", "C", "D"),
}
"""Parser -> the closed label set of its examples; the others need none."""


class Example(NamedTuple):
    """One generated text and how it is read."""

    text: str
    answer: Answer | None


EXAMPLES: dict[str, dict[str, tuple[Example, ...]]] = {
    "label": {
        "plain": (
            Example("positive", "positive"),
            Example(" Positive.\n\nInput: more, negative", "positive"),
            Example("The answer is NEGATIVE, not positive", "negative"),
            Example("Not positive, but negative", "negative"),
            Example("neither positive nor negative: neutral", "neutral"),
            Example("**neutral**", "neutral"),
            Example("- negative", "negative"),
            Example('{"sentiment": "positive"}', "positive"),
            Example("poſitive", "positive"),
        ),
        "no label": (
            Example("positively glowing", None),
            Example("non-negative growth", None),
            Example("non\u2011negative growth", None),
            Example("pos", None),
            Example("", None),
        ),
        "refusals": (
            Example("I cannot determine whether this is positive or negative.", None),
            Example("I'm sorry, but I can\u2019t say if it is positive.", None),
            Example("As an AI I do not call texts negative.", None),
            Example("Sorry state of affairs: negative", "negative"),
        ),
        "thoughts": (
            Example("<think>could be negative ... it is positive</think>\n\npositive", "positive"),
            Example("<THINKING>negative?</THINKING>neutral", "neutral"),
            Example("it may be negative</think>\npositive", "positive"),
            Example("<think>a</think>negative</think>positive", "positive"),
            Example("[THINK]negative?[/THINK]positive", "positive"),
            Example("\u25c1think\u25b7negative?\u25c1/think\u25b7positive", "positive"),
            Example("<seed:think>negative?</seed:think>positive", "positive"),
            Example("<|begin_of_thought|>negative?<|end_of_thought|>positive", "positive"),
            Example("<|channel|>analysis<|message|>negative?<|end|><|channel|>final<|message|>positive", "positive"),
            Example("analysisIs it negative?assistantfinalpositive", "positive"),
            Example("x < 5 is positive", "positive"),
        ),
        "cut off in a thought": (
            Example("<think>it could be negative", None),
            Example("<|channel|>analysis<|message|>negative?", None),
            Example("<think></think>", None),
        ),
        "wrapped": (
            Example("negative or not? <answer>positive</answer>", "positive"),
            Example("<answer></answer> negative", "negative"),
            Example("<answer>positive", "positive"),
            Example('```json\n{"reason": "not negative", "x": {"answer": "positive"}}\n```', "positive"),
            Example("not negative: \\boxed{\\text{positive}}", "positive"),
        ),
    },
    "collapsed_sentiment": {"plain": (Example("mildly negative", "negative"), Example("mild", None))},
    "choice": {
        "plain": (
            Example("A", "A"),
            Example("B.", "B"),
            Example("(C)", "C"),
            Example("[D]", "D"),
            Example("**C**", "C"),
            Example("b)", "B"),
            Example("D) 5 percent", "D"),
            Example("A\nExplanation: B is wrong.", "A"),
            Example("A. The firm must disclose", "A"),
            Example("B -- because of the rule", "B"),
            Example("\uff22", "B"),
            Example("\u24b7", "B"),
        ),
        "in a sentence": (
            Example("Answer: D", "D"),
            Example("Answer: c", "C"),
            Example("The correct answer is option B", "B"),
            Example("The answer is A because of the rule", "A"),
            Example("It must be (C), I think", "C"),
            Example("Because of the rule, B.", "B"),
            Example("An answer is B, you may think. Final answer: C", "C"),
        ),
        "wrapped": (
            Example("A is wrong. So it is \\boxed{\\text{B}}.", "B"),
            Example("<answer>(C)</answer>", "C"),
            Example("$\\boxed{}$ so A", "A"),
            Example("The answer is $B$", "B"),
            Example("\\(\\text{B}\\)", "B"),
            Example('{"answer": "B"}', "B"),
        ),
        "no letter on offer, or several": (
            Example("A company issues bonds", None),
            Example("a firm", None),
            Example("The answer is a firm", None),
            Example("A and B", None),
            Example("Neither A, nor B.", None),
            Example("Series B preferred stock", None),
            Example("E", None),
            Example("I cannot choose between A and (B).", None),
            Example("", None),
        ),
    },
    "number": {
        "plain": (
            Example("5.0", 5.0),
            Example(" 1,234,567.89 USD", 1234567.89),
            Example("$37,161.62", 37161.62),
            Example("USD 5", 5.0),
            Example("12.5 %", 12.5),
            Example("about\n7", 7.0),
            Example(".5", 0.5),
            Example("5.", 5.0),
        ),
        "signs": (
            Example("-5.0", -5.0),
            Example("−3", -3.0),
            Example("–5.0", -5.0),
            Example("\u2010$3", -3.0),
            Example("-$3.50", -3.5),
            Example("$-3.50", -3.5),
            Example("(5,000)", -5000.0),
            Example("($ 1.5 million)", -1.5e6),
            Example("(5", 5.0),
            Example("between 10-20", 10.0),
            Example("between 10–20", 10.0),
            Example("pages 3—5", 3.0),
            Example("- 5 apples", 5.0),
        ),
        "separators": (
            Example("12,34,567", 1234567.0),
            Example("1 234 567", 1234567.0),
            Example("1\u202f234\u202f567", 1234567.0),
            Example("1'234'567", 1234567.0),
            Example("1.234.567", 1234567.0),
            Example("1.234,56", 1234.56),
            Example("0,5", 0.5),
            Example("1, 2, 3", 1.0),
            Example("1,234", 1234.0),
            Example("1.234", 1.234),
        ),
        "scales": (
            Example("1.2e3", 1200.0),
            Example("1E-2", 0.01),
            Example("3.1 × 10^2", 310.0),
            Example("5.0 × 10⁶", 5e6),
            Example("3 × 10⁻²", 0.03),
            Example("10⁶", 1e6),
            Example("2 billion dollars", 2e9),
            Example("7bn", 7e9),
            Example("3 Mrd", 3e9),
            Example("7 b", 7.0),
        ),
        "LaTeX and fractions": (
            Example(r"5.0 \times 10^{6}", 5e6),
            Example(r"$\$1{,}234.5$", 1234.5),
            Example(r"12.5\%", 12.5),
            Example(r"\frac{1}{4}", 0.25),
            Example("1/4", 0.25),
            Example("2½", 2.5),
            Example("So \\boxed{\\$11.5 \\text{ million}}", 11.5e6),
        ),
        "with the way to it": (
            Example("FV = 2 × (1 + 3)^2 = 32.00", 32.0),
            Example("x = unknown, 4", 4.0),
            Example("Step 1: 3 + 4 = 7\nFinal answer: 9", 9.0),
            Example("1. We add 5.\n2. We add 6.\nThe answer is 11.", 11.0),
            Example("5.0\n\nQuestion: 2 + 2? The answer is 4", 5.0),
        ),
        "no number": (
            Example("us-gaap:Tag1", None),
            Example("FY2023", None),
            Example("none", None),
            Example("1e999", None),
            Example("1/0", None),
            Example("1 x 10^9999", None),
            Example("", None),
        ),
    },
    "tag": {
        "plain": (
            Example("us-gaap:NetIncomeLoss", "netincomeloss"),
            Example("US-GAAP: NetIncomeLoss.", "netincomeloss"),
            Example("us_gaap_NetIncomeLoss", "netincomeloss"),
            Example("us\u2011gaap:Assets", "assets"),
            Example("us-gaap\\_Assets", "assets"),
            Example("NetIncomeLoss", "netincomeloss"),
            Example("`Assets`", "assets"),
            Example("<us-gaap:Assets>5</>", "assets"),
        ),
        "in a sentence": (
            Example("Assets\n\nQuestion: and us-gaap:Goodwill?", "goodwill"),
            Example("The tag is us-gaap:Assets", "assets"),
            Example("The tag is 'Assets'.", "assets"),
        ),
        "no tag": (Example("total assets", None), Example("21276000000.0", None), Example("", None)),
    },
    "tag_list": {
        "plain": (
            Example(
                "DebtInstrumentFaceAmount,Revenues, us-gaap:Goodwill", ["debtinstrumentfaceamount", "revenues", "goodwill"]
            ),
            Example("Revenues,,\nGoodwill", ["revenues", None, "goodwill"]),
            Example("Assets; Goodwill", ["assets", "goodwill"]),
            Example("Assets | Goodwill", ["assets", "goodwill"]),
            Example("Assets, Goodwill, and Revenues", ["assets", "goodwill", "revenues"]),
        ),
        "lists": (
            Example("1. NetIncomeLoss\n2. GrossProfit", ["netincomeloss", "grossprofit"]),
            Example("1) Assets\n2) Goodwill", ["assets", "goodwill"]),
            Example("- Assets\n- Goodwill", ["assets", "goodwill"]),
            Example('["Assets", "Goodwill"]', ["assets", "goodwill"]),
        ),
        "thoughts": (Example("<think>Assets, Goodwill</think>us-gaap:Revenues,us-gaap:Assets", ["revenues", "assets"]),),
        "no tag": (Example(", ,", None), Example("", None)),
    },
    "formula": {
        "plain": (
            Example("us-gaap:A / us-gaap:B", "a/b"),
            Example("((US-GAAP:A - B) / us-gaap:C)", "(a-b)/c"),
            Example("(us-gaap:A) / (us-gaap:B)", "a/b"),
            Example("(us-gaap:A / us-gaap:B) × 100", "(a/b)*100"),
            Example("us-gaap:A / us-gaap:B * 100", "a/b*100"),
            Example("(us-gaap:A - us-gaap:B) / (us-gaap:C - us-gaap:D)", "(a-b)/(c-d)"),
            Example("$1,000 / 3.0", "1000/3"),
            Example("-5 / 3", "-5/3"),
            Example("us-gaap:Assets", "assets"),
            Example("42", "42"),
        ),
        "other signs and LaTeX": (
            Example("us-gaap:A – us-gaap:B", "a-b"),
            Example("(5 – 3) / 2", "(5-3)/2"),
            Example("us-gaap:A ∗ us-gaap:B", "a*b"),
            Example("us-gaap:A ∕ us-gaap:B", "a/b"),
            Example("5 x 3", "5*3"),
            Example(r"\frac{us-gaap:A}{us-gaap:B} \times 100", "a/b*100"),
            Example(r"\frac{us-gaap:A - us-gaap:B}{us-gaap:C}", "(a-b)/c"),
            Example(r"1{,}000 \div 3", "1000/3"),
        ),
        "in a sentence": (
            Example("Margin = us-gaap:A / us-gaap:B.", "a/b"),
            Example("The formula is\nus-gaap:A / us-gaap:B\nor another", "a/b"),
            Example("(15814000000 / 21252000000) * 100 = 74", "(15814000000/21252000000)*100"),
            Example("<reasoning>5 / 2</reasoning> \\boxed{7 / 2}", "7/2"),
        ),
        "broken": (Example("us-gaap:A / us-gaap:B) * 100", "a/b)*100"), Example("us-gaap:A / us-gaap:B *", "a/b*")),
        "no formula": (
            Example("I do not know", None),
            Example("year-end cash / total", None),
            Example("()", None),
            Example("", None),
        ),
    },
    "text": {"plain": (Example(" An amount. ", "An amount."),), "no word": (Example(" \n", None), Example("...", None))},
}
"""Parser -> kind of text -> examples."""
