"""Thousands of strangers at the ranks' ports while a checked workload runs: refused; result, links, memory and descriptors are as before.

The genuine handshakes that are replayed were recorded from the loopback interface while the ranks met, which needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import pytest
from fault_support import Ranks
from test_links import BESIDE, listening

MIB = 1 << 20
CONNECTIONS = 100_000 if os.environ.get("PYMPX_TEST_LONG") == "1" else 10_000
BATCH = 250
#: silent connections that are kept at once, several times what a rank keeps half-open
FLOOD = 1200
#: what the first message of a handshake is, and how long the first three are (transports/tcp/wire.hh)
HELLO = bytes.fromhex("016d707874637031")
HELLO_LENGTH, CHALLENGE_LENGTH, PROOF_LENGTH = 152, 176, 32

WORKLOAD = """
import gc, json
from cutting import sockets
from pympx.bindings import runtime

def measured():
    gc.collect()
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {"resident": resident, "descriptors": len(os.listdir("/proc/self/fd"))}

def turns(count):
    for turn in range(count):
        n = 60000 if turn % 20 == 0 else 100
        got = np.zeros(n, np.int64)
        comm.Sendrecv(np.full(n, turn * size + rank, np.int64), (rank + 1) % size, 1, got, (rank - 1) % size, 1)
        assert (got == turn * size + (rank - 1) % size).all()
        total = np.zeros(50, np.int64)
        comm.Allreduce(np.full(50, turn + rank, np.int64), total)
        assert (total == size * turn + size * (size - 1) // 2).all()

def until_told():
    told, done = threading.Event(), 0
    if rank == 0:
        threading.Thread(target=lambda: (listen(), told.set()), daemon=True).start()
    over = False
    while not over:
        turns(20)
        done += 20
        over = comm.bcast(told.is_set(), 0)
    return done

turns(300)  # whatever is needed once is there now
comm.bcast(comm.allreduce(False, MPI.LOR), 0)
comm.Barrier()
before = measured()
say(json.dumps(before))
until_told()
say("flooded")
if rank == 0:  # a link breaks in the middle of it
    for s in sockets():
        try:
            if int(os.environ["MASTER_PORT"]) not in (s.getsockname()[1], s.getpeername()[1]):
                s.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        s.close()
start = time.monotonic()
turns(20)
say("healed %.3f" % (time.monotonic() - start))
done = until_told()
deadline = time.monotonic() + 10  # what strangers have closed is noticed by and by
while comm.allreduce(measured()["descriptors"] > before["descriptors"] and time.monotonic() < deadline, MPI.LOR):
    turns(20)
say(json.dumps(measured() | {"turns": done}))
listen()
"""


class Sniffer:
    """Records the handshakes that pass over loopback: by listening port, what the connector said first and second."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
        except PermissionError:
            if os.environ.get("PYMPX_CI"):
                raise
            pytest.skip("recording packets needs root")
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * MIB)
        self._socket.bind(("lo", 0))
        self._socket.settimeout(0.1)
        self._over = False
        self._flows: dict[tuple[int, int], bytes] = {}
        self._thread = threading.Thread(target=self._record)
        self._thread.start()

    def _record(self) -> None:
        while not self._over:
            try:
                frame = self._socket.recv(65536)
            except TimeoutError:
                continue
            at = 14 + (frame[14] & 15) * 4
            if frame[23] != socket.IPPROTO_TCP:
                continue
            source, target = struct.unpack_from("!HH", frame, at)
            body = frame[at + (frame[at + 12] >> 4) * 4 :]
            said = self._flows.get((source, target), b"")
            if body and (body.startswith(HELLO) if not said else len(said) == HELLO_LENGTH):
                self._flows[source, target] = said + body

    def stop(self) -> dict[int, bytes]:
        """End the recording; return what one connector said to each port."""
        self._over = True
        self._thread.join()
        self._socket.close()
        whole = HELLO_LENGTH + PROOF_LENGTH
        return {target: said[:whole] for (_, target), said in self._flows.items() if len(said) >= whole}


