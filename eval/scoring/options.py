"""Labels that are named but not answered: lists of options ("positive/negative/neutral", "A, B or C?") and denials
("not positive").

A list is two labels or more with nothing between them but commas, bars, slashes, semicolons, "or", "and", quotes,
brackets, bullets and the words for a level (strong, moderately, mildly). It is no answer if a bar, a slash, "or" or
"vs" is in it ("positive or neutral" decides nothing), if "mixed" is in front of it, or if it holds every label on
offer. Some of the labels with commas or "and" alone are no such list: the first counts. Of two labels ("Yes", "No") a
comma or "and" alone makes no list unless nothing else is there: "Yes, no doubt" is an answer.

A denial denies the labels behind it up to the end of its clause. The word "no" in front of a noun ("no doubt") is not
the answer "No".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

_WRAP = r"[\s\"'`*_()\[\]{}]*"
_LEVEL = r"(?:(?:strong|moderate|mild)(?:ly)?\s+)?"
_BULLET = r"[ \t]*\n{1,3}[ \t]*(?:[-*•]|\(?\w{1,2}[.)])[ \t]+"
_JOINER = rf"(?:{_WRAP}(?:(?:[,/|;]|\b(?:or|and|vs)\b){_WRAP}){{1,3}}|{_BULLET}){_LEVEL}"
_DECISIVE = re.compile(r"[/|]|\b(?:or|vs)\b", re.IGNORECASE)
_MIXED = re.compile(r"\bmixed\W{0,4}\Z", re.IGNORECASE)
_PIECES = re.compile(
    r"(?:[\s\"'`*_()\[\]{},/|;•-]|\b(?:or|and|vs)\b|\b(?:strong|moderate|mild)(?:ly)?\b|\n\s*\(?\w{1,2}[.)])*",
    re.IGNORECASE,
)
_BEGUN = ("or", "and", "vs", "strongly", "moderately", "mildly")


_DENIAL = (
    r"\b(?:not(?!\s+(?:only|just|surprisingly)\b)|cannot|\w+n['\u2019]t|neither|nor|{no}nothing|never|hardly|without|despite|rather\s+than"
    r"|instead\s+of|as\s+opposed\s+to|opposite\s+of|far\s+from|nowhere\s+near|anything\s+but|in\s+no\s+way|no\s+longer|lack(?:s|ing)?|fail(?:s|ed)?\s+to"
    r"|(?:free|absence|devoid)\s+of)(?![\w'\u2019-])"
)
_BEHIND = (
    r"[\"'`*]*(?:\?\W*(?:no|not)\b|(?:[ \t]+(?:sentiment|news|tone|label|answer))?[ \t]+(?:(?:it|this|that)[ "
    r"\t]+is(?:n['\u2019]t|[ \t]+not)\b(?![ \t]+\w)"
    r"|(?:is|was)n['\u2019]t\b|(?:(?:is|was|seems)|would[ \t]+be)[ "
    r"\t]+(?:not|never|wrong|incorrect|false|absent|excluded|ruled[ \t]+out|out[ \t]+of)\b))"
)
"""What denies the label in front of it."""
_OPEN_BEHIND = r"[\"'`*]*(?:\?\W*\w*|(?:[ \t]+[\w'\u2019]*){0,4})\Z"
"""What could become such a denial."""
_NOUNS = ("doubts", "questions", "wonder", "matter", "problems", "idea", "clue", "way", "longer", "need", "reasons")
"""Nouns that "no" precedes without being an answer; a plural includes its singular."""
_NO_NOUN = rf"(?:{'|'.join(re.sub('s$', 's?', noun) for noun in _NOUNS)})\b"
_NO = rf"no(?!\s+{_NO_NOUN})|"
_CLAUSE_END = re.compile(
    r"[;:,?!)\n\u2013\u2014]|\.(?!\d)|(?<=\s)-+(?=\s)|\bbut\b|\b(?:and|so)\s+(?:the|it|this|that)\b|\b(?:therefore|thus|hence|because)\b",
    re.IGNORECASE,
)
_STRUCK = re.compile(
    r"~~[^~]*~~|\[ \][^\n\[]*|\u2610[^\n\u2611]*|^[^\w\n]*[\u274c\u2717\u2718][^\n]*|\w+[ \t*]{0,3}[\u274c\u2717\u2718]",  # noqa: E501
    re.MULTILINE,
)
"""What is struck out in Markdown, crossed, or behind a check box that is not ticked."""
_DETERMINER = re.compile(
    rf"\bno(?=[ \t]+{_NO_NOUN}|\.[ \t]*\d)"
    r"|(?:(?<=\bthere is )|(?<=\bthere are )|(?<=\bthere was )|(?<=\bthere were )|(?<=\bhas )|(?<=\bhave )|(?<=\bwith "
    r"))no(?=[ \t]+\w)",
    re.IGNORECASE,
)
_OPEN_DETERMINER = re.compile(r"\bno\.?[ \t]*(\w*)\Z", re.IGNORECASE)


def without_denials(text: str, labels: Sequence[str]) -> str:
    """The text with a sign in the place of each label that is denied, struck out or not ticked, and of each "no" that
    is no answer.

    >>> without_denials("It is not really positive or neutral, but negative", ("negative", "neutral", "positive"))
    'It is not really ∅ or ∅, but negative'
    >>> without_denials("There is no doubt: yes", ("Yes", "No")), without_denials("~~Yes~~ No", ("Yes", "No"))
    ('There is ∅ doubt: yes', '∅ No')
    """
    text = _STRUCK.sub("∅", text)
    names = sorted((label for label in labels if label), key=lambda label: (-len(label), label))
    no_is_label = any(label.lower() == "no" for label in names)
    if no_is_label:
        text = _DETERMINER.sub("∅", text)
    one = _label(tuple(names))
    less = re.sub(rf"\bless\s+{one.pattern}(?=\s+than\b)", "less ∅", text, flags=re.IGNORECASE)
    text = re.sub(rf"(?<!∅ )\bthan\s+{one.pattern}", "than ∅", less, flags=re.IGNORECASE)
    text = re.sub(rf"{one.pattern}(?={_BEHIND})", "∅", text, flags=re.IGNORECASE)
    pieces, done = [], 0
    for denial in re.finditer(_DENIAL.format(no="" if no_is_label else _NO), text, re.IGNORECASE):
        if denial.start() < done:
            continue
        end = _CLAUSE_END.search(text, denial.end())
        until = end.start() if end else len(text)
        pieces += [text[done : denial.end()], one.sub("∅", text[denial.end() : until])]
        done = until
    return "".join((*pieces, text[done:]))


_CONDITION = (
    r"\bwould\s+be\s+[\"'`*(]*(?:\w+\s+){{0,2}}?{label}[\"'`*)]*\s+if\b"
    r".*?(?=[.;!?](?!\d)|\b(?:but|however)\b|,\s+(?:so|it|the|this)\b|$)"
)


def without_conditions(text: str, labels: Sequence[str]) -> str:
    """The text with a sign in the place of each label that would hold if something else did.

    >>> without_conditions("It would be positive if sales rose, but it is neutral", ("neutral", "positive"))
    'It ∅but it is neutral'
    """
    label = _label(tuple(sorted(filter(None, labels), key=len, reverse=True))).pattern
    return re.sub(_CONDITION.format(label=label), "∅", text, flags=re.IGNORECASE | re.MULTILINE)


def may_become_denial(text: str, labels: Sequence[str]) -> bool:
    """Whether more text could strike a label out, deny one from behind or make it depend on an "if", or take its last
    "no" for a word in front of a noun.
    """
    left = _OPEN_DETERMINER.search(text)
    noun = left is not None and (left[1].isdigit() or any(noun.startswith(left[1].lower()) for noun in _NOUNS))
    return (
        noun
        or "~~" in text
        or "would" in text.lower()
        or bool(re.search(_label(tuple(labels)).pattern + _OPEN_BEHIND, text, re.IGNORECASE))
    )


def without_option_lists(text: str, labels: Sequence[str]) -> str:
    """The text with a sign in the place of each list of options that decides nothing; case does not matter.

    >>> without_option_lists("Is it Yes or No? No", ("Yes", "No")), without_option_lists("Yes, no doubt", ("Yes", "No"))
    ('Is it ∅? No', 'Yes, no doubt')
    """
    names = {label.lower() for label in labels if label}
    if len(names) < 2:
        return text
    one, run = _patterns(tuple(sorted(names, key=lambda name: (-len(name), name))))

    def list_or_text(found: re.Match[str]) -> str:
        listed = {label.lower() for label in one.findall(found[0])}
        undecided = len(listed) > 1 and _DECISIVE.search(one.sub("", found[0]))
        alone = not re.search(r"\w", text[: found.start()] + text[found.end() :])
        undecided = undecided or _MIXED.search(found.string, 0, found.start())
        return "∅" if undecided or (listed == names and (len(names) > 2 or alone)) else found[0]

    return run.sub(list_or_text, text)


def without_letter_lists(text: str, letters: str) -> str:
    """The text with a sign in the place of each list of options by letter: A, B, C and so on, or one such line for each
    of them.

    Three letters are enough: questions may have fewer options than the benchmark.

    >>> without_letter_lists("A, B or C? B", "ABCD"), without_letter_lists("A. up\\nB. down\\nC. flat", "ABC")
    ('∅? B', '∅')
    """
    least = min(3, len(letters))
    for count in range(len(letters), least - 1, -1) if least > 1 else ():
        names = letters[:count]
        inline = rf"(?:{_JOINER}|[)\]]\s*[(\[])".join(rf"{letter}(?!\w)" for letter in names)
        lines = r"[^\n]*\n{1,2}".join(rf"[ \t]*[-*(]*{letter}\**[.:)][ \t]" for letter in names) + r"[^\n]*"
        text = re.sub(rf"(?<!\w){inline}|^{lines}", "∅", text, flags=re.MULTILINE)
    return text


def may_become_list(text: str, labels: Sequence[str]) -> bool:
    """Whether more text could turn a label of this one into a part of a list of options, or of labels with a score
    each.
    """
    names = tuple(sorted({label.lower() for label in labels if label}, key=lambda name: (-len(name), name)))
    if len(names) < 2:
        return False
    one, run = _patterns(names)
    found = list(one.finditer(text))
    for label in found:
        whole = run.match(text, label.start())
        rest = text[whole.end() if whole else label.end() :]
        between = _PIECES.match(rest)
        left = rest[between.end() if between else 0 :].lower()
        if any(word.startswith(left) for word in (*_BEGUN, *names)) or re.search(r"\n\s*\(?\w{0,2}[.)]?\Z", rest):
            return True
        if re.match(r"[\s\"'`*)]*(?:[:=|(-]|\Z)", rest):
            return True
        part = re.search(r"\w-\Z", text[: label.start()]) or rest.startswith("-")
        if not whole and not part:  # the answer: what comes later does not count
            return False
    return not found


@cache
def _patterns(names: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """(one label, two or more labels with joiners between them)."""
    one = _label(names)
    return one, re.compile(rf"{_LEVEL}{one.pattern}(?:{_JOINER}{one.pattern})+", re.IGNORECASE)


@cache
def _label(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)", re.IGNORECASE)
