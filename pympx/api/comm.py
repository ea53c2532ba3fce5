"""Communicators: making and freeing them, names, attributes, object collectives (MPI 4.1, chapter 7)."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Self

from .. import runtime
from ..bindings import comm as _comm
from ..bindings import request as _request
from ..bindings.comm import Comm as _Comm
from . import attributes, collectives, failures, objects
from .constants import ANY_SOURCE, ANY_TAG, COMM_TYPE_SHARED, CONGRUENT, IDENT, IN_PLACE, MAX_OBJECT_NAME, SIMILAR, UNDEFINED, UNEQUAL
from .errhandler import ERRORS_RETURN, Errhandler, must_raise
from .error_classes import CLASSES
from .errors import Exception, UnsupportedError
from .group import Group
from .handles import Handled, Table
from .info import Info
from .memory import reserve_buffered
from .op import MAX, SUM
from .request import Prequest, Request
from .unsupported import complete

# Contexts come in pairs (point-to-point, collectives): 0 is COMM_WORLD's, 2 COMM_SELF's, 4 that of PYMPX_REPORT's messages,
# 6, 8, 10 and 12 are those of calls (rpc/calls.pyx).
REPORT_CONTEXT = 4
_next_context = 14
_LAST_CONTEXT = (1 << 24) - 2


if TYPE_CHECKING:
    from .status import Status

    _Skin = _Comm[Request]  # its methods return what register() below sets
else:
    _Skin = _Comm


@complete
class Comm(_Skin, Handled):
    """A communicator."""

    __slots__ = ("_attributes", "_locks", "_name")
    _table: Table[Any] = Table(0x04000000)
    _attributes: dict[int, Any]
    _locks: dict[str, Any]
    _name: str

    def Get_group(self) -> Group:
        """Return the group of its processes."""
        return Group._of(self._world_ranks(), runtime.bootstrap().rank)

    group = property(Get_group, doc="Group of its processes.")

    def Compare(self, comm: Comm) -> int:
        """Return IDENT (the same), CONGRUENT (same group), SIMILAR (other order) or UNEQUAL."""
        if self == comm:
            return IDENT
        result = self.Get_group().Compare(comm.Get_group())
        return {IDENT: CONGRUENT, SIMILAR: SIMILAR}.get(result, UNEQUAL)

    def Get_name(self) -> str:
        """Return the name."""
        self.resolve()
        return getattr(self, "_name", "")

    def Set_name(self, name: str) -> None:
        """Set the name, of at most MAX_OBJECT_NAME - 1 characters."""
        self.resolve()
        self._name = name[: MAX_OBJECT_NAME - 1]

    name = property(Get_name, Set_name, doc="Name.")

    def Is_inter(self) -> bool:
        """Return whether it is an intercommunicator."""
        self.resolve()
        return False

    def Is_intra(self) -> bool:
        """Return whether it is an intracommunicator."""
        self.resolve()
        return True

    is_inter = property(Is_inter, doc="Whether it is an intercommunicator.")
    is_intra = property(Is_intra, doc="Whether it is an intracommunicator.")

    def Abort(self, errorcode: int = 0) -> NoReturn:
        """End the whole job with `errorcode`."""
        runtime.abort(errorcode & 0xFF or (1 if errorcode else 0))

    def Free(self) -> None:
        """Free the communicator; later calls raise ERR_COMM. COMM_WORLD and COMM_SELF cannot be freed."""
        self.resolve()
        if self._context < 4:
            raise Exception(CLASSES["ERR_COMM"][0], f"{self.Get_name()} cannot be freed")
        attributes.clear(self)
        self._leave()

    def Revoke(self) -> None:
        """End all pending and later communication on it with ERR_REVOKED, on every member. No collective call."""
        self._revoke()

    def Is_revoked(self) -> bool:
        """Return whether some member revoked it, as far as is known here."""
        return self._is_revoked()

    def Get_failed(self) -> Group:
        """Return the group of its members that are known here to have failed, in the order in which they were noticed."""
        return failures.group_of_failed(self)

    def Ack_failed(self, num_to_ack: int | None = None) -> int:
        """Acknowledge the first `num_to_ack` members of Get_failed (default: all), so that wildcards and Agree go on without them.

        Returns how many are acknowledged now.
        """
        return failures.acknowledge(self, num_to_ack)

    def Agree(self, flag: int) -> int:
        """Collective: return the bitwise AND of the living members' flags. Members that fail meanwhile do not matter.

        Raises ERR_PROC_FAILED, on all, if a member failed that not all have acknowledged.
        """
        return failures.agree(self, flag)

    def Iagree(self, flag: Any) -> Request:
        """Start Agree; `flag` is a writable buffer of one C int, which holds the result when the request is complete."""
        return failures.start_agree(self, flag)

    def Shrink(self) -> Intracomm:
        """Collective among the living: return the communicator of those who live, in the same order."""
        comm, request = self.Ishrink()
        request.Wait()
        return comm

    def Ishrink(self) -> tuple[Intracomm, Request]:
        """Start Shrink: the communicator can be used when the request is complete."""
        comm = Intracomm()
        return comm, failures.start_shrink(self, comm, _next_context, _take_context)

    def Send_init(self, buf: Any, dest: int, tag: int = 0) -> Prequest:
        """Make a persistent send."""
        return self._persistent(lambda: self.Isend(buf, dest, tag))

    def Ssend_init(self, buf: Any, dest: int, tag: int = 0) -> Prequest:
        """Make a persistent synchronous send."""
        return self._persistent(lambda: self.Issend(buf, dest, tag))

    def Rsend_init(self, buf: Any, dest: int, tag: int = 0) -> Prequest:
        """Make a persistent ready send."""
        return self._persistent(lambda: self.Irsend(buf, dest, tag))

    def Bsend_init(self, buf: Any, dest: int, tag: int = 0) -> Prequest:
        """Make a persistent buffered send."""
        return self._persistent(lambda: self.Ibsend(buf, dest, tag))

    def Recv_init(self, buf: Any, source: int = ANY_SOURCE, tag: int = ANY_TAG) -> Prequest:
        """Make a persistent receive."""
        return self._persistent(lambda: self.Irecv(buf, source, tag))

    def messages(self, source: int = ANY_SOURCE, tag: int = ANY_TAG, status: Status | None = None) -> AsyncIterator[Any]:
        """Return the objects to come from `source` with `tag` as an asynchronous iterator, for ``async for`` in asyncio, trio or anyio.

        `status` tells of the last one. Where recv would raise, the iteration does.
        """
        from .messages import Messages

        return Messages(self, source, tag, status)

    def _persistent(self, start: Callable[[], Request]) -> Prequest:
        self.resolve()
        return _request.make_persistent(Prequest(), lambda request: _request.adopt(request, start()))

    def Get_attr(self, keyval: int) -> Any:
        """Return an attribute, None if it was not set. Predefined ones: TAG_UB, IO, WTIME_IS_GLOBAL, LASTUSEDCODE."""
        self.resolve()
        return attributes.get(self, keyval)

    def Set_attr(self, keyval: int, attrval: Any) -> None:
        """Set an attribute."""
        self.resolve()
        attributes.put(self, keyval, attrval)

    def Delete_attr(self, keyval: int) -> None:
        """Delete an attribute."""
        self.resolve()
        attributes.delete(self, keyval)

    @classmethod
    def Create_keyval(cls, copy_fn: Any = None, delete_fn: Any = None, nopython: bool = False) -> int:
        """Return a new key of attributes; copy_fn(comm, keyval, value) gives the value for a Dup, delete_fn, called alike, ends it."""
        return attributes.create(copy_fn, delete_fn)

    @classmethod
    def Free_keyval(cls, keyval: int) -> int:
        """Forget a key; return KEYVAL_INVALID. Attributes under it stay until they are deleted."""
        return attributes.free(keyval)

    def Get_errhandler(self) -> Errhandler:
        """Return ERRORS_RETURN: errors are always raised."""
        self.resolve()
        return Errhandler(ERRORS_RETURN)

    def Set_errhandler(self, errhandler: Errhandler) -> None:
        """Accept ERRORS_RETURN; other error handlers are not supported."""
        self.resolve()
        must_raise("MPI.Comm.Set_errhandler", errhandler)

    def Get_info(self) -> Info:
        """Return the hints in use: none."""
        self.resolve()
        return Info.Create()

    def Set_info(self, info: Info) -> None:
        """Accept hints, of which none is used."""
        self.resolve()

    info = property(Get_info, Set_info, doc="Hints.")

    def Get_topology(self) -> int:
        """Return UNDEFINED: there are no topologies yet."""
        self.resolve()
        return UNDEFINED

    topology = property(Get_topology, doc="Kind of topology.")

    @property
    def is_topo(self) -> bool:
        """Whether the communicator has a topology."""
        return self.Get_topology() != UNDEFINED

    @classmethod
    def fromhandle(cls, handle: int) -> Self:
        """Return the communicator of a number: the very object, as calls on it are counted."""
        found = cls._table.object(handle)
        if found is None:
            return cls()
        if not isinstance(found, cls):
            raise TypeError(f"handle {handle:#x} is a {type(found).__name__}, not a {cls.__name__}")
        return found

    def Disconnect(self) -> None:
        """Free the communicator when its messages have arrived; collective."""
        self.Barrier()
        self.Free()

    def free(self) -> None:
        """Free the communicator unless it is COMM_NULL, COMM_WORLD or COMM_SELF."""
        if self and self._context >= 4:
            self.Free()

    def __reduce__(self) -> Any:
        if not self:
            return type(self), ()
        if self._context < 4:
            return _predefined, (self._context,)
        raise TypeError("a communicator cannot be pickled, unless it is COMM_NULL, COMM_WORLD or COMM_SELF")

    def _agree_on_context(self) -> int:
        """Collective: a context that no member uses."""
        highest = array("q", [_next_context])
        self.Allreduce(IN_PLACE, highest, MAX)
        return _take_context(highest[0])

    def Dup(self, info: object = None) -> Self:
        """Collective: return a communicator of the same group with message contexts of its own, and the attributes that copy."""
        self.resolve()
        comm = type(self)()
        comm._define(self._agree_on_context(), self._world_ranks(), self.rank)
        attributes.copy(self, comm)
        return comm

    def Dup_with_info(self, info: object) -> Self:
        """Collective: as Dup; there are no hints that change anything."""
        return self.Dup(info)

    Clone = Dup

    def Split(self, color: int = 0, key: int = 0) -> Intracomm:
        """Collective: return the communicator of the ranks with the same color, in the order of key; UNDEFINED: COMM_NULL."""
        if color < 0 and color != UNDEFINED:
            raise Exception(CLASSES["ERR_ARG"][0], f"Split: color is {color}, must not be negative (or UNDEFINED)")
        mine = array("q", [color, key])
        everybody = array("q", bytes(16 * self.size))
        self.Allgather(mine, everybody)
        context = self._agree_on_context()
        comm = Intracomm()
        if color == UNDEFINED:
            return comm
        world = self._world_ranks()
        members = sorted((everybody[2 * r + 1], r) for r in range(self.size) if everybody[2 * r] == color)
        ranks = [r for _, r in members]
        comm._define(context, [world[r] for r in ranks], ranks.index(self.rank))
        return comm

    def Split_type(self, split_type: int, key: int = 0, info: object = None) -> Intracomm:
        """Collective: return the communicator of the ranks on one host (COMM_TYPE_SHARED); UNDEFINED: COMM_NULL."""
        if split_type not in (COMM_TYPE_SHARED, UNDEFINED):
            raise UnsupportedError(f"MPI.Comm.Split_type({split_type})")
        hosts = self.allgather(runtime.host_identity())
        return self.Split(UNDEFINED if split_type == UNDEFINED else hosts.index(hosts[self.rank]), key)

    def Create(self, group: Group) -> Intracomm:
        """Collective: return the communicator of `group`, a subset of this one; COMM_NULL for others."""
        context = self._agree_on_context()
        comm = Intracomm()
        if group.Get_rank() != UNDEFINED:
            comm._define(context, group._members, group.Get_rank())
        return comm

    # --- object collectives

    def barrier(self) -> None:
        """Return when every rank has entered."""
        self.Barrier()

    def bcast(self, obj: Any, root: int = 0) -> Any:
        """Send the object of the root to all; return it."""
        return objects.bcast(self, obj, root)

    def gather(self, sendobj: Any, root: int = 0) -> list[Any] | None:
        """Return the objects of all ranks at the root, None elsewhere."""
        return objects.gather(self, sendobj, root)

    def scatter(self, sendobj: Sequence[Any] | None, root: int = 0) -> Any:
        """Hand out the objects of the root, one per rank; return this rank's."""
        return objects.scatter(self, sendobj, root)

    def allgather(self, sendobj: Any) -> list[Any]:
        """Return the objects of all ranks."""
        return objects.allgather(self, sendobj)

    def alltoall(self, sendobj: Sequence[Any]) -> list[Any]:
        """Send sendobj[i] to rank i; return what every rank sent here."""
        return objects.alltoall(self, sendobj)

    def reduce(self, sendobj: Any, op: Callable[[Any, Any], Any] = SUM, root: int = 0) -> Any:
        """Combine the objects of all ranks with `op` in rank order; the root returns the result, others None."""
        return objects.reduce(self, sendobj, op, root)

    def allreduce(self, sendobj: Any, op: Callable[[Any, Any], Any] = SUM) -> Any:
        """Combine the objects of all ranks with `op` in rank order; all return the result."""
        return objects.allreduce(self, sendobj, op)


