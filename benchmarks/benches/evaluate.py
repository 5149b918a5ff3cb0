"""`bench evaluate`: the evaluator next to transformers' `generate` on the same rows, in one process run.

The reference is FinLoRA's loop: greedy `generate` with left padding, batches of 8 short prompts or of 1 long one, the
full budget, rows in file order. It is linear in rows, so it may take a seeded few of them, half before and half after
ours, and seconds a row are compared. Outputs of the rows that both answered are compared as text; where a padded batch
of the reference says otherwise, the row is decoded alone by it too, which shows whether padding or ours moved it.

Next to it is a lower bound for every evaluator that reads these tokens in this precision: the time of the model's
matrix products alone, for the tokens that ours really read and wrote, at the rate that this machine reaches on the
largest of them.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from data.catalog import BENCHMARKS, Benchmark
from data.encode import encode_prompts
from data.rows import Row
from eval.answers import ModelAnswer
from eval.decoding.cache_memory import cache_limit_bytes
from eval.decoding.plain_generation import generate_plainly
from eval.models import LocalModel, end_ids
from eval.rows import rows_to_score
from fedfinlora.compose import compose
from fedfinlora.config.schema import Config
from fedfinlora.errors import UserError
from fedfinlora.model.base_checks import context_tokens
from fedfinlora.model.devices import pick_dtype
from fedfinlora.model.loading import Session, get_session, initial_adapter
from fedfinlora.seeds import generator

if TYPE_CHECKING:
    import torch
    from torch import nn

LONG_PROMPT_TOKENS = 1000
"""Benchmarks whose prompts have at least so many tokens on average are long: the reference takes them one by one."""
BATCH_ROWS = 8
REFERENCE_ROWS = {"short": 48, "long": 4}
"""Rows that the reference answers."""
TARGETS = {
    "classification": (("fpb", "fiqa", "tfns", "nwgi", "headline", "ner"), 5.0),
    "FiNER": (("xbrl_finer",), 3.0),
    "XBRL tags and values": (("xbrl_tags_extract", "xbrl_value_extract"), 20.0),
    "formulas": (("xbrl_formula_extract", "xbrl_formula_calc_extract"), 8.0),
}
"""Group -> (its benchmarks, the ratio aimed at on two CPU cores with SmolLM2-135M)."""


def bench_evaluate(overrides: Sequence[str]) -> Mapping[str, Any]:
    """Rows a second of both, the ratio, and how many outputs differ, for each benchmark and group. Default: all rows of
    all that have some.
    """
    words = [*overrides]
    if not any(word.startswith("evaluation.limit=") for word in words):
        words.append("evaluation.limit=0")
    config = compose(words)
    asked = rows_to_score(config)
    if not asked.rows:
        raise UserError(f"There are no rows to answer: {next(iter(asked.skipped.values()), 'no benchmark is named')}")
    session = get_session(config)
    model = LocalModel(session, config, initial_adapter(session, config))
    figures: dict[str, dict[str, Any]] = {}
    dtype = pick_dtype(config.model.dtype, session.device)
    rate = product_rate(session, dtype)
    for key, rows in asked.rows.items():
        figures[key] = _one(BENCHMARKS[key], rows, model, config, session, rate)
        _print(key, figures[key])
    groups = {
        title: grouped({key: figures[key] for key in keys if key in figures}) | {"aim": aim}
        for title, (keys, aim) in TARGETS.items()
        if any(key in figures for key in keys)
    }
    for title, group in groups.items():
        print(
            f"{title}: {group['ratio']:.1f}x (aim {group['aim']:g}x; {group['bound']:.1f}x if only the products took "
            "time), "
            f"{group['differs']} of {group['compared']} outputs differ"
        )
    everything = grouped(figures)
    return {
        "ratio": everything["ratio"],
        "ours": {"rows_per_s": everything["ours_rows_per_s"]},
        "reference": {"name": "transformers generate", "rows_per_s": everything["reference_rows_per_s"]},
        "differs": {
            "outputs": everything["differs"],
            "row_by_row": everything["differs_row_by_row"],
            "of": everything["compared"],
        },
        "rows": everything["rows"],
        "groups": groups,
        "benchmarks": figures,
        "products_flop_per_s": rate,
        "dtype": str(dtype).removeprefix("torch."),
        "peak_cache_gib": model.work.peak_cache_bytes / 2**30,
        "peak_memory_gib": _peak_memory_gib(session),
        "cache_gib": cache_limit_bytes(session.model, config.evaluation.cache_gib) / 2**30,
        "model": config.model.name,
        "quantization": config.model.quantization,
        "dataset": config.dataset.source,
    }


def _one(
    benchmark: Benchmark, rows: Sequence[Row], model: LocalModel, config: Config, session: Session, rate: float
) -> dict[str, Any]:
    lengths = [len(tokens) for tokens in encode_prompts(session.tokenizer, [row.prompt for row in rows])]
    long = sum(lengths) / len(lengths) >= LONG_PROMPT_TOKENS
    fitting = [
        place
        for place, tokens in enumerate(lengths)
        if tokens + benchmark.budget_tokens <= context_tokens(config.model)
    ]
    drawn = generator(config.seed, "bench evaluate", benchmark.key).permutation(len(fitting))
    places = sorted(fitting[index] for index in drawn[: REFERENCE_ROWS["long" if long else "short"]].tolist())
    batch_rows = 1 if long else BATCH_ROWS
    half = len(places) // (2 * batch_rows) * batch_rows
    before, seconds = _reference(benchmark, [rows[place] for place in places[:half]], batch_rows, session)
    outputs, our_s, work = _ours(benchmark, rows, model, config)
    after, more = _reference(benchmark, [rows[place] for place in places[half:]], batch_rows, session)
    reference_s = seconds + more
    body_flop, head_flop = products_flop(session)
    flop = body_flop * (work["read_tokens_per_row"] + work["written_tokens_per_row"])
    flop += head_flop * (1 + work["written_tokens_per_row"])
    differing = [
        place for place, text in zip(places, before + after, strict=True) if not _same(outputs.get(place), text)
    ]
    alone = [text for place in differing for text in _reference(benchmark, [rows[place]], 1, session)[0]]
    differs_alone = sum(not _same(outputs.get(place), text) for place, text in zip(differing, alone, strict=True))
    return {
        "rows": len(rows),
        "prompt_tokens": sum(lengths) / len(lengths),
        "ours_s_per_row": our_s / len(rows),
        "reference_s_per_row": reference_s / max(1, len(places)),
        "products_s_per_row": flop / rate,
        "reference_rows": len(places),
        "reference_batch_rows": batch_rows,
        "ratio": (reference_s / max(1, len(places))) / (our_s / len(rows)),
        "differs": len(differing),
        "differs_row_by_row": differs_alone,
        "compared": len(places),
        **work,
    }


def _ours(
    benchmark: Benchmark, rows: Sequence[Row], model: LocalModel, config: Config
) -> tuple[dict[int, ModelAnswer], float, dict[str, Any]]:
    """The evaluator's own outputs, its seconds with tokenizing, answering and writing (not scoring), and what it read
    and wrote.
    """
    outputs: dict[int, ModelAnswer] = {}
    fresh = replace(model.work)
    started = time.monotonic()
    fitting = [place for place, prompt in enumerate(model.prompts(rows, benchmark)) if prompt is not None]
    model.generate(benchmark, rows, fitting, outputs.__setitem__)
    seconds = time.monotonic() - started
    work = {
        "read_tokens_per_row": (model.work.read_tokens - fresh.read_tokens) / len(rows),
        "written_tokens_per_row": (model.work.written_tokens - fresh.written_tokens) / len(rows),
    }
    return outputs, seconds, work


def _same(answer: ModelAnswer | None, reference: str) -> bool:
    """Whether an output is the reference's, as far as it was decoded: a row that stopped early has only the
    beginning.
    """
    if answer is None:
        return False
    return reference.startswith(answer.text or "") if answer.stopped == "settled" else reference == answer.text


def _reference(benchmark: Benchmark, rows: Sequence[Row], batch_rows: int, session: Session) -> tuple[list[str], float]:
    started = time.monotonic()
    prompts = encode_prompts(session.tokenizer, [row.prompt for row in rows])
    found = list(generate_plainly(session.model, prompts, benchmark.budget_tokens, end_ids(session), batch_rows))
    texts = [session.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in found]
    return texts, time.monotonic() - started


def products_flop(session: Session) -> tuple[float, float]:
    """Floating-point operations of one token's products with the weights: (all layers and their adapters, the head).
    Attention is not counted.
    """
    head, linear = _products(session)
    body = sum(2.0 * module.in_features * module.out_features for module in linear)
    return body, 2.0 * head.in_features * head.out_features


def _products(session: Session) -> tuple[Any, list[nn.Linear]]:
    """(the head, every other layer that multiplies tokens by a weight)."""
    from torch import nn

    head = session.model.get_output_embeddings()  # type: ignore[operator]
    return head, [module for module in session.model.modules() if isinstance(module, nn.Linear) and module is not head]


def product_rate(session: Session, dtype: torch.dtype) -> float:
    """Floating-point operations a second of the largest of the layers' products on 4,096 tokens: the fastest of
    twenty.
    """
    import torch
    from torch import nn

    _, linear = _products(session)
    largest = max(linear, key=lambda module: module.in_features * module.out_features)
    weight = torch.randn(largest.out_features, largest.in_features, device=session.device, dtype=dtype)
    tokens = torch.randn(4096, largest.in_features, device=session.device, dtype=dtype)
    fastest = math.inf
    with torch.inference_mode():
        for _ in range(20):
            started = time.perf_counter()
            nn.functional.linear(tokens, weight)
            if session.device.type == "cuda":
                torch.cuda.synchronize(session.device)
            fastest = min(fastest, time.perf_counter() - started)
    return 2.0 * len(tokens) * weight.numel() / fastest


def grouped(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Several benchmarks as one: seconds that both would take for all their rows."""
    ours = sum(one["ours_s_per_row"] * one["rows"] for one in figures.values())
    reference = sum(one["reference_s_per_row"] * one["rows"] for one in figures.values())
    products = sum(one["products_s_per_row"] * one["rows"] for one in figures.values())
    rows = sum(one["rows"] for one in figures.values())
    return {
        "ratio": reference / ours,
        "bound": reference / products,
        "rows": rows,
        "ours_rows_per_s": rows / ours,
        "reference_rows_per_s": rows / reference,
        "differs": sum(one["differs"] for one in figures.values()),
        "differs_row_by_row": sum(one["differs_row_by_row"] for one in figures.values()),
        "compared": sum(one["compared"] for one in figures.values()),
    }


def _print(key: str, one: Mapping[str, Any]) -> None:
    print(
        f"{key}: {one['rows']} rows of {one['prompt_tokens']:.0f} tokens, {one['read_tokens_per_row']:.0f} read each; "
        "ours "
        f"{one['ours_s_per_row']:.3f} s a row ({one['products_s_per_row']:.3f} s of it products), reference "
        f"{one['reference_s_per_row']:.3f} (batch {one['reference_batch_rows']}, "
        f"{one['reference_rows']} rows): {one['ratio']:.1f}x, {one['differs']} outputs differ, "
        f"{one['differs_row_by_row']} also row by row",
        file=sys.stderr,
        flush=True,
    )


def _peak_memory_gib(session: Session) -> float:
    """The process's largest memory so far; on a GPU that of its allocator."""
    import torch

    if session.device.type == "cuda":
        return torch.cuda.max_memory_allocated(session.device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
