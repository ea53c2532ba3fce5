"""Every builder, checked symbolically for every size 1..33: each rank ends with exactly what it should, in any order of events."""

from __future__ import annotations

import random

import pytest

from pympx.collectives import allgather, allreduce, alltoall, barrier, bcast, check, gather, reduce, reduce_scatter, scan, scatter
from pympx.collectives.schedule import SLOTS, Kind, Schedule, even_blocks

SIZES = range(1, 34)
#: bytes per block; each runs with its own order of events
BLOCKS = (0, 1, 3, 8)
SEED = random.SystemRandom().randrange(2**32)


def roots(size: int) -> list[int]:
    """All ranks of a small communicator, of a larger one those where trees are irregular."""
    return list(range(size)) if size <= 9 else sorted({0, 1, size // 2, size - 1})


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    seed = f"{SEED}:{request.node.name}"
    print(f"seed {seed!r}")
    return random.Random(seed)


def seeds(rng: random.Random, number: int = 1) -> list[int]:
    return [rng.randrange(2**32) for _ in range(number)]


@pytest.mark.parametrize("size", SIZES)
def test_barrier(size: int, rng: random.Random) -> None:
    check.check_barrier([barrier.build(rank, size) for rank in range(size)], seeds=seeds(rng, 5))


@pytest.mark.parametrize("size", SIZES)
def test_bcast(size: int, rng: random.Random) -> None:
    for root in roots(size):
        for nbytes in BLOCKS:
            check.check_bcast([bcast.build(rank, size, nbytes, root=root) for rank in range(size)], nbytes, root, seeds=seeds(rng))


@pytest.mark.parametrize("commutative", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_reduce(size: int, in_place: bool, commutative: bool, rng: random.Random) -> None:
    for root in roots(size):
        for nbytes in BLOCKS:
            schedules = [reduce.build(rank, size, nbytes, root=root, in_place=in_place, commutative=commutative) for rank in range(size)]
            check.check_reduce(schedules, nbytes, root, in_place=in_place, commutative=commutative, seeds=seeds(rng))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_allreduce(size: int, in_place: bool, rng: random.Random) -> None:
    for nbytes in BLOCKS:
        for commutative in (True, False):
            schedules = [allreduce.build(rank, size, nbytes, in_place=in_place, commutative=commutative) for rank in range(size)]
            check.check_allreduce(schedules, nbytes, in_place=in_place, commutative=commutative, seeds=seeds(rng, 4))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_gather_and_scatter(size: int, in_place: bool, rng: random.Random) -> None:
    for root in roots(size):
        for nbytes in BLOCKS:
            counts, displs = even_blocks(size, nbytes)
            gathers = [gather.build(rank, size, nbytes, root=root, in_place=in_place) for rank in range(size)]
            check.check_gather(gathers, counts, displs, root, in_place=in_place, seeds=seeds(rng))
            scatters = [scatter.build(rank, size, nbytes, root=root, in_place=in_place) for rank in range(size)]
            check.check_scatter(scatters, counts, displs, root, in_place=in_place, seeds=seeds(rng))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_gatherv_and_scatterv(size: int, in_place: bool, rng: random.Random) -> None:
    for root in roots(size):
        counts, displs = random_blocks(rng, size)
        blocks: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ())] * size
        blocks[root] = counts, displs
        gathers = [gather.build_v(rank, size, counts[rank], *blocks[rank], root=root, in_place=in_place) for rank in range(size)]
        check.check_gather(gathers, counts, displs, root, in_place=in_place, seeds=seeds(rng))
        scatters = [scatter.build_v(rank, size, counts[rank], *blocks[rank], root=root, in_place=in_place) for rank in range(size)]
        check.check_scatter(scatters, counts, displs, root, in_place=in_place, seeds=seeds(rng))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_allgather(size: int, in_place: bool, rng: random.Random) -> None:
    for nbytes in BLOCKS:
        schedules = [allgather.build(rank, size, nbytes, in_place=in_place) for rank in range(size)]
        check.check_allgather(schedules, *even_blocks(size, nbytes), in_place=in_place, seeds=seeds(rng))
    for _ in range(3):
        counts, displs = random_blocks(rng, size)
        schedules = [allgather.build_v(rank, size, counts, displs, in_place=in_place) for rank in range(size)]
        check.check_allgather(schedules, counts, displs, in_place=in_place, seeds=seeds(rng))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_alltoall(size: int, in_place: bool, rng: random.Random) -> None:
    for nbytes in BLOCKS:
        schedules = [alltoall.build(rank, size, nbytes, in_place=in_place) for rank in range(size)]
        counts, displs = even_blocks(size, nbytes)
        check.check_alltoall(schedules, [counts] * size, [displs] * size, [displs] * size, in_place=in_place, seeds=seeds(rng))
    counts_of = random_matrix(rng, size, symmetric=in_place)
    sent = [random_displs(rng, counts_of[i]) for i in range(size)]
    received = [random_displs(rng, column(counts_of, i)) for i in range(size)]
    schedules = [
        alltoall.build_v(i, size, *((), ()) if in_place else (counts_of[i], sent[i]), column(counts_of, i), received[i], in_place=in_place)
        for i in range(size)
    ]
    check.check_alltoall(schedules, counts_of, sent, received, in_place=in_place, seeds=seeds(rng))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_reduce_scatter(size: int, in_place: bool, rng: random.Random) -> None:
    for nbytes in BLOCKS:
        schedules = [reduce_scatter.build(rank, size, nbytes, in_place=in_place) for rank in range(size)]
        check.check_reduce_scatter(schedules, (nbytes,) * size, in_place=in_place, seeds=seeds(rng, 2))
    for _ in range(3):
        counts, _displs = random_blocks(rng, size)
        schedules = [reduce_scatter.build_v(rank, size, counts, in_place=in_place) for rank in range(size)]
        check.check_reduce_scatter(schedules, counts, in_place=in_place, seeds=seeds(rng))


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_scan(size: int, exclusive: bool, in_place: bool, rng: random.Random) -> None:
    build = scan.build_exclusive if exclusive else scan.build
    for nbytes in BLOCKS:
        schedules = [build(rank, size, nbytes, in_place=in_place) for rank in range(size)]
        check.check_scan(schedules, nbytes, exclusive=exclusive, in_place=in_place, seeds=seeds(rng, 3))


def test_ring_longer_than_there_are_slots(rng: random.Random) -> None:
    """Steps 256 apart share a slot. Only some ranks have a block, which keeps the test short."""
    size = SLOTS + 4
    counts = (1,) * 12 + (0,) * (size - 12)
    displs = tuple(range(size))
    schedules = [allgather.build_v(rank, size, counts, displs) for rank in range(size)]
    slots = [v.slot for v in schedules[6].vertices if v.kind == Kind.RECV]
    assert len(set(slots)) < len(slots)
    check.check_allgather(schedules, counts, displs, in_place=False, seeds=seeds(rng, 2))


def random_blocks(rng: random.Random, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Counts 0..5, about a third of them 0, at displacements in random order with gaps."""
    counts = tuple(max(0, rng.randint(-2, 5)) for _ in range(size))
    return counts, random_displs(rng, counts)


def random_displs(rng: random.Random, counts: tuple[int, ...]) -> tuple[int, ...]:
    displs = [0] * len(counts)
    end = 0
    for i in rng.sample(range(len(counts)), len(counts)):
        displs[i] = end + rng.randint(0, 2)
        end = displs[i] + counts[i]
    return tuple(displs)


def random_matrix(rng: random.Random, size: int, *, symmetric: bool) -> list[tuple[int, ...]]:
    rows = [[max(0, rng.randint(-2, 5)) for _ in range(size)] for _ in range(size)]
    if symmetric:
        rows = [[rows[min(i, j)][max(i, j)] for j in range(size)] for i in range(size)]
    return [tuple(row) for row in rows]


def column(rows: list[tuple[int, ...]], j: int) -> tuple[int, ...]:
    return tuple(row[j] for row in rows)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: barrier.build(4, 4), "rank 4"),
        (lambda: bcast.build(0, 4, 8, root=-1), "root -1"),
        (lambda: allreduce.build(0, 4, -8), "-8 bytes"),
        (lambda: gather.build_v(0, 4, 1, (1, 1, 1), (0, 1, 2)), "3 counts"),
        (lambda: gather.build_v(0, 2, 5, (4, 4), (0, 4)), "5 bytes"),
        (lambda: scatter.build_v(1, 2, 5, (4, 4), (0, 4), root=1), "5 bytes"),
        (lambda: allgather.build_v(0, 2, (1, -1), (0, 1)), "-1 bytes"),
        (lambda: alltoall.build_v(0, 2, (1, 1), (0, 1), (2, 1), (0, 2)), "sends 1 bytes to itself"),
    ],
)
def test_bad_arguments_are_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()


def test_zero_bytes_need_no_vertex() -> None:
    for empty in (bcast.build(1, 3, 0), reduce.build(1, 3, 0), allreduce.build(1, 3, 0), allgather.build(1, 3, 0), alltoall.build(1, 3, 0)):
        assert empty == Schedule(())
