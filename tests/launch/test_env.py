"""The star of ranks that share only variables: who is believed, who is turned away, what is said when ranks do not come together."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import environment, execute_ranks, free_port

from pympx.bootstrap import star
from pympx.bootstrap.base import BootstrapError
from pympx.bootstrap.env import Env
from pympx.testing.jobs import eventually

GATHER = """
import os, sys
from pympx.bootstrap import BootstrapError, join
try:
    job = join()
    print(job.allgather(b"%d" % job.rank))
except BootstrapError as error:
    sys.exit(str(error))
job.finalize()
"""


def settings(port: int, rank: int, size: int, **more: str) -> dict[str, str]:
    place = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYMPX_JOIN_TIMEOUT": "20"}
    return environment(**place | more)


def gather(envs: list[dict[str, str]]) -> list[tuple[int, str, str]]:
    return execute_ranks([[sys.executable, "-c", GATHER]] * len(envs), envs)


@pytest.fixture
def root() -> Iterator[Callable[..., tuple[int, subprocess.Popen[str]]]]:
    """Start rank 0 of a job of 2 and return its port once it listens."""
    started: list[subprocess.Popen[str]] = []

    def start(**more: str) -> tuple[int, subprocess.Popen[str]]:
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-c", GATHER], env=settings(port, 0, 2, **more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        assert eventually(lambda: bool(listening(port)), 20)
        return port, process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def listening(port: int) -> list[str]:
    """The local addresses, as the kernel writes them, on which somebody listens at `port`."""
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address, _, number = fields[1].partition(":")
            if fields[3] == "0A" and int(number, 16) == port:
                found.append(address)
    return found


def test_strangers_are_turned_away_and_hold_nobody_up(root: Callable[..., tuple[int, subprocess.Popen[str]]]) -> None:
    port, process = root()
    assert listening(port) == ["0100007F"]  # 127.0.0.1 alone
    strangers = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(4)]
    try:
        strangers[0].sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")  # another protocol
        strangers[1].sendall(b"pympxEB1" + b"\xff" * 24)  # the right start, then a proof of nothing
        assert len(strangers[1].recv(48, socket.MSG_WAITALL)) == 48
        strangers[1].sendall(bytes(32))
        strangers[2].sendall(b"py")  # silent from here on, as is strangers[3]
        for turned_away in strangers[:2]:
            try:
                assert turned_away.recv(1) == b""
            except ConnectionResetError:
                pass
        ((code, out, err),) = gather([settings(port, 1, 2)])
        assert (code, out, err) == (0, "[b'0', b'1']\n", "")
        assert process.communicate(timeout=20) == ("[b'0', b'1']\n", "")
    finally:
        for stranger in strangers:
            stranger.close()


def test_a_flood_of_strangers_delays_nobody(root: Callable[..., tuple[int, subprocess.Popen[str]]]) -> None:
    """2,000 connections while rank 0 waits, 500 of them silent and still there: the others join at once, and few descriptors are held."""
    port, process = root()
    kinds = (b"", b"pympxEB1" + bytes(24), b"pympxEB1" + b"\xff" * 300, b"GET / HTTP/1.1\r\n\r\n", b"\0" * 1000)
    with contextlib.ExitStack() as kept:
        for number in range(2000):
            stranger = socket.create_connection(("127.0.0.1", port), timeout=20)
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its port is free again at once
            with contextlib.suppress(OSError):
                stranger.sendall(kinds[number % len(kinds)])
            if number % 4 == 0:
                kept.enter_context(stranger)
            else:
                stranger.close()
        start = time.monotonic()
        ((code, out, err),) = gather([settings(port, 1, 2)])
        assert (code, out, err) == (0, "[b'0', b'1']\n", "")
        assert time.monotonic() - start < 4  # less than a stranger may take to prove himself
        assert process.communicate(timeout=20) == ("[b'0', b'1']\n", "")


def test_root_holds_few_strangers(root: Callable[..., tuple[int, subprocess.Popen[str]]]) -> None:
    port, process = root()
    with contextlib.ExitStack() as kept:
        strangers = [kept.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(600)]
        for first in strangers[: 600 - star.GUEST_LIMIT]:
            assert first.recv(1) == b""  # they made room
        assert len(os.listdir(f"/proc/{process.pid}/fd")) < star.GUEST_LIMIT + 20


@pytest.mark.parametrize(
    ("here", "there", "private", "spoken_to"),
    [
        ("127.0.0.1", "127.0.1.1", False, True),
        ("192.0.2.7", "192.0.2.7", False, True),
        ("192.0.2.7", "192.0.2.8", False, False),
        ("192.0.2.7", "192.0.2.8", True, True),
        ("::1", "::1", False, True),
        ("fe80::1%eth0", "fe80::1%eth0", False, True),
        ("2001:db8::1", "2001:db8::2", False, False),
    ],
)
def test_without_a_key_file_only_this_host_is_spoken_to(here: str, there: str, private: bool, spoken_to: bool) -> None:
    class Connection:
        def getsockname(self) -> tuple[str, int]:
            return here, 1

        def getpeername(self) -> tuple[str, int]:
            return there, 2

    reason = star.HostPort("host", 1, "MASTER_ADDR", private=private).distrust(Connection())  # type: ignore[arg-type]
    assert (reason == "") == spoken_to
    assert spoken_to or "PYMPX_JOB_KEY_FILE" in reason


def test_impostor_root_is_not_believed() -> None:
    """What listens at rank 0's place but does not know the key gets the hello and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        heard: list[bytes] = []

        def impersonate() -> None:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(20)
                connection.recv(32, socket.MSG_WAITALL)
                connection.sendall(bytes(48))
                heard.append(connection.recv(32))

        thread = threading.Thread(target=impersonate)
        thread.start()
        ((code, out, err),) = gather([settings(server.getsockname()[1], 1, 2, PYMPX_JOIN_TIMEOUT="1")])
        thread.join(20)
    assert (code, out, heard) == (1, "", [b""])
    assert len(err.splitlines()) == 1 and "rank 0" in err


