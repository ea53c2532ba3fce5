"""Reduction whose result is spread over the ranks, by direct exchange.

Thakur, Rabenseifner, Gropp: Optimization of collective communication operations in MPICH, IJHPCA 19 (2005), section on reduce-scatter
(pairwise exchange). MPI standard: MPI_Reduce_scatter, MPI_Reduce_scatter_block.
"""

from __future__ import annotations

from itertools import accumulate

from .schedule import Buf, Builder, Ref, Schedule, check_place, check_sizes


def build(rank: int, size: int, nbytes: int, *, in_place: bool = False) -> Schedule:
    """Return the schedule of a reduction of one block of `nbytes` per rank; otherwise as build_v."""
    return build_v(rank, size, (nbytes,) * size, in_place=in_place)


def build_v(rank: int, size: int, counts: tuple[int, ...], *, in_place: bool = False) -> Schedule:
    """Return the schedule of a reduction of sum(counts) bytes per rank, whose block i, of counts[i] bytes, ends in Buf.RECV of rank i.

    Each rank sends block i of Buf.SEND to rank i and combines the blocks that it receives in the order of ranks, so that the operation
    need not commute. size - 1 rounds, in step k to rank + k from rank - k; (size - 1) / size of the operand sent per rank; scratch for
    the blocks of all other ranks, as they arrive in any order but are combined in one.

    In place: the operand is in Buf.RECV, there is no Buf.SEND; the result goes to its start when all of it was sent.
    """
    check_place(rank, size)
    if len(counts) != size:
        raise ValueError(f"reduce_scatter: {len(counts)} counts for {size} ranks")
    check_sizes("reduce_scatter", *counts)
    b = Builder()
    offsets = (0, *accumulate(counts))
    operand = Buf.RECV if in_place else Buf.SEND
    mine = counts[rank]
    arrived: dict[int, tuple[Ref, tuple[int, ...]]] = {rank: (Ref(operand, offsets[rank]), ())}
    if mine:
        for step in range(1, size):
            peer = (rank - step) % size
            into = b.temp(mine)
            arrived[peer] = into, (b.recv(peer, into, mine),)
    sent: list[int] = []
    for step in range(1, size):
        peer = (rank + step) % size
        if counts[peer]:
            sent.append(b.send(peer, Ref(operand, offsets[peer]), counts[peer], after=sent[-1:]))
    if not mine:
        return b.build()
    partial, ready = arrived[0]
    for peer in range(1, size):
        place, there = arrived[peer]
        if place.buf != Buf.TEMP:  # the own operand must stay: the result of a step goes to where the right one is
            copied = b.temp(mine)
            there = (b.copy(place, copied, mine),)
            place = copied
        ready = (b.reduce(partial, place, mine, after=(*ready, *there)),)
        partial = place
    if partial != Ref(Buf.RECV):
        b.copy(partial, Ref(Buf.RECV), mine, after=(*ready, *sent) if in_place else ready)
    return b.build()
