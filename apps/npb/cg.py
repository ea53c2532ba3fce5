"""CG: an eigenvalue of a sparse matrix by inverse power iteration, each step solved by 25 iterations of conjugate gradients.

The matrix is distributed by blocks of rows, vectors alike. A product needs nearly all of the vector (some fifty random columns per row), so
the vector is gathered to all ranks by Allgatherv; dot products are summed by Allreduce.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apps.common.blocks import block, block_sizes
from apps.npb.answers import CG, CgProblem
from apps.npb.matrix import Rows, make_rows
from apps.npb.outcome import Job, Outcome
from pympx import MPI

PROBLEMS = CG
_INNER = 25
_TOLERANCE = 1e-10

Array = NDArray[np.float64]


class _Solver:
    """One rank's rows and what it takes to multiply by the whole matrix."""

    def __init__(self, job: Job, problem: CgProblem, rows: Rows) -> None:
        self._job = job
        self._rows = rows
        self._whole = np.empty(problem.n)
        self._counts = block_sizes(problem.n, job.size)
        self._bytes = [count * self._whole.itemsize for count in self._counts]
        self._places = [block(problem.n, job.size, rank)[0] for rank in range(job.size)]

    def dots(self, *pairs: tuple[Array, Array]) -> Array:
        """Return the dot products of distributed vectors, all in one Allreduce."""
        return self._job.audit.allreduce_sum(np.array([left @ right for left, right in pairs]))

    def _times(self, vector: Array) -> Array:
        self._job.comm.Allgatherv(vector, [self._whole, self._counts, self._places, MPI.DOUBLE])
        self._job.volume.allgatherv(self._bytes)
        self._job.audit.replicated(self._whole)
        return self._rows.times(self._whole)

    def solve(self, x: Array) -> tuple[Array, float]:
        """Return z with A z = x after 25 iterations, and |x - A z|."""
        z = np.zeros_like(x)
        r = x.copy()
        p = x.copy()
        (rho,) = self.dots((r, r))
        for _ in range(_INNER):
            q = self._times(p)
            (curvature,) = self.dots((p, q))
            alpha = rho / curvature
            z += alpha * p
            r -= alpha * q
            previous = rho
            (rho,) = self.dots((r, r))
            p *= rho / previous
            p += r
        residual = x - self._times(z)
        (square,) = self.dots((residual, residual))
        return z, float(np.sqrt(square))

    def power_step(self, x: Array, shift: float) -> tuple[Array, float, float]:
        """Return the next x, zeta and the residual norm of the solve."""
        z, residual = self.solve(x)
        xz, zz = self.dots((x, z), (z, z))
        return z / np.sqrt(zz), float(shift + 1.0 / xz), residual


def run(job: Job, problem: CgProblem) -> Outcome:
    """Run CG on all ranks. Raises ValueError when there are more ranks than rows."""
    if job.size > problem.n:
        raise ValueError(f"{problem.n} rows cannot be dealt out to {job.size} ranks; start at most {problem.n}")
    start, stop = block(problem.n, job.size, job.rank)
    rows = make_rows(problem, start, stop)
    (nonzeros,) = job.audit.allreduce_sum(np.array([rows.values.size], dtype=np.int64))
    solver = _Solver(job, problem, rows)
    solver.power_step(np.ones(stop - start), problem.shift)  # NPB's untimed iteration; its result is thrown away
    job.volume.sent.clear()  # what the set-up moved is outside the counters' window
    job.traffic.start()
    x = np.ones(stop - start)
    lines = []
    for iteration in range(1, problem.iterations + 1):
        x, zeta, residual = solver.power_step(x, problem.shift)
        lines.append(f"iteration {iteration:2d}  |r| {residual:.3e}  zeta {zeta:.13f}")
    job.traffic.stop()
    error = abs((zeta - problem.zeta) / problem.zeta)
    terms = problem.nonzer * (problem.nonzer + 1)
    return Outcome(
        correct=error <= _TOLERANCE and int(nonzeros) == problem.nonzeros,
        iterations=problem.iterations,
        operations=2.0 * problem.iterations * problem.n * (3 + terms + _INNER * (5 + terms) + 3),
        lines=[
            *lines,
            f"zeta {zeta:.13f}, published {problem.zeta}, relative error {error:.1e} (allowed {_TOLERANCE:.0e})",
            f"non-zeros {nonzeros} (expected {problem.nonzeros})",
        ],
        details={"zeta": zeta, "error": error, "nonzeros": int(nonzeros), "residual": residual},
    )
