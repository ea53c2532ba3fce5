"""Buffer arguments: any object with the buffer protocol, [buffer, count, datatype] and its shorter and longer forms (MPI 4.1, 3.2.2).

decode() fills in a Message, without allocating for plain contiguous buffers. A Message holds the memory until it goes out of scope.
"""
from cpython.buffer cimport PyBUF_ANY_CONTIGUOUS, PyBUF_FORMAT, PyBUF_WRITABLE, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport int64_t

from .datatype cimport BYTE, Datatype, datatype_from, datatype_of_format

import operator
from itertools import accumulate

cdef object exotic = None
cdef object IN_PLACE = None


def register(decode_exotic, in_place):
    """Set what decodes objects without the buffer protocol, (object, writable) -> (address, nbytes, format, owner), and IN_PLACE."""
    global exotic, IN_PLACE
    exotic = decode_exotic
    IN_PLACE = in_place


cdef void empty(Message *m) noexcept:
    m.release()
    m.address = NULL
    m.count = m.nbytes = 0
    m.datatype = <PyObject *>BYTE


cdef bint has_view(object buf) except -1:
    """Whether Python can look at the memory at all, writable and contiguous or not."""
    try:
        memoryview(buf).release()
    except (TypeError, BufferError, ValueError):
        return False
    return True


cdef int explain(object buf, bint writable) except -1:
    """Raise for a buffer that PyObject_GetBuffer refused."""
    cdef object view
    try:
        view = memoryview(buf)
    except (TypeError, BufferError, ValueError) as error:
        raise BufferError(f"{type(buf).__name__}: {error}") from None
    if writable and view.readonly:
        raise BufferError(f"{type(buf).__name__} of {view.nbytes} bytes is read-only; receiving needs a writable buffer")
    raise BufferError(f"{type(buf).__name__} of shape {view.shape} with strides {view.strides} is not contiguous; "
                      "pass a contiguous copy (numpy.ascontiguousarray)")


cdef Datatype take_memory(object buf, Message *m, bint writable):
    """Get hold of the memory: address and nbytes; return the datatype of its items, None for bytes."""
    cdef int flags = PyBUF_ANY_CONTIGUOUS | PyBUF_FORMAT
    if writable:
        flags |= PyBUF_WRITABLE
    if PyObject_CheckBuffer(buf):
        try:
            PyObject_GetBuffer(buf, &m.view, flags)
        except (BufferError, ValueError):
            if has_view(buf) or not hasattr(buf, "__array_interface__"):
                explain(buf, writable)
        else:
            m.has_view = True
            m.address = m.view.buf
            m.nbytes = m.view.len
            return datatype_of_format(m.view.format, m.view.itemsize)
    address, nbytes, code, owner = exotic(buf, writable)
    m.address = <void *><size_t>address
    m.nbytes = nbytes
    Py_INCREF(owner)
    m.owner = <PyObject *>owner
    return datatype_from(code) if code is not None else None


cdef int decode(object buf, Message *m, bint writable) except -1:
    cdef Datatype found = None
    empty(m)
    if buf is None:
        return 0
    if type(buf) is list or type(buf) is tuple:
        return decode_sequence(buf, m, writable)
    found = take_memory(buf, m, writable)
    if found is None:
        found = BYTE
    m.datatype = <PyObject *>found
    m.count = m.nbytes // found.size
    return 0


def memory_of(buf, bint writable):
    """Return (address, bytes) of a buffer argument's memory."""
    cdef Message m
    decode(buf, &m, writable)
    return <size_t>m.address, m.nbytes


cdef object index_or_none(object value):
    return None if value is None else operator.index(value)


cdef tuple split(object spec):
    """(buffer, count part, displacement part, datatype or None) of a sequence."""
    cdef Py_ssize_t n = len(spec)
    if n == 2:
        if isinstance(spec[1], (Datatype, str)):
            return spec[0], None, None, spec[1]
        return split((spec[0], spec[1], None))
    if n == 3:
        # (counts, displacements), unless it is a pair of counts: those come with 4 items or as a list
        if isinstance(spec[1], tuple) and len(spec[1]) == 2:
            return spec[0], spec[1][0], spec[1][1], spec[2]
        return spec[0], spec[1], None, spec[2]
    if n == 4:
        return spec[0], spec[1], spec[2], spec[3]
    raise ValueError(f"message: expecting [buffer, count, displacement, datatype] with 2 to 4 items, got {n}")


