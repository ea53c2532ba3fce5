"""Calls on the wire, and the thread that serves them. What users see is in pympx/rpc/__init__.py.

A call is a message in the context of calls: the arguments, the function's name, and last the number of the call, its form and the length of
the name; the answer is a message in the context of answers whose tag is that number: the result, and last its form. Both are what any other
message is, so links that break lose and double none. Numbers of calls to one rank rise.
"""
from concurrent.futures import CancelledError, Future
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE, _PyBytes_Resize
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy
from libcpp.vector cimport vector

from ..bindings cimport runtime
from ..bindings.engine cimport Error, Request, SendMode, Status, Wait
from ..bindings.errors cimport ERR_RANK, ERR_UNSUPPORTED_OPERATION, fail, fail_status
from ..bindings.pickling cimport Chunk, dumps, loads, own
from ..bindings.request cimport collect_orphans, orphan
from .engine cimport Book, CallEngine, Exchange, Tally, kActiveEcho, kActiveWithdraw, match_word

import heapq
import threading
from time import monotonic

from . import remote

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident()

# Contexts; api/comm.py keeps them free.
cdef enum: CALLS = 6
cdef enum: ANSWERS = 8
cdef enum: WORDS = 10      # what became of a call that is to be withdrawn; answered natively, as PINGS
cdef enum: PINGS = 12
cdef int32_t ANY_SOURCE = -2
cdef int32_t ANY_TAG = -1

# Forms of arguments and results.
cdef enum: PICKLED = 0     # (arguments, keywords), or the result
cdef enum: BYTES = 1       # one argument, or the result, is bytes
cdef enum: NOTHING = 2     # no arguments, or None
cdef enum: RAISED = 3      # (exception, traceback as text)
cdef enum: CARRIED = 4     # (function, arguments, keywords)
cdef enum: NO_ANSWER = 0x80

# What a rank says of a call that is to be withdrawn.
cdef enum: UNKNOWN = 0
cdef enum: BEGUN = 1
cdef enum: WITHDRAWN = 2
cdef tuple OUTCOMES = (
    "whether it was begun is not known: its rank serves no calls yet, or has failed",
    "it was begun; what became of it is not known here",
    "it was not begun, and will not be",
)

cdef enum: MAX_DEPTH = 64       # of calls served while a call that is being served waits
cdef enum: SMALL = 4096         # bytes: up to here messages are put together by copying

# The end of a call's message.
cdef packed struct Tail:
    uint32_t id
    uint16_t name_length
    uint8_t form
    uint8_t unused

cdef Tally *tallies = NULL        # by rank: calls whose answer is to come
cdef uint32_t limit = 1 << 14
cdef int32_t next_ping = 0
cdef int size = 0
cdef int own_rank = 0
cdef Book book
cdef object refusal = None        # why there are no calls
cdef unsigned long server = 0     # the thread that serves
cdef Request *incoming = NULL     # what it waits for
cdef bint stopping = False
cdef int depth = 0
cdef enum: WAKE = 1               # a key that means nothing
cdef uint64_t next_key = 3
cdef dict watched = {}            # key: call that the serving thread is to settle
cdef list deadlines = []          # heap of (time, id, call)
cdef Py_ssize_t prune_at = 1000
cdef bint expiring = False        # the serving thread lets calls end


cdef inline CallEngine *engine() noexcept nogil:
    return <CallEngine *>runtime.engine


def open_calls(int rank, int ranks, uint32_t backlog):
    """Prepare for calls between `ranks` ranks, at most `backlog` outstanding to each. Raises RuntimeError where none can be served."""
    global tallies, size, own_rank, limit
    engine().start_service()
    book.open(runtime.engine[0], ranks)
    tallies = book.outstanding()
    size, own_rank, limit = ranks, rank, backlog


def refuse(str reason):
    """Let every call raise `reason`."""
    global refusal
    refusal = reason


