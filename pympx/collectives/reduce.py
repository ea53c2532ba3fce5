"""Reduction to one rank along a binomial tree that keeps the order of operands.

Thakur, Rabenseifner, Gropp: Optimization of collective communication operations in MPICH, IJHPCA 19 (2005), section on reduce of short
messages. MPI standard: MPI_Reduce.
"""

from __future__ import annotations

from .bcast import tree
from .schedule import Buf, Builder, Ref, Schedule, check_place, check_sizes

#: partial results and arriving operands rotate through this many buffers, so one receive is under way during each reduction
_BUFFERS = 3


def build(rank: int, size: int, nbytes: int, *, root: int = 0, in_place: bool = False, commutative: bool = True) -> Schedule:
    """Return the schedule of a reduction of `nbytes` per rank to Buf.RECV of `root`.

    Each rank combines its own operand with those of its children, smallest subtree first, own part on the left, and hands the result up.
    Commutative: the tree's top is the root. Otherwise the top is rank 0, so operands stay in the order of ranks, and rank 0 forwards the
    result to the root. ceil(log2(size)) rounds (one more when forwarded), (size - 1) * nbytes sent in all (size * nbytes when forwarded),
    at most 3 * nbytes of scratch.

    In place counts at the root only: its operand is in Buf.RECV and there is no Buf.SEND. Elsewhere there is no Buf.RECV.
    """
    check_place(rank, size, root)
    check_sizes("reduce", nbytes)
    b = Builder()
    if not nbytes:
        return b.build()
    top = root if commutative else 0
    own = Ref(Buf.RECV if in_place and rank == root else Buf.SEND)
    result = Ref(Buf.RECV)
    parent, children = tree(rank, size, top)
    partial, done = _combine(b, children, own, result if rank == top == root else None, nbytes)
    if parent is not None:
        sent = b.send(parent, partial, nbytes, after=done)
        if rank == root:
            b.recv(top, result, nbytes, after=(sent,) if in_place else ())
    elif root != top:
        b.send(root, partial, nbytes, after=done)
    elif partial != result:
        b.copy(partial, result, nbytes, after=done)
    return b.build()


def _combine(b: Builder, children: list[int], own: Ref, result: Ref | None, nbytes: int) -> tuple[Ref, tuple[int, ...]]:
    """Add own op child 0 op child 1 ...; return where it ends (in `result` if given and there are children) and after what.

    A REDUCE leaves its result where the right operand came in, so operand i is received into the buffer that is `last - i` turns of the
    rotation before the one where the result has to end.
    """
    if not children:
        return own, ()
    last = len(children) - 1
    turns = [(last - i) % _BUFFERS for i in range(len(children))]
    buffers = [b.temp(nbytes) if result is None else result]
    copy_own = own == result and turns[0] == 0
    while len(buffers) < max(min(_BUFFERS, len(children)), 1 + copy_own):
        buffers.append(b.temp(nbytes))
    partial = own
    done: tuple[int, ...] = ()
    # per buffer, the vertex after which it may be overwritten
    free: dict[Ref, tuple[int, ...]] = {}
    if copy_own:
        copied = b.copy(own, buffers[1], nbytes)
        partial, done = buffers[1], (copied,)
        free[own] = (copied,)
    for child, turn in zip(children, turns, strict=True):
        into = buffers[turn]
        arrived = b.recv(child, into, nbytes, after=free.get(into, ()))
        combined = b.reduce(partial, into, nbytes, after=(arrived, *done))
        free[partial] = (combined,)
        partial, done = into, (combined,)
    return partial, done
