"""THREAD_MULTIPLE: several threads of a rank communicate at once, block, and hold the GIL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pympx import MPI


def in_threads(calls: list[Callable[[], None]]) -> None:
    """Run all at once; raise the first exception of any."""
    errors: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.ranks([1, 2, 3, 4])
def test_four_threads_each_with_its_own_tag(comm: Any, rng: Any) -> None:
    assert MPI.Query_thread() == MPI.THREAD_MULTIPLE
    rank, size = comm.rank, comm.size
    right, left = (rank + 1) % size, (rank - 1) % size
    lengths = (2 ** rng.uniform(0, 17, (4, 30))).astype(int)

    def work(number: int) -> None:
        for turn, n in enumerate(lengths[number]):
            data = np.full(n, (rank * 7 + number * 3 + turn) % 256, np.uint8)
            expected = (left * 7 + number * 3 + turn) % 256
            got = np.zeros(n, np.uint8)
            if turn % 3 == 0:
                comm.Sendrecv(data, right, number, got, left, number)
            elif turn % 3 == 1:
                request = comm.isend(data, right, number)
                got = comm.recv(source=left, tag=number)
                request.wait()
            else:
                requests = [comm.Irecv(got, left, number), comm.Issend(data, right, number)]
                MPI.Request.Waitall(requests)
            assert len(got) == n and (got == expected).all(), (number, turn)

    in_threads([lambda k=k: work(k) for k in range(4)])  # type: ignore[misc]


@pytest.mark.ranks([2, 3])
def test_one_thread_is_blocked_while_others_communicate(comm: Any) -> None:
    rank, size = comm.rank, comm.size
    right, left = (rank + 1) % size, (rank - 1) % size

    def blocked() -> None:
        got = np.zeros(1, int)
        comm.Recv(got, left, 500)
        assert got[0] == left

    def busy() -> None:
        for turn in range(300):
            got = np.zeros(10 if turn % 10 else 100000, int)
            comm.Sendrecv(np.full(len(got), turn), right, 1, got, left, 1)
            assert (got == turn).all()
        comm.Send(np.array([rank]), right, 500)

    in_threads([blocked, busy])


@pytest.mark.ranks(2)
def test_a_thread_that_holds_the_gil(comm: Any) -> None:
    """Python code that never blocks runs beside messages in both directions."""
    over = threading.Event()
    counted = 0

    def heavy() -> None:
        nonlocal counted
        while not over.is_set():
            counted += sum(range(2000)) % 2 + 1

    def talk() -> None:
        try:
            for turn in range(100):
                assert comm.sendrecv(turn, 1 - comm.rank, 3, None, 1 - comm.rank, 3) == turn
        finally:
            over.set()

    in_threads([heavy, talk])
    assert counted


@pytest.mark.ranks([2, 3])
def test_collectives_in_threads_on_communicators_of_their_own(comm: Any) -> None:
    comms = [comm.Dup() for _ in range(3)]

    def work(number: int) -> None:
        for turn in range(60):
            result = np.zeros(turn * 50 + 1, int)
            comms[number].Allreduce(np.full(len(result), number + turn), result)
            assert (result == comm.size * (number + turn)).all()
            assert comms[number].bcast((number, turn) if comm.rank == 1 else None, 1) == (number, turn)

    in_threads([lambda k=k: work(k) for k in range(3)])  # type: ignore[misc]


@pytest.mark.ranks(2)
def test_users_reductions_in_threads(comm: Any) -> None:
    comms = [comm.Dup() for _ in range(2)]

    def add(a: Any, b: Any, datatype: Any) -> None:
        np.frombuffer(b, "f8")[:] += np.frombuffer(a, "f8")

    op = MPI.Op.Create(add, commute=True)

    def work(number: int) -> None:
        for turn in range(50):
            result = np.zeros(20)
            comms[number].Allreduce(np.full(20, float(turn)), result, op)
            assert (result == turn * comm.size).all()

    in_threads([lambda k=k: work(k) for k in range(2)])  # type: ignore[misc]


@pytest.mark.ranks(2)
def test_the_first_use_is_in_a_thread_and_wildcards_in_many(comm: Any) -> None:
    """Four threads receive with wildcards what four threads of the peer send: every message arrives once."""
    seen: list[int] = []
    lock = threading.Lock()

    def receive() -> None:
        got = np.zeros(1, int)
        for _ in range(50):
            comm.Recv(got, MPI.ANY_SOURCE, 7)
            with lock:
                seen.append(int(got[0]))

    def send(number: int) -> None:
        for turn in range(50):
            comm.Send(np.array([number * 50 + turn]), 1 - comm.rank, 7)

    in_threads([receive] * 4 + [lambda k=k: send(k) for k in range(4)])  # type: ignore[misc]
    assert sorted(seen) == list(range(200))
