"""Closed label sets without generation: the log-probability of each label as the answer, all labels of a row in one
pass.

A label's score is the sum of the log-probabilities of its tokens and of the end-of-sequence token behind them, as
training sees it: log p(label, end | prompt), in nats. The highest is the model's choice. (Multiple choice as in GPT-3,
Brown et al. 2020, section 2.4, without normalising by length: a label is compared as the whole answer that it is.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fedfinlora.model.attention import no_mask
from fedfinlora.model.packing import Example, Tokens, make_pack, split_rows

if TYPE_CHECKING:
    from torch import nn


def label_logprobs(
    model: nn.Module,
    prompts: Sequence[Tokens],
    labels: Sequence[Tokens],
    batch_tokens: int = 4096,
    on_row: Callable[[int, list[float]], None] | None = None,
) -> list[list[float]]:
    """For each prompt the log-probability of each label, in nats, in the order of `labels` (token ids with the
    end-of-sequence token).

    `on_row` is called for each prompt, by its number, as soon as its labels are scored.
    """
    import torch

    device = next(model.parameters()).device
    model.eval()
    scores: list[list[float]] = [[0.0] * len(labels) for _ in prompts]
    examples = [
        Example(prompt, label, number * len(labels) + place)
        for number, prompt in enumerate(prompts)
        for place, label in enumerate(labels)
    ]
    missing = [len(labels)] * len(prompts)
    with torch.inference_mode():
        for rows in split_rows(examples, batch_tokens):
            pack = make_pack(rows, device)
            places, place_of = torch.unique(pack.answer_index, return_inverse=True)
            logits = model(
                input_ids=pack.token_ids,
                position_ids=pack.position_ids,
                attention_mask=no_mask(device),
                plan=pack.plan,
                logits_to_keep=places,
                use_cache=False,
            ).logits[0]
            normalisers = logits.float().logsumexp(dim=-1)
            found = logits[place_of, pack.answer_ids].float() - normalisers[place_of]
            parts = found.split(list(pack.answer_lengths))
            for index, part in zip(pack.row_index, parts, strict=True):
                number, place = divmod(index, len(labels))
                scores[number][place] = float(part.double().sum())
                missing[number] -= 1
                if on_row is not None and not missing[number]:
                    on_row(number, scores[number])
    return scores
