"""Bytes and messages sent are those of the formulas in the builders' docstrings."""

from __future__ import annotations

import pytest

from pympx.collectives import allgather, allreduce, alltoall, barrier, bcast, gather, reduce, scatter
from pympx.collectives.schedule import Kind, Schedule

NBYTES = 24


def sent(schedule: Schedule) -> int:
    """Bytes that a rank sends."""
    return sum(v.nbytes for v in schedule.vertices if v.kind == Kind.SEND)


def messages(schedule: Schedule) -> int:
    return sum(v.kind == Kind.SEND for v in schedule.vertices)


@pytest.mark.parametrize("size", range(1, 34))
def test_volume(size: int) -> None:
    ranks = range(size)
    last = size - 1
    for in_place in (False, True):
        assert sum(sent(gather.build(r, size, NBYTES, root=last, in_place=in_place)) for r in ranks) == (size - 1) * NBYTES
        assert sum(sent(scatter.build(r, size, NBYTES, root=last, in_place=in_place)) for r in ranks) == (size - 1) * NBYTES
        assert [sent(allgather.build(r, size, NBYTES, in_place=in_place)) for r in ranks] == [(size - 1) * NBYTES] * size
        assert [sent(alltoall.build(r, size, NBYTES, in_place=in_place)) for r in ranks] == [(size - 1) * NBYTES] * size
        assert sum(sent(reduce.build(r, size, NBYTES, root=last, in_place=in_place)) for r in ranks) == (size - 1) * NBYTES
        ordered = [reduce.build(r, size, NBYTES, root=last, in_place=in_place, commutative=False) for r in ranks]
        assert sum(map(sent, ordered)) == (size - 1 + (last != 0)) * NBYTES
        assert max(s.temp_bytes for s in ordered) <= 2 * 32 + NBYTES  # three areas, the first two rounded up to 16
        doubling = size.bit_length() - 1
        power, folded = 1 << doubling, size - (1 << doubling)
        reductions = [allreduce.build(r, size, NBYTES, in_place=in_place) for r in ranks]
        assert sum(map(sent, reductions)) == (power * doubling + 2 * folded) * NBYTES
        if not folded:
            assert [sent(s) for s in reductions] == [doubling * NBYTES] * size
        assert max(s.temp_bytes for s in reductions) <= NBYTES
    assert sum(sent(bcast.build(r, size, NBYTES, root=last)) for r in ranks) == (size - 1) * NBYTES
    rounds = (size - 1).bit_length()
    assert [messages(barrier.build(r, size)) for r in ranks] == [rounds] * size
    assert [sent(barrier.build(r, size)) for r in ranks] == [0] * size
    assert max(messages(bcast.build(r, size, NBYTES, root=last)) for r in ranks) == rounds


@pytest.mark.parametrize("size", range(1, 34))
def test_volume_of_uneven_blocks(size: int) -> None:
    counts = tuple(7 * i % 5 for i in range(size))
    displs = tuple(sum(counts[:i]) for i in range(size))
    ring = [allgather.build_v(r, size, counts, displs) for r in range(size)]
    assert sum(map(sent, ring)) == (size - 1) * sum(counts)
    rows = [tuple((3 * i + j) % 4 for j in range(size)) for i in range(size)]
    exchange = []
    for r in range(size):
        column = tuple(row[r] for row in rows)
        exchange.append(alltoall.build_v(r, size, rows[r], (0,) * size, column, tuple(sum(column[:i]) for i in range(size))))
    assert [sent(s) for s in exchange] == [sum(rows[r]) - rows[r][r] for r in range(size)]
    assert [messages(s) for s in exchange] == [sum(n > 0 for j, n in enumerate(rows[r]) if j != r) for r in range(size)]
