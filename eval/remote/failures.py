"""What a request that brought no answer means: whether a later try may do better, and what its user can do where none
does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from eval.remote.model import KEY_VARIABLES, RemoteModel
from eval.remote.openai_faults import LONGEST_MESSAGE, Fault
from eval.remote.openai_form import PATHS, Form, redacted
from eval.remote.pace import retry_after_s
from fedfinlora.errors import UserError, printable

_BUSY = 429
_TRY_AGAIN = {408, 409, 425, _BUSY}
NO_SUCH_API = {404, 405, 501}
"""Statuses of a server that does not have the interface that was asked."""


class Kind(Enum):
    """Why a request brought no answer, with how an error about many of them in a row begins and what it advises."""

    NO_CONNECTION = "seems to be down", "Start the server, or check --model-url."
    BROKEN = "breaks connections off", "Check --model-url (http or https?), the server's log, and what lies between."
    SLOW = "is too slow", "Raise evaluation.request_timeout_s, or lower evaluation.requests_at_once."
    BUSY = (
        "takes no more requests",
        "Set evaluation.requests_per_minute, lower evaluation.requests_at_once, or try later.",
    )
    SERVER_ERROR = "fails", "Look into the server's log, or try later."
    NO_ANSWER = (
        "answers, but in a form that holds no answer",
        "Check that --model-url is an OpenAI-compatible interface (most end in /v1) and that no login page or "
        "proxy replies in its place.",
    )

    def __init__(self, what: str, advice: str) -> None:
        self.what, self.advice = what, advice


@dataclass(frozen=True)
class Reply:
    status: int
    """HTTP's, or what an error in the body says in spite of a 200."""
    content: bytes
    retry_after: str | None
    location: str
    behind_200: bool = False
    """HTTP said 200, the body is an error."""

    @property
    def shown_status(self) -> str:
        """The status in words, e.g. `503` or `503 in the body of a 200`."""
        return f"{self.status} in the body of a 200" if self.behind_200 else str(self.status)


class RequestFailure(Exception):
    """A request that may do better when sent again."""

    def __init__(self, kind: Kind, reason: str, says: str = "", hold_s: float | None = None) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        """Without the server's own words: failures are counted by it."""
        self.says = says
        """The server's own words, fit to be shown."""
        self.hold_s = hold_s
        """What the server asks every client to wait."""

    @property
    def busy(self) -> bool:
        """Whether the server had no time for this one of several requests."""
        return self.kind is Kind.BUSY


def quoted(says: str) -> str:
    """A server's own words as a sentence that follows another; "" without any.

    >>> quoted("no such model"), quoted("")
    (' It says: "no such model".', '')
    """
    return f' It says: "{says}".' if says else ""


def server_down(url: str, failures: int, had_answers: bool, last: RequestFailure, reasons: Counter[str]) -> UserError:
    """The end of an evaluation after so many failed requests in a row, by the last one of them."""
    since = "since its last answer" if had_answers else "and none was answered"
    others = [reason for reason, _ in reasons.most_common(4) if reason != last.reason]
    before = f"; before: {', '.join(others)}" if others else ""
    return UserError(
        f"The server at {url} {last.kind.what}: {failures} requests in a row failed {since} ({last.reason}{before})."
        f"{quoted(last.says)} {last.kind.advice}"
    )


def refusal(model: RemoteModel, variable: str, key: str, form: Form, reply: Reply, fault: Fault) -> Exception:
    """What a reply that holds no answer means: RequestFailure if a later try may do better, else UserError."""
    status, says = reply.status, quoted(fault.message)
    if fault.code == "insufficient_quota":
        return UserError(
            f"The account's quota is used up (insufficient_quota, {reply.shown_status}).{says} Raise it, or use "
            "another key."
        )
    if status in _TRY_AGAIN or (status >= 500 and status != 501):
        hold_s = retry_after_s(reply.retry_after)
        if status == _BUSY:
            return RequestFailure(Kind.BUSY, f"too many requests ({reply.shown_status})", fault.message, hold_s)
        kind = Kind.SLOW if status in (408, 504) else Kind.SERVER_ERROR
        return RequestFailure(kind, f"status {reply.shown_status}", fault.message, hold_s)
    if 300 <= status < 400:
        return UserError(
            f"{model.endpoint(form.api)} redirects to {_target_of(reply.location, key)} ({status}). Nothing is sent "
            "there: if that is where the model is, name it with --model-url."
        )
    if status == 401:
        given = f"does not accept the key in {variable}" if key else "wants a key"
        return UserError(
            f"The server {given} ({reply.shown_status}).{says} Set the environment variable {KEY_VARIABLES[0]} to a "
            "valid one."
        )
    if status == 403:
        who = "let this key use" if key else "let anyone without a key use"
        return UserError(
            f"The server does not {who} {model.name} ({reply.shown_status}).{says} Ask for access, or set "
            f"{KEY_VARIABLES[0]} to a key that has it."
        )
    if status in NO_SUCH_API:
        return UserError(
            f"The server has no model {model.name}, or no {PATHS[form.api]} below {model.url} "
            f"({reply.shown_status}).{says} Check --model-name and --model-url."
        )
    return UserError(
        f"The server refuses the request ({reply.shown_status}).{says} Check --model-name, --model-url and the "
        "server's log."
    )


def _target_of(location: str, key: str) -> str:
    """Scheme, host, port and path of a redirect's target: a query, a user or a password may be a secret, and is
    dropped.

    >>> _target_of("http://bank:pass@127.0.0.1:18722/v2?token=s#top", ""), _target_of("/v2?token=s", "")
    ('http://127.0.0.1:18722/v2', 'the path /v2')
    """
    try:
        there = urlsplit(location)
        port = there.port
    except ValueError:
        return "another address"
    if not there.hostname:
        return _fit_to_show(f"the path {there.path}", key) if there.path.startswith("/") else "another path"
    host = f"[{there.hostname}]" if ":" in there.hostname else there.hostname
    scheme = f"{there.scheme}:" if there.scheme else ""
    return _fit_to_show(f"{scheme}//{host}{'' if port is None else f':{port}'}{there.path}", key)


def _fit_to_show(address: str, key: str) -> str:
    """One printable line without the key, in lower case neither: hosts are read so."""
    return printable(redacted(redacted(address, key), key.lower()))[:LONGEST_MESSAGE]
