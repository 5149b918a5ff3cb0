"""Reading a number out of generated text, as a person would: typed, typeset or written in another country's way."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

SCALES = {
    "hundred": 1e2, "thousand": 1e3, "k": 1e3, "lakh": 1e5, "crore": 1e7,
    "million": 1e6, "mn": 1e6, "mln": 1e6, "mio": 1e6, "m": 1e6,
    "billion": 1e9, "bn": 1e9, "mrd": 1e9, "b": 1e9,
    "trillion": 1e12, "tn": 1e12,
}  # fmt: skip
"""Word or letter behind a number -> factor."""
CURRENCY = r"(?:US\$|USD|EUR|GBP|[$€£¥₹])"
DASHES = "\u2010\u2011\u2012\u2013\u2212\u2796\ufe63\uff0d"
"""Hyphens, figure dash, en dash and minus signs that are written for a minus."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_WIDE = str.maketrans(
    {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F) if code != 0xFF0D}
    | {"٫": ".", "٬": ",", "٪": "%", "﹪": "%"}
)
"""Full-width signs and those of Arabic numbers -> ASCII; digits of every script are digits to Python."""
_POWER = re.compile(r"(?<=10)[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,4}")
_VULGAR = re.compile(r"(\d*)([¼-¾⅐-⅞])")
_BLANK_GROUPS = re.compile(r"(?<![\w.,])\d{1,3}(?:[ '’_\u00a0\u2009\u202f]\d{3})+(?![\w'’])")
_DOT_GROUPS = re.compile(r"(?<![\w.,])\d{1,3}(?:(?:\.\d{3}){2,}(?![\w.]\d)|(?:\.\d{3})+(?=,\d{1,2}(?!\d)))")
_TYPESET: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\\(?:times|cdot)\b"), "×"),
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"\1/\2"),
    (re.compile(r"\\([$%€£])"), r"\1"),
    (re.compile(rf"({CURRENCY}\s?\d[\d.,]*)\s?MM\b"), r"\1 million"),
    (re.compile(r"\{,\}|(?<=\d)\\[,;!](?=\d{3})"), ","),
    (re.compile(r"10\s*\^\s*\{\s*([-+\u2212]?\d{1,4})\s*\}"), r"10^\1"),
    (re.compile(rf"(?<![\w.,])[{DASHES}](?=(?:US\$|USD|EUR|GBP|[$€£¥₹])?\s?\.?\d)"), "-"),
    (re.compile(r"(?<![\w.,])(\d+),(?=(?:\d{1,2}|\d{4,})(?!\w|[.,]\d))"), r"\1."),
)
"""Typeset -> typed. A dash behind a digit is a range, not a sign; a comma in front of one, two, four or more digits is
a decimal comma, unless more groups follow.
"""
_NUMBER = re.compile(
    rf"""
    (?<![\w.,])                                                       # not inside a word, a tag name or another number
    (?P<open>\(\s*)?
    (?P<sign>[-−+])? (?:{CURRENCY}\s*)? (?P<inner_sign>[-−+])?
    (?P<digits>\d{{1,3}}(?:,\d{{2,3}})*,\d{{3}}(?!\d)|\d+|(?=\.\d)) (?P<fraction>\.\d*)?
    (?: (?P<exponent>[eE][-+−]?\d+)(?!\w) | \s*[×x*]\s*10\s*(?:\^|\*\*)\s*\(?(?P<power>[-+−]?\d{{1,4}})\)? )?
    (?:\s*%)?
    (?: \s*(?P<word>hundred|thousand|lakh|crore|million|billion|trillion|mn|mln|mio|bn|mrd|tn)\b
      | (?P<letter>[kmb])\b )?
    (?P<close>\s*\))?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_RESULT = re.compile(
    r"\b(?:(?P<surely>we\s+get)|gives|yields|results\s+in)(?:\s+(?:us|about|approximately|roughly))?"
    rf"(?=\W{{1,4}}(?:{CURRENCY}\s?)?\.?\d)",
    re.IGNORECASE,
)
"""What precedes a result as "=" does."""
_CALCULATION = re.compile(r"\b(?:add|subtract|divid|multipl|times|plus|minus|sum)\w*|\d\s*[-+*/×÷^]", re.IGNORECASE)
_POWER_OF_TEN = re.compile(r"10\s*(?:\^|\*\*)\s*\(?([-+−]?\d{1,4})")
_QUOTIENT = re.compile(r"\W*?(?P<over>[-−]?\d+(?:\.\d+)?)\s*/\s*(?P<under>\d+(?:\.\d+)?)\W*")
_MINUS = re.compile(rf"(?<![\d)]\s)(?<![\d)])\b(?:negative|minus)\s+(?={CURRENCY}?\s?\.?\d)", re.IGNORECASE)
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sept?|oct|nov|dec)[a-z]*\.?"
_YEAR = r"(?:19|20)\d\d"
_DASH = rf"[-{DASHES}]"
DATE = rf"\b{_YEAR}{_DASH}\d\d{_DASH}\d\d(?!\d)|(?<![\w./])\d{{1,2}}([./])\d{{1,2}}\1{_YEAR}\b"
FORM = rf"(?<![\w.,$])(?:form\s+)?(?:6|8|10|11|20|40){_DASH}[kqf]\b"
_SET_ASIDE = re.compile(
    rf"{DATE}|{FORM}"
    rf"|\b{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+{_YEAR}\b|\b\d{{1,2}}\s+{_MONTH}\s+{_YEAR}\b"
    rf"|\bQ[1-4]\s*(?:of\s+)?(?:fy\s*)?{_YEAR}\b"
    rf"|(?<![\w.,$€£¥₹-]){_YEAR}\s*[-/{DASHES}]\s*(?:{_YEAR}|\d\d)\b(?!{_DASH}?\d)"
    rf"|(?<![\w.,$€£¥₹-]){_YEAR}(?=:\s|\s+(?:values?|figures?|amounts?|totals?|revenues?|results?)\b)"
    rf"|\b(?:year|fy|period)[\"']?\s*[:=]\s*[\"']?{_YEAR}\b(?![.,]?\d)"
    rf"|\b(?:in|for|of|fy|year|during|fiscal|ended)\s*(?:(?:the\s+)?(?:fiscal\s+)?(?:fy|year)\s*)?{_YEAR}"
    r"(?![\w.]*\d|\s*(?:%|[a-z]*illion|dollars|usd))\b"
    rf"|\b(?:form|page|pages|p\.|note|footnote|item|table|exhibit)\s+\d{{1,3}}(?:\s*[-—{DASHES}]\s*\d{{1,3}})?"
    r"\b(?![.,]?\d|\s*(?:%|[a-z]*illion))"
    r"|^[ \t]*(?:\(\d{1,2}\)|\d{1,2}[.)])[ \t]+(?=[-−+(]?(?:US\$|USD|EUR|GBP|[$€£¥₹])?[ \t]?\d)"
    r"|<[a-z][\w:.-]*\s[^<>]*>"
    r"|(?:\bnot|n['\u2019]t)\s+[^\s\d]{0,4}\d\S*(?:\s+[a-z]+)?\s+but\b",
    re.IGNORECASE | re.MULTILINE,
)
"""No answer where another number is there: dates, years and periods ("in 2023", "FY 2023", "Q4 2022"), forms ("10-K"),
pages and notes, the mark of a list in front of a number, attributes, and what "not 4 but" denies.
"""
_AROUND = " \t*_`\"'“”„«»‹›‚‘’.,;:!?="
"""Signs around a number that is alone."""
_STEP = re.compile(r"\s*\d{1,2}[.):]\s+\S")
_NAMED = re.compile(
    r"\b(?:final\s+answer|answer\s+(?:is|would\s+be|should\s+be))\b|^\W*answer\W{0,4}:"
    r"|\b(?:therefore|thus|hence)\b[^.\n]*?(?:\b(?:is|are|be|equals)\b|[=≈:])",
    re.IGNORECASE | re.MULTILINE,
)


def parse_number(text: str, labels: Sequence[str] = ()) -> float | None:
    """The number that is answered: the first one, or on a line with "=" (or "we get", "gives", "yields", "results in"
    behind a calculation) the first one behind the last of these.

    Where the text does not begin with a line that is a number, one behind the last "the answer is", "Answer:" or
    "therefore … is" comes first. Separators of thousands (comma, blank, apostrophe, dots where there are several),
    currency signs and a percent sign are dropped ("12.5 %" is 12.5, not 0.125); a decimal comma is a point;
    accountants' brackets negate; "e6", "x 10^6", "10⁶", "million", "bn", "5M" scale; a fraction is divided where it is
    all there is; LaTeX, other dashes, "minus" and "negative" are read as what they are written for. Other units are
    ignored, and so are a date, a year or period ("in 2023", "Q4 2022"), a form, page or note ("10-K", "page 5"), the
    mark of a list ("(1) 500"), an attribute and a number denied ("not 4 but 5") where another number is there. What is
    not finite is no number.

    >>> parse_number("FV = 30,000 × 1.2 = $36,000.00"), parse_number("(5.2 million)"), parse_number("none")
    (36000.0, -5200000.0, None)
    >>> parse_number("1. We add 5 to 6.\\nThe answer is 11."), parse_number("1.234,5"), parse_number("1/4")
    (11.0, 1234.5, 0.25)
    """
    aside = _SET_ASIDE.sub(" ", _MINUS.sub("-", typed(_SET_ASIDE.sub(" ", text))))
    text = _MINUS.sub("-", typed(text))
    quotient = _QUOTIENT.fullmatch(text)
    if quotient and not float(quotient["under"]):
        return None
    if quotient:
        return float(quotient["over"].replace("−", "-")) / float(quotient["under"])
    for said in (aside, text):
        named = [] if _is_number(first_line(said)) else list(_NAMED.finditer(said))
        for place in (*(found.end() for found in reversed(named)), 0):
            value = _first_number(said[place:])
            if value is not None:
                return value if math.isfinite(value) else None
    return None


def typed(text: str) -> str:
    """A text with its typeset numbers as they are typed: LaTeX, wide signs, superscripts, fractions of one sign,
    separators, other dashes.

    >>> typed(r"\u20135.0 and \\$1{,}234 \\times 10^{6}, 3 × 10⁻²; 2½; 1 000 000,5")
    '-5.0 and $1,234 × 10^6, 3 × 10^-2; 2.5; 1000000.5'
    """
    text = text if text.isascii() else text.translate(_WIDE)
    text = _POWER.sub(lambda power: f"^{power[0].translate(_SUPERSCRIPTS)}", text)
    text = _VULGAR.sub(lambda found: repr(float(found[1] or 0) + round(unicodedata.numeric(found[2]), 12)), text)
    text = _BLANK_GROUPS.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    text = _DOT_GROUPS.sub(lambda found: found[0].replace(".", ""), text)
    for typeset, plain in _TYPESET:
        text = typeset.sub(plain, text)
    return text


def lone_number(line: str) -> float | None:
    """The number that a line is, in any spelling but a fraction, if nothing surrounds it but a currency, quotes and
    punctuation.

    >>> (lone_number("**$1,234.50**"), lone_number("5 %."), lone_number("(5)"), lone_number("5 × 10³"),
    ... lone_number("10 to 20"))
    (1234.5, 5.0, -5.0, 5000.0, None)
    """
    plain = re.sub(r"\A\$(.*)\$\Z", r"\1", re.sub(r"\\[()]", "", line).strip(_AROUND))
    text = re.sub(rf"\s*{CURRENCY}\Z", "", typed(plain).strip(_AROUND), flags=re.IGNORECASE)
    found = _NUMBER.fullmatch(text)
    value = _value(found) if found else math.inf
    return value + 0.0 if math.isfinite(value) else None


def _first_number(text: str) -> float | None:
    """The first number of the first line that has one, or the first behind its last "="; infinite where it is too
    large.
    """
    line = next((line for line in text.splitlines() if _NUMBER.search(line)), "")
    first = _CALCULATION.search(line)
    results = [
        found.end() for found in _RESULT.finditer(line) if found["surely"] or (first and first.end() <= found.start())
    ]
    found = _NUMBER.search(line[max(line.rfind("=") + 1, *results, 0) :]) or _NUMBER.search(line)
    return _value(found) if found else None


def _value(found: re.Match[str]) -> float:
    """What a match of _NUMBER means; infinite where it is too large."""
    of_ten = _POWER_OF_TEN.match(found.string, found.start("digits"))
    digits = "1" if of_ten else found["digits"].replace(",", "") + (found["fraction"] or "")
    power = of_ten[1] if of_ten else found["power"] or (found["exponent"] or "")[1:] or "0"
    value = float(f"{digits}e{power.replace('−', '-')}")
    value *= SCALES.get((found["word"] or found["letter"] or "").lower(), 1.0)
    negative = {found["sign"], found["inner_sign"]} & {"-", "−"} or (found["open"] and found["close"])
    return -value if negative else value


def _is_number(line: str) -> bool:
    """Whether a line is one number with no more than a word or two around it, and no item of a list of steps."""
    words = re.findall(r"[^\W\d_]{2,}", line.lower())
    return (
        len(_NUMBER.findall(line)) == 1
        and len(words) <= 2
        and not {"answer", "step"} & set(words)
        and not _STEP.match(line)
    )


def first_line(text: str) -> str:
    """The first line that is not blank, stripped."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
