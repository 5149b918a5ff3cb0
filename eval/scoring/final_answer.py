"""What a model says at last: its answer without the thoughts in front of it and the wrapping around it.

Models that think aloud put their thoughts between tags or into a channel, or write only the closing tag where the
prompt has opened it; some put their answer into a tag, a field or a box of its own. A label inside a thought is not an
answer. FinLoRA's own reading (`eval.scoring.finlora.finlora_score_row`) knows none of this.
"""

from __future__ import annotations

import re

_NAME = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning|reflection|analysis|scratchpad)"
_BEGIN, _END = (rf"(?:<{slash}{_NAME}\b[^<>]*>|\[{slash}{_NAME}\]|\u25c1{slash}{_NAME}\u25b7)" for slash in ("", "/"))
_OPEN = re.compile(rf"{_BEGIN}|<\|begin_of_thought\|>|<\|channel\|>(?:analysis|commentary)", re.IGNORECASE)
_CLOSING = re.compile(rf"{_END}|<\|end_of_thought\|>|<\|channel\|>final<\|message\|>", re.IGNORECASE)
_CLOSED = re.compile(rf"(?P<begin>{_BEGIN}).*?(?P<end>{_END})", re.IGNORECASE | re.DOTALL)
_BARE_CHANNELS = re.compile(r"\A\s*analysis.*?assistantfinal", re.DOTALL)
"""Channels whose marks were taken away as special tokens."""
_TAGGED = re.compile(
    r"<(?P<tag>(?:final[_ ]?)?answer|choice|option|sentiment|label)\s*>(?P<said>.*?)(?:</(?P=tag)\s*>|\Z)",
    re.IGNORECASE | re.DOTALL,
)
_FIELD = re.compile(
    r'[{,]\s*"(?:final_?)?answer"\s*:\s*(?:"(?P<text>(?:[^"\\]|\\.)*)"|(?P<bare>[-+\d.eE]+))\s*[,}]', re.IGNORECASE
)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
WRITTEN = re.compile(r"\\(?:text|mathrm|mathbf|textbf|operatorname)\s*\{([^{}]*)\}")
"""Upright text in LaTeX; its first group is what is written."""
_REFUSAL = re.compile(
    r"\W*(?:as an ai\b|(?:(?:i'?m |i am )?(?:very |so |really )?sorry|unfortunately|i "
    r"apologi[sz]e)\b[,.]?\s*(?:but\s+)?"
    r"(?:i|we)\s+(?:can\s?not|can't|could not|couldn't|am unable|am not able|won't)\b"
    r"|(?:i|we)(?:'m| am| are)? (?:unable|not able)\b|(?:i|we) (?:can\s?not|can't|won't)\b)",
    re.IGNORECASE,
)
_NAMES = ("think", "thought", "reasoning", "reflection", "analysis", "scratchpad", "seed:think")
MARKERS = (
    *(f"{mark}/{name}" for mark in ("<", "[", "\u25c1") for name in _NAMES),
    *(
        "<choice",
        "<option",
        "<sentiment",
        "<label",
        "<answer",
        "<final_answer",
        "<final answer",
        "<finalanswer",
        '"answer"',
        '"final_answer"',
        '"finalanswer"',
    ),
    *("\\boxed", "\\fbox", "end_of_thought|>", "final<|message|>", "assistantfinal"),
)
"""What, written later in small or capital letters, would make another answer of what was written before."""


def said(text: str) -> str | None:
    """The answer in a generated text; None where the text ends inside a thought: it was cut off before it said
    anything.

    >>> said("<think>It could be negative.</think> positive"), said("<think>It could be")
    (' positive', None)
    >>> said("Both hold. <answer>B</answer>"), said("so it is \\\\boxed{\\\\text{B}}."), said("positive")
    ('B', 'B', 'positive')
    """
    rest = _BARE_CHANNELS.sub("", _CLOSED.sub("", text))
    closings = list(_CLOSING.finditer(rest))
    if closings:
        rest = rest[closings[-1].end() :]
    if _OPEN.search(rest):
        return None
    tagged = [found["said"] for found in _TAGGED.finditer(rest) if found["said"].strip()]
    rest = tagged[-1].strip() if tagged else rest
    fields = [found["text"] or found["bare"] for found in _FIELD.finditer(rest)]
    rest = fields[-1] if fields and fields[-1] else rest
    boxed = _last_box(rest)
    return rest if boxed is None else boxed


def is_unfinished(text: str) -> bool:
    """Whether a text ends inside a thought."""
    return said(text) is None


def is_refusal(text: str) -> bool:
    """Whether a text begins by saying that it gives no answer: the labels that it then names are the question's.

    >>> (is_refusal("I cannot tell whether it is positive or negative."), is_refusal("Sorry, but I can't help."),
    ... is_refusal("No"))
    (True, True, False)
    """
    return bool(_REFUSAL.match(text.replace("\u2019", "'")))


def _last_box(text: str) -> str | None:
    """The content of the last box that is closed and not empty; braces inside it match."""
    for begin in reversed(list(_BOX.finditer(text))):
        depth = 1
        for place in range(begin.end(), len(text)):
            depth += (text[place] == "{") - (text[place] == "}")
            if depth == 0:
                content = WRITTEN.sub(r"\1", text[begin.end() : place]).strip()
                if content:
                    return content
                break
    return None
