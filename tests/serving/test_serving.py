"""Several adapters served on one base: each request gets its own adapter's tokens, and nothing holds up the others."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from conftest import set_random_adapter, tiny_config

from eval.decoding.plain_generation import generate_plainly
from fedfinlora.commands import serve as command
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.model.adapter import read_adapter, save_adapter
from fedfinlora.model.loading import get_session
from fedfinlora.serving.engine import Busy, Engine, Request
from fedfinlora.serving.http import application

PROMPTS = [tuple(range(10, 10 + count)) for count in (3, 17, 9, 30)]
TOKENS = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four adapters of the tiny model, two of them rsLoRA."""
    found = {}
    for number, method in enumerate(("lora", "rslora", "lora", "rslora")):
        config = tiny_config(method=method)
        session = get_session(config)
        set_random_adapter(session, seed=number)
        found[f"a{number}"] = tmp_path_factory.mktemp("adapters") / f"a{number}"
        save_adapter(found[f"a{number}"], read_adapter(session.model) * 5, session.layout, config.peft, config.model)
    return found


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> dict[str, list[tuple[int, ...]]]:
    """What plain PEFT and transformers' `generate` give for each prompt, by adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from fedfinlora.model.embedded import embedded_folder

    found = {}
    for name, folder in ({"": None} | folders).items():
        model: Any = AutoModelForCausalLM.from_pretrained(embedded_folder("memory:tiny-random"))
        model = PeftModel.from_pretrained(model, folder) if folder else model
        found[name] = list(generate_plainly(model, PROMPTS, TOKENS, [1]))
    assert len({tuple(each) for each in found.values()}) == 5, "every adapter answers differently"
    return found


@pytest.fixture
def served(folders: dict[str, Path]) -> Iterator[Any]:
    found = command.prepare([f"{name}={folder}" for name, folder in folders.items()], 2, 3, 64)
    yield found
    found.engine.close()


def answer(request: Request) -> tuple[tuple[int, ...], str]:
    tokens = []
    while isinstance(token := request.tokens.get(timeout=30), int):
        tokens.append(token)
    return tuple(tokens), token


def test_each_row_of_a_mixed_batch_gets_its_own_adapters_tokens(
    served: Any, expected: dict[str, list[tuple[int, ...]]]
) -> None:
    """Five adapters, room for two of them and three rows: they come and go while others are decoded."""
    asked = [(name, place) for place in range(len(PROMPTS)) for name in expected]
    requests = [Request(PROMPTS[place], name, TOKENS) for name, place in asked]
    for request in requests:
        served.engine.submit(request)
    for (name, place), request in zip(asked, requests, strict=True):
        tokens, reason = answer(request)
        assert (tokens, reason) == (
            expected[name][place],
            "stop" if len(expected[name][place]) < TOKENS else "length",
        )


def test_samples_follow_the_seed_and_a_small_top_p_is_greedy(
    served: Any, expected: dict[str, list[tuple[int, ...]]]
) -> None:
    drawn = [Request(PROMPTS[0], "a1", TOKENS, 2.0, 1.0, seed) for seed in (1, 1, 2)]
    greedy = Request(PROMPTS[0], "a1", TOKENS, 2.0, 1e-9, 3)
    for request in (*drawn, greedy):
        served.engine.submit(request)
    one, again, other = (answer(request)[0] for request in drawn)
    assert one == again != other
    assert answer(greedy)[0] == expected["a1"][0]


def test_who_hangs_up_leaves_and_too_many_are_refused(served: Any) -> None:
    stuck = [Request(PROMPTS[0], "a0", 10**6) for _ in range(3)]
    waiting = [Request(PROMPTS[0], "a0", 1) for _ in range(24)]
    for request in (*stuck, *waiting):
        while True:
            try:
                served.engine.submit(request)
                break
            except Busy:
                time.sleep(0.01)
    late = [Request(PROMPTS[0], "a0", 1) for _ in range(4)]
    with pytest.raises(Busy, match="24 requests wait already"):
        list(map(served.engine.submit, late))
    for request in stuck:
        request.cancelled.set()
    assert [answer(request)[1] for request in stuck] == ["cancelled"] * 3
    assert {answer(request)[1] for request in waiting} <= {"length", "stop"}


def test_a_fault_in_a_pass_ends_its_requests_and_the_next_are_answered(
    served: Any, expected: dict[str, list[tuple[int, ...]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Engine._step

    def fails(engine: Engine) -> None:
        monkeypatch.setattr(Engine, "_step", step)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Engine, "_step", fails)
    first, second = Request(PROMPTS[0], "a0", TOKENS), Request(PROMPTS[1], "a2", TOKENS)
    served.engine.submit(first)
    assert answer(first)[1] == "failed"
    served.engine.submit(second)
    assert answer(second)[0] == expected["a2"][1]


@pytest.fixture
def address(served: Any) -> Iterator[str]:
    """The server on loopback, in a thread."""
    server = uvicorn.Server(uvicorn.Config(application(served), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_openais_own_client_asks_lists_and_streams(address: str, served: Any) -> None:
    from openai import NotFoundError, OpenAI

    client = OpenAI(base_url=f"{address}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["base", "a0", "a1", "a2", "a3"]
    settings: Any = {"model": "a1", "max_tokens": TOKENS, "temperature": 0.0}
    whole = client.completions.create(prompt="rate this: up", **settings)
    parts = [part.choices[0] for part in client.completions.create(prompt="rate this: up", stream=True, **settings)]
    assert "".join(part.text for part in parts) == whole.choices[0].text
    assert [part.finish_reason for part in parts][-1] == whole.choices[0].finish_reason
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= TOKENS
    chat = client.chat.completions.create(messages=[{"role": "user", "content": "rate this: up"}], **settings)
    assert chat.choices[0].message.content == whole.choices[0].text, "trained without a chat template, so raw"
    text = whole.choices[0].text
    if len(text) > 3:
        cut = client.completions.create(prompt="rate this: up", stop=[text[2:4]], **settings)
        assert cut.choices[0].text == text[: text.index(text[2:4])]
    with pytest.raises(NotFoundError, match="Choose one of: base, a0"):
        client.completions.create(prompt="x", **settings | {"model": "nothing"})


REFUSED: tuple[tuple[dict[str, Any] | bytes, int, str], ...] = (
    (b"{", 400, "not JSON"), (b"[]", 400, "not a JSON object"), (b"x" * (2**20 + 1), 413, "more than"),
    ({"prompt": "x"}, 400, "model is missing"),
    ({"model": "no", "prompt": "x"}, 404, "There is no model 'no'"),
    ({"model": "a0", "prompt": ""}, 400, "The prompt is empty"),
    ({"model": "a0", "prompt": "\ud800"}, 400, "surrogate"),
    ({"model": "a0"}, 400, "prompt must be a text"),
    ({"model": "a0", "prompt": ["x", "y"]}, 400, "several requests"),
    ({"model": "a0", "prompt": "x", "n": 2}, 400, "n must"),
    ({"model": "a0", "prompt": "x", "max_tokens": 0}, 400, "max_tokens must"),
    ({"model": "a0", "prompt": "x", "temperature": "hot"}, 400, "temperature must"),
    ({"model": "a0", "prompt": "x", "stop": [1]}, 400, "stop must"),
    ({"model": "a0", "prompt": "x", "seed": -1}, 400, "seed must"),
    ({"model": "a0", "prompt": "x" * 9999}, 400, "the model reads"),
)  # fmt: skip


def test_what_cannot_be_answered_is_refused_in_openais_form(address: str) -> None:
    for body, status, words in REFUSED:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = httpx.post(f"{address}/v1/completions", content=content)
        assert (reply.status_code, words in reply.json()["error"]["message"]) == (status, True), reply.text
    assert httpx.post(f"{address}/v1/chat/completions", json={"model": "a0", "messages": []}).status_code == 400
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    for reply in (httpx.get(f"{address}/v1/embeddings"), httpx.get(f"{address}/v1/completions")):
        assert "is not served here" in reply.json()["error"]["message"]
    body = {"model": "a0", "prompt": "x", "max_tokens": 3}
    greedy = httpx.post(f"{address}/v1/completions", json=body).json()["choices"]
    for edge in ({"top_p": 0, "temperature": 1}, {"temperature": 1e-300}):
        assert httpx.post(f"{address}/v1/completions", json=body | edge).json()["choices"] == greedy


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://news.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost.news.example"}, 403),
        ({"Host": "rebound.example:8000"}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "http://[::1]:3000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
    ],
)
def test_only_pages_of_this_machine_may_ask(address: str, headers: dict[str, str], status: int) -> None:
    """A page posts plain text without asking the browser's leave first, so the server itself must refuse."""
    body = json.dumps({"model": "base", "prompt": "x", "max_tokens": 1})
    answered = httpx.post(f"{address}/v1/completions", content=body, headers=headers | {"Content-Type": "text/plain"})
    assert answered.status_code == status
    allowed = answered.headers.get("access-control-allow-origin")
    assert allowed == (headers.get("Origin") if status == 200 else None)


