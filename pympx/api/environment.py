"""Start and end, time, versions (MPI 4.1, chapters 9 and 11)."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Sequence
from math import prod
from time import perf_counter

from .. import __version__, rc, runtime
from .constants import SUBVERSION, THREAD_MULTIPLE, VERSION
from .error_classes import CLASSES
from .errors import Exception, UnsupportedError
from .info import Info

if rc.errors not in ("exception", "default"):
    raise UnsupportedError(f"pympx.rc.errors = {rc.errors!r}")
_initialized = rc.initialize


def Init() -> None:
    """Begin. Importing pympx.MPI has done it unless pympx.rc.initialize is false. Raises ERR_OTHER after Finalize."""
    global _initialized
    if runtime.is_finalized():
        raise Exception(CLASSES["ERR_OTHER"][0], "Init: pympx was finalized and cannot start again")
    _initialized = True


def Init_thread(required: int = THREAD_MULTIPLE) -> int:
    """Return the thread support provided, THREAD_MULTIPLE always."""
    Init()
    return THREAD_MULTIPLE


def Finalize() -> None:
    """Leave the job in order; collective. Also runs at exit."""
    runtime.finalize()


def Is_initialized() -> bool:
    """Return whether Init was called, or importing did it; also after Finalize."""
    return _initialized


def Is_finalized() -> bool:
    """Return whether Finalize was called."""
    return runtime.is_finalized()


def Query_thread() -> int:
    """Return THREAD_MULTIPLE: any thread may call anything."""
    return THREAD_MULTIPLE


def Is_thread_main() -> bool:
    """Return whether this is the main thread."""
    return threading.current_thread() is threading.main_thread()


def Wtime() -> float:
    """Return seconds since some moment in the past."""
    return perf_counter()


def Wtick() -> float:
    """Return the resolution of Wtime in seconds."""
    return 1e-9


def Get_version() -> tuple[int, int]:
    """Return the version of the MPI standard that the API follows; README.md lists what is supported."""
    return VERSION, SUBVERSION


def Get_library_version() -> str:
    """Return the library's name and version."""
    return f"pympx {__version__} (Python {sys.version.split()[0]})"


def get_vendor() -> tuple[str, tuple[int, int, int]]:
    """Return ("pympx", (major, minor, micro))."""
    major, minor, micro = (int(part) for part in __version__.split("."))
    return "pympx", (major, minor, micro)


def Get_processor_name() -> str:
    """Return the host's name."""
    return socket.gethostname()


def Pcontrol(level: int) -> None:
    """Do nothing: no profiler listens."""


def Get_hw_resource_info() -> Info:
    """Return what this process runs on: key `hwloc://Machine` is set, as on every host (MPI 4.1, section 9.1.2)."""
    return Info.Create({"hwloc://Machine": "true"})


def Get_error_class(errorcode: int) -> int:
    """Return the class of an error code."""
    return Exception(errorcode).Get_error_class()


def Get_error_string(errorcode: int) -> str:
    """Return the sentence for an error code."""
    return Exception(errorcode).Get_error_string()


def Compute_dims(nnodes: int, dims: int | Sequence[int]) -> list[int]:
    """Return a balanced grid of `nnodes` ranks: the dimensions that are 0 are chosen, largest first; others stay.

    dims: the given dimensions, or how many there are. Raises ERR_DIMS when the given ones do not divide nnodes.
    """
    given = [0] * dims if isinstance(dims, int) else [int(n) for n in dims]
    fixed = prod(n for n in given if n)
    if nnodes < 1 or min(given, default=0) < 0 or nnodes % fixed or (0 not in given and fixed != nnodes):
        raise Exception(CLASSES["ERR_DIMS"][0], f"Compute_dims: {nnodes} ranks do not fill a grid of {given}")
    free = given.count(0)
    chosen = _balanced(nnodes // fixed, free, nnodes // fixed) if free else []
    return [n or chosen.pop(0) for n in given]


def _balanced(total: int, parts: int, limit: int) -> list[int]:
    """Return the factorization of `total` into `parts` factors <= limit, descending, the first as small as can be; [] if none."""
    if parts == 1:
        return [total] if total <= limit else []
    for first in range(1, min(total, limit) + 1):
        if total % first == 0 and first**parts >= total:
            rest = _balanced(total // first, parts - 1, first)
            if rest:
                return [first, *rest]
    return []
