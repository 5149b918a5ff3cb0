"""What is said of a server that gives no answers: each way of failing has its own sentence, with the server's own
words, and no key in it.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fake_server import Behaviour, Server, answer_body, fails_for, fine, refuses, sends, serving

from eval.remote.answers import RemoteSession
from eval.remote.model import KEY_VARIABLES, RemoteModel
from eval.remote.openai_faults import LONGEST_MESSAGE, read_fault
from fedfinlora.config.evaluation import EvaluationConfig
from fedfinlora.errors import UserError

KEY = "sk-test-0123456789abcdef"
PAGE = (
    b"<!doctype html><html><head><title>Sign "
    b"in</title><style>p{}</style><script>x=1</script></head><body><h1>Portal</h1></body>"
)
HTML = {"content_type": "text/html"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for variable in KEY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    with serving() as server:
        yield server


def ask(url: str, *prompts: str, chat: bool = False, name: str = "some-model", **limits: Any) -> list[str]:
    """The answers' texts in the order of the prompts; pauses take no time."""
    given = {"requests_at_once": 1, "request_retries": 20, "request_timeout_s": 5.0, **limits}
    model = RemoteModel(url, name, EvaluationConfig(**given), chat=chat)
    now_s = [0.0]

    def sleep(seconds: float, stop: threading.Event) -> None:
        now_s[0] += seconds

    with RemoteSession(model, lambda: now_s[0], sleep) as opened:
        found = dict(opened.answers(prompts, 10, "fpb"))
    return [found[index].text for index in range(len(prompts))]


def never(handler: Any, body: dict[str, Any]) -> None:
    handler.server.closing.wait(20)
    handler.close_connection = True


def chat_reply(**message: Any) -> Behaviour:
    return sends(200, {"choices": [{"message": message, "finish_reason": "stop"}]})


