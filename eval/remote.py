"""Answers of a model behind an OpenAI-compatible server, so that closed models and vLLM can stand beside ours in one table.

The same prompts, greedily, with the same budgets. A server may be slow, busy, broken or gone: requests are retried with growing
pauses, what was answered is handed over at once, and a row without an answer is never taken for an empty answer.

The key comes from the environment only. It is sent to the given address and to no other, and is written nowhere.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from eval.openai_form import (
    PATHS,
    Fault,
    Form,
    MalformedReply,
    RemoteAnswer,
    error_status,
    read_answer,
    read_fault,
    redacted,
    row_refusal,
)
from eval.pace import Clock, Pace, Sleep, pause_s, retry_after_s, sleep_until_stopped
from fedfinlora import __version__
from fedfinlora.config import EvaluationConfig
from fedfinlora.errors import ConfigError, UserError
from fedfinlora.seeds import generator
from fedfinlora.web import client_for, is_loopback, through

log = logging.getLogger("fedfinlora")

KEY_VARIABLES = ("FEDFINLORA_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key; the first one that is set counts."""
FAILURES_AT_FIRST = 10
"""Failed requests in a row, with no answer before, after which the server counts as down (or three times requests_at_once)."""
LONGEST_HOLD_S = 600.0
"""A server that asks for a longer wait than this ends the evaluation."""
LARGEST_REPLY_BYTES = 8 * 2**20

TELLING = ("created", "root", "fingerprint", "system_fingerprint", "sha256", "digest", "version")
"""Fields of an entry of /models that change when another model takes the name."""
_NO_ADDRESS = "--model-url must be an address such as http://127.0.0.1:8000/v1."
_NO_CERTIFICATE = "an untrusted certificate"
_BUSY = 429
_TRY_AGAIN = {408, 409, 425, _BUSY}
_NO_SUCH_API = {404, 405, 501}
_WANTS_CHAT = re.compile(r"chat/completions|v1/completions|is a chat model|completions? (endpoint|api)", re.IGNORECASE)
"""A 400 in answer to /completions that means: this model is asked at /chat/completions."""


@dataclass(frozen=True)
class RemoteModel:
    """A model behind a server, and how it may be asked."""

    url: str
    """The address below which /completions and /chat/completions are, e.g. http://127.0.0.1:8000/v1."""
    name: str
    """What the server calls the model."""
    limits: EvaluationConfig
    """requests_at_once, requests_per_minute, request_timeout_s and request_retries count."""
    chat: bool = False
    """Use /chat/completions from the start (dataset.chat_template=true)."""
    seed: int = 0
    """Sent to servers that take one; also decides the pauses between tries."""

    def __post_init__(self) -> None:
        import httpx

        try:
            parts = urlsplit(str(httpx.URL(self.url)))
        except (httpx.InvalidURL, ValueError):
            raise ConfigError(_NO_ADDRESS) from None
        if parts.scheme not in ("http", "https") or not parts.hostname or "%" in parts.hostname:
            raise ConfigError(_NO_ADDRESS)
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ConfigError(
                "--model-url must have no user name, password, ? or #: it is written into the run's folder. "
                f"A key belongs into the environment variable {KEY_VARIABLES[0]}."
            )
        if parts.path.rstrip("/").endswith("/completions"):
            raise ConfigError("--model-url ends one level too deep: leave /completions or /chat/completions off.")
        if not self.name:
            raise ConfigError("--model-url needs --model-name NAME, what the server calls the model.")

    def endpoint(self, api: str) -> str:
        """The address of one form of the interface (a key of PATHS)."""
        return self.url.rstrip("/") + PATHS[api]


@dataclass(frozen=True)
class _Reply:
    status: int
    content: bytes
    retry_after: str | None
    location: str


