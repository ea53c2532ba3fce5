"""Reduce_scatter, Scan, Exscan and their lower-case forms on ranks; an operation that does not commute shows the order."""

from __future__ import annotations

import numpy as np
import pytest

from pympx import MPI

WORLD = MPI.COMM_WORLD


@pytest.mark.ranks([1, 2, 3, 4])
def test_reduce_scatter() -> None:
    size, rank = WORLD.size, WORLD.rank
    counts = [(2 * i) % 5 for i in range(size)]
    whole = np.arange(sum(counts)) + 10.0 * rank
    expected = np.arange(sum(counts)) * size + 5.0 * size * (size - 1)
    start = sum(counts[:rank])
    into = np.zeros(counts[rank])
    for given in (counts, None):
        WORLD.Reduce_scatter(whole, into, given)
        assert (into == expected[start : start + counts[rank]]).all()
    WORLD.Reduce_scatter(MPI.IN_PLACE, whole, counts)
    assert (whole[: counts[rank]] == into).all()
    block = np.zeros(3)
    WORLD.Reduce_scatter_block(np.arange(3.0 * size), block, MPI.MAX)
    assert (block == np.arange(3.0 * rank, 3.0 * rank + 3)).all()
    with pytest.raises(MPI.Exception, match="recvcounts"):
        WORLD.Reduce_scatter(whole, into, [1] * (size + 1))


@pytest.mark.ranks([1, 2, 3, 4])
def test_prefixes() -> None:
    rank = WORLD.rank
    into = np.full(2, -1)
    WORLD.Scan(np.array([rank + 1, 1]), into)
    assert into.tolist() == [(rank + 1) * (rank + 2) // 2, rank + 1]
    untouched = np.full(2, -1)
    WORLD.Exscan(np.array([rank + 1, 1]), untouched)
    assert untouched.tolist() == ([-1, -1] if rank == 0 else [rank * (rank + 1) // 2, rank])
    place = np.array([rank + 1])
    WORLD.Scan(MPI.IN_PLACE, place)
    assert place[0] == (rank + 1) * (rank + 2) // 2
    assert WORLD.scan(str(rank)) == "".join(map(str, range(rank + 1)))
    assert WORLD.exscan(str(rank)) == ("".join(map(str, range(rank))) or None)


@pytest.mark.ranks(3)
def test_attributes_and_hosts() -> None:
    seen = []
    key = MPI.Comm.Create_keyval(copy_fn=lambda comm, keyval, value: value + 1, delete_fn=lambda comm, keyval, value: seen.append(value))
    WORLD.Set_attr(key, 1)
    copy = WORLD.Dup()
    assert (WORLD.Get_attr(key), copy.Get_attr(key), WORLD.Get_attr(MPI.TAG_UB)) == (1, 2, 2**31 - 1)
    copy.Free()
    WORLD.Delete_attr(key)
    assert seen == [2, 1]
    assert WORLD.Get_attr(key) is None
    here = WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    assert here.size == WORLD.size
    assert here.Compare(WORLD) == MPI.CONGRUENT
    here.Free()
