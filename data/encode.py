"""From rows to token ids: prompt and answer are tokenized apart, so that training and evaluation cut at the same place.

The prompt is FinLoRA's raw context (its rule 1); the answer is the target and the end-of-sequence token, the only
tokens with loss.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from data.rows import Row
from fedfinlora.errors import UserError
from fedfinlora.model.packing import Example

MARK = "\ufdd0"
"""The place of a row in a chat template: a character that no text has (a Unicode noncharacter)."""
_SHRINK = {"NFC": 4, "NFD": 1, "Prepend": 1, "Replace of one": 1}
"""Normalizer -> how many characters it makes one of at most: a letter with its marks decomposes into four at most
(Unicode TR 15).
"""
_KEEPS_TEXT = {"ByteLevel", "Digits", "Metaspace", "Split"}
"""Pre-tokenizers that drop nothing."""


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
        return _chat_ids(tokenizer, prompts)
    start = () if tokenizer.bos_token_id is None or not _adds_start(tokenizer) else (tokenizer.bos_token_id,)
    return [start + tuple(ids) for ids in _token_ids(tokenizer, prompts, True)]


def moves_space(prompt: str) -> bool:
    """Whether dataset.answer_space moves the prompt's last character to the answer.

    >>> moves_space("Answer: "), moves_space("Answer:"), moves_space("Answer:  ")
    (True, False, False)
    """
    return prompt.endswith(" ") and not prompt.endswith("  ")


def cut_rows(prompts: Sequence[str], targets: Sequence[str], answer_space: bool) -> tuple[list[str], list[str]]:
    """(prompts, targets) of rows as they are tokenized, cut where dataset.answer_space says."""
    moved = [answer_space and moves_space(prompt) for prompt in prompts]
    return (
        [prompt[:-1] if moves else prompt for prompt, moves in zip(prompts, moved, strict=True)],
        [f" {target}" if moves else target for target, moves in zip(targets, moved, strict=True)],
    )


def encode_targets(tokenizer: Any, targets: Sequence[str]) -> list[list[int]]:
    """Token ids of each target, without the end-of-sequence token that follows it."""
    return _token_ids(tokenizer, targets, True) if targets else []


def least_tokens(tokenizer: Any, row: Row, context_tokens: int, chat_template: bool = False) -> int:
    """A number of tokens over the context window that a row certainly reaches; 0 where that shows nothing.

    No token has more characters than the longest of the vocabulary, so 30 MB of text need not be tokenized.
    """
    if len(row.prompt) + len(row.target) <= context_tokens:
        return 0
    limit = token_limit(tokenizer)
    if not limit.longest:
        return 0
    prompt = _in_template(tokenizer, [row.prompt])[0] if chat_template else row.prompt
    least = limit.least(prompt) + limit.least(row.target) + 1
    return least if least > context_tokens else 0


class TokenLimit(NamedTuple):
    """What one token can stand for."""

    longest: int = 0
    """Characters of a text; 0 where the tokenizer sets no limit."""
    dropped: str = ""
    """Characters that become no token at all."""

    def least(self, text: str) -> int:
        """Tokens that a text has at least."""
        return -(-(len(text) - sum(map(text.count, self.dropped))) // self.longest)


def token_limit(tokenizer: Any) -> TokenLimit:
    """The most that one token can stand for. Only byte-level and byte-fallback BPE set a limit.

    Others drop blanks, or make one "unknown" token of any number of characters.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return TokenLimit() if backend is None else _token_limit(tokenizer, len(tokenizer))


def encode_rows(
    tokenizer: Any,
    rows: Sequence[Row],
    context_tokens: int,
    on_bad_row: str = "skip",
    chat_template: bool = False,
    answer_space: bool = False,
) -> EncodedRows:
    """Examples with loss on target and end-of-sequence. Too long rows are dropped and named, or stop with a
    UserError.
    """
    least = [least_tokens(tokenizer, row, context_tokens, chat_template) for row in rows]
    fitting = [row for row, tokens in zip(rows, least, strict=True) if not tokens]
    texts, targets = cut_rows(
        [row.prompt for row in fitting], [row.target for row in fitting], answer_space and not chat_template
    )
    prompts = iter(encode_prompts(tokenizer, texts, chat_template))
    answers = iter(encode_targets(tokenizer, targets))
    examples: list[Example] = []
    kept: list[Row] = []
    too_long: list[str] = []
    for row, at_least in zip(rows, least, strict=True):
        length = at_least
        if not at_least:
            example = Example(next(prompts), (*next(answers), tokenizer.eos_token_id), len(examples))
            length = len(example.prompt_ids) + len(example.answer_ids)
            if length <= context_tokens:
                examples.append(example)
                kept.append(row)
                continue
        if on_bad_row == "stop":
            raise UserError(
                f"Row {row.id} has {'at least ' if at_least else ''}{length} tokens, the context window "
                f"{context_tokens}. Shorten it, raise model.context_tokens, or set dataset.on_bad_row=skip."
            )
        too_long.append(row.id)
    return EncodedRows(tuple(examples), tuple(kept), tuple(too_long))