cdef bytes join(const char *body, Py_ssize_t n, const char *end, Py_ssize_t length):
    cdef bytes message = PyBytes_FromStringAndSize(NULL, n + length)
    memcpy(PyBytes_AS_STRING(message), body, n)
    memcpy(PyBytes_AS_STRING(message) + n, end, length)
    return message


cdef bytes pickled(object obj, const char *end, Py_ssize_t length):
    """The pickle of an object, and `end` behind it: a long one grows in place, which copies nothing where the allocator can."""
    cdef bytes body = dumps(obj)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(body)
    if n <= SMALL:
        return join(PyBytes_AS_STRING(body), n, end, length)
    cdef PyObject *raw = <PyObject *>body
    Py_INCREF(body)
    body = None
    if raw.ob_refcnt == 1:
        _PyBytes_Resize(&raw, n + length)
    else:  # somebody else holds it
        body = join(PyBytes_AS_STRING(<object>raw), n, b"", 0) + end[:length]
        Py_DECREF(<object>raw)
        return body
    body = <bytes>raw
    Py_DECREF(body)
    memcpy(PyBytes_AS_STRING(body) + n, end, length)
    return body


cdef bytes encode_call(bytes name, object function, tuple args, dict kwargs, int flags):
    """The message of a call, its number left open. An empty name: the function travels in the pickle."""
    cdef char end[512]
    cdef char *tail = end
    cdef Py_ssize_t named = PyBytes_GET_SIZE(name)
    cdef Py_ssize_t length = named + <Py_ssize_t>sizeof(Tail)
    cdef Tail t
    cdef bytes one
    if length > <Py_ssize_t>sizeof(end):
        raise ValueError(f"the name of a function has {named} bytes, at most {sizeof(end) - sizeof(Tail)} are possible: {name[:80]!r}...")
    memcpy(tail, PyBytes_AS_STRING(name), named)
    t.id = 0
    t.name_length = <uint16_t>named
    t.unused = 0
    t.form = PICKLED
    if named == 0:
        t.form = CARRIED
    elif not kwargs:
        if not args:
            t.form = NOTHING
        elif len(args) == 1 and type(args[0]) is bytes:
            t.form = BYTES
    cdef uint8_t form = t.form
    t.form |= <uint8_t>flags
    memcpy(tail + named, &t, sizeof(Tail))
    if form == NOTHING:
        return join(NULL, 0, tail, length)
    if form == BYTES:
        one = args[0]
        return join(PyBytes_AS_STRING(one), PyBytes_GET_SIZE(one), tail, length)
    return pickled((function, args, kwargs) if form == CARRIED else (args, kwargs), tail, length)


cdef class Pending:
    """A call under way: its answer, and its message as long as that has not left."""
    cdef Request *answer
    cdef Request *message
    cdef object kept          # the message's bytes
    cdef readonly int rank
    cdef readonly uint32_t id
    cdef bint taken           # somebody has the result
    cdef bint dropped         # nobody wants it
    cdef int users            # threads that wait for `answer` without the GIL

    def __dealloc__(self):
        if runtime.engine == NULL:
            return
        if self.message != NULL:
            orphan(self.message, NULL, NULL, self.kept, False)
        if self.answer != NULL:
            with nogil:
                engine().abandon(self.answer)

    cdef int let_go(self) except -1:
        """Give the requests back, once no thread waits for them."""
        if self.users or runtime.engine == NULL:
            return 0
        cdef Request *message = self.message
        cdef Request *answer = self.answer
        if answer == NULL or not self.taken:
            return 0
        self.message = self.answer = NULL  # first: what follows lets other threads in
        if message != NULL:
            orphan(message, NULL, NULL, self.kept, False)
        if self.dropped:
            with nogil:
                engine().abandon(answer)
        else:
            runtime.engine.release(answer)
        return 0


cdef int start_call(Pending p, bytes message) except -1:
    """Send the message, which gets its number, and post the receive of its answer."""
    cdef Exchange x
    cdef char *data = PyBytes_AS_STRING(message)
    cdef uint64_t length = PyBytes_GET_SIZE(message)
    cdef uint64_t at = length - sizeof(Tail)  # the number is first in the tail
    x = engine().try_exchange(p.rank, CALLS, ANSWERS, data, length, at, &tallies[p.rank])
    if x.answer == NULL:
        with nogil:
            x = engine().exchange(p.rank, CALLS, ANSWERS, data, length, at, &tallies[p.rank])
    p.answer, p.message, p.id = x.answer, x.message, x.number
    if x.message != NULL:
        p.kept = message
    return 0


