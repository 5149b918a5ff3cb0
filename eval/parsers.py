"""Reading an answer out of generated text, strictly but fairly: one parser per kind of answer, `None` where there is no answer.

A parser takes the generated text (without the prompt) and the benchmark's closed label set, and returns a canonical answer: two
texts give equal values exactly when they say the same. Targets go through the same parser. These are the honest readings; what
FinLoRA's own evaluator takes as the answer is `eval.scoring.finlora_score_row`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from eval.numbers import DASHES, lone_number, parse_number
from eval.options import without_denials, without_letter_lists, without_option_lists
from eval.said import WRITTEN, is_refusal

Answer = str | float | list[str | None]
Parser = Callable[[str, Sequence[str]], Answer | None]


_HYPHENS = "-\u2010\u2011"
LABEL_NAMED = re.compile(r"\b(?:answer|sentiment)(?: is|:)[\s\"'`*_(\[]*(?:(?:a|an|the)\s+)?", re.IGNORECASE)
"""What a text says in front of the label that it decides on."""
_NEXT_QUESTION = re.compile(r"\n\s*(?:input|question|instruction)\s*:", re.IGNORECASE)


def parse_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that occurs first as a whole word, in the label set's own spelling; case does not matter.

    Unless the first line is a label and no more, one behind the last "answer is", "answer:", "sentiment is" or "sentiment:" comes first. Of
    labels with a score each ("negative: 10%, positive: 90%") the largest counts. Where two labels start at the same place the longer one
    wins. A hyphen binds: "non-negative" holds no label. What does not count: a label behind a denial ("not", "no", "neither", "hardly",
    "without", "rather than", …) in the same clause, struck out or behind an empty check box; a list that decides nothing ("positive or
    neutral", all labels); "no" in front of a noun ("no doubt") where No is a label. Full-width letters are letters. A text that begins with
    a refusal ("I cannot tell whether it is positive or negative") holds none.

    >>> parse_label("It is Positive, not negative.", ["negative", "positive"])
    'positive'
    """
    longest_first = sorted((label for label in labels if label), key=lambda label: (-len(label), label))
    if not longest_first or is_refusal(text):
        return None
    text = text if text.isascii() else unicodedata.normalize("NFKC", text)
    text = without_option_lists(without_denials(text, longest_first), longest_first)
    words = "|".join(f"({re.escape(label)})" for label in longest_first)
    bound = re.compile(rf"(?<!\w)(?<!\w[{_HYPHENS}])(?:{words})(?!\w)(?![{_HYPHENS}]\w)", re.IGNORECASE)
    found = _scored_highest(text, bound) or bound.search(text)
    first_line = re.sub(r"\A\W+|\W+\Z", "", _first_line(text))
    if found and not bound.fullmatch(first_line):
        own = _NEXT_QUESTION.split(text, maxsplit=1)[0]
        named = [label for lead in LABEL_NAMED.finditer(own) if (label := bound.match(own, lead.end()))]
        found = named[-1] if named else found
    return longest_first[found.lastindex - 1] if found and found.lastindex else None


def _scored_highest(text: str, label: re.Pattern[str]) -> re.Match[str] | None:
    """The label with the largest score, if a text's first label and at least one more have a score each."""
    scores: dict[str, tuple[float, re.Match[str]]] = {}
    for found in label.finditer(text):
        score = re.compile(r"[\"'`*]*\s*[:=]\s*(\d+(?:\.\d+)?|\.\d+)").match(text, found.end())
        if score:
            scores.setdefault(found[0].lower(), (float(score[1]), found))
        elif not scores:
            return None
    return max(scores.values(), key=lambda pair: pair[0])[1] if len(scores) > 1 else None


def parse_collapsed_sentiment(text: str, labels: Sequence[str]) -> str | None:
    """The first of negative, neutral and positive: "strong", "moderately" and "mildly" are dropped (FinLoRA's reading of NWGI).

    >>> parse_collapsed_sentiment("mildly negative", [])
    'negative'
    """
    return parse_label(text, ("negative", "neutral", "positive"))


_LETTER_ENDS = r"(?=\s*(?:$|[.,:;!)\]\n*\"`]|['\u2019](?!\w)|[-–—]+\s|(?:is|because|since)\b))"
"""What may follow an option's letter, so that the article in "A company issues bonds" is not option A."""


