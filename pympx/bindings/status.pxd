from libc.stdint cimport int64_t

from .engine cimport Status as EngineStatus

cdef struct StatusFields:
    int count_low
    int count_high_and_cancelled
    int source
    int tag
    int error

cdef class Status:
    cdef StatusFields fields
    cdef void set(self, int source, int tag, int error, int64_t count, bint cancelled) noexcept
    cdef int64_t bytes(self) noexcept

cdef int fill_status(object status, const EngineStatus *from_engine, int source) except -1
cdef int fill_empty(object status, int source) except -1
