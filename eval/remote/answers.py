"""Answers of a model behind an OpenAI-compatible server, for comparison with ours.

The same prompts, greedily, with the same budgets. Failed requests are retried with growing pauses, answers are handed
over at once, and a missing answer is never taken for an empty one.

The key comes from the environment only. It is sent to the given address and to no other, and is written nowhere.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eval.remote.connection import Connection
from eval.remote.failures import RequestFailure, quoted, server_down
from eval.remote.model import RemoteModel
from eval.remote.openai_form import RemoteAnswer
from eval.remote.pace import Clock, Pace, Sleep, pause_s, sleep_until_stopped
from fedfinlora.errors import UserError, printable
from fedfinlora.seeds import generator

log = logging.getLogger("fedfinlora")

FAILURES_AT_FIRST = 10
"""Failed requests in a row, with no answer before, after which the server is given up (or three times
requests_at_once).
"""
LONGEST_HOLD_S = 600.0
"""A server that asks for a longer wait than this ends the evaluation."""
MOST_NAMED = 3
"""Names of served models, other than the one asked for, that are shown on the terminal; all are recorded."""
LONGEST_NAME = 100
MANY_EMPTY = 0.5
"""The share of empty answers that is worth a warning."""


def _waiting(seconds: float) -> str:
    """A wait in words, however far the server's date is.

    >>> _waiting(1200.0), _waiting(3e10)
    ('20 minutes', 'more than a day')
    """
    return "more than a day" if seconds > 86400 else f"{seconds / 60:.0f} minutes"


@dataclass(frozen=True)
class _Unanswered:
    """A row whose tries are spent, and why the last one failed."""

    reason: str
    says: str


class RemoteSession:
    """Requests to one model: `with RemoteSession(model) as remote: for index, answer in remote.answers(prompts, 10):
    …`.

    What it learns of the server (which interface, which parameters) holds for all benchmarks of the session.
    """

    def __init__(self, model: RemoteModel, clock: Clock = time.monotonic, sleep: Sleep = sleep_until_stopped) -> None:
        self.model = model
        self._pace = Pace(model.limits.requests_per_minute, clock, sleep)
        self._connection = Connection(model, clock)
        self._lock = threading.Lock()
        self._served_models: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._failures_in_a_row = 0.0
        self._reasons_in_a_row: Counter[str] = Counter()

    def __enter__(self) -> RemoteSession:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()
        if len(counts := +self._served_models) > 1:
            most = counts.most_common(MOST_NAMED)
            named = ", ".join(f"{printable(name)[:LONGEST_NAME]} ({count})" for name, count in most)
            log.warning(
                "The answers are of %d models and are scored together: %s. served_model in each row says which.",
                len(counts), named,
            )  # fmt: skip

    def answers(
        self, prompts: Sequence[str], budget_tokens: int, what: str = "this benchmark"
    ) -> Iterator[tuple[int, RemoteAnswer]]:
        """(index of the prompt, answer) as answers come, in any order: keep each before asking for the next.

        Raises UserError after the last answer if rows stayed unanswered, and, once the requests under way have ended,
        if the server is down or refuses for good. `what` names the benchmark in it.
        """
        stop = threading.Event()
        unanswered: Counter[str] = Counter()
        says = ""
        error: Exception | None = None
        answered, empty = 0, 0
        try:
            for index, outcome in self._outcomes(prompts, budget_tokens, stop):
                if isinstance(outcome, RemoteAnswer):
                    answered += 1
                    empty += not outcome.text.strip()
                    yield index, outcome
                elif isinstance(outcome, _Unanswered):
                    unanswered[outcome.reason] += 1
                    says = outcome.says or says
                else:
                    error = error or outcome
                    stop.set()
        finally:
            stop.set()
        if isinstance(error, UserError):
            raise UserError(f"{what}: {error} {self._kept(answered)}".rstrip()) from error
        if error is not None:
            raise error
        if empty and empty >= MANY_EMPTY * answered:
            log.warning(
                "%s: %d of %d answers are empty: the model ends at once or answers outside of the answer's text. They "
                "count as they came. Check the prompts' form (dataset.chat_template=true asks by chat), or the "
                "server's settings for reasoning.",
                what, empty, answered,
            )  # fmt: skip
        if unanswered:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in unanswered.most_common())
            raise UserError(
                f"{what}: {sum(unanswered.values())} of {len(prompts)} rows are unanswered, their tries spent: "
                f"{reasons}.{quoted(says)} Nothing is scored without them. {self._kept(answered)}".rstrip()
            )

    def _outcomes(
        self, prompts: Sequence[str], budget_tokens: int, stop: threading.Event
    ) -> Iterator[tuple[int, RemoteAnswer | _Unanswered | Exception]]:
        """(index of the prompt, what came of it) from requests_at_once threads, until all prompts are asked or `stop`
        is set and the requests under way have ended.
        """
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
            # A request under way does not delay Ctrl-C.
            threading.Thread(target=work, daemon=True, name="remote").start()
        while threads:
            outcome = outcomes.get()
            if outcome is None:
                threads -= 1
            else:
                yield outcome

    @property
    def served(self) -> dict[str, Any] | None:
        """What distinguishes the served model from others behind the same address and name (`Connection.served`)."""
        return self._connection.served

    def account(self) -> dict[str, Any]:
        """What is worth keeping with the scores: how the model was asked, and how the server behaved."""
        with self._lock:
            return {
                "url": self.model.url,
                "name": self.model.name,
                "served_models": sorted(+self._served_models),
                "api": self._connection.form.api,
                "left_out_parameters": list(self._connection.form.left_out),
                "requests": self._connection.sent,
                "answers": dict(self._connection.answers),
                "failures": dict(self._failures),
            }

    @property
    def _tries(self) -> int:
        return self.model.limits.request_retries + 1

    def _kept(self, answered: int) -> str:
        if not answered:
            return ""
        if not self.model.limits.reuse or self.served is None:
            return f"The {answered} answers that came are kept in the run's folder: resume with resume=FOLDER."
        return f"The {answered} answers that came are kept: the same command resumes from there."

    def _ask(
        self, index: int, prompt: str, budget_tokens: int, stop: threading.Event
    ) -> RemoteAnswer | _Unanswered | None:
        """One row, with all its tries. None when `stop` was set before it had an answer.

        A server's "too many requests" is for all requests, so it costs each its share of a try only.
        """
        at_once = self.model.limits.requests_at_once
        draws = generator(self.model.seed, "remote pauses", index)
        spent, failures = 0.0, 0
        while self._pace.wait_turn(stop):
            try:
                answer = self._connection.request(prompt, budget_tokens)
            except RequestFailure as failure:
                failures += 1
                cost = 1.0 / at_once if failure.busy else 1.0
                spent += cost
                self._note_failure(failure, cost, stop)
                if spent > self._tries - cost / 2:
                    return _Unanswered(failure.reason, failure.says)
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
            self._failures_in_a_row = 0.0
            self._reasons_in_a_row.clear()
            new = bool(answer.served_model) and answer.served_model not in self._served_models
            self._served_models[answer.served_model] += bool(answer.served_model)
            warn = new and answer.served_model != self.model.name and len(+self._served_models) <= MOST_NAMED
        if warn:
            log.warning(
                "Asked for the model %s, the server answers as %s: the scores are of what it serves under that name.",
                printable(self.model.name), printable(answer.served_model)[:LONGEST_NAME],
            )  # fmt: skip

    def _note_failure(self, failure: RequestFailure, cost: float, stop: threading.Event) -> None:
        """Count it. UserError when the server is down, or asks for more patience than there is."""
        at_once = self.model.limits.requests_at_once
        with self._lock:
            if not self._failures:
                words = quoted(failure.says)
                log.warning("A request to %s failed (%s): it is tried again.%s", self.model.url, failure.reason, words)
            self._failures[failure.reason] += 1
            self._reasons_in_a_row[failure.reason] += 1
            self._failures_in_a_row += cost
            had_answers = bool(self._connection.answers)
            limit = max(FAILURES_AT_FIRST, (self._tries if had_answers else 3) * at_once)
            down = self._failures_in_a_row > limit - cost / 2
            reasons = Counter(self._reasons_in_a_row)
        if failure.hold_s is not None and failure.hold_s > LONGEST_HOLD_S:
            raise UserError(
                f"The server asks to wait {_waiting(failure.hold_s)} ({failure.reason}).{quoted(failure.says)} "
                "Try again then."
            )
        if down and not stop.is_set():
            raise server_down(self.model.url, limit, had_answers, failure, reasons)
