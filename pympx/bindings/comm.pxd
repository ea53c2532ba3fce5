from libc.stdint cimport int32_t, int64_t, uint32_t

from .buffers cimport Message
from .engine cimport Request as EngineRequest
from .engine cimport SendMode
from .op cimport Reduction
from .request cimport Request

cdef class Comm:
    cdef int state                  # COMM_NULL, valid, freed
    cdef uint32_t context           # point-to-point; + 1: collectives
    cdef readonly int rank_         # -1 until the world is known
    cdef int size_
    cdef int32_t *world             # communicator rank -> world rank
    cdef int32_t *inverse           # world rank -> communicator rank or -1; NULL: the same
    cdef int tag                    # of the next collective
    cdef dict schedules
    cdef CachedSchedule barrier_schedule
    cdef object __weakref__

    cdef int check(self) except -1
    cdef bint revoked(self) except -1
    cdef int prepare(self) except -1
    cdef int check_peer(self, int rank, str what) except -1
    cdef int rank_of(self, int32_t world) noexcept
    cdef int send_blocking(self, const void *buffer, int64_t n, int dest, int tag, SendMode mode, Message *m, object keep) except -1
    cdef int receive_blocking(self, Message *m, int source, int tag, object status) except -1
    cdef Request start_send(self, Request r, const void *buffer, int64_t n, int dest, int tag, SendMode mode, str what)
    cdef int run(self, CachedSchedule s, Message *send, Message *receive, Reduction reduction, str what) except -1
    cdef CachedSchedule schedule(self, tuple key)
    cdef int check_root(self, int root, object part, str what) except -1
    cdef int check_destination(self, int dest, int tag) except -1
    cdef int send_buffer(self, object buf, int dest, int tag, SendMode mode) except -1
    cdef Request isend_buffer(self, object buf, int dest, int tag, SendMode mode, str what)
    cdef int send_copy(self, bytes copy, int dest, int tag) except -1
    cdef Request nothing(self)
    cdef int source_of(self, int source, int tag) except -3
    cdef Request start_receive(self, Request r, int source, int tag, bint allocate, str what)
    cdef Request isend_object(self, object obj, int dest, int tag, SendMode mode, str what)
    cdef int same_size(self, Message *send, Message *receive, str what) except -1
    cdef int run_reduce(self, str name, object sendbuf, object recvbuf, object op, int place, int root, str what) except -1
    cdef int run_reducing(self, str name, object sendbuf, object recvbuf, object op, tuple sizes, str what) except -1
    cdef int64_t block_of(self, Message *whole, str what) except -1
    cdef int run_blocks(self, str name, object part, object whole, int place, int root, bint gathers, bint v, str what) except -1
    cdef int run_exchange(self, object sendbuf, object recvbuf, bint typed, str what) except -1

cdef class CachedSchedule:
    cdef object words
    cdef void *schedule             # mpx::Schedule *