cdef Datatype begin_sequence(object buffer, object datatype, Message *m, bint writable):
    cdef Datatype found = None
    if buffer is not None:
        found = take_memory(buffer, m, writable)
    if datatype is not None:
        found = datatype_from(datatype)
    elif found is None:
        found = BYTE
    m.datatype = <PyObject *>found
    return found


cdef int decode_sequence(object spec, Message *m, bint writable) except -1:
    cdef Datatype kind = None
    cdef int64_t available, displacement, count
    buffer, count_part, displacement_part, datatype = split(spec)
    kind = begin_sequence(buffer, datatype, m, writable)
    available = m.nbytes
    displacement = index_or_none(displacement_part) or 0
    if displacement < 0:
        raise ValueError(f"message: displacement is {displacement}, must not be negative")
    if count_part is None:
        if (available - displacement * kind.size) % kind.size or available < displacement * kind.size:
            raise ValueError(f"message: buffer of {available} bytes from item {displacement} on holds no whole number of "
                             f"{kind.name} of {kind.size} bytes")
        count = available // kind.size - displacement
    else:
        count = operator.index(count_part)
    if count < 0:
        raise ValueError(f"message: count is {count}, must not be negative")
    if (displacement + count) * kind.size > available:
        raise ValueError(f"message: {count} {kind.name} from item {displacement} on need {(displacement + count) * kind.size} bytes, "
                         f"buffer holds {available}")
    m.address = <char *>m.address + displacement * kind.size
    m.count = count
    m.nbytes = count * kind.size
    return 0


cdef int decode_whole(object buf, Message *m, bint writable, int ranks) except -1:
    """A buffer with a block for every rank: in [buffer, count, datatype] the count is that of one block."""
    if type(buf) is list or type(buf) is tuple:
        buffer, count, displacement, datatype = split(buf)
        buf = buffer, None if count is None else operator.index(count) * ranks, displacement, datatype
    return decode(buf, m, writable)


cdef tuple decode_blocks(object buf, Message *m, bint writable, int blocks, bint typed):
    """Decode the argument of a v-collective: returns (bytes per block, byte displacements), each of `blocks` ints.

    typed: every block has a datatype of its own, and displacements are bytes.
    """
    cdef Datatype kind = None
    cdef int64_t unit
    cdef object buffer = buf, counts = None, displacements = None, datatype = None, kinds
    empty(m)
    if typed and isinstance(buf, (list, tuple)) and len(buf) == 2:
        buffer, datatype = buf
    elif type(buf) is list or type(buf) is tuple:
        buffer, counts, displacements, datatype = split(buf)
    if typed and (not isinstance(datatype, (list, tuple)) or (counts is None) != (displacements is None)):
        raise TypeError("message: expecting [buffer, counts, displacements, datatypes] with a list of datatypes, one per rank")
    if typed and counts is None:
        counts, displacements = 1, 0
    kind = begin_sequence(buffer, BYTE if typed else datatype, m, writable)
    kinds = [datatype_from(t) for t in datatype] if typed else [kind] * blocks
    unit = kind.size
    if counts is None:
        items = m.nbytes // unit
        counts = [items // blocks + (block < items % blocks) for block in range(blocks)]
    elif isinstance(counts, int):
        counts = [counts] * blocks
    else:
        counts = [operator.index(c) for c in counts]
    sizes = [c * (<Datatype>k).size for c, k in zip(counts, kinds)]
    if displacements is None:
        displacements = [0, *accumulate(sizes)][:blocks]
    elif isinstance(displacements, int):
        displacements = [displacements * unit * block for block in range(blocks)]
    else:
        displacements = [operator.index(d) * unit for d in displacements]
    if len(counts) != blocks or len(displacements) != blocks or len(kinds) != blocks:
        raise ValueError(f"message: {len(counts)} counts, {len(displacements)} displacements, {len(kinds)} datatypes for {blocks} ranks")
    for block, (k, n, d) in enumerate(zip(kinds, sizes, displacements)):
        if n < 0 or d < 0:
            raise ValueError(f"message: block {block} has count {counts[block]} and displacement {d // unit}, must not be negative")
        if n and n + d > m.nbytes:
            raise ValueError(f"message: block {block} of {counts[block]} {k.name} from {'byte' if typed else 'item'} {d // unit} on needs "
                             f"{n + d} bytes, buffer holds {m.nbytes}")
    m.count = sum(counts)
    return tuple(sizes), tuple(displacements)
