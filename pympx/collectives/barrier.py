"""Barrier by dissemination.

Hensgen, Finkel, Manber: Two algorithms for barrier synchronization, Int. J. of Parallel Programming 17 (1988). MPI standard: MPI_Barrier.
"""

from __future__ import annotations

from .schedule import Builder, Schedule, check_place


def build(rank: int, size: int) -> Schedule:
    """Return the schedule of a barrier: when it is complete on one rank, every rank has started it.

    In round k each rank tells rank + 2^k (mod size) that it, and all whom it has heard of, are there. ceil(log2(size)) rounds, as many
    empty messages per rank, no payload.
    """
    check_place(rank, size)
    b = Builder()
    distances = [1 << k for k in range((size - 1).bit_length())]
    heard = [b.recv((rank - d) % size, None, 0) for d in distances]
    for k, d in enumerate(distances):
        # A late message of an earlier round may come after this round's: wait for all of them.
        b.send((rank + d) % size, None, 0, after=heard[:k])
    return b.build()
