"""The builder's own rules, the encoding for the engine, and the table of algorithms."""

from __future__ import annotations

import struct

import pytest

from pympx.collectives import allgather, allreduce, alltoall, barrier, bcast, reduce, select
from pympx.collectives.schedule import TEMP_ALIGN, Buf, Builder, Kind, Ref, Schedule, Vertex, encode


def decode(data: bytes) -> Schedule:
    """Read what encode wrote, from its documented layout alone."""
    count, temp_bytes, ndeps = struct.unpack_from("<3q", data)
    assert len(data) == 8 * (3 + 10 * count + ndeps)
    deps = struct.unpack_from(f"<{ndeps}q", data, 8 * (3 + 10 * count))
    vertices = []
    for i in range(count):
        kind, peer, slot, src_buf, src_off, dst_buf, dst_off, nbytes, first, n = struct.unpack_from("<10q", data, 8 * (3 + 10 * i))
        src = None if src_buf < 0 else Ref(Buf(src_buf), src_off)
        dst = None if dst_buf < 0 else Ref(Buf(dst_buf), dst_off)
        vertices.append(Vertex(Kind(kind), nbytes, peer, slot, src, dst, deps[first : first + n]))
    return Schedule(tuple(vertices), temp_bytes)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 33, 300])
def test_encode_keeps_all(size: int) -> None:
    for rank in {0, size // 2, size - 1}:
        for schedule in (
            barrier.build(rank, size),
            bcast.build(rank, size, 5, root=size // 2),
            reduce.build(rank, size, 2**40, root=size - 1, in_place=True, commutative=False),
            allreduce.build(rank, size, 12),
            allgather.build(rank, size, 3),
            alltoall.build(rank, size, 7, in_place=True),
        ):
            assert decode(encode(schedule)) == schedule


def test_encode_layout() -> None:
    b = Builder()
    got = b.recv(3, b.temp(8), 8, slot=2)
    b.reduce(Ref(Buf.TEMP, 0), Ref(Buf.RECV, 16), 8, after=[got])
    expected = [2, 8, 1, 1, 3, 2, -1, -1, 2, 0, 8, 0, 0, 2, -1, 0, 2, 0, 1, 16, 8, 0, 1, 0]
    assert list(struct.unpack("<24q", encode(b.build()))) == expected


def test_builder_rules() -> None:
    b = Builder()
    assert b.temp(1) == Ref(Buf.TEMP, 0)
    assert b.temp(3) == Ref(Buf.TEMP, TEMP_ALIGN)
    assert b.build().temp_bytes == TEMP_ALIGN + 3
    first = b.send(1, Ref(Buf.SEND), 4)
    b.send(2, Ref(Buf.SEND), 4, after=[first, first])
    assert b.build().vertices[1].deps == (0,)
    b.send(3, Ref(Buf.SEND), 4, after=[1, 0])
    assert b.build().vertices[2].deps == (1,), "vertex 1 waits for vertex 0"
    for after in ([3], [-1]):
        with pytest.raises(ValueError, match="earlier vertices"):
            b.send(1, Ref(Buf.SEND), 4, after=after)
    with pytest.raises(ValueError, match="slot 256"):
        b.send(1, Ref(Buf.SEND), 4, slot=256)
    with pytest.raises(ValueError, match="-4 bytes"):
        b.copy(Ref(Buf.SEND), Ref(Buf.RECV), -4)
    with pytest.raises(ValueError, match="-1 bytes"):
        b.temp(-1)


def test_table_has_every_collective() -> None:
    names = [
        *("allgather", "allgatherv", "allreduce", "alltoall", "alltoallv", "barrier", "bcast", "exscan", "gather", "gatherv"),
        *("reduce", "reduce_scatter", "reduce_scatter_block", "scan", "scatter", "scatterv"),
    ]
    lines = select.describe().splitlines()
    assert [line.split()[0] for line in lines] == names
    assert select.choose("barrier", 4, 0).build(1, 4) == barrier.build(1, 4)
    with pytest.raises(ValueError, match="'neighbour'.*barrier"):
        select.choose("neighbour", 4, 8)
