"""Gather to one rank: each rank sends its block straight to the root.

The linear algorithm: nothing is forwarded, so the root handles size - 1 messages. MPI standard: MPI_Gather, MPI_Gatherv.
"""

from __future__ import annotations

from .schedule import Buf, Builder, Ref, Schedule, check_blocks, check_place, check_sizes, even_blocks


def build(rank: int, size: int, nbytes: int, *, root: int = 0, in_place: bool = False) -> Schedule:
    """Return the schedule of gathering blocks of `nbytes`, in the order of ranks, in Buf.RECV of `root`; otherwise as build_v."""
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
    """Return the schedule of gathering blocks of different sizes.

    `nbytes` is the size of this rank's block in Buf.SEND; rank i's block ends at displs[i] of Buf.RECV with counts[i] bytes, and both are
    read at the root only, where alone there is a Buf.RECV. One round, size - 1 messages at the root, each block sent once, no scratch.
    Empty blocks are not sent.

    In place counts at the root only: its block is already where it belongs, there is no Buf.SEND and `nbytes` is ignored.
    """
    check_place(rank, size, root)
    check_sizes("gather", nbytes)
    b = Builder()
    if rank != root:
        if nbytes:
            b.send(root, Ref(Buf.SEND), nbytes)
        return b.build()
    check_blocks("gather", size, counts, displs)
    for peer in range(size):
        if peer != root and counts[peer]:
            b.recv(peer, Ref(Buf.RECV, displs[peer]), counts[peer])
    if not in_place:
        if nbytes != counts[root]:
            raise ValueError(f"gather: the root {root} sends {nbytes} bytes to itself, but its block has {counts[root]}")
        if nbytes:
            b.copy(Ref(Buf.SEND), Ref(Buf.RECV, displs[root]), nbytes)
    return b.build()
