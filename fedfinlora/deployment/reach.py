"""Why a bank does not reach its coordinator, in words."""

from __future__ import annotations

import re
import ssl
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from fedfinlora.errors import ConfigError, UserError
from fedfinlora.system.web import client_for, through

MOST_AHEAD_S, MOST_BEHIND_S = 5, 300
"""How far a bank's clock may be from the coordinator's: Flower signs the time with each request."""


AUTHORITY, CERTIFICATE, TLS_KEY = "ca.crt", "bank.crt", "tls.key"
"""In a bank's folder: the authority that it trusts, its certificate by it, and its own private key as TLS wants it."""


def check_address(address: str) -> None:
    """ConfigError unless it is HOST:PORT.

    >>> check_address("aggregator.example:9092"), check_address("[2001:db8::1]:9092")
    (None, None)
    """
    host, _, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    good = bool(re.fullmatch(r"[A-Za-z0-9._-]+", host)) or (host.startswith("[") and host.endswith("]") and ":" in bare)
    if good and port.isascii() and port.isdecimal() and 0 < int(port) < 65536:
        return
    try:
        meant = urlsplit(address if "//" in address else f"//{address}")
        name = meant.hostname or "HOST"
        hint = f"{name}:{meant.port or 9092}"
    except ValueError:
        hint = "aggregator.example:9092"
    raise ConfigError(f"--coordinator {address!r} must be HOST:PORT without a scheme or a path, such as {hint}.")


def bank_context(home: Path) -> ssl.SSLContext:
    """TLS towards the coordinator, with the bank's own certificate. UserError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(home / AUTHORITY)
        context.load_cert_chain(home / CERTIFICATE, home / TLS_KEY)
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"The certificate in {home} cannot be used ({error}). Take the one that the coordinator has issued: "
            "python -m fedfinlora bank accept FILE"
        ) from error
    return context


def trouble(address: str, home: Path) -> str:
    """Why the bank of a folder cannot work with the coordinator at `address` (HOST:PORT)."""
    import httpx

    authority = home / AUTHORITY
    try:
        with client_for(f"https://{address}", 10.0, verify=bank_context(home)) as client:
            answer = client.get(f"https://{address}/health")
    except UserError as error:
        return str(error)
    except httpx.TransportError as error:
        return f"{_of_connection(address, authority, str(error))}{through(f'https://{address}')}"
    try:
        ahead_s = time.time() - parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return f"What answers at {address} is no coordinator."
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return (
            f"The coordinator at {address} has not enrolled this bank's certificate ({home / CERTIFICATE}), or has "
            "revoked it."
        )
    return clock_trouble(ahead_s)


def clock_trouble(ahead_s: float) -> str:
    """What is wrong with a clock that is `ahead_s` seconds ahead of the coordinator's, which says whole seconds only.

    >>> clock_trouble(3.5)
    ''
    >>> clock_trouble(-360)[:63]
    "This machine's clock is 6.0 minutes behind the coordinator's. I"
    """
    if -MOST_BEHIND_S <= ahead_s <= MOST_AHEAD_S:
        return ""
    way = "ahead of" if ahead_s > 0 else "behind"
    return (
        f"This machine's clock is {abs(ahead_s) / 60:.1f} minutes {way} the coordinator's. It may be {MOST_AHEAD_S} "
        f"seconds ahead or {MOST_BEHIND_S // 60} minutes behind: set it (NTP) and start again."
    )


def _of_connection(address: str, authority: Path, said: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return (
            f"What answers at {address} has no good certificate of {authority}: {said.rpartition(': ')[2]}. Do not "
            "continue: it may be somebody else. Compare ca.crt with the coordinator by another way."
        )
    if "disconnected" in said or "reset" in said or "ALERT" in said:
        return (
            f"What answers at {address} ends the connection at once ({said}): it does not take this bank's "
            "certificate, or is no coordinator."
        )
    if "SSL" in said and "EOF" not in said and "timed out" not in said:
        return f"What answers at {address} does not speak TLS as a coordinator does ({said})."
    return f"No one answers at {address} ({said})."
