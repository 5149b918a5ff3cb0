"""The HTTP side of `serve`: models, completions and chat completions in the form of OpenAI's API, whole or as a stream.

`model` names the adapter; BASE is the base model without one. A prompt is put to an adapter as its run trained it: raw,
or in the chat template where the run had dataset.chat_template=true.
"""

from __future__ import annotations

import asyncio
import json
import queue
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedfinlora.errors import UserError, printable
from fedfinlora.serving.engine import Busy, Engine, Request
from fedfinlora.serving.pages import LOCAL_PAGES, LocalPagesOnly

BASE = "base"
MOST_BODY_BYTES = 2**20
ASK_EVERY_S = 0.005
LEAST_TEMPERATURE = 1e-3
"""Below it sampling is greedy: dividing logits by less would leave float32's range."""
UNFINISHED = "\ufffd"
"""What a decoder gives for the first bytes of a character: such a piece waits for the rest."""


@dataclass(frozen=True)
class Served:
    engine: Engine
    adapters: Sequence[str]
    encode: Callable[[str, str], Sequence[int]]
    """(adapter, text) -> token ids of the prompt, as the adapter was trained."""
    decode: Callable[[Sequence[int]], str]
    context_tokens: int
    most_tokens: int
    """Of an answer."""


class Refused(UserError):
    """What a request asks for cannot be done; `status` is HTTP's."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Piece:
    """A part of an answer: text, how many tokens there are so far, and at the end the reason."""

    text: str
    tokens: int
    reason: str = ""


def application(served: Served, only_loopback: bool = True) -> Any:
    """The ASGI application; `only_loopback` where it is asked by names of this machine alone."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.cors import CORSMiddleware
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    created = int(time.time())

    async def health(http: Any) -> Any:
        return JSONResponse({"status": "ok"})

    async def models(http: Any) -> Any:
        names = (BASE, *served.adapters)
        listed = [{"id": name, "object": "model", "created": created, "owned_by": "fedfinlora"} for name in names]
        return JSONResponse({"object": "list", "data": listed})

    async def completions(http: Any) -> Any:
        return await answered(http, False)

    async def chat(http: Any) -> Any:
        return await answered(http, True)

    async def answered(http: Any, is_chat: bool) -> Any:
        try:
            body = await _body(http)
            request, stops = request_of(served, body, is_chat)
            served.engine.submit(request)
        except (Refused, Busy) as error:
            return _refusal(str(error), getattr(error, "status", 429))
        form = _Form(str(body["model"]), is_chat)
        pieces = pieces_of(served, request, stops, http.is_disconnected)
        if body.get("stream"):
            return StreamingResponse(_events(pieces, form), media_type="text/event-stream")
        found = [piece async for piece in pieces]
        if not found or found[-1].reason == "cancelled":  # the client has gone, or the server ends
            return _refusal("The answer was broken off.", 503)
        if found[-1].reason == "failed":
            return _refusal("The answer could not be made; the server's log says why.", 500)
        text = "".join(piece.text for piece in found)
        return JSONResponse(form.whole(text, found[-1], len(request.prompt)))

    def _refusal(message: str, status: int) -> Any:
        kind = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}.get(status, "invalid_request_error")
        return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status)

    async def no_such_path(http: Any, error: Any) -> Any:
        return _refusal(f"{http.method} {http.url.path} is not served here: {error.detail}.", error.status_code)

    post = ["POST"]
    return Starlette(
        exception_handlers={404: no_such_path, 405: no_such_path},
        middleware=[
            Middleware(LocalPagesOnly, only_loopback=only_loopback),
            Middleware(CORSMiddleware, allow_origin_regex=LOCAL_PAGES, allow_methods=["*"], allow_headers=["*"]),
        ],
        routes=[
            Route("/health", health), Route("/v1/models", models),
            Route("/v1/completions", completions, methods=post), Route("/v1/chat/completions", chat, methods=post),
        ]
    )  # fmt: skip


async def _body(http: Any) -> Mapping[str, Any]:
    content = b""
    async for part in http.stream():
        content += part
        if len(content) > MOST_BODY_BYTES:
            raise Refused(f"The request has more than {MOST_BODY_BYTES} bytes.", 413)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refused("The request is not JSON.") from error
    if not isinstance(body, dict):
        raise Refused("The request is not a JSON object.")
    return body


