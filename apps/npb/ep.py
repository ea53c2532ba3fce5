"""EP, embarrassingly parallel: Gaussian deviates by the polar method from 2^m pairs of uniform numbers.

Batches of 2^16 pairs are dealt out to ranks in blocks; one Allreduce at the end adds up sums and counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apps.common.blocks import block
from apps.npb.answers import EP, EpProblem
from apps.npb.outcome import Job, Outcome
from apps.npb.random46 import Stream

PROBLEMS = EP
_SEED = 271828183
_LOG_BATCH = 16
_ANNULI = 10
_TOLERANCE = 1e-8


def _batch(uniform: NDArray[np.float64]) -> tuple[float, float, NDArray[np.int64]]:
    """Return sum of x deviates, sum of y deviates and the counts per square annulus of one batch of pairs."""
    pairs = 2.0 * uniform - 1.0
    x, y = pairs[0::2], pairs[1::2]
    t = x * x + y * y
    accepted = t <= 1.0
    x, y, t = x[accepted], y[accepted], t[accepted]
    factor = np.sqrt(-2.0 * np.log(t) / t)
    x = x * factor
    y = y * factor
    annulus = np.maximum(np.abs(x), np.abs(y)).astype(np.int64)
    return float(np.sum(x)), float(np.sum(y)), np.bincount(annulus, minlength=_ANNULI)


def run(job: Job, problem: EpProblem) -> Outcome:
    """Run EP on all ranks."""
    numbers = 2 << _LOG_BATCH
    stream = Stream(_SEED, numbers)
    first, last = block(1 << (problem.log_pairs - _LOG_BATCH), job.size, job.rank)
    job.traffic.start()
    sums = np.zeros(2 + _ANNULI)  # counts are below 2^53, so they are exact beside the sums
    for batch in range(first, last):
        sx, sy, counts = _batch(stream.uniform(batch * numbers, numbers))
        sums[0] += sx
        sums[1] += sy
        sums[2:] += counts
    sums = job.audit.allreduce_sum(sums)
    job.traffic.stop()
    sx, sy = float(sums[0]), float(sums[1])
    annuli = [int(count) for count in sums[2:]]
    errors = abs((sx - problem.sx) / problem.sx), abs((sy - problem.sy) / problem.sy)
    accepted = sum(annuli)
    return Outcome(
        correct=errors[0] <= _TOLERANCE and errors[1] <= _TOLERANCE and accepted == problem.accepted,
        iterations=0,
        operations=2.0 ** (problem.log_pairs + 1),
        lines=[
            f"sums            {sx:.15e} {sy:.15e}",
            f"relative errors {errors[0]:.1e} {errors[1]:.1e} (allowed {_TOLERANCE:.0e})",
            f"accepted pairs  {accepted} (expected {problem.accepted})",
            *(f"annulus {index}       {count}" for index, count in enumerate(annuli)),
        ],
        details={"sx": sx, "sy": sy, "errors": errors, "accepted": accepted, "annuli": annuli},
    )
