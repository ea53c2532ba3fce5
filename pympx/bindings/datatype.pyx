"""Predefined datatypes. Derived ones come later: every datatype here is contiguous."""
from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport int64_t

from .engine cimport ElementType
from .errors cimport ERR_TYPE, fail

cdef PyObject *mpx_by_character[128]
cdef dict by_char = {}
cdef dict by_code = {}
cdef dict by_handle = {}
cdef Datatype BYTE = None


cdef class Datatype:
    """A predefined MPI datatype (MPI 4.1, section 3.2.2): a name, a size in bytes, and the C type that reductions apply to."""

    def __cinit__(self, Datatype datatype=None):
        if datatype is not None:
            self.copy(datatype)
        else:
            self.name, self.size, self.typechar, self.handle, self.element = "MPI_DATATYPE_NULL", 0, "", 0, ElementType.kNone

    def _define(self, str name, int size, str typechar, int handle, int element):
        """Fill in a predefined datatype; once, by api/datatype.py."""
        self.name, self.size, self.typechar, self.handle, self.element = name, size, typechar, handle, <ElementType>element
        by_handle[handle] = self
        return self

    cdef int copy(self, Datatype other) except -1:
        self.name, self.size, self.typechar, self.handle, self.element = (
            other.name, other.size, other.typechar, other.handle, other.element)
        return 0

    def __eq__(self, other):
        if not isinstance(other, Datatype):
            return NotImplemented
        return self.handle == (<Datatype>other).handle

    def __hash__(self):
        return hash(self.handle)

    def __bool__(self):
        return self.handle != 0


def register_character(str character, Datatype datatype):
    """Let buffers with the one-letter format `character` have this datatype."""
    by_char[character] = datatype
    if len(character) == 1 and ord(character) < 128:
        Py_INCREF(datatype)  # lives as long as the process
        mpx_by_character[ord(character)] = <PyObject *>datatype


def register_code(str code, Datatype datatype):
    """Let [buffer, count, code] name this datatype: "d", "f8", "MPI_DOUBLE"."""
    global BYTE
    by_code[code] = datatype
    if code == "MPI_BYTE":
        BYTE = datatype


def lookup(str code):
    """Return the datatype of a code. Raises KeyError for an unknown one."""
    return by_code[code]


cdef Datatype datatype_of_format(const char *format, int64_t itemsize):
    """The datatype of a buffer's items. Formats that no datatype has (structures, characters) are bytes: None."""
    if format == NULL:
        return BYTE
    if format[0] == b"@" or format[0] == b"=" or format[0] == b"<":
        format += 1
    cdef Datatype found
    if format[0] != 0 and format[1] == 0:
        if format[0] == b"O":
            raise TypeError("message: items are Python objects, which have no bytes to send: use the lower-case method")
        if mpx_by_character[format[0] & 127] == NULL:
            return None
        found = <Datatype>mpx_by_character[format[0] & 127]
    else:
        text = format.decode("latin-1")
        found = by_char.get(text)
        if found is None and "O" in "".join(text.split(":")[::2]):  # names of fields stand between colons
            raise TypeError(
                f"message: items of format {text!r} hold Python objects, which have no bytes to send; use the lower-case method")
    return found if found is not None and found.size == itemsize else None


cdef Datatype datatype_from(object spec):
    if isinstance(spec, Datatype):
        if (<Datatype>spec).handle == 0:
            fail(ERR_TYPE, "the datatype is DATATYPE_NULL")
        return spec
    cdef object found = by_code.get(spec) if isinstance(spec, str) else None
    if found is None:
        raise KeyError(spec) if isinstance(spec, str) else TypeError(f"datatype: expecting Datatype or str, not {type(spec).__name__}")
    return found
