"""Reading a formula out of generated text: operands and operators, however they are typeset or said, in one canonical
spelling.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from eval.scoring.final_answer import WRITTEN
from eval.scoring.numbers import DASHES, DATE, FORM, SCALES, first_line, lone_number
from eval.scoring.tags import PREFIX, parse_tag

_FORMULA_TOKEN = re.compile(
    rf"(?P<tag>(?i:{PREFIX})[A-Za-z]\w*|(?<![\w:])[A-Z]\w*)"
    r"|(?P<number>(?<![\w.])(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w))(?:\s?(?P<scale>thousand|million|billion|trillion)\b)?"
    r"|(?P<operator>[-+*/^×÷−])|(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<other>\w+|[^\s$€£`])"
)
_OPERATORS = str.maketrans("×÷−", "*/-")
_LIST_MARK = re.compile(r"\A(?:\(\d{1,2}\)|\d{1,2}[.)])[ \t]+(?=\S)")
_DATED = re.compile(
    rf"(?<![-+*/(^])(?<![-+*/(^]\s)(?:{DATE}|{FORM}|\b\d{{4}}-\d{{4}}(?=:\s))(?!\s*[-+*/^×÷−)])", re.IGNORECASE
)
"""A date, a form or a period that is no part of a formula: one without it on the same line comes first."""
_PHRASE = re.compile(r"\b[A-Z][a-z]+(?: [A-Z][a-z]+)+\b")
"""What names an operand in words ("Net Income"): a formula without it on the same line comes first."""


def parse_formula(text: str, labels: Sequence[str] = ()) -> str | None:
    """The first formula: operands (tags or numbers) joined by operators, written without blanks and outer brackets.

    Prefix and case of tags, thousands commas, ".0", brackets that group nothing, ×, ÷, −, "divided by", "over",
    "times", "plus", "minus", "million" and how LaTeX writes them do not matter; everything else does: "a / b" is not
    "(a / b) * 100", and "a / b * 100" is not "(a / b) * 100". A fraction is a group. A lone tag is an answer only if
    nothing else is there, and so is a lone number: a line that is one number and no more, in any of the spellings that
    `number` reads ("$1,234.50", "5 %", "−5", "5e3", "5 × 10^3", "1.234,50", "5 million"; "(5)" is −5), is that number.

    >>> parse_formula("Margin = (US-GAAP:GrossProfit / us-gaap:Revenues) × 100")
    '(grossprofit/revenues)*100'
    >>> parse_formula("((7 - 2) / 3.0)")
    '(7-2)/3'
    """
    for line in text.splitlines():
        typed = _typed_formula(line)
        dateless = _formula_runs(_typed_formula(_DATED.sub("∅", line))) if _DATED.search(line) else []
        runs = [*dateless, *_formula_runs(_PHRASE.sub("∅", typed)), *_formula_runs(typed)]
        formulas = [run for run in runs if re.search(r"[\w)][-+*/^]+[(-]*\w", run)]
        if formulas and lone_number(line) is None:
            return _without_spare_brackets(formulas[0])
    line = first_line(text)
    number = lone_number(_LIST_MARK.sub("", line))
    if number is not None:
        return repr(number).removesuffix(".0")
    line = _typed_formula(line)
    runs = _formula_runs(line)
    return _without_spare_brackets(runs[0]) if len(runs) == 1 and parse_tag(line) else None


_FRACTION = re.compile(r"\\[cdt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_NEXT_OPERAND = r"(?=[\d$(\[{\\-]|us[-_\s]?gaap|[A-Z])"
_FORMULA_TYPESET = (
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<![\w)])\*\*([^*\n]+)\*\*(?![\w(])"), r"\1"),
    (re.compile(r"\\[cdt]?frac\s*(\d)\s*(\d)(?!\d)"), r"((\1)/(\2))"),
    (
        re.compile(
            r"\\(?:times|cdot|ast)\b|∗|(?<=[\w)\]}])\s*[·⋅•]|(?<=[\d)\]])\s+[xX]\s+(?=[\d(])|(?<=\w)\s+x\s+(?=[\d(])"
        ),
        " * ",
    ),
    (re.compile(r"\\div\b|[∕⁄]"), "/"),
    (re.compile(r"\\(?:left|right)\b|\\[()\[\]]|\\(?=[_:$%*/])"), ""),
    (re.compile(r"\b[Dd]ivid(?:e|ing)\s+(\S[^\n]*?)\s+by\s+"), r"(\1) / "),
    *(
        (re.compile(rf"(?<=[\w)\]}}%])\s+{words}\s+{_NEXT_OPERAND}"), f" {operator} ")
        for words, operator in {
            r"(?:divided\s+by|over)": "/",
            r"(?:times|multiplied\s+by)": "*",
            "plus": "+",
            "(?:minus|less)": "-",
        }.items()
    ),
    (re.compile(r"(?<=us)[\u2010\u2011](?=gaap)", re.IGNORECASE), "-"),
    (re.compile(rf"(?<=[\w)\]])\s*[{DASHES}]\s*(?=[\w$(\[])"), " - "),
)
"""How typesetting writes formulas -> how they are typed."""


def _typed_formula(text: str) -> str:
    """A text with its formulas as they are typed.

    >>> _typed_formula(r"\\frac{us-gaap:A}{us-gaap:B} \\times 100")
    '((us-gaap:A)/(us-gaap:B))  *  100'
    """
    text = WRITTEN.sub(r"\1", text)
    while (inner := _FRACTION.sub(r"((\1)/(\2))", re.sub(r"\^\s*\{([^{}]*)\}", r"^(\1)", text))) != text:
        text = inner
    for typeset, plain in _FORMULA_TYPESET:
        text = typeset.sub(plain, text)
    return text


def _formula_runs(line: str) -> list[str]:
    """The longest stretches of a line that read operand, operator, operand, …; brackets need not match."""
    runs: list[list[str]] = [[]]
    operand_next = True
    for token in _FORMULA_TOKEN.finditer(line):
        kind = "number" if token["number"] else token.lastgroup
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
        return re.sub(rf"^{PREFIX}", "", token["tag"], flags=re.IGNORECASE).lower()
    value = float(token["number"].replace(",", "")) * SCALES.get(token["scale"] or "", 1.0)
    return repr(float(f"{value:.15g}")).removesuffix(".0")


def _without_spare_brackets(formula: str) -> str:
    """Remove brackets that group nothing: around the whole, around one operand, around brackets, around a signed
    operand at the start.

    >>> (_without_spare_brackets("((a-b)/(c))"), _without_spare_brackets("((-5)/((3-1)))"),
    ... _without_spare_brackets("(a-b)/(c-d)"))
    ('(a-b)/c', '-5/(3-1)', '(a-b)/(c-d)')
    """
    opened: list[int] = []
    pairs: dict[int, int] = {}
    for place, character in enumerate(formula):
        if character == "(":
            opened.append(place)
        elif character == ")" and opened:
            pairs[opened.pop()] = place
    unmatched = formula.count("(") + formula.count(")") > 2 * len(pairs)
    for begin, end in pairs.items():
        inside, before, behind = formula[begin + 1 : end], formula[:begin].strip("("), formula[end + 1 :]
        whole = not unmatched and not (formula[:begin] or behind)
        signed = not before and not behind.startswith("^") and re.fullmatch(r"-\w+(?:\.\w+)?", inside)
        if whole or signed or re.fullmatch(r"\w+(?:\.\w+)?", inside) or pairs.get(begin + 1) == end - 1:
            return _without_spare_brackets(f"{formula[:begin]}{inside}{behind}")
    return formula
