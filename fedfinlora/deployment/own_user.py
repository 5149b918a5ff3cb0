"""Whose process is at the other end of a loopback connection (Linux): by its socket's owner.

Flower's control and runtime interfaces know no accounts, so on loopback a connection is accepted only if its other end
belongs to the user who runs this process. The kernel is asked for the one socket by its two ends (sock_diag(7)). Where
it does not answer, as in some sandboxes, the socket is looked for in /proc/net/tcp.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from fedfinlora.errors import UserError

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
ESTABLISHED = 1
"""TCP_ESTABLISHED, an open connection; the socket of one that is being closed may have no owner any more."""
OVERFLOW_UID = Path("/proc/sys/kernel/overflowuid")
UID_MAP = Path("/proc/self/uid_map")
ALL_IDS = 2**32 - 1
"""User ids that a complete /proc/self/uid_map maps."""
End = tuple[str, int]
"""Address and port."""

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, NLMSG_ERROR = 4, 20, 1, 2
HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, port."""
QUESTION = struct.Struct("=BBBBI2s2s16s16sI8s")
"""struct inet_diag_req_v2: family, protocol, extensions, pad, states, source port, destination port, both addresses,
interface, cookie.
"""
ANSWER = struct.Struct("=BBBB2s2s16s16sI8sIIIII")
"""struct inet_diag_msg: family, state, timer, retransmissions, the ends as above, expiry, queues of reading and
writing, user id, inode.
"""
ANY_COOKIE = b"\xff" * 8
ANSWER_S = 1.0


def check_user() -> None:
    """UserError where this process cannot distinguish its own user from others."""
    if users_look_alike(os.geteuid(), OVERFLOW_UID, UID_MAP):
        raise UserError(
            f"This process runs as user {os.geteuid()} of a user namespace, where every user from outside has that "
            "number too, so it cannot close its loopback interfaces to them. Run it as another user of the namespace "
            "(for a container: --user 1000, or USER in its image)."
        )


def users_look_alike(own: int, overflow_uid: Path, uid_map: Path) -> bool:
    """Whether `own` is the number that the kernel shows for users whom this namespace does not map
    (user_namespaces(7)).
    """
    try:
        overflow = int(overflow_uid.read_text("ascii"))
        mapped = sum(int(line.split()[2]) for line in uid_map.read_text("ascii").splitlines())
    except (OSError, ValueError, IndexError):  # no Linux, or no user namespaces
        return False
    return own == overflow and mapped < ALL_IDS


def is_own(connection: socket.socket) -> bool:
    """Whether the other end of an accepted connection is an open socket of this process's user."""
    own = os.geteuid()
    if users_look_alike(own, OVERFLOW_UID, UID_MAP):
        return False
    ends = connection.getpeername()[:2], connection.getsockname()[:2]
    try:
        return owner_by_netlink(*ends) == own
    except OSError:
        return owner_in_tables(*ends) == own


def owner_by_netlink(local: End, remote: End) -> int | None:
    """User id of the open socket that has these two ends, or None. OSError where the kernel does not answer."""
    first, second = _address(local[0]), _address(remote[0])
    family = socket.AF_INET if first.version == 4 else socket.AF_INET6
    question = QUESTION.pack(
        family, socket.IPPROTO_TCP, 0, 0, 1 << ESTABLISHED, struct.pack("!H", local[1]), struct.pack("!H", remote[1]),
        first.packed, second.packed, 0, ANY_COOKIE,
    )  # fmt: skip
    head = HEADER.pack(HEADER.size + len(question), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(ANSWER_S)
        netlink.sendto(head + question, (0, 0))
        answer = netlink.recv(4096)
    _, kind, _, _, _ = HEADER.unpack_from(answer)
    if kind == NLMSG_ERROR:
        code = -struct.unpack_from("=i", answer, HEADER.size)[0]
        if code == errno.ENOENT:
            return None
        raise OSError(code, os.strerror(code))
    found, state, _, _, from_port, to_port, from_address, to_address, _, _, _, _, _, user, _ = ANSWER.unpack_from(
        answer, HEADER.size
    )
    length = 4 if found == socket.AF_INET else 16
    ends = [
        (_address(socket.inet_ntop(found, address[:length])), int.from_bytes(port, "big"))
        for address, port in ((from_address, from_port), (to_address, to_port))
    ]
    same = ends == [(first, local[1]), (second, remote[1])]
    return int(user) if same and state == ESTABLISHED else None


def owner_in_tables(local: End, remote: End) -> int | None:
    """The same from the lines of /proc/net/tcp and tcp6."""
    for table in TABLES:
        try:
            found = owner(local, remote, table.read_bytes())
        except OSError:  # no IPv6
            continue
        if found is not None:
            return found
    return None


def owner(local: End, remote: End, table: bytes) -> int | None:
    """The same in the content of /proc/net/tcp or tcp6.

    >>> table = b"1: 0100007F:A1B2 0100007F:2384 01 00000000:00000000 00:00000000 00000000  1000        0 71 1 0 20 4 0 10 -1"
    >>> (owner(("127.0.0.1", 0xA1B2), ("127.0.0.1", 0x2384), table),
    ... owner(("127.0.0.1", 0xA1B3), ("127.0.0.1", 0x2384), table))
    (1000, None)
    """
    for mapped in (False, True):
        wanted = f" {_spelled(local, mapped)} {_spelled(remote, mapped)} {ESTABLISHED:02X} ".encode()
        for rest in _after(table, wanted):
            fields = rest.split(None, 4)
            if len(fields) > 3:
                return int(fields[3])
    return None


def _after(table: bytes, wanted: bytes) -> Iterator[bytes]:
    """What follows `wanted` on its line, wherever it occurs: splitting thousands of lines is slow."""
    at = table.find(wanted)
    while at >= 0:
        end = table.find(b"\n", at)
        yield table[at + len(wanted) : end if end >= 0 else len(table)]
        at = table.find(wanted, at + 1)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4 address that IPv6 maps is that IPv4 address."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _spelled(end: End, mapped: bool) -> str:
    """An end as the tables spell it: words in the machine's own byte order; `mapped` spells IPv4 as tcp6 does."""
    packed = _address(end[0]).packed
    if mapped and len(packed) == 4:
        packed = bytes(10) + b"\xff\xff" + packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{end[1]:04X}"
