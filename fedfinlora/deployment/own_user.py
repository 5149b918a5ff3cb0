"""Whose process is at the other end of a loopback connection: Linux lists every TCP socket of a network namespace with its owner in /proc/net/tcp.

Flower's control and runtime interfaces know no accounts. On loopback every user of the machine can reach them, and a task's token stands in the list of
processes; so a connection is taken only if its other end belongs to the user who runs this process.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
ESTABLISHED = "01"
"""The state of an open connection in these tables; one that is being closed may have no owner any more."""


def is_own(connection: socket.socket) -> bool:
    """Whether the other end of an accepted connection is a socket of this process's user, on this machine, and open."""
    return owner(connection.getpeername(), connection.getsockname(), _lines()) == os.geteuid()


def owner(local: tuple[str, int], remote: tuple[str, int], lines: Iterable[str]) -> int | None:
    """User id of the open socket that has these two ends, (address, port) each, in lines of /proc/net/tcp or tcp6; None where there is none.

    >>> line = "1: 0100007F:A1B2 0100007F:2384 01 00000000:00000000 00:00000000 00000000  1000        0 71 1 0 20 4 0 10 -1"
    >>> owner(("127.0.0.1", 0xA1B2), ("127.0.0.1", 0x2384), [line]), owner(("127.0.0.1", 0xA1B3), ("127.0.0.1", 0x2384), [line])
    (1000, None)
    """
    wanted = {(_spelled(local, mapped), _spelled(remote, mapped)) for mapped in (False, True)}
    for line in lines:
        fields = line.split()
        if len(fields) > 7 and (fields[1], fields[2]) in wanted and fields[3] == ESTABLISHED:
            return int(fields[7])
    return None


def _lines() -> Iterator[str]:
    for table in TABLES:
        try:
            yield from table.read_text("ascii").splitlines()[1:]
        except OSError:  # no IPv6
            continue


def _spelled(end: tuple[str, int], mapped: bool) -> str:
    """An end of a connection as the tables spell it: words of the address in the machine's own byte order; `mapped` spells IPv4 as tcp6 does."""
    address = ipaddress.ip_address(end[0].partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    packed = address.packed
    if mapped and len(packed) == 4:
        packed = bytes(10) + b"\xff\xff" + packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{end[1]:04X}"
