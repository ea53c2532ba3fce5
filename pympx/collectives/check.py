"""Checks the schedules of all ranks of one call without a network, by symbols in place of bytes.

`verify` looks at the graph: places within bounds, Buf.SEND never written, no two vertices of a rank that may run at the same time
touching the same byte unless both read, every SEND with its one RECV of the same size, no deadlock even if a SEND completes only with its
RECV. `run` executes in a random order, each send eager or synchronous by chance, and refuses to read what nobody wrote. The check_*
functions do both, several times, and compare the receive buffers with what MPI says: for reductions each byte is the expression that made
it, so order, exactly-once and equal bits are seen.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from .schedule import SLOTS, Buf, Kind, Ref, Schedule, Vertex


class CheckError(Exception):
    """A schedule is wrong; the message names rank and vertex."""


class Leaf(NamedTuple):
    """Byte number `byte` of what `rank` contributes."""

    rank: int
    byte: int


class Sum(NamedTuple):
    """left op right."""

    left: Value
    right: Value


Value: TypeAlias = Leaf | Sum
#: contents of a buffer, a symbol per byte; None is undefined
Cells: TypeAlias = list[Value | None]


class _Node(NamedTuple):
    """A vertex among those of all ranks, and its number in its rank's schedule."""

    rank: int
    number: int


#: each SEND with the RECV that it meets, in the order of the messages of a pair and slot
_Pairs: TypeAlias = list[tuple[_Node, _Node]]


def verify(schedules: Sequence[Schedule], send_sizes: Sequence[int], recv_sizes: Sequence[int]) -> None:
    """Raise CheckError unless the schedules (by rank) are sound for buffers of these sizes (bytes, by rank) on any network."""
    _order(schedules, _structure(schedules, send_sizes, recv_sizes))


def run(schedules: Sequence[Schedule], send: Sequence[Cells], recv: Sequence[Cells], seed: int) -> list[Cells]:
    """Execute in a random order; return the contents of Buf.RECV by rank. Call `verify` first."""
    return _Run(schedules, send, recv, seed).finish()


def _structure(schedules: Sequence[Schedule], send_sizes: Sequence[int], recv_sizes: Sequence[int]) -> _Pairs:
    before = []
    for rank, schedule in enumerate(schedules):
        sizes = {Buf.SEND: send_sizes[rank], Buf.RECV: recv_sizes[rank], Buf.TEMP: schedule.temp_bytes}
        for index, vertex in enumerate(schedule.vertices):
            problem = _vertex_problem(vertex, index, rank, len(schedules), sizes)
            if problem:
                raise CheckError(f"rank {rank}, vertex {index}: {problem}: {vertex}")
        before.append(_ancestors(schedule))
        _check_races(rank, schedule, before[rank])
    return _match(schedules, before)


def _vertex_problem(vertex: Vertex, index: int, rank: int, size: int, sizes: dict[Buf, int]) -> str | None:
    """Return what is wrong with a vertex by itself, None if nothing."""
    if any(not 0 <= d < index for d in vertex.deps):
        return "depends on a vertex that is not an earlier one"
    message = vertex.kind in (Kind.SEND, Kind.RECV)
    if message and (not 0 <= vertex.peer < size or vertex.peer == rank):
        return "its peer is no other rank"
    if message and not 0 <= vertex.slot < SLOTS:
        return "its slot is out of range"
    if not message and vertex.nbytes == 0:
        return "it does nothing"
    needs_src = vertex.kind != Kind.RECV and vertex.nbytes > 0
    needs_dst = vertex.kind != Kind.SEND and vertex.nbytes > 0
    if (vertex.src is not None) != needs_src or (vertex.dst is not None) != needs_dst:
        return "a place is missing or too much"
    for ref in (vertex.src, vertex.dst):
        if ref is not None and not 0 <= ref.offset <= ref.offset + vertex.nbytes <= sizes[ref.buf]:
            return f"bytes {ref.offset}..{ref.offset + vertex.nbytes} of a {ref.buf.name} buffer of {sizes[ref.buf]}"
    if vertex.dst is not None and vertex.dst.buf == Buf.SEND:
        return "writes into the caller's send buffer"
    if vertex.src is None or vertex.dst is None or vertex.src.buf != vertex.dst.buf:
        return None
    return "source and destination overlap" if abs(vertex.src.offset - vertex.dst.offset) < vertex.nbytes else None


