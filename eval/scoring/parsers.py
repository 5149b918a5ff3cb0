"""Reading an answer out of generated text, strictly but fairly: one parser per kind of answer, `None` where there is no
answer.

A parser takes the generated text (without the prompt) and the benchmark's closed label set, and returns a canonical
answer, equal for two texts exactly when they say the same. Targets go through the same parser. FinLoRA's own reading is
`eval.scoring.finlora.finlora_score_row`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from eval.scoring.final_answer import WRITTEN, is_refusal
from eval.scoring.flare_answers import parse_entities, parse_flare_number
from eval.scoring.formulas import parse_formula
from eval.scoring.numbers import first_line, parse_number
from eval.scoring.options import without_conditions, without_denials, without_letter_lists, without_option_lists
from eval.scoring.tags import parse_tag, parse_tag_list

Answer = str | float | list[str | None]
Parser = Callable[[str, Sequence[str]], Answer | None]


_HYPHENS = "-\u2010\u2011"
LEADS = (
    "answer", "sentiment", "label", "classif", "categor", "entity", "verdict", "conclu", "therefore", "thus", "hence",
    "overall", "choose",
    "go with", "leans",
)  # fmt: skip
"""Beginnings of the words with which a text names the label that it decides on."""
LAST_LINES = ("\n>", "\n**", "\n__", "\n|")
"""How the last line begins where it is a label that is marked as the answer."""
_DECIDED = (
    rf"(?:\b(?:{'|'.join(LEADS)})\w*(?:[^.;:!?\n]{{0,60}}?\b(?:is|be|as|with|(?:leans|tends|points|tilts)(?:[ "
    rf"\t]+towards?)?):?|(?:(?<=choose)|(?<=with)|(?<=leans)(?:[ \t]+towards?)?)[ \t]|(?![ "
    rf"\t]+\w)[^\w.;!?]{{0,40}})"
    r"[\s\"'`*_(\[{$\\|>:]*(?:(?:an?|the|as|to|be|most|more|very|best|considered|classified|described|seen|\w+ly)\s+){0,4}"
    rf"|(?:{'|'.join(map(re.escape, LAST_LINES))})[^\w\n]*(?=[\w ]{{1,30}}\W*\Z))"
)
"""What a text says in front of the label that it decides on."""
_NEXT_QUESTION = re.compile(r"\n\s*(?:input|question|instruction)\s*:", re.IGNORECASE)


def parse_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that occurs first as a whole word, in the label set's own spelling; case does not matter.

    Unless the first line is a label and no more, the last one that is named as the answer comes first: behind "the
    sentiment is", "Label:", "### Answer", "therefore", … (`LEADS`), or alone on a last line that is marked (">
    negative", "**negative**"). Of labels with a score or a yes or no each ("negative: 10%, positive: 90%") the largest
    counts. Where two labels start at the same place the longer one wins. A hyphen binds: "non-negative" holds no label,
    but "strong-negative" is "strong negative". What does not count: a label that is denied in the same clause ("not",
    "hardly", "anything but positive"; "positive it is not"), struck out or behind an empty check box; a list that
    decides nothing ("positive or neutral", all labels, "mixed (positive and negative)"); what "would be positive if …"
    says, where more is said; "no" in front of a noun ("no doubt") where No is a label. Full-width letters are letters.
    A text that begins with a refusal ("I cannot tell whether it is positive or negative") holds none.

    >>> parse_label("It is Positive, not negative.", ["negative", "positive"])
    'positive'
    """
    longest_first = sorted((label for label in labels if label), key=lambda label: (-len(label), label))
    if not longest_first or is_refusal(text):
        return None
    text = re.sub(r"\b_+|_+\b", "", text if text.isascii() else unicodedata.normalize("NFKC", text))
    text = re.sub(rf"\b((?:strong|moderate|mild)(?:ly)?)[{_HYPHENS}](?=\w)", r"\1 ", text)
    decided = without_conditions(text, longest_first)
    if decided != text and (answer := parse_label(decided, labels)):
        return answer
    text = without_option_lists(without_denials(text, longest_first), longest_first)
    words = "|".join(f"({re.escape(label)})" for label in longest_first)
    bound = re.compile(rf"(?<!\w)(?<!\w[{_HYPHENS}])(?:{words})(?!\w)(?![{_HYPHENS}]\w)", re.IGNORECASE)
    found = _scored_highest(text, bound) or bound.search(text)
    if found and not bound.fullmatch(re.sub(r"\A\W+|\W+\Z", "", first_line(text))):
        own = _NEXT_QUESTION.split(text, maxsplit=1)[0]
        named = list(re.compile(_DECIDED + bound.pattern, re.IGNORECASE).finditer(own))
        found = named[-1] if named else found
    return longest_first[found.lastindex - 1] if found and found.lastindex else None


