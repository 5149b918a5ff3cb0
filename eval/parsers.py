"""Reading an answer out of generated text, strictly but fairly: one parser per kind of answer, `None` where there is no answer.

A parser takes the generated text (without the prompt) and the benchmark's closed label set, and returns a canonical answer: two
texts give equal values exactly when they say the same. Targets go through the same parser. These are the honest readings; what
FinLoRA's own evaluator takes as the answer is `eval.scoring.finlora_score_row`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

Answer = str | float | list[str | None]
Parser = Callable[[str, Sequence[str]], Answer | None]


def parse_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that occurs first as a whole word, in the label set's own spelling; case does not matter.

    Where two labels start at the same place the longer one wins. A hyphen binds: "non-negative" holds no label.

    >>> parse_label("It is Positive, not negative.", ["negative", "positive"])
    'positive'
    """
    longest_first = sorted((label for label in labels if label), key=lambda label: (-len(label), label))
    if not longest_first:
        return None
    words = "|".join(f"({re.escape(label)})" for label in longest_first)
    found = re.search(rf"(?<!\w)(?<!\w-)(?:{words})(?!\w)(?!-\w)", text, re.IGNORECASE)
    return longest_first[found.lastindex - 1] if found and found.lastindex else None


def parse_collapsed_sentiment(text: str, labels: Sequence[str]) -> str | None:
    """The first of negative, neutral and positive: "strong", "moderately" and "mildly" are dropped (FinLoRA's reading of NWGI).

    >>> parse_collapsed_sentiment("mildly negative", [])
    'negative'
    """
    return parse_label(text, ("negative", "neutral", "positive"))


_LETTER_ENDS = r"(?=\s*(?:$|[.,:;!)\]\n*\"'`]|[-–—]\s|(?:is|because|since)\b))"
"""What may follow an option's letter, so that the article in "A company issues bonds" is not option A."""


def parse_choice(text: str, labels: Sequence[str]) -> str | None:
    """The letter of a multiple-choice answer, upper case, if it is one of `labels`.

    Tried in this order: the text begins with a letter ("B", "B.", "(C)", "D) 5 %"); "answer", "option" or "choice" names one
    ("The correct answer is D"); a letter in brackets anywhere; a lone capital followed by punctuation, if no other letter
    stands alone. Small letters count only where the text begins with one or "Answer:" is followed by one, and brackets,
    punctuation or the end follow.

    >>> parse_choice("A company should disclose it, so the answer is C.", ["A", "B", "C"])
    'C'
    """
    letters = "".join(label for label in labels if len(label) == 1).upper()
    if not letters:
        return None
    upper, either = f"[{letters}]", f"[{letters}{letters.lower()}]"
    small_ends = r"(?=\s*(?:$|[.:;)\]\n*]))"
    keyword = r"(?i:\b(?:answer|option|choice)\b)"
    patterns = (
        rf"^[\s(\[*\"'`]*(?:({upper}){_LETTER_ENDS}|({either}){small_ends})",
        rf"{keyword}\s+(?i:is|would\s+be|should\s+be)\s*:?\s*(?i:option\s+)?[(\[*\"'`]*({upper})\b",
        rf"{keyword}\s*[:=]?\s*[(\[*\"'`]*(?:({upper}){_LETTER_ENDS}|({either}){small_ends})",
        rf"[(\[]({upper})[)\]]",
    )
    for pattern in patterns:
        found = re.search(pattern, text)
        if found:
            return next(group for group in found.groups() if group).upper()
    alone = set(re.findall(rf"(?<![\w'’])({upper})(?!\w)", text))
    return alone.pop() if len(alone) == 1 and re.search(rf"(?<![\w'’]){upper}(?=[.:;)\]]|\s*$)", text) else None


