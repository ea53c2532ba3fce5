"""Bad input: the exact class, the numbers in the message, on the rank that erred; afterwards the job goes on."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from pympx import MPI


def freed(comm: Any) -> Any:
    other = comm.Dup()
    other.Free()
    return other


def readonly() -> Any:
    array = np.zeros(5)
    array.flags.writeable = False
    return array


E = MPI.Exception
# name: (call, class of the exception, MPI error class or None, words in the message)
LOCAL: dict[str, tuple[Callable[[Any], Any], type, int | None, list[str]]] = {
    "send to a rank too high": (lambda c: c.Send(b"x", c.size + 3), E, MPI.ERR_RANK, ["{size_and_3}", "{size}"]),
    "send to a negative rank": (lambda c: c.Send(b"x", -7), E, MPI.ERR_RANK, ["-7"]),
    "send to ANY_SOURCE": (lambda c: c.Send(b"x", MPI.ANY_SOURCE), E, MPI.ERR_RANK, ["{any_source}"]),
    "isend to a rank too high": (lambda c: c.Isend(b"x", c.size), E, MPI.ERR_RANK, ["{size}"]),
    "object to a rank too high": (lambda c: c.send(1, c.size), E, MPI.ERR_RANK, ["{size}"]),
    "receive from a rank too high": (lambda c: c.Recv(bytearray(1), 99), E, MPI.ERR_RANK, ["99", "{size}"]),
    "irecv from a rank too high": (lambda c: c.irecv(source=99), E, MPI.ERR_RANK, ["99"]),
    "probe a rank too high": (lambda c: c.Probe(99), E, MPI.ERR_RANK, ["99"]),
    "iprobe a rank too high": (lambda c: c.Iprobe(99), E, MPI.ERR_RANK, ["99"]),
    "sendrecv to a rank too high": (lambda c: c.Sendrecv(b"x", 99, 0, bytearray(1), 0), E, MPI.ERR_RANK, ["99"]),
    "sendrecv from a rank too high": (lambda c: c.Sendrecv(b"x", 0, 0, bytearray(1), 99), E, MPI.ERR_RANK, ["99"]),
    "send with a negative tag": (lambda c: c.Send(b"x", 0, -3), E, MPI.ERR_TAG, ["-3"]),
    "send with ANY_TAG": (lambda c: c.Send(b"x", 0, MPI.ANY_TAG), E, MPI.ERR_TAG, ["-1"]),
    "isend with a negative tag": (lambda c: c.Isend(b"x", 0, -3), E, MPI.ERR_TAG, ["-3"]),
    "receive with a negative tag": (lambda c: c.Recv(bytearray(1), 0, -5), E, MPI.ERR_TAG, ["-5"]),
    "tag beyond an int": (lambda c: c.Send(b"x", 0, 2**31), OverflowError, None, []),
    "bcast from a root too high": (lambda c: c.Bcast(bytearray(1), c.size), E, MPI.ERR_ROOT, ["{size}"]),
    "reduce to a negative root": (lambda c: c.Reduce(np.zeros(1), np.zeros(1), MPI.SUM, -1), E, MPI.ERR_ROOT, ["-1"]),
    "gather to a root too high": (lambda c: c.Gather(np.zeros(1), None, 12), E, MPI.ERR_ROOT, ["12"]),
    "receive into a read-only array": (lambda c: c.Recv(readonly(), 0), BufferError, None, ["40 bytes", "read-only"]),
    "receive into bytes": (lambda c: c.Recv(b"xyz", 0), BufferError, None, ["3 bytes", "read-only"]),
    "irecv into bytes": (lambda c: c.Irecv(b"xyz", 0), BufferError, None, ["read-only"]),
    "allreduce into bytes": (lambda c: c.Allreduce(np.zeros(1), b"12345678"), BufferError, None, ["read-only"]),
    "strided array": (lambda c: c.Send(np.zeros((4, 4))[:, 1], 0), BufferError, None, ["contiguous", "(4,)", "(32,)"]),
    "no buffer": (lambda c: c.Send(object(), 0), (TypeError, BufferError), None, ["object"]),  # type: ignore[dict-item]
    "count beyond the buffer": (lambda c: c.Send([np.zeros(4), 5, MPI.DOUBLE], 0), ValueError, None, ["5", "40", "32"]),
    "negative count": (lambda c: c.Send([np.zeros(4), -5, MPI.DOUBLE], 0), ValueError, None, ["-5"]),
    "negative displacement": (lambda c: c.Send([np.zeros(4), (1, -2), MPI.DOUBLE], 0), ValueError, None, ["-2"]),
    "no such datatype": (lambda c: c.Send([np.zeros(4), "no such"], 0), (KeyError, ValueError, TypeError, E), None, ["no such"]),  # type: ignore[dict-item]
    "a float for a count": (lambda c: c.Send([np.zeros(4), 1.5, MPI.DOUBLE], 0), TypeError, None, []),
    "a string for a rank": (lambda c: c.Send(b"x", "0"), TypeError, None, []),
    "allreduce of different sizes": (lambda c: c.Allreduce(np.zeros(3), np.zeros(4)), E, MPI.ERR_COUNT, ["24", "32"]),
    "gather that does not divide": (lambda c: c.Allgather(np.zeros(1, "u1"), np.zeros(3 * c.size + 1, "u1")), E, MPI.ERR_COUNT, []),
    "allgather of different sizes": (lambda c: c.Allgather(np.zeros(2), np.zeros(c.size * 3)), E, MPI.ERR_COUNT, ["16", "24"]),
    "op without a meaning": (lambda c: c.Allreduce(np.zeros(1), np.zeros(1), MPI.BAND), E, MPI.ERR_OP, ["MPI_BAND", "MPI_DOUBLE"]),
    "op of the wrong type": (lambda c: c.Allreduce(np.zeros(1), np.zeros(1), "sum"), TypeError, None, ["str"]),
    "wrong number of counts": (lambda c: c.Allgatherv(b"", [bytearray(9), [1] * (c.size + 1), None, "B"]), ValueError, None, ["{size}"]),
    "block beyond the buffer": (
        lambda c: c.Allgatherv(b"", [bytearray(9), [10] * c.size, [0] * c.size, "B"]), ValueError, None, ["10 bytes", "9"],
    ),
    "no datatype per rank": (lambda c: c.Alltoallw([b"", [0], [0], "B"], [bytearray(9), [0], [0], "B"]), TypeError, None, ["datatypes"]),
    "wrong number of datatypes": (
        lambda c: c.Alltoallw(None, [bytearray(9), [0] * c.size, [0] * c.size, [MPI.BYTE] * (c.size + 1)]), ValueError, None, ["{size}"],
    ),
    "typed block beyond the buffer": (
        lambda c: c.Alltoallw(None, [bytearray(9), [1] * c.size, [2] * c.size, [MPI.DOUBLE] * c.size]), ValueError, None, ["10 bytes", "9"],
    ),
    "scatter of too few objects": (lambda c: c.alltoall([1] * (c.size + 2)), ValueError, None, ["{size}"]),
    "freed communicator: Send": (lambda c: freed_one.Send(b"x", 0), E, MPI.ERR_COMM, ["freed"]),
    "freed communicator: Recv": (lambda c: freed_one.Recv(bytearray(1)), E, MPI.ERR_COMM, ["freed"]),
    "freed communicator: isend": (lambda c: freed_one.isend(1, 0), E, MPI.ERR_COMM, ["freed"]),
    "freed communicator: Barrier": (lambda c: freed_one.Barrier(), E, MPI.ERR_COMM, ["freed"]),
    "freed communicator: bcast": (lambda c: freed_one.bcast(1), E, MPI.ERR_COMM, ["freed"]),
    "freed communicator: Dup": (lambda c: freed_one.Dup(), E, MPI.ERR_COMM, ["freed"]),
    "freed communicator: rank": (lambda c: freed_one.rank, E, MPI.ERR_COMM, ["freed"]),
    "freed communicator: Free": (lambda c: freed_one.Free(), E, MPI.ERR_COMM, ["freed"]),
    "null communicator": (lambda c: MPI.COMM_NULL.Send(b"x", 0), E, MPI.ERR_COMM, ["COMM_NULL"]),
    "free the world": (lambda c: c.Free(), E, MPI.ERR_COMM, ["MPI_COMM_WORLD"]),
    "bsend without a buffer": (lambda c: c.Bsend(b"12345", 0), E, MPI.ERR_BUFFER, ["5 bytes"]),
    "status of the wrong type": (lambda c: c.Recv(bytearray(1), MPI.PROC_NULL, 0, "status"), TypeError, None, ["str"]),
    "request of the wrong type": (lambda c: MPI.Request.Waitall(cast("Any", [1])), TypeError, None, ["int"]),
    "cancel nothing": (lambda c: MPI.REQUEST_NULL.Cancel(), E, MPI.ERR_REQUEST, ["REQUEST_NULL"]),
    "negative color": (lambda c: c.Split(-5), E, MPI.ERR_ARG, ["-5"]),
    "an object that cannot be pickled": (lambda c: c.send(lambda: 0, 0), (AttributeError, TypeError, Exception), None, []),  # type: ignore[dict-item]
}
freed_one: Any = None


@pytest.mark.ranks(2)
@pytest.mark.parametrize("name", LOCAL)
def test_bad_arguments(comm: Any, name: str, capfd: Any) -> None:
    """Only the last rank errs; then all communicate."""
    global freed_one
    freed_one = freed(comm)
    call, kind, error_class, words = LOCAL[name]
    if comm.rank == comm.size - 1:
        with pytest.raises(kind) as caught:
            call(comm)
        if error_class is not None:
            assert isinstance(caught.value, MPI.Exception)
            assert caught.value.Get_error_class() == error_class, caught.value
        for word in words:
            expected = word.format(size=comm.size, size_and_3=comm.size + 3, any_source=MPI.ANY_SOURCE)
            assert expected in str(caught.value), (expected, str(caught.value))
    assert comm.allreduce(1) == comm.size
    assert capfd.readouterr().err == ""


@pytest.mark.ranks([1, 3])
@pytest.mark.parametrize("n", [2, 100, 5000, 40000, 70000, 3 << 20])
@pytest.mark.parametrize("how", ["Recv", "Irecv", "Sendrecv", "unexpected", "persistent"])
def test_truncation(comm: Any, n: int, how: str) -> None:
    rank, size = comm.rank, comm.size
    right, left = (rank + 1) % size, (rank - 1) % size
    data = np.arange(n, dtype=np.uint64).view(np.uint8)[:n]
    room = n // 2
    buffer = np.full(n, 200, np.uint8)
    status = MPI.Status()
    request = None
    if how == "Irecv":
        receive = comm.Irecv([buffer, room, MPI.BYTE], left, 9)
    if how == "persistent":
        receive = comm.Recv_init([buffer, room, MPI.BYTE], left, 9)
        receive.Start()
    if how != "Sendrecv":
        request = comm.Isend(data, right, 9)
    if how == "unexpected":
        comm.Probe(left, 9)
    with pytest.raises(MPI.Exception) as caught:
        if how in ("Recv", "unexpected"):
            comm.Recv([buffer, room, MPI.BYTE], left, 9, status)
        elif how == "Sendrecv":
            comm.Sendrecv(data, right, 9, [buffer, room, MPI.BYTE], left, 9, status)
        else:
            receive.Wait(status)
    assert caught.value.Get_error_class() == MPI.ERR_TRUNCATE
    for part in (f"message of {n} bytes", f"rank {left}", "tag 9", f"holds {room}"):
        assert part in str(caught.value), str(caught.value)
    assert status.error == MPI.ERR_TRUNCATE and status.source == left
    assert np.array_equal(buffer[:room], data[:room]) and (buffer[room:] == 200).all()
    if request:
        request.Wait()  # the sender did nothing wrong
    got = np.zeros(n, np.uint8)
    comm.Sendrecv(data, right, 10, got, left, 10)
    assert np.array_equal(got, data)


@pytest.mark.ranks(2)
def test_an_array_where_an_object_was_expected(comm: Any) -> None:
    if comm.rank == 0:
        comm.Send(np.arange(50), 1)
        comm.Send(b"", 1)
    else:
        with pytest.raises((pickle.UnpicklingError, EOFError)):
            comm.recv(source=0)
        assert comm.recv(source=0) is None  # as mpi4py has it


@pytest.mark.ranks([2, 3])
def test_waitall_with_one_bad_request(comm: Any) -> None:
    rank, size = comm.rank, comm.size
    right, left = (rank + 1) % size, (rank - 1) % size
    sends = [comm.Isend(np.full(100, i, np.uint8), right, i) for i in range(5)]
    buffers = [np.zeros(100 if i != 2 else 10, np.uint8) for i in range(5)]
    receives = [comm.Irecv(b, left, i) for i, b in enumerate(buffers)]
    with pytest.raises(MPI.Exception) as caught:
        MPI.Request.Waitall(receives)
    assert caught.value.Get_error_class() in (MPI.ERR_TRUNCATE, MPI.ERR_IN_STATUS)
    assert not any(receives)
    assert all((b == i).all() for i, b in enumerate(buffers))
    MPI.Request.Waitall(sends)
