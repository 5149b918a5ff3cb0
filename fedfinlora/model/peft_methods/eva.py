"""EVA (Paischer, Hauzenberger, Schmied et al. 2024, arXiv 2410.07170): A starts from a layer's inputs.

A holds the r right singular vectors with the largest singular values of a layer's inputs X (tokens, d_in) on public
rows, B is zero. They are the eigenvectors of X^T X, which is summed row by row instead of an incremental SVD: d_in²
numbers a layer, and layers with the same inputs (q, k, v) get the same A, as the paper's do. Every layer has the same
rank (the paper's rho = 1).

Only the coordinator reads the rows, once, when the run starts; from the first adapter on it is LoRA.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model.peft_methods.lora import A, Lora, adapted_layers

MOST_ROWS = 256
MOST_TOKENS = 2048
"""Of a row that are read."""


class Eva(Lora):
    """LoRA from another A."""

    @property
    def needs_base(self) -> bool:
        return True

    def first(self, session: Any, config: Config, start: NDArray[np.float32]) -> NDArray[np.float32]:
        grams = input_grams(session.model, session.tokenizer, public_rows(Path(config.peft.rows)))
        found = start.copy()
        for name, view in session.layout.views(found).items():
            if name.endswith(A):
                view[:] = principal_inputs(grams[name.removesuffix(A)], len(view))
        return found


def public_rows(folder: Path) -> list[str]:
    """The field `context` of the rows in a folder's *.jsonl, at most 256 of them. UserError where there are none."""
    rows: list[str] = []
    for file in sorted(folder.rglob("*.jsonl")) if folder.is_dir() else ():
        for number, line in enumerate(file.read_text("utf-8", errors="replace").splitlines(), 1):
            try:
                row = json.loads(line) if line.strip() else {}
            except ValueError as error:
                raise UserError(f"peft.rows: {file}, line {number}, is no JSON. Correct it or take it out.") from error
            if isinstance(row, dict) and isinstance(row.get("context"), str) and row["context"].strip():
                rows.append(row["context"])
    if not rows:
        raise UserError(
            f"peft.rows={folder} has no rows: peft=eva needs *.jsonl with one object a line and the field `context`."
        )
    return [rows[place] for place in np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).astype(int)]


def input_grams(model: Any, tokenizer: Any, rows: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Layer, as the saved names begin -> X^T X, (d_in, d_in), of its inputs on the rows, summed in float32."""
    import torch

    grams: dict[str, torch.Tensor] = {}

    def reading(path: str) -> Any:
        def read(_: Any, given: tuple[torch.Tensor, ...]) -> None:
            inputs = given[0].detach().reshape(-1, given[0].shape[-1]).float()
            gram = inputs.T @ inputs
            grams[path] = grams[path].add_(gram) if path in grams else gram

        return read

    handles = [layer.register_forward_pre_hook(reading(path)) for path, layer in adapted_layers(model)]
    device = next(model.parameters()).device
    try:
        with torch.no_grad():
            for row in rows:
                token_ids = tokenizer(row, truncation=True, max_length=MOST_TOKENS)["input_ids"]
                if token_ids:
                    model(input_ids=torch.tensor([token_ids], device=device))
    finally:
        for handle in handles:
            handle.remove()
    return {path: gram.cpu().double().numpy() for path, gram in grams.items()}


def principal_inputs(gram: NDArray[np.float64], rank: int) -> NDArray[np.float32]:
    """(rank, d_in): the eigenvectors of the largest eigenvalues of X^T X, largest first, as orthonormal rows.

    The largest absolute entry of a row is positive. UserError where the inputs have fewer directions.
    """
    from scipy.linalg import eigh

    if rank > len(gram):
        raise UserError(f"peft=eva: a layer with {len(gram)} inputs has no {rank} directions. Set a smaller peft.rank.")
    values, vectors = eigh(gram, subset_by_index=(len(gram) - rank, len(gram) - 1))
    if not values[0] > 1e-12 * values[-1]:
        raise UserError(
            f"peft=eva: the inputs on the rows of peft.rows have fewer than {rank} directions. Give more rows."
        )
    rows = vectors.T[::-1]
    signs = np.sign(rows[np.arange(rank), np.abs(rows).argmax(axis=1)])
    return np.ascontiguousarray(rows * signs[:, None], np.float32)
