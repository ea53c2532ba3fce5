"""Collectives on Python objects: pickle, exchange sizes, exchange bytes; each exchange is a schedule run by the engine.

The object that a rank contributes comes back to itself unpickled, like everybody else's.
"""

from __future__ import annotations

import functools
import threading
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from ..bindings.pickling import dumps_object, loads_object
from .error_classes import CLASSES
from .errors import Exception

if TYPE_CHECKING:
    from .comm import Comm

_P = ParamSpec("_P")
_R = TypeVar("_R")
_ALIGNMENT = 64


def lock_table(comm: Comm) -> dict[str, threading.Lock]:
    """Return the locks of a communicator by collective, made when first needed."""
    try:
        return comm._locks
    except AttributeError:
        comm._locks = {}
        return comm._locks


def _locked(function: Callable[Concatenate[Comm, _P], _R]) -> Callable[Concatenate[Comm, _P], _R]:
    """Let one thread at a time be in this collective of a communicator: it consists of several exchanges."""

    @functools.wraps(function)
    def locked(comm: Comm, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        comm.resolve()
        with lock_table(comm).setdefault(function.__name__, threading.Lock()):
            return function(comm, *args, **kwargs)

    return locked


def _padded(nbytes: int) -> int:
    """Room for one pickled object, so that the next starts aligned."""
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _displacements(sizes: Iterable[int]) -> tuple[list[int], int]:
    at, out = 0, []
    for nbytes in sizes:
        out.append(at)
        at += _padded(nbytes)
    return out, at


@_locked
def bcast(comm: Comm, obj: Any, root: int) -> Any:
    """Send the object of the root to all; return it."""
    at_root = comm.rank == root
    payload: Any = dumps_object(obj) if at_root else b""
    size = array("q", [len(payload)])
    comm.Bcast(size, root)
    if not at_root:
        payload = bytearray(size[0])
    comm.Bcast(payload, root)
    return obj if at_root else loads_object(payload)


def _gather_bytes(comm: Comm, payload: bytes, root: int) -> list[memoryview] | None:
    at_root = comm.rank == root
    sizes = array("q", bytes(8 * comm.size)) if at_root else None
    comm.Gather(array("q", [len(payload)]), sizes, root)
    if sizes is None:
        comm.Gatherv(payload, None, root)
        return None
    displacements, total = _displacements(sizes)
    everything = bytearray(total)
    comm.Gatherv(payload, [everything, list(sizes), displacements, "B"], root)
    view = memoryview(everything)
    return [view[d : d + n] for d, n in zip(displacements, sizes, strict=True)]


@_locked
def gather(comm: Comm, obj: Any, root: int) -> list[Any] | None:
    """Return the objects of all ranks at the root, None elsewhere."""
    pieces = _gather_bytes(comm, dumps_object(obj), root)
    return None if pieces is None else [loads_object(piece) for piece in pieces]


@_locked
def scatter(comm: Comm, objs: Sequence[Any] | None, root: int) -> Any:
    """Hand out the objects of the root, one per rank; return this rank's."""
    if comm.rank != root:
        size = array("q", [0])
        comm.Scatter(None, size, root)
        payload = bytearray(size[0])
        comm.Scatterv(None, payload, root)
        return loads_object(payload)
    items = list(objs) if objs is not None else []
    if len(items) != comm.size:
        raise ValueError(f"scatter: expecting {comm.size} items, one per rank, got {len(items)}")
    payloads = [dumps_object(item) for item in items]
    sizes = array("q", [len(p) for p in payloads])
    mine = array("q", [0])
    comm.Scatter(sizes, mine, root)
    payload = bytearray(mine[0])
    displacements, at = [], 0
    for nbytes in sizes:
        displacements.append(at)
        at += nbytes
    comm.Scatterv([b"".join(payloads), list(sizes), displacements, "B"], payload, root)
    return loads_object(payload)


@_locked
def allgather(comm: Comm, obj: Any) -> list[Any]:
    """Return the objects of all ranks."""
    payload = dumps_object(obj)
    sizes = array("q", bytes(8 * comm.size))
    comm.Allgather(array("q", [len(payload)]), sizes)
    displacements, total = _displacements(sizes)
    everything = bytearray(total)
    comm.Allgatherv(payload, [everything, list(sizes), displacements, "B"])
    view = memoryview(everything)
    return [loads_object(view[d : d + n]) for d, n in zip(displacements, sizes, strict=True)]


@_locked
def alltoall(comm: Comm, objs: Sequence[Any]) -> list[Any]:
    """Send objs[i] to rank i; return what every rank sent here."""
    items = list(objs)
    if len(items) != comm.size:
        raise ValueError(f"alltoall: expecting {comm.size} items, one per rank, got {len(items)}")
    payloads = [dumps_object(item) for item in items]
    sizes = array("q", [len(p) for p in payloads])
    theirs = array("q", bytes(8 * comm.size))
    comm.Alltoall(sizes, theirs)
    send_displacements, at = [], 0
    for nbytes in sizes:
        send_displacements.append(at)
        at += nbytes
    displacements, total = _displacements(theirs)
    everything = bytearray(total)
    comm.Alltoallv([b"".join(payloads), list(sizes), send_displacements, "B"], [everything, list(theirs), displacements, "B"])
    view = memoryview(everything)
    return [loads_object(view[d : d + n]) for d, n in zip(displacements, theirs, strict=True)]


def _operation(op: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    if not callable(op):
        raise Exception(CLASSES["ERR_OP"][0], f"op: expecting a callable of two objects, not {type(op).__name__}")
    return op


def reduce(comm: Comm, obj: Any, op: Callable[[Any, Any], Any], root: int) -> Any:
    """Combine the objects of all ranks with `op` in rank order; the root returns the result, others None."""
    objs = gather(comm, obj, root)
    return None if objs is None else functools.reduce(_operation(op), objs)


def allreduce(comm: Comm, obj: Any, op: Callable[[Any, Any], Any]) -> Any:
    """Combine the objects of all ranks with `op` in rank order; all return the result."""
    return functools.reduce(_operation(op), allgather(comm, obj))


def scan(comm: Comm, obj: Any, op: Callable[[Any, Any], Any]) -> Any:
    """Combine the objects of ranks 0 to this one with `op` in rank order."""
    return functools.reduce(_operation(op), allgather(comm, obj)[: comm.rank + 1])


def exscan(comm: Comm, obj: Any, op: Callable[[Any, Any], Any]) -> Any:
    """Combine the objects of the ranks below this one with `op` in rank order; None on rank 0."""
    below = allgather(comm, obj)[: comm.rank]
    return functools.reduce(_operation(op), below) if below else None
