"""Communicators: the hot methods. One C method each: check the arguments, decode the buffer, one engine call.

Sends and receives first try the engine with the GIL held, for a few polls; only what must wait releases the GIL.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.stdlib cimport free, malloc
from libcpp.memory cimport unique_ptr

from . cimport runtime
from .buffers cimport IN_PLACE, Message, decode, decode_blocks, decode_whole
from .datatype cimport Datatype
from .engine cimport AgreementResult, Binding, Error, Schedule, SendMode, Wait
from .engine cimport Request as EngineRequest
from .engine cimport Status as EngineStatus
from .errors cimport ERR_BUFFER, ERR_COMM, ERR_COUNT, ERR_RANK, ERR_REVOKED, ERR_ROOT, ERR_TAG, fail, fail_status
from .op cimport Reduction, reduction_of
from .pickling cimport Chunk, dumps, loads, own
from .request cimport ACTIVE, NOBODY, Request, new_request, orphan
from .status cimport fill_empty, fill_status

import operator
import warnings
from array import array

cdef int ANY_SOURCE = -2
cdef int ANY_TAG = -1
cdef int PROC_NULL = -1
cdef enum: TAG_UB = 0x7fffffff
cdef enum:
    STATE_NULL = 0
    STATE_VALID = 1
    STATE_FREED = 2
cdef enum Place:
    ELSEWHERE = 0  # not the root
    APART = 1      # the root, or any rank where there is none; its own part is in memory of its own
    INSIDE = 2     # the same, but the own part is in the memory for all
cdef int NO_ROOT = -1

cdef object request_class = Request
cdef object resolve_world = None
cdef object build_schedule = None
cdef object default_op = None
cdef object reserve_buffered = None


def register(new_request_class, resolver, builder, sum_op, buffered_accounting):
    """Set the class of requests, what finds out rank and size, what builds schedules, the default op, Bsend's accounting."""
    global request_class, resolve_world, build_schedule, default_op, reserve_buffered
    request_class, resolve_world, build_schedule, default_op, reserve_buffered = (
        new_request_class, resolver, builder, sum_op, buffered_accounting)


cdef int place_of(object part) noexcept:
    return INSIDE if part is None or part is IN_PLACE else APART


