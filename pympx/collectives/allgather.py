"""Gather to all ranks around a ring.

Thakur, Rabenseifner, Gropp: Optimization of collective communication operations in MPICH, IJHPCA 19 (2005), section on allgather of long
messages. MPI standard: MPI_Allgather, MPI_Allgatherv.
"""

from __future__ import annotations

from .schedule import SLOTS, Buf, Builder, Ref, Schedule, check_blocks, check_place, check_sizes, even_blocks


def build(rank: int, size: int, nbytes: int, *, in_place: bool = False) -> Schedule:
    """Return the schedule of gathering blocks of `nbytes`, in the order of ranks, in Buf.RECV of all; otherwise as build_v."""
    check_sizes("allgather", nbytes)
    return build_v(rank, size, *even_blocks(size, nbytes), in_place=in_place)


def build_v(rank: int, size: int, counts: tuple[int, ...], displs: tuple[int, ...], *, in_place: bool = False) -> Schedule:
    """Return the schedule of gathering blocks of different sizes: rank i's counts[i] bytes end at displs[i] of Buf.RECV on all ranks.

    In step k each rank hands to the next one the block that it got k steps round the ring ago, in step 0 its own. size - 1 rounds, each
    block sent size - 1 times, no scratch. Empty blocks are not sent.

    This rank's block is Buf.SEND, counts[rank] bytes; in place it is already in Buf.RECV and there is no Buf.SEND.
    """
    check_place(rank, size)
    check_blocks("allgather", size, counts, displs)
    b = Builder()
    left, right = (rank - 1) % size, (rank + 1) % size
    own = Ref(Buf.RECV, displs[rank]) if in_place else Ref(Buf.SEND)
    # Receives are posted all at once, but a slot is used again only when the message that had it is through, on both sides.
    got: dict[int, int] = {}
    slot_got: dict[int, int] = {}
    for step in range(size - 1):
        owner = (rank - 1 - step) % size
        if counts[owner]:
            slot = step % SLOTS
            after = [slot_got[slot]] if slot in slot_got else []
            got[owner] = slot_got[slot] = b.recv(left, Ref(Buf.RECV, displs[owner]), counts[owner], after=after, slot=slot)
    slot_sent: dict[int, int] = {}
    for step in range(size - 1):
        owner = (rank - step) % size
        if counts[owner]:
            slot = step % SLOTS
            after = [slot_sent[slot]] if slot in slot_sent else []
            if owner != rank:
                after.append(got[owner])
            source = own if owner == rank else Ref(Buf.RECV, displs[owner])
            slot_sent[slot] = b.send(right, source, counts[owner], after=after, slot=slot)
    if counts[rank] and not in_place:
        b.copy(own, Ref(Buf.RECV, displs[rank]), counts[rank])
    return b.build()
