"""Collectives on buffers with random sizes, roots, counts and displacements, against NumPy on what everybody contributed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pympx import MPI

TURNS = 12
DTYPES = ["i1", "i4", "f8", "c16", "u2"]


def length(rng: Any) -> int:
    """Zero, then log-uniform up to 2^17 items."""
    return 0 if rng.random() < 0.1 else int(2 ** rng.uniform(0, 17))


def contributions(rng: Any, size: int, n: Any, dtype: str) -> list[Any]:
    counts = [n] * size if np.isscalar(n) else n
    return [rng.integers(0, 100, c).astype(dtype) for c in counts]


def layout(rng: Any, size: int) -> tuple[list[int], list[int], int]:
    """Counts and displacements with gaps, blocks in any order in memory."""
    counts = [int(c) for c in rng.integers(0, 2 ** int(rng.integers(1, 15)), size)]
    displacements, at = [0] * size, 0
    for block in rng.permutation(size):
        at += int(rng.integers(0, 5))
        displacements[block] = at
        at += counts[block]
    return counts, displacements, at + int(rng.integers(0, 5))


@pytest.mark.ranks([1, 2, 3, 4])
def test_bcast(comm: Any, rng: Any) -> None:
    for _ in range(TURNS):
        n, root, dtype = length(rng), int(rng.integers(comm.size)), str(rng.choice(DTYPES))
        data = contributions(rng, 1, n, dtype)[0]
        buffer = data.copy() if comm.rank == root else np.zeros(n, dtype)
        comm.Bcast(buffer, root)
        assert np.array_equal(buffer, data), (n, root, dtype)


@pytest.mark.ranks([1, 2, 3, 4])
def test_reduce_and_allreduce(comm: Any, rng: Any) -> None:
    rank, size = comm.rank, comm.size
    for _ in range(TURNS):
        n, root, dtype = length(rng), int(rng.integers(size)), str(rng.choice(DTYPES))
        data = contributions(rng, size, n, dtype)
        expected = np.sum(data, axis=0, dtype=dtype)
        in_place = bool(rng.random() < 0.5)
        result = data[rank].copy() if in_place else np.zeros(n, dtype)
        comm.Allreduce(MPI.IN_PLACE if in_place else data[rank], result)
        assert np.array_equal(result, expected), (n, dtype, in_place)
        result = data[rank].copy() if in_place and rank == root else np.full(n, 9).astype(dtype)
        comm.Reduce(MPI.IN_PLACE if in_place and rank == root else data[rank], result if rank == root else None, MPI.SUM, root)
        assert rank != root or np.array_equal(result, expected), (n, dtype, root, in_place)


@pytest.mark.ranks([3, 4])
def test_allreduce_gives_the_same_bits_everywhere(comm: Any, rng: Any) -> None:
    for n in (1, 100, 5000, 300000):
        data = rng.standard_normal((comm.size, n)) * 10.0 ** rng.integers(-8, 8, n)
        result = np.zeros(n)
        comm.Allreduce(data[comm.rank], result)
        assert len(set(comm.allgather(result.tobytes()))) == 1
        assert np.allclose(result, data.sum(0), rtol=1e-9, atol=1e-6)


@pytest.mark.ranks([1, 2, 3, 4])
def test_gather_scatter_allgather_alltoall(comm: Any, rng: Any) -> None:
    rank, size = comm.rank, comm.size
    for _ in range(TURNS):
        n, root, dtype = length(rng) // size, int(rng.integers(size)), str(rng.choice(DTYPES))
        data = contributions(rng, size, n, dtype)
        whole = np.concatenate(data)
        in_place = bool(rng.random() < 0.5)
        mine = whole[rank * n : (rank + 1) * n]

        got = np.zeros(size * n, dtype)
        if in_place and rank == root:
            got[root * n : (root + 1) * n] = data[rank]
        comm.Gather(MPI.IN_PLACE if in_place and rank == root else data[rank], got if rank == root else None, root)
        assert rank != root or np.array_equal(got, whole), ("Gather", n, root, in_place)

        part = np.zeros(n, dtype)
        comm.Scatter(whole if rank == root else None, MPI.IN_PLACE if in_place and rank == root else part, root)
        assert (in_place and rank == root) or np.array_equal(part, mine), ("Scatter", n, root, in_place)

        got = np.zeros(size * n, dtype)
        if in_place:
            got[rank * n : (rank + 1) * n] = data[rank]
        comm.Allgather(MPI.IN_PLACE if in_place else data[rank], got)
        assert np.array_equal(got, whole), ("Allgather", n, in_place)

        matrix = [contributions(rng, size, n, dtype) for _ in range(size)]  # [from][to]
        expected = np.concatenate([matrix[i][rank] for i in range(size)])
        sent = np.concatenate(matrix[rank])
        got = sent.copy() if in_place else np.zeros(size * n, dtype)
        comm.Alltoall(MPI.IN_PLACE if in_place else sent, got)
        assert np.array_equal(got, expected), ("Alltoall", n, in_place)


@pytest.mark.ranks([1, 2, 3, 4])
def test_v_collectives(comm: Any, rng: Any) -> None:
    rank, size = comm.rank, comm.size
    for _ in range(TURNS):
        root, dtype = int(rng.integers(size)), str(rng.choice(DTYPES))
        counts, displacements, total = layout(rng, size)
        data = contributions(rng, size, counts, dtype)
        in_place = bool(rng.random() < 0.4)
        code = np.dtype(dtype).char
        expected = np.full(total, 77).astype(dtype)
        for c, d, block in zip(counts, displacements, data, strict=True):
            expected[d : d + c] = block

        got = np.full(total, 77).astype(dtype)
        kept = in_place and rank == root
        if kept:
            got[displacements[rank] : displacements[rank] + counts[rank]] = data[rank]
        comm.Gatherv(MPI.IN_PLACE if kept else data[rank], [got, counts, displacements, code] if rank == root else None, root)
        assert rank != root or np.array_equal(got, expected), ("Gatherv", counts, displacements, root, in_place)

        part = np.zeros(counts[rank], dtype)
        comm.Scatterv([expected, (counts, displacements), code] if rank == root else None, MPI.IN_PLACE if kept else part, root)
        assert kept or np.array_equal(part, data[rank]), ("Scatterv", counts, displacements, root, in_place)

        got = np.full(total, 77).astype(dtype)
        if in_place:
            got[displacements[rank] : displacements[rank] + counts[rank]] = data[rank]
        comm.Allgatherv(MPI.IN_PLACE if in_place else data[rank], [got, counts, displacements, code])
        assert np.array_equal(got, expected), ("Allgatherv", counts, displacements, in_place)

        table = rng.integers(0, 2 ** int(rng.integers(1, 14)), (size, size))  # [from][to]
        matrix = [contributions(rng, size, [int(c) for c in row], dtype) for row in table]
        receive_counts = [int(c) for c in table[:, rank]]
        gaps = [int(g) for g in rng.integers(0, 4, (size, size))[rank]]
        receive_displacements = [sum(receive_counts[:j]) + sum(gaps[: j + 1]) for j in range(size)]
        got = np.full(sum(receive_counts) + sum(gaps), 77).astype(dtype)
        expected = got.copy()
        for i in range(size):
            expected[receive_displacements[i] : receive_displacements[i] + receive_counts[i]] = matrix[i][rank]
        comm.Alltoallv(
            [np.concatenate(matrix[rank]), [int(c) for c in table[rank]], None, code], [got, receive_counts, receive_displacements, code]
        )
        assert np.array_equal(got, expected), ("Alltoallv", table.tolist())


@pytest.mark.ranks([1, 2, 3])
def test_none_is_in_place(comm: Any) -> None:
    """As in mpi4py, for a rank whose own part is in the memory for all; elsewhere it is nothing."""
    rank, size = comm.rank, comm.size
    everybody, total = np.arange(size) * 10, sum(range(size)) * 10
    own = np.where(everybody == rank * 10, everybody, -1)
    for root in range(size):
        at_root = rank == root
        got = own.copy()
        comm.Gather(None if at_root else everybody[rank : rank + 1], got if at_root else None, root)
        assert not at_root or np.array_equal(got, everybody)
        got = own.copy()
        comm.Gatherv(None if at_root else everybody[rank : rank + 1], [got, 1] if at_root else None, root)
        assert not at_root or np.array_equal(got, everybody)
        for scatter in (comm.Scatter, comm.Scatterv):
            part = np.zeros(1, int)
            scatter(everybody.copy() if at_root else None, None if at_root else part, root)
            assert at_root or part[0] == rank * 10
        number = np.array([rank * 10])
        comm.Reduce(None if at_root else number, number if at_root else None, MPI.SUM, root)
        assert not at_root or number[0] == total
    for gather in (comm.Allgather, comm.Allgatherv):
        got = own.copy()
        gather(None, got)
        assert np.array_equal(got, everybody)
    for reduce, expected in ((comm.Allreduce, total), (comm.Scan, sum(range(rank + 1)) * 10)):
        number = np.array([rank * 10])
        reduce(None, number)
        assert number[0] == expected
    for exchange in (comm.Alltoall, comm.Alltoallv):
        got = np.full(size, rank)
        exchange(None, got)
        assert np.array_equal(got, range(size))
    got = np.full(size, rank)
    comm.Reduce_scatter_block(None, got)
    assert got[0] == sum(range(size))
    got = np.full(size, rank)
    comm.Reduce_scatter(None, got, [1] * size)
    assert got[0] == sum(range(size))


@pytest.mark.ranks([1, 2, 3])
def test_counts_of_numpy(comm: Any) -> None:
    got = np.zeros(comm.size)
    comm.Allgather([np.array([comm.rank + 0.5]), np.int64(1), MPI.DOUBLE], [got, np.int64(1), MPI.DOUBLE])
    assert np.array_equal(got, np.arange(comm.size) + 0.5)


@pytest.mark.ranks([1, 2, 3, 4])
def test_alltoallw(comm: Any, rng: Any) -> None:
    """Each pair of ranks has a datatype and a count of its own, blocks lie anywhere."""
    rank, size = comm.rank, comm.size
    for _ in range(TURNS):
        kinds = rng.choice(DTYPES, (size, size))  # [from][to]
        table = rng.integers(0, 2 ** int(rng.integers(1, 13)), (size, size))
        matrix = [[contributions(rng, 1, int(table[i, j]), str(kinds[i, j]))[0] for j in range(size)] for i in range(size)]

        def message(blocks: list[Any], gap: int, filled: bool) -> tuple[Any, list[int], Any]:
            displacements = [sum(b.nbytes for b in blocks[:j]) + gap * j for j in range(size)]
            memory = bytearray(sum(b.nbytes for b in blocks) + gap * size)
            for block, at in zip(blocks, displacements, strict=True):
                memory[at : at + block.nbytes] = block.tobytes() if filled else bytes(block.nbytes)
            counts = [len(b) for b in blocks]
            datatypes = [MPI.Datatype.fromcode(b.dtype.char) for b in blocks]
            return memory, displacements, [memory, (counts, displacements), datatypes]

        _, _, send = message(matrix[rank], int(rng.integers(0, 9)), True)
        into, displacements, receive = message([matrix[i][rank] for i in range(size)], int(rng.integers(0, 9)), False)
        comm.Alltoallw(send, receive)
        for i, at in enumerate(displacements):
            block = matrix[i][rank]
            assert into[at : at + block.nbytes] == block.tobytes(), (i, kinds.tolist(), table.tolist())
    one = bytearray(1)
    MPI.COMM_SELF.Alltoallw([b"x", [MPI.BYTE]], [one, [MPI.BYTE]])
    assert one == b"x"
    got = np.full(size, rank)
    comm.Alltoallw(MPI.IN_PLACE, [got, [1] * size, [8 * i for i in range(size)], [MPI.INT64_T] * size])
    assert np.array_equal(got, range(size))


@pytest.mark.ranks([2, 3, 4])
def test_collectives_and_messages_do_not_meet(comm: Any, rng: Any) -> None:
    """Receives with wildcards are open while collectives run."""
    rank, size = comm.rank, comm.size
    got = [np.zeros(1, np.int64) for _ in range(size)]
    open_receives = [comm.Irecv(g, MPI.ANY_SOURCE, MPI.ANY_TAG) for g in got]
    for _ in range(30):
        n = length(rng) // 8
        result = np.zeros(n, np.int64)
        comm.Allreduce(np.full(n, rank), result)
        assert (result == size * (size - 1) // 2).all()
        comm.Barrier()
        assert not any(r.Test() for r in open_receives)
        comm.Barrier()
    for other in range(size):
        comm.Send(np.array([rank]), other)
    MPI.Request.Waitall(open_receives)
    assert sorted(int(g[0]) for g in got) == list(range(size))


@pytest.mark.ranks([2, 3, 4])
def test_ranks_that_come_late_and_early(comm: Any, rng: Any) -> None:
    """Many collectives of mixed kinds in a row; nobody waits except inside them."""
    rank, size = comm.rank, comm.size
    for turn in range(80):
        root = int(rng.integers(size))
        kind = int(rng.integers(4))
        n = int(rng.integers(1, 4000))
        if kind == 0:
            b = np.full(n, turn if rank == root else -1)
            comm.Bcast(b, root)
            assert (b == turn).all()
        elif kind == 1:
            r = np.zeros(n, int)
            comm.Reduce(np.full(n, rank + turn), r if rank == root else None, MPI.SUM, root)
            assert rank != root or (r == sum(k + turn for k in range(size))).all()
        elif kind == 2:
            comm.Barrier()
        else:
            g = np.zeros((size, n), int) if rank == root else None
            comm.Gather(np.full(n, rank * turn), g, root)
            assert g is None or all((g[k] == k * turn).all() for k in range(size))
