"""CG's sparse matrix: a random symmetric positive definite pattern with condition number about 10, shifted (NPB's makea)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.npb.answers import CgProblem
from apps.npb.random46 import Stream

_SEED = 314159265
_RCOND = 0.1
_PIECE = 1 << 17


def _generating_vectors(problem: CgProblem) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return positions and values, n x (nonzer + 1), of the sparse vectors whose weighted outer products make up the matrix.

    Vector i holds `nonzer` random values at random distinct positions, and 0.5 at position i. Where i is among the random
    positions its value is replaced, and the last column is a zero at position i, which adds nothing.
    """
    n, nonzer = problem.n, problem.nonzer
    span = 1 << (n - 1).bit_length()  # smallest power of two >= n
    stream = Stream(_SEED, _PIECE)
    position = 1  # NPB draws one number before it starts
    positions = np.empty((n, nonzer + 1), dtype=np.int64)
    values = np.empty((n, nonzer + 1))
    pairs: list[tuple[int, float]] = []
    used = 0
    for i in range(n):
        vector: dict[int, float] = {}
        while len(vector) < nonzer:
            if used == len(pairs):
                uniform = stream.uniform(position, _PIECE)
                position += _PIECE
                where = (span * uniform[1::2]).astype(np.int64)
                usable = where < n
                pairs = list(zip(where[usable].tolist(), uniform[0::2][usable].tolist(), strict=True))
                used = 0
            column, value = pairs[used]
            used += 1
            vector.setdefault(column, value)
        last = 0.0 if i in vector else 0.5
        if i in vector:
            vector[i] = 0.5
        positions[i] = [*vector, i]
        values[i] = [*vector.values(), last]
    return positions, values


@dataclass(frozen=True)
class Rows:
    """Rows [start, stop) of the matrix, compressed by rows. No row is empty: each has its diagonal."""

    first_entry: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[np.float64]
    products: NDArray[np.float64]

    def times(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return these rows times the whole `vector`."""
        np.take(vector, self.columns, out=self.products, mode="clip")
        np.multiply(self.products, self.values, out=self.products)
        product: NDArray[np.float64] = np.add.reduceat(self.products, self.first_entry)
        return product


def make_rows(problem: CgProblem, start: int, stop: int) -> Rows:
    """Return rows [start, stop) of the matrix. Every rank draws all vectors and keeps what falls into its rows, as NPB does."""
    n = problem.n
    positions, values = _generating_vectors(problem)
    weights = np.empty(n)
    weights[0] = 1.0
    weights[1:] = _RCOND ** (1.0 / n)
    np.multiply.accumulate(weights, out=weights)
    mine = (positions >= start) & (positions < stop)
    vector, slot = np.nonzero(mine)
    row = positions[vector, slot]
    scaled = weights[vector] * values[vector, slot]
    entries = values[vector] * scaled[:, None]
    keys = (row[:, None] * n + positions[vector]).ravel()
    diagonal = np.arange(start, stop)
    keys = np.concatenate((keys, diagonal * (n + 1)))
    data = np.concatenate((entries.ravel(), np.full(diagonal.size, _RCOND - problem.shift)))
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    summed = np.add.reduceat(data[order], first)
    rows, columns = np.divmod(keys[first], n)
    return Rows(np.searchsorted(rows, diagonal), columns, summed, np.empty_like(summed))
