from libc.stdint cimport int64_t

from .engine cimport ElementType

cdef class Datatype:
    cdef readonly str name
    cdef readonly int64_t size       # bytes; 0 for DATATYPE_NULL
    cdef readonly str typechar       # struct/NumPy character, "" if none
    cdef int handle
    cdef ElementType element
    cdef int copy(self, Datatype other) except -1

cdef Datatype datatype_of_format(const char *format, int64_t itemsize)
cdef Datatype datatype_from(object spec)
cdef Datatype BYTE
