"""Payload bytes that a program's calls must move between ranks, computed from the calls alone.

Point-to-point is exact. What a collective moves depends on its algorithm; these are the ones counted here: Allreduce by
recursive doubling (ranks beyond the largest power of two hand their vector to a partner first and get the result back),
Allgather(v) by ring, Alltoall(v) pairwise, Bcast and Reduce by binomial tree. Every function returns what *one* rank sends, in
bytes; the sum over ranks is the volume of the job. A rank's messages to itself never count.
"""

from __future__ import annotations

from collections.abc import Sequence


def allreduce_sent(rank: int, size: int, nbytes: int) -> int:
    """Bytes that `rank` sends in an Allreduce of `nbytes` by recursive doubling."""
    steps = size.bit_length() - 1
    extra = size - (1 << steps)
    if rank < 2 * extra:  # pairs (even, odd): the even one hands over its vector and waits, the odd one works and sends the result back
        return nbytes if rank % 2 == 0 else nbytes * (steps + 1)
    return nbytes * steps


def allgatherv_sent(rank: int, blocks: Sequence[int]) -> int:
    """Bytes that `rank` sends in a ring Allgatherv of `blocks` bytes: every block but the one that its right neighbour brought."""
    return sum(blocks) - blocks[(rank + 1) % len(blocks)]


def alltoallv_sent(rank: int, sent: Sequence[int]) -> int:
    """Bytes that `rank` sends in a pairwise Alltoallv with `sent` bytes for each rank."""
    return sum(sent) - sent[rank]


def bcast_sent(rank: int, size: int, nbytes: int, root: int = 0) -> int:
    """Bytes that `rank` sends in a binomial Bcast of `nbytes`: one copy to each of its children."""
    relative = (rank - root) % size
    lowest = relative & -relative if relative else 1 << size.bit_length()
    children = 0
    distance = 1
    while distance < lowest and relative + distance < size:
        children += 1
        distance *= 2
    return children * nbytes


def reduce_sent(rank: int, nbytes: int, root: int = 0) -> int:
    """Bytes that `rank` sends in a binomial Reduce of `nbytes`: its partial result, once, unless it is the root."""
    return 0 if rank == root else nbytes


class Volume:
    """Adds up what one rank's calls send, in bytes, by kind of call."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank = rank
        self._size = size
        #: bytes sent by this rank, by kind
        self.sent: dict[str, int] = {}

    def _add(self, kind: str, nbytes: int) -> None:
        self.sent[kind] = self.sent.get(kind, 0) + nbytes

    def point_to_point(self, peer: int, nbytes: int) -> None:
        """Count one message of `nbytes` to `peer`."""
        self._add("point_to_point", nbytes if peer != self._rank else 0)

    def allreduce(self, nbytes: int) -> None:
        """Count one Allreduce of `nbytes`."""
        self._add("allreduce", allreduce_sent(self._rank, self._size, nbytes))

    def allgatherv(self, blocks: Sequence[int]) -> None:
        """Count one Allgatherv whose ranks contribute `blocks` bytes."""
        self._add("allgatherv", allgatherv_sent(self._rank, blocks))

    def alltoallv(self, sent: Sequence[int]) -> None:
        """Count one Alltoallv (or Alltoall) with `sent` bytes for each rank."""
        self._add("alltoallv", alltoallv_sent(self._rank, sent))
