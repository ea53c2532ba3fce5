"""Reductions by users' functions: commutative and not, order of the ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pympx import MPI


def affine(a: Any, b: Any, datatype: Any) -> None:
    """Composition of x -> p x + q, kept as pairs of int64 modulo a prime: associative, not commutative."""
    assert datatype == MPI.INT64_T or datatype == MPI.LONG
    first, second = np.frombuffer(a, np.int64).reshape(-1, 2), np.frombuffer(b, np.int64).reshape(-1, 2)
    p = first[:, 0] * second[:, 0] % 10007
    q = (first[:, 0] * second[:, 1] + first[:, 1]) % 10007
    second[:, 0], second[:, 1] = p, q


def compose(pairs: Any) -> Any:
    result = pairs[-1].copy()
    for pair in pairs[-2::-1]:
        p, q = pair[:, 0] * result[:, 0] % 10007, (pair[:, 0] * result[:, 1] + pair[:, 1]) % 10007
        result = np.stack([p, q], 1)
    return result


@pytest.mark.ranks([1, 2, 3, 4])
def test_not_commutative_in_the_order_of_ranks(comm: Any, rng: Any) -> None:
    op = MPI.Op.Create(affine, commute=False)
    for n in (1, 10, 3000, 50000):
        pairs = rng.integers(1, 10007, (comm.size, n, 2))
        expected = compose(list(pairs))
        result = np.zeros((n, 2), np.int64)
        comm.Allreduce(pairs[comm.rank], result, op)
        assert np.array_equal(result, expected)
        root = int(rng.integers(comm.size))
        result[:] = 0
        comm.Reduce(pairs[comm.rank], result if comm.rank == root else None, op, root)
        assert comm.rank != root or np.array_equal(result, expected)
    op.Free()


@pytest.mark.ranks([1, 2, 3, 4])
def test_commutative(comm: Any) -> None:
    def larger(a: Any, b: Any, datatype: Any) -> None:
        np.maximum(np.frombuffer(a, "f8"), np.frombuffer(b, "f8"), out=np.frombuffer(b, "f8"))

    op = MPI.Op.Create(larger, commute=True)
    for n in (1, 1000, 200000):
        result = np.zeros(n)
        comm.Allreduce(np.full(n, float(comm.rank)), result, op)
        assert (result == comm.size - 1).all()


def test_local() -> None:
    left, right = np.array([1.0, 5, 3]), np.array([4.0, 2, 9])
    for op, expected in ((MPI.SUM, [5, 7, 12]), (MPI.MAX, [4, 5, 9]), (MPI.PROD, [4, 10, 27])):
        result = right.copy()
        op.Reduce_local(left, result)
        assert result.tolist() == expected
    pair = np.array([[3, 2]])
    MPI.Op.Create(affine).Reduce_local(np.array([[5, 1]]), pair)
    assert pair.tolist() == [[15, 11]]
    with pytest.raises(ValueError, match="inbuf has 3 MPI_DOUBLE, inoutbuf 2 MPI_DOUBLE"):
        MPI.SUM.Reduce_local(left, right[:2])
    with pytest.raises(ValueError, match="inbuf has 1 MPI_INT, inoutbuf 1 MPI_SHORT"):
        MPI.SUM.Reduce_local([left, 1, MPI.INT], [right, 1, MPI.SHORT])
    with pytest.raises(MPI.Exception, match="MPI_BAND is not defined for MPI_DOUBLE"):
        MPI.BAND.Reduce_local(left, right)
    with pytest.raises(MPI.Exception, match="OP_NULL"):
        MPI.OP_NULL.Reduce_local(left, right)
