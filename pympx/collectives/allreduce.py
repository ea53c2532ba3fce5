"""Reduction to all ranks by recursive doubling.

Thakur, Rabenseifner, Gropp: Optimization of collective communication operations in MPICH, IJHPCA 19 (2005), section on allreduce. MPI
standard: MPI_Allreduce.
"""

from __future__ import annotations

from .schedule import Buf, Builder, Ref, Schedule, check_place, check_sizes


def build(rank: int, size: int, nbytes: int, *, in_place: bool = False, commutative: bool = True) -> Schedule:
    """Return the schedule of a reduction of `nbytes` per rank to Buf.RECV of all ranks, with the same bits on all of them.

    With p the largest power of two <= size and r = size - p: ranks 0, 2, .. 2r-2 first give their operand to the next rank and at the end
    get the result from it; the p others exchange partial results in log2(p) rounds, at distance 1, 2, 4 ... of their numbering. Every
    partial result belongs to a contiguous group of ranks, and the lower group's is always the left operand: so all ranks evaluate the
    same expression, in the order of ranks, and `commutative` need not be known here (it is taken because algorithms for large messages
    will need it). p * log2(p) * nbytes + 2 * r * nbytes are sent in all, log2(size) * nbytes per rank for a power of two; nbytes of
    scratch.

    In place: the operand is in Buf.RECV and there is no Buf.SEND.
    """
    del commutative
    check_place(rank, size)
    check_sizes("allreduce", nbytes)
    b = Builder()
    if not nbytes:
        return b.build()
    result = Ref(Buf.RECV)
    own = result if in_place else Ref(Buf.SEND)
    doubling = size.bit_length() - 1
    folded = size - (1 << doubling)
    if rank < 2 * folded and rank % 2 == 0:
        given = b.send(rank + 1, own, nbytes)
        b.recv(rank + 1, result, nbytes, after=(given,) if in_place else ())
        return b.build()

    number = rank // 2 if rank < 2 * folded else rank - folded
    folds = rank < 2 * folded
    partners = [rank - 1] * folds + [_rank(number ^ (1 << k), folded) for k in range(doubling)]
    lower = [p < rank for p in partners]
    # A reduction with a higher partner ends where the partner's operand came in: begin where the last one will end in `result`.
    home, spare = result, b.temp(nbytes) if partners else result
    if lower.count(False) % 2:
        home, spare = spare, home
    partial = home
    ready: tuple[int, ...] = ()  # after these `partial` can be read and written
    spare_free: tuple[int, ...] = ()  # after these `spare` can be written
    if own != home:
        if own != spare and lower and not lower[0]:
            partial = own  # the first reduction only reads it
        else:
            ready = (b.copy(own, home, nbytes),)
            spare_free = ready if own == spare else ()
    for step, partner in enumerate(partners):
        arrived = b.recv(partner, spare, nbytes, after=spare_free)
        folding = folds and step == 0  # that partner only gives
        sent = () if folding else (b.send(partner, partial, nbytes, after=ready),)
        if lower[step]:
            ready = spare_free = (b.reduce(spare, partial, nbytes, after=(*ready, arrived, *sent)),)
        else:
            ready = (b.reduce(partial, spare, nbytes, after=(*ready, arrived)),)
            spare_free = (*ready, *sent) if partial == home else ()
            home, spare = spare, home
            partial = home
    if folds:
        b.send(rank - 1, result, nbytes, after=ready)
    return b.build()


def _rank(number: int, folded: int) -> int:
    """Return the rank that has `number` among those that take part in the doubling."""
    return 2 * number + 1 if number < folded else number + folded