_SCORE = re.compile(r"[\"'`*)]*\s*[:=|(-]\s*(\d+(?:\.\d+)?|\.\d+|(?:yes|true|no|false)\b)", re.IGNORECASE)


def _scored_highest(text: str, label: re.Pattern[str]) -> re.Match[str] | None:
    """The label with the largest score, if a text's first label and at least one more have a score each."""
    scores: dict[str, tuple[float, re.Match[str]]] = {}
    for found in label.finditer(text):
        score = _SCORE.match(text, found.end())
        if score:
            number = {"y": 1.0, "t": 1.0, "n": 0.0, "f": 0.0}.get(score[1][0].lower())
            scores.setdefault(found[0].lower(), (float(score[1]) if number is None else number, found))
        elif not scores:
            return None
    return max(scores.values(), key=lambda pair: pair[0])[1] if len(scores) > 1 else None


def parse_collapsed_sentiment(text: str, labels: Sequence[str]) -> str | None:
    """The first of negative, neutral and positive: "strong", "moderately" and "mildly" are dropped (FinLoRA's reading
    of NWGI).

    >>> parse_collapsed_sentiment("mildly negative", [])
    'negative'
    """
    return parse_label(text, ("negative", "neutral", "positive"))


_LETTER_ENDS = r"(?=\s*(?:$|[.,:;!)\]\n*\"`|]|['\u2019](?!\w)|[-–—]+\s|(?:because|since)\b))"
"""What may follow an option's letter, so that the article in "A company issues bonds" is not option A."""


def parse_choice(text: str, labels: Sequence[str]) -> str | None:
    """The letter of a multiple-choice answer, upper case, if it is one of `labels`.

    Tried in this order: the text begins with a letter ("B", "B.", "(C)", "D) 5 %"); "final answer", then "answer is",
    "option is" or "choice is" names one; "B is correct"; a sentence begins with one; "answer", "option", "choice" or
    "it is" in front of one; a letter in brackets anywhere; a lone capital followed by punctuation, if no other letter
    is alone. A list of the options ("A, B or C?", "A. B. C.", or a line for each) is no answer, and neither is a letter
    that is denied ("not A", "A is wrong", "eliminate A"). Wide and circled letters, and LaTeX around a letter, count as
    the letter. Small letters count only where the text begins with one or "Answer:" is followed by one, and brackets,
    punctuation or the end follow.

    >>> parse_choice("A company should disclose it, so the answer is C.", ["A", "B", "C"])
    'C'
    """
    letters = "".join(label for label in labels if len(label) == 1).upper()
    if not letters or is_refusal(text):
        return None
    text = _plain(unicodedata.normalize("NFKC", text)).replace("_", " ").replace("。", ". ")
    text = re.sub(r"答案\s*[是为為:]", "\nAnswer: ", text)
    decided = without_conditions(text, tuple(letters))
    if decided != text and (answer := parse_choice(decided, labels)):
        return answer
    text = re.sub(rf"\A\s*(?:[{letters}][.)]\s*){{3,}}", "", text)
    text = without_letter_lists(_without_denied_letters(text, letters), letters)
    upper, either = f"[{letters}]", f"[{letters}{letters.lower()}]"
    small_ends = r"(?=\s*(?:$|[.:;)\]\n*|]))"
    keyword = r"(?i:\b(?:answer|option|choice)\b)"
    named = rf"{keyword}[\"'`*]*\s*[:=]?\s*[(\[*\"'`]*(?:({upper}){_LETTER_ENDS}|({either}){small_ends})"
    right = r"[)\]:.*]*[^\w\n]{0,3}(?:[^\nA-Za-z]{0,20}[-–—:=→])?\s*(?:✅|✓|✔|☑|(?i:(?:is\s+)?(?:the\s+)?(?:best\s+)?(?:correct|right|true|answer|choice))\b)"  # noqa: E501
    patterns = (
        rf"^[\s(\[*\"'`>|#-]*(?:({upper}){_LETTER_ENDS}|({either}){small_ends})",
        rf"(?i:\bfinal)\s+{named}",
        rf"{keyword}\s+(?i:is|would\s+be|should\s+be)\s*:?\s*(?i:option\s+)?[(\[*\"'`]*(?:({upper})\b|({either}){small_ends})",
        rf"(?<![\w'’])({upper}){right}",
        rf"^[\s(\[*\"'`]*({upper})\s+is\b",
        named,
        rf"(?i:\bit(?:\s+is|['’]s)\s+)[(\[*\"'`]*({upper})(?=\W*[.,;\n]|\W*$)",
        rf"[(\[]({upper})[)\]]",
    )
    for pattern in patterns:
        found = re.search(pattern, text)
        if found:
            return next(group for group in found.groups() if group).upper()
    alone = set(re.findall(rf"(?<![\w'’])({upper})(?!['’]?\w)", text))
    ends = r"(?=[.:;)\]]|\s*$|\s+is\W*$)"
    return alone.pop() if len(alone) == 1 and re.search(rf"(?<![\w'’]){upper}{ends}", text) else None