class _Failure(Exception):
    """A request that may do better when sent again."""

    def __init__(self, reason: str, busy: bool = False, hold_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.busy = busy
        self.hold_s = hold_s
        """What the server asks everybody to wait."""


@dataclass(frozen=True)
class _Unanswered:
    """A row whose tries are spent."""

    reason: str


class RemoteSession:
    """Requests to one model: `with RemoteSession(model) as remote: for index, answer in remote.answers(prompts, 10): …`.

    What it learns of the server (which interface, which parameters) holds for all benchmarks of the session.
    """

    def __init__(self, model: RemoteModel, clock: Clock = time.monotonic, sleep: Sleep = sleep_until_stopped) -> None:
        import httpx

        self.model = model
        self._variable, self._key = api_key()
        self._clock = clock
        self._pace = Pace(model.limits.requests_per_minute, clock, sleep)
        self._form = Form("chat" if model.chat else "completions")
        self._lock = threading.Lock()
        self._requests = 0
        self._answers: Counter[str] = Counter()
        self._served_models: set[str] = set()
        self._failures: Counter[str] = Counter()
        self._failures_in_a_row = 0.0
        for name in ("httpx", "httpcore"):  # at finer levels they log what replies hold
            logging.getLogger(name).setLevel(logging.WARNING)
        host = urlsplit(model.url).hostname or ""
        if self._key and model.url.startswith("http:") and not is_loopback(host):
            log.warning("The key in %s goes to %s unencrypted: use an https address if there is one.", self._variable, host)
        headers = {"user-agent": f"fedfinlora/{__version__}"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        self._client = client_for(
            model.url,
            model.limits.request_timeout_s,
            headers=headers,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=model.limits.requests_at_once),
        )

    def __enter__(self) -> RemoteSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()

    def answers(
        self, prompts: Sequence[str], budget_tokens: int, what: str = "this benchmark"
    ) -> Iterator[tuple[int, RemoteAnswer]]:
        """(index of the prompt, answer) as answers come, in any order: keep each before asking for the next.

        Raises UserError after the last answer if rows stayed unanswered, and, once the requests under way have ended, if the server
        is down or refuses for good. `what` names the benchmark in it.
        """
        stop = threading.Event()
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        outcomes: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
        for index in range(len(prompts)):
            waiting.put(index)

        def work() -> None:
            try:
                while not stop.is_set():
                    index = waiting.get_nowait()
                    outcome = self._ask(index, prompts[index], budget_tokens, stop)
                    if outcome is not None:
                        outcomes.put((index, outcome))
            except queue.Empty:
                pass
            except Exception as error:  # to be raised where the answers are read
                outcomes.put((-1, error))
            finally:
                outcomes.put(None)

        threads = min(self.model.limits.requests_at_once, len(prompts))
        for _ in range(threads):
            threading.Thread(target=work, daemon=True, name="remote").start()  # a request under way does not delay Ctrl-C
        unanswered: Counter[str] = Counter()
        error: Exception | None = None
        answered = 0
        try:
            while threads:
                outcome = outcomes.get()
                if outcome is None:
                    threads -= 1
                elif isinstance(outcome[1], RemoteAnswer):
                    answered += 1
                    yield outcome
                elif isinstance(outcome[1], _Unanswered):
                    unanswered[outcome[1].reason] += 1
                else:
                    error = error or outcome[1]
                    stop.set()
        finally:
            stop.set()
        if isinstance(error, UserError):
            raise UserError(f"{what}: {error} {self._kept(answered)}".rstrip()) from error
        if error is not None:
            raise error
        if unanswered:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in unanswered.most_common())
            raise UserError(
                f"{what}: {sum(unanswered.values())} of {len(prompts)} rows are unanswered, their tries spent: {reasons}. "
                f"Nothing is scored without them. {self._kept(answered)}".rstrip()
            )

    @cached_property
    def served(self) -> dict[str, Any] | None:
        """What the server's list at /models says of the model: answers that are kept are for this one only. None where it says nothing of when
        the model was made or what it is, so that another one behind the same address and name could not be told from it.
        """
        import httpx

        try:
            with self._client.stream("GET", f"{self.model.url.rstrip('/')}/models") as reply:
                content = b""
                for part in reply.iter_bytes():
                    content += part
                    if len(content) > LARGEST_REPLY_BYTES:
                        return None
            entries = json.loads(content)["data"] if reply.is_success else []
            entry = next(entry for entry in entries if isinstance(entry, dict) and entry.get("id") == self.model.name)
        except (httpx.HTTPError, ValueError, KeyError, TypeError, RecursionError, StopIteration):
            return None
        found = {key: str(entry[key]) for key in TELLING if isinstance(entry.get(key), str | int) and entry[key]}
        return {key: redacted(value, self._key) for key, value in found.items()} or None

    def account(self) -> dict[str, Any]:
        """What is worth keeping beside the scores: how the model was asked, and how the server behaved."""
        with self._lock:
            return {
                "url": self.model.url,
                "name": self.model.name,
                "served_models": sorted(self._served_models),
                "api": self._form.api,
                "left_out_parameters": list(self._form.left_out),
                "requests": self._requests,
                "answers": dict(self._answers),
                "failures": dict(self._failures),
            }

    @property
    def _tries(self) -> int:
        return self.model.limits.request_retries + 1

    def _kept(self, answered: int) -> str:
        """What becomes of the answers that there are."""
        if not answered:
            return ""
        if not self.model.limits.reuse or self.served is None:
            return f"The {answered} answers that came are kept in the run's folder: go on with resume=FOLDER."
        return f"The {answered} answers that came are kept: the same command goes on from there."

    def _ask(self, index: int, prompt: str, budget_tokens: int, stop: threading.Event) -> RemoteAnswer | _Unanswered | None:
        """One row, with all its tries. None when `stop` was set before it had an answer.

        A server is busy with all requests at once, so its "too many requests" costs each of them its share of a try only.
        """
        at_once = self.model.limits.requests_at_once
        draws = generator(self.model.seed, "remote pauses", index)
        spent, failures = 0.0, 0
        while self._pace.wait_turn(stop):
            try:
                answer = self._request(prompt, budget_tokens)
            except _Failure as failure:
                failures += 1
                cost = 1.0 / at_once if failure.busy else 1.0
                spent += cost
                self._note_failure(failure, cost, stop)
                if spent > self._tries - cost / 2:
                    return _Unanswered(failure.reason)
                wait_s = pause_s(failures, float(draws.random()))
                if failure.busy or failure.hold_s is not None:
                    self._pace.hold(max(wait_s, failure.hold_s or 0.0))
                else:
                    self._pace.pause(wait_s, stop)
            else:
                self._note_answer(answer)
                return replace(answer, tries=failures + 1)
        return None

    def _note_answer(self, answer: RemoteAnswer) -> None:
        with self._lock:
            self._answers[answer.api] += 1
            self._failures_in_a_row = 0.0
            if answer.served_model:
                self._served_models.add(answer.served_model)

    def _note_failure(self, failure: _Failure, cost: float, stop: threading.Event) -> None:
        """Count it. UserError when the server is down, or asks for more patience than there is."""
        at_once = self.model.limits.requests_at_once
        with self._lock:
            if not self._failures:
                log.warning("A request to %s failed (%s): it is tried again.", self.model.url, failure.reason)
            self._failures[failure.reason] += 1
            self._failures_in_a_row += cost
            had_answers = bool(self._answers)
            limit = max(FAILURES_AT_FIRST, (self._tries if had_answers else 3) * at_once)
            down = self._failures_in_a_row > limit - cost / 2
        if failure.hold_s is not None and failure.hold_s > LONGEST_HOLD_S:
            raise UserError(f"The server asks to wait {failure.hold_s / 60:.0f} minutes ({failure.reason}). Try again then.")
        if down and not stop.is_set():
            since = "since its last answer" if had_answers else "and none was answered"
            raise UserError(
                f"The server at {self.model.url} seems to be down: {limit} requests in a row failed {since} ({failure.reason}). "
                "Check --model-url and the server."
            )

    def _request(self, prompt: str, budget_tokens: int) -> RemoteAnswer:
        """One request, sent again at once where the reply says in which form the server wants it."""
        while True:
            form = self._form
            reply = self._send(form, prompt, budget_tokens)
            if reply.status == 200 and (status := error_status(reply.content)):
                reply = replace(reply, status=status)
            if reply.status == 200:
                try:
                    return read_answer(form.api, reply.content, self._key)
                except MalformedReply as error:
                    raise _Failure(str(error)) from error
            fault = read_fault(reply.content, prompt, self._key)
            if self._learns(form, reply.status, fault):
                continue
            refusal = row_refusal(fault) if reply.status in (400, 413, 422) else ""
            if refusal:
                return RemoteAnswer("", refusal, None, None, form.api, "")
            self._refuse(form, reply, fault)

    def _send(self, form: Form, prompt: str, budget_tokens: int) -> _Reply:
        """One request and its whole reply, within request_timeout_s from start to end, however slowly the reply drips in."""
        import httpx

        timeout_s = self.model.limits.request_timeout_s
        body = form.body(self.model.name, prompt, budget_tokens, self.model.seed)
        with self._lock:
            self._requests += 1
        started_s = self._clock()
        content = bytearray()
        try:
            with self._client.stream("POST", self.model.endpoint(form.api), json=body) as response:
                for part in response.iter_bytes():
                    content += part
                    if self._clock() - started_s > timeout_s:
                        raise _Failure(f"no whole answer within {timeout_s:g} s")
                    if len(content) > LARGEST_REPLY_BYTES:
                        raise _Failure(f"a reply of more than {LARGEST_REPLY_BYTES >> 20} MiB")
                headers = response.headers
                return _Reply(response.status_code, bytes(content), headers.get("retry-after"), headers.get("location", ""))
        except httpx.TimeoutException:
            reason = f"no answer within {timeout_s:g} s"
        except httpx.ConnectError as error:
            reason = _NO_CERTIFICATE if "CERTIFICATE_VERIFY_FAILED" in str(error) else f"no connection{through(self.model.url)}"
        except httpx.RequestError:
            reason = "a broken connection"
        if reason == _NO_CERTIFICATE:
            raise UserError(f"The certificate of {self.model.url} is not trusted. Name its authority's file in SSL_CERT_FILE.")
        raise _Failure(reason)  # outside of the handlers: the text of httpx's errors may quote a reply

    def _learns(self, form: Form, status: int, fault: Fault) -> bool:
        """Whether the reply showed another form to use. What one thread learns holds for all, and each thing is learnt once."""
        with self._lock:
            if self._form != form:
                return True
            chat_wanted = status in _NO_SUCH_API or (status == 400 and _WANTS_CHAT.search(fault.message) is not None)
            if form.api == "completions" and chat_wanted and not self._answers["completions"]:
                self._form = replace(form, api="chat")
                log.warning(
                    "The server does not answer at %s: using %s, which puts the model's chat template around each prompt.",
                    PATHS["completions"], PATHS["chat"],
                )  # fmt: skip
                return True
            if status not in (400, 422) or row_refusal(fault):
                return False
            for parameter in fault.parameters:
                changed = form.without(parameter)
                if changed is not None:
                    log.warning("The server does not take the parameter %s: requests go on without it.", parameter)
                    self._form = changed
                    return True
            return False

    def _refuse(self, form: Form, reply: _Reply, fault: Fault) -> None:
        """Raise what a reply that is neither an answer nor a lesson means: `_Failure` if a later try may do better, else UserError."""
        status = reply.status
        if fault.code == "insufficient_quota":
            raise UserError("The account's quota is used up (insufficient_quota). Raise it, or use another key.")
        if status in _TRY_AGAIN or (status >= 500 and status != 501):
            reason = "too many requests (429)" if status == _BUSY else f"status {status}"
            raise _Failure(reason, busy=status == _BUSY, hold_s=retry_after_s(reply.retry_after))
        says = f' It says: "{fault.message}".' if fault.message else ""
        if 300 <= status < 400:
            raise UserError(
                f"{self.model.endpoint(form.api)} redirects to {self._host_of(reply.location)} ({status}). Nothing is sent there: if that "
                "is where the model is, name it with --model-url."
            )
        if status == 401:
            given = f"does not accept the key in {self._variable}" if self._key else "wants a key"
            raise UserError(f"The server {given} (401). Set the environment variable {KEY_VARIABLES[0]} to a valid one.")
        if status == 403:
            raise UserError(
                f"The server does not let this key use {self.model.name} (403).{says} Ask for access or use another key."
            )
        if status in _NO_SUCH_API:
            raise UserError(
                f"The server has no model {self.model.name}, or no {PATHS[form.api]} below {self.model.url} ({status}).{says} "
                "Check --model-name and --model-url."
            )
        raise UserError(
            f"The server refuses the request ({status}).{says} Check --model-name, --model-url and the server's log."
        )

    def _host_of(self, location: str) -> str:
        """Scheme and host of a redirect's target."""
        try:
            there = urlsplit(location)
        except ValueError:
            return "another address"
        return redacted(f"{there.scheme}://{there.hostname}", self._key) if there.hostname else "another path"


def api_key() -> tuple[str, str]:
    """(name of the environment variable, key); empty texts without one."""
    for variable in KEY_VARIABLES:
        key = os.environ.get(variable, "").strip()
        if key:
            if not key.isascii() or not key.isprintable():
                raise UserError(f"The environment variable {variable} holds characters that no key has. Set it anew.")
            return variable, key
    return "", ""
