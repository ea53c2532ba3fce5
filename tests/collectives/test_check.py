"""The checker finds planted errors: each kind of change at every place of right schedules, and whole schedules that are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pytest

from pympx.collectives import allgather, allreduce, alltoall, barrier, bcast, check, gather, reduce, scatter
from pympx.collectives.check import CheckError
from pympx.collectives.schedule import SLOTS, Buf, Builder, Kind, Ref, Schedule, Vertex, even_blocks

#: bytes per block; more than one, so that a shift by one is a partial overlap
NBYTES = 3
#: sizes of communicators: the least, odd ones, a power of two
GROUPS = (2, 3, 7, 8)


@dataclass(frozen=True)
class Case:
    """A collective over `size` ranks: how one rank's schedule is built, and how all of them are checked."""

    size: int
    build: Callable[[int, int], Schedule]
    check: Callable[[Sequence[Schedule]], None]


def cases() -> Iterator[tuple[str, Case]]:
    yield from ((f"barrier-{size}", Case(size, barrier.build, check.check_barrier)) for size in GROUPS)
    for size in GROUPS:
        root = size - 1
        yield (
            f"bcast-{size}",
            Case(size, partial(bcast.build, nbytes=NBYTES, root=root), partial(check.check_bcast, nbytes=NBYTES, root=root)),
        )
        for in_place in (False, True):
            yield from cases_with_in_place(size, in_place)


def cases_with_in_place(size: int, in_place: bool) -> Iterator[tuple[str, Case]]:
    root = size - 1
    counts, displs = even_blocks(size, NBYTES)
    tail = f"{size}-in-place" if in_place else f"{size}"
    for name, commutative in (("reduce", True), ("ordered-reduce", False)):
        yield (
            f"{name}-{tail}",
            Case(
                size,
                partial(reduce.build, nbytes=NBYTES, root=root, in_place=in_place, commutative=commutative),
                partial(check.check_reduce, nbytes=NBYTES, root=root, in_place=in_place, commutative=commutative),
            ),
        )
    yield (
        f"allreduce-{tail}",
        Case(
            size,
            partial(allreduce.build, nbytes=NBYTES, in_place=in_place),
            partial(check.check_allreduce, nbytes=NBYTES, in_place=in_place, commutative=True),
        ),
    )
    yield (
        f"gather-{tail}",
        Case(
            size,
            partial(gather.build, nbytes=NBYTES, root=root, in_place=in_place),
            partial(check.check_gather, counts=counts, displs=displs, root=root, in_place=in_place),
        ),
    )
    yield (
        f"scatter-{tail}",
        Case(
            size,
            partial(scatter.build, nbytes=NBYTES, root=root, in_place=in_place),
            partial(check.check_scatter, counts=counts, displs=displs, root=root, in_place=in_place),
        ),
    )
    yield (
        f"allgather-{tail}",
        Case(
            size,
            partial(allgather.build, nbytes=NBYTES, in_place=in_place),
            partial(check.check_allgather, counts=counts, displs=displs, in_place=in_place),
        ),
    )
    same = [displs] * size
    yield (
        f"alltoall-{tail}",
        Case(
            size,
            partial(alltoall.build, nbytes=NBYTES, in_place=in_place),
            partial(check.check_alltoall, counts=[counts] * size, send_displs=same, recv_displs=same, in_place=in_place),
        ),
    )


CASES = dict(cases())


def shifted(ref: Ref | None) -> Ref | None:
    return None if ref is None else Ref(ref.buf, ref.offset + 1)


def changes(vertex: Vertex, size: int) -> Iterator[tuple[str, Vertex]]:
    """Yield wrong versions of a vertex."""
    if vertex.peer >= 0:
        for peer in {(vertex.peer + 1) % size, (vertex.peer - 1) % size}:
            yield f"peer {peer}", replace(vertex, peer=peer)
        yield "slot", replace(vertex, slot=vertex.slot + 1)
    if vertex.src is not None:
        yield "source offset", replace(vertex, src=shifted(vertex.src))
    if vertex.dst is not None:
        yield "destination offset", replace(vertex, dst=shifted(vertex.dst))
    if vertex.nbytes:
        yield "size", replace(vertex, nbytes=vertex.nbytes - 1)
    if vertex.src is not None and vertex.dst is not None:
        yield "swapped operands", replace(vertex, src=vertex.dst, dst=vertex.src)


