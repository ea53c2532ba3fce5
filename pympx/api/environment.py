"""Start and end, time, versions (MPI 4.1, chapters 9 and 11)."""

from __future__ import annotations

import socket
import sys
import threading
from time import perf_counter

from .. import __version__, runtime
from .constants import SUBVERSION, THREAD_MULTIPLE, VERSION
from .errors import CLASSES, Exception

_initialized = True


def Init() -> None:
    """Do nothing: pympx is initialized when it is imported. Raises ERR_OTHER after Finalize."""
    if runtime.is_finalized():
        raise Exception(CLASSES["ERR_OTHER"][0], "Init: pympx was finalized and cannot start again")


def Init_thread(required: int = THREAD_MULTIPLE) -> int:
    """Return the thread support provided, THREAD_MULTIPLE always."""
    Init()
    return THREAD_MULTIPLE


def Finalize() -> None:
    """Leave the job in order; collective. Also runs at exit."""
    runtime.finalize()


def Is_initialized() -> bool:
    """Return whether communication is possible, or was before Finalize."""
    return True


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


def Get_error_class(errorcode: int) -> int:
    """Return the class of an error code."""
    return Exception(errorcode).Get_error_class()


def Get_error_string(errorcode: int) -> str:
    """Return the sentence for an error code."""
    return Exception(errorcode).Get_error_string()