_SCALES = {
    "thousand": 1e3, "k": 1e3,
    "million": 1e6, "mn": 1e6, "m": 1e6,
    "billion": 1e9, "bn": 1e9, "b": 1e9,
    "trillion": 1e12, "tn": 1e12,
}  # fmt: skip
_CURRENCY = r"(?:US\$|USD|EUR|GBP|[$€£¥₹])"
_DASHES = "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"
"""Hyphens, figure dash, en dash and minus signs that stand for a minus in front of a number."""
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_TYPESET = (
    (re.compile(r"\\(?:times|cdot)\b"), "×"),
    (re.compile(r"\\([$%€£])"), r"\1"),
    (re.compile(r"\{,\}|(?<=\d)\\,(?=\d{3})"), ","),
    (re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))"), ","),
    (re.compile(r"10\s*\^\s*\{\s*([-+\u2212]?\d{1,4})\s*\}"), r"10^\1"),
    (re.compile(rf"(?<![\w.,])[{_DASHES}](?=(?:US\$|USD|EUR|GBP|[$€£¥₹])?\s?\.?\d)"), "-"),
)
"""How typesetting writes numbers -> how they are typed. A dash behind a digit is a range, not a sign."""
_NUMBER = re.compile(
    rf"""
    (?<![\w.,])                                                       # not inside a word, a tag name or another number
    (?P<open>\(\s*)?
    (?P<sign>[-−+])? (?:{_CURRENCY}\s*)? (?P<inner_sign>[-−+])?
    (?P<digits>\d{{1,3}}(?:,\d{{2,3}})*,\d{{3}}(?!\d)|\d+|(?=\.\d)) (?P<fraction>\.\d*)?
    (?: (?P<exponent>[eE][-+−]?\d+)(?!\w) | \s*[×x*]\s*10\s*(?:\^|\*\*)\s*\(?(?P<power>[-+−]?\d{{1,4}})\)? )?
    (?:\s*%)?
    (?: \s*(?P<word>thousand|million|billion|trillion|mn|bn|tn)\b | (?P<letter>[kmb])\b )?
    (?P<close>\s*\))?
    """,
    re.VERBOSE | re.IGNORECASE,
)


def parse_number(text: str, labels: Sequence[str] = ()) -> float | None:
    """The number that is answered: the first one, or on a line with "=" the first one behind its last "=".

    Thousands commas, currency signs and a percent sign are dropped ("12.5 %" is 12.5, not 0.125); accountants' brackets negate;
    "e6", "x 10^6", "10⁶", "million", "bn", "5M" scale, LaTeX and other dashes are read as what they stand for. Other units are ignored. Not finite is no number.

    >>> parse_number("FV = 30,000 × 1.2 = $36,000.00"), parse_number("(5.2 million)"), parse_number("none")
    (36000.0, -5200000.0, None)
    """
    text = _typed(text)
    line = next((line for line in text.splitlines() if _NUMBER.search(line)), "")
    found = _NUMBER.search(line.rpartition("=")[2]) or _NUMBER.search(line)
    if not found:
        return None
    digits = found["digits"].replace(",", "") + (found["fraction"] or "") + (found["exponent"] or "").replace("−", "-")
    value = float(digits)
    if found["power"]:
        value *= float(f"1e{found['power'].replace('−', '-')}")
    value *= _SCALES.get((found["word"] or found["letter"] or "").lower(), 1.0)
    negative = {found["sign"], found["inner_sign"]} & {"-", "−"} or (found["open"] and found["close"])
    value = -value if negative else value
    return value if math.isfinite(value) else None


def _typed(text: str) -> str:
    """A text with its typeset numbers as they are typed: LaTeX, superscripts, thin blanks between thousands, other dashes.

    >>> _typed(r"\u20135.0 and \\$1{,}234 \\times 10^{6}, 3 × 10⁻²")
    '-5.0 and $1,234 × 10^6, 3 × 10^-2'
    """
    text = re.sub(r"(?<=10)[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,4}", lambda power: f"^{power[0].translate(_SUPERSCRIPTS)}", text)
    for typeset, typed in _TYPESET:
        text = typeset.sub(typed, text)
    return text


_PREFIX = r"us[-_\s]?gaap\s*[:_]\s*"
_TAG = re.compile(rf"(?i:{_PREFIX})([A-Za-z]\w*)|(?<![\w:])([A-Z][a-z]\w*[A-Z]\w*)")
_WORD = re.compile(r"[A-Za-z]\w*")


def parse_tag(text: str, labels: Sequence[str] = ()) -> str | None:
    """The first US GAAP element name: prefixed (`us-gaap:Assets`), in camel case (`NetIncomeLoss`), or a line of one word.

    Returned in lower case and without the prefix: no two elements differ only in that.

    >>> parse_tag("The tag is US-GAAP:NetIncomeLoss."), parse_tag("Assets"), parse_tag("total assets")
    ('netincomeloss', 'assets', None)
    """
    found = _TAG.search(text)
    if found:
        return (found[1] or found[2]).lower()
    line = _first_line(text).strip("`'\"*.<> ")
    return line.lower() if _WORD.fullmatch(line) else None


