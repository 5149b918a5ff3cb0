"""Rows as of filings: long prompts with beginnings in common."""

from __future__ import annotations

import numpy as np
from conftest import EOS

from fedfinlora.model.packing import Example, Tokens


def filing_examples(filings: int = 2, questions: int = 3, filing_tokens: int = 150) -> list[Example]:
    """Rows that share at three levels: an instruction with all others, a filing with some, the beginning of a question
    with a few.
    """
    draw = np.random.default_rng(3)

    def tokens(count: int) -> Tokens:
        return tuple(draw.integers(2, 258, count).tolist())

    instruction = tokens(30)
    rows = []
    for _ in range(filings):
        filing = instruction + tokens(filing_tokens)
        for _ in range(questions):
            question = filing + tokens(12)
            rows += [(question + tokens(3 + place), (*tokens(2 + place), EOS)) for place in range(3)]
    return [Example(prompt, answer, index) for index, (prompt, answer) in enumerate(rows)]