def _ancestors(schedule: Schedule) -> list[int]:
    """Return, per vertex, the set of all that are complete before it starts, as bits."""
    before: list[int] = []
    for vertex in schedule.vertices:
        bits = 0
        for d in vertex.deps:
            bits |= before[d] | 1 << d
        before.append(bits)
    return before


def _check_races(rank: int, schedule: Schedule, before: list[int]) -> None:
    touched: dict[tuple[Buf, int], list[tuple[int, bool]]] = defaultdict(list)
    for index, vertex in enumerate(schedule.vertices):
        for ref, writes in ((vertex.src, False), (vertex.dst, True)):
            if ref is not None and ref.buf != Buf.SEND:
                for offset in range(ref.offset, ref.offset + vertex.nbytes):
                    touched[ref.buf, offset].append((index, writes))
    for (buf, offset), uses in touched.items():
        for j, (later, later_writes) in enumerate(uses):
            for earlier, earlier_writes in uses[:j]:
                if (earlier_writes or later_writes) and earlier != later and not before[later] >> earlier & 1:
                    raise CheckError(
                        f"rank {rank}: vertices {earlier} and {later} may meet at byte {offset} of {buf.name}, and one of them writes"
                    )


def _match(schedules: Sequence[Schedule], before: list[list[int]]) -> _Pairs:
    #: messages by (sender, receiver, slot)
    sends: dict[tuple[int, int, int], list[_Node]] = defaultdict(list)
    recvs: dict[tuple[int, int, int], list[_Node]] = defaultdict(list)
    for rank, schedule in enumerate(schedules):
        for index, vertex in enumerate(schedule.vertices):
            if vertex.kind == Kind.SEND:
                sends[rank, vertex.peer, vertex.slot].append(_Node(rank, index))
            elif vertex.kind == Kind.RECV:
                recvs[vertex.peer, rank, vertex.slot].append(_Node(rank, index))
    pairs: _Pairs = []
    for key in sends.keys() | recvs.keys():
        where = "from {} to {} in slot {}".format(*key)
        if len(sends[key]) != len(recvs[key]):
            raise CheckError(f"{len(sends[key])} sends, but {len(recvs[key])} receives {where}")
        for side in (sends[key], recvs[key]):
            for first, second in pairwise(side):
                if not before[second.rank][second.number] >> first.number & 1:
                    raise CheckError(f"rank {second.rank}: nothing orders vertices {first.number} and {second.number}, both {where}")
        for s, r in zip(sends[key], recvs[key], strict=True):
            sent, expected = schedules[s.rank].vertices[s.number].nbytes, schedules[r.rank].vertices[r.number].nbytes
            if sent != expected:
                raise CheckError(f"vertex {s.number} sends {sent} bytes, vertex {r.number} receives {expected}, {where}")
        pairs += zip(sends[key], recvs[key], strict=True)
    return pairs


def _order(schedules: Sequence[Schedule], pairs: _Pairs) -> list[_Node]:
    """Return an order in which vertices can complete when a SEND and its RECV complete together; raise CheckError if there is none."""
    partner = {a: b for pair in pairs for a, b in (pair, pair[::-1])}
    waits = {_Node(r, i): len(v.deps) for r, s in enumerate(schedules) for i, v in enumerate(s.vertices)}
    followers: dict[_Node, list[_Node]] = defaultdict(list)
    for node in waits:
        for d in schedules[node.rank].vertices[node.number].deps:
            followers[_Node(node.rank, d)].append(node)
    started = [node for node, n in waits.items() if n == 0]
    waiting: set[_Node] = set()
    order: list[_Node] = []
    while started:
        node = started.pop()
        other = partner.get(node)
        if other is not None and other not in waiting:
            waiting.add(node)
            continue
        complete = [node] if other is None else [node, other]
        waiting.difference_update(complete)
        # A send stands before its receive.
        complete.sort(key=lambda n: schedules[n.rank].vertices[n.number].kind)
        order += complete
        for c in complete:
            for f in followers[c]:
                waits[f] -= 1
                if waits[f] == 0:
                    started.append(f)
    if len(order) < len(waits):
        stuck = ", ".join(f"rank {n.rank} vertex {n.number}" for n in sorted(waiting)[:4])
        raise CheckError(
            f"deadlock with synchronous sends: {len(waits) - len(order)} vertices never complete; started and waiting: {stuck or 'none'}"
        )
    return order


