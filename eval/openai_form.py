"""The request and response forms of OpenAI-compatible servers: what is sent, and what a reply means.

/completions takes the raw prompt, which is FinLoRA's rule 1; /chat/completions puts it into the model's chat template. Nothing here
talks to a server, and nothing here returns text of a prompt or of the key.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

PATHS = {"completions": "/completions", "chat": "/chat/completions"}
"""Form of the interface -> path below the server's address."""
GREEDY = {"temperature": 0, "top_p": 1}
"""FinLoRA's rule 2: greedy in effect."""
LONGEST_MESSAGE = 200
"""Most characters of a server's own message in an error."""
ECHO_CHARACTERS = 20
"""A message that has so many characters in a row from the prompt, or a whole prompt of at least eight, repeats the prompt."""
SHORTEST_SECRET = 8
"""A shorter key is a placeholder such as "EMPTY", and may well be a word of an answer."""

STATUS_OF = {
    "rate_limit": 429, "overloaded": 503, "unavailable": 503, "timeout": 408, "server_error": 500, "internal": 500,
    "authentication": 401, "invalid_api_key": 401, "permission": 403, "not_found": 404,
}  # fmt: skip
"""Parts of an error's code or type -> the status that belongs to it."""

_TOO_LONG = re.compile(
    r"context.?(length|window)|max_model_len|(prompt|input)s? (is |are )?too long|too many tokens", re.IGNORECASE
)


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
        """The JSON of one request."""
        content = {"prompt": prompt} if self.api == "completions" else {"messages": [{"role": "user", "content": prompt}]}
        optional = {**GREEDY, "seed": seed}
        kept = {name: value for name, value in optional.items() if name not in self.left_out}
        return {"model": model, **content, self.budget_name: budget_tokens, **kept}

    def without(self, parameter: str) -> Form | None:
        """The form without a parameter that was rejected by name; None if that is not one that can be left out."""
        if parameter == self.budget_name == "max_tokens":
            return replace(self, budget_name="max_completion_tokens")
        if parameter in {*GREEDY, "seed"} - set(self.left_out):
            return replace(self, left_out=(*self.left_out, parameter))
        return None


@dataclass(frozen=True)
class RemoteAnswer:
    """One answer of a server."""

    text: str
    """As sent; an empty answer is an answer."""
    finish_reason: str
    """As sent: stop, length, content_filter, …; too_long where the server says that the prompt does not fit; empty where unsaid."""
    prompt_tokens: int | None
    """As the server counts (and bills) them; None where it does not say."""
    answer_tokens: int | None
    api: str
    """completions, or chat: the model's chat template stood around the prompt."""
    served_model: str
    """The model's name in the reply, e.g. a dated version."""
    tries: int = 1
    """Requests that it took."""


@dataclass(frozen=True)
class Fault:
    """What a reply that is no answer says."""

    message: str
    """One line, shortened; empty where it says nothing that may be shown."""
    code: str
    parameters: tuple[str, ...]
    """Parameters of the request that it names."""


class MalformedReply(Exception):
    """A reply with a good status that holds no answer."""


def read_answer(api: str, content: bytes, key: str) -> RemoteAnswer:
    """The answer in the body of a reply with status 200. MalformedReply says what is wrong with it."""
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise MalformedReply("a reply that is no JSON") from error
    try:
        choice = reply["choices"][0]
        text = choice["text"] if api == "completions" else _message_text(choice["message"])
        finish_reason = choice.get("finish_reason") or ""
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise MalformedReply("a reply without an answer") from error
    if not isinstance(text, str) or finish_reason == "error":
        raise MalformedReply("a reply without an answer")
    usage = reply.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return RemoteAnswer(
        text=_clean(text, key),
        finish_reason=_clean(str(finish_reason), key),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        answer_tokens=_count(usage.get("completion_tokens")),
        api=api,
        served_model=_clean(str(reply.get("model") or ""), key),
    )


def error_status(content: bytes) -> int:
    """The status that a reply should have had whose body is an error in spite of its 200, as gateways send; 0 where it is none.

    >>> error_status(b'{"error": {"code": 429}}'), error_status(b'{"error": "no such model"}'), error_status(b'{"choices": []}')
    (429, 400, 0)
    """
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        return 0
    if not isinstance(reply, dict) or not reply.get("error") or reply.get("choices"):
        return 0
    fields = reply["error"] if isinstance(reply["error"], dict) else {}
    for code in (fields.get("code"), fields.get("status"), fields.get("type")):
        number = int(code) if isinstance(code, int) or (isinstance(code, str) and code.isdecimal()) else 0
        if 400 <= number < 600:
            return number
        if isinstance(code, str):
            named = next((status for word, status in STATUS_OF.items() if word in code.lower()), 0)
            if named:
                return named
    return 400


def read_fault(content: bytes, prompt: str, key: str) -> Fault:
    """What the body of a refusal says, without text of the prompt or the key."""
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        return Fault("", "", ())
    error = reply.get("error", reply) if isinstance(reply, dict) else {}
    fields = error if isinstance(error, dict) else {"message": error}
    message, detail = fields.get("message"), fields.get("detail")
    named = [fields.get("param")]
    if isinstance(detail, list):  # FastAPI lists the fields that it does not take; "input" there repeats the request
        entries = [entry for entry in detail if isinstance(entry, dict)]
        named += [place for entry in entries if isinstance(entry.get("loc"), list) for place in entry["loc"]]
        detail = "; ".join(str(entry.get("msg", "")) for entry in entries)
    text = next((part for part in (message, detail) if isinstance(part, str) and part), "")
    shown = " ".join(_clean(text, key).split())[:LONGEST_MESSAGE]
    if _repeats(shown, prompt):
        shown = ""
    known = (*GREEDY, "seed", "max_tokens")
    parameters = [name for name in known if name in named]
    parameters += [name for name in known if re.search(rf"\b{name}\b", shown) and name not in parameters]
    return Fault(shown, str(fields.get("code") or ""), tuple(parameters))


def row_refusal(fault: Fault) -> str:
    """Why a server refuses this one row for good: too_long or content_filter, as a finish_reason; empty for any other reason."""
    if fault.code == "context_length_exceeded" or _TOO_LONG.search(fault.message):
        return "too_long"
    return "content_filter" if fault.code == "content_filter" else ""


def redacted(text: str, key: str) -> str:
    """The text without the key."""
    return text.replace(key, "[key]") if len(key) >= SHORTEST_SECRET else text


def _message_text(message: Any) -> Any:
    """A chat message's text. It is null where the model refused, was filtered or used its budget up before it answered."""
    content = message["content"]
    if isinstance(content, list):  # parts: text among others, such as thoughts
        return "".join(
            str(part["text"])
            for part in content
            if isinstance(part, dict)
            and isinstance(part.get("text"), str)
            and part.get("type", "text") in ("text", "output_text")
        )
    return (message.get("refusal") or "") if content is None else content


def _clean(text: str, key: str) -> str:
    """The text without the key and with half characters, which no file can hold, as question marks."""
    return redacted(text, key).encode("utf-8", "replace").decode("utf-8")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _repeats(message: str, prompt: str) -> bool:
    """Whether a message holds a piece of the prompt."""
    plain = " ".join(prompt.split())
    if len(plain) < 8:
        return False
    length = min(ECHO_CHARACTERS, len(plain))
    return any(message[start : start + length] in plain for start in range(len(message) - length + 1))
