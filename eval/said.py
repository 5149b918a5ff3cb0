"""What a model says at last: its answer without the thoughts in front of it and the wrapping around it.

Models that think aloud put their thoughts between tags, or only the closing tag where the prompt has opened it; some put their answer into a
tag or a box of its own. A label inside a thought is not an answer. FinLoRA's own reading (`eval.scoring.finlora_score_row`) knows none of this.
"""

from __future__ import annotations

import re

_THOUGHT = r"(?:think(?:ing)?|thoughts?|reasoning|analysis|scratchpad)"
_CLOSED = re.compile(rf"<(?P<tag>{_THOUGHT})\b[^<>]*>.*?</(?P=tag)\s*>", re.IGNORECASE | re.DOTALL)
_CLOSING = re.compile(rf"</{_THOUGHT}\s*>", re.IGNORECASE)
_OPEN = re.compile(rf"<{_THOUGHT}\b[^<>]*>", re.IGNORECASE)
_TAGGED = re.compile(r"<(?P<tag>(?:final[_ ]?)?answer)\s*>(?P<said>.*?)(?:</(?P=tag)\s*>|\Z)", re.IGNORECASE | re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_WRITTEN = re.compile(r"\\(?:text|mathrm|mathbf|textbf|operatorname)\s*\{([^{}]*)\}")
MARKERS = (
    "</think>",
    "</thinking>",
    "</thought>",
    "</thoughts>",
    "</reasoning>",
    "</analysis>",
    "</scratchpad>",
    "<answer>",
    "\\boxed",
)
"""What, written later, would make another answer of what was written before."""


def said(text: str) -> str | None:
    """The answer in a generated text; None where the text ends inside a thought: it was cut off before it said anything.

    >>> said("<think>It could be negative.</think> positive"), said("<think>It could be")
    (' positive', None)
    >>> said("Both hold. <answer>B</answer>"), said("so it is \\\\boxed{\\\\text{B}}."), said("positive")
    ('B', 'B', 'positive')
    """
    rest = _CLOSED.sub("", text)
    closings = list(_CLOSING.finditer(rest))
    if closings:
        rest = rest[closings[-1].end() :]
    if _OPEN.search(rest):
        return None
    tagged = [found["said"] for found in _TAGGED.finditer(rest) if found["said"].strip()]
    rest = tagged[-1].strip() if tagged else rest
    boxed = _last_box(rest)
    return rest if boxed is None else boxed


def is_unfinished(text: str) -> bool:
    """Whether a text ends inside a thought."""
    return said(text) is None


def _last_box(text: str) -> str | None:
    """What stands in the last box that is closed and not empty; braces inside it match."""
    for begin in reversed(list(_BOX.finditer(text))):
        depth = 1
        for place in range(begin.end(), len(text)):
            depth += (text[place] == "{") - (text[place] == "}")
            if depth == 0:
                content = _WRITTEN.sub(r"\1", text[begin.end() : place]).strip()
                if content:
                    return content
                break
    return None