def _without_denied_letters(text: str, letters: str) -> str:
    """A text with a sign in the place of the letters that it rules out.

    >>> _without_denied_letters("Eliminate A and (C). The answer is not B; D is wrong.", "ABCD")
    'Eliminate ∅. The answer is not ∅; ∅ is wrong.'
    """
    letter = rf"[(\[*\"'`]*(?<!\w)[{letters}](?!['’]?\w)[)\]*\"'`]*"
    several = rf"{letter}(?:\s*(?:,|\bor\b|\bnor\b|\band\b)+\s*{letter})*"
    denial = r"(?i:\b(?:not|neither|nor|eliminat(?:e|es|ed|ing)|rul(?:e|es|ed|ing)\s+out|exclud(?:e|es|ed|ing))|n['’]t)"
    wrong = r"(?i:incorrect|wrong|false)\b"
    behind = rf"(?i:is|are|was|were)(?:n['’]t\b|\s+(?i:not|never|eliminated|excluded|ruled\s+out)\b|\s+{wrong})|[^\nA-Za-z]{{0,20}}(?:{wrong}|[❌✗✘])"  # noqa: E501
    text = re.sub(rf"({denial}\s+(?i:(?:options?|choices?|answers?)\s+)?){several}", r"\1∅", text)
    return re.sub(rf"{several}[.:]?(?=\s*(?:{behind}))", "∅", text)


def _plain(text: str) -> str:
    """A text without LaTeX's marks of formulas and of upright text.

    >>> _plain(r"\\(\\text{B}\\) or $C$")
    'B or C'
    """
    return re.sub(r"\\[()]|\$", "", WRITTEN.sub(r"\1", text))


def parse_text(text: str, labels: Sequence[str] = ()) -> str | None:
    """Free text, stripped; None if it holds no letter or digit."""
    return text.strip() if re.search(r"\w", text) else None


def parse_flare_label(text: str, labels: Sequence[str]) -> str | None:
    """As `label` does. Texts are decoded to the budget, since PIXIU's rule looks for labels anywhere in them."""
    return parse_label(text, labels)


PARSERS: dict[str, Parser] = {
    "label": parse_label,
    "collapsed_sentiment": parse_collapsed_sentiment,
    "choice": parse_choice,
    "number": parse_number,
    "tag": parse_tag,
    "tag_list": parse_tag_list,
    "formula": parse_formula,
    "text": parse_text,
    "flare_label": parse_flare_label,
    "flare_number": parse_flare_number,
    "entities": parse_entities,
}
"""Parser name, as a benchmark's entry gives it -> function."""
