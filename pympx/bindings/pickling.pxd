from libc.stdint cimport uint64_t

cdef class Chunk:
    cdef char *data
    cdef uint64_t length

cdef bytes dumps(object obj)
cdef object loads(Chunk chunk)
cdef Chunk own(void *data, uint64_t length)
