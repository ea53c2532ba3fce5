from cpython.ref cimport PyObject
from libc.stdint cimport int64_t

from .datatype cimport Datatype

# A decoded buffer argument. The memory stays valid until release().
cdef struct Message:
    void *address
    int64_t count            # items of `datatype`
    int64_t nbytes           # count * size
    PyObject *datatype       # borrowed: datatypes live as long as the process
    Py_buffer view
    bint has_view
    PyObject *owner          # keeps exotic memory (DLPack, array interfaces) alive; owned reference or NULL

cdef int decode(object buf, Message *m, bint writable) except -1
cdef tuple decode_blocks(object buf, Message *m, bint writable, int blocks)
cdef void empty(Message *m) noexcept
cdef void release(Message *m) noexcept
cdef object IN_PLACE