def parse_tag_list(text: str, labels: Sequence[str] = ()) -> list[str | None] | None:
    """The tags of a list separated by commas, semicolons or line ends, by position: None where a place holds no tag.

    >>> parse_tag_list("DebtInstrumentFaceAmount, us-gaap:Assets,,Revenues")
    ['debtinstrumentfaceamount', 'assets', None, 'revenues']
    """
    tags = [parse_tag(piece) for piece in split_tags(text)]
    return tags if any(tags) else None


def split_tags(text: str) -> list[str]:
    """The places of a list separated by commas, semicolons or line ends, stripped; a place may be empty.

    >>> split_tags(" Assets,, us-gaap:Goodwill ")
    ['Assets', '', 'us-gaap:Goodwill']
    """
    return re.split(r"\s*(?:[,;]|\n)\s*", text.strip())


_FORMULA_TOKEN = re.compile(
    rf"(?P<tag>(?i:{_PREFIX})[A-Za-z]\w*|(?<![\w:])[A-Z]\w*)"
    r"|(?P<number>(?<![\w.])(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w))"
    r"|(?P<operator>[-+*/^×÷−])|(?P<open>[(\[])|(?P<close>[)\]])|(?P<other>\w+|[^\s$€£`])"
)
_OPERATORS = str.maketrans("×÷−", "*/-")


def parse_formula(text: str, labels: Sequence[str] = ()) -> str | None:
    """The first formula: operands (tags or numbers) joined by operators, written without blanks and outer brackets.

    Prefix and case of tags, thousands commas, ".0", and ×, ÷, − do not matter; everything else does: "a / b" is not
    "(a / b) * 100", and "a / b * 100" is not "(a / b) * 100". A lone operand is an answer only if nothing else is there.

    >>> parse_formula("Margin = (US-GAAP:GrossProfit / us-gaap:Revenues) × 100")
    '(grossprofit/revenues)*100'
    >>> parse_formula("((7 - 2) / 3.0)")
    '(7-2)/3'
    """
    for line in text.splitlines():
        runs = _formula_runs(line)
        formulas = [run for run in runs if re.search(r"[\w)][-+*/^]+[(-]*\w", run)]
        if formulas:
            return _without_outer_brackets(formulas[0])
    line = _first_line(text)
    runs = _formula_runs(line)
    lone = len(runs) == 1 and (parse_tag(line) or re.fullmatch(r"[-+]?[\d,]+(\.\d+)?", line))
    return _without_outer_brackets(runs[0]) if lone else None


def _formula_runs(line: str) -> list[str]:
    """The longest stretches of a line that read operand, operator, operand, …; brackets need not match."""
    runs: list[list[str]] = [[]]
    operand_next = True
    for token in _FORMULA_TOKEN.finditer(line):
        kind = token.lastgroup
        fits = operand_next == (kind in ("tag", "number", "open")) or (operand_next and token[0] in "-−")
        if kind == "other" or not fits:
            runs.append([])
            operand_next = True
        if kind in ("tag", "number"):
            runs[-1].append(_operand(token))
            operand_next = False
        elif kind in ("open", "close") and (runs[-1] or kind == "open"):
            runs[-1].append("(" if kind == "open" else ")")
        elif kind == "operator" and (runs[-1] or token[0] in "-−"):
            runs[-1].append(token[0].translate(_OPERATORS))
            operand_next = True
    return ["".join(run) for run in runs if any(re.match(r"\w", piece) for piece in run)]


def _operand(token: re.Match[str]) -> str:
    if token["tag"]:
        return re.sub(rf"^{_PREFIX}", "", token["tag"], flags=re.IGNORECASE).lower()
    return repr(float(token["number"].replace(",", ""))).removesuffix(".0")


def _without_outer_brackets(formula: str) -> str:
    """Remove brackets that enclose the whole formula: "((a-b)/c)" gives "(a-b)/c", "(a)/(b)" stays."""
    while formula.startswith("(") and formula.endswith(")"):
        depth = 0
        for position, character in enumerate(formula):
            depth += (character == "(") - (character == ")")
            if depth == 0 and position < len(formula) - 1:
                return formula
        if depth != 0:
            return formula
        formula = formula[1:-1]
    return formula


def parse_text(text: str, labels: Sequence[str] = ()) -> str | None:
    """Free text, stripped; None if it holds no letter or digit."""
    return text.strip() if re.search(r"\w", text) else None


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


PARSERS: dict[str, Parser] = {
    "label": parse_label,
    "collapsed_sentiment": parse_collapsed_sentiment,
    "choice": parse_choice,
    "number": parse_number,
    "tag": parse_tag,
    "tag_list": parse_tag_list,
    "formula": parse_formula,
    "text": parse_text,
}
"""Parser name, as a benchmark's entry gives it -> function."""
