"""Answering in `bench gpu`: our decoding next to transformers' `generate` in batches of 32, and next to vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch

from benchmarks.benches.gpu_correctness import moved_adapter
from benchmarks.benches.gpu_setting import config_of, rows_of, seconds_of
from benchmarks.benches.gpu_ties import own_logits, tie_limit, where_they_part
from eval.decoding.generation import Generated, generate
from eval.decoding.plain_generation import generate_plainly
from fedfinlora.config.evaluation import EvaluationConfig
from fedfinlora.config.model import ModelConfig
from fedfinlora.model.base_checks import configuration_of
from fedfinlora.model.devices import free_bytes
from fedfinlora.model.embedded import embedded_folder
from fedfinlora.model.loading import get_session
from fedfinlora.model.packing import Tokens

BATCH_ROWS = 32
READ_TOKENS = 16384
"""batch_tokens of our reading."""
CACHE_SHARE = 0.6
CPU_SHARE, CPU_ROWS = 0.05, 8


class Asked(NamedTuple):
    """Prompts of a set of `gpu_setting.SETS`."""

    steps: int
    """So many times the set's rows."""
    budget_tokens: int
    reference_rows: int
    """Rows that `generate` answers: it is linear in rows."""


ASKED: Mapping[str, Asked] = {"short": Asked(32, 8, 128), "filings": Asked(8, 16, 32)}


def evaluation(path: str, precision: str, device_name: str) -> dict[str, Any]:
    """The section of one precision: rows a second of both, and outputs that differ by more than near ties."""
    config = config_of(path, precision, device_name)
    session = get_session(config)
    moved_adapter(session, config)
    vocabulary = cast(Any, session.model).config.vocab_size
    ends = [session.tokenizer.eos_token_id]
    cpu = session.device.type == "cpu"
    found: dict[str, Any] = {"sets": {}, "wrong": [], "shown": []}
    for name, asked in ASKED.items():
        rows = rows_of(name, vocabulary, config.seed, CPU_SHARE if cpu else 1.0, asked.steps)
        prompts = [row.prompt_ids for row in rows][: CPU_ROWS if cpu else None]
        few = prompts[: asked.reference_rows]
        gib = cache_gib(session.device)
        ours: list[Generated] = []
        theirs: list[Tokens] = []

        def answer(
            asked: Sequence[Tokens], budget: int = asked.budget_tokens, gib: float = gib, to: list[Any] = ours
        ) -> None:
            to.append(generate(session.model, asked, budget, ends, batch_tokens=READ_TOKENS, cache_gib=gib))

        def refer(asked: Sequence[Tokens], budget: int = asked.budget_tokens, to: list[Any] = theirs) -> None:
            to += generate_plainly(session.model, asked, budget, ends, batch_rows=BATCH_ROWS)

        answer(prompts[:CPU_ROWS])  # warm-up
        refer(few[:2])
        ours.clear()
        theirs.clear()
        our_s = seconds_of(session.device, partial(answer, prompts))
        their_s = seconds_of(session.device, partial(refer, few))
        answers = [one.tokens for one in ours[0].answers[: len(few)]]
        parting = [place for place, (one, other) in enumerate(zip(answers, theirs, strict=True)) if one != other]
        logits_of = own_logits(session)
        parts = [where_they_part(logits_of, ends[0], few[place], answers[place], theirs[place]) for place in parting]
        gaps = [part.gap for part in parts]
        if not all(part.is_near_tie(tie_limit(session)) for part in parts):
            found["wrong"].append(f"{name}: an answer differs from generate by {max(gaps):.2g} standard deviations")
        one = found["sets"][name] = {
            "rows": len(prompts),
            "rows_per_s": len(prompts) / our_s,
            "generate_rows_per_s": len(few) / their_s,
            "times_generate": (len(prompts) / our_s) / (len(few) / their_s),
            "prompt_tokens": ours[0].prompt_tokens,
            "read_tokens": ours[0].read_tokens,
            "written_tokens": ours[0].written_tokens,
            "graph_steps": ours[0].graph_steps,
            "peak_cache_gib": ours[0].peak_cache_bytes / 2**30,
            "answers_that_part": len(parting),
            "compared": len(few),
            "largest_gap": max(gaps, default=0.0),
        }
        found["shown"].append(
            f"  {name}: {one['rows_per_s']:.1f} rows a second, {one['times_generate']:.1f}x generate, "
            f"{len(parting)} of {len(few)} answers part (largest gap {one['largest_gap']:.2g}), "
            f"{ours[0].graph_steps} steps by a CUDA graph"
        )
    return found


def cache_gib(device: torch.device) -> float:
    """Most memory for keys and values: CACHE_SHARE of what is free on a GPU, else the setting's default."""
    return CACHE_SHARE * free_bytes(device) / 2**30 if device.type == "cuda" else EvaluationConfig().cache_gib


def vllm(path: str) -> dict[str, Any]:
    """Rows a second of vLLM on the same prompts: the same architecture with its own weights (load_format=dummy)."""
    from vllm import LLM, SamplingParams

    vocabulary = configuration_of(ModelConfig(path=path)).vocab_size
    model = LLM(
        model=str(embedded_folder(path)),
        load_format="dummy",
        skip_tokenizer_init=True,
        enable_prefix_caching=True,
        max_model_len=8192,
    )
    found: dict[str, Any] = {"sets": {}}
    for name, asked in ASKED.items():
        prompts = [{"prompt_token_ids": list(row.prompt_ids)} for row in rows_of(name, vocabulary, 0, 1.0, asked.steps)]
        limits = SamplingParams(temperature=0.0, max_tokens=asked.budget_tokens, ignore_eos=True, detokenize=False)
        model.generate(prompts[:8], limits, use_tqdm=False)
        work = partial(model.generate, prompts, limits, use_tqdm=False)
        seconds = seconds_of(torch.device("cuda"), work)
        found["sets"][name] = {"rows": len(prompts), "rows_per_s": len(prompts) / seconds}
    return found
