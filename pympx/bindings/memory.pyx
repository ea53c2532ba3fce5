"""What MPI.buffer is made of: a hold on memory that others may look at. The cold methods are in api/memory.py."""
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer


cdef class Memory:
    """Bytes, of another object's memory or at an address."""
    cdef Py_buffer view
    cdef Py_buffer released     # lives on while somebody looks at it
    cdef bint has_released
    cdef Py_ssize_t exports

    def __cinit__(self, *args):
        PyBuffer_FillInfo(&self.view, None, <void *>0, 0, False, PyBUF_SIMPLE)

    def __dealloc__(self):
        PyBuffer_Release(&self.view)
        self.forget()

    cdef int forget(self) except -1:
        if self.has_released:
            self.has_released = False
            PyBuffer_Release(&self.released)
        return 0

    def _hold(self, obj, bint readonly):
        """Take hold of the object's memory. Raises BufferError when it cannot be written to and `readonly` is false."""
        cdef Py_buffer view
        PyObject_GetBuffer(obj, &view, PyBUF_SIMPLE if readonly else PyBUF_WRITABLE)
        self.view = view
        self.view.readonly = readonly

    def _point(self, size_t address, Py_ssize_t nbytes, bint readonly):
        """Mean `nbytes` bytes at `address`: of the memory that is held, or of memory that the caller keeps valid."""
        self.view.buf, self.view.len, self.view.readonly = <void *>address, nbytes, readonly

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.view.buf, self.view.len, self.view.readonly, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1
        if not self.exports:
            self.forget()

    def release(self):
        """Let go of the memory, once nobody looks at it any more; it is empty from now on."""
        if self.has_released:  # empty already
            return
        self.released, self.has_released = self.view, True
        PyBuffer_FillInfo(&self.view, None, <void *>0, 0, False, PyBUF_SIMPLE)
        if not self.exports:
            self.forget()

    @property
    def address(self):
        """Address of the first byte; 0 when empty."""
        return <size_t>self.view.buf

    @property
    def obj(self):
        """The object whose memory it is, None if it has none."""
        return self.view.obj

    @property
    def nbytes(self):
        """Number of bytes."""
        return self.view.len

    @property
    def readonly(self):
        """Whether it cannot be written to."""
        return bool(self.view.readonly)
