"""Greedy decoding of many prompts, laid end to end behind shared copies of their common prefixes (see `fedfinlora.packing`).

Gives the tokens of plain greedy decoding row by row (FinLoRA's rule 2: temperature 1e-5, stop at end-of-sequence or budget),
without padding and with each prefix read once. A row that has ended leaves the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fedfinlora.packing import Example, Pack, make_blocks, make_pack, split_blocks

if TYPE_CHECKING:
    from torch import nn


def generate(
    model: nn.Module,
    prompts: Sequence[tuple[int, ...]],
    budget_tokens: int,
    end_ids: Sequence[int],
    batch_tokens: int = 4096,
    on_rows: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """New tokens for each prompt, in the order of `prompts`, without the end-of-sequence token.

    At most `batch_tokens` prompt tokens are in one batch, or one prompt if that is longer. `on_rows` hears how many rows are done.
    """
    device = next(model.parameters()).device
    outputs: list[list[int]] = [[] for _ in prompts]
    examples = [Example(prompt, (end_ids[0],), index) for index, prompt in enumerate(prompts)]
    done = 0
    for part in split_blocks(make_blocks(examples), batch_tokens):
        pack = make_pack(part, device)
        for index, tokens in zip(pack.row_index, _decode(model, pack, budget_tokens, set(end_ids)), strict=True):
            outputs[index] = tokens
        done += len(pack.row_index)
        if on_rows is not None:
            on_rows(done)
    return outputs


def _decode(model: nn.Module, pack: Pack, budget_tokens: int, end_ids: set[int]) -> list[list[int]]:
    """Decode the rows of one pack together. `pack.answer_index` holds the last prompt position of each row."""
    import torch
    from transformers import DynamicCache

    model.eval()
    outputs: list[list[int]] = [[] for _ in pack.row_index]
    with torch.inference_mode():
        cache = DynamicCache()
        logits = model(
            input_ids=pack.token_ids,
            position_ids=pack.position_ids,
            attention_mask=pack.mask,
            plan=pack.plan,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=pack.answer_index,
        ).logits[0]
        key_owner = pack.owner
        row_owner, row_parent = pack.owner[pack.answer_index], pack.parent[pack.answer_index]
        positions = pack.position_ids[0, pack.answer_index]
        active = list(range(len(outputs)))
        for budget_left in range(budget_tokens, 0, -1):
            chosen = logits.argmax(dim=-1)
            tokens = chosen.tolist()
            staying = [place for place, token in enumerate(tokens) if token not in end_ids]
            for place in staying:
                outputs[active[place]].append(tokens[place])
            if not staying or budget_left == 1:
                break
            active = [active[place] for place in staying]
            keep = torch.tensor(staying, device=chosen.device)
            row_owner, row_parent, positions = row_owner[keep], row_parent[keep], positions[keep] + 1
            key_owner = torch.cat([key_owner, row_owner])
            mask = (row_owner.unsqueeze(1) == key_owner) | (row_parent.unsqueeze(1) == key_owner)
            logits = model(
                input_ids=chosen[keep].unsqueeze(0),
                position_ids=positions.unsqueeze(0),
                attention_mask=mask[None, None],
                past_key_values=cache,
                use_cache=True,
            ).logits[0]
    return outputs