def request_of(served: Served, body: Mapping[str, Any], is_chat: bool) -> tuple[Request, tuple[str, ...]]:
    """What a body asks for, and its stop texts. Refused with the field where it cannot be read."""
    model = body.get("model")
    if model is None:
        raise Refused(f"model is missing. Choose one of: {', '.join((BASE, *served.adapters))}.")
    if model != BASE and model not in served.adapters:
        names = ", ".join((BASE, *served.adapters))
        raise Refused(f"There is no model {printable(str(model))[:80]!r}. Choose one of: {names}.", 404)
    adapter = "" if model == BASE else str(model)
    most = _number(body, "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens", 256, 1)
    stop = body.get("stop") or []
    stops = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else None
    if stops is None or len(stops) > 4 or not all(isinstance(each, str) and each for each in stops):
        raise Refused("stop must be a text, or at most four of them.")
    if _number(body, "n", 1, 1) != 1:
        raise Refused("n must be 1: one answer a request.")
    text = _chat_text(body.get("messages")) if is_chat else body.get("prompt")
    if not isinstance(text, str):
        raise Refused("prompt must be a text; several at a time are several requests.")
    if not text.strip():
        raise Refused("The prompt is empty.")
    if text.encode(errors="replace").decode() != text:
        raise Refused("The prompt is no text: it has half of a surrogate pair.")
    prompt = served.encode(adapter, text)
    room = served.context_tokens - len(prompt)
    if room < 1:
        raise Refused(f"The prompt has {len(prompt)} tokens, and the model reads {served.context_tokens}.")
    seed = body.get("seed")
    if not (seed is None or (isinstance(seed, int) and 0 <= seed < 2**63)):
        raise Refused("seed must be a whole number of at least 0.")
    temperature, top_p = _number(body, "temperature", 0.0, 0.0), _number(body, "top_p", 1.0, 0.0)
    if temperature < LEAST_TEMPERATURE or top_p == 0:
        temperature = 0.0
    most_tokens = min(int(most), served.most_tokens, room)
    return Request(prompt, adapter, most_tokens, temperature, min(top_p, 1.0), seed), stops


def _number(body: Mapping[str, Any], key: str, default: float, least: float) -> float:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 2**31:
        raise Refused(f"{key} must be a number of at least {least:g}.")
    return value


def _chat_text(messages: Any) -> str:
    """The text of a conversation: all messages, one below the other. FinLoRA's rows have one."""
    if not isinstance(messages, list) or not messages:
        raise Refused("messages must be a list with at least one message.")
    texts = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):  # parts, of which only texts can be read
            content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
        if not isinstance(content, str):
            raise Refused("Each message needs a content that is a text.")
        texts.append(content)
    return "\n".join(texts)


async def pieces_of(
    served: Served, request: Request, stops: Sequence[str], hung_up: Callable[[], Any]
) -> AsyncIterator[Piece]:
    """The answer as it comes. A client that hangs up, and one who stops listening, ends the decoding too."""
    tokens: list[int] = []
    shown = 0
    try:
        while True:
            try:
                found = request.tokens.get_nowait()
            except queue.Empty:
                if await hung_up():
                    return
                await asyncio.sleep(ASK_EVERY_S)
                continue
            if isinstance(found, int):
                tokens.append(found)
            text = served.decode(tokens)
            place = min((at for stop in stops if (at := text.find(stop)) >= 0), default=-1)
            if place >= 0:
                yield Piece(text[shown:place], len(tokens), "stop")
                return
            if isinstance(found, str):
                yield Piece(text[shown:], len(tokens), found)
                return
            end = len(text) - _held_back(text, stops)
            if end > shown:
                yield Piece(text[shown:end], len(tokens))
                shown = end
    finally:
        request.cancelled.set()


def _held_back(text: str, stops: Sequence[str]) -> int:
    """Characters at the end that may belong to a stop text, or to a character whose bytes are not all there."""
    if text.endswith(UNFINISHED):
        return len(text) - len(text.rstrip(UNFINISHED))
    return max(
        (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])),
        default=0,
    )


class _Form:
    """OpenAI's form of an answer, whole or in events."""

    def __init__(self, model: str, is_chat: bool) -> None:
        self._is_chat = is_chat
        kind = "chat.completion" if is_chat else "text_completion"
        name = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._head = {"id": name, "object": kind, "created": int(time.time()), "model": model}

    def whole(self, text: str, last: Piece, prompt_tokens: int) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        usage = {
            "prompt_tokens": prompt_tokens, "completion_tokens": last.tokens,
            "total_tokens": prompt_tokens + last.tokens,
        }  # fmt: skip
        return self._head | {"choices": [{"index": 0, **said, "finish_reason": last.reason}], "usage": usage}

    def event(self, piece: Piece) -> dict[str, Any]:
        said = {"delta": {"role": "assistant", "content": piece.text}} if self._is_chat else {"text": piece.text}
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return self._head | {
            "object": kind,
            "choices": [{"index": 0, **said, "finish_reason": piece.reason or None}],
        }


async def _events(pieces: AsyncIterator[Piece], form: _Form) -> AsyncIterator[str]:
    async for piece in pieces:
        yield f"data: {json.dumps(form.event(piece), ensure_ascii=False, allow_nan=False)}\n\n"
    yield "data: [DONE]\n\n"
