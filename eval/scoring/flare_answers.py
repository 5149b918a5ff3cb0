"""Reading FLARE's answers out of generated text: numbers with their percent sign, yes and no, and lists of entities."""

from __future__ import annotations

import re
from collections.abc import Sequence

from eval.scoring.numbers import parse_number, typed

DECIMALS = 5
"""FinQA's programs round their results to so many."""
_PERCENT = re.compile(r"(\d[\d,]*(?:\.\d+)?|(?<![\d.])\.\d+)\s*(?:%|per\s?cent\b)", re.IGNORECASE)
_SCALED = re.compile(
    r"(?<=\d)\s*(?:hundred|thousand|lakh|crore|million|billion|trillion|mn|mln|mio|bn|mrd|tn|[kmb])\b", re.IGNORECASE
)
_YES_OR_NO = re.compile(r"(?:\A|(?<=answer is )|(?<=answer: ))\W*(yes|no)\b(?![ \t]+\d)", re.IGNORECASE)
_KINDS = {"person": "PER", "organization": "ORG", "organisation": "ORG", "location": "LOC"}
_ENTITY = re.compile(
    r"(?P<name>[^;|\n]+?)[\"'`*]*\s*(?:[,:|=(–—]|->|→|\s-\s|\bis\s+an?\b)[\s\"'`*(]*"
    r"(?P<kind>PER(?:SON)?|ORG(?:ANI[SZ]ATION)?|LOC(?:ATION)?)\b[\"'`*)\]]*[.,;|]?",
    re.IGNORECASE,
)
_MARK = re.compile(r"\A(?:[-*•]\s+|\(?\d{1,2}[.)]\s+)")
_AROUND = " \t\"'`*[]|"


def parse_flare_number(text: str, labels: Sequence[str] = ()) -> str | float | None:
    """Yes or no where the text begins with it or names it as the answer, else the number that is answered as `number`
    reads it, rounded to five decimals.

    As FinQA executes its programs, a percent sign divides by 100 ("93.5 %" is 0.935), and a scale behind a number is
    dropped ("$ 2,057 million" is 2057: answers are in the table's own unit).

    >>> parse_flare_number("-3.5 %"), parse_flare_number("($1,234)"), parse_flare_number("Yes, it rose")
    (-0.035, -1234.0, 'yes')
    """
    said = _YES_OR_NO.search(text)
    if said:
        return said[1].lower()
    value = parse_number(_SCALED.sub("", _as_fractions(text)))
    return None if value is None else round(value, DECIMALS) + 0.0


def scaled_number(text: str) -> float | None:
    """The same number with the scale behind it: "2 million" is 2000000.

    >>> scaled_number("$ 2 million"), scaled_number("none")
    (2000000.0, None)
    """
    value = parse_number(_as_fractions(text))
    return None if value is None else round(value, DECIMALS) + 0.0


def _as_fractions(text: str) -> str:
    """The text with each percentage as the number that it means.

    >>> _as_fractions("from 3,5 % to (12%)")
    'from 3.5e-2 to (12e-2)'
    """
    return _PERCENT.sub(r"\1e-2", typed(text))


def parse_entities(text: str, labels: Sequence[str] = ()) -> list[str | None] | None:
    """The entities of a list, "name, TYPE" each, in its order; TYPE is PER, ORG or LOC, or spelt out.

    One a line or several with a semicolon; a colon, a bar, a dash or brackets may stand for the comma; marks of lists
    and quotes are dropped. An entity that is named again stays there again.

    >>> parse_entities("1. Ann Lee, PER\\n2. Alba Bank (organization)")
    ['Ann Lee, PER', 'Alba Bank, ORG']
    """
    found: list[str | None] = []
    for line in text.splitlines():
        rest = _MARK.sub("", line.strip().lstrip("|"))
        for entity in _ENTITY.finditer(rest):
            name = " ".join(entity["name"].strip(_AROUND).split()).strip(", ")
            kind = _KINDS.get(entity["kind"].lower(), entity["kind"].upper())
            if name:
                found.append(f"{name}, {kind}")
    return found or None


def entity_tags(words: Sequence[str], entities: Sequence[str]) -> list[str]:
    """B-, I- and O for each word where the named entities are, at every place where their words are.

    The longest names come first and keep their words: of "Bank of Alba" and "Alba" inside it the first is tagged
    (PIXIU lets the one named last overwrite the other). Punctuation around a word does not count.

    >>> entity_tags("Bank of Alba , Alba".split(), ["Alba, LOC", "Bank of Alba, ORG"])
    ['B-ORG', 'I-ORG', 'I-ORG', 'O', 'B-LOC']
    """
    plain, tags = [_plain(word) for word in words], ["O"] * len(words)
    named = dict.fromkeys(entities)
    for entity in sorted(named, key=lambda entity: -len(entity.split())):
        name, _, kind = entity.rpartition(", ")
        own = [_plain(word) for word in name.split()]
        for start in range(len(plain) - len(own) + 1):
            place = slice(start, start + len(own))
            if own and plain[place] == own and set(tags[place]) == {"O"}:
                tags[place] = [f"B-{kind}", *[f"I-{kind}"] * (len(own) - 1)]
    return tags


def _plain(word: str) -> str:
    return word.strip("\"'“”„.,;:()") or word