ANSWERS_WITHOUT_AN_ANSWER = (
    r"answers, but in a form that holds no answer: 10 requests in a row failed and none was answered .*--model-url.*/v1"
)
FAULTS: dict[str, tuple[Behaviour, str]] = {
    "no choices": (sends(200, {"choices": []}), rf"{ANSWERS_WITHOUT_AN_ANSWER}"),
    "no choices at all": (sends(200, {"text": "positive"}), rf"{ANSWERS_WITHOUT_AN_ANSWER}"),
    "wrong JSON": (sends(200, [1, 2]), ANSWERS_WITHOUT_AN_ANSWER),
    "null for a text": (sends(200, {"choices": [{"text": None}]}), rf"{ANSWERS_WITHOUT_AN_ANSWER}"),
    "half JSON": (sends(200, b'{"choices": [{"te'), ANSWERS_WITHOUT_AN_ANSWER),
    "its words in JSON": (sends(200, {"message": "use /api/generate"}),
        r'no answer: .*JSON without choices.*It says: "use /api/generate"'),
    "a page": (sends(200, PAGE, **HTML), r'no answer: .*no JSON.*It says: "Sign in Portal"'),
    "plain text": (sends(200, b"upstream is warming up"), r'no answer: .*It says: "upstream is warming up"'),
    "an error in the answer's place": (
        sends(200, {"choices": [{"text": "", "finish_reason": "error", "error": {"message": "provider gone"}}]}),
        r'no answer: .*ended with an error.*It says: "provider gone"',
    ),
    "an error behind 200": (sends(200, {"error": {"message": "no GPU left", "code": 503}}),
        r'fails: .*503 in the body of a 200.*"no GPU left"'),
    "an error's text behind 200": (sends(200, {"error": "model is not loaded"}),
        r'refuses the request \(400 in the body of a 200\).*"model is not loaded"'),
    "an error in a list": (sends(200, [{"error": {"message": "no quota here", "code": 403}}]),
        r'\(403 in the body of a 200\).*"no quota here"'),
    "an error object": (sends(200, {"object": "error", "message": "no such model", "code": 404}),
        r'no model some-model.*"no such model"'),
    "a page with 502": (sends(502, b"<h1>502 Bad Gateway</h1><hr>nginx", **HTML),
        r'fails: .*\(status 502\).*"502 Bad Gateway nginx".*log'),
    "JSON with 500": (refuses(500, "CUDA out of memory"), r'fails: .*\(status 500\).*"CUDA out of memory"'),
    "429": (refuses(429, "30 a minute"), (r'takes no more requests: .*\(too many requests \(429\)\).*"30 a '
                                         r'minute".*requests_per_minute')),
    "404": (sends(404, b"<title>Not Found</title>", **HTML),
        r'no model some-model.*\(404\).*"Not Found".*--model-name'),
    "401 of a page": (sends(401, b"Token expired", **HTML),
        r'wants a key \(401\).*"Token expired".*FEDFINLORA_API_KEY'),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_way_of_failing_has_its_own_words(server: Server, fault: str) -> None:
    server.behaviour, expected = FAULTS[fault]
    with pytest.raises(UserError, match=expected) as said:
        ask(server.url, "a", "b")
    assert "seems to be down" not in str(said.value)
    assert str(said.value).isprintable()


def test_only_a_server_without_a_connection_seems_to_be_down() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    with pytest.raises(
        UserError, match=r"seems to be down: 10 requests .*no connection: connection refused.*Start the server"
    ):
        ask(url, "a")


def test_a_host_without_an_address_is_named_as_that() -> None:
    with pytest.raises(UserError, match=r"seems to be down: .*\(no connection: .*(host|resolved)"):
        ask("http://models.invalid/v1", "a")


def test_a_server_that_takes_too_long_is_slow(server: Server) -> None:
    server.behaviour = never
    with pytest.raises(UserError, match=r"is too slow: .*no answer within 0.05 s.*request_timeout_s"):
        ask(server.url, "a", request_timeout_s=0.05)


def test_rows_whose_tries_are_spent_show_the_servers_words(server: Server) -> None:
    server.behaviour = fails_for("bad", refuses(500, "tokenizer crashed"))
    with pytest.raises(UserError, match=r'1 of 3 rows are unanswered.*status 500 \(1\).*It says: "tokenizer crashed"'):
        ask(server.url, "a", "bad", "b", request_retries=2)


@pytest.mark.parametrize(
    "message", [{"content": ""}, {"content": None}, {"content": [], "reasoning_content": "thinking …"}]
)
def test_empty_answers_are_answers_and_are_warned_about(
    server: Server, message: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    server.behaviour = chat_reply(**message)
    assert ask(server.url, "a", "b", chat=True) == ["", ""]
    assert "fpb: 2 of 2 answers are empty" in caplog.text


def test_a_few_empty_answers_are_not_warned_about(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.behaviour = fails_for("quiet", lambda handler, body: handler.reply(200, answer_body(body, "")))
    assert ask(server.url, "a", "quiet", "b") == ["a", "", "b"]
    assert "empty" not in caplog.text


SECRETS = (KEY, "hf_AbCdEfGhIjKlMnOp", "Bearer abcdef123456", "sk-proj-00000000****1111", "eyJhbGciOi.eyJzdWIi.c2ln")


@pytest.mark.parametrize("status", [200, 400, 401, 403, 500])
@pytest.mark.parametrize("as_json", [True, False])
def test_no_key_of_anybody_is_shown(
    server: Server, status: int, as_json: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY_VARIABLES[0], KEY)
    words = f"rejected \x1b[2J{' and '.join(SECRETS)} here"
    server.behaviour = (
        sends(status, {"error": {"message": words}}) if as_json else sends(status, f"<p>{words}</p>".encode())
    )
    with pytest.raises(UserError, match="rejected") as said:
        ask(server.url, "a")
    for shown in (str(said.value), caplog.text):
        assert not [secret for secret in SECRETS if secret in shown or secret.split()[-1] in shown]
    assert str(said.value).isprintable()


def test_the_servers_words_are_short() -> None:
    page = b"<p>" + b"word " * 10_000 + b"</p>"
    assert len(read_fault(page, "", "").message) <= LONGEST_MESSAGE
    assert read_fault(b"\x89PNG\r\n\x00\xff", "", "").message == ""
    assert (
        read_fault(b"Echo: Sales rose by a fifth in May. Answer:", "Sales rose by a fifth in May. Answer:", "").message
        == ""
    )


# --- another model than the one that was asked for ------------------------------------------------


def test_another_model_than_the_one_that_was_asked_is_said_once(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    ask(server.url, "a", "b", "c")
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert re.search("Asked for the model some-model, the server answers as dated-2026-01-01", line)


def test_several_other_models_are_each_said_up_to_a_few(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"replica-{index}" for index in range(6)]
    server.script = [sends(200, {"model": name, "choices": [{"text": "x"}]}) for name in names]
    ask(server.url, *"abcdef")
    assert [name for name in names if name in caplog.text.split("The answers are of")[0]] == names[:3]
    assert "The answers are of 6 models and are scored together: " in caplog.text


def test_a_model_that_changes_midway_is_counted(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    names = ["some-model", "some-model", "another", "some-model"]
    server.script = [sends(200, {"model": name, "choices": [{"text": "x"}]}) for name in names]
    ask(server.url, *"abcd")
    assert "The answers are of 2 models and are scored together: some-model (3), another (1)." in caplog.text


def test_the_model_that_was_asked_is_not_spoken_of(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.behaviour = fine
    ask(server.url, "a", name="dated-2026-01-01")
    assert not caplog.records


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("http://127.0.0.1:18722/v2", "http://127.0.0.1:18722/v2 (307)"),
        ("https://bank:pass@models.example:8443/v1/chat?token=secret#top", "https://models.example:8443/v1/chat (307)"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1 (307)"),
        ("//models.example/v1", "//models.example/v1 (307)"),
        ("/v2/completions?token=secret", "the path /v2/completions (307)"),
        ("", "another path (307)"),
        (f"https://a.example/{KEY}/v1", "https://a.example/[key]/v1 (307)"),
        (f"https://{KEY.upper()}.example/v1", "https://[key].example/v1 (307)"),
    ],
)
def test_a_redirect_is_shown_with_port_and_path_and_without_secrets(
    server: Server, location: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLES[0], KEY)
    server.behaviour = sends(307, location=location)
    with pytest.raises(UserError) as raised:
        ask(server.url, "a")
    assert f"redirects to {shown}" in str(raised.value)
    assert not any(secret in str(raised.value) for secret in ("secret", "pass@", KEY))
