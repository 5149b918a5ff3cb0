"""Whose process is at the other end of a loopback connection: by the kernel's answer, by its tables, and not at all
where users look alike.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from fedfinlora.deployment import listeners, own_user
from fedfinlora.deployment.flower_link import free_port
from fedfinlora.deployment.own_user import (
    check_user,
    is_own,
    owner,
    owner_by_netlink,
    owner_in_tables,
    users_look_alike,
)

ROOT = Path(__file__).resolve().parents[2]
WAYS = (
    (socket.AF_INET, "127.0.0.1", socket.AF_INET, "127.0.0.1"),
    (socket.AF_INET, "127.0.0.1", socket.AF_INET6, "::ffff:127.0.0.1"),
    (socket.AF_INET6, "::", socket.AF_INET, "127.0.0.1"),
    (socket.AF_INET6, "::1", socket.AF_INET6, "::1"),
)


@contextmanager
def connected(family: int, host: str, caller_family: int, called: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(the caller's end, the accepted end)."""
    with socket.socket(family) as listening, socket.socket(caller_family) as near:
        if host == "::":
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind((host, 0))
        listening.listen()
        near.connect((called, listening.getsockname()[1]))
        far, _ = listening.accept()
        with far:
            yield near, far


@pytest.mark.parametrize("way", WAYS, ids=["IPv4", "IPv6 to IPv4", "IPv4 to IPv6", "IPv6"])
def test_kernel_and_tables_say_the_same(way: tuple[int, str, int, str]) -> None:
    with connected(*way) as (near, far):
        ends = far.getpeername()[:2], far.getsockname()[:2]
        assert owner_in_tables(*ends) == os.geteuid()
        assert owner_by_netlink(*ends) == os.geteuid()
        assert is_own(far)
        other = (ends[0][0], ends[0][1] ^ 1)
        assert owner_in_tables(other, ends[1]) is None
        assert owner_by_netlink(other, ends[1]) is None
        near.close()
        assert not is_own(far), "who has closed has no owner any more"


def test_where_the_kernel_does_not_answer_its_tables_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*ends: object) -> int:
        raise PermissionError("no netlink here")

    monkeypatch.setattr(own_user, "owner_by_netlink", closed)
    with connected(*WAYS[0]) as (near, far):
        assert is_own(far)
        near.close()
        assert not is_own(far)


def test_a_socket_is_found_among_thousands_of_similar_ones() -> None:
    line = (
        " {0}: 0100007F:{1:04X} 0100007F:2384 {2} 00000000:00000000 00:00000000 00000000 {3:>5}        0 71 1 0 20 "
        "4 0 10 -1\n"
    )
    table = "".join(line.format(port, port, "01", port % 7) for port in range(1024, 20_000)).encode()
    local, remote = ("127.0.0.1", 12345), ("127.0.0.1", 0x2384)
    assert owner(local, remote, table) == 12345 % 7
    assert owner(remote, local, table) is None
    assert owner(local, remote, line.format(1, 12345, "06", 0).encode()) is None, "TIME_WAIT"
    assert owner(local, remote, b"") is None
    assert owner(local, remote, line.format(1, 12345, "01", 5)[:60].encode()) is None, "cut off"


@pytest.mark.parametrize(
    ("own", "uid_map", "alike"),
    [
        (65534, "         0          0 4294967295\n", False),
        (65534, "", True),
        (65534, "         0     100000      65536\n", True),
        (65534, "         0       1000          1\n         1     100000      65536\n", True),
        (0, "         0     100000      65536\n", False),
        (1000, "", False),
    ],
    ids=[
        "an unknown user of the machine itself",
        "no map",
        "an unknown user of a container",
        "of a rootless one",
        "root of a container",
        "another",
    ],
)
def test_users_look_alike_if_the_own_number_maps_all_others(
    tmp_path: Path, own: int, uid_map: str, alike: bool
) -> None:
    (tmp_path / "overflowuid").write_text("65534\n")
    (tmp_path / "uid_map").write_text(uid_map)
    assert users_look_alike(own, tmp_path / "overflowuid", tmp_path / "uid_map") is alike


def test_without_user_namespaces_users_are_distinguished(tmp_path: Path) -> None:
    assert not users_look_alike(65534, tmp_path / "none", tmp_path / "none")
    check_user()


def test_nothing_starts_in_a_user_namespace_that_maps_no_user(tmp_path: Path) -> None:
    """A real one, where this machine lets a process make one."""
    if subprocess.run(["unshare", "-U", "true"], capture_output=True, check=False).returncode:
        return
    program = (
        "import socket\nfrom fedfinlora.deployment.own_user import check_user, is_own\nfrom fedfinlora.errors import "
        "UserError\n"
        "listening = socket.create_server(('127.0.0.1', 0))\nnear = socket.create_connection(listening.getsockname())\n"
        "far, _ = listening.accept()\nprint(is_own(far))\n"
        "try:\n    check_user()\nexcept UserError as error:\n    print(error)\n"
    )
    shown = subprocess.run(
        ["unshare", "-U", sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    own, words = shown.stdout.splitlines()
    assert own == "False"
    assert "user namespace" in words
    assert "Run it as another user" in words


def test_the_listener_answers_others_while_a_connection_is_looked_at() -> None:
    """A look that takes a second does not hold up the event loop."""
    gaps: list[float] = []

    def slow(connection: socket.socket) -> bool:
        time.sleep(1.0)
        return True

    async def watched() -> int:
        async def ticks() -> None:
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.01)
                gaps.append(time.monotonic() - before)

        async def app(scope: dict[str, object], receive: object, send: object) -> None:
            await send({"type": "http.response.start", "status": 204, "headers": []})  # type: ignore[operator]
            await send({"type": "http.response.body"})  # type: ignore[operator]

        port = free_port()
        config = uvicorn.Config(app, host="127.0.0.1", port=port, lifespan="off", log_config=None)  # type: ignore[arg-type]
        server = listeners.Listener(config, slow)
        serving, ticking = asyncio.ensure_future(server.serve()), asyncio.ensure_future(ticks())
        while not server.started:
            await asyncio.sleep(0.01)
        gaps.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        status = (await reader.readline()).split()[1]
        writer.close()
        ticking.cancel()
        server.should_exit = True
        await serving
        return int(status)

    assert asyncio.run(watched()) == 204
    assert len(gaps) > 30, "the loop continued while it was looked at"
