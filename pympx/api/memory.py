"""Memory from the runtime and the buffer of Bsend (MPI 4.1, sections 3.6 and 9.2)."""

from __future__ import annotations

import ctypes
import mmap
import threading
from typing import Any

from ..bindings import request as _request
from ..bindings.buffers import memory_of
from ..bindings.memory import Memory as _Memory
from .constants import BSEND_OVERHEAD
from .error_classes import CLASSES
from .errors import Exception

Memory = memoryview


class buffer(_Memory):  # noqa: N801 - mpi4py's name
    """`nbytes` bytes at `address`. buffer(object) is buffer.frombuffer(object), read-only when the object is."""

    __slots__ = ()

    def __init__(self, *args: Any) -> None:
        if len(args) > 1:
            raise TypeError(f"buffer takes at most one object, got {len(args)}")
        if args:
            try:
                self._hold(args[0], False)
            except BufferError:
                self._hold(args[0], True)

    @staticmethod
    def allocate(nbytes: int, clear: bool = False) -> buffer:
        """Return new memory, always zeroed. Raises ValueError for a negative size."""
        if nbytes < 0:
            raise ValueError(f"buffer.allocate: size is {nbytes}, must not be negative")
        return buffer(bytearray(nbytes))

    @staticmethod
    def frombuffer(obj: Any, readonly: bool = False) -> buffer:
        """Return a view on an object with the buffer protocol, which it keeps alive. Raises BufferError when it cannot be written to."""
        view = buffer()
        view._hold(obj, readonly)
        return view

    @staticmethod
    def fromaddress(address: int, nbytes: int, readonly: bool = False) -> buffer:
        """Return a view on memory that the caller keeps valid. Raises ValueError for a negative size or the null address."""
        if nbytes < 0:
            raise ValueError(f"buffer.fromaddress: size is {nbytes}, must not be negative")
        if address == 0 and nbytes:
            raise ValueError(f"buffer.fromaddress: {nbytes} bytes at the null address")
        view = buffer()
        view._point(address, nbytes, readonly)
        return view

    def __len__(self) -> int:
        return self.nbytes

    def __getitem__(self, item: Any) -> Any:
        found = memoryview(self)[self._contiguous(item)]
        return buffer(found) if isinstance(found, memoryview) else found

    def __setitem__(self, item: Any, value: Any) -> None:
        if isinstance(item, slice):
            count = len(range(*self._contiguous(item).indices(self.nbytes)))
            value = bytes([value]) * count if isinstance(value, int) else memoryview(value).cast("B")
        memoryview(self)[item] = value

    def __delitem__(self, item: Any) -> None:
        raise NotImplementedError("buffer: bytes cannot be deleted")

    def _contiguous(self, item: Any) -> Any:
        if isinstance(item, slice) and item.indices(self.nbytes)[2] != 1:
            raise IndexError(f"buffer: a slice must be contiguous, its step is {item.step}")
        return item

    def cast(self, format: Any, *shape: Any) -> memoryview[Any]:
        """Return a memoryview of another format and shape."""
        view: memoryview[Any] = memoryview(self).cast(format, *shape)
        return view

    def tobytes(self, order: Any = None) -> bytes:
        """Return a copy."""
        return memoryview(self).tobytes(order)

    def toreadonly(self) -> buffer:
        """Return a read-only view of the same memory."""
        view = buffer()
        if self.obj is not None:
            view._hold(self.obj, True)
        view._point(self.address, self.nbytes, True)
        return view

    format = property(lambda self: "B", doc="Format of an item: B, a byte.")
    itemsize = property(lambda self: 1, doc="Bytes of an item.")


memory = buffer  # mpi4py's former name of it


def from_address(address: int, nbytes: int, readonly: bool = False) -> memoryview:
    """Return a view on `nbytes` bytes at `address`, which the caller keeps valid."""
    if nbytes == 0:
        return memoryview(b"" if readonly else bytearray())
    view = memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")
    return view.toreadonly() if readonly else view


def Alloc_mem(size: int, info: object = None) -> buffer:
    """Return `size` bytes of zeroed, page-aligned memory."""
    if size < 0:
        raise Exception(CLASSES["ERR_ARG"][0], f"Alloc_mem: size is {size}, must not be negative")
    return buffer(mmap.mmap(-1, size) if size else bytearray())


def Free_mem(mem: buffer) -> None:
    """Give back memory from Alloc_mem, which is empty afterwards; arrays and memoryviews on it keep theirs until they go."""
    mem.release()


def Get_address(location: Any) -> int:
    """Return the address of a buffer."""
    return memory_of(location, False)[0]


def Aint_add(base: int, disp: int) -> int:
    """Return base + disp as an address."""
    return (base + disp + 2**63) % 2**64 - 2**63


def Aint_diff(addr1: int, addr2: int) -> int:
    """Return addr1 - addr2 as a displacement."""
    return Aint_add(addr1, -addr2)


class _Attached:
    """The buffer given to Attach_buffer: only its size counts, copies live in Python's memory."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.buffer: Any = None
        self.size = 0
        self.used = 0


_attached = _Attached()


def Attach_buffer(buf: Any) -> None:
    """Let Bsend buffer as many bytes as `buf` has; every message takes its size + BSEND_OVERHEAD."""
    with _attached.lock:
        if _attached.buffer is not None:
            raise Exception(CLASSES["ERR_BUFFER"][0], f"Attach_buffer: a buffer of {_attached.size} bytes is attached already")
        _attached.size = memory_of(buf, True)[1]
        _attached.buffer, _attached.used = buf, 0


def Detach_buffer() -> Any:
    """Wait until all buffered messages have left; return the buffer."""
    _request.wait_buffered()
    with _attached.lock:
        if _attached.buffer is None:
            raise Exception(CLASSES["ERR_BUFFER"][0], "Detach_buffer: no buffer is attached")
        buffer, _attached.buffer = _attached.buffer, None
        return buffer


def reserve_buffered(nbytes: int) -> None:
    """Account for one message of Bsend. Raises ERR_BUFFER when the attached buffer is too small."""
    with _attached.lock:
        if _attached.buffer is None:
            raise Exception(CLASSES["ERR_BUFFER"][0], f"Bsend of {nbytes} bytes: no buffer is attached (MPI.Attach_buffer)")
        if _attached.used + nbytes + BSEND_OVERHEAD > _attached.size:
            _request.wait_buffered()
            _attached.used = 0
        if nbytes + BSEND_OVERHEAD > _attached.size:
            raise Exception(
                CLASSES["ERR_BUFFER"][0],
                f"Bsend of {nbytes} bytes needs {nbytes + BSEND_OVERHEAD} bytes of buffer (BSEND_OVERHEAD is {BSEND_OVERHEAD}), "
                f"the attached one has {_attached.size}",
            )
        _attached.used += nbytes + BSEND_OVERHEAD
