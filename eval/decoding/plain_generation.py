"""What `eval.decoding.generation.generate` must agree with, row by row: transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fedfinlora.model.packing import Tokens

if TYPE_CHECKING:
    from torch import nn


def generate_plainly(
    model: nn.Module, prompts: Sequence[Tokens], budget_tokens: int, end_ids: Sequence[int], batch_rows: int = 1
) -> Iterator[tuple[int, ...]]:
    """transformers' own `generate`, greedy, left-padded batches of `batch_rows`."""
    import torch

    model.eval()
    device = next(model.parameters()).device
    for start in range(0, len(prompts), batch_rows):
        batch = prompts[start : start + batch_rows]
        longest = max(map(len, batch))
        ids = [[end_ids[0]] * (longest - len(prompt)) + list(prompt) for prompt in batch]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch]
        with torch.inference_mode():
            found = model.generate(  # type: ignore[operator]
                input_ids=torch.tensor(ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
                max_new_tokens=budget_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=list(end_ids),
                pad_token_id=end_ids[0],
                use_cache=True,
            )
        for row in found[:, longest:].tolist():
            end = next((place for place, token in enumerate(row) if token in end_ids), len(row))
            yield tuple(row[:end])
