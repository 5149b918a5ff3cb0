"""Lists of all options on offer, as a question repeats them: "positive/negative/neutral", "A, B or C?". They are no answer.

A list is every label once or more, with nothing between them but commas, bars, slashes, semicolons, "or", "and", quotes, brackets, bullets
and the words for a level (strong, moderately, mildly). Some of the labels alone, "positive or neutral", are no such list: the first counts.
Of two labels ("Yes", "No") a comma or "and" alone makes no list unless nothing else is there: "Yes, no doubt" is an answer.
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
_PIECES = re.compile(
    r"(?:[\s\"'`*_()\[\]{},/|;•-]|\b(?:or|and|vs)\b|\b(?:strong|moderate|mild)(?:ly)?\b|\n\s*\(?\w{1,2}[.)])*",
    re.IGNORECASE,
)
_BEGUN = ("or", "and", "vs", "strongly", "moderately", "mildly")


def without_option_lists(text: str, labels: Sequence[str], denied: str = "") -> str:
    """The text with a sign in the place of each list of all labels; case does not matter.

    `denied` is a lookbehind for what makes a label no option, such as "not" in front of it.

    >>> without_option_lists("Is it Yes or No? No", ("Yes", "No")), without_option_lists("Yes, no doubt", ("Yes", "No"))
    ('Is it ∅? No', 'Yes, no doubt')
    """
    names = {label.lower() for label in labels if label}
    if len(names) < 2:
        return text
    one, run = _patterns(tuple(sorted(names, key=lambda name: (-len(name), name))), denied)

    def list_or_text(found: re.Match[str]) -> str:
        if {label.lower() for label in one.findall(found[0])} != names:
            return found[0]
        alone = not re.search(r"\w", text[: found.start()] + text[found.end() :])
        return "∅" if len(names) > 2 or alone or _DECISIVE.search(one.sub("", found[0])) else found[0]

    return run.sub(list_or_text, text)


def without_letter_lists(text: str, letters: str) -> str:
    """The text with a sign in the place of each list of options by letter: A, B, C and so on, or one such line for each of them.

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
    """Whether more text could turn the first label of this one into a part of a list of options (or already has)."""
    names = tuple(sorted({label.lower() for label in labels if label}, key=lambda name: (-len(name), name)))
    if len(names) < 2:
        return False
    one, run = _patterns(names, "")
    found = one.search(text)
    if not found:
        return True
    whole = run.match(text, found.start())
    rest = text[whole.end() if whole else found.end() :]
    between = _PIECES.match(rest)
    left = rest[between.end() if between else 0 :].lower()
    return any(word.startswith(left) for word in (*_BEGUN, *names)) or bool(re.search(r"\n\s*\(?\w{0,2}[.)]?\Z", rest))


@cache
def _patterns(names: tuple[str, ...], denied: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """(one label, two or more labels with joiners between them)."""
    label = rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)"
    return re.compile(label, re.IGNORECASE), re.compile(rf"{denied}{_LEVEL}{label}(?:{_JOINER}{label})+", re.IGNORECASE)
