"""Schedules: what one rank does in one collective call, as immutable data, and the builder that the collectives write them with.

A vertex starts when all vertices that it depends on are complete; vertices without mutual order may run in any order or overlap, so a
builder states every order that its buffers need. Message matching: the i-th SEND to a peer with a slot meets that peer's i-th RECV from
here with this slot. Two messages of one ordered pair therefore use different slots, unless dependencies on both sides fix the order of
posting.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

#: slots are 0 .. SLOTS - 1
SLOTS = 256
#: scratch areas start at multiples of this many bytes
TEMP_ALIGN = 16


class Kind(IntEnum):
    """What a vertex does."""

    SEND = 0
    RECV = 1
    #: dst = src op dst; src is the left operand, as inbuf in MPI_Reduce_local
    REDUCE = 2
    COPY = 3


class Buf(IntEnum):
    """Whose memory a Ref points into."""

    #: the caller's send buffer; never written
    SEND = 0
    #: the caller's receive buffer
    RECV = 1
    #: scratch that the engine allocates for one execution, undefined at the start
    TEMP = 2


@dataclass(frozen=True, slots=True)
class Ref:
    """A place: `offset` bytes into a buffer."""

    buf: Buf
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Vertex:
    """One action on `nbytes` bytes. SEND has no dst, RECV no src; a Ref is absent too where a message is empty."""

    kind: Kind
    nbytes: int
    #: rank in the communicator, -1 where there is none
    peer: int = -1
    slot: int = 0
    src: Ref | None = None
    dst: Ref | None = None
    #: indices of earlier vertices that must be complete before this one starts
    deps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Schedule:
    """All that one rank does, and how many bytes of scratch it needs for it."""

    vertices: tuple[Vertex, ...]
    temp_bytes: int = 0


class Builder:
    """Collects vertices. Each call returns the index of its vertex, for `after` of later ones. Sizes and offsets are bytes."""

    def __init__(self) -> None:
        self._vertices: list[Vertex] = []
        self._temp_bytes = 0

    def send(self, peer: int, src: Ref | None, nbytes: int, *, after: Iterable[int] = (), slot: int = 0) -> int:
        """Send to rank `peer`; `src` is None for an empty message only."""
        return self._add(Vertex(Kind.SEND, nbytes, peer, slot, src, None, self._deps(after)))

    def recv(self, peer: int, dst: Ref | None, nbytes: int, *, after: Iterable[int] = (), slot: int = 0) -> int:
        """Receive exactly `nbytes` from rank `peer`; `dst` is None for an empty message only."""
        return self._add(Vertex(Kind.RECV, nbytes, peer, slot, None, dst, self._deps(after)))

    def reduce(self, src: Ref, dst: Ref, nbytes: int, *, after: Iterable[int] = ()) -> int:
        """dst = src op dst, with the op of the call."""
        return self._add(Vertex(Kind.REDUCE, nbytes, src=src, dst=dst, deps=self._deps(after)))

    def copy(self, src: Ref, dst: Ref, nbytes: int, *, after: Iterable[int] = ()) -> int:
        """dst = src."""
        return self._add(Vertex(Kind.COPY, nbytes, src=src, dst=dst, deps=self._deps(after)))

    def temp(self, nbytes: int) -> Ref:
        """Reserve scratch, aligned to TEMP_ALIGN."""
        if nbytes < 0:
            raise ValueError(f"scratch of {nbytes} bytes: must be >= 0")
        ref = Ref(Buf.TEMP, -(-self._temp_bytes // TEMP_ALIGN) * TEMP_ALIGN)
        self._temp_bytes = ref.offset + nbytes
        return ref

    def build(self) -> Schedule:
        """Return what was collected."""
        return Schedule(tuple(self._vertices), self._temp_bytes)

    def _deps(self, after: Iterable[int]) -> tuple[int, ...]:
        """Return `after` in order, without those that another of them waits for anyway."""
        given = set(after)
        index = len(self._vertices)
        if any(not 0 <= d < index for d in given):
            raise ValueError(f"vertex {index}: dependencies {sorted(given)} must be indices of earlier vertices")
        return tuple(sorted(given.difference(*(self._vertices[d].deps for d in given))))

    def _add(self, vertex: Vertex) -> int:
        index = len(self._vertices)
        if vertex.nbytes < 0:
            raise ValueError(f"vertex {index}: {vertex.nbytes} bytes: must be >= 0")
        if not 0 <= vertex.slot < SLOTS:
            raise ValueError(f"vertex {index}: slot {vertex.slot} is not in 0..{SLOTS - 1}")
        self._vertices.append(vertex)
        return index


def encode(schedule: Schedule) -> bytes:
    """Return the schedule as the engine reads it: little-endian int64, nothing else.

    Header: vertices, temp_bytes, dependencies in all. Then per vertex: kind, peer, slot, src buf, src offset, dst buf, dst offset, nbytes,
    index of its first dependency in the list, number of its dependencies. Then the list of dependencies. An absent Ref is -1, -1.
    """
    records: list[int] = []
    deps: list[int] = []
    for v in schedule.vertices:
        records += (v.kind, v.peer, v.slot, *_ref(v.src), *_ref(v.dst), v.nbytes, len(deps), len(v.deps))
        deps += v.deps
    numbers = [len(schedule.vertices), schedule.temp_bytes, len(deps), *records, *deps]
    return struct.pack(f"<{len(numbers)}q", *numbers)


def _ref(ref: Ref | None) -> tuple[int, int]:
    return (-1, -1) if ref is None else (ref.buf, ref.offset)


def check_place(rank: int, size: int, root: int = 0) -> None:
    """Raise ValueError unless `rank` and `root` are ranks of a communicator of `size`."""
    if size < 1 or not 0 <= rank < size or not 0 <= root < size:
        raise ValueError(f"rank {rank}, root {root}, size {size}: ranks must be in 0..size-1")


def check_sizes(what: str, *sizes: int) -> None:
    """Raise ValueError when one of the sizes in bytes is negative."""
    for n in sizes:
        if n < 0:
            raise ValueError(f"{what}: {n} bytes: must be >= 0")


def check_blocks(what: str, size: int, counts: tuple[int, ...], displs: tuple[int, ...]) -> None:
    """Raise ValueError unless there is one count and one displacement (bytes) for each of `size` ranks, counts >= 0.

    Displacements may be negative: MPI allows a buffer address inside the data.
    """
    if len(counts) != size or len(displs) != size:
        raise ValueError(f"{what}: {len(counts)} counts and {len(displs)} displacements for {size} ranks")
    check_sizes(what, *counts)


def even_blocks(size: int, nbytes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return counts and displacements of `size` adjacent blocks of `nbytes` each."""
    return (nbytes,) * size, tuple(i * nbytes for i in range(size))
