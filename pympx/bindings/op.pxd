from .engine cimport ReduceFn, ReduceOp
from .datatype cimport Datatype

cdef class Op:
    cdef readonly str name
    cdef int handle          # 0: OP_NULL, below 64: predefined
    cdef readonly bint commutative
    cdef readonly object function     # predefined: of two Python objects; user's: of two buffers and a datatype
    cdef ReduceOp code

cdef class Reduction:
    """An operation together with the datatype that a collective applies it to; what a schedule's reductions refer to."""
    cdef readonly Op op
    cdef readonly Datatype datatype
    cdef ReduceFn native              # NULL: run `op.function` with the GIL

cdef Reduction reduction_of(object op, Datatype datatype)
