"""What went wrong with the Hugging Face hub, in one line that names the repository and what to do; never with a token
in it.

huggingface_hub and transformers wrap one error into another, and say of many that there is no connection. What counts
is the first cause.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from fedfinlora.errors import printable
from fedfinlora.system.web import HUB

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TOKEN = "HF_TOKEN"
"""The environment variable of the token."""
LONGEST_REASON = 200
_DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.ENOTDIR)
_NOT_CONNECTED = ("ConnectError", "ConnectTimeout", "ConnectionError", "ProxyError", "gaierror")
_BROKEN_OFF = ("RemoteProtocolError", "ReadError", "WriteError", "ProtocolError", "IncompleteRead")
_TOO_SLOW = ("ReadTimeout", "WriteTimeout", "PoolTimeout", "TimeoutException", "Timeout", "TimeoutError")


def hub_fault(
    error: BaseException, repository: str, what: str = "model", licence_url: str = "", key: str = "model.path"
) -> str:
    """The line for an error of the hub's client about a model or data set; "" where the hub has no part in it.

    `key` is the setting that names a local folder instead.
    """
    hub = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    elsewhere = f"Or download it on another machine and set {key}=FOLDER."
    name = f"The {what} {repository}"
    chain = list(_causes(error))
    kinds = [type(each).__name__ for each in chain]
    if trouble := token_trouble():
        return f"{name} cannot be had: {TOKEN} {trouble}. Set {TOKEN} to the token alone, or unset it."
    if "GatedRepoError" in kinds:
        page = licence_url or f"{hub}/{'datasets/' if what != 'model' else ''}{repository}"
        return (
            f"{name} is gated: accept its licence at {page}, and set {TOKEN} to a token of an account that was "
            f"given access. {elsewhere}"
        )
    if "RevisionNotFoundError" in kinds:
        return f"{name} has no such revision on {hub}. Check {key.split('.')[0]}.revision."
    if "RepositoryNotFoundError" in kinds:
        return (
            f"{name} is not on {hub}, or {_token_words()} may not see it. Check the name, or set {TOKEN}. {elsewhere}"
        )
    for each in chain:
        if (status := getattr(getattr(each, "response", None), "status_code", 0)) >= 400:
            return f"{name} cannot be had: {_of_status(int(status), each, hub)} {elsewhere}"
    offline = offline_variables()
    if "OfflineModeIsEnabled" in kinds or ("LocalEntryNotFoundError" in kinds and offline):
        gated = f" Then accept its licence at {licence_url} and set {TOKEN}." if licence_url else ""
        return (
            f"{name} is not on this machine, and {(offline or OFFLINE)[0]} forbids to ask the hub. Unset "
            f"it.{gated} "
            f"{elsewhere}"
        )
    if found := next(filter(None, (_of_cause(each, name, hub, elsewhere) for each in chain)), ""):
        return found
    if "LocalEntryNotFoundError" in kinds:
        return (
            f"{name} is not on this machine, and {hub} did not give it. Check the network, the name and {TOKEN}. "
            f"{elsewhere}"
        )
    return ""


def _of_cause(each: BaseException, name: str, hub: str, elsewhere: str) -> str:
    """The line for one error of the chain, by its class; "" where that says nothing."""
    kind = type(each).__name__
    if kind in _TOO_SLOW:
        return (
            f"{name} cannot be had: {hub} takes too long to answer. Raise HF_HUB_DOWNLOAD_TIMEOUT (seconds), "
            "or "
            f"try later. {elsewhere}"
        )
    if (
        kind in _BROKEN_OFF
        or "Consistency check failed" in str(each)
        or ("expected" in str(each) and "bytes" in str(each))
    ):
        return (
            f"{name} did not arrive whole from {hub}: the download was cut off, or is not of the announced "
            f"size. Try again. {elsewhere}"
        )
    if kind in _NOT_CONNECTED:
        return (
            f"{name} cannot be had: {hub} cannot be reached. Check the network, the proxy variables and "
            f"HF_ENDPOINT. {elsewhere}"
        )
    if kind in ("FileMetadataError", "JSONDecodeError"):
        return (
            f"{name} cannot be had: what answers at {hub} is no Hugging Face hub (a login page or a proxy?). "
            f"Check HF_ENDPOINT. {elsewhere}"
        )
    if isinstance(each, OSError) and each.errno in _DISK and each.filename:
        return (
            f"{name} cannot be kept: {printable(str(each.filename))}: {each.strerror}. Set HF_HOME to a folder "
            "that can be written and has room."
        )
    return ""


def token_trouble() -> str:
    """Why the token in HF_TOKEN can be none; "" where it may be one. What the variable holds is not repeated.

    Blanks and line ends around a token do no harm: the hub's client takes them off.
    """
    token = os.environ.get(TOKEN, "").strip()
    if token and not (token.isascii() and token.isprintable() and len(token.split()) == 1):
        return "holds blanks, line ends or letters that no token has"
    return ""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, printable, short and without the token."""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    token = os.environ.get(TOKEN, "").strip()
    return printable(text.replace(token, f"[{TOKEN}]") if token else text)[:LONGEST_REASON]


def _of_status(status: int, error: BaseException, hub: str) -> str:
    """What an HTTP status of the hub means, and what to do."""
    if status == 401:
        return f"{hub} does not accept {_token_words()} (401). Set {TOKEN} to a valid one."
    if status == 403:
        return (
            f"{hub} does not let {_token_words()} read it (403). Give the token read access, or use another in {TOKEN}."
        )
    if status == 429:
        wait = str(getattr(error, "response").headers.get("retry-after", ""))  # noqa: B009 - of three HTTP libraries
        after = f" and asks to wait {wait} s" if wait.isdecimal() else ""
        return (
            f"{hub} takes no more requests from here (429){after}. Try again then, or set {TOKEN}: known accounts "
            "may ask more often."
        )
    if status >= 500:
        return f"{hub} fails ({status}). Try again later."
    return f"{hub} refuses the request ({status}). Check the name and HF_ENDPOINT."


def _token_words() -> str:
    return f"the token in {TOKEN}" if os.environ.get(TOKEN, "").strip() else "anyone without a token"


def offline_variables() -> list[str]:
    """The environment variables that are set and forbid to ask the hub."""
    return [name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, the last one first."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__
