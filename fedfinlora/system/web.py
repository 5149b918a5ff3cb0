"""HTTP: one client for this machine, without a proxy, and one for the outside, with the environment's.

httpx and requests read the same variables by different rules: one that a library cannot use ends in a traceback even
for a server on this machine. So, before any library reads them, unusable variables are taken out of the environment
(`usable_proxies`), and loopback is added to no_proxy, also for processes that are started (`with_loopback_direct`).
What would have needed an unusable proxy is refused by name: nothing goes out past it.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from fedfinlora.errors import UserError

if TYPE_CHECKING:
    import httpx

LOOPBACK = ("localhost", "127.0.0.1", "::1")
NO_PROXY = ("no_proxy", "NO_PROXY")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
"""In lower or upper case; lower case wins."""
UNUSABLE = "FEDFINLORA_UNUSABLE_PROXY"
"""For processes that a command starts: the proxy variables that were taken out, as NAME:why, separated by "|"."""
HUB = "https://huggingface.co"


class Proxy(NamedTuple):
    """Through which proxy an address is asked. Both texts are empty where none is."""

    variable: str
    url: str


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself.

    >>> [is_loopback(host) for host in ("127.0.0.1", "127.8.9.1", "localhost", "::1", "10.0.0.1", "bank.example")]
    [True, True, True, True, False, False]
    """
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def with_loopback_direct(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to an environment so that no library asks this machine through a proxy. The user's own entries stay.

    >>> with_loopback_direct({"NO_PROXY": "corp.example,127.0.0.1"})["no_proxy"]
    'corp.example,127.0.0.1,localhost,::1'
    """
    entries = [entry.strip() for name in NO_PROXY for entry in environment.get(name, "").split(",")]
    value = ",".join(dict.fromkeys([*(entry for entry in entries if entry), *LOOPBACK]))
    return dict.fromkeys(NO_PROXY, value)


def proxy_trouble(url: str) -> str:
    """Why a proxy variable's value cannot be used; "" where it can. The value may hold a password and is not repeated.

    >>> (proxy_trouble("socks://127.0.0.1:1"), proxy_trouble("http://proxy.example:3128"),
    ... proxy_trouble("proxy.example:3128"))
    ('its scheme is socks', '', '')
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError:
        return "it is no address"
    if parts.scheme in ("socks5", "socks5h"):
        from importlib.util import find_spec

        return "" if find_spec("socksio") and find_spec("socks") else "SOCKS needs the packages socksio and PySocks"
    if parts.scheme not in ("http", "https"):
        return f"its scheme is {parts.scheme[:20]}"
    if not parts.hostname or port == 0 or any(letter.isspace() for letter in url):
        return "it is no address"
    return ""


def usable_proxies(environment: MutableMapping[str, str]) -> dict[str, str]:
    """Take the proxy variables that cannot be used out of an environment. Returns variable -> why, with what an outer
    command has found.
    """
    found = dict(entry.split(":", 1) for entry in environment.get(UNUSABLE, "").split("|") if ":" in entry)
    for name in (*PROXIES, *(name.upper() for name in PROXIES)):
        trouble = proxy_trouble(environment[name].strip()) if environment.get(name, "").strip() else ""
        if trouble:
            found[name] = trouble
            del environment[name]
    if found:
        environment[UNUSABLE] = "|".join(f"{name}:{why}" for name, why in found.items())
    return found


def proxy_of(url: str) -> Proxy:
    """The proxy for an address: that of its scheme, else all_proxy, unless no_proxy names the host. UserError where the
    variable cannot be used.
    """
    from urllib import request

    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or request.proxy_bypass_environment(host):  # type: ignore[attr-defined]
        return Proxy("", "")
    unusable = dict(entry.split(":", 1) for entry in os.environ.get(UNUSABLE, "").split("|") if ":" in entry)
    for kind in (f"{parts.scheme}_proxy", "all_proxy"):
        for name in (kind, kind.upper()):
            value = os.environ.get(name, "").strip()
            trouble = unusable.get(name) or (proxy_trouble(value) if value else "")
            if trouble:
                raise UserError(
                    f"The environment variable {name} names no proxy that can be used ({trouble}), and {host} would be "
                    f"asked through it. Set it to http://HOST:PORT, unset it, or add {host} to no_proxy."
                )
            if value:
                return Proxy(name, value if "://" in value else f"http://{value}")
    return Proxy("", "")


def through(url: str) -> str:
    """For the end of an error about an address that does not answer: the proxy variable on the way to it, or ""."""
    variable = proxy_of(url).variable
    return (
        f" (through the proxy that {variable} names; if it is not needed for this address, add its host to no_proxy)"
        if variable
        else ""
    )


def client_for(url: str, timeout_s: float, **more: Any) -> httpx.Client:
    """A client for one address: without a proxy on this machine, else through the proxy that the environment names.

    Certificates are checked against SSL_CERT_FILE where it is set. UserError where the proxy's variable cannot be used.
    """
    import httpx

    proxy = proxy_of(url)
    more.setdefault("verify", httpx.create_ssl_context() if url.startswith("https") else False)
    return httpx.Client(timeout=timeout_s, trust_env=False, proxy=proxy.url or None, **more)


def check_hub() -> None:
    """UserError where the hub would be asked through a proxy variable that cannot be used."""
    offline = {"1", "ON", "YES", "TRUE"} & {
        os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    }
    if not offline:
        proxy_of(os.environ.get("HF_ENDPOINT") or HUB)
