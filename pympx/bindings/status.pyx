"""What a completed operation says of itself (MPI 4.1, section 3.2.5)."""
from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport int64_t

from .datatype cimport BYTE, Datatype, datatype_from
from .engine cimport Error
from .engine cimport Status as EngineStatus
from .errors cimport ERR_OTHER, ERR_PROC_FAILED, ERR_TRUNCATE

cdef int ANY_SOURCE = -2
cdef int ANY_TAG = -1
cdef int UNDEFINED = -32766
cdef int CANCELLED = 1 << 30


cdef class Status:
    """Source (rank), tag, error class, size and cancellation of a message. Reusable across calls."""

    def __cinit__(self, Status status=None):
        if status is None:
            self.set(ANY_SOURCE, ANY_TAG, 0, 0, False)
        else:
            self.fields = status.fields

    cdef void set(self, int source, int tag, int error, int64_t count, bint cancelled) noexcept:
        self.fields.count_low = <int>(count & 0xffffffff)
        self.fields.count_high_and_cancelled = <int>(count >> 32) | (CANCELLED if cancelled else 0)
        self.fields.source, self.fields.tag, self.fields.error = source, tag, error

    cdef int64_t bytes(self) noexcept:
        return (<int64_t>(self.fields.count_high_and_cancelled & ~CANCELLED) << 32) | <unsigned int>self.fields.count_low

    def Get_source(self):
        """Return the rank of the sender."""
        return self.fields.source

    def Set_source(self, int source):
        """Set the rank of the sender."""
        self.fields.source = source

    def Get_tag(self):
        """Return the tag."""
        return self.fields.tag

    def Set_tag(self, int tag):
        """Set the tag."""
        self.fields.tag = tag

    def Get_error(self):
        """Return the error class; SUCCESS if there was none."""
        return self.fields.error

    def Set_error(self, int error):
        """Set the error class."""
        self.fields.error = error

    source = property(Get_source, Set_source, doc="Rank of the sender.")
    tag = property(Get_tag, Set_tag, doc="Tag of the message.")
    error = property(Get_error, Set_error, doc="Error class.")

    def Get_count(self, datatype=None):
        """Return how many items of `datatype` (default BYTE) the message has; UNDEFINED if its size is no multiple."""
        cdef Datatype d = BYTE if datatype is None else datatype_from(datatype)
        cdef int64_t n = self.bytes()
        if d.size == 0:
            return 0 if n == 0 else UNDEFINED
        return n // d.size if n % d.size == 0 else UNDEFINED

    def Get_elements(self, datatype):
        """Return how many basic elements of `datatype` the message has."""
        return self.Get_count(datatype)

    def Set_elements(self, datatype, int64_t count):
        """Set the size of the message to `count` items of `datatype`."""
        cdef Datatype d = datatype_from(datatype)
        self.set(self.fields.source, self.fields.tag, self.fields.error, count * d.size, self.Is_cancelled())

    @property
    def count(self):
        """Size of the message in bytes."""
        return self.bytes()

    @count.setter
    def count(self, int64_t value):
        self.set(self.fields.source, self.fields.tag, self.fields.error, value, self.Is_cancelled())

    def Is_cancelled(self):
        """Return whether the operation was cancelled."""
        return (self.fields.count_high_and_cancelled & CANCELLED) != 0

    def Set_cancelled(self, bint flag):
        """Set whether the operation was cancelled."""
        self.set(self.fields.source, self.fields.tag, self.fields.error, self.bytes(), flag)

    cancelled = property(Is_cancelled, Set_cancelled, doc="Whether the operation was cancelled.")

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, &self.fields, sizeof(StatusFields), False, flags)

    def tomemory(self):
        """Return the five C integers of the status as a writable memoryview; source, tag and error are the last three."""
        return memoryview(self).cast("i")

    def __eq__(self, other):
        if not isinstance(other, Status):
            return NotImplemented
        return bytes(self) == bytes(other)

    __hash__ = None

    def __reduce__(self):
        return (_restore, (type(self), bytes(self)))


def _restore(cls, bytes state):
    status = cls()
    memoryview(status).cast("B")[:] = state
    return status


cdef int error_class(const EngineStatus *s) noexcept:
    if s.error == Error.kNone:
        return 0
    if s.error == Error.kTruncate:
        return ERR_TRUNCATE
    if s.error == Error.kProcFailed or s.error == Error.kUnreachable:
        return ERR_PROC_FAILED
    return ERR_OTHER


cdef int fill_status(object status, const EngineStatus *from_engine, int source) except -1:
    """Copy an engine's status; source: the peer's rank in the communicator. None: nothing."""
    if status is None:
        return 0
    if not isinstance(status, Status):
        raise TypeError(f"status: expecting Status or None, not {type(status).__name__}")
    (<Status>status).set(source, from_engine.tag, error_class(from_engine), from_engine.bytes, from_engine.canceled)
    return 0


cdef int fill_empty(object status, int source) except -1:
    """The status of an operation without a message: `source` is ANY_SOURCE, or PROC_NULL for a receive from nobody."""
    if status is None:
        return 0
    if not isinstance(status, Status):
        raise TypeError(f"status: expecting Status or None, not {type(status).__name__}")
    (<Status>status).set(source, ANY_TAG, 0, 0, False)
    return 0
