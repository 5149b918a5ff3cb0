"""What an evaluation on a server would send and cost, without sending anything."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.catalog import BENCHMARKS
from data.encode import encode_prompts
from fedfinlora.errors import ConfigError

TOKENS_A_PRICE = 1_000_000
"""Prices are in USD for so many tokens."""


@dataclass(frozen=True)
class RequestEstimate:
    benchmark: str
    requests: int
    prompt_tokens: int
    """Over all prompts, as the configured model's tokenizer counts them."""
    most_answer_tokens: int
    """Requests times the benchmark's budget."""
    first_prompt_sha256: str
    """Of the first prompt as it would be sent; empty without requests."""


def estimate_requests(prompts: Mapping[str, Sequence[str]], tokenizer: Any) -> list[RequestEstimate]:
    """One entry for each benchmark key, in order. `prompts` holds what would be sent, so no rows that have an answer
    already.
    """
    estimates = []
    for key, texts in prompts.items():
        prompt_tokens = sum(len(ids) for ids in encode_prompts(tokenizer, texts))
        first = hashlib.sha256(texts[0].encode()).hexdigest() if texts else ""
        estimates.append(
            RequestEstimate(key, len(texts), prompt_tokens, len(texts) * BENCHMARKS[key].budget_tokens, first)
        )
    return estimates


def cost_usd(estimates: Sequence[RequestEstimate], price_in: float = 0.0, price_out: float = 0.0) -> float:
    """Most that the requests cost, without retries. Prices are in USD for a million tokens of prompts and of answers.

    >>> cost_usd([RequestEstimate("fpb", 1000, 50_000, 10_000, "")], price_in=2.0, price_out=8.0)
    0.18
    """
    if not (0 <= price_in < float("inf") and 0 <= price_out < float("inf")):
        raise ConfigError(f"A price must be 0 or more USD per million tokens, not {price_in:g} and {price_out:g}.")
    prompt_tokens = sum(entry.prompt_tokens for entry in estimates)
    answer_tokens = sum(entry.most_answer_tokens for entry in estimates)
    return (prompt_tokens * price_in + answer_tokens * price_out) / TOKENS_A_PRICE


def render_estimates(
    estimates: Sequence[RequestEstimate],
    tokenizer_name: str,
    price_in: float | None = None,
    price_out: float | None = None,
) -> str:
    """The dry run as text. A cost is shown where a price is given; a price that is not given counts as 0."""
    total = RequestEstimate(
        "all",
        sum(entry.requests for entry in estimates),
        sum(entry.prompt_tokens for entry in estimates),
        sum(entry.most_answer_tokens for entry in estimates),
        "",
    )
    lines = [
        "dry run: nothing was sent",
        "",
        f"{'benchmark':<26}{'requests':>10}{'prompt tokens':>16}{'most answer tokens':>20}",
    ]
    lines[-1] += "  first prompt's SHA-256"
    for entry in [*estimates, total]:
        line = f"{entry.benchmark:<26}{entry.requests:>10,}{entry.prompt_tokens:>16,}{entry.most_answer_tokens:>20,}"
        lines.append(f"{line}  {entry.first_prompt_sha256}".rstrip())
    lines += [
        "",
        f"Prompt tokens are an estimate by the tokenizer of {tokenizer_name} (model=…), without a chat template; "
        "the server's may differ.",
    ]
    if price_in is not None or price_out is not None:
        dollars = cost_usd(estimates, price_in or 0.0, price_out or 0.0)
        lines.append(
            f"Estimated cost, if no request is sent twice: at most {dollars:,.2f} USD "
            f"({price_in or 0:g} in, {price_out or 0:g} out, USD per million tokens)."
        )
    return "\n".join(lines)
