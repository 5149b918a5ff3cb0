"""Proxies: this machine is never asked through one; a variable that cannot be used is named where it would have been
needed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fedfinlora.errors import UserError
from fedfinlora.system.surroundings import correct
from fedfinlora.system.web import PROXIES, UNUSABLE, check_hub, client_for, proxy_of, through, usable_proxies

NAMES = (
    *PROXIES,
    *(name.upper() for name in PROXIES),
    "no_proxy",
    "NO_PROXY",
    UNUSABLE,
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server that answers 204 to whoever asks it, and does not know whether it was meant as a
    proxy.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204 if self.path.startswith("/") else 299)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize(
    "value", ["http://127.0.0.1:9", "socks://127.0.0.1:1", "nonsense://", "http://[", "socks5://127.0.0.1:1"]
)
@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_this_machine_is_never_asked_through_a_proxy(
    server: str, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with client_for(server, 5.0) as client:
        assert client.get(f"{server}/health").status_code == 204


def test_the_outside_is_asked_through_the_proxy_that_is_named(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server)
    with client_for("http://models.example/v1", 5.0) as client:
        assert client.get("http://models.example/v1").status_code == 299
    assert "http_proxy" in through("http://models.example/v1")
    monkeypatch.setenv("no_proxy", ".example")
    assert proxy_of("http://models.example/v1") == ("", "")
    assert through("http://models.example/v1") == ""


@pytest.mark.parametrize(
    "value", ["socks://user:secret@127.0.0.1:1", "ftp://p:1", "http://", "http://p:0", "http://p:x", "http://a b:1"]
)
def test_a_variable_that_cannot_be_used_is_named_and_its_password_is_not(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", value)
    with pytest.raises(UserError, match=r"all_proxy names no proxy.*no_proxy") as error:
        client_for("https://models.example/v1", 5.0)
    assert "secret" not in str(error.value)
    with pytest.raises(UserError, match="all_proxy"):
        check_hub()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check_hub()


def test_what_was_taken_out_is_still_refused_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request leaves past a proxy that was asked for, also not from the processes that a command starts."""
    environment = {"all_proxy": "socks://127.0.0.1:1", "https_proxy": "http://p:3128"}
    assert list(usable_proxies(environment)) == ["all_proxy"]
    assert "all_proxy" not in environment
    assert environment["https_proxy"] == "http://p:3128"
    assert usable_proxies(dict(environment)) == {"all_proxy": "its scheme is socks"}
    monkeypatch.setenv(UNUSABLE, environment[UNUSABLE])
    with pytest.raises(UserError, match="all_proxy"):
        proxy_of("http://models.example")
    assert proxy_of("http://127.0.0.1:1").url == ""


def test_an_environment_is_put_right_and_what_was_changed_is_said() -> None:
    environment = {
        "RAY_ADDRESS": "10.0.0.1:6379", "OMP_NUM_THREADS": "abc", "no_proxy": "corp.example",
        "PYTHONIOENCODING": "ascii",
        "all_proxy": "socks://127.0.0.1:1",
    }  # fmt: skip
    said = " ".join(correct(environment))
    assert all(name in said for name in ("RAY_ADDRESS", "OMP_NUM_THREADS", "all_proxy"))
    assert not {"RAY_ADDRESS", "OMP_NUM_THREADS", "all_proxy"} & set(environment)
    assert environment["NO_PROXY"] == environment["no_proxy"] == "corp.example,localhost,127.0.0.1,::1"
    assert environment["PYTHONIOENCODING"] == "utf-8:replace"
    assert correct(environment) == []
