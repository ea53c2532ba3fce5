"""What event loops ask of the engine: its descriptor, a turn of it, and to hear of the end of requests."""
from libc.stdint cimport uint64_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from ..bindings cimport runtime
from ..bindings.engine cimport Request as EngineRequest
from ..bindings.request cimport Request, pending

cdef extern from "engine/engine.h" namespace "mpx" nogil:
    cdef cppclass LoopEngine "mpx::Engine":
        int watch_fd() except +
        int watch(vector[uint64_t] *)
        cbool watch_request(EngineRequest *, uint64_t)


cdef inline LoopEngine *engine() noexcept nogil:
    return <LoopEngine *>runtime.engine


def fileno():
    """Return the descriptor that is readable when turn() has something to do. Raises RuntimeError when there can be none."""
    runtime.start()
    return engine().watch_fd()


def turn():
    """Let the engine work; return (keys of watched requests that ended, seconds until the next turn is due though nothing rings)."""
    cdef vector[uint64_t] ended
    cdef int limit_ms
    if runtime.engine == NULL:
        return [], 1.0
    with nogil:
        limit_ms = engine().watch(&ended)
    runtime.run_parked()
    return ended, limit_ms * 1e-3


def watch(Request request, uint64_t key):
    """Have turn() report `key`, an even number above 0, when a part of `request` has ended. Returns False when all of it has."""
    cdef EngineRequest *handle = pending(request)
    cdef cbool watched = False
    while handle != NULL and not watched:
        with nogil:
            watched = engine().watch_request(handle, key)
        if not watched:
            handle = pending(request)
    return watched
