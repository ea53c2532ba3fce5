from libc.stdint cimport int32_t, int64_t

from .buffers cimport Message
from .engine cimport Request as EngineRequest

cdef enum State:
    NULL_REQUEST = 0   # REQUEST_NULL
    ACTIVE = 1         # the engine works on it
    NOBODY = 2         # to or from PROC_NULL: complete, without a message
    INACTIVE = 3       # a persistent request between two starts
    ALIAS = 4          # another name for the request `keep`

cdef class Request:
    cdef EngineRequest *handle
    cdef int state
    cdef bint is_object              # a receive of a pickled object
    cdef Message message
    cdef object keep                 # what else must live until the end: payload, schedule, reduction
    cdef object comm                 # owner of `inverse`
    cdef const int32_t *inverse      # world rank -> rank; NULL: the same
    cdef Request companion           # the send of an Isendrecv
    cdef str what
    cdef object persistent           # callable that starts it again
    cdef object then                 # called once it ended well
    cdef bint is_done(self) except -1
    cdef int poll(self) except -1
    cdef object finish(self, object status)
    cdef int source(self) noexcept

cdef Request new_request(object cls)
cdef int orphan(EngineRequest *handle, Message *message, Message *second, object keep, bint buffered) except -1
cdef int collect_orphans() except -1
cdef EngineRequest *pending(Request r) noexcept
