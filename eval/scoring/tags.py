"""Reading US GAAP element names out of generated text, one or a list of them by position."""

from __future__ import annotations

import re
from collections.abc import Sequence

from eval.scoring.numbers import CURRENCY, DASHES, first_line

PREFIX = r"us[-_\s]?gaap(?:\s*[:_]\s*[\"'`]*|[./](?=\w))"
PREFIXED = re.compile(rf"(?i:{PREFIX})([A-Za-z]\w*)")
_CAMEL_CASE = re.compile(r"(?<![\w:])([A-Z][a-z]\w*[A-Z]\w*)")
_WORD = re.compile(r"[A-Za-z]\w*")
_NAMED_TAG = re.compile(
    r"""(?i:\b(?:tag|answer|element))(?:\s+is\b|\W*?[:\n])[\s"'`*:]*([A-Z]\w+)["'`*]*(?=\s*[.,;]?\s*$)""", re.MULTILINE
)
_LIST_MARK = re.compile(r"^\s*(?:[-*•]|\(?(?:\d{1,3}|[a-z])[.)])\s+")

_NOT_BUT = re.compile(rf"\bnot\s+[\"'`*]*(?:{PREFIX})?\w+[\"'`*]*,?\s+but\b", re.IGNORECASE)
_NO_TAG = ("none", "null")


def parse_tag(text: str, labels: Sequence[str] = ()) -> str | None:
    """The first US GAAP element name: prefixed (`us-gaap:Assets`), in camel case (`NetIncomeLoss`), or a line of one
    word.

    A name behind "tag is" or "Answer:" counts too. On a line a prefixed name comes first, then a named one; what
    "not … but" denies does not count, and "None" is no tag. Returned in lower case and without the prefix: no two
    elements differ only in that.

    >>> parse_tag("The tag is US-GAAP:NetIncomeLoss."), parse_tag("Assets"), parse_tag("total assets")
    ('netincomeloss', 'assets', None)
    """
    text = re.sub(r"\\(?=[_:])", "", re.sub(f"[{DASHES}]", "-", text))
    text = _NOT_BUT.sub("", text)
    for line in PREFIXED.sub(r"us-gaap:\1", text).splitlines():
        found = PREFIXED.search(line) or _NAMED_TAG.search(line) or _CAMEL_CASE.search(line)
        if found:
            return found[1].lower()
    line = _LIST_MARK.sub("", first_line(text)).strip("`'\"*.<>[]() ")
    named = _NAMED_TAG.search(text)
    word = line if _WORD.fullmatch(line) else named[1] if named else None
    return word.lower() if word and word.lower() not in _NO_TAG else None


_LIST_LEAD = re.compile(
    r"\A(?:\W*(?:sure|certainly|of course|absolutely|okay)\b[!.,:])?(?:\W*(?:[A-Za-z'\u2019-]+ "
    r"+)*(?:tags?|answers?|elements?|concepts?|list|follows|following)\b(?:[^:,;|\n]*:\W*?|\s+are)\s+)?",
    re.IGNORECASE,
)
_SIDE_BY_SIDE = re.compile(rf"({PREFIX}[A-Za-z]\w*)[ \t]+(?={PREFIX}[A-Za-z])", re.IGNORECASE)
_KEY = re.compile(r"""\A[{\s]*["']?(?:[A-Za-z]+\s+)?\d{1,3}["']?\s*:\s*(?=["'\w])""")
_VALUE_KEY = re.compile(
    rf"(?<![\w.])(?:{CURRENCY}\s?\d[\d,]*|\d{{1,3}}(?:,\d{{3}})+)(?:\.\d+)?(?:\s?[mb]illion)?"
    r"[\"'`*)]*:\s*(?=[\"'`*]*[A-Za-z])"
)
"""An amount in front of its tag; the commas in it separate nothing."""
_REMARK = re.compile(r"\n[^\w\n]*(?:explanations?|notes?|reasoning|rationale|justification)\W{0,3}:", re.IGNORECASE)
"""Where the prose behind a list begins."""
_TABLE = (
    re.compile(r"^\|[^\n]*\n\|[\s:|-]+\|[ \t]*\n|```\w*\n?", re.MULTILINE),
    re.compile(r"^\|(?:.*\|)?([^|\n]+)\|[ \t]*$", re.MULTILINE),
)
"""The head of a table and a fence; a row of a table, whose last cell is the tag."""
_MARKED = re.compile(r"(?<=\w)\s+(?=\(?(?:\d{1,3}|[a-z])\)\s)")


def parse_tag_list(text: str, labels: Sequence[str] = ()) -> list[str | None] | None:
    """The tags of a list, by position: None where a place holds no tag. Numbers, dashes, brackets and quotes of lists
    are dropped.

    So are words with a colon in front of the list ("The tags are:"), the keys of an object and the prose behind the
    list from a line "Explanation:" or "Note:" on; tags with a prefix may stand side by side.

    >>> parse_tag_list("DebtInstrumentFaceAmount, us-gaap:Assets,,Revenues")
    ['debtinstrumentfaceamount', 'assets', None, 'revenues']
    """
    tags = [parse_tag(piece) for piece in list_places(text)]
    return tags if any(tags) else None


def list_places(text: str) -> list[str]:
    """The places of a generated list, without what is not the tag; a place may be empty.

    >>> (list_places("The tags are: Assets, Goodwill"),
    ... list_places("| # | Tag |\\n|---|---|\\n| 1 | Assets |\\n| 2 | Goodwill |"))
    (['Assets', 'Goodwill'], ['Assets', 'Goodwill'])
    """
    remark = _REMARK.search(text)
    if remark and any(parse_tag(piece) for piece in split_tags(text[: remark.start()])):
        text = text[: remark.start()]
    text = _VALUE_KEY.sub("", text)
    head, row = _TABLE
    text = row.sub(r"\1", head.sub("", _LIST_LEAD.sub("", text)))
    if re.match(r"\s*\(?\w{1,3}\)", text):
        text = _MARKED.sub(", ", text)
    text = _SIDE_BY_SIDE.sub(r"\1, ", text)
    return [_KEY.sub("", piece).strip("{} ") for piece in split_tags(text)]


def split_tags(text: str) -> list[str]:
    """The places of a list separated by commas, semicolons, bars, line ends or "and", stripped; a place may be empty.

    >>> split_tags(" Assets,, us-gaap:Goodwill "), split_tags("Assets, Goodwill, and Revenues")
    (['Assets', '', 'us-gaap:Goodwill'], ['Assets', 'Goodwill', 'Revenues'])
    """
    return re.split(r"\s*(?:[,;|\n]\s*(?:and\s)?|\sand\s)\s*", text.strip())