def _in_template(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    if not tokenizer.chat_template:
        raise UserError("dataset.chat_template=true, but this model's tokenizer has no chat template. Set it to false.")
    return [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        for prompt in prompts
    ]


def _chat_ids(tokenizer: Any, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of prompts in the chat template. Control tokens are the template's own alone: a row's "<|eot_id|>" is
    text.

    What lies between the last control token in front of the prompt and the first one behind it is tokenized as one
    text, so all other rows have the ids of the whole template's text.
    """
    front, _, back = _in_template(tokenizer, [MARK])[0].partition(MARK)
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    cut = max((front.rfind(token) + len(token) for token in special if token in front), default=0)
    rest = min((back.find(token) for token in special if token in back), default=len(back))
    texts = []
    for text in _in_template(tokenizer, prompts):
        if not (text.startswith(front) and text.endswith(back) and len(text) >= len(front) + len(back)):
            raise UserError(
                "This model's chat template depends on what a row says, so rows could make control tokens. Set "
                "dataset.chat_template=false."
            )
        texts.append(text[cut : len(text) - len(back) + rest])
    head, tail = _token_ids(tokenizer, [front[:cut], back[rest:]], False)
    return [(*head, *own, *tail) for own in _token_ids(tokenizer, texts, True)]


@lru_cache(maxsize=4)
def _token_limit(tokenizer: Any, _vocabulary_size: int) -> TokenLimit:
    """`token_limit`, kept for a tokenizer as long as no token is added to it."""
    backend = tokenizer.backend_tokenizer
    if type(backend.model).__name__ != "BPE" or any(
        token.lstrip or token.rstrip for token in tokenizer.added_tokens_decoder.values()
    ):
        return TokenLimit()
    normalizers, splitters = _kinds(backend.normalizer), _kinds(backend.pre_tokenizer)
    if not _SHRINK.keys() >= set(normalizers) or not _KEEPS_TEXT.issuperset(splitters):
        return TokenLimit()
    vocabulary = tokenizer.get_vocab()
    if "ByteLevel" in splitters:
        spelled = _byte_level_letters()
    elif backend.model.byte_fallback:
        spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        return TokenLimit()
    missing = [byte for byte in range(0xC0) if spelled[byte] not in vocabulary]
    if any(byte >= 0x80 for byte in missing):  # every character outside of ASCII has a byte from 0x80 to 0xBF
        return TokenLimit()
    shrink = max((_SHRINK[kind] for kind in normalizers), default=1)
    return TokenLimit(shrink * max(map(len, vocabulary)), "".join(map(chr, missing)))


def _byte_level_letters() -> list[str]:
    """The letter that represents each byte in a byte-level vocabulary: itself where it can be printed, else one from
    U+0100 on.
    """
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printed]
    return [chr(byte) if byte in printed else chr(0x100 + others.index(byte)) for byte in range(256)]


def _kinds(part: Any) -> list[str]:
    """The types of a normalizer or pre-tokenizer and of its parts; "" for one that may drop text."""
    if part is None:
        return []

    def of(state: dict[str, Any]) -> list[str]:
        kind = state["type"]
        if kind == "Sequence":
            return [name for inner in state.get("normalizers", state.get("pretokenizers", [])) for name in of(inner)]
        if kind == "Replace" and len(state["pattern"].get("String", "")) == 1 and state["content"]:
            return ["Replace of one"]
        return ["" if state.get("behavior") == "Removed" else kind]

    return of(json.loads(part.__getstate__()))


def _token_ids(tokenizer: Any, texts: Sequence[str], plain: bool) -> list[list[int]]:
    """Token ids. `plain` reads "<|endoftext|>" and the like in a row as the text that it is, not as the token."""
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=plain)["input_ids"]
    return ids


def _adds_start(tokenizer: Any) -> bool:
    """Whether the tokenizer itself begins a text with its beginning-of-sequence token (Llama 3 does, SmolLM2 does
    not).
    """
    return bool(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)