cdef class CachedSchedule:
    """An encoded schedule and the engine's form of it."""

    def __cinit__(self, bytes words):
        self.words = words
        cdef unique_ptr[Schedule] decoded = Schedule.decode(<const int64_t *>PyBytes_AS_STRING(words), PyBytes_GET_SIZE(words) // 8)
        self.schedule = decoded.release()

    def __dealloc__(self):
        del_schedule(<Schedule *>self.schedule)


cdef extern from *:
    """
    static inline void del_schedule(mpx::Schedule *s) { delete s; }
    """
    void del_schedule(Schedule *)


cdef class Agreement:
    """Where the result of an agreement comes: bitwise AND of all flags, highest context, members that were gone. See api/failures.py."""
    cdef AgreementResult result
    cdef Message message

    def into(self, buf):
        """Let the flag be written into `buf`, of one int; returns the flag that is there. Raises ValueError for another size."""
        decode(buf, &self.message, True)
        if self.message.nbytes != sizeof(int32_t):
            raise ValueError(f"Iagree: the buffer of the flag has {self.message.nbytes} bytes, must have {sizeof(int32_t)}")
        self.result.flag_copy = <int32_t *>self.message.address
        return self.result.flag_copy[0]

    @property
    def flag(self):
        """The flag, as the signed integer that it was."""
        return <int32_t>self.result.flag

    @property
    def next_context(self):
        """The highest context that any member proposed."""
        return self.result.next_context

    def living(self, int size):
        """Ranks, of `size`, that were not gone."""
        return [rank for rank in range(size) if not self.result.gone[rank // 8] >> (rank % 8) & 1]


cdef class Comm:
    """A group of ranks with message contexts of its own (MPI 4.1, chapter 7)."""

    def __cinit__(self, Comm comm=None):
        self.world = NULL
        self.inverse = NULL
        self.rank_ = -1
        self.schedules = {}
        if comm is not None and comm.state == STATE_VALID:
            comm.resolve()
            self._define(comm.context, [comm.world[i] for i in range(comm.size_)], comm.rank_)
            self.tag = comm.tag

    def __dealloc__(self):
        free(self.world)
        free(self.inverse)

    def _define(self, uint32_t context, ranks, int rank):
        """Make this the communicator of the world ranks `ranks`, of which this process is number `rank`."""
        cdef int i
        cdef int n = len(ranks)
        cdef int top = max(ranks) + 1
        self.context, self.size_, self.rank_, self.state = context, n, rank, STATE_VALID
        self.world = <int32_t *>malloc(n * sizeof(int32_t))
        self.inverse = <int32_t *>malloc(top * sizeof(int32_t))
        if self.world == NULL or self.inverse == NULL:
            raise MemoryError()
        for i in range(top):
            self.inverse[i] = -1
        for i in range(n):
            self.world[i] = ranks[i]
            self.inverse[<int>ranks[i]] = i
        if runtime.engine != NULL:
            self._enter()

    def _enter(self):
        """Tell a running engine who the members are."""
        runtime.engine.define_context(self.context, self.world, self.size_)
        runtime.engine.define_context(self.context + 1, self.world, self.size_)

    def _define_later(self, uint32_t context):
        """A communicator whose ranks are known when they are first asked for."""
        self.context, self.state = context, STATE_VALID

    def _leave(self):
        """Become COMM_NULL; later calls raise."""
        if runtime.engine != NULL:
            runtime.engine.free_context(self.context)
            runtime.engine.free_context(self.context + 1)
        self.state = STATE_FREED
        self.schedules = {}
        self.barrier_schedule = None

    @property
    def _context(self):
        return self.context

    @property
    def _state(self):
        return self.state

    def _world_ranks(self):
        """World ranks of the members, by rank."""
        self.resolve()
        return [self.world[i] for i in range(self.size_)]

    def resolve(self):
        """Find out rank and size, without communication."""
        if self.state != STATE_VALID:
            fail(ERR_COMM, "the communicator is COMM_NULL" if self.state == STATE_NULL else "the communicator was freed")
        if self.rank_ < 0:
            resolve_world()

    cdef int check(self) except -1:
        if self.state != STATE_VALID:
            fail(ERR_COMM, "the communicator is COMM_NULL" if self.state == STATE_NULL else "the communicator was freed")
        if runtime.engine == NULL:
            runtime.start()
        if runtime.engine.any_revoked() and self.revoked():
            fail(ERR_REVOKED, "the communicator was revoked")
        return 0

    cdef bint revoked(self) except -1:
        cdef bint answer = False
        if runtime.engine != NULL:
            with nogil:
                answer = runtime.engine.is_revoked(self.context)
        return answer

    def _revoke(self):
        """End every operation on this communicator, on all members; no collective call."""
        self.prepare()
        with nogil:
            runtime.engine.revoke(self.context)

    def _is_revoked(self):
        self.resolve()
        return self.revoked()

    def _failed(self):
        """Members known to have failed, in the order in which they were noticed: their ranks here."""
        self.prepare()
        return [self.inverse[rank] for rank in runtime.engine.failed_members(self.context)]

    def _acknowledge_failed(self, int count):
        """Let wildcards go on without the first `count` failed members; return how many that are now."""
        self.prepare()
        return runtime.engine.acknowledge_failed(self.context, count)

    def _agree(self, Agreement agreement, uint32_t flag, uint32_t next_context, bint heeds_failures, str what):
        """Start an agreement, also on a revoked communicator; return its request."""
        cdef Request r = new_request(request_class)
        self.prepare()
        with nogil:
            r.handle = runtime.engine.agree(self.context, flag, next_context, heeds_failures, &agreement.result)
        r.comm, r.inverse, r.keep, r.what, r.state = self, self.inverse, agreement, what, ACTIVE
        return r

    cdef int prepare(self) except -1:
        """As check, but revoked communicators will do."""
        self.resolve()
        if runtime.engine == NULL:
            runtime.start()
        return 0

    cdef int check_peer(self, int rank, str what) except -1:
        if rank < 0 or rank >= self.size_:
            fail(ERR_RANK, f"{what} is {rank}, must be 0..{self.size_ - 1} in a communicator of {self.size_}")
        return 0

    cdef int check_destination(self, int dest, int tag) except -1:
        self.check_peer(dest, "dest")
        if tag < 0:
            fail(ERR_TAG, f"tag is {tag}, must be 0..{TAG_UB}")
        return 0

    cdef int check_root(self, int root, object part, str what) except -1:
        """Return this rank's Place; the root alone may say IN_PLACE for its part."""
        self.check()
        if root < 0 or root >= self.size_:
            fail(ERR_ROOT, f"root is {root}, must be 0..{self.size_ - 1} in a communicator of {self.size_}")
        if self.rank_ == root:
            return place_of(part)
        if part is IN_PLACE:
            fail(ERR_BUFFER, f"{what}: IN_PLACE is for the root")
        return ELSEWHERE

    cdef int rank_of(self, int32_t world) noexcept:
        return self.inverse[world] if world >= 0 and self.inverse != NULL else world

    def Get_rank(self):
        """Return the rank of this process."""
        self.resolve()
        return self.rank_

    def Get_size(self):
        """Return the number of ranks."""
        self.resolve()
        return self.size_

    rank = property(Get_rank, doc="Rank of this process.")
    size = property(Get_size, doc="Number of ranks.")

    def __eq__(self, other):
        if not isinstance(other, Comm):
            return NotImplemented
        cdef Comm c = <Comm>other
        if self.state != STATE_VALID or c.state != STATE_VALID:
            return self.state != STATE_VALID and c.state != STATE_VALID
        return self.context == c.context

    def __hash__(self):
        return hash(self.context) if self.state == STATE_VALID else 0

    def __bool__(self):
        return self.state == STATE_VALID

    # --- sending

    cdef int send_blocking(self, const void *buffer, int64_t n, int dest, int tag, SendMode mode, Message *m, object keep) except -1:
        cdef EngineRequest *r
        self.check()
        if dest == PROC_NULL:
            return 0
        if <uint32_t>dest >= <uint32_t>self.size_ or tag < 0:
            self.check_destination(dest, tag)
        dest = self.world[dest]
        if mode == SendMode.kStandard and runtime.engine.try_send(self.context, dest, tag, buffer, n):
            if runtime.pumps is not None:
                runtime.drain()
            return 0
        r = runtime.engine.try_isend(self.context, dest, tag, buffer, n, mode)
        if r == NULL:
            with nogil:
                r = runtime.engine.isend(self.context, dest, tag, buffer, n, mode)
        if runtime.pumps is not None or (not r.done.load() and not runtime.engine.try_poll(r, runtime.polls)):
            wait_or_orphan(r, m, NULL, keep)
        cdef EngineStatus status = r.status
        runtime.engine.release(r)
        if runtime.pumps is not None:
            runtime.drain()
        if status.error != Error.kNone:
            fail_status(&status, self.rank_of(dest), n, f"send of {n} bytes with tag {tag}")
        return 0

    cdef Request start_send(self, Request r, const void *buffer, int64_t n, int dest, int tag, SendMode mode, str what):
        self.check()
        r.comm = self
        r.inverse = self.inverse
        r.what = what
        if dest == PROC_NULL:
            r.state = NOBODY
            return r
        self.check_destination(dest, tag)
        r.handle = runtime.engine.try_isend(self.context, self.world[dest], tag, buffer, n, mode)
        if r.handle == NULL:
            with nogil:
                r.handle = runtime.engine.isend(self.context, self.world[dest], tag, buffer, n, mode)
        r.state = ACTIVE
        if runtime.pumps is not None:
            runtime.pump()
        return r

    cdef int send_buffer(self, object buf, int dest, int tag, SendMode mode) except -1:
        cdef Message m
        decode(buf, &m, False)
        self.send_blocking(m.address, m.nbytes, dest, tag, mode, &m, None)
        return 0

    def Send(self, buf, int dest, int tag=0):
        """Blocking send. Returns when `buf` may be reused."""
        self.send_buffer(buf, dest, tag, SendMode.kStandard)

    def Ssend(self, buf, int dest, int tag=0):
        """Blocking send that returns when the receiver has matched the message."""
        self.send_buffer(buf, dest, tag, SendMode.kSync)

    def Rsend(self, buf, int dest, int tag=0):
        """Blocking send to a receiver that has posted its receive."""
        self.send_buffer(buf, dest, tag, SendMode.kStandard)

    cdef Request isend_buffer(self, object buf, int dest, int tag, SendMode mode, str what):
        cdef Request r = new_request(request_class)
        decode(buf, &r.message, False)
        return self.start_send(r, r.message.address, r.message.nbytes, dest, tag, mode, what)

    def Isend(self, buf, int dest, int tag=0):
        """Start a send; `buf` must not change before the request is complete."""
        return self.isend_buffer(buf, dest, tag, SendMode.kStandard, "Isend")

    def Issend(self, buf, int dest, int tag=0):
        """Start a synchronous send."""
        return self.isend_buffer(buf, dest, tag, SendMode.kSync, "Issend")

    def Irsend(self, buf, int dest, int tag=0):
        """Start a send to a receiver that has posted its receive."""
        return self.isend_buffer(buf, dest, tag, SendMode.kStandard, "Irsend")

    cdef int send_copy(self, bytes copy, int dest, int tag) except -1:
        """Send bytes that nobody waits for; Detach_buffer does."""
        cdef Request r = new_request(request_class)
        if dest != PROC_NULL:
            reserve_buffered(len(copy))
        self.start_send(r, PyBytes_AS_STRING(copy), PyBytes_GET_SIZE(copy), dest, tag, SendMode.kStandard, "Bsend")
        if r.state == ACTIVE:
            r.state = NOBODY
            orphan(r.handle, NULL, NULL, copy, True)
        return 0

    def Bsend(self, buf, int dest, int tag=0):
        """Buffered send: returns at once, the message is copied into the buffer given to Attach_buffer."""
        cdef Message m
        decode(buf, &m, False)
        self.send_copy((<const char *>m.address)[:m.nbytes] if m.nbytes else b"", dest, tag)

    def Ibsend(self, buf, int dest, int tag=0):
        """Start a buffered send; it is complete at once."""
        self.Bsend(buf, dest, tag)
        return self.nothing()

    cdef Request nothing(self):
        cdef Request r = new_request(request_class)
        r.state = NOBODY
        r.comm = self
        return r

    # --- receiving

    cdef int source_of(self, int source, int tag) except -3:
        """World rank of `source`; checks the arguments of a receive."""
        self.check()
        if tag < 0 and tag != ANY_TAG:
            fail(ERR_TAG, f"tag is {tag}, must be 0..{TAG_UB} or ANY_TAG")
        if source == ANY_SOURCE:
            return ANY_SOURCE
        if <uint32_t>source >= <uint32_t>self.size_:
            self.check_peer(source, "source")
        return self.world[source]

    cdef int receive_blocking(self, Message *m, int source, int tag, object status) except -1:
        cdef EngineRequest *r
        cdef EngineStatus result
        cdef int world
        if source == PROC_NULL:
            self.check()
            fill_empty(status, PROC_NULL)
            return 0
        world = self.source_of(source, tag)
        r = runtime.engine.try_irecv(self.context, world, tag, m.address, m.nbytes, False, runtime.polls)
        if r == NULL:
            with nogil:
                r = runtime.engine.irecv(self.context, world, tag, m.address, m.nbytes, False)
        if not r.done.load() or runtime.pumps is not None:
            wait_or_orphan(r, m, NULL, None)
        result = r.status
        runtime.engine.release(r)
        if status is not None:
            fill_status(status, &result, self.rank_of(result.source))
        if result.error != Error.kNone:
            fail_status(&result, self.rank_of(result.source), m.nbytes, "Recv")
        return 0

    def Recv(self, buf, int source=ANY_SOURCE, int tag=ANY_TAG, status=None):
        """Blocking receive into `buf`, which may be longer than the message. Raises ERR_TRUNCATE when it is shorter."""
        cdef Message m
        decode(buf, &m, True)
        self.receive_blocking(&m, source, tag, status)

    cdef Request start_receive(self, Request r, int source, int tag, bint allocate, str what):
        cdef int world
        r.comm = self
        r.inverse = self.inverse
        r.what = what
        if source == PROC_NULL:
            self.check()
            r.state = NOBODY
            return r
        world = self.source_of(source, tag)
        r.handle = runtime.engine.try_irecv(self.context, world, tag, r.message.address, r.message.nbytes, allocate, 0)
        if r.handle == NULL:
            with nogil:
                r.handle = runtime.engine.irecv(self.context, world, tag, r.message.address, r.message.nbytes, allocate)
        r.state = ACTIVE
        r.is_object = allocate
        if runtime.pumps is not None:
            runtime.pump()
        return r

    def Irecv(self, buf, int source=ANY_SOURCE, int tag=ANY_TAG):
        """Start a receive into `buf`, which must not be used before the request is complete."""
        cdef Request r = new_request(request_class)
        decode(buf, &r.message, True)
        return self.start_receive(r, source, tag, False, "Irecv")

    def Sendrecv(self, sendbuf, int dest, int sendtag=0, recvbuf=None, int source=ANY_SOURCE, int recvtag=ANY_TAG, status=None):
        """Send and receive at once, without deadlock in rings."""
        cdef Request r = self.Isendrecv(sendbuf, dest, sendtag, recvbuf, source, recvtag)
        r.wait_done()
        r.finish(status)

    def Isendrecv(self, sendbuf, int dest, int sendtag=0, recvbuf=None, int source=ANY_SOURCE, int recvtag=ANY_TAG):
        """Start a send and a receive; one request for both, with the receive's status."""
        cdef Request r = new_request(request_class)
        cdef Request s = new_request(request_class)
        decode(recvbuf, &r.message, True)
        decode(sendbuf, &s.message, False)
        if dest != PROC_NULL:
            self.check()
            self.check_destination(dest, sendtag)
        self.start_receive(r, source, recvtag, False, "Sendrecv")
        self.start_send(s, s.message.address, s.message.nbytes, dest, sendtag, SendMode.kStandard, "Sendrecv")
        r.companion = s
        return r

    def Isendrecv_replace(self, buf, int dest, int sendtag=0, int source=ANY_SOURCE, int recvtag=ANY_TAG):
        """Start sending the content of `buf`, and a receive into it."""
        cdef Message m
        decode(buf, &m, True)
        copy = (<const char *>m.address)[:m.nbytes] if m.nbytes else b""
        return self.Isendrecv(copy, dest, sendtag, buf, source, recvtag)

    def Sendrecv_replace(self, buf, int dest, int sendtag=0, int source=ANY_SOURCE, int recvtag=ANY_TAG, status=None):
        """Send the content of `buf` and receive into it."""
        cdef Request r = self.Isendrecv_replace(buf, dest, sendtag, source, recvtag)
        r.wait_done()
        r.finish(status)

    def Iprobe(self, int source=ANY_SOURCE, int tag=ANY_TAG, status=None):
        """Return whether a message waits that a receive with these arguments would match."""
        cdef EngineStatus found
        cdef bint there
        cdef int world
        if source == PROC_NULL:
            self.check()
            fill_empty(status, PROC_NULL)
            return True
        world = self.source_of(source, tag)
        with nogil:
            there = runtime.engine.iprobe(self.context, world, tag, &found)
        runtime.run_parked()
        if there and found.error != Error.kNone:
            fail_status(&found, self.rank_of(found.source), 0, "Iprobe")
        if there:
            fill_status(status, &found, self.rank_of(found.source))
        return there

    def Probe(self, int source=ANY_SOURCE, int tag=ANY_TAG, status=None):
        """Wait for a message that a receive with these arguments would match; return True."""
        cdef EngineStatus found
        cdef Wait outcome
        cdef double until = runtime.deadline()
        cdef int world
        if source == PROC_NULL:
            self.check()
            fill_empty(status, PROC_NULL)
            return True
        world = self.source_of(source, tag)
        while True:
            with nogil:
                outcome = runtime.engine.wait_message(self.context, world, tag, &found)
            if runtime.after_wait(<int>outcome, until):
                break
        if found.error != Error.kNone:
            fail_status(&found, self.rank_of(found.source), 0, "Probe")
        fill_status(status, &found, self.rank_of(found.source))
        return True

    # --- objects

    def send(self, obj, int dest, int tag=0):
        """Blocking send of a Python object of any size, by pickle."""
        cdef bytes payload = dumps(obj) if dest != PROC_NULL else b""
        self.send_blocking(PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), dest, tag, SendMode.kStandard, NULL, payload)

    def ssend(self, obj, int dest, int tag=0):
        """Blocking send of a Python object that returns when the receiver has matched it."""
        cdef bytes payload = dumps(obj) if dest != PROC_NULL else b""
        self.send_blocking(PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), dest, tag, SendMode.kSync, NULL, payload)

    def bsend(self, obj, int dest, int tag=0):
        """Buffered send of a Python object."""
        self.send_copy(dumps(obj) if dest != PROC_NULL else b"", dest, tag)

    cdef Request isend_object(self, object obj, int dest, int tag, SendMode mode, str what):
        cdef Request r = new_request(request_class)
        cdef bytes payload = dumps(obj) if dest != PROC_NULL else b""
        r.keep = payload
        return self.start_send(r, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), dest, tag, mode, what)

    def isend(self, obj, int dest, int tag=0):
        """Start a send of a Python object; it is pickled at once."""
        return self.isend_object(obj, dest, tag, SendMode.kStandard, "isend")

    def issend(self, obj, int dest, int tag=0):
        """Start a synchronous send of a Python object."""
        return self.isend_object(obj, dest, tag, SendMode.kSync, "issend")

    def ibsend(self, obj, int dest, int tag=0):
        """Start a buffered send of a Python object; it is complete at once."""
        self.bsend(obj, dest, tag)
        return self.nothing()

    def recv(self, buf=None, int source=ANY_SOURCE, int tag=ANY_TAG, status=None):
        """Receive a Python object of any size. `buf` is not needed: giving one draws a warning, as in mpi4py."""
        cdef EngineRequest *r
        cdef EngineStatus result
        cdef Chunk chunk
        cdef int world
        if buf is not None:
            warnings.warn("recv: the buf argument is not needed and ignored", UserWarning, stacklevel=2)
        if source == PROC_NULL:
            self.check()
            fill_empty(status, PROC_NULL)
            return None
        world = self.source_of(source, tag)
        r = runtime.engine.try_irecv(self.context, world, tag, NULL, 0, True, runtime.polls)
        if r == NULL:
            with nogil:
                r = runtime.engine.irecv(self.context, world, tag, NULL, 0, True)
        if not r.done.load() or runtime.pumps is not None:
            wait_or_orphan(r, NULL, NULL, None)
        result = r.status
        chunk = own(r.buffer, result.bytes)
        runtime.engine.release(r)
        fill_status(status, &result, self.rank_of(result.source))
        if result.error != Error.kNone:
            fail_status(&result, self.rank_of(result.source), 0, "recv")
        return loads(chunk)

    def irecv(self, buf=None, int source=ANY_SOURCE, int tag=ANY_TAG):
        """Start a receive of a Python object of any size; the request's wait() returns it. `buf` is not needed."""
        return self.start_receive(new_request(request_class), source, tag, True, "irecv")

    def sendrecv(self, sendobj, int dest, int sendtag=0, recvbuf=None, int source=ANY_SOURCE, int recvtag=ANY_TAG, status=None):
        """Send a Python object and receive one at once."""
        cdef Request r = self.irecv(recvbuf, source, recvtag)
        self.send(sendobj, dest, sendtag)
        return r.wait(status)

    def iprobe(self, int source=ANY_SOURCE, int tag=ANY_TAG, status=None):
        """Return whether a message waits that a receive with these arguments would match."""
        return self.Iprobe(source, tag, status)

    def probe(self, int source=ANY_SOURCE, int tag=ANY_TAG, status=None):
        """Wait for a message that a receive with these arguments would match; return True."""
        return self.Probe(source, tag, status)

    # --- collectives: a schedule from the cache, one engine call

    cdef CachedSchedule schedule(self, tuple key):
        cdef CachedSchedule s = self.schedules.get(key)
        if s is None:
            if len(self.schedules) >= 256:
                self.schedules.clear()  # never while one runs: the caller of run() holds it
            s = CachedSchedule(build_schedule(self.rank_, self.size_, key))
            self.schedules[key] = s
        return s

    cdef int run(self, CachedSchedule s, Message *send, Message *receive, Reduction reduction, str what) except -1:
        cdef Binding b
        cdef EngineRequest *r
        cdef EngineStatus status
        b.context = self.context + 1
        b.tag = self.tag
        self.tag = (self.tag + 256) & TAG_UB
        b.world = self.world
        b.send_buffer = send.address if send != NULL else NULL
        b.receive_buffer = receive.address if receive != NULL else NULL
        b.python_op = NULL
        b.reduce = NULL
        b.element_size = 1
        if reduction is not None:
            b.element_size = reduction.datatype.size
            if reduction.native != NULL:
                b.reduce = reduction.native
            else:
                b.python_op = <void *>reduction
        cdef Schedule *schedule = <Schedule *>s.schedule
        r = runtime.engine.try_start(schedule[0], b, runtime.polls)
        if r == NULL:
            with nogil:
                r = runtime.engine.start(schedule[0], b)
        if not r.done.load() or runtime.pumps is not None:
            wait_or_orphan(r, send, receive, (s, reduction))
        status = r.status
        if r.done.load():
            runtime.engine.release(r)
        else:
            orphan(r, send, receive, (s, reduction), False)  # failed, but not out of the buffers yet
        if runtime.pumps is not None:
            runtime.drain()
        if status.error != Error.kNone:
            fail_status(&status, self.rank_of(status.source), status.bytes, what)
        return 0

    def Barrier(self):
        """Return when every rank has entered."""
        self.check()
        if self.barrier_schedule is None:
            self.barrier_schedule = self.schedule(("barrier",))
        self.run(self.barrier_schedule, NULL, NULL, None, "Barrier")

    def Bcast(self, buf, int root=0):
        """Send `buf` of the root to all."""
        cdef Message m
        decode(buf, &m, not self.check_root(root, False, "Bcast"))
        self.run(self.schedule(("bcast", m.nbytes, root)), NULL, &m, None, "Bcast")

    cdef int same_size(self, Message *send, Message *receive, str what) except -1:
        if send.nbytes != receive.nbytes:
            fail(ERR_COUNT, f"{what}: sendbuf has {send.nbytes} bytes, recvbuf {receive.nbytes}")
        return 0

    cdef int run_reduce(self, str name, object sendbuf, object recvbuf, object op, int place, int root, str what) except -1:
        cdef Message s, r
        cdef Reduction reduction
        cdef tuple key
        decode(recvbuf if place != ELSEWHERE else None, &r, True)
        decode(recvbuf if place == INSIDE else sendbuf, &s, False)
        if place != ELSEWHERE:
            self.same_size(&s, &r, what)
        reduction = reduction_of(default_op if op is None else op, <Datatype>s.datatype)
        if root == NO_ROOT:
            key = (name, s.nbytes, place == INSIDE, reduction.op.commutative)
        else:
            key = (name, s.nbytes, root, place == INSIDE, reduction.op.commutative)
        self.run(self.schedule(key), &s, &r, reduction, what)
        return 0

    def Reduce(self, sendbuf, recvbuf, op=None, int root=0):
        """Combine the elements of all ranks with `op` (default SUM) into recvbuf of the root."""
        self.run_reduce("reduce", sendbuf, recvbuf, op, self.check_root(root, sendbuf, "Reduce"), root, "Reduce")

    def Allreduce(self, sendbuf, recvbuf, op=None):
        """Combine the elements of all ranks with `op` (default SUM) into recvbuf of all; the same bits everywhere."""
        self.check()
        self.run_reduce("allreduce", sendbuf, recvbuf, op, place_of(sendbuf), NO_ROOT, "Allreduce")

    cdef int run_reducing(self, str name, object sendbuf, object recvbuf, object op, tuple sizes, str what) except -1:
        """A reduction whose operand and result have the sizes that the caller checked; in place: the operand is in recvbuf."""
        cdef Message s, r
        cdef bint in_place = place_of(sendbuf) == INSIDE
        cdef Reduction reduction
        cdef int64_t blocks
        self.check()
        decode(recvbuf, &r, True)
        decode(recvbuf if in_place else sendbuf, &s, False)
        reduction = reduction_of(default_op if op is None else op, <Datatype>s.datatype)
        if sizes is None and name == "reduce_scatter_block":
            sizes = (self.block_of(&r, "Reduce_scatter_block: recvbuf") if in_place else r.nbytes,)
            if not in_place and s.nbytes != r.nbytes * self.size_:
                fail(ERR_COUNT, f"{what}: sendbuf has {s.nbytes} bytes, recvbuf {r.nbytes} for each of {self.size_} ranks")
        elif sizes is None:
            self.same_size(&s, &r, what)
            sizes = (r.nbytes,)
        else:
            if len(sizes) != self.size_ or min(sizes) < 0:
                fail(ERR_COUNT, f"{what}: recvcounts {list(sizes)}, must be {self.size_} numbers, not negative")
            sizes = tuple([n * reduction.datatype.size for n in sizes])
            blocks = sum(sizes)
            if s.nbytes < blocks or r.nbytes < <int64_t>sizes[self.rank_]:
                fail(ERR_COUNT, f"{what}: blocks of {list(sizes)} bytes; sendbuf has {s.nbytes} bytes, recvbuf {r.nbytes}")
            sizes = (sizes,)
        self.run(self.schedule((name, *sizes, in_place)), &s, &r, reduction, what)
        return 0

    def Reduce_scatter_block(self, sendbuf, recvbuf, op=None):
        """Combine the elements of all ranks with `op` (default SUM); recvbuf of rank i gets block i of the result."""
        self.run_reducing("reduce_scatter_block", sendbuf, recvbuf, op, None, "Reduce_scatter_block")

    def Reduce_scatter(self, sendbuf, recvbuf, recvcounts=None, op=None):
        """Combine the elements of all ranks with `op` (default SUM); rank i gets recvcounts[i] of them. Default: what recvbufs hold."""
        cdef Message r
        cdef int64_t mine
        if recvcounts is None:
            decode(recvbuf, &r, True)
            mine = r.count
            r.release()
            if place_of(sendbuf) == INSIDE:
                fail(ERR_COUNT, "Reduce_scatter: IN_PLACE needs recvcounts")
            everybody = array("q", bytes(8 * self.Get_size()))
            self.Allgather(array("q", [mine]), everybody)
            recvcounts = everybody
        self.run_reducing("reduce_scatter", sendbuf, recvbuf, op, tuple([operator.index(n) for n in recvcounts]), "Reduce_scatter")

    def Scan(self, sendbuf, recvbuf, op=None):
        """Combine the elements of ranks 0 to this one with `op` (default SUM)."""
        self.run_reducing("scan", sendbuf, recvbuf, op, None, "Scan")

    def Exscan(self, sendbuf, recvbuf, op=None):
        """Combine the elements of the ranks below this one with `op` (default SUM); recvbuf of rank 0 stays as it is."""
        self.run_reducing("exscan", sendbuf, recvbuf, op, None, "Exscan")

    cdef int64_t block_of(self, Message *whole, str what) except -1:
        """Bytes per rank of a buffer that holds a block for every rank."""
        if whole.nbytes % self.size_:
            fail(ERR_COUNT, f"{what} of {whole.nbytes} bytes does not divide into {self.size_} equal blocks")
        return whole.nbytes // self.size_

    cdef int run_blocks(self, str name, object part, object whole, int place, int root, bint gathers, bint v, str what) except -1:
        """Between a block of each rank, `part`, and memory for all of them, `whole`: at the root, or with NO_ROOT on every rank."""
        cdef Message one, all_of_them
        cdef tuple key, counts = None, displacements = None
        cdef int64_t block
        decode(None if place == INSIDE else part, &one, not gathers)
        block = one.nbytes
        if place != ELSEWHERE and v:
            counts, displacements = decode_blocks(whole, &all_of_them, gathers, self.size_, False)
            block = counts[self.rank_]
        elif place != ELSEWHERE:
            decode_whole(whole, &all_of_them, gathers, self.size_)
            block = self.block_of(&all_of_them, what)
        if place == APART and block != one.nbytes:
            fail(ERR_COUNT, f"{what}: rank {self.rank_}'s block has {block} bytes in the buffer for all ranks, its own buffer {one.nbytes}")
        if root == NO_ROOT:
            key = (name, counts, displacements, place == INSIDE) if v else (name, block, place == INSIDE)
        else:
            key = (name, block, counts, displacements, root, place == INSIDE) if v else (name, block, root, place == INSIDE)
        self.run(self.schedule(key), &one if gathers else &all_of_them, &all_of_them if gathers else &one, None, what)
        return 0

    def Gather(self, sendbuf, recvbuf, int root=0):
        """Collect sendbuf of every rank, by rank, in recvbuf of the root."""
        self.run_blocks("gather", sendbuf, recvbuf, self.check_root(root, sendbuf, "Gather"), root, True, False, "Gather")

    def Scatter(self, sendbuf, recvbuf, int root=0):
        """Hand out the blocks of sendbuf of the root, by rank, to recvbuf of every rank."""
        self.run_blocks("scatter", recvbuf, sendbuf, self.check_root(root, recvbuf, "Scatter"), root, False, False, "Scatter")

    def Allgather(self, sendbuf, recvbuf):
        """Collect sendbuf of every rank, by rank, in recvbuf of all."""
        self.check()
        self.run_blocks("allgather", sendbuf, recvbuf, place_of(sendbuf), NO_ROOT, True, False, "Allgather")

    def Gatherv(self, sendbuf, recvbuf, int root=0):
        """Gather with a count and a displacement for every rank: recvbuf is [buffer, counts, displacements, datatype]."""
        self.run_blocks("gatherv", sendbuf, recvbuf, self.check_root(root, sendbuf, "Gatherv"), root, True, True, "Gatherv")

    def Scatterv(self, sendbuf, recvbuf, int root=0):
        """Scatter with a count and a displacement for every rank: sendbuf is [buffer, counts, displacements, datatype]."""
        self.run_blocks("scatterv", recvbuf, sendbuf, self.check_root(root, recvbuf, "Scatterv"), root, False, True, "Scatterv")

    def Allgatherv(self, sendbuf, recvbuf):
        """Allgather with a count and a displacement for every rank: recvbuf is [buffer, counts, displacements, datatype]."""
        self.check()
        self.run_blocks("allgatherv", sendbuf, recvbuf, place_of(sendbuf), NO_ROOT, True, True, "Allgatherv")

    def Alltoall(self, sendbuf, recvbuf):
        """Send block i of sendbuf to rank i; block j of recvbuf comes from rank j."""
        cdef Message s, r
        cdef bint in_place = place_of(sendbuf) == INSIDE
        self.check()
        decode_whole(recvbuf, &r, True, self.size_)
        decode_whole(None if in_place else sendbuf, &s, False, self.size_)
        if not in_place:
            self.same_size(&s, &r, "Alltoall")
        self.run(self.schedule(("alltoall", self.block_of(&r, "Alltoall: recvbuf"), in_place)), &s, &r, None, "Alltoall")

    cdef int run_exchange(self, object sendbuf, object recvbuf, bint typed, str what) except -1:
        cdef Message s, r
        cdef bint in_place = place_of(sendbuf) == INSIDE
        cdef tuple sent = (None, None), received
        self.check()
        received = decode_blocks(recvbuf, &r, True, self.size_, typed)
        if not in_place:
            sent = decode_blocks(sendbuf, &s, False, self.size_, typed)
        self.run(self.schedule(("alltoallv", *sent, *received, in_place)), &s, &r, None, what)
        return 0

    def Alltoallv(self, sendbuf, recvbuf):
        """Alltoall with counts and displacements for every rank on both sides."""
        self.run_exchange(sendbuf, recvbuf, False, "Alltoallv")

    def Alltoallw(self, sendbuf, recvbuf):
        """Alltoallv with a datatype for every rank too, and displacements in bytes: [buffer, counts, displacements, datatypes]."""
        self.run_exchange(sendbuf, recvbuf, True, "Alltoallw")


cdef int wait_or_orphan(EngineRequest *r, Message *a, Message *b, object keep) except -1:
    """Wait; if that raises, the engine keeps what the request uses."""
    try:
        runtime.wait_for(r)
    except BaseException:
        orphan(r, a, b, keep, False)
        raise
    return 0
