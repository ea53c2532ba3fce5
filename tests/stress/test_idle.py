"""Waiting costs nothing: < 2 % CPU while blocked, and more ranks than cores get along."""

from __future__ import annotations

import resource
import threading
import time
from typing import Any

import numpy as np
import pytest

from pympx import MPI

SECONDS = 5.0
LIMIT = 0.02


def cpu() -> float:
    """CPU time of this process so far, user and system, all threads, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@pytest.mark.ranks(2, timeout=40)
@pytest.mark.parametrize("call", ["Recv", "wildcard", "Probe", "Barrier", "Ssend", "two threads"])
def test_a_blocked_rank_uses_no_cpu(comm: Any, call: str, record: Any) -> None:
    comm.Barrier()
    if comm.rank == 0:
        time.sleep(SECONDS)  # the scenario: the peer makes the other wait
        if call == "Barrier":
            comm.Barrier()
        elif call == "Ssend":
            comm.Recv(np.zeros(10), 1)
        else:
            comm.Send(np.zeros(10), 1, 1)
            if call == "two threads":
                comm.Send(np.zeros(10), 1, 2)
        print(comm.recv(source=1))
        return
    calls = {
        "Recv": lambda: comm.Recv(np.zeros(10), 0, 1),
        "wildcard": lambda: comm.Recv(np.zeros(10), MPI.ANY_SOURCE),
        "Probe": lambda: comm.Probe(0, 1),
        "Barrier": comm.Barrier,
        "Ssend": lambda: comm.Ssend(np.zeros(10), 0),
        "two threads": lambda: comm.Recv(np.zeros(10), 0, 1),
    }
    thread = threading.Thread(target=lambda: comm.Recv(np.zeros(10), 0, 2))
    began, used = time.perf_counter(), cpu()
    if call == "two threads":
        thread.start()
    calls[call]()
    if call == "two threads":
        thread.join()
    share = (cpu() - used) / (time.perf_counter() - began)
    if call == "Probe":
        comm.Recv(np.zeros(10), 0, 1)
    comm.send(f"CPU while blocked in {call}: {100 * share:.2f} %", 0)
    assert time.perf_counter() - began > 0.9 * SECONDS
    assert share < LIMIT, f"{100 * share:.2f} % CPU while blocked in {call}"


@pytest.mark.ranks(16, timeout=120)
def test_sixteen_ranks_do_1000_barriers(comm: Any, record: Any) -> None:
    for _ in range(20):
        comm.Barrier()
    began = time.perf_counter()
    for _ in range(1000):
        comm.Barrier()
    seconds = comm.allreduce(time.perf_counter() - began, MPI.MAX)
    record({"barriers": 1000, "ranks": 16, "seconds": round(seconds, 3)})
    assert seconds < 5, f"1000 barriers of 16 ranks took {seconds:.2f} s"