class Strangers:
    """Opens connections of every kind; those that speak are to be closed by the rank."""

    def __init__(self, places: list[tuple[str, int]], recorded: dict[int, bytes], seed: int) -> None:
        self._places = places
        self._recorded = recorded
        self._random = random.Random(seed)
        self._silent: list[socket.socket] = []
        self.opened: dict[str, int] = {}

    def _open(self, kind: str, place: tuple[str, int]) -> socket.socket:
        self.opened[kind] = self.opened.get(kind, 0) + 1
        connection = socket.create_connection(place, 20)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its port is free again at once
        return connection

    def flood(self, count: int) -> None:
        """Connections that say nothing, or a right hello and no more, and stay."""
        for number in range(count):
            place = self._places[number % len(self._places)]
            connection = self._open("silent", place)
            if number % 3 == 0:
                connection.sendall(self._recorded[place[1]][:HELLO_LENGTH])
            self._silent.append(connection)

    def leave(self) -> None:
        for connection in self._silent:
            connection.close()
        self._silent.clear()

    def batch(self, count: int) -> None:
        """Connections that are wrong, one way or another; returns when each was closed by the other side."""
        waiting = []
        for _ in range(count):
            place = self._random.choice(self._places)
            known = self._recorded[place[1]]
            hello, proof = known[:HELLO_LENGTH], known[HELLO_LENGTH:]
            kinds: dict[str, Callable[[], bytes]] = {
                "garbage": lambda: secrets.token_bytes(self._random.randrange(1, 3000)),
                "another protocol": lambda: b"GET / HTTP/1.1\r\n\r\n" * 20,
                "a hello, then rubbish": lambda: hello + secrets.token_bytes(self._random.randrange(32, 300)),  # noqa: B023
                "a replay": lambda: known,  # noqa: B023
                "a truncated proof": lambda: hello + proof[: self._random.randrange(PROOF_LENGTH)],  # noqa: B023
                "a truncated hello": lambda: hello[: self._random.randrange(1, HELLO_LENGTH)],  # noqa: B023
            }
            kind = self._random.choice(list(kinds))
            connection = self._open(kind, place)
            with contextlib.suppress(OSError):  # it may be closed already
                connection.sendall(kinds[kind]())
                if kind.startswith("a truncated") or kind == "garbage":
                    connection.shutdown(socket.SHUT_WR)
            connection.setblocking(False)
            waiting.append((kind, connection))
        deadline = time.monotonic() + 30
        for kind, connection in waiting:
            with connection:
                heard = 0
                while True:
                    assert time.monotonic() < deadline, f"{kind}: the connection is not closed"
                    select.select([connection], [], [], 1)
                    try:
                        data = connection.recv(4096)
                    except BlockingIOError:
                        continue
                    except ConnectionResetError:
                        break
                    if not data:
                        break
                    heard += len(data)
                assert heard <= CHALLENGE_LENGTH, f"{kind}: {heard} bytes were answered"


def test_ten_thousand_strangers_during_a_run(record: Any) -> None:
    """Garbage, replays and half handshakes; silent floods beyond any limit while a link is cut and heals; then all is as before."""
    seed = int(os.environ.get("PYMPX_TEST_SEED") or secrets.randbits(31))
    print(f"seed {seed}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    sniffer = Sniffer()
    recorded: dict[int, bytes] = {}
    try:
        with Ranks(4, "tcp", BESIDE + dedent(WORKLOAD), PYMPX_TCP_INTERFACES="lo") as job:
            before = [json.loads(job.hear(rank, 30)) for rank in range(4)]
            recorded = sniffer.stop()
            places = [place for process in job.processes for place in listening(process.pid)]
            assert len(places) == 4
            recorded = {port: said for port, said in recorded.items() if port in [p for _, p in places]}
            assert len(recorded) >= 3, "no handshakes were recorded"  # nobody connects to one of two
            spoken_to = [place for place in places if place[1] in recorded]
            strangers = Strangers(spoken_to, recorded, seed)
            start = time.monotonic()
            for _ in range(-((FLOOD - CONNECTIONS) // BATCH)):
                strangers.batch(BATCH)
            seconds = time.monotonic() - start
            strangers.flood(FLOOD)
            job.tell(0)
            for rank in range(4):
                job.expect(rank, "flooded")
            healed = [float(job.hear(rank, 30).split()[1]) for rank in range(4)]
            strangers.leave()
            total = sum(strangers.opened.values())
            assert total >= CONNECTIONS
            job.tell(0)
            after = [json.loads(job.hear(rank, 30)) for rank in range(4)]
            grown = [a["resident"] - b["resident"] for a, b in zip(after, before, strict=True)]
            record({"seed": seed, "connections": strangers.opened, "seconds": round(seconds, 1), "grown": grown, "healed": healed})
            assert max(grown) < 4 * MIB, f"ranks grew by {grown} bytes"
            assert max(healed) < 5, f"links took {healed} s to heal"
            for a, b in zip(after, before, strict=True):
                assert a["descriptors"] <= b["descriptors"], f"{b['descriptors']} descriptors became {a['descriptors']}"
            for rank in range(4):
                job.tell(rank)
            job.finish(0, 1, 2, 3)
    finally:
        if not recorded:
            sniffer.stop()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
