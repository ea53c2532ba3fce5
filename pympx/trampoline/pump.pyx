"""Moves messages between a transport in Python and its trampoline: outside of the engine's lock, with the GIL."""
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_New
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

from ..plugins.api import PeerLost


cdef extern from "pympx/transport.h":
    ctypedef struct mpx_transport:
        pass

cdef extern from "trampoline/trampoline.h" namespace "mpx" nogil:
    cdef cppclass TrampolineTraits "mpx::TrampolineTraits":
        string name
        string address
        size_t max_message
        double latency_s
        double bandwidth_Bps
        cbool inter_node
    cdef cppclass Trampoline "mpx::Trampoline":
        Trampoline(TrampolineTraits) except +
        const mpx_transport *table()
        string device() except +
        cbool pending()
        size_t lanes()
        const string &address(size_t)
        const vector[char] *front(size_t)
        void pop(size_t)
        cbool room()
        void put(const char *, size_t, const void *, size_t) except +
        void fail(const char *, size_t) except +

cdef extern from "trampoline/trampoline.h":
    size_t MAX_ADDRESS "mpx::Trampoline::kMaxAddress"

cdef extern from "signal.h" nogil:
    ctypedef struct sigset_t:
        pass
    int sigfillset(sigset_t *)
    int pthread_sigmask(int, const sigset_t *, sigset_t *)
    enum: SIG_BLOCK
    enum: SIG_SETMASK


cdef class TrampolinePump:
    """The pump (plugins/api.py) of a transport in Python whose `open` returned `address`."""

    cdef Trampoline *trampoline     # never freed: the engine keeps its table
    cdef object transport
    cdef bint moving
    cdef set lost

    def __cinit__(self, transport, bytes address):
        cdef TrampolineTraits traits
        if len(address) > MAX_ADDRESS:
            raise ValueError(f"transport {transport.name}: its address has {len(address)} bytes, at most {MAX_ADDRESS} are allowed")
        if transport.max_message < 1024:
            raise ValueError(f"transport {transport.name}: max_message is {transport.max_message}, must be 1024 or more")
        traits.name = transport.name.encode()
        traits.address = address
        traits.max_message = transport.max_message
        traits.latency_s = transport.latency_s
        traits.bandwidth_Bps = transport.bandwidth_Bps
        traits.inter_node = transport.inter_node
        self.trampoline = new Trampoline(traits)
        self.transport = transport
        self.lost = set()

    @property
    def table(self):
        """The trampoline's table, as a PyCapsule ``pympx.transport.v1``."""
        return PyCapsule_New(<void *>self.trampoline.table(), b"pympx.transport.v1", NULL)

    @property
    def device(self):
        """What leads ``domain_open`` to this trampoline."""
        return (<bytes>self.trampoline.device()).decode()

    cdef int fail(self, bytes address) except -1:
        self.lost.add(address)
        self.trampoline.fail(address, len(address))
        return 0

    cdef bint send_lane(self, size_t lane) except -1:
        """Hand the lane's messages to the transport until it takes no more. Returns whether it took one."""
        cdef bint any = False
        cdef const vector[char] *message
        cdef bytes address = self.trampoline.address(lane)
        while True:
            message = self.trampoline.front(lane)
            if message == NULL:
                return any
            try:
                if not self.transport.send(address, PyBytes_FromStringAndSize(message.data(), message.size())):
                    return any
            except PeerLost as error:
                self.fail(error.peer)
                return True
            self.trampoline.pop(lane)
            any = True

    cdef bint receive(self) except -1:
        cdef bint any = False
        cdef const unsigned char[::1] view
        cdef bytes peer
        try:
            for peer, message in self.transport.poll():
                any = True
                if peer in self.lost:
                    continue
                view = message
                self.trampoline.put(peer, len(peer), &view[0] if len(view) else NULL, len(view))
        except PeerLost as error:
            any = True
            self.fail(error.peer)
        return any

    def pending(self):
        """Return whether messages wait to be sent."""
        return self.trampoline.pending()

    def move(self):
        """Send what waits and take what arrived. Returns whether there was any; False also while another thread is at it.

        A Python signal handler runs before or after, not in between: the transport's methods need not be prepared for KeyboardInterrupt.
        """
        cdef sigset_t all_signals, before
        cdef size_t lane
        cdef bint any = False
        if self.moving:
            return False
        self.moving = True
        sigfillset(&all_signals)
        pthread_sigmask(SIG_BLOCK, &all_signals, &before)
        try:
            PyErr_CheckSignals()  # what came before
            if self.trampoline.pending():
                for lane in range(self.trampoline.lanes()):
                    any |= self.send_lane(lane)
            if self.trampoline.room():
                any |= self.receive()
        finally:
            pthread_sigmask(SIG_SETMASK, &before, NULL)
            self.moving = False
        return any

    def idle(self, double seconds):
        """Sleep at most so long."""
        self.transport.idle(seconds)

    def flushed(self):
        """Return whether everything has left."""
        return not self.trampoline.pending() and self.transport.flushed()
