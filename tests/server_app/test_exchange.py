"""How often the server asks for replies, and until when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from server_app import exchange as asking
from server_app.exchange import LONGEST_POLL_S, POLL_S, WAITED_PART, exchange


class Clock:
    """Time that passes in sleeps alone."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


class Silent:
    """A grid whose one bank answers at a given second; each question for replies takes `asking_s`."""

    def __init__(self, clock: Clock, answers_s: float, asking_s: float = 0.0) -> None:
        self.clock, self.answers_s, self.asking_s = clock, answers_s, asking_s

    def get_node_ids(self) -> list[int]:
        return [1]

    def push_messages(self, messages: list[Message]) -> list[str]:
        return ["asked"]

    def pull_messages(self, message_ids: list[str]) -> list[Any]:
        self.clock.now += self.asking_s
        reply = SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id="asked"))
        return [reply] if self.clock.now >= self.answers_s else []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for name in ("_node_id", "_run_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    monkeypatch.setattr(asking, "time", found)
    return found


@pytest.mark.parametrize("answers_s", [0.3, 10.0, 600.0])
def test_a_reply_is_fetched_soon_and_waiting_asks_less_and_less(clock: Clock, answers_s: float) -> None:
    [(_, reply)] = exchange(Silent(clock, answers_s), {1: RecordDict()}, "train", 0)
    assert reply is not None
    assert clock.now - answers_s <= max(POLL_S, min(WAITED_PART * answers_s, LONGEST_POLL_S)) + 1e-9
    assert clock.pauses[0] == POLL_S
    assert clock.pauses == sorted(clock.pauses)
    assert len(clock.pauses) <= {0.3: 6, 10.0: 125, 600.0: 780}[answers_s]


@pytest.mark.parametrize(("deadline_s", "asking_s"), [(25, 0.0), (1, 0.5), (2, 3.0), (60, 1.0)])
def test_a_bank_that_stays_silent_is_none_soon_after_the_deadline(
    clock: Clock, deadline_s: float, asking_s: float
) -> None:
    """Also where a question for replies takes seconds: the last one begins at the deadline, or one is on its way."""
    silent = Silent(clock, 1e9, asking_s)
    assert list(exchange(silent, {1: RecordDict()}, "train", deadline_s)) == [(1, None)]
    assert deadline_s <= clock.now <= deadline_s + 2 * asking_s + 1e-9


def test_a_reply_that_comes_at_the_deadline_is_taken(clock: Clock) -> None:
    [(_, reply)] = exchange(Silent(clock, 2.0), {1: RecordDict()}, "train", 2)
    assert reply is not None