cdef int check(int rank) except -1:
    if tallies == NULL:
        remote.join()
    if refusal is not None:
        fail(ERR_UNSUPPORTED_OPERATION, refusal)
    if runtime.engine == NULL:
        runtime.start()  # raises what ended it
    if <unsigned>rank >= <unsigned>size:
        fail(ERR_RANK, f"call: rank {rank} is not from 0 to {size - 1}")
    return 0


cdef int wait_for_room(int rank) except -1:
    """Back-pressure: at most `limit` answers of one rank are to come. What a call that is served calls is let through: the answers for
    which it would wait may wait for it."""
    cdef Wait outcome
    cdef double until = runtime.deadline()
    while runtime.engine != NULL and tallies[rank].load() >= limit and PyThread_get_thread_ident() != server:
        with nogil:
            outcome = engine().wait_below(&tallies[rank], limit)
        if runtime.after_wait(<int>outcome, until):
            break
    return 0


cdef bytes name_of(object function):
    cdef object name
    try:
        name = remote.names.get(function)
    except TypeError:  # not hashable
        return b""
    return <bytes>name if name is not None else <bytes>remote.name_of(function)


def call(int rank, object function, /, *args, **kwargs):
    """Let rank `rank` of COMM_WORLD execute ``function(*args, **kwargs)`` once; return its Call, a future.

    `function` is a function at the top of a module, the name of an exported one, or anything callable that can be pickled. Starts the
    runtime; waits while PYMPX_RPC_BACKLOG answers of that rank are to come. Raises MPI.Exception (ERR_RANK: there is no such rank;
    ERR_UNSUPPORTED_OPERATION: the transport cannot serve), TypeError for a function that other ranks cannot find, and what pickling raises.
    """
    return begin(rank, function, args, kwargs, 0)


def begin(int rank, object function, tuple args, dict kwargs, double seconds):
    """Start a call; `seconds`: its deadline, 0: none."""
    check(rank)
    cdef Pending p = Pending.__new__(Pending)
    cdef bytes message
    cdef bytes name = name_of(function)
    message = encode_call(name, function, args, kwargs, 0)
    if tallies[rank].load() >= limit:
        wait_for_room(rank)
    if runtime.engine == NULL:
        runtime.start()  # ended meanwhile: raises why
    p.rank = rank
    start_call(p, message)
    c = Call.__new__(Call)
    c._pending = p
    c._function = function
    if seconds > 0:
        c._expires = <double>monotonic() + seconds
        watch_deadline(c)
    return c


def notify(int rank, object function, /, *args, **kwargs):
    """As call(), without an answer: returns at once, and what the function raises is logged at its rank (logger "pympx.rpc").

    Begun in order with the calls of this rank to that one; not sent again when that rank fails, of which nobody tells.
    """
    check(rank)
    cdef bytes message = encode_call(name_of(function), function, args, kwargs, NO_ANSWER)
    deliver(CALLS, rank, 0, message)


cdef int deliver(uint32_t context, int rank, int32_t tag, bytes message) except -1:
    """Send a message that nobody waits for."""
    cdef Request *r
    cdef const char *data = PyBytes_AS_STRING(message)
    cdef uint64_t length = PyBytes_GET_SIZE(message)
    if runtime.engine.try_send(context, rank, tag, data, length):
        return 0
    with nogil:
        r = runtime.engine.isend(context, rank, tag, data, length, SendMode.kStandard)
    collect_orphans()
    if r.done.load():
        runtime.engine.release(r)
        return 0
    return orphan(r, NULL, NULL, message, False)


