"""When the next request to a server may start: evenly spaced, held back while the server asks for it, later after each
failure.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0

Clock = Callable[[], float]
"""Seconds from any start, never backwards."""
Sleep = Callable[[float, threading.Event], None]
"""Wait so many seconds, or until the event is set."""


def sleep_until_stopped(seconds: float, stop: threading.Event) -> None:
    stop.wait(seconds)


class Pace:
    """Gives out starts to the threads of one session: at most `per_minute` a minute, evenly spaced; 0 = no limit."""

    def __init__(self, per_minute: float, clock: Clock, sleep: Sleep) -> None:
        self._interval_s = 60.0 / per_minute if per_minute else 0.0
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._next_start_s = clock()

    def wait_turn(self, stop: threading.Event) -> bool:
        """Return when a request may start: True, or False as soon as `stop` is set."""
        while not stop.is_set():
            with self._lock:
                now_s = self._clock()
                wait_s = self._next_start_s - now_s
                if wait_s <= 0:
                    self._next_start_s = now_s + self._interval_s
                    return True
            self._sleep(wait_s, stop)
        return False

    def hold(self, seconds: float) -> None:
        """No request of any thread starts for so long."""
        with self._lock:
            self._next_start_s = max(self._next_start_s, self._clock() + seconds)

    def pause(self, seconds: float, stop: threading.Event) -> None:
        self._sleep(seconds, stop)


def pause_s(failures: int, draw: float) -> float:
    """Seconds before the next try: doubled with each failure (from 1), up to a limit, times 0.5 to 1 by `draw` in [0,
    1).

    >>> [pause_s(failures, 0.5) for failures in (1, 2, 3, 20)]
    [0.375, 0.75, 1.5, 22.5]
    """
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (failures - 1)) * (0.5 + 0.5 * draw))


def retry_after_s(header: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as an HTTP date (RFC 9110, 10.2.3); None without a
    usable one.

    >>> retry_after_s("20"), retry_after_s("soon"), retry_after_s(None)
    (20.0, None, None)
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            then = parsedate_to_datetime(header)
        except ValueError:
            return None
        if then.tzinfo is None:
            then = then.replace(tzinfo=UTC)
        seconds = (then - (now or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if seconds < float("inf") else None
