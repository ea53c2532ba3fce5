"""A fast sender and a receiver that sleeps: memory is bounded on both sides, nothing is lost, the order is kept.

Sleeping is the scenario here: the receiver's process makes no progress for a while.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest

from pympx import MPI

MIB = 1 << 20
WINDOW = 4 * MIB  # default of PYMPX_EAGER_WINDOW
SMALL, LARGE = 100_000, 1000


def resident() -> int:
    """Resident set of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def warm_up(comm: Any) -> None:
    """Touch what a process needs once: rings, sockets, pools."""
    comm.Barrier()
    for _ in range(3):
        comm.Sendrecv(np.zeros(MIB, np.uint8), (comm.rank + 1) % comm.size, 0, np.zeros(MIB, np.uint8), (comm.rank - 1) % comm.size, 0)
    comm.Barrier()


@pytest.mark.ranks(2, timeout=120)
@pytest.mark.parametrize("how", ["Send", "Isend"])
def test_small_messages_to_a_sleeper(comm: Any, how: str, record: Any) -> None:
    n, window = 100, 1000
    warm_up(comm)
    before = resident()
    if comm.rank == 0:
        requests: list[Any] = []
        for i in range(SMALL):
            data = np.full(n, i, np.int32)
            if how == "Send":
                comm.Send(data, 1, i % 5)
            else:
                requests.append(comm.Isend(data, 1, i % 5))
                if len(requests) == window:
                    MPI.Request.Waitall(requests)
                    requests.clear()
        MPI.Request.Waitall(requests)
        grown = resident() - before
        # its own open messages, the pool of requests; not the 40 MB that it sent
        assert grown < window * (n * 4 + 1024) + 8 * MIB, f"the sender grew by {grown} bytes"
        record({"sent": SMALL, "sender_grew": grown, "receiver_grew": comm.recv(source=1)})
    else:
        time.sleep(1.5)
        got = np.zeros(n, np.int32)
        comm.Recv(got, 0, 0)
        grown = resident() - before
        # a message costs its bytes and its descriptor, all within the window, and as much again in malloc's hands at most
        assert grown < 2 * WINDOW + 4 * MIB, f"the receiver grew by {grown} bytes"
        assert (got == 0).all()
        for i in range(1, SMALL):
            comm.Recv(got, 0, i % 5)
            assert got[0] == i and got[-1] == i
        comm.send(max(grown, resident() - before), 0)


@pytest.mark.ranks(2, timeout=120)
def test_unexpected_messages_stay_within_the_window(comm: Any) -> None:
    """The receiver looks for a tag that comes last, so everything before it is unexpected."""
    warm_up(comm)
    before = resident()
    count, n = 20_000, 1000  # 20 MB
    if comm.rank == 0:
        requests = [comm.Isend(np.full(n, i % 251, np.uint8), 1, 1) for i in range(count)]
        requests.append(comm.Isend(b"last", 1, 2))
        MPI.Request.Waitall(requests)
    else:
        comm.Probe(0, 2)
        grown = resident() - before
        # beyond the window only headers come (about 150 bytes a message): not the 20 MB
        assert grown < WINDOW + count * 400 + 4 * MIB, f"the receiver grew by {grown} bytes"
        got = np.zeros(n, np.uint8)
        comm.Recv(bytearray(4), 0, 2)
        for i in range(count):
            comm.Recv(got, 0, 1)
            assert got[0] == i % 251 and got[-1] == i % 251


@pytest.mark.ranks(2, timeout=120)
def test_large_messages_to_a_sleeper(comm: Any, record: Any) -> None:
    n, window = 300_000, 20
    warm_up(comm)
    before = resident()
    if comm.rank == 0:
        requests: list[Any] = []
        for i in range(LARGE):
            requests.append(comm.Isend(np.full(n, i % 251, np.uint8), 1, 3))
            if len(requests) == window:
                MPI.Request.Waitall(requests)
                requests.clear()
        MPI.Request.Waitall(requests)
        grown = resident() - before
        assert grown < 2 * window * n + 8 * MIB, f"the sender grew by {grown} bytes"
        record({"sent": LARGE, "sender_grew": grown})
    else:
        time.sleep(1.5)
        comm.Probe(0, 3)
        assert resident() - before < WINDOW + 4 * MIB
        got = np.zeros(n, np.uint8)
        for i in range(LARGE):
            comm.Recv(got, 0, 3)
            assert (got == i % 251).all()
        assert resident() - before < WINDOW + n + 4 * MIB


@pytest.mark.ranks(4, timeout=120)
def test_many_to_one(comm: Any, record: Any) -> None:
    each, n = 8000, 1500
    warm_up(comm)
    before = resident()
    if comm.rank:
        for i in range(each):
            comm.Send(np.full(n if i % 100 else 100_000, i % 251, np.uint8), 0, i % 3)
    else:
        time.sleep(1.5)
        status = MPI.Status()
        following = [[0] * 3 for _ in range(4)]
        got = np.zeros(100_000, np.uint8)
        peak = 0
        for k in range(3 * each):
            comm.Recv(got, MPI.ANY_SOURCE, k % 3 if k < each else MPI.ANY_TAG, status)
            number = following[status.source][status.tag] * 3 + status.tag
            following[status.source][status.tag] += 1
            assert got[0] == number % 251 and status.count == (n if number % 100 else 100_000)
            if k % 1000 == 0:
                peak = max(peak, resident() - before)
        assert peak < 2 * 3 * WINDOW + 4 * MIB, f"the receiver grew by {peak} bytes"
        record({"received": 3 * each, "receiver_grew": peak})
