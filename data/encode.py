"""From rows to token ids: prompt and answer are tokenized apart, so that training and evaluation cut at the same place.

The prompt is FinLoRA's raw context (its rule 1); the answer is the target and the end-of-sequence token, the only tokens with loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.rows import Row
from fedfinlora.errors import UserError
from fedfinlora.packing import Example


@dataclass(frozen=True)
class EncodedRows:
    """Examples in the order of the rows, and the ids of rows that do not fit the context window."""

    examples: tuple[Example, ...]
    rows: tuple[Row, ...]
    """The rows behind the examples."""
    too_long: tuple[str, ...]


def encode_prompts(tokenizer: Any, prompts: Sequence[str], chat_template: bool = False) -> list[tuple[int, ...]]:
    """Token ids of each prompt, with the tokenizer's beginning-of-sequence token where the model has one."""
    if not prompts:
        return []
    if chat_template:
        if not tokenizer.chat_template:
            raise UserError("dataset.chat_template=true, but this model's tokenizer has no chat template. Set it to false.")
        prompts = [
            tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
            for prompt in prompts
        ]
    start = () if chat_template or tokenizer.bos_token_id is None or not _adds_start(tokenizer) else (tokenizer.bos_token_id,)
    return [start + tuple(ids) for ids in _token_ids(tokenizer, prompts, not chat_template)]


def encode_targets(tokenizer: Any, targets: Sequence[str]) -> list[list[int]]:
    """Token ids of each target, without the end-of-sequence token that follows it."""
    return _token_ids(tokenizer, targets, True) if targets else []


def encode_rows(
    tokenizer: Any,
    rows: Sequence[Row],
    context_tokens: int,
    on_bad_row: str = "skip",
    chat_template: bool = False,
) -> EncodedRows:
    """Examples with loss on target and end-of-sequence. Too long rows are left out and named, or stop with a UserError."""
    prompts = encode_prompts(tokenizer, [row.prompt for row in rows], chat_template)
    answers = encode_targets(tokenizer, [row.target for row in rows])
    examples: list[Example] = []
    kept: list[Row] = []
    too_long: list[str] = []
    for row, prompt_ids, answer_ids in zip(rows, prompts, answers, strict=True):
        example = Example(prompt_ids, (*answer_ids, tokenizer.eos_token_id), len(examples))
        length = len(example.prompt_ids) + len(example.answer_ids)
        if length <= context_tokens:
            examples.append(example)
            kept.append(row)
            continue
        if on_bad_row == "stop":
            raise UserError(
                f"Row {row.id} has {length} tokens, the context window {context_tokens}. "
                "Shorten it, raise model.context_tokens, or set dataset.on_bad_row=skip."
            )
        too_long.append(row.id)
    return EncodedRows(tuple(examples), tuple(kept), tuple(too_long))


def _token_ids(tokenizer: Any, texts: Sequence[str], plain: bool) -> list[list[int]]:
    """Token ids. `plain` reads "<|endoftext|>" and the like in a row as the text that it is, not as the token."""
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=plain)["input_ids"]
    return ids


def _adds_start(tokenizer: Any) -> bool:
    """Whether the tokenizer itself begins a text with its beginning-of-sequence token (Llama 3 does, SmolLM2 does not)."""
    return bool(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)
