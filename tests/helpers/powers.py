"""Root's power to pass over the permissions of files, taken away for a while: what a folder or file forbids is then
forbidden to root too.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

VERSION_3 = 0x20080522
"""_LINUX_CAPABILITY_VERSION_3 of capget(2): 64 bits for each set."""
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2
"""The capabilities that pass over permissions, by their number in capabilities(7)."""


@contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """This thread's file accesses are tested as everyone's are. Nothing changes for who is not root."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable of capabilities 0 to 31; then of 32 to 63
    _checked(libc.capget(header, before))
    fewer = (ctypes.c_uint32 * 6)(*before)
    fewer[0] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH) & 0xFFFFFFFF
    _checked(libc.capset(header, fewer))
    try:
        yield
    finally:
        _checked(libc.capset(header, before))


def _checked(status: int) -> None:
    if status:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
