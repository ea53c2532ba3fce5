"""Python objects as messages: pickle protocol 5 with large buffers out-of-band, in one message.

Without out-of-band buffers the message is the pickle itself, as programs expect that mix Send of a pickle with recv; an empty message is
None. Else: the magic number, the number of buffers, bytes of pickle, bytes of each buffer (64-bit integers), the pickle, the
buffers; each buffer starts at a multiple of 64 from the start. What loads() returns may refer to the message's memory: nothing is copied.
"""
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

import pickle

cdef object dump_object = pickle.dumps
cdef object load_object = pickle.loads
cdef int protocol = 5
cdef enum: ALIGNMENT = 64
# Its first byte in memory is 0, which is no opcode of pickle.
cdef uint64_t MAGIC = 0x786d707962666f00
# Smaller buffers travel inside the pickle: one copy costs less than one more object.
cdef Py_ssize_t threshold = 4096


def configure(dumps, loads, int protocol_number, Py_ssize_t out_of_band_from):
    """Set what pickles and unpickles, and from how many bytes on a buffer travels out-of-band."""
    global dump_object, load_object, protocol, threshold
    dump_object, load_object, protocol, threshold = dumps, loads, protocol_number, out_of_band_from


cdef class Chunk:
    """Memory of a received message; freed when the last view on it is gone."""

    def __dealloc__(self):
        free(self.data)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.length, False, flags)


cdef Chunk own(void *data, uint64_t length):
    cdef Chunk chunk = Chunk.__new__(Chunk)
    chunk.data = <char *>data
    chunk.length = length
    return chunk


cdef uint64_t aligned(uint64_t offset) noexcept:
    return (offset + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


cdef class Collector:
    """Keeps the buffers that pickle offers, if they are contiguous and large."""
    cdef list views

    def __call__(self, picklebuffer):
        try:
            view = picklebuffer.raw()
        except BufferError:
            return True  # not contiguous: in the pickle
        if view.nbytes < threshold:
            return True
        self.views.append(view)
        return False


cdef bytes dumps(object obj):
    cdef Collector collector = Collector.__new__(Collector)
    collector.views = []
    cdef bytes body = dump_object(obj, protocol, buffer_callback=collector) if protocol >= 5 else dump_object(obj, protocol)
    cdef uint64_t n = len(collector.views)
    if n == 0 and (PyBytes_GET_SIZE(body) < 8 or (<const uint64_t *>PyBytes_AS_STRING(body))[0] != MAGIC):
        return body
    cdef uint64_t header = 24 + 8 * n
    cdef uint64_t length = header + <uint64_t>PyBytes_GET_SIZE(body)
    cdef uint64_t position
    for view in collector.views:
        length = aligned(length) + <uint64_t>view.nbytes
    cdef bytes message = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
    cdef char *out = PyBytes_AS_STRING(message)
    (<uint64_t *>out)[0] = MAGIC
    (<uint64_t *>out)[1] = n
    (<uint64_t *>out)[2] = <uint64_t>PyBytes_GET_SIZE(body)
    memcpy(out + header, PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
    position = header + <uint64_t>PyBytes_GET_SIZE(body)
    cdef uint64_t i = 0
    cdef const unsigned char[::1] source
    for view in collector.views:
        (<uint64_t *>out)[3 + i] = <uint64_t>view.nbytes
        i += 1
        while position % ALIGNMENT:
            out[position] = 0
            position += 1
        source = view
        with nogil:
            memcpy(out + position, &source[0], source.shape[0])
        position += <uint64_t>source.shape[0]
    return message


cdef object loads(Chunk chunk):
    return parse(memoryview(chunk), chunk.data, chunk.length)


def dumps_object(obj):
    """Return the message for a Python object."""
    return dumps(obj)


def loads_object(unsigned char[::1] message):
    """Return the object of a message in writable memory, which it may keep."""
    return parse(memoryview(message), <char *>&message[0] if message.shape[0] else NULL, message.shape[0])


cdef int not_pickled(uint64_t length) except -1:
    raise pickle.UnpicklingError(f"message of {length} bytes is no pickled object: its header does not fit its size")


cdef object parse(object view, const char *data, uint64_t length):
    cdef const uint64_t *words = <const uint64_t *>data
    cdef uint64_t n, body, header, position, i
    cdef list buffers
    if length == 0:
        return None
    if length < 8 or words[0] != MAGIC:
        return load_object(view)
    if length < 24:
        not_pickled(length)
    n, body = words[1], words[2]
    if n > (length - 24) // 8 or body > length - 24 - 8 * n:
        not_pickled(length)
    header = 24 + 8 * n
    if n == 0:
        return load_object(view[header:header + body])
    buffers = []
    position = header + body
    for i in range(n):
        position = aligned(position)
        if words[3 + i] > length or position > length - words[3 + i]:
            not_pickled(length)
        buffers.append(view[position:position + words[3 + i]])
        position += words[3 + i]
    return load_object(view[header:header + body], buffers=buffers)
