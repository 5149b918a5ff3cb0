"""Tree attention in one kernel, for GPUs: FlexAttention (Dong et al. 2024, arXiv 2412.05496) with one integer a key.

A pack is laid out depth first, so the queries that see a key follow it without a gap, up to the end of the subtree of
its segment: `key <= query < visible_until[key]`. That is the mask of `fedfinlora.model.attention`'s runs, whose many
small products are slow on a GPU; on CPUs, where FlexAttention has no backward pass, the runs stay.

T queries are filled up to a multiple of BLOCK, so that the kernel is compiled once. Shapes as in
`fedfinlora.model.attention`: H query heads, G key heads, D numbers a head, S earlier keys.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedfinlora.model.attention import Run, TreePlan

if TYPE_CHECKING:
    import torch

log = logging.getLogger("fedfinlora")
BLOCK = 128
"""Queries and keys of a tile of the kernel."""
TRIAL_TOLERANCE = 0.05
"""Of the kernel from the runs at its first use, as a share of the norm: bfloat16 rounds to 0.004."""


@dataclass(frozen=True)
class TreeMask:
    """Who sees whom in a pack of T tokens after S earlier ones, as FlexAttention takes it."""

    tokens: int
    """T."""
    earlier_keys: int
    """S."""
    padded_tokens: int
    """T filled up to a multiple of BLOCK; what is added sees itself alone."""
    padded_keys: int
    """S + padded_tokens filled up to a multiple of BLOCK."""
    blocks: Any
    """FlexAttention's BlockMask."""


def tree_mask(visible_until: NDArray[np.int32], earlier_keys: int, device: torch.device | str) -> TreeMask:
    """The mask of S + T keys, `visible_until` (S + T,): the first query of the pack that does not see a key, and none
    after it does.
    """
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    tokens = len(visible_until) - earlier_keys
    padded_tokens = _filled(tokens)
    padded_keys = _filled(earlier_keys + padded_tokens)
    until = np.zeros(padded_keys, np.int32)
    until[: len(visible_until)] = visible_until
    own = np.arange(tokens, padded_tokens)
    until[earlier_keys + own] = own + 1
    since = np.maximum(np.arange(padded_keys) - earlier_keys, 0)
    first_query = np.arange(0, padded_tokens, BLOCK)[:, None]
    last_query = first_query + BLOCK - 1
    until_of, since_of = until.reshape(-1, BLOCK), since.reshape(-1, BLOCK)
    seen = (since_of.min(1) <= last_query) & (until_of.max(1) > first_query)
    whole = (since_of.max(1) <= first_query) & (until_of.min(1) > last_query)
    visible = torch.from_numpy(until).to(device)

    def sees(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query + earlier_keys) & (query < visible[key])

    partial_count, partial = _block_lists(seen & ~whole, device)
    whole_count, whole_lists = _block_lists(whole, device)
    blocks = BlockMask.from_kv_blocks(
        partial_count,
        partial,
        whole_count,
        whole_lists,
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(padded_tokens, padded_keys),
    )
    return TreeMask(tokens, earlier_keys, padded_tokens, padded_keys, blocks)


def attend_in_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: TreeMask, scaling: float | None
) -> torch.Tensor:
    """Attention of query (1, H, T, D) over key and value (1, G, S + T, D). Returns (1, T, H, D)."""
    from torch.nn.functional import pad

    more_queries = mask.padded_tokens - mask.tokens
    more_keys = mask.padded_keys - mask.earlier_keys - mask.tokens
    output: torch.Tensor = _kernel(query.is_cuda)(
        pad(query, (0, 0, 0, more_queries)),
        pad(key, (0, 0, 0, more_keys)),
        pad(value, (0, 0, 0, more_keys)),
        block_mask=mask.blocks,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[:, :, : mask.tokens].transpose(1, 2)


@dataclass(frozen=True)
class KernelPlan:
    """Attention of a pack by one kernel; by runs where the kernel cannot be compiled or computes otherwise."""

    mask: TreeMask
    make_runs: Callable[[], TreePlan]
    """Called where the kernel is not used, and once for its trial."""
    _verdicts: dict[tuple[Any, ...], bool] = field(default_factory=lambda: _VERDICTS, compare=False, repr=False)

    @cached_property
    def by_runs(self) -> TreePlan:
        return self.make_runs()

    @property
    def runs(self) -> tuple[Run, ...]:
        """What a pass gathers besides queries, keys and values: nothing with the kernel."""
        return self.by_runs.runs if False in self._verdicts.values() else ()

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        kind = (query.device, query.dtype, query.shape[1], key.shape[1], query.shape[3])
        if kind not in self._verdicts:
            self._verdicts[kind] = self._agrees(query, key, value, scaling)
        if self._verdicts[kind]:
            return attend_in_one(query, key, value, self.mask, scaling)
        return self.by_runs.attend(layer, query, key, value, scaling)

    def _agrees(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> bool:
        """Whether the kernel compiles, and its output and gradients are those of the runs, on this first pass."""
        import torch

        def output_and_gradients(attend: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
            inputs = [tensor.detach().clone().requires_grad_() for tensor in (query, key, value)]
            output = attend(*inputs)
            return [output.detach(), *torch.autograd.grad(output.float().square().sum(), inputs)]

        try:
            with torch.inference_mode(False), torch.enable_grad():
                ours = output_and_gradients(lambda q, k, v: attend_in_one(q, k, v, self.mask, scaling))
                runs = output_and_gradients(lambda q, k, v: self.by_runs.attend(0, q, k, v, scaling))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of torch's compiler, Triton, or a C compiler that is not there
            log.warning(
                "tree attention in one kernel is not available here (%s): it is computed in many", type(error).__name__
            )
            return False
        for one, other in zip(ours, runs, strict=True):
            difference = float((one.float() - other.float()).norm() / other.float().norm().clamp(min=1e-12))
            if not difference <= TRIAL_TOLERANCE:
                log.warning(
                    "tree attention in one kernel differs by %.2g from that in many: the many are used", difference
                )
                return False
        return True


_VERDICTS: dict[tuple[Any, ...], bool] = {}
"""(device, dtype, H, G, D) -> whether the kernel may be used."""


def _filled(count: int) -> int:
    return -(-count // BLOCK) * BLOCK


def _block_lists(chosen: NDArray[np.bool_], device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """((1, 1, rows) how many blocks of keys each block of queries has, (1, 1, rows, columns) which, those first)."""
    import torch

    order = np.argsort(~chosen, axis=1, kind="stable").astype(np.int32)
    counts = chosen.sum(axis=1).astype(np.int32)
    return (
        torch.from_numpy(counts)[None, None].to(device),
        torch.from_numpy(np.ascontiguousarray(order))[None, None].to(device),
    )


@cache
def _kernel(compiled: bool) -> Callable[..., Any]:
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    kernel: Callable[..., Any] = flex_attention
    return torch.compile(kernel, dynamic=True) if compiled else kernel