@complete
class Intracomm(Comm):
    """A communicator whose ranks all talk to each other."""

    __slots__ = ()

    def scan(self, sendobj: Any, op: Callable[[Any, Any], Any] = SUM) -> Any:
        """Combine the objects of ranks 0 to this one with `op` in rank order."""
        return objects.scan(self, sendobj, op)

    def exscan(self, sendobj: Any, op: Callable[[Any, Any], Any] = SUM) -> Any:
        """Combine the objects of the ranks below this one with `op` in rank order; None on rank 0."""
        return objects.exscan(self, sendobj, op)


@complete
class Intercomm(Comm):
    """A communicator between two groups; not supported yet."""

    __slots__ = ()


@complete
class Topocomm(Intracomm):
    """A communicator with a topology; not supported yet."""

    __slots__ = ()


@complete
class Cartcomm(Topocomm):
    """A communicator of a grid; not supported yet."""

    __slots__ = ()


@complete
class Graphcomm(Topocomm):
    """A communicator of a graph; not supported yet."""

    __slots__ = ()


@complete
class Distgraphcomm(Topocomm):
    """A communicator of a distributed graph; not supported yet."""

    __slots__ = ()


def _take_context(context: int) -> int:
    global _next_context
    if context > _LAST_CONTEXT:
        raise Exception(CLASSES["ERR_COMM"][0], f"all {_LAST_CONTEXT // 2} communicators were used")
    _next_context = max(_next_context, context + 2)
    return context


COMM_NULL = Comm()
COMM_WORLD = Intracomm()
COMM_SELF = Intracomm()
COMM_WORLD._define_later(0)
COMM_SELF._define_later(2)
COMM_WORLD._name = "MPI_COMM_WORLD"
COMM_SELF._name = "MPI_COMM_SELF"


def _predefined(context: int) -> Intracomm:
    return COMM_SELF if context else COMM_WORLD


def _resolve_world() -> None:
    """Find out who we are; no communication."""
    boot = runtime.bootstrap()
    COMM_WORLD._define(0, range(boot.size), boot.rank)
    COMM_SELF._define(2, [boot.rank], 0)


def _enter_world() -> None:
    COMM_WORLD.resolve()
    COMM_WORLD._enter()
    COMM_SELF._enter()


runtime.when_ready(_enter_world)
_comm.register(Request, _resolve_world, collectives.build, SUM, reserve_buffered)
