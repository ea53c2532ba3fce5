"""Exchange of blocks between all pairs of ranks.

Thakur, Rabenseifner, Gropp: Optimization of collective communication operations in MPICH, IJHPCA 19 (2005), section on all-to-all of long
messages (pairwise exchange, in the form rank + k, rank - k that suits every size). MPI standard: MPI_Alltoall, MPI_Alltoallv.
"""

from __future__ import annotations

from .schedule import Buf, Builder, Ref, Schedule, check_blocks, check_place, check_sizes, even_blocks


def build(rank: int, size: int, nbytes: int, *, in_place: bool = False) -> Schedule:
    """Return the schedule of exchanging blocks of `nbytes`, in the order of ranks in both buffers; otherwise as build_v."""
    check_sizes("alltoall", nbytes)
    counts, displs = even_blocks(size, nbytes)
    return build_v(rank, size, counts, displs, counts, displs, in_place=in_place)


def build_v(
    rank: int,
    size: int,
    send_counts: tuple[int, ...],
    send_displs: tuple[int, ...],
    recv_counts: tuple[int, ...],
    recv_displs: tuple[int, ...],
    *,
    in_place: bool = False,
) -> Schedule:
    """Return the schedule of exchanging blocks of different sizes (bytes).

    The block for rank i is at send_displs[i] of Buf.SEND, the one from rank i ends at recv_displs[i] of Buf.RECV. In step k each rank
    sends to rank + k and receives from rank - k; a rank's sends follow one another, so that no receiver is flooded, its receives are
    posted at once. size - 1 rounds, each block of another rank sent once, the own block copied. Empty blocks are not sent.

    In place: blocks are taken from Buf.RECV (the one for rank i has the place and size of the one from rank i), there is no Buf.SEND, and
    send_counts and send_displs are ignored. It takes scratch for the blocks of all other ranks, and a copy of them; otherwise none.
    """
    check_place(rank, size)
    check_blocks("alltoall, receive", size, recv_counts, recv_displs)
    if in_place:
        send_counts, send_displs = recv_counts, recv_displs
    check_blocks("alltoall, send", size, send_counts, send_displs)
    b = Builder()
    sources = {peer: Ref(Buf.SEND, send_displs[peer]) for peer in range(size)}
    saved: dict[int, tuple[int, ...]] = dict.fromkeys(range(size), ())
    if in_place:
        for step in range(1, size):
            peer = (rank + step) % size
            if send_counts[peer]:
                sources[peer] = b.temp(send_counts[peer])
                saved[peer] = (b.copy(Ref(Buf.RECV, recv_displs[peer]), sources[peer], send_counts[peer]),)
    for step in range(1, size):
        peer = (rank - step) % size
        if recv_counts[peer]:
            b.recv(peer, Ref(Buf.RECV, recv_displs[peer]), recv_counts[peer], after=saved[peer])
    previous: tuple[int, ...] = ()
    for step in range(1, size):
        peer = (rank + step) % size
        if send_counts[peer]:
            previous = (b.send(peer, sources[peer], send_counts[peer], after=(*saved[peer], *previous)),)
    if not in_place:
        if send_counts[rank] != recv_counts[rank]:
            raise ValueError(f"alltoall: rank {rank} sends {send_counts[rank]} bytes to itself, but receives {recv_counts[rank]}")
        if send_counts[rank]:
            b.copy(sources[rank], Ref(Buf.RECV, recv_displs[rank]), send_counts[rank])
    return b.build()