def planted(schedules: list[Schedule], rank: int, index: int, vertex: Vertex) -> list[Schedule]:
    """Return the schedules with one vertex replaced."""
    vertices = list(schedules[rank].vertices)
    vertices[index] = vertex
    return [*schedules[:rank], replace(schedules[rank], vertices=tuple(vertices)), *schedules[rank + 1 :]]


def found(case: Case, schedules: list[Schedule]) -> bool:
    try:
        case.check(schedules)
    except CheckError:
        return True
    return False


@pytest.mark.parametrize("name", CASES)
def test_a_changed_vertex_is_found(name: str) -> None:
    case = CASES[name]
    right = [case.build(rank, case.size) for rank in range(case.size)]
    case.check(right)
    tried = 0
    for rank, schedule in enumerate(right):
        for index, vertex in enumerate(schedule.vertices):
            for what, wrong in changes(vertex, case.size):
                tried += 1
                assert found(case, planted(right, rank, index, wrong)), f"rank {rank}, vertex {index}, {what}: {vertex}"
    assert tried > 0


@pytest.mark.parametrize("name", CASES)
def test_a_dropped_dependency_is_found(name: str) -> None:
    """Which also shows that builders state no dependency without need."""
    case = CASES[name]
    right = [case.build(rank, case.size) for rank in range(case.size)]
    for rank, schedule in enumerate(right):
        for index, vertex in enumerate(schedule.vertices):
            for dropped in vertex.deps:
                if name.startswith("alltoall") and (vertex.kind, schedule.vertices[dropped].kind) == (Kind.SEND, Kind.SEND):
                    continue  # one send after the other: for the network's sake only
                if name.startswith("barrier") and case.size != 8:
                    continue  # a rank may hear of another twice
                wrong = replace(vertex, deps=tuple(d for d in vertex.deps if d != dropped))
                assert found(case, planted(right, rank, index, wrong)), f"rank {rank}, vertex {index} without {dropped}: {vertex}"


def test_a_missing_vertex_is_found() -> None:
    for name, case in CASES.items():
        right = [case.build(rank, case.size) for rank in range(case.size)]
        for rank, schedule in enumerate(right):
            if schedule.vertices:
                wrong = [*right[:rank], replace(schedule, vertices=schedule.vertices[:-1]), *right[rank + 1 :]]
                assert found(case, wrong), f"{name}, rank {rank}"


def test_operands_out_of_order_are_found() -> None:
    schedules = [reduce.build(rank, 4, NBYTES, root=2, commutative=True) for rank in range(4)]
    check.check_reduce(schedules, NBYTES, 2, in_place=False, commutative=True)
    with pytest.raises(CheckError, match="in order"):
        check.check_reduce(schedules, NBYTES, 2, in_place=False, commutative=False)


def test_different_bits_on_two_ranks_are_found() -> None:
    schedules = []
    for rank in range(2):
        b = Builder()
        b.send(1 - rank, Ref(Buf.SEND), NBYTES)
        got = b.recv(1 - rank, Ref(Buf.RECV), NBYTES)
        b.reduce(Ref(Buf.SEND), Ref(Buf.RECV), NBYTES, after=[got])  # own operand on the left, on both ranks
        schedules.append(b.build())
    with pytest.raises(CheckError, match="different orders"):
        check.check_allreduce(schedules, NBYTES, in_place=False, commutative=True)


def test_deadlock_of_synchronous_sends_is_found() -> None:
    schedules = []
    for rank in range(2):
        b = Builder()
        sent = b.send(1 - rank, Ref(Buf.SEND), NBYTES)
        b.recv(1 - rank, Ref(Buf.RECV), NBYTES, after=[sent])
        schedules.append(b.build())
    with pytest.raises(CheckError, match="deadlock.*rank 0 vertex 0, rank 1 vertex 0"):
        check.verify(schedules, [NBYTES] * 2, [NBYTES] * 2)