def test_a_client_that_hangs_up_while_streaming_frees_its_row(address: str, served: Any) -> None:
    body = {"model": "a0", "prompt": "x", "max_tokens": 64, "stream": True}
    for _ in range(4):
        with httpx.stream("POST", f"{address}/v1/completions", json=body) as reply:
            next(reply.iter_lines())
    deadline = time.monotonic() + 20
    while served.engine._rows and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not served.engine._rows


def test_adapters_that_do_not_go_together_are_refused_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    one = str(folders["a0"])
    with pytest.raises(UserError, match="Two adapters would be called 'a0'"):
        command.prepare([one, one], 2, 2, 8)
    with pytest.raises(UserError, match="Two adapters would be called 'base'"):
        command.prepare([f"base={one}"], 2, 2, 8)
    other = tmp_path / "other"
    other.mkdir()
    for file in folders["a1"].iterdir():
        content = file.read_bytes().replace(b"memory:tiny-random", b"bank/another-llama")
        (other / file.name).write_bytes(content)
    with pytest.raises(UserError, match="other was made for bank/another-llama and a0 for memory:tiny-random"):
        command.prepare([one, str(other)], 2, 2, 8)
    with pytest.raises(UserError, match="There is no run"):
        command.prepare([str(tmp_path / "nothing")], 2, 2, 8)


