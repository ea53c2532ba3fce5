"""Prefix reductions by recursive doubling of the distance.

Hillis, Steele: Data parallel algorithms, CACM 29 (1986). MPI standard: MPI_Scan, MPI_Exscan.
"""

from __future__ import annotations

from .schedule import Buf, Builder, Ref, Schedule, check_place, check_sizes


def build(rank: int, size: int, nbytes: int, *, in_place: bool = False) -> Schedule:
    """Return the schedule of an inclusive prefix reduction of `nbytes` per rank to Buf.RECV: ranks 0 to `rank`, in their order.

    In round k each rank sends what it has to rank + 2^k and puts what it gets from rank - 2^k on the left of it. ceil(log2(size)) rounds,
    at most that many times nbytes sent per rank; nbytes of scratch. In place: the operand is in Buf.RECV and there is no Buf.SEND.
    """
    check_place(rank, size)
    check_sizes("scan", nbytes)
    b = Builder()
    if not nbytes:
        return b.build()
    result = Ref(Buf.RECV)
    ready: tuple[int, ...] = () if in_place else (b.copy(Ref(Buf.SEND), result, nbytes),)
    _double(b, rank, size, nbytes, result, ready, None)
    return b.build()


def build_exclusive(rank: int, size: int, nbytes: int, *, in_place: bool = False) -> Schedule:
    """Return the schedule of an exclusive prefix reduction: Buf.RECV gets ranks 0 to `rank` - 1; that of rank 0 stays as it is.

    As build, with 2 * nbytes of scratch.
    """
    check_place(rank, size)
    check_sizes("exscan", nbytes)
    b = Builder()
    if not nbytes:
        return b.build()
    partial = b.temp(nbytes)
    ready = (b.copy(Ref(Buf.RECV if in_place else Buf.SEND), partial, nbytes),)
    _double(b, rank, size, nbytes, partial, ready, Ref(Buf.RECV))
    return b.build()


def _double(b: Builder, rank: int, size: int, nbytes: int, partial: Ref, ready: tuple[int, ...], before: Ref | None) -> None:
    """Extend `partial` to all ranks below; with `before`, gather there what came without the own operand."""
    spare = b.temp(nbytes) if rank else None
    spare_free: tuple[int, ...] = ()
    prefix: tuple[int, ...] = ()  # after these `before` can be read and written
    distance = 1
    while distance < size:
        sent = (b.send(rank + distance, partial, nbytes, after=ready),) if rank + distance < size else ()
        if spare is not None and rank >= distance:
            arrived = b.recv(rank - distance, spare, nbytes, after=spare_free)
            if before is not None:
                # the first one may overwrite an operand in place, which was copied by then
                after = (arrived, *prefix) if prefix else (arrived, *ready)
                prefix = (b.reduce(spare, before, nbytes, after=after) if prefix else b.copy(spare, before, nbytes, after=after),)
            ready = (b.reduce(spare, partial, nbytes, after=(arrived, *ready, *sent)),)
            spare_free = (*ready, *prefix)
        elif sent:
            ready = (*ready, *sent)
        distance *= 2