cdef int wait_answer(Pending p, double until) except -1:
    """Wait for the answer; 0 when it has not come at `until` (0: for ever)."""
    cdef Wait outcome
    cdef double timeout = runtime.deadline()
    cdef double left
    cdef int slice_ms = 1000
    cdef Request *answer = p.answer
    if answer == NULL or answer.done.load():
        return 1
    if PyThread_get_thread_ident() == server:
        return serve_for(p, until)
    if p.rank != own_rank and runtime.engine.try_poll(answer, runtime.polls):
        return 1
    p.users += 1
    try:
        while runtime.engine != NULL:
            if until:
                left = until - <double>monotonic()
                if left <= 0:
                    return 0
                slice_ms = <int>min(1000.0, left * 1e3 + 1)
            with nogil:
                outcome = engine().wait_at_most(answer, slice_ms)
            if runtime.after_wait(<int>outcome, timeout):
                return 1
            if p.taken or answer.done.load():
                return 1
        return runtime.start() + 1  # raises what ended it
    finally:
        p.users -= 1
        p.let_go()


cdef int serve_for(Pending p, double until) except -1:
    """As wait_answer, on the thread that serves: it goes on serving."""
    cdef double left
    p.users += 1
    try:
        while not p.answer.done.load():
            left = 1.0
            if until:
                left = until - <double>monotonic()
                if left <= 0:
                    return 0
            serve_until(p.answer, <int>min(1000.0, left * 1e3 + 1))
        return 1
    finally:
        p.users -= 1
        p.let_go()


cdef object decode(Chunk chunk, int rank):
    """The result in an answer; raises what the function raised."""
    cdef uint8_t form
    if chunk.length == 0:
        raise remote.RemoteError(f"rank {rank} sent an empty answer")
    chunk.length -= 1
    form = <uint8_t>chunk.data[chunk.length]
    if form == NOTHING:
        return None
    if form == BYTES:
        return PyBytes_FromStringAndSize(chunk.data, <Py_ssize_t>chunk.length)
    if form == RAISED:
        raise remote.exception_of(loads(chunk), rank)
    return loads(chunk)