class _Run:
    """One random execution."""

    def __init__(self, schedules: Sequence[Schedule], send: Sequence[Cells], recv: Sequence[Cells], seed: int) -> None:
        self._schedules = schedules
        self._seed = seed
        self._random = random.Random(seed)
        self._memory: list[dict[Buf, Cells]] = [
            {Buf.SEND: list(s), Buf.RECV: list(r), Buf.TEMP: [None] * schedule.temp_bytes}
            for schedule, s, r in zip(schedules, send, recv, strict=True)
        ]
        self._waits = [[len(v.deps) for v in s.vertices] for s in schedules]
        self._followers: list[list[list[int]]] = [[[] for _ in s.vertices] for s in schedules]
        #: what can happen next: a vertex starts, or (with a second node, the RECV) a message arrives
        self._events: list[tuple[_Node, _Node | None]] = []
        #: sends and receives that wait for each other, by (sender, receiver, slot)
        self._sends: dict[tuple[int, int, int], deque[_Node]] = defaultdict(deque)
        self._recvs: dict[tuple[int, int, int], deque[_Node]] = defaultdict(deque)
        #: contents of messages whose send is already complete
        self._eager: dict[_Node, Cells] = {}
        self._left = sum(len(s.vertices) for s in schedules)
        for rank, schedule in enumerate(schedules):
            for index, vertex in enumerate(schedule.vertices):
                for d in vertex.deps:
                    self._followers[rank][d].append(index)
                if not vertex.deps:
                    self._events.append((_Node(rank, index), None))

    def finish(self) -> list[Cells]:
        while self._events:
            pick = int(self._random.random() * len(self._events))
            self._events[pick], self._events[-1] = self._events[-1], self._events[pick]
            node, receiver = self._events.pop()
            if receiver is None:
                self._start(node)
            else:
                self._arrive(node, receiver)
        if self._left:
            raise CheckError(f"seed {self._seed}: {self._left} vertices never complete")
        return [m[Buf.RECV] for m in self._memory]

    def _start(self, node: _Node) -> None:
        vertex = self._schedules[node.rank].vertices[node.number]
        if vertex.kind == Kind.COPY:
            self._write(node, vertex.dst, self._read(node, vertex.src))
            self._complete(node)
        elif vertex.kind == Kind.REDUCE:
            left, right = self._read(node, vertex.src), self._read(node, vertex.dst)
            self._write(node, vertex.dst, [Sum(a, b) for a, b in zip(left, right, strict=True)])
            self._complete(node)
        elif vertex.kind == Kind.SEND:
            contents = self._read(node, vertex.src)
            key = (node.rank, vertex.peer, vertex.slot)
            self._sends[key].append(node)
            if self._random.random() < 0.5:
                self._eager[node] = [*contents]
                self._complete(node)
            self._meet(key)
        else:
            key = (vertex.peer, node.rank, vertex.slot)
            self._write(node, vertex.dst, [None] * vertex.nbytes)
            self._recvs[key].append(node)
            self._meet(key)

    def _meet(self, key: tuple[int, int, int]) -> None:
        if self._sends[key] and self._recvs[key]:
            self._events.append((self._sends[key].popleft(), self._recvs[key].popleft()))

    def _arrive(self, sender: _Node, receiver: _Node) -> None:
        synchronous = sender not in self._eager
        contents: Cells
        if synchronous:
            contents = [*self._read(sender, self._schedules[sender.rank].vertices[sender.number].src)]
        else:
            contents = self._eager.pop(sender)
        self._write(receiver, self._schedules[receiver.rank].vertices[receiver.number].dst, contents)
        self._complete(receiver)
        if synchronous:
            self._complete(sender)

    def _read(self, node: _Node, ref: Ref | None) -> list[Value]:
        if ref is None:
            return []
        nbytes = self._schedules[node.rank].vertices[node.number].nbytes
        contents: list[Value] = []
        for offset, value in enumerate(self._memory[node.rank][ref.buf][ref.offset : ref.offset + nbytes], ref.offset):
            if value is None:
                raise CheckError(
                    f"seed {self._seed}: rank {node.rank}, vertex {node.number} reads byte {offset} of {ref.buf.name}, which is undefined"
                )
            contents.append(value)
        return contents

    def _write(self, node: _Node, ref: Ref | None, contents: Sequence[Value | None]) -> None:
        if ref is not None:
            self._memory[node.rank][ref.buf][ref.offset : ref.offset + len(contents)] = contents

    def _complete(self, node: _Node) -> None:
        self._left -= 1
        for f in self._followers[node.rank][node.number]:
            self._waits[node.rank][f] -= 1
            if self._waits[node.rank][f] == 0:
                self._events.append((_Node(node.rank, f), None))


