"""Making, splitting and freeing communicators; their messages are kept apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pympx import MPI


@pytest.mark.ranks([1, 2, 3, 4])
def test_traffic_of_communicators_is_kept_apart(comm: Any) -> None:
    rank, size = comm.rank, comm.size
    right, left = (rank + 1) % size, (rank - 1) % size
    comms = [comm, comm.Dup(), comm.Dup(), comm.Split(0, -rank)]
    assert comms[3].rank == size - 1 - rank
    requests = []
    for number, c in enumerate(comms):
        dest = right if number < 3 else size - 1 - right
        for n in (1, 1000, 100000):
            requests.append(c.Isend(np.full(n, number * 10 + rank, np.int32), dest, 4))
    for number in (2, 0, 3, 1):
        c = comms[number]
        for n in (1, 1000, 100000):
            got = np.zeros(100000, np.int32)
            status = MPI.Status()
            c.Recv(got, MPI.ANY_SOURCE, MPI.ANY_TAG, status)
            assert status.Get_count(MPI.INT) == n and (got[:n] == number * 10 + left).all()
            assert status.source == (left if number < 3 else size - 1 - left)
    MPI.Request.Waitall(requests)
    results = []
    for c in reversed(comms):
        result = np.zeros(1, int)
        c.Allreduce(np.array([rank]), result)
        results.append(int(result[0]))
    assert results == [size * (size - 1) // 2] * 4
    for c in comms[1:]:
        c.Free()


@pytest.mark.ranks([1, 2, 3, 4])
def test_split(comm: Any) -> None:
    rank, size = comm.rank, comm.size
    half = comm.Split(rank % 2, size - rank)
    members = [r for r in reversed(range(size)) if r % 2 == rank % 2]
    assert half.size == len(members) and half.rank == members.index(rank)
    assert half.allgather(rank) == members
    some = comm.Split(0 if rank == size - 1 else MPI.UNDEFINED)
    if rank == size - 1:
        assert some.size == 1 and some.allreduce(5) == 5
    else:
        assert some == MPI.COMM_NULL and not some
    quarter = half.Split(half.rank)
    assert quarter.size == 1
    quarter.Free()
    half.Free()
    with pytest.raises(MPI.Exception) as caught:
        half.Barrier()
    assert caught.value.Get_error_class() == MPI.ERR_COMM and "freed" in str(caught.value)


@pytest.mark.ranks([1, 2, 3, 4])
def test_create_and_groups(comm: Any) -> None:
    rank, size = comm.rank, comm.size
    group = comm.Get_group()
    assert (group.Get_size(), group.Get_rank()) == (size, rank)
    backwards = group.Incl(list(reversed(range(size))))
    other = comm.Create(backwards)
    assert other.rank == size - 1 - rank and MPI.Comm.Compare(comm, other) == (MPI.SIMILAR if size > 1 else MPI.CONGRUENT)
    assert other.allgather(rank) == list(reversed(range(size)))
    last = comm.Create(group.Incl([size - 1]))
    assert bool(last) == (rank == size - 1)
    without = group.Excl([0])
    assert without.Get_size() == size - 1 and without.Get_rank() == (rank - 1 if rank else MPI.UNDEFINED)
    assert list(MPI.Group.Translate_ranks(backwards, list(range(size)), group)) == list(reversed(range(size)))
    assert MPI.Comm.Compare(comm, comm) == MPI.IDENT and MPI.Comm.Compare(comm, comm.Dup()) == MPI.CONGRUENT
    other.Free()


@pytest.mark.ranks([1, 2, 4])
def test_many_are_made_and_freed(comm: Any) -> None:
    for turn in range(25):
        c = comm.Dup()
        assert c.allreduce(turn) == turn * comm.size
        c.Free()
    assert not c


@pytest.mark.ranks(2)
def test_a_message_that_comes_before_the_communicator_is_known(comm: Any) -> None:
    """Rank 0 leaves Dup and sends at once; rank 1 may still be inside."""
    for turn in range(50):
        c = comm.Dup()
        if comm.rank == 0:
            c.Send(np.array([turn]), 1)
        else:
            got = np.zeros(1, int)
            c.Recv(got, MPI.ANY_SOURCE)
            assert got[0] == turn
        c.Free()


@pytest.mark.ranks([2, 3])
def test_self(comm: Any) -> None:
    alone = MPI.COMM_SELF
    assert (alone.rank, alone.size) == (0, 1)
    for n in (0, 10, 100000, 3 << 20):
        request = alone.Isend(np.full(n, 3, np.uint8), 0)
        got = np.zeros(n, np.uint8)
        alone.Recv(got, 0)
        request.Wait()
        assert (got == 3).all()
    assert alone.allgather(comm.rank) == [comm.rank]


@pytest.mark.ranks(2)
def test_all_names_of_a_communicator_count_its_agreements(comm: Any) -> None:
    """Ranks may call the same communicator by different names: the agreements still meet."""
    other = MPI.Intracomm(comm)
    names = [comm, other, other, comm, other] if comm.rank == 0 else [other, other, comm, comm, comm]
    for number, name in enumerate(names):
        assert name.Agree(number << 2 | 1 << comm.rank) == number << 2