def test_an_answer_that_is_broken_off_is_said_and_no_traceback(address: str, served: Any) -> None:
    """The server ends while an answer is made."""
    found: list[httpx.Response] = []
    body = {"model": "a0", "prompt": "x", "max_tokens": 64}
    served.engine.close()
    found.append(httpx.post(f"{address}/v1/completions", json=body))
    assert (found[0].status_code, "ends" in found[0].json()["error"]["message"]) == (429, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"room": 0}, "--room must be at least 1"), ({"most_rows": 0}, "--batch must be at least 1"),
        ({"most_tokens": -1}, "--max-tokens must"), ({"port": 99999}, "--port must be a number"),
    ],
)  # fmt: skip
def test_odd_options_are_refused_before_a_model_is_loaded(words: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        command.serve(["nothing"], "127.0.0.1", **{"port": 0, "room": 1, "most_rows": 1, "most_tokens": 1} | words)


def test_many_adapters_have_room_for_few(folders: dict[str, Path], expected: dict[str, list[tuple[int, ...]]]) -> None:
    """Sixty-four names, room for eight."""
    sources = [f"n{number}={folders[f'a{number % 4}']}" for number in range(64)]
    served = command.prepare(sources, 8, 8, 64)
    try:
        requests = [Request(PROMPTS[2], f"n{number}", 3) for number in range(64)]
        for request in requests:
            served.engine.submit(request)
        for number, request in enumerate(requests):
            assert answer(request)[0] == expected[f"a{number % 4}"][2][:3]
    finally:
        served.engine.close()


def test_closing_ends_what_is_open(folders: dict[str, Path]) -> None:
    served = command.prepare([str(folders["a0"])], 2, 2, 64)
    request = Request(PROMPTS[0], "a0", 10**6)
    served.engine.submit(request)
    served.engine.close()
    assert answer(request)[1] == "cancelled"
