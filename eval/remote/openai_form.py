"""The request and response forms of OpenAI-compatible servers: what is sent, and the answer in a reply.

/completions takes the raw prompt, which is FinLoRA's rule 1; /chat/completions puts it into the model's chat template.
Nothing here talks to a server, or returns text of a prompt or of the key.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

PATHS = {"completions": "/completions", "chat": "/chat/completions"}
"""Form of the interface -> path below the server's address."""
GREEDY = {"temperature": 0, "top_p": 1}
"""FinLoRA's rule 2: greedy in effect."""
HELD_BACK = ("content_filter", "safety", "refusal")
"""Finish reasons of an answer that was withheld: it is empty, also where the reply has no place for it."""
SHORTEST_SECRET = 8
"""A shorter key is a placeholder such as "EMPTY", and may well be a word of an answer."""


@dataclass(frozen=True)
class Form:
    """How requests are written, as far as it was learnt from the server's replies."""

    api: str = "completions"
    """A key of PATHS."""
    left_out: tuple[str, ...] = ()
    """Optional parameters that the server does not take."""
    budget_name: str = "max_tokens"
    """OpenAI's newer models take max_completion_tokens only."""

    def body(self, model: str, prompt: str, budget_tokens: int, seed: int) -> dict[str, Any]:
        content = (
            {"prompt": prompt} if self.api == "completions" else {"messages": [{"role": "user", "content": prompt}]}
        )
        optional = {**GREEDY, "seed": seed}
        kept = {name: value for name, value in optional.items() if name not in self.left_out}
        return {"model": model, **content, self.budget_name: budget_tokens, **kept}

    def without(self, parameter: str) -> Form | None:
        """The form without a parameter that was rejected by name; None if it is not optional."""
        if parameter == self.budget_name == "max_tokens":
            return replace(self, budget_name="max_completion_tokens")
        if parameter in {*GREEDY, "seed"} - set(self.left_out):
            return replace(self, left_out=(*self.left_out, parameter))
        return None


@dataclass(frozen=True)
class RemoteAnswer:
    text: str
    """As sent; may be empty, and null where the reply says why it ended (a refusal, the budget, …)."""
    finish_reason: str
    """As sent: stop, length, content_filter, …; refusal where the message says so; too_long where the server says that
    the prompt does not fit; empty where unsaid.
    """
    prompt_tokens: int | None
    """As the server counts (and bills) them; None where it does not say."""
    answer_tokens: int | None
    api: str
    """completions, or chat: the model's chat template stood around the prompt."""
    served_model: str
    """The model's name in the reply, e.g. a dated version."""
    tries: int = 1
    """Requests that it took."""


class MalformedReply(Exception):
    """A reply with a good status that holds no answer."""


def read_answer(api: str, content: bytes, key: str) -> RemoteAnswer:
    """The answer in the body of a reply with status 200. MalformedReply says what is wrong with it."""
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise MalformedReply("a reply that is no JSON") from error
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise MalformedReply("JSON without choices")
    if reply.get("error"):
        raise MalformedReply("an answer next to an error")
    choice = next((one for one in choices if isinstance(one, dict) and one.get("index") == 0), choices[0])
    finish_reason = choice.get("finish_reason") or ""
    if finish_reason == "error":
        raise MalformedReply("an answer that ended with an error")
    message = choice.get("message")
    message = message if api == "chat" and isinstance(message, dict) else {}
    if message.get("content") is None and message.get("refusal"):
        finish_reason = "refusal"
    text = choice.get("text") if api == "completions" else _message_text(message)
    null = "text" in choice if api == "completions" else bool(message)
    if text is None and ((null and finish_reason) or finish_reason in HELD_BACK or "content" in message):
        text = ""
    if not isinstance(text, str):
        raise MalformedReply(f"choices without a {'text' if api == 'completions' else 'message'}")
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return RemoteAnswer(
        text=clean(text, key),
        finish_reason=clean(str(finish_reason), key),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        answer_tokens=_count(usage.get("completion_tokens")),
        api=api,
        served_model=clean(served if isinstance(served := reply.get("model"), str) else "", key),
    )


def redacted(text: str, key: str) -> str:
    return text.replace(key, "[key]") if len(key) >= SHORTEST_SECRET else text


def _message_text(message: dict[str, Any]) -> Any:
    """A chat message's text; its refusal where it has none, None where it has neither."""
    content = message.get("content")
    if isinstance(content, list):  # parts: text among others, such as thoughts
        return "".join(
            str(part["text"])
            for part in content
            if isinstance(part, dict)
            and isinstance(part.get("text"), str)
            and part.get("type", "text") in ("text", "output_text")
        )
    return message.get("refusal") if content is None else content


def clean(text: str, key: str) -> str:
    """The text without the key and with half characters, which no file can hold, as question marks."""
    return redacted(text, key).encode("utf-8", "replace").decode("utf-8")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