def check_barrier(schedules: Sequence[Schedule], *, seeds: Sequence[int] = (1, 2)) -> None:
    """Raise CheckError unless the end of each rank's schedule comes after the start of every rank's."""
    size = len(schedules)
    nothing = [0] * size
    pairs = _structure(schedules, nothing, nothing)
    sender = {r: s for s, r in pairs}
    #: per vertex, the ranks that are known to have started when it is complete, as bits
    known: dict[_Node, int] = {}
    ends = [1 << rank for rank in range(size)]
    for node in _order(schedules, pairs):
        bits = 1 << node.rank
        for d in schedules[node.rank].vertices[node.number].deps:
            bits |= known[_Node(node.rank, d)]
        if node in sender:
            bits |= known[sender[node]]
        known[node] = bits
        ends[node.rank] |= bits
    for rank, bits in enumerate(ends):
        if bits != (1 << size) - 1:
            missing = [r for r in range(size) if not bits >> r & 1]
            raise CheckError(f"rank {rank} may leave the barrier before ranks {missing} have come")
    for seed in seeds:
        run(schedules, [[]] * size, [[]] * size, seed)


def check_bcast(schedules: Sequence[Schedule], nbytes: int, root: int, *, seeds: Sequence[int] = (1, 2)) -> None:
    """Raise CheckError unless the root's `nbytes` end on all ranks."""
    size = len(schedules)
    data: Cells = [*_leaves(root, 0, nbytes)]
    recv = [data if rank == root else _undefined(nbytes) for rank in range(size)]
    _check_moves(schedules, [[]] * size, recv, [data] * size, seeds)


def check_reduce(
    schedules: Sequence[Schedule], nbytes: int, root: int, *, in_place: bool, commutative: bool, seeds: Sequence[int] = (1, 2)
) -> None:
    """Raise CheckError unless each byte at the root combines each rank's exactly once, in the order of ranks if not commutative."""
    size = len(schedules)
    operands: list[Cells] = [[*_leaves(rank, 0, nbytes)] for rank in range(size)]
    send = [[] if in_place and rank == root else operands[rank] for rank in range(size)]
    recv: list[Cells] = [[] for _ in range(size)]
    recv[root] = operands[root] if in_place else _undefined(nbytes)
    for result in _results(schedules, send, recv, seeds):
        _check_sums(f"root {root}", result[root], size, nbytes, commutative)


def check_allreduce(
    schedules: Sequence[Schedule], nbytes: int, *, in_place: bool, commutative: bool, seeds: Sequence[int] = (1, 2)
) -> None:
    """Raise CheckError unless it is a reduction on each rank, and by the very same expression on all."""
    size = len(schedules)
    operands: list[Cells] = [[*_leaves(rank, 0, nbytes)] for rank in range(size)]
    nothing: list[Cells] = [[] for _ in range(size)]
    undefined = [_undefined(nbytes) for _ in range(size)]
    send, recv = (nothing, operands) if in_place else (operands, undefined)
    for result in _results(schedules, send, recv, seeds):
        for rank in range(size):
            _check_sums(f"rank {rank}", result[rank], size, nbytes, commutative)
            if result[rank] != result[0]:
                raise CheckError(f"ranks 0 and {rank} combine in different orders, their bits may differ: {result[0]} and {result[rank]}")


