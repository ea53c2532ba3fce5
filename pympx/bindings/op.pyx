"""Reduction operations: predefined ones run in the engine, users' ones with the GIL by whoever waits."""
from . cimport runtime
from .buffers cimport Message, decode
from .datatype cimport Datatype
from .engine cimport ReduceOp, reduce_function
from .errors cimport ERR_OP, fail

cdef dict reductions = {}
cdef int next_handle = 64


cdef class Op:
    """A reduction operation (MPI 4.1, section 6.9). Calling it applies it to two Python objects."""

    def __cinit__(self, Op op=None):
        self.name, self.handle, self.commutative, self.function, self.code = "MPI_OP_NULL", 0, True, None, ReduceOp.kSum
        if op is not None:
            self.name, self.handle, self.commutative, self.function, self.code = (
                op.name, op.handle, op.commutative, op.function, op.code)

    def _define(self, str name, int handle, int code, bint commutative, function):
        """Fill in a predefined operation; once, by api/op.py."""
        self.name, self.handle, self.code, self.commutative, self.function = name, handle, <ReduceOp>code, commutative, function
        return self

    def _define_user(self, function, bint commutative):
        """Fill in a user's operation: function(inbuf, inoutbuf, datatype) writes inbuf op inoutbuf to inoutbuf."""
        global next_handle
        if not callable(function):
            raise TypeError(f"a reduction function must be callable, not {type(function).__name__}")
        self.name, self.handle, self.commutative, self.function = "", next_handle, commutative, function
        next_handle += 1
        return self

    def _clear(self):
        self.handle, self.function = 0, None

    @property
    def is_predefined(self):
        """Whether this is one of MPI's own operations, OP_NULL included."""
        return self.handle < 64

    def __eq__(self, other):
        if not isinstance(other, Op):
            return NotImplemented
        return self.handle == (<Op>other).handle

    def __hash__(self):
        return hash(self.handle)

    def __bool__(self):
        return self.handle != 0

    def __call__(self, x, y):
        if self.handle == 0:
            fail(ERR_OP, "the operation is OP_NULL")
        return self.function(x, y)

    def Reduce_local(self, inbuf, inoutbuf):
        """Write inbuf op inoutbuf to inoutbuf, item by item, without communication."""
        cdef Message x, y
        cdef Reduction r
        decode(inbuf, &x, False)
        decode(inoutbuf, &y, True)
        if x.count != y.count or x.datatype != y.datatype:
            raise ValueError(f"Reduce_local: inbuf has {x.count} {(<Datatype>x.datatype).name}, "
                             f"inoutbuf {y.count} {(<Datatype>y.datatype).name}")
        r = reduction_of(self, <Datatype>x.datatype)
        if r.native != NULL:
            r.native(x.address, y.address, x.count)
        else:
            runtime.reducer(r, <size_t>x.address, <size_t>y.address, x.nbytes)


cdef class Reduction:
    pass


cdef Reduction reduction_of(object op, Datatype datatype):
    """What applies `op` to elements of `datatype`. Raises ERR_OP where MPI defines none."""
    if not isinstance(op, Op):
        raise TypeError(f"op: expecting Op, not {type(op).__name__}")
    cdef Op o = <Op>op
    cdef tuple key
    if o.handle == 0:
        fail(ERR_OP, "the operation is OP_NULL or was freed")
    cdef Reduction r
    if o.handle < 64:
        key = (o.handle, datatype.handle)
        r = reductions.get(key)
        if r is not None:
            return r
    r = Reduction()
    r.op, r.datatype = o, datatype
    r.native = NULL
    if o.handle < 64:
        r.native = reduce_function(o.code, datatype.element)
        if r.native == NULL:
            fail(ERR_OP, f"{o.name} is not defined for {datatype.name}")
        reductions[key] = r
    return r
