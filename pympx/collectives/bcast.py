"""Broadcast along a binomial tree.

Thakur, Rabenseifner, Gropp: Optimization of collective communication operations in MPICH, IJHPCA 19 (2005), section on broadcast of short
messages. MPI standard: MPI_Bcast.
"""

from __future__ import annotations

from .schedule import Buf, Builder, Ref, Schedule, check_place, check_sizes


def tree(rank: int, size: int, root: int) -> tuple[int | None, list[int]]:
    """Return the parent (None at the root) and the children, smallest subtree first, of `rank` in the binomial tree of `root`.

    Counted from the root, the subtree of a rank v whose lowest set bit is m has the ranks v .. v+m-1, as far as they exist.
    """
    v = (rank - root) % size
    children = []
    bit = 1
    while bit < size and not v & bit:
        if v + bit < size:
            children.append((v + bit + root) % size)
        bit <<= 1
    return ((v - bit + root) % size if v else None), children


def build(rank: int, size: int, nbytes: int, *, root: int = 0) -> Schedule:
    """Return the schedule of a broadcast of `nbytes` from `root`.

    The one buffer of the call is Buf.RECV on every rank, at the root too (it is only read there). ceil(log2(size)) rounds; (size - 1) *
    nbytes are sent in all, up to ceil(log2(size)) * nbytes of them by the root. Nothing is in place: MPI_Bcast knows no MPI_IN_PLACE.
    """
    check_place(rank, size, root)
    check_sizes("bcast", nbytes)
    b = Builder()
    if nbytes:
        parent, children = tree(rank, size, root)
        data = Ref(Buf.RECV)
        got = () if parent is None else (b.recv(parent, data, nbytes),)
        for child in reversed(children):
            b.send(child, data, nbytes, after=got)
    return b.build()
