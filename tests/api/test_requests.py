"""Requests: waiting for all, any, some; testing; cancelling; persistent ones; giving them up."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from pympx import MPI

R = MPI.Request


def start(comm: Any, rng: Any, n: int, longest: int = 100_000) -> tuple[list[Any], list[Any], list[Any]]:
    """n receives from the left and n sends to the right in the same order; returns requests, buffers, what is expected."""
    rank, size = comm.rank, comm.size
    lengths = rng.integers(0, longest, n)
    data = [[np.frombuffer(rng.bytes(k), np.uint8) for k in lengths] for _ in range(size)]
    got = [np.zeros(k, np.uint8) for k in lengths]
    requests = [comm.Irecv(b, (rank - 1) % size, i) for i, b in enumerate(got)]
    requests += [comm.Isend(d, (rank + 1) % size, i) for i, d in enumerate(data[rank])]
    return requests, got, data[(rank - 1) % size]


@pytest.mark.ranks([1, 2, 4])
@pytest.mark.parametrize("how", ["Waitall", "Testall", "Waitany", "Testany", "Waitsome", "Testsome", "Get_status_all", "Get_status_some"])
def test_many(comm: Any, rng: Any, how: str) -> None:
    n = 24
    requests, got, expected = start(comm, rng, n)
    statuses: list[Any] = []
    if how == "Waitall":
        assert R.Waitall(requests, statuses)
        assert [s.tag for s in statuses[:n]] == list(range(n))
        assert [s.count for s in statuses[:n]] == [len(e) for e in expected]
    elif how == "Testall":
        while not R.Testall(requests):
            assert any(requests)
    elif how in ("Waitany", "Testany"):
        seen = []
        while True:
            status = MPI.Status()
            index, flag = (R.Waitany(requests, status), True) if how == "Waitany" else R.Testany(requests, status)
            if not flag:
                continue
            if index == MPI.UNDEFINED:
                break
            seen.append(index)
            if index < n:
                assert status.tag == index and np.array_equal(got[index], expected[index])
        assert sorted(seen) == list(range(2 * n))
    elif how in ("Waitsome", "Testsome"):
        seen = []
        while (indices := getattr(R, how)(requests)) is not None:
            assert indices or how == "Testsome"
            seen += indices
        assert sorted(seen) == list(range(2 * n))
    elif how == "Get_status_all":
        while not R.Get_status_all(requests):
            pass
        assert all(requests)
        R.Waitall(requests)
    else:
        while len(R.Get_status_some(requests) or []) < 2 * n:
            pass
        R.Waitall(requests)
    assert not any(requests)
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_none_active() -> None:
    nothing = [MPI.REQUEST_NULL, MPI.REQUEST_NULL]
    assert R.Waitall(nothing) and R.Testall(nothing)
    assert R.Waitany(nothing) == MPI.UNDEFINED and R.Testany(nothing) == (MPI.UNDEFINED, True)
    assert R.Waitsome(nothing) is None and R.Testsome(nothing) is None
    assert R.Waitall([]) and R.waitall([]) == [] and R.Waitany([]) == MPI.UNDEFINED


@pytest.mark.ranks([1, 2, 3])
def test_objects_from_requests(comm: Any) -> None:
    rank, size = comm.rank, comm.size
    objects = [{"i": i, "data": b"x" * 10**k} for i, k in enumerate((0, 3, 5, 7))]
    sends = [comm.isend(o, (rank + 1) % size, i) for i, o in enumerate(objects)]
    receives = [comm.irecv(source=(rank - 1) % size, tag=i) for i in range(4)]
    index, first = R.waitany(receives)
    assert first == objects[index]
    rest = R.waitall(receives)
    assert [o for i, o in enumerate(rest) if i != index] == [o for i, o in enumerate(objects) if i != index]
    assert R.waitall(sends) == [None] * 4
    request = comm.irecv(source=(rank - 1) % size)
    send = comm.issend(objects[3], (rank + 1) % size)
    flag, message = request.test()
    while not flag:
        assert message is None
        flag, message = request.test()
    assert message == objects[3]
    send.wait()


@pytest.mark.ranks([1, 2])
def test_cancel_a_receive(comm: Any) -> None:
    got = np.zeros(4, np.int64)
    request = comm.Irecv(got, comm.rank, 77)
    request.Cancel()
    status = MPI.Status()
    request.Wait(status)
    assert status.Is_cancelled()
    # what comes later goes to a later receive
    send = comm.Isend(np.arange(4), comm.rank, 77)
    later = np.zeros(4, np.int64)
    comm.Recv(later, comm.rank, 77)
    send.Wait()
    assert list(later) == [0, 1, 2, 3] and list(got) == [0] * 4
    # a receive that has its message cannot be withdrawn
    send = comm.Isend(np.arange(4), comm.rank, 78)
    comm.Probe(comm.rank, 78)
    request = comm.Irecv(got, comm.rank, 78)
    request.Cancel()
    request.Wait(status)
    assert not status.Is_cancelled() and list(got) == [0, 1, 2, 3]
    send.Wait()


@pytest.mark.ranks([1, 2, 3])
@pytest.mark.parametrize("kind", ["Send_init", "Ssend_init", "Rsend_init"])
def test_persistent(comm: Any, kind: str) -> None:
    rank, size = comm.rank, comm.size
    for n in (3, 3000, 300000):
        data, got = np.zeros(n, np.int32), np.zeros(n, np.int32)
        send = getattr(comm, kind)(data, (rank + 1) % size, 1)
        receive = comm.Recv_init(got, (rank - 1) % size, 1)
        assert send and receive and receive.Test()  # inactive: complete at once
        for turn in range(5):
            data[:] = rank * 100 + turn
            receive.Start()
            comm.Barrier()
            MPI.Prequest.Startall([send])
            R.Waitall([receive, send])
            assert (got == (rank - 1) % size * 100 + turn).all()
            assert send and receive
        send.Free()
        receive.Free()
        assert not send and not receive


@pytest.mark.ranks([2, 3])
def test_given_up_requests_still_deliver(comm: Any, rng: Any) -> None:
    n = 300_000
    if comm.rank == 0:
        for turn in range(20):
            comm.Isend(np.full(n, turn, np.int32), 1, turn)  # nobody keeps request or buffer
            comm.isend(np.full(n, turn, np.int32), 1, turn).Free()
        gc.collect()
        comm.Send(b"", 1, 99)
    elif comm.rank == 1:
        comm.Recv(bytearray(1), 0, 99)
        got = np.zeros(n, np.int32)
        for turn in reversed(range(20)):
            comm.Recv(got, 0, turn)
            assert (got == turn).all()
            assert (comm.recv(source=0, tag=turn) == turn).all()


@pytest.mark.ranks(2)
def test_a_dropped_receive_does_not_take_a_message(comm: Any) -> None:
    if comm.rank == 0:
        request = comm.Irecv(np.zeros(3), 1, 5)
        del request
        gc.collect()
        comm.Barrier()
        got = np.zeros(3)
        comm.Recv(got, 1, 5)
        assert list(got) == [1, 2, 3]
    else:
        comm.Barrier()
        comm.Send(np.array([1.0, 2, 3]), 0, 5)
