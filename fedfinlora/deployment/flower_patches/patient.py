"""Lost links are retried, also where TLS reports the loss.

The SuperNode retries without end when the link fails, except where the failure's text has "ssl" or "tls" in it, as that
of a dropped connection: then it throws its reply away, or ends. A certificate that does not verify stays final. No
thread upstream was found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LOST = ("eof", "timed out", "closed", "close_notify")
"""In the text of a TLS error: the connection went away. All others speak of the peer itself."""


def is_lost_link(error: Exception) -> bool:
    """Whether a connection was lost, which time may mend."""
    import httpx

    return isinstance(error, httpx.TransportError) and any(word in str(error).lower() for word in LOST)


def patient(make_invoker: Callable[[], Any]) -> Callable[[], Any]:
    """Flower's maker of retrying callers, whose callers do not give up on a lost link."""

    def made() -> Any:
        invoker = make_invoker()
        gives_up = invoker.should_giveup
        invoker.should_giveup = lambda error: not is_lost_link(error) and gives_up(error)
        return invoker

    return made
