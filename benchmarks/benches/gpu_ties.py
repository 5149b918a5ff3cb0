"""Where two greedy answers to one prompt part, and whether rounding explains it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch

from fedfinlora.model.base_checks import is_near_tie
from fedfinlora.model.loading import Session
from fedfinlora.model.packing import Tokens

FLOAT32_TIE, LOW_PRECISION_TIE = 1e-3, 0.25
"""Two tokens are a near tie where their logits differ by at most this share of all logits' standard deviation: bfloat16
rounds a logit of 4 to steps of 0.03. A wrong mask or position gives several of them.
"""


def tie_limit(session: Session) -> float:
    """The largest gap of a near tie in the arithmetic of this model."""
    return FLOAT32_TIE if cast(Any, session.model).dtype == torch.float32 else LOW_PRECISION_TIE


@dataclass(frozen=True)
class Part:
    """Where two answers to one prompt part."""

    logits: torch.Tensor
    """(vocabulary,) float32, of a plain pass over what they have in common."""
    one: int
    other: int
    """The token that each takes."""

    @property
    def gap(self) -> float:
        """Difference of the two tokens' logits, as a share of the logits' standard deviation."""
        return float((self.logits[self.one] - self.logits[self.other]).abs() / self.logits.std())

    def is_near_tie(self, share: float) -> bool:
        return is_near_tie(self.logits, self.one, self.other, share)


def where_they_part(
    logits_of: Callable[[torch.Tensor], torch.Tensor], end: int, prompt: Tokens, one: Tokens, other: Tokens
) -> Part:
    """`logits_of` token ids (1, T) are (1, T, vocabulary); a shorter answer ends with the token `end`."""
    place = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    first, second = (tokens[place] if place < len(tokens) else end for tokens in (one, other))
    return Part(logits_of(torch.tensor([[*prompt, *one[:place]]]))[0, -1].float(), first, second)


def own_logits(session: Session) -> Callable[[torch.Tensor], torch.Tensor]:
    """The session's model as `where_they_part` asks it, where it is too large for a reference on the CPU."""
    call = cast(Callable[..., Any], session.model)

    def logits_of(ids: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return cast(torch.Tensor, call(input_ids=ids.to(session.device), use_cache=False).logits)

    return logits_of
