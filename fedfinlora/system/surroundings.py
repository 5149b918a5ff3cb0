"""What would later end in a traceback is put right before a command starts, or refused with what to set.

Everything is put into this process's environment, so that each library and each process that is started finds the same.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from fedfinlora.errors import UserError
from fedfinlora.system.shadows import check_shadows, own_modules_first
from fedfinlora.system.web import usable_proxies, with_loopback_direct

NO_HOME = (
    "No home folder is known: HOME is not set and the user has no entry. Set the environment variable HOME to a "
    "folder that you may write."
)


def prepare_process() -> list[str]:
    """Make the surroundings fit for a command. Returns sentences about what was changed; UserError where nothing can be
    done here.
    """
    own_modules_first()
    check_shadows()
    _check_folder()
    _name_user(os.environ)
    return correct(os.environ)


def correct(environment: MutableMapping[str, str]) -> list[str]:
    """Put an environment right in place, and say what was changed that its owner may have meant otherwise."""
    known = dict(environment)
    said = [
        f"The environment variable {name} names no proxy that can be used ({why}). It is ignored on this machine; "
        "elsewhere set it to http://HOST:PORT, or unset it."
        for name, why in usable_proxies(environment).items()
        if name in known
    ]
    environment.update(with_loopback_direct(environment))
    cluster = environment.pop("RAY_ADDRESS", "")
    if cluster:
        said.append(
            "RAY_ADDRESS is set and ignored: simulated banks run in a Ray of their own on this machine, never in "
            "another cluster."
        )
    threads = environment.get("OMP_NUM_THREADS", "")
    if threads and not all(part.strip().isdecimal() and int(part) for part in threads.split(",")):
        del environment["OMP_NUM_THREADS"]
        said.append(f"OMP_NUM_THREADS={threads[:20]!r} is no number of threads and is ignored.")
    if "utf" not in environment.get("PYTHONIOENCODING", "utf").lower():
        environment["PYTHONIOENCODING"] = "utf-8:replace"  # Flower's programs print what ASCII does not have
    said += _place_ray(environment)
    return said


LONGEST_RAY_FOLDER = 34
"""Bytes. Ray opens a socket FOLDER/ray/session_DATE_TIME_PROCESS/sockets/plasma_store, and a socket's path has at most
107.
"""


def _place_ray(environment: MutableMapping[str, str]) -> list[str]:
    """Give Ray a folder for its sockets that can be written and whose path is short enough. Returns what its owner must
    know.
    """
    own = environment.get("RAY_TMPDIR", "")
    folder = own or environment.get("TMPDIR") or "/tmp"
    if len(os.fsencode(folder)) > LONGEST_RAY_FOLDER and _writable(Path("/tmp")):
        environment["RAY_TMPDIR"] = "/tmp"
        return [f"RAY_TMPDIR is longer than {LONGEST_RAY_FOLDER} bytes and is ignored: /tmp is used."] if own else []
    if not own and not _writable(Path("/tmp")):
        folder = environment["RAY_TMPDIR"] = _temporary_folder()
    if len(os.fsencode(folder)) <= LONGEST_RAY_FOLDER:
        return []
    return [
        f"`simulate` cannot run here: for its sockets Ray needs a folder of at most {LONGEST_RAY_FOLDER} bytes, and "
        f"has {folder}. Set RAY_TMPDIR to a shorter one."
    ]


def corrected(environment: Mapping[str, str]) -> dict[str, str]:
    """A copy of an environment that is put right, for a process that is started."""
    copy = dict(environment)
    correct(copy)
    return copy


def replace_unprintable() -> None:
    """Print "?" for letters that the terminal's encoding does not have, rather than end with a UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


MACHINE_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EMFILE,
    errno.ENFILE,
)
"""What the machine refuses, not the program: full, read-only, forbidden, or too many open files."""


def of_machine(error: Exception) -> str:
    """One line for an error that the machine is to blame for; "" for any other."""
    if isinstance(error, RuntimeError):
        return NO_HOME if "home directory" in str(error) else ""
    assert isinstance(error, OSError)
    if error.errno == errno.ENOSPC and error.filename is None:
        return "What is printed cannot be written where it goes: no space left on the device. Send it to another file."
    if error.errno not in MACHINE_ERRORS or error.filename is None:
        return ""
    return (
        f"{error.filename}: {error.strerror}. `python -m fedfinlora doctor` says which folders can be written and "
        "which variables move them."
    )


def _check_folder() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            f"The working directory cannot be read ({error.strerror}): it was deleted or closed. Change to another "
            "folder."
        ) from error
    _temporary_folder()


def _temporary_folder() -> str:
    """Where temporary files go. UserError where no folder takes one."""
    import tempfile

    try:
        return tempfile.gettempdir()
    except OSError as error:
        raise UserError(
            "No temporary folder can be written, or its disk is full. Set TMPDIR to a folder with free space."
        ) from error


def _writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _name_user(environment: MutableMapping[str, str]) -> None:
    """A home, and a name for a user id without an entry: torch and Ray ask for it. UserError where there is no home."""
    import pwd

    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        if not environment.get("HOME"):
            raise UserError(NO_HOME) from None
        environment.setdefault("USER", f"user-{os.getuid()}")
        environment.setdefault("LOGNAME", environment["USER"])