def parse_choice(text: str, labels: Sequence[str]) -> str | None:
    """The letter of a multiple-choice answer, upper case, if it is one of `labels`.

    Tried in this order: the text begins with a letter ("B", "B.", "(C)", "D) 5 %"); "final answer", then "answer", "option" or "choice"
    names one ("The correct answer is D"); a letter in brackets anywhere; a lone capital followed by punctuation, if no other letter
    is alone. A list of the options ("A, B or C?", or a line for each) is no answer, and neither is a letter that is denied ("not A", "A is
    wrong", "eliminate A"). Wide and circled letters, and LaTeX around a letter, count
    as the letter. Small letters count only where the text begins with one or "Answer:" is followed by one, and brackets, punctuation or the
    end follow.

    >>> parse_choice("A company should disclose it, so the answer is C.", ["A", "B", "C"])
    'C'
    """
    letters = "".join(label for label in labels if len(label) == 1).upper()
    if not letters or is_refusal(text):
        return None
    text = _without_denied_letters(without_letter_lists(_plain(unicodedata.normalize("NFKC", text)), letters), letters)
    upper, either = f"[{letters}]", f"[{letters}{letters.lower()}]"
    small_ends = r"(?=\s*(?:$|[.:;)\]\n*]))"
    keyword = r"(?i:\b(?:answer|option|choice)\b)"
    named = rf"{keyword}[\"'`*]*\s*[:=]?\s*[(\[*\"'`]*(?:({upper}){_LETTER_ENDS}|({either}){small_ends})"
    patterns = (
        rf"^[\s(\[*\"'`]*(?:({upper}){_LETTER_ENDS}|({either}){small_ends})",
        rf"(?i:\bfinal)\s+{named}",
        rf"{keyword}\s+(?i:is|would\s+be|should\s+be)\s*:?\s*(?i:option\s+)?[(\[*\"'`]*({upper})\b",
        named,
        rf"[(\[]({upper})[)\]]",
    )
    for pattern in patterns:
        found = re.search(pattern, text)
        if found:
            return next(group for group in found.groups() if group).upper()
    alone = set(re.findall(rf"(?<![\w'’])({upper})(?!['’]?\w)", text))
    ends = r"(?=[.:;)\]]|\s*$|\s+is\s+(?:correct|right|true)\b)"
    return alone.pop() if len(alone) == 1 and re.search(rf"(?<![\w'’]){upper}{ends}", text) else None


def _without_denied_letters(text: str, letters: str) -> str:
    """A text with a sign in the place of the letters that it rules out.

    >>> _without_denied_letters("Eliminate A and (C). The answer is not B; D is wrong.", "ABCD")
    'Eliminate ∅. The answer is not ∅; ∅ is wrong.'
    """
    letter = rf"[(\[*\"'`]*(?<!\w)[{letters}](?!['’]?\w)[)\]*\"'`]*"
    several = rf"{letter}(?:\s*(?:,|\bor\b|\bnor\b|\band\b)+\s*{letter})*"
    denial = r"(?i:\b(?:not|neither|nor|eliminat(?:e|es|ed|ing)|rul(?:e|es|ed|ing)\s+out|exclud(?:e|es|ed|ing))|n['’]t)"
    behind = r"(?i:is|are|was|were)(?:n['’]t\b|\s+(?i:not|never|incorrect|wrong|false|eliminated|excluded|ruled\s+out)\b)"
    text = re.sub(rf"({denial}\s+(?i:(?:options?|choices?|answers?)\s+)?){several}", r"\1∅", text)
    return re.sub(rf"{several}(?=\s*(?:{behind}))", "∅", text)


def _plain(text: str) -> str:
    """A text without LaTeX's marks of formulas and of upright text.

    >>> _plain(r"\\(\\text{B}\\) or $C$")
    'B or C'
    """
    return re.sub(r"\\[()]|\$", "", WRITTEN.sub(r"\1", text))


_PREFIX = r"us[-_\s]?gaap\s*[:_]\s*"
_TAG = re.compile(rf"(?i:{_PREFIX})([A-Za-z]\w*)|(?<![\w:])([A-Z][a-z]\w*[A-Z]\w*)")
_WORD = re.compile(r"[A-Za-z]\w*")
_NAMED_TAG = re.compile(r"""\b(?:tag|answer)\s*(?:is|:)\s*["'`*]*([A-Z]\w+)["'`*]*(?=\s*[.,;]?\s*$)""", re.MULTILINE)
_LIST_MARK = re.compile(r"^\s*(?:[-*•]|\(?(?:\d{1,3}|[a-z])[.)])\s+")


def parse_tag(text: str, labels: Sequence[str] = ()) -> str | None:
    """The first US GAAP element name: prefixed (`us-gaap:Assets`), in camel case (`NetIncomeLoss`), or a line of one word.

    A name behind "tag is" or "answer is" counts too. Returned in lower case and without the prefix: no two elements differ only in that.

    >>> parse_tag("The tag is US-GAAP:NetIncomeLoss."), parse_tag("Assets"), parse_tag("total assets")
    ('netincomeloss', 'assets', None)
    """
    text = re.sub(r"\\(?=[_:])", "", re.sub(f"[{DASHES}]", "-", text))
    found = _TAG.search(text)
    if found:
        return (found[1] or found[2]).lower()
    line = _LIST_MARK.sub("", _first_line(text)).strip("`'\"*.<>[]() ")
    named = _NAMED_TAG.search(text)
    word = line if _WORD.fullmatch(line) else named[1] if named else None
    return word.lower() if word else None


_LIST_LEAD = re.compile(
    r"\A\W*(?:[A-Za-z'\u2019-]+ +)*(?:tags?|answers?|elements?|concepts?|list|follows|following)\b[^:,;|\n]*:\W*?\s+",
    re.IGNORECASE,
)
_SIDE_BY_SIDE = re.compile(rf"({_PREFIX}[A-Za-z]\w*)[ \t]+(?={_PREFIX}[A-Za-z])", re.IGNORECASE)
_KEY = re.compile(r"""\A[{\s]*["']?\d{1,3}["']?\s*:\s*(?=["'\w])""")


