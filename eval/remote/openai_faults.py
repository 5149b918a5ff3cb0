"""What a reply of an OpenAI-compatible server says where it holds no answer: its status, also behind a 200, and its own
words.

They come as JSON of many forms, HTML or plain text. One printable line of at most LONGEST_MESSAGE characters is shown,
without the prompt, the key, or anything that looks like a key.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

from eval.remote.openai_form import GREEDY, clean
from fedfinlora.errors import printable

LONGEST_MESSAGE = 200
"""Most characters of a server's own words in an error."""
LONGEST_READ = 4000
"""Characters of a text or a page that are looked at for them."""
ECHO_CHARACTERS = 20
"""A message with so many characters in a row of the prompt, or a whole prompt of eight or more, repeats it."""

STATUS_OF = {
    "rate_limit": 429, "overloaded": 503, "unavailable": 503, "timeout": 408, "server_error": 500, "internal": 500,
    "authentication": 401, "invalid_api_key": 401, "permission": 403, "not_found": 404,
}  # fmt: skip
"""Parts of an error's code or type -> the status that belongs to it."""

_TOO_LONG = re.compile(
    r"context.?(length|window)|max_model_len|(prompt|input)s? (is |are )?too long|too many tokens", re.IGNORECASE
)
_LOOKS_LIKE_A_KEY = re.compile(
    r"(?i:bearer|basic)\s+[\w.~+/=-]{8,}|\b(?:sk|pk|hf|gsk|xai|nvapi|api|key|ghp)[-_][\w*.-]{8,}|\bAIza[\w-]{10,}|\beyJ[\w-]+\.[\w.-]+"
)


@dataclass(frozen=True)
class Fault:
    """What a reply that is no answer says."""

    message: str
    """One line, shortened; empty where it says nothing that may be shown."""
    code: str
    parameters: tuple[str, ...]
    """Parameters of the request that it names."""


def error_status(content: bytes) -> int:
    """The status that a reply should have had whose body is an error in spite of its 200, as gateways send; 0 where it
    is none.

    >>> (error_status(b'{"error": {"code": 429}}'), error_status(b'[{"error": "no such model"}]'),
    ... error_status(b'{"choices": []}'))
    (429, 400, 0)
    """
    reply = _json_of(content)
    if not isinstance(reply, dict) or reply.get("choices"):
        return 0
    error = reply if reply.get("object") == "error" else reply.get("error")
    if not error:
        return 0
    fields = error if isinstance(error, dict) else {}
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
    """What the body of a refusal says, without text of the prompt or the key.

    >>> read_fault(b"<html><head><title>502 Bad Gateway</title></head><body><h1>nginx</h1></body></html>", "",
    ... "").message
    '502 Bad Gateway nginx'
    """
    reply = _json_of(content)
    if reply is None:
        return Fault(_shown(_page_text(content), prompt, key), "", ())
    error = (reply.get("error") or _error_of_choice(reply) or reply) if isinstance(reply, dict) else {}
    fields = error if isinstance(error, dict) else {"message": error}
    detail = fields.get("detail")
    named = [fields.get("param")]
    if isinstance(detail, list):  # FastAPI lists the fields that it does not take; "input" there repeats the request
        entries = [entry for entry in detail if isinstance(entry, dict)]
        named += [place for entry in entries if isinstance(entry.get("loc"), list) for place in entry["loc"]]
        detail = "; ".join(str(entry.get("msg", "")) for entry in entries)
    candidates = (fields.get("message"), detail, fields.get("msg"), fields.get("title"), fields.get("code"))
    shown = _shown(next((part for part in candidates if isinstance(part, str) and part), ""), prompt, key)
    known = (*GREEDY, "seed", "max_tokens")
    parameters = [name for name in known if name in named]
    parameters += [name for name in known if re.search(rf"\b{name}\b", shown) and name not in parameters]
    return Fault(shown, str(fields.get("code") or ""), tuple(parameters))


def row_refusal(fault: Fault) -> str:
    """Why a server refuses this one row for good: too_long or content_filter, as a finish_reason; empty for any other
    reason.
    """
    if fault.code == "context_length_exceeded" or _TOO_LONG.search(fault.message):
        return "too_long"
    return "content_filter" if fault.code == "content_filter" else ""


def _json_of(content: bytes) -> Any:
    """The JSON of a reply, out of the list that some gateways put around an error; None where it is none."""
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return reply[0] if isinstance(reply, list) and reply else reply


def _error_of_choice(reply: dict[str, Any]) -> Any:
    """The error in the place of an answer (`finish_reason: error`); None where there is none."""
    choices = reply.get("choices")
    return choices[0].get("error") if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def _shown(text: str, prompt: str, key: str) -> str:
    """One printable line of a server's words, or "" where they repeat the prompt."""
    line = _LOOKS_LIKE_A_KEY.sub("[key]", printable(" ".join(clean(text, key).split())))[:LONGEST_MESSAGE]
    return "" if _repeats(line, prompt) else line


class _Page(HTMLParser):
    """Collects the text of a page that a reader would see, its title included."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in ("script", "style")))

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.texts.append(data)


def _page_text(content: bytes) -> str:
    """The words of a reply that is HTML or plain text; "" for one that is neither, such as half a JSON or bytes."""
    text = content[:LONGEST_READ].decode("utf-8", "replace").strip()
    if not text or text[0] in "{[" or "\ufffd" in text[:LONGEST_MESSAGE] or "\0" in text:
        return ""
    if "<" not in text:
        return text
    page = _Page()
    try:
        page.feed(text)
    except (AssertionError, ValueError):  # html.parser on declarations that are none
        return ""
    return " ".join(page.texts)


def _repeats(message: str, prompt: str) -> bool:
    """Whether a message holds a piece of the prompt."""
    plain = " ".join(prompt.split())
    if len(plain) < 8:
        return False
    length = min(ECHO_CHARACTERS, len(plain))
    return any(message[start : start + length] in plain for start in range(len(message) - length + 1))
