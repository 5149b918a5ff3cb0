"""What a target must be where answers are numbers: one that can be read, and finite.

A target such as "NaN" or "1e999" is left by a failed conversion: no answer could be right, and the model would learn to
write it.
"""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?")
_NOT_FINITE = re.compile(r"[-+]?(?:nan|inf|infinity|none|null|#?n/?a|#div/0!?|#value!?)", re.IGNORECASE)
_YES_OR_NO = re.compile(r"\W*(?:yes|no)\b", re.IGNORECASE)
WITH_NUMBERS = ("number", "flare_number")
"""Parsers that read a number (`Benchmark.parser`)."""
ALSO_YES_OR_NO = "flare_number"


def number_fault(parser: str, target: str) -> str:
    """Why a target is no answer of its benchmark, by how that reads answers; "" where it is one, or where answers are
    no numbers. The target itself is not quoted.

    >>> number_fault("number", "$ 1,204.5 million"), number_fault("flare_number", "yes"), number_fault("label", "NaN")
    ('', '', '')
    >>> number_fault("flare_number", "1e999")
    'target is no finite number'
    """
    if parser not in (*WITH_NUMBERS, "formula"):
        return ""
    if _NOT_FINITE.fullmatch(target.strip()):
        return "target is no finite number"
    if any(math.isinf(float(found.replace(",", ""))) for found in _NUMBER.findall(target)):
        return "target is no finite number"
    if parser not in WITH_NUMBERS or (parser == ALSO_YES_OR_NO and _YES_OR_NO.match(target)):
        return ""
    return "" if any(sign.isdigit() for sign in target) else "target holds no number"
