"""Scatter from one rank: the root sends each rank its block.

The linear algorithm: nothing is forwarded, so the root handles size - 1 messages. MPI standard: MPI_Scatter, MPI_Scatterv.
"""

from __future__ import annotations

from .schedule import Buf, Builder, Ref, Schedule, check_blocks, check_place, check_sizes, even_blocks


def build(rank: int, size: int, nbytes: int, *, root: int = 0, in_place: bool = False) -> Schedule:
    """Return the schedule of scattering blocks of `nbytes`, in the order of ranks, from Buf.SEND of `root`; otherwise as build_v."""
    counts, displs = even_blocks(size, nbytes) if rank == root else ((), ())
    return build_v(rank, size, nbytes, counts, displs, root=root, in_place=in_place)


def build_v(
    rank: int,
    size: int,
    nbytes: int,
    counts: tuple[int, ...] = (),
    displs: tuple[int, ...] = (),
    *,
    root: int = 0,
    in_place: bool = False,
) -> Schedule:
    """Return the schedule of scattering blocks of different sizes.

    `nbytes` is the size of this rank's block, which ends in Buf.RECV; rank i's block is at displs[i] of Buf.SEND with counts[i] bytes,
    and both are read at the root only, where alone there is a Buf.SEND. One round, size - 1 messages from the root, each block sent once,
    no scratch. Empty blocks are not sent.

    In place counts at the root only: its block stays where it is, there is no Buf.RECV and `nbytes` is ignored.
    """
    check_place(rank, size, root)
    check_sizes("scatter", nbytes)
    b = Builder()
    if rank != root:
        if nbytes:
            b.recv(root, Ref(Buf.RECV), nbytes)
        return b.build()
    check_blocks("scatter", size, counts, displs)
    for step in range(1, size):
        peer = (root + step) % size
        if counts[peer]:
            b.send(peer, Ref(Buf.SEND, displs[peer]), counts[peer])
    if not in_place:
        if nbytes != counts[root]:
            raise ValueError(f"scatter: the root {root} receives {nbytes} bytes from itself, but its block has {counts[root]}")
        if nbytes:
            b.copy(Ref(Buf.SEND, displs[root]), Ref(Buf.RECV), nbytes)
    return b.build()
