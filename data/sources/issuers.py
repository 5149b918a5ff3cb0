"""Whose filing a row is about: read from the question of FinLoRA's XBRL extraction prompts.

The prompts name the filer in a dozen phrasings ("as used by X during the FY 2023", "How much was X's Net Income for
…"). A row whose filer cannot be read gets a key made from its XBRL fragment, so that the questions on one filing can
stay with one bank.
"""

from __future__ import annotations

import hashlib
import re

_PERIOD = r"(?:the )?(?:FY|fiscal)"
_NAME = rf"(?P<issuer>(?!{_PERIOD}).+?)"
_PHRASINGS = tuple(
    re.compile(phrasing, re.IGNORECASE | re.DOTALL)
    for phrasing in (
        rf".*\bby {_NAME} (?:during|in|for|at the end of) {_PERIOD}",
        rf"\bformula that {_NAME} uses for ",
        rf".*\bvalue for .+ from {_NAME} (?:for|in|at the end of) {_PERIOD}",
        rf"\b(?:value of|how much was) (?P<issuer>.+)'s .+ (?:for|in|at the end of) {_PERIOD}",
        rf"\bformula for .+? of {_NAME}, (?:formatted|using|expressed)",
        rf".*\bfor {_NAME}, (?:formatted|using|expressed)",
        rf".*\bfor {_NAME} (?:for|during|in|at the end of) {_PERIOD}",
    )
)
"""The first that fits wins. A leading `.*` makes the last "by" or "for" count, since items have such words too ("Cash
Flow for Investing Activities for X for FY 2023").
"""

_FRAGMENT = "XML File:"
_QUESTION = "Question:"


def issuer_of(prompt: str) -> str:
    """The filer named in an XBRL prompt; else `filing-` and a hash of the fragment; "" for a prompt without an XBRL
    fragment.
    """
    fragment_start = prompt.find(_FRAGMENT)
    if fragment_start < 0:
        return ""
    question_start = prompt.rfind(_QUESTION)
    if question_start < fragment_start:
        return _fragment_key(prompt[fragment_start:])
    return issuer_in_question(prompt[question_start + len(_QUESTION) :]) or _fragment_key(
        prompt[fragment_start:question_start]
    )


def issuer_in_question(question: str) -> str:
    """The filer's name with blanks made single and without a closing full stop, or "" where no phrasing fits."""
    for phrasing in _PHRASINGS:
        if found := phrasing.search(question):
            return " ".join(found["issuer"].split()).rstrip(" .,")
    return ""


def _fragment_key(fragment: str) -> str:
    return "filing-" + hashlib.sha256(fragment.strip().encode()).hexdigest()[:12]
