"""Memory from the runtime and the buffer of Bsend (MPI 4.1, sections 3.6 and 9.2)."""

from __future__ import annotations

import ctypes
import mmap
import threading
from typing import Any

from ..bindings import request as _request
from ..bindings.buffers import address_of, size_of
from .constants import BSEND_OVERHEAD
from .error_classes import CLASSES
from .errors import Exception

Memory = memoryview


def from_address(address: int, nbytes: int, readonly: bool = False) -> memoryview:
    """Return a view on `nbytes` bytes at `address`, which the caller keeps valid."""
    if nbytes == 0:
        return memoryview(b"" if readonly else bytearray())
    view = memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")
    return view.toreadonly() if readonly else view


def Alloc_mem(size: int, info: object = None) -> memoryview:
    """Return `size` bytes of zeroed, page-aligned memory."""
    if size < 0:
        raise Exception(CLASSES["ERR_ARG"][0], f"Alloc_mem: size is {size}, must not be negative")
    return memoryview(mmap.mmap(-1, size)) if size else memoryview(bytearray())


def Free_mem(mem: memoryview) -> None:
    """Give back memory from Alloc_mem; views on it raise ValueError afterwards."""
    owner: Any = mem.obj
    mem.release()
    if isinstance(owner, mmap.mmap):
        owner.close()


def Get_address(location: Any) -> int:
    """Return the address of a buffer."""
    return address_of(location)


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
        _attached.size = size_of(buf)
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