def check_reduce_scatter(schedules: Sequence[Schedule], counts: Sequence[int], *, in_place: bool, seeds: Sequence[int] = (1, 2)) -> None:
    """Raise CheckError unless rank i ends with block i, each byte of it combining each rank's exactly once in the order of ranks."""
    size, total = len(schedules), sum(counts)
    operands: list[Cells] = [[*_leaves(rank, 0, total)] for rank in range(size)]
    nothing: list[Cells] = [[] for _ in range(size)]
    send, recv = (nothing, operands) if in_place else (operands, [_undefined(count) for count in counts])
    for result in _results(schedules, send, recv, seeds):
        for rank, count in enumerate(counts):
            _check_sums(f"rank {rank}", result[rank][:count], size, count, commutative=False, first=sum(counts[:rank]))


def check_scan(
    schedules: Sequence[Schedule], nbytes: int, *, exclusive: bool, in_place: bool, seeds: Sequence[int] = (1, 2)
) -> None:
    """Raise CheckError unless each byte of rank i combines those of ranks 0 to i (exclusive: i - 1) in their order."""
    size = len(schedules)
    operands: list[Cells] = [[*_leaves(rank, 0, nbytes)] for rank in range(size)]
    nothing: list[Cells] = [[] for _ in range(size)]
    send, recv = (nothing, operands) if in_place else (operands, [_undefined(nbytes) for _ in range(size)])
    for result in _results(schedules, send, recv, seeds):
        for rank in range(size):
            if exclusive and rank == 0:
                if result[0] != recv[0]:
                    raise CheckError(f"rank 0 ends with {result[0]}, its buffer should be untouched")
            else:
                _check_sums(f"rank {rank}", result[rank], rank + (not exclusive), nbytes, commutative=False)


def check_gather(
    schedules: Sequence[Schedule], counts: Sequence[int], displs: Sequence[int], root: int, *, in_place: bool, seeds: Sequence[int] = (1, 2)
) -> None:
    """Raise CheckError unless rank i's counts[i] bytes end at displs[i] at the root, and nothing beside them is written."""
    size = len(schedules)
    expected: list[Cells] = [[] for _ in range(size)]
    expected[root] = _laid_out([(i, 0) for i in range(size)], counts, displs)
    recv: list[Cells] = [[] for _ in range(size)]
    recv[root] = _undefined(len(expected[root]))
    send: list[Cells] = [[*_leaves(rank, 0, counts[rank])] for rank in range(size)]
    if in_place:
        recv[root][displs[root] : displs[root] + counts[root]] = send[root]
        send[root] = []
    _check_moves(schedules, send, recv, expected, seeds)


def check_scatter(
    schedules: Sequence[Schedule], counts: Sequence[int], displs: Sequence[int], root: int, *, in_place: bool, seeds: Sequence[int] = (1, 2)
) -> None:
    """Raise CheckError unless the counts[i] bytes at displs[i] of the root end on rank i."""
    size = len(schedules)
    send: list[Cells] = [[] for _ in range(size)]
    send[root] = [*_leaves(root, 0, _extent(counts, displs))]
    expected: list[Cells] = [[*_leaves(root, displs[rank], counts[rank])] for rank in range(size)]
    if in_place:
        expected[root] = []
    _check_moves(schedules, send, [_undefined(len(e)) for e in expected], expected, seeds)


def check_allgather(
    schedules: Sequence[Schedule], counts: Sequence[int], displs: Sequence[int], *, in_place: bool, seeds: Sequence[int] = (1, 2)
) -> None:
    """Raise CheckError unless rank i's counts[i] bytes end at displs[i] on all ranks, and nothing beside them is written."""
    size = len(schedules)
    expected = _laid_out([(i, 0) for i in range(size)], counts, displs)
    send: list[Cells] = [[*_leaves(rank, 0, counts[rank])] for rank in range(size)]
    recv = [_undefined(len(expected)) for _ in range(size)]
    if in_place:
        for rank in range(size):
            recv[rank][displs[rank] : displs[rank] + counts[rank]] = send[rank]
            send[rank] = []
    _check_moves(schedules, send, recv, [expected] * size, seeds)