def parse_tag_list(text: str, labels: Sequence[str] = ()) -> list[str | None] | None:
    """The tags of a list, by position: None where a place holds no tag. Numbers, dashes, brackets and quotes of lists are dropped.

    So are words with a colon in front of the list ("The tags are:") and the keys of an object; tags with a prefix may stand side by side.

    >>> parse_tag_list("DebtInstrumentFaceAmount, us-gaap:Assets,,Revenues")
    ['debtinstrumentfaceamount', 'assets', None, 'revenues']
    """
    text = _LIST_LEAD.sub("", text)
    if text.lstrip().startswith("("):
        text = re.sub(r"(?<=\w)\s+(?=\(\d{1,3}\)\s)", ", ", text)
    text = _SIDE_BY_SIDE.sub(r"\1, ", text)
    tags = [parse_tag(_KEY.sub("", piece).strip("{} ")) for piece in split_tags(text)]
    return tags if any(tags) else None


def split_tags(text: str) -> list[str]:
    """The places of a list separated by commas, semicolons, bars, line ends or "and", stripped; a place may be empty.

    >>> split_tags(" Assets,, us-gaap:Goodwill "), split_tags("Assets, Goodwill, and Revenues")
    (['Assets', '', 'us-gaap:Goodwill'], ['Assets', 'Goodwill', 'Revenues'])
    """
    return re.split(r"\s*(?:[,;|\n]\s*(?:and\s)?|\sand\s)\s*", text.strip())


_FORMULA_TOKEN = re.compile(
    rf"(?P<tag>(?i:{_PREFIX})[A-Za-z]\w*|(?<![\w:])[A-Z]\w*)"
    r"|(?P<number>(?<![\w.])(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w))"
    r"|(?P<operator>[-+*/^×÷−])|(?P<open>[(\[])|(?P<close>[)\]])|(?P<other>\w+|[^\s$€£`])"
)
_OPERATORS = str.maketrans("×÷−", "*/-")


def parse_formula(text: str, labels: Sequence[str] = ()) -> str | None:
    """The first formula: operands (tags or numbers) joined by operators, written without blanks and outer brackets.

    Prefix and case of tags, thousands commas, ".0", brackets around one operand, ×, ÷, − and how LaTeX writes them do not matter; everything
    else does: "a / b" is not "(a / b) * 100", and "a / b * 100" is not "(a / b) * 100". A lone tag is an answer only if nothing else is
    there, and so is a lone number: a line that is one number and no more, in any of the spellings that `number` reads ("$1,234.50", "5 %",
    "−5", "5e3", "5 × 10^3", "1.234,50", "5 million"; "(5)" is −5), is that number.

    >>> parse_formula("Margin = (US-GAAP:GrossProfit / us-gaap:Revenues) × 100")
    '(grossprofit/revenues)*100'
    >>> parse_formula("((7 - 2) / 3.0)")
    '(7-2)/3'
    """
    for line in text.splitlines():
        runs = _formula_runs(_typed_formula(line))
        formulas = [run for run in runs if re.search(r"[\w)][-+*/^]+[(-]*\w", run)]
        if formulas and lone_number(line) is None:
            return _without_outer_brackets(formulas[0])
    line = _first_line(text)
    number = lone_number(line)
    if number is not None:
        return repr(number).removesuffix(".0")
    line = _typed_formula(line)
    runs = _formula_runs(line)
    return _without_outer_brackets(runs[0]) if len(runs) == 1 and parse_tag(line) else None


_FORMULA_TYPESET = (
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"(\1)/(\2)"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\(?:times|cdot|ast)\b|[·∗⋅•](?=\s)|(?<=\d)\s+[xX]\s+(?=\d)"), " * "),
    (re.compile(r"\\div\b|[∕⁄]"), "/"),
    (re.compile(r"\\(?:left|right)\b|\\[()]|\\(?=[_:$%])"), ""),
    (re.compile(r"(?<=us)[\u2010\u2011](?=gaap)", re.IGNORECASE), "-"),
    (re.compile(rf"(?<=[\w)\]])\s*[{DASHES}]\s*(?=[\w$(\[])"), " - "),
)
"""How typesetting writes formulas -> how they are typed."""


def _typed_formula(text: str) -> str:
    """A text with its formulas as they are typed.

    >>> _typed_formula(r"\\frac{us-gaap:A}{us-gaap:B} \\times 100")
    '(us-gaap:A)/(us-gaap:B)  *  100'
    """
    text = WRITTEN.sub(r"\1", text)
    for typeset, plain in _FORMULA_TYPESET:
        text = typeset.sub(plain, text)
    return text


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
    """Remove brackets around the whole formula and around one operand: "((a-b)/(c))" gives "(a-b)/c", "(a-b)/(c-d)" stays."""
    while (bare := re.sub(r"(?<![\w)])\((\w+(?:\.\w+)?)\)(?![\w(])", r"\1", formula)) != formula:
        formula = bare
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