class Call(Future):
    """The result of a call that is to come: a concurrent.futures.Future that can be awaited. Use pympx.rpc.call to make one."""

    _state = "PENDING"
    _result = None
    _exception = None
    _pending = None
    _function = None
    _expires = 0.0
    _expiring = False
    _hears = False   # the serving thread, or an event loop, settles it

    # What concurrent.futures works with is made when it is asked for: most calls are waited for by nothing but result().
    @property
    def _condition(self):
        made = self.__dict__.get("_own_condition")
        if made is None:
            made = self.__dict__.setdefault("_own_condition", threading.Condition())
            self._hear()
        return made

    @property
    def _waiters(self):
        return self.__dict__.setdefault("_own_waiters", [])

    @property
    def _done_callbacks(self):
        return self.__dict__.setdefault("_own_callbacks", [])

    @_done_callbacks.setter
    def _done_callbacks(self, value):
        self.__dict__["_own_callbacks"] = value

    def _hear(self):
        """Let the serving thread settle this call as soon as its answer is there."""
        if self._state == "PENDING" and not self._hears:
            self._hears = True
            listen(self, <Pending>self._pending)

    def _settle(self):
        """Take the answer, if it is there and nobody has taken it."""
        cdef Pending p = self._pending
        cdef Status status
        cdef Chunk chunk
        if p is None or p.taken or p.answer == NULL or not p.answer.done.load():
            return
        p.taken = True
        status = p.answer.status
        result = error = None
        try:
            chunk = own(p.answer.buffer, status.bytes) if p.answer.buffer != NULL else None
            if status.error != Error.kNone:
                fail_status(&status, p.rank, 0, f"call of {remote.described(self._function)} on rank {p.rank}")
            result = decode(chunk, p.rank)
        except BaseException as raised:
            error = raised
        p.let_go()
        self._finish(result, error)

    def _finish(self, result, error):
        if "_own_condition" in self.__dict__:
            if error is not None:
                Future.set_exception(self, error)
            else:
                Future.set_result(self, result)
            return
        self._result = result
        self._exception = error
        self._state = "FINISHED"

    def _wait(self, timeout):
        """Wait until the call is done. Raises TimeoutError after `timeout` seconds."""
        cdef Pending p
        cdef double until = 0
        cdef double expires = self._expires
        if self._state != "PENDING":
            return
        p = self._pending
        if timeout is not None:
            until = <double>monotonic() + <double>timeout
        if p.taken:  # another thread has it, and is about to say so
            condition = self._condition
            with condition:
                if self._state == "PENDING":
                    condition.wait(timeout)
            return
        if expires and (not until or expires < until):
            if not wait_answer(p, expires):
                self._expire()
        elif not wait_answer(p, until):
            raise TimeoutError(f"no answer from rank {p.rank} to {remote.described(self._function)} within {timeout:g} s; the call goes on")
        self._settle()

    def _expire(self):
        """The deadline has passed."""
        cdef Pending p = self._pending
        if self._state != "PENDING" or p.taken:
            return
        if self._expiring:  # on another thread
            condition = self._condition
            with condition:
                if self._state == "PENDING":
                    condition.wait()
            return
        self._expiring = True
        word = withdraw(p)
        if p.taken or p.answer == NULL or p.answer.done.load():
            return self._settle()
        p.taken = True
        says = OUTCOMES[word]
        self._finish(None, remote.DeadlineExceeded(f"call of {remote.described(self._function)} on rank {p.rank}: {says}"))
        drop(p, word == WITHDRAWN)

    def result(self, timeout=None):
        """Wait for the result and return it. Raises what the function raised; MPI.Exception (ERR_PROC_FAILED) when its rank failed;
        TimeoutError after `timeout` seconds (the call goes on); CancelledError."""
        if self._state == "PENDING":
            self._wait(timeout)
        if self._state == "FINISHED":
            if self._exception is None:
                return self._result
            try:
                raise self._exception
            finally:
                self = None  # no cycle with the traceback
        raise CancelledError()

    def exception(self, timeout=None):
        """As result(), but return the exception; None where there is none."""
        if self._state == "PENDING":
            self._wait(timeout)
        if self._state == "FINISHED":
            return self._exception
        raise CancelledError()

    def done(self):
        """Return whether the call has ended."""
        if self._state == "PENDING":
            self._settle()
            if self._state == "PENDING":
                with nogil:
                    if runtime.engine != NULL:
                        runtime.engine.progress()
                self._settle()
        return self._state != "PENDING"

    def running(self):
        """Return False: where the call stands at the other rank is not known here."""
        return False

    def cancelled(self):
        """Return whether the call was withdrawn before it began."""
        return self._state in ("CANCELLED", "CANCELLED_AND_NOTIFIED")

    def cancel(self):
        """Withdraw the call if it has not begun. Returns whether it is certain that it never will; waits for the other rank's word,
        which comes whatever that rank computes."""
        cdef Pending p = self._pending
        self._settle()  # the answer may be there
        if self._state != "PENDING":
            return self.cancelled()
        if withdraw(p) != WITHDRAWN or p.taken:
            return False
        p.taken = True
        if "_own_condition" in self.__dict__:
            Future.cancel(self)
        else:
            self._state = "CANCELLED"
        drop(p, True)
        return True

    def add_done_callback(self, fn):
        """Call `fn(self)` when the call has ended, on the thread that finds out."""
        self._condition  # from now on somebody finds out
        Future.add_done_callback(self, fn)

    def __await__(self):
        if not self.done():
            from ..aio.loops import until_done
            yield from until_done(self)
        return self.result(0)

    def __repr__(self):
        state = "pending" if self._state == "PENDING" else "cancelled" if self.cancelled() else "finished"
        return f"<Call of {remote.described(self._function)} on rank {self._pending.rank}: {state}>"


cdef int drop(Pending p, bint withdrawn) except -1:
    """Nobody wants the answer of a taken call any more; `withdrawn`: it will not come."""
    p.dropped = True
    if p.answer == NULL:
        return 0
    if withdrawn:
        with nogil:
            runtime.engine.cancel(p.answer)
    return p.let_go()