def check_alltoall(
    schedules: Sequence[Schedule],
    counts: Sequence[Sequence[int]],
    send_displs: Sequence[Sequence[int]],
    recv_displs: Sequence[Sequence[int]],
    *,
    in_place: bool,
    seeds: Sequence[int] = (1, 2),
) -> None:
    """Raise CheckError unless the counts[i][j] bytes at send_displs[i][j] of rank i end at recv_displs[j][i] of rank j, nothing beside
    them written.

    In place the data comes from Buf.RECV, as laid out by recv_displs; then counts[i][j] == counts[j][i].
    """
    size = len(schedules)
    from_displs = recv_displs if in_place else send_displs
    sources: list[Cells] = [[*_leaves(rank, 0, _extent(counts[rank], from_displs[rank]))] for rank in range(size)]
    expected = []
    for j in range(size):
        blocks = [(i, from_displs[i][j]) for i in range(size)]
        expected.append(_laid_out(blocks, [counts[i][j] for i in range(size)], recv_displs[j]))
    if in_place:
        # What lies between the blocks must stay as it is.
        kept = [[new if new is not None else old for new, old in zip(e, s, strict=True)] for e, s in zip(expected, sources, strict=True)]
        _check_moves(schedules, [[]] * size, sources, kept, seeds)
    else:
        _check_moves(schedules, sources, [_undefined(len(e)) for e in expected], expected, seeds)


def _results(schedules: Sequence[Schedule], send: Sequence[Cells], recv: Sequence[Cells], seeds: Sequence[int]) -> Iterator[list[Cells]]:
    verify(schedules, [len(s) for s in send], [len(r) for r in recv])
    for seed in seeds:
        yield run(schedules, send, recv, seed)


def _check_moves(
    schedules: Sequence[Schedule], send: Sequence[Cells], recv: Sequence[Cells], expected: Sequence[Cells], seeds: Sequence[int]
) -> None:
    for result in _results(schedules, send, recv, seeds):
        for rank, (got, want) in enumerate(zip(result, expected, strict=True)):
            if got != want:
                raise CheckError(f"rank {rank} ends with {got}, should be {want}")


def _check_sums(where: str, result: Cells, size: int, nbytes: int, commutative: bool, first: int = 0) -> None:
    if len(result) != nbytes:
        raise CheckError(f"{where} ends with {len(result)} bytes, should be {nbytes}")
    for offset, value in enumerate(result):
        leaves = [] if value is None else _flatten(value)
        ranks = [leaf.rank for leaf in leaves]
        if commutative:
            ranks.sort()
        if ranks != list(range(size)) or any(leaf.byte != first + offset for leaf in leaves):
            raise CheckError(
                f"{where}: byte {offset} is made of {leaves}, should be byte {first + offset} of each of {size} ranks once"
                + ", in order" * (not commutative)
            )


def _flatten(value: Value) -> list[Leaf]:
    """Return the operands of an expression from left to right."""
    leaves = []
    rest = [value]
    while rest:
        top = rest.pop()
        if isinstance(top, Sum):
            rest += (top.right, top.left)
        else:
            leaves.append(top)
    return leaves


def _leaves(rank: int, first: int, nbytes: int) -> list[Leaf]:
    return [Leaf(rank, first + i) for i in range(nbytes)]


def _undefined(nbytes: int) -> Cells:
    return [None] * nbytes


def _extent(counts: Sequence[int], displs: Sequence[int]) -> int:
    return max(d + c for c, d in zip(counts, displs, strict=True))


def _laid_out(blocks: Sequence[tuple[int, int]], counts: Sequence[int], displs: Sequence[int]) -> Cells:
    """Return a buffer with block i, given by its rank and first byte there, at displs[i]."""
    cells = _undefined(_extent(counts, displs))
    for (rank, first), count, displ in zip(blocks, counts, displs, strict=True):
        cells[displ : displ + count] = _leaves(rank, first, count)
    return cells
