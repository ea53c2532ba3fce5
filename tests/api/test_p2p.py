"""Point-to-point on buffers: modes, wildcards, PROC_NULL, probes, Sendrecv, order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pympx import MPI

# around every protocol's limit on shm and tcp
SIZES = [0, 1, 7, 8, 64, 65, 4095, 4096, 8191, 8192, 16384, 32768, 32769, 65536, 131072, 1 << 20, (1 << 20) + 1, 5 << 20]


def pattern(source: int, dest: int, n: int) -> Any:
    return ((np.arange(n, dtype=np.uint32) * 2654435761 + source * 97 + dest * 31 + n) >> 7).astype(np.uint8)


@pytest.mark.ranks([1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["Isend", "Issend", "Irsend", "Ibsend"])
def test_every_size_in_every_mode(comm: Any, mode: str) -> None:
    rank, size = comm.rank, comm.size
    right, left = (rank + 1) % size, (rank - 1) % size
    for n in SIZES:
        got = np.full(n + 3, 255, np.uint8)
        receive = comm.Irecv([got, n, MPI.BYTE], left, n % 1000)
        comm.Barrier()  # for the ready mode
        if mode == "Ibsend":
            MPI.Attach_buffer(bytearray(n + MPI.BSEND_OVERHEAD))
        data = pattern(rank, right, n)
        send = getattr(comm, mode)(data, right, n % 1000)
        status = MPI.Status()
        receive.Wait(status)
        send.Wait()
        if mode == "Ibsend":
            MPI.Detach_buffer()
        assert (status.source, status.tag, status.count, status.error) == (left, n % 1000, n, 0)
        assert np.array_equal(got[:n], pattern(left, rank, n)), n
        assert (got[n:] == 255).all()
        assert not send and not receive


@pytest.mark.ranks([2, 3])
@pytest.mark.parametrize("mode", ["Send", "Ssend", "Rsend", "Bsend"])
def test_blocking_modes_unexpected_and_expected(comm: Any, mode: str) -> None:
    rank = comm.rank
    sizes = [n for n in SIZES if n <= 1 << 20]
    if rank == 0:
        MPI.Attach_buffer(bytearray(sum(sizes) * 2 + 2 * len(sizes) * MPI.BSEND_OVERHEAD))
        for turn in range(2):
            for n in sizes:
                if mode == "Rsend":
                    comm.Recv(bytearray(1), 1, 99)
                getattr(comm, mode)(pattern(turn, 1, n), 1, 5)
        MPI.Detach_buffer()
    elif rank == 1:
        for turn in range(2):
            for n in sizes:
                got = np.zeros(n, np.uint8)
                request = comm.Irecv(got, 0, 5)
                if mode == "Rsend":
                    comm.Send(b"r", 0, 99)
                request.Wait()
                assert np.array_equal(got, pattern(turn, 1, n))


@pytest.mark.ranks(2)
def test_a_synchronous_send_waits_for_its_receive(comm: Any) -> None:
    for n in SIZES:
        if comm.rank == 0:
            request = comm.Issend(pattern(0, 1, n), 1, 1)
            comm.Send(b"after", 1, 2)
            assert not request.Test()
            comm.Recv(bytearray(2), 1, 3)  # the receiver saw "after" and has not posted the other yet
            assert not request.Test()
            comm.Send(b"go", 1, 4)
            request.Wait()
        else:
            comm.Recv(bytearray(5), 0, 2)
            comm.Send(b"ok", 0, 3)
            comm.Recv(bytearray(2), 0, 4)
            got = np.zeros(n, np.uint8)
            comm.Recv(got, 0, 1)
            assert np.array_equal(got, pattern(0, 1, n))


@pytest.mark.ranks([2, 4])
def test_wildcards_keep_the_order_of_each_sender(comm: Any, rng: Any) -> None:
    rank, size = comm.rank, comm.size
    each = 300
    lengths = [np.where(rng.random(each) < 0.1, 200000, rng.integers(16, 3000, each)) for _ in range(size)]
    tags = [rng.integers(0, 3, each) for _ in range(size)]
    if rank:
        for i in range(each):
            message = np.zeros(lengths[rank][i], np.uint8)
            message[:16].view(np.int64)[:] = (rank, i)
            comm.Send(message, 0, int(tags[rank][i]))
    else:
        buffer = np.zeros(200000, np.uint8)
        following = [0] * size
        status = MPI.Status()
        for _ in range(each * (size - 1)):
            comm.Recv(buffer, MPI.ANY_SOURCE, MPI.ANY_TAG, status)
            source, number = map(int, buffer[:16].view(np.int64))
            assert source == status.source and number == following[source]
            assert status.tag == tags[source][number] and status.count == lengths[source][number]
            following[source] += 1


@pytest.mark.ranks(3)
def test_a_tag_picks_among_waiting_messages(comm: Any) -> None:
    if comm.rank:
        for tag in range(20):
            comm.Send(np.array([comm.rank, tag]), 0, tag)
    else:
        got = np.zeros(2, int)
        for tag in reversed(range(20)):
            seen = set()
            for _ in range(2):
                comm.Recv(got, MPI.ANY_SOURCE, tag)
                assert got[1] == tag
                seen.add(int(got[0]))
            assert seen == {1, 2}


@pytest.mark.ranks([1, 2])
def test_nobody(comm: Any) -> None:
    status = MPI.Status()
    got = np.full(4, 7)
    comm.Send(got, MPI.PROC_NULL)
    comm.Ssend(got, MPI.PROC_NULL)
    comm.Isend(got, MPI.PROC_NULL).Wait()
    comm.send({"a": 1}, MPI.PROC_NULL)
    comm.Recv(got, MPI.PROC_NULL, 3, status)
    assert (status.source, status.tag, status.count) == (MPI.PROC_NULL, MPI.ANY_TAG, 0)
    assert (got == 7).all()
    assert comm.recv(source=MPI.PROC_NULL) is None
    assert comm.irecv(source=MPI.PROC_NULL).wait() is None
    assert comm.Iprobe(MPI.PROC_NULL, 1, status) and status.source == MPI.PROC_NULL
    comm.Probe(MPI.PROC_NULL, 1, status)
    request = comm.Irecv(got, MPI.PROC_NULL)
    request.Wait(status)
    assert status.source == MPI.PROC_NULL and (got == 7).all()
    comm.Sendrecv(got, MPI.PROC_NULL, 0, got, MPI.PROC_NULL)


@pytest.mark.ranks([1, 2, 3, 4])
def test_sendrecv_in_a_ring(comm: Any) -> None:
    rank, size = comm.rank, comm.size
    right, left = (rank + 1) % size, (rank - 1) % size
    status = MPI.Status()
    for n in SIZES:
        data, got = pattern(rank, right, n), np.zeros(n, np.uint8)
        comm.Sendrecv(data, right, 1, got, left, 1, status)
        assert np.array_equal(got, pattern(left, rank, n)) and status.source == left and status.count == n
        both = pattern(rank, right, n)
        comm.Sendrecv_replace(both, right, 2, left, 2, status)
        assert np.array_equal(both, pattern(left, rank, n)) and status.source == left
        got[:] = 0
        comm.Isendrecv(data, right, 3, got, left, 3).Wait()
        assert np.array_equal(got, pattern(left, rank, n))
        assert comm.sendrecv((rank, n), right, 4, None, left, 4) == (left, n)


@pytest.mark.ranks([1, 2, 3])
def test_probes_tell_what_a_receive_then_gets(comm: Any) -> None:
    rank, size = comm.rank, comm.size
    right, left = (rank + 1) % size, (rank - 1) % size
    for n in SIZES:
        data = pattern(rank, right, n)
        request = comm.Isend(data, right, 11)
        status = MPI.Status()
        if n % 2:
            comm.Probe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)
        else:
            while not comm.Iprobe(left, 11, status):
                assert not comm.Iprobe(left, 12)
        assert (status.source, status.tag, status.count) == (left, 11, n)
        got = np.zeros(status.count, np.uint8)
        comm.Recv(got, status.source, status.tag)
        assert np.array_equal(got, pattern(left, rank, n))
        request.Wait()


@pytest.mark.ranks(2)
def test_any_buffer(comm: Any) -> None:
    import array
    import mmap

    def buffers(fill: int) -> list[Any]:
        mapped = mmap.mmap(-1, 24)
        mapped[:] = bytes([fill]) * 24
        return [
            bytearray([fill]) * 24,
            array.array("i", [fill] * 6),
            memoryview(bytearray([fill]) * 24)[4:12],
            np.full((3, 4), fill, np.float32),
            np.full((2, 3), fill, np.complex64, order="F"),
            np.full(30, fill)[5:9],
            np.full((), fill),
            mapped,
            [np.full(10, fill, np.int16), 4, MPI.SHORT],
            [np.full(10, fill, np.int16), (4, 2), MPI.SHORT],
            (np.full(10, fill, np.int32), "i"),
        ]

    def content(buffer: Any) -> bytes:
        return bytes(memoryview(buffer[0] if isinstance(buffer, (list, tuple)) else buffer).tobytes(order="A"))

    sent = comm.rank + 1
    for mine, got, theirs in zip(buffers(sent), buffers(9), buffers(3 - sent), strict=True):
        comm.Sendrecv(mine, 1 - comm.rank, 0, got, 1 - comm.rank, 0)
        if isinstance(mine, list):  # 4 items of 2 bytes, from item 0 or 2 on
            begin = 4 if isinstance(mine[1], tuple) else 0
            expected = bytearray(content(buffers(9)[8]))
            expected[begin : begin + 8] = content(theirs)[begin : begin + 8]
            assert content(got) == expected
        else:
            assert content(got) == content(theirs)