def test_key_file_decides(root: Callable[..., tuple[int, subprocess.Popen[str]]], tmp_path: Path) -> None:
    keys = []
    for name in "ab":
        path = tmp_path / name
        path.write_bytes(os.urandom(32).hex().encode())
        path.chmod(0o600)
        keys.append(str(path))
    port, process = root(PYMPX_JOB_KEY_FILE=keys[0])
    ((code, _out, err),) = gather([settings(port, 1, 2, PYMPX_JOB_KEY_FILE=keys[1], PYMPX_JOIN_TIMEOUT="1")])
    assert code == 1 and len(err.splitlines()) == 1
    ((code, _out, err),) = gather([settings(port, 1, 2, PYMPX_JOIN_TIMEOUT="1")])
    assert code == 1 and len(err.splitlines()) == 1
    ((code, _out, err),) = gather([settings(port, 1, 2, PYMPX_JOB_KEY_FILE=keys[0])])
    assert (code, err) == (0, "")
    assert process.communicate(timeout=20)[1] == ""


def test_bad_key_files(tmp_path: Path) -> None:
    path = tmp_path / "key"
    environ = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "PYMPX_JOB_KEY_FILE": str(path)}
    path.write_bytes(b"x" * 32)
    path.chmod(0o644)
    with pytest.raises(BootstrapError, match="open to other users"):
        Env(environ)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(BootstrapError, match="5 bytes"):
        Env(environ)


def test_ranks_that_do_not_fit(root: Callable[..., tuple[int, subprocess.Popen[str]]]) -> None:
    port, process = root()
    ((code, _out, err),) = gather([settings(port, 1, 3)])
    assert code == 1 and "WORLD_SIZE" in err and len(err.splitlines()) == 1
    ((code, _out, err),) = gather([settings(port, 1, 2)])
    assert (code, err) == (0, "")
    assert process.communicate(timeout=20) == ("[b'0', b'1']\n", "")


def test_two_with_one_rank() -> None:
    port = free_port()
    results = gather([settings(port, rank, 3, PYMPX_JOIN_TIMEOUT="3") for rank in (0, 1, 1)])
    assert [code for code, _, _ in results] == [1, 1, 1]
    assert sum("joined as rank 1" in err for _, _, err in results) == 1
    assert re.search(r"rank\(s\) 2 of 3 did not reach", results[0][2])


def test_missing_ranks_are_named() -> None:
    results = gather([settings(free_port(), 0, 4, PYMPX_JOIN_TIMEOUT="1")])
    assert results[0][0] == 1 and re.search(r"rank\(s\) 1, 2, 3 of 4 did not reach 127\.0\.0\.1", results[0][2])
    results = gather([settings(free_port(), 2, 4, PYMPX_JOIN_TIMEOUT="1")])
    assert results[0][0] == 1 and "rank 2 could not join rank 0" in results[0][2] and len(results[0][2].splitlines()) == 1


@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1", "no-such-host.invalid"])
def test_address_that_is_not_rank_0s(address: str) -> None:
    results = gather([settings(free_port(), 0, 2, MASTER_ADDR=address)])
    assert results[0][0] == 1 and len(results[0][2].splitlines()) == 1 and "MASTER_ADDR" in results[0][2]


def test_port_under_torchrun_is_the_next_one() -> None:
    """torchrun's agent holds MASTER_PORT; PYMPX_PORT overrides."""
    with socket.create_server(("127.0.0.1", 0)) as agent:
        port = agent.getsockname()[1]
        more = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "none"}
        results = gather([settings(port, rank, 2, **more) for rank in range(2)])
        assert [(code, err) for code, _, err in results] == [(0, "")] * 2
        other = str(free_port())
        results = gather([settings(port, rank, 2, PYMPX_PORT=other) for rank in range(2)])
        assert [(code, err) for code, _, err in results] == [(0, "")] * 2


def test_rank_lost_between_exchanges_is_named() -> None:
    program = GATHER.replace("except", "    if job.rank == 1: os._exit(0)\n    job.barrier()\nexcept", 1)
    port = free_port()
    results = execute_ranks([[sys.executable, "-c", program]] * 3, [settings(port, rank, 3) for rank in range(3)])
    assert [code for code, _, _ in results] == [1, 0, 1]
    assert "rank 1 was lost" in results[0][2] and "rank 0 was lost" in results[2][2]
    assert all(len(err.splitlines()) <= 1 for _, _, err in results)


def test_absurd_length_is_refused_before_allocation() -> None:
    ours, theirs = socket.socketpair()
    job = Env({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"})
    job._peers[0], job._connected = ours, True
    with theirs:
        theirs.sendall(b"\x7f" + b"\xff" * 7)
        with pytest.raises(BootstrapError, match="announced 9223372036854775807 bytes"):
            job.allgather(b"x")
    job.finalize()