cdef int withdraw(Pending p) except -1:
    """Ask the rank not to begin the call. Returns WITHDRAWN (it never will), BEGUN, or UNKNOWN (it serves no calls yet, or has failed)."""
    cdef int word = UNKNOWN
    cdef uint32_t id = p.id
    cdef Pending asked = Pending.__new__(Pending)
    cdef Error error
    with nogil:
        asked.answer = runtime.engine.irecv(WORDS, p.rank, <int32_t>id, NULL, 0, True)
        error = engine().send_active(p.rank, kActiveWithdraw, match_word(WORDS, <int32_t>id), &id, sizeof(id))
    asked.rank = p.rank
    if error != Error.kNone:
        return UNKNOWN
    wait_answer(asked, 0)
    if asked.answer.status.error == Error.kNone and asked.answer.status.bytes == 1:
        word = WITHDRAWN if (<char *>asked.answer.buffer)[0] else BEGUN
    asked.taken = True
    free(asked.answer.buffer)
    asked.answer.buffer = NULL
    asked.let_go()
    return word


def ping(int rank):
    """Return the seconds of a round trip to rank `rank`, answered by its service thread whatever its Python does.

    Raises MPI.Exception: ERR_RANK, ERR_UNSUPPORTED_OPERATION as call(); ERR_PROC_FAILED when the rank has failed or left.
    """
    check(rank)
    cdef Pending p = Pending.__new__(Pending)
    cdef Status status
    global next_ping
    cdef int32_t tag = next_ping
    next_ping = (next_ping + 1) & 0x7fffffff
    cdef double begun = <double>monotonic()
    with nogil:
        p.answer = runtime.engine.irecv(PINGS, rank, tag, NULL, 0, True)
        engine().send_active(rank, kActiveEcho, match_word(PINGS, tag), NULL, 0)
    p.rank = rank
    wait_answer(p, 0)
    cdef double seconds = <double>monotonic() - begun
    status = p.answer.status
    p.taken = True
    free(p.answer.buffer)
    p.answer.buffer = NULL
    p.let_go()
    if status.error != Error.kNone:
        fail_status(&status, rank, 0, f"ping of rank {rank}")
    return seconds


# --- the thread that serves

cdef int listen(object call, Pending p) except -1:
    """Have the serving thread settle `call`."""
    global next_key
    if p.taken or p.answer == NULL:
        return 0  # by another thread, which is about to say so
    cdef uint64_t key = next_key
    cdef bint later
    next_key += 2
    watched[key] = call
    with nogil:
        later = engine().watch_request(p.answer, key)
    if not later:
        del watched[key]
        call._settle()
    return 0


cdef int watch_deadline(object call) except -1:
    global deadlines, prune_at
    if len(deadlines) >= prune_at:  # calls that have ended hold their results
        deadlines = [entry for entry in deadlines if entry[2]._state == "PENDING"]
        heapq.heapify(deadlines)
        prune_at = max(1000, 2 * len(deadlines))
    heapq.heappush(deadlines, (call._expires, id(call), call))
    if deadlines[0][2] is call:  # the serving thread has to wake earlier
        with nogil:
            engine().tell_served(WAKE)
    return 0


cdef int expire() except -1:
    """Let calls end whose deadline has passed. Returns the milliseconds to the next one, at most 1000."""
    global expiring
    cdef double left
    if expiring:  # it serves while it waits for a rank's word: one after another, not one within the other
        return 1000
    expiring = True
    try:
        while deadlines:
            call = deadlines[0][2]
            left = <double>call._expires - <double>monotonic()
            if call._state == "PENDING" and left > 0:
                return <int>min(1000.0, left * 1e3 + 1)
            heapq.heappop(deadlines)
            call._settle()
            if not call._expiring:
                call._expire()
        return 1000
    finally:
        expiring = False


