"""One connection to an OpenAI-compatible server: a request is sent, in the form that the server was found to want, and
its reply read.

The key is sent to the given address and to no other: redirects are not followed.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections import Counter
from dataclasses import replace
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from eval.remote.failures import NO_SUCH_API, Kind, Reply, RequestFailure, refusal
from eval.remote.model import RemoteModel, api_key
from eval.remote.openai_faults import Fault, error_status, read_fault, row_refusal
from eval.remote.openai_form import PATHS, Form, MalformedReply, RemoteAnswer, read_answer, redacted
from eval.remote.pace import Clock
from fedfinlora import __version__
from fedfinlora.errors import UserError
from fedfinlora.system.web import client_for, is_loopback, through

log = logging.getLogger("fedfinlora")

LARGEST_REPLY_BYTES = 8 * 2**20
TELLING = ("created", "root", "fingerprint", "system_fingerprint", "sha256", "digest", "version")
"""Fields of an entry of /models that change when another model takes the name."""
_NO_CERTIFICATE = "an untrusted certificate"
_WANTS_CHAT = re.compile(r"chat/completions|v1/completions|is a chat model|completions? (endpoint|api)", re.IGNORECASE)
"""A 400 in answer to /completions that means: this model is asked at /chat/completions."""


class Connection:
    """Sends single requests, from several threads. What it learns of the server (which interface, which parameters)
    holds for all of them.
    """

    def __init__(self, model: RemoteModel, clock: Clock) -> None:
        import httpx

        self.model = model
        self._variable, self._key = api_key()
        self._clock = clock
        self._lock = threading.Lock()
        self.form = Form("chat" if model.chat else "completions")
        self.sent = 0
        """Requests so far."""
        self.answers: Counter[str] = Counter()
        """Form of the interface -> answers."""
        for name in ("httpx", "httpcore"):  # at finer levels they log what replies hold
            logging.getLogger(name).setLevel(logging.WARNING)
        host = urlsplit(model.url).hostname or ""
        if self._key and model.url.startswith("http:") and not is_loopback(host):
            log.warning(
                "The key in %s goes to %s unencrypted: use an https address if there is one.", self._variable, host
            )
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

    def close(self) -> None:
        """Close what is open to the server."""
        self._client.close()

    @cached_property
    def served(self) -> dict[str, Any] | None:
        """What the server's list at /models says of the model: kept answers are for this one only. None where it does
        not distinguish it from another one behind the same address and name.
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

    def request(self, prompt: str, budget_tokens: int) -> RemoteAnswer:
        """One request, sent again at once where the reply says in which form the server wants it."""
        while True:
            form = self.form
            reply = self._send(form, prompt, budget_tokens)
            if reply.status == 200 and (status := error_status(reply.content)):
                reply = replace(reply, status=status, behind_200=True)
            if reply.status == 200:
                try:
                    answer = read_answer(form.api, reply.content, self._key)
                except MalformedReply as error:
                    says = read_fault(reply.content, prompt, self._key).message
                    raise RequestFailure(Kind.NO_ANSWER, str(error), says) from error
                with self._lock:
                    self.answers[form.api] += 1
                return answer
            fault = read_fault(reply.content, prompt, self._key)
            if self._learns(form, reply.status, fault):
                continue
            refused = row_refusal(fault) if reply.status in (400, 413, 422) else ""
            if refused:
                return RemoteAnswer("", refused, None, None, form.api, "")
            raise refusal(self.model, self._variable, self._key, form, reply, fault)

    def _send(self, form: Form, prompt: str, budget_tokens: int) -> Reply:
        """One request and its whole reply, within request_timeout_s from start to end, however slowly the reply drips
        in.
        """
        import httpx

        timeout_s = self.model.limits.request_timeout_s
        body = form.body(self.model.name, prompt, budget_tokens, self.model.seed)
        with self._lock:
            self.sent += 1
        started_s = self._clock()
        content = bytearray()
        try:
            with self._client.stream("POST", self.model.endpoint(form.api), json=body) as response:
                for part in response.iter_bytes():
                    content += part
                    if self._clock() - started_s > timeout_s:
                        raise RequestFailure(Kind.SLOW, f"no whole answer within {timeout_s:g} s")
                    if len(content) > LARGEST_REPLY_BYTES:
                        raise RequestFailure(Kind.NO_ANSWER, f"a reply of more than {LARGEST_REPLY_BYTES >> 20} MiB")
                if content.startswith(b"\x1f\x8b"):
                    raise RequestFailure(Kind.NO_ANSWER, "a body in gzip without Content-Encoding: gzip in its head")
                headers = response.headers
                return Reply(
                    response.status_code, bytes(content), headers.get("retry-after"), headers.get("location", "")
                )
        except httpx.ConnectTimeout:
            kind, reason = Kind.NO_CONNECTION, f"no connection within {timeout_s:g} s{through(self.model.url)}"
        except httpx.TimeoutException:
            kind, reason = Kind.SLOW, f"no answer within {timeout_s:g} s"
        except httpx.ConnectError as error:
            untrusted = "CERTIFICATE_VERIFY_FAILED" in str(error)
            kind = Kind.NO_CONNECTION
            reason = _NO_CERTIFICATE if untrusted else f"no connection{_why(str(error))}{through(self.model.url)}"
        except httpx.RequestError:
            kind, reason = Kind.BROKEN, "a broken connection"
        if reason == _NO_CERTIFICATE:
            raise UserError(
                f"The certificate of {self.model.url} is not trusted. Name its authority's file in SSL_CERT_FILE."
            )
        raise RequestFailure(kind, reason)  # outside of the handlers: the text of httpx's errors may quote a reply

    def _learns(self, form: Form, status: int, fault: Fault) -> bool:
        """Whether the reply showed another form to use. What one thread learns holds for all, and each thing is learnt
        once.
        """
        with self._lock:
            if self.form != form:
                return True
            chat_wanted = status in NO_SUCH_API or (status == 400 and _WANTS_CHAT.search(fault.message) is not None)
            if form.api == "completions" and chat_wanted and not self.answers["completions"]:
                self.form = replace(form, api="chat")
                log.warning(
                     "The server does not answer at %s: using %s, which puts the model's chat template around each "
                    "prompt." ,
                    PATHS["completions"], PATHS["chat"],
                )  # fmt: skip
                return True
            if status not in (400, 422) or row_refusal(fault):
                return False
            for parameter in fault.parameters:
                changed = form.without(parameter)
                if changed is not None:
                    log.warning("The server does not take the parameter %s: requests continue without it.", parameter)
                    self.form = changed
                    return True
            return False


def _why(error: str) -> str:
    """What of an operating system's words on a failed connection is worth showing: they never hold anything of a reply.

    >>> _why("[Errno 111] Connection refused"), _why("[Errno -2] Name or service not known"), _why("other")
    (': connection refused', ': unknown host', '')
    """
    known = {"refused": "connection refused", "Name or service": "unknown host",
        "name resolution": "the host's name cannot be resolved",
             "unreachable": "network unreachable", "No route": "no route to the host"}  # fmt: skip
    return next((f": {words}" for part, words in known.items() if part in error), "")
