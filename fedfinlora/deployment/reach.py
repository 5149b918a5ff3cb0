"""What stands between a bank and its coordinator, in words: nobody there, another authority, no TLS, a wrong clock."""

from __future__ import annotations

import ssl
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

MOST_AHEAD_S, MOST_BEHIND_S = 5, 300
"""How far a bank's clock may be from the coordinator's: Flower signs the time with each request."""


def trouble(address: str, authority: Path) -> str:
    """Why a bank cannot work with the coordinator at `address` (HOST:PORT); "" where nothing is wrong with the way and the clock."""
    import httpx

    try:
        context = ssl.create_default_context(cafile=str(authority))
        answer = httpx.get(f"https://{address}/health", timeout=10.0, verify=context)
    except (httpx.TransportError, ssl.SSLError) as error:
        return _of_connection(address, authority, str(error))
    try:
        ahead_s = time.time() - parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return f"What answers at {address} is no coordinator."
    return clock_trouble(ahead_s)


def clock_trouble(ahead_s: float) -> str:
    """What is wrong with a clock that is `ahead_s` seconds ahead of the coordinator's, which says whole seconds only.

    >>> clock_trouble(3.5)
    ''
    >>> clock_trouble(-360)
    "This machine's clock is 6.0 minutes behind the coordinator's. It may be 5 seconds ahead or 5 minutes behind: set it (NTP) and start again."
    """
    if -MOST_BEHIND_S <= ahead_s <= MOST_AHEAD_S:
        return ""
    way = "ahead of" if ahead_s > 0 else "behind"
    return (
        f"This machine's clock is {abs(ahead_s) / 60:.1f} minutes {way} the coordinator's. It may be {MOST_AHEAD_S} seconds ahead or "
        f"{MOST_BEHIND_S // 60} minutes behind: set it (NTP) and start again."
    )


def _of_connection(address: str, authority: Path, said: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return (
            f"What answers at {address} has no good certificate of {authority}: {said.rpartition(': ')[2]}. Do not go on: it may be "
            "somebody else. Compare ca.crt with the coordinator by another way."
        )
    if "SSL" in said and "EOF" not in said and "timed out" not in said:
        return f"What answers at {address} does not speak TLS as a coordinator does ({said})."
    return f"Nobody answers at {address} ({said})."
