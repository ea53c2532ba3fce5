"""The apps' parts, without other ranks: volume against simulated algorithms, random numbers, closed forms, blocks, the matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest

from apps.common import volume
from apps.common.blocks import block, block_sizes
from apps.heat import analytic
from apps.heat.decomposition import decompose, process_grid
from apps.npb.answers import CG, IS
from apps.npb.matrix import make_rows
from apps.npb.random46 import Stream

SIZES = range(1, 18)


def simulate_allreduce(size: int) -> list[int]:
    """Run recursive doubling on sets of contributions; return the number of vectors that each rank sends."""
    sent = [0] * size
    held = [{rank} for rank in range(size)]
    power = 1
    while power * 2 <= size:
        power *= 2
    extra = size - power
    for pair in range(extra):
        sent[2 * pair] += 1
        held[2 * pair + 1] |= held[2 * pair]
    workers = [2 * pair + 1 for pair in range(extra)] + list(range(2 * extra, size))
    distance = 1
    while distance < power:
        before = [set(held[rank]) for rank in workers]
        for index, rank in enumerate(workers):
            sent[rank] += 1
            held[workers[index ^ distance]] |= before[index]
        distance *= 2
    for pair in range(extra):
        sent[2 * pair + 1] += 1
        held[2 * pair] = held[2 * pair + 1]
    assert all(contributions == set(range(size)) for contributions in held)
    return sent


def simulate_ring(blocks: list[int]) -> list[int]:
    """Run a ring allgather; return the bytes that each rank sends."""
    size = len(blocks)
    sent = [0] * size
    held = [{rank} for rank in range(size)]
    for step in range(size - 1):
        for rank in range(size):
            passed_on = (rank - step) % size
            assert passed_on in held[rank]
            sent[rank] += blocks[passed_on]
        for rank in range(size):
            held[(rank + 1) % size].add((rank - step) % size)
    assert all(contributions == set(range(size)) for contributions in held)
    return sent


def simulate_tree(size: int, root: int) -> list[int]:
    """Run a binomial broadcast: in each round, highest distance first, holders pass it on; return the copies that each rank sends."""
    sent = [0] * size
    holders = {0}
    distance = 1 << (size - 1).bit_length()
    while distance:
        for holder in sorted(holders):
            if holder % (2 * distance) == 0 and holder + distance < size:
                sent[(holder + root) % size] += 1
                holders.add(holder + distance)
        distance //= 2
    assert holders == set(range(size))
    return sent


@pytest.mark.parametrize("size", SIZES)
def test_volume_of_allreduce(size: int) -> None:
    assert [volume.allreduce_sent(rank, size, 24) for rank in range(size)] == [24 * vectors for vectors in simulate_allreduce(size)]


@pytest.mark.parametrize("size", SIZES)
def test_volume_of_allgatherv(size: int) -> None:
    blocks = [3 * rank * rank + 1 for rank in range(size)]
    assert [volume.allgatherv_sent(rank, blocks) for rank in range(size)] == simulate_ring(blocks)


@pytest.mark.parametrize("size", SIZES)
def test_volume_of_trees(size: int) -> None:
    for root in {0, size // 2, size - 1}:
        assert [volume.bcast_sent(rank, size, 10, root) for rank in range(size)] == [10 * copies for copies in simulate_tree(size, root)]
        assert sum(volume.reduce_sent(rank, 10, root) for rank in range(size)) == 10 * (size - 1)


def test_volume_of_alltoallv_leaves_out_oneself() -> None:
    sent = [[1, 20, 300], [4000, 50000, 600000], [7, 8, 9]]
    assert [volume.alltoallv_sent(rank, row) for rank, row in enumerate(sent)] == [320, 604000, 15]


def test_volume_adds_up_by_kind() -> None:
    books = volume.Volume(rank=1, size=3)
    books.point_to_point(0, 100)
    books.point_to_point(1, 100)
    books.allreduce(8)
    books.allgatherv([1, 2, 4])
    books.alltoallv([5, 6, 7])
    assert books.sent == {"point_to_point": 100, "allreduce": 16, "allgatherv": 3, "alltoallv": 12}


@pytest.mark.parametrize("parts", SIZES)
def test_blocks_cover_and_differ_by_one(parts: int) -> None:
    for total in (0, 1, parts - 1, parts, 100):
        ends = [block(total, parts, index) for index in range(parts)]
        assert ends[0][0] == 0 and ends[-1][1] == total
        assert all(ends[index][1] == ends[index + 1][0] for index in range(parts - 1))
        assert max(block_sizes(total, parts)) - min(block_sizes(total, parts)) <= 1


def test_random_numbers_equal_the_scalar_recurrence() -> None:
    state, expected = 314159265, []
    for _ in range(1000):
        state = state * 5**13 % 2**46
        expected.append(state / 2**46)
    stream = Stream(314159265, 300)
    pieces = [stream.uniform(position, min(300, 1000 - position)) for position in range(0, 1000, 300)]
    assert np.concatenate(pieces).tolist() == expected


@pytest.mark.parametrize("ranks", SIZES)
def test_decomposition_tiles_the_plate(ranks: int) -> None:
    rows, columns = process_grid(ranks)
    assert rows * columns == ranks and rows >= columns
    size = 19
    owner = np.full((size, size), -1)
    blocks = [decompose(size, ranks, rank) for rank in range(ranks)]
    for rank, piece in enumerate(blocks):
        part = owner[piece.row_start : piece.row_stop, piece.column_start : piece.column_stop]
        assert part.shape == piece.shape and np.all(part == -1)
        part[:] = rank
    assert np.all(owner >= 0)
    for rank, piece in enumerate(blocks):
        if piece.row_stop < size:
            assert owner[piece.row_stop, piece.column_start] == piece.above
            assert blocks[piece.above].below == rank
        if piece.column_stop < size:
            assert owner[piece.row_start, piece.column_stop] == piece.right
            assert blocks[piece.right].left == rank


def plate_with_edges(n: int, inside: np.ndarray) -> np.ndarray:
    """Return `inside` with its four edges around it."""
    whole = np.zeros((n + 2, n + 2))
    whole[1:-1, 1:-1] = inside
    whole[-1] = analytic.edge(np.arange(n + 2) / (n + 1))
    return whole


def test_grid_steady_solves_the_five_point_equations() -> None:
    n = 40
    numbers = np.arange(1, n + 1)
    whole = plate_with_edges(n, analytic.grid_steady(n, numbers, numbers))
    neighbours = whole[:-2, 1:-1] + whole[2:, 1:-1] + whole[1:-1, :-2] + whole[1:-1, 2:]
    assert np.max(np.abs(whole[1:-1, 1:-1] - 0.25 * neighbours)) < 1e-15


@pytest.mark.parametrize("n", [4, 10, 33, 80])
def test_discretisation_bound_holds_and_is_not_idle(n: int) -> None:
    numbers = np.arange(1, n + 1)
    points = numbers / (n + 1)
    error = np.max(np.abs(analytic.grid_steady(n, numbers, numbers) - analytic.steady(points, points)))
    assert analytic.discretisation_bound(n) / 20 < error <= analytic.discretisation_bound(n)


@pytest.mark.parametrize("steps", [0, 1, 7, 300])
def test_closed_form_equals_the_iteration(steps: int) -> None:
    n = 12
    whole = plate_with_edges(n, np.zeros((n, n)))
    for _ in range(steps):
        whole[1:-1, 1:-1] = 0.25 * (whole[:-2, 1:-1] + whole[2:, 1:-1] + whole[1:-1, :-2] + whole[1:-1, 2:])
    numbers = np.arange(1, n + 1)
    closed = analytic.grid_steady(n, numbers, numbers) + analytic.iteration_error(n, steps, numbers, numbers)
    assert np.max(np.abs(whole[1:-1, 1:-1] - closed)) < 1e-14


def test_steady_equals_the_series_at_the_middle() -> None:
    middle = np.array([0.5])
    expected = sum(
        amplitude * math.sin(k * math.pi / 2) * math.sinh(k * math.pi / 2) / math.sinh(k * math.pi)
        for k, amplitude in analytic.EDGE_MODES.items()
    )
    assert analytic.steady(middle, middle)[0, 0] == pytest.approx(expected, rel=1e-14)


def test_matrix_is_symmetric_and_cut_by_rows() -> None:
    problem = CG["S"]
    whole = make_rows(problem, 0, problem.n)
    assert whole.values.size == problem.nonzeros
    vectors = np.random.default_rng(7).standard_normal((2, problem.n))
    left, right = vectors[0] @ whole.times(vectors[1]), vectors[1] @ whole.times(vectors[0])
    assert left == pytest.approx(right, rel=1e-12)
    part = make_rows(problem, 500, 901)
    assert np.array_equal(part.times(vectors[0]), whole.times(vectors[0])[500:901])


def test_published_ranks() -> None:
    assert [IS["S"].expected_rank(i, 10) for i in range(5)] == [10, 28, 356, 64907, 65453]
    assert [IS["W"].expected_rank(i, 1) for i in range(5)] == [1248, 11697, 1039986, 1043895, 1048017]
    assert [IS["A"].expected_rank(i, 3) for i in range(5)] == [106, 17525, 123930, 8288930, 8388262]