def test_one_slot_for_two_messages_needs_order_on_both_sides() -> None:
    for ordered_send in (False, True):
        for ordered_recv in (False, True):
            a, b = Builder(), Builder()
            sent = a.send(1, Ref(Buf.SEND), 1)
            a.send(1, Ref(Buf.SEND, 1), 1, after=[sent] * ordered_send)
            got = b.recv(0, Ref(Buf.RECV), 1)
            b.recv(0, Ref(Buf.RECV, 1), 1, after=[got] * ordered_recv)
            schedules = [a.build(), b.build()]
            if ordered_send and ordered_recv:
                check.verify(schedules, [2, 0], [0, 2])
            else:
                with pytest.raises(CheckError, match="nothing orders"):
                    check.verify(schedules, [2, 0], [0, 2])


def test_a_slot_used_again_in_a_long_ring_needs_order() -> None:
    size = SLOTS + 4
    counts = (1,) * 12 + (0,) * (size - 12)
    right = [allgather.build_v(rank, size, counts, tuple(range(size))) for rank in range(size)]
    check.verify(right, counts, [12] * size)
    vertices = right[6].vertices
    again = next(i for i, v in enumerate(vertices) if v.kind == Kind.RECV and v.slot in {u.slot for u in vertices[:i]})
    wrong = planted(right, 6, again, replace(vertices[again], deps=()))
    with pytest.raises(CheckError, match="nothing orders"):
        check.verify(wrong, counts, [12] * size)


@pytest.mark.parametrize(
    ("vertex", "message"),
    [
        (Vertex(Kind.COPY, 1, src=Ref(Buf.RECV), dst=Ref(Buf.SEND)), "writes into the caller's send buffer"),
        (Vertex(Kind.COPY, 2, src=Ref(Buf.RECV), dst=Ref(Buf.RECV, 1)), "overlap"),
        (Vertex(Kind.COPY, 5, src=Ref(Buf.SEND), dst=Ref(Buf.RECV)), "SEND buffer of 4"),
        (Vertex(Kind.COPY, 1, src=Ref(Buf.SEND, -1), dst=Ref(Buf.RECV)), "SEND buffer of 4"),
        (Vertex(Kind.COPY, 1, src=Ref(Buf.TEMP), dst=Ref(Buf.RECV)), "TEMP buffer of 0"),
        (Vertex(Kind.COPY, 1, src=Ref(Buf.SEND)), "place is missing"),
        (Vertex(Kind.COPY, 0), "does nothing"),
        (Vertex(Kind.SEND, 1, 0, src=Ref(Buf.SEND)), "no other rank"),
        (Vertex(Kind.SEND, 1, 1, src=Ref(Buf.SEND), slot=256), "slot"),
        (Vertex(Kind.SEND, 1, 1, src=Ref(Buf.SEND), deps=(0,)), "not an earlier one"),
        (Vertex(Kind.SEND, 1, 1, src=Ref(Buf.SEND)), "1 sends, but 0 receives"),
    ],
)
def test_a_vertex_wrong_by_itself_is_found(vertex: Vertex, message: str) -> None:
    with pytest.raises(CheckError, match=message):
        check.verify([Schedule((vertex,)), Schedule(())], [4, 4], [4, 4])


def test_the_random_run_sees_a_missing_dependency_by_itself() -> None:
    """Without `verify`: in some order of events the copy reads before the message is there."""
    a, b = Builder(), Builder()
    a.send(1, Ref(Buf.SEND), 1)
    into = b.temp(1)
    b.recv(0, into, 1)
    b.copy(into, Ref(Buf.RECV), 1)
    outcomes = set()
    for seed in range(20):
        try:
            check.run([a.build(), b.build()], [[check.Leaf(0, 0)], []], [[], [None]], seed)
            outcomes.add("right")
        except CheckError as e:
            assert "undefined" in str(e)
            outcomes.add("found")
    assert outcomes == {"right", "found"}
