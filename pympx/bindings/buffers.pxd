from cpython.ref cimport PyObject
from libc.stdint cimport int64_t

from .datatype cimport Datatype

cdef extern from "message.h" namespace "mpx::python":
    cdef cppclass Message:
        void *address
        int64_t count
        int64_t nbytes
        PyObject *datatype
        Py_buffer view
        bint has_view
        PyObject *owner
        void release() noexcept
        void take(Message &other) noexcept

cdef int decode(object buf, Message *m, bint writable) except -1
cdef int decode_whole(object buf, Message *m, bint writable, int ranks) except -1
cdef tuple decode_blocks(object buf, Message *m, bint writable, int blocks, bint typed)
cdef object IN_PLACE