cdef int serve_until(Request *until, int limit_ms) except -1:
    """Serve calls and settle watched ones until `until` is done, or for about `limit_ms`."""
    global incoming
    cdef Request *requests[2]
    cdef Request *found
    cdef size_t count = 1
    cdef Wait outcome
    cdef vector[uint64_t] ended
    if deadlines:
        limit_ms = min(limit_ms, expire())  # which may serve
    if incoming == NULL:
        incoming = runtime.engine.try_irecv(CALLS, ANY_SOURCE, ANY_TAG, NULL, 0, True, 0)
        if incoming == NULL:
            with nogil:
                incoming = runtime.engine.irecv(CALLS, ANY_SOURCE, ANY_TAG, NULL, 0, True)
    requests[0] = incoming
    if until != NULL:
        requests[1] = until
        count = 2
    if watched or not (incoming.done.load() or (until != NULL and until.done.load())):  # callbacks do not wait for a pause
        with nogil:
            outcome = engine().wait_served(requests, count, limit_ms, &ended)
        if outcome == Wait.kNeedPython:
            runtime.run_parked()
        for key in ended:
            call = watched.pop(key, None)
            if call is not None:
                call._settle()
    if incoming != NULL and incoming.done.load() and not stopping:
        found = incoming
        incoming = NULL
        answer(found)
    return 0


def serve():
    """Serve calls until stop_serving(); on a thread of its own."""
    global server, stopping
    server = PyThread_get_thread_ident()
    try:
        while not stopping and runtime.engine != NULL:
            try:
                serve_until(NULL, 1000)
            except Exception as error:  # whatever it is, calls of others are to be served
                remote.report(b"serving", own_rank, error)
    finally:
        server = 0


def stop_serving():
    """Let serve() return."""
    global stopping
    stopping = True
    if incoming != NULL and runtime.engine != NULL:
        with nogil:
            runtime.engine.cancel(incoming)


cdef int answer(Request *request) except -1:
    """Execute the call that a done receive brought, and answer it."""
    global depth
    cdef Status status = request.status
    cdef Chunk chunk = own(request.buffer, status.bytes)
    cdef Tail t
    cdef uint8_t form
    cdef char end
    cdef bytes name, message
    runtime.engine.release(request)
    if status.error != Error.kNone or chunk.length < sizeof(Tail):
        return 0  # withdrawn at the end
    memcpy(&t, chunk.data + chunk.length - sizeof(Tail), sizeof(Tail))
    if sizeof(Tail) + t.name_length > chunk.length:
        return 0
    chunk.length -= sizeof(Tail) + t.name_length
    name = PyBytes_FromStringAndSize(chunk.data + chunk.length, t.name_length)
    if not t.form & NO_ANSWER and not book.begin(status.source, t.id):
        return 0
    form = t.form & ~NO_ANSWER
    depth += 1
    try:
        if depth > MAX_DEPTH:
            raise RecursionError(f"calls nest more than {MAX_DEPTH} deep on rank {own_rank}")
        if form == CARRIED:
            function, args, kwargs = loads(chunk)
            result = function(*args, **kwargs)
        else:
            function = remote.handlers.get(name)
            if function is None:
                function = remote.find(name)
            if form == NOTHING:
                result = function()
            elif form == BYTES:
                result = function(PyBytes_FromStringAndSize(chunk.data, <Py_ssize_t>chunk.length))
            else:
                args, kwargs = loads(chunk)
                result = function(*args, **kwargs)
        if t.form & NO_ANSWER:
            return 0
        if result is None:
            end = NOTHING
            message = join(NULL, 0, &end, 1)
        elif type(result) is bytes:
            end = BYTES
            message = join(PyBytes_AS_STRING(<bytes>result), PyBytes_GET_SIZE(<bytes>result), &end, 1)
        else:
            end = PICKLED
            message = pickled(result, &end, 1)
    except BaseException as error:
        if t.form & NO_ANSWER:
            remote.report(name, status.source, error)
            return 0
        end = RAISED
        message = pickled(remote.packed(error), &end, 1)
    finally:
        depth -= 1
    result = args = kwargs = None
    deliver(ANSWERS, status.source, <int32_t>t.id, message)
    return 0
