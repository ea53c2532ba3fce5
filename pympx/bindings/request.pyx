"""Requests: what Isend and its like return, and the waiting for one, all, any or some of them (MPI 4.1, section 3.7)."""
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdlib cimport free, malloc

from . cimport runtime
from .buffers cimport Message
from .engine cimport Error
from .engine cimport Request as EngineRequest
from .errors cimport ERR_NO_MEM, ERR_REQUEST, fail, fail_status
from .pickling cimport loads, own
from .status cimport fill_empty, fill_status

cdef int UNDEFINED = -32766
cdef int ANY_SOURCE = -2
cdef int PROC_NULL = -1

# Operations whose Python owner is gone but whose buffer the engine may still touch. GIL held.
cdef struct Orphan:
    EngineRequest *handle
    Message *message    # owned: holds on memory
    Message *second
    PyObject *keep
    bint buffered       # sent by Bsend: Detach_buffer waits for it
    Orphan *next

cdef Orphan *orphans = NULL


cdef Message *moved(Message *message) except *:
    """Move a hold on memory to the heap; NULL stays NULL."""
    cdef Message *copy = NULL
    if message != NULL:
        copy = new Message()
        copy.take(message[0])
    return copy


cdef int orphan(EngineRequest *handle, Message *message, Message *second, object keep, bint buffered) except -1:
    """Take over a request that nobody will wait for, with its holds on memory (NULL: none)."""
    global orphans
    cdef Orphan *o
    if runtime.engine == NULL:
        return 0
    with nogil:
        runtime.engine.cancel(handle)
    o = <Orphan *>malloc(sizeof(Orphan))
    if o == NULL:
        fail(ERR_NO_MEM, "no memory for the record of an abandoned request")
    o.handle = handle
    o.buffered = buffered
    o.message = moved(message)
    o.second = moved(second)
    Py_INCREF(keep)
    o.keep = <PyObject *>keep
    o.next = orphans
    orphans = o
    return 0


cdef int collect_orphans() except -1:
    """Free what abandoned requests held, once they are done."""
    cdef Orphan **link = &orphans
    cdef Orphan *o
    while link[0] != NULL:
        o = link[0]
        if runtime.engine != NULL and not o.handle.done.load():
            link = &o.next
            continue
        link[0] = o.next
        if runtime.engine != NULL:
            runtime.engine.release(o.handle)
        del o.message
        del o.second
        Py_DECREF(<object>o.keep)
        free(o)
    return 0


def wait_buffered():
    """Wait until every message of Bsend has left its buffer."""
    cdef Orphan *o = orphans
    while o != NULL:
        if o.buffered and runtime.engine != NULL and not o.handle.done.load():
            runtime.wait_for(o.handle)
            o = orphans  # the list may have changed meanwhile
        else:
            o = o.next
    collect_orphans()


cdef Request new_request(object cls):
    if orphans != NULL:
        collect_orphans()
    return cls.__new__(cls)


cdef EngineRequest *pending(Request r) noexcept:
    """An engine request that keeps `r` from being done; NULL if there is none."""
    if r.state == ALIAS:
        return pending(<Request>r.keep)
    if r.state != ACTIVE:
        return NULL
    if not r.handle.done.load():
        return r.handle
    if r.companion is not None and r.companion.state == ACTIVE and not r.companion.handle.done.load():
        return r.companion.handle
    return NULL


cdef class Request:
    """An operation in flight. False once it is complete (REQUEST_NULL), unless it is persistent."""

    def __cinit__(self, Request request=None):
        self.handle = NULL
        self.inverse = NULL
        self.state = NULL_REQUEST
        self.what = ""
        if request is not None and original(request).state != NULL_REQUEST:
            # another name for the same operation; the first to complete it takes its result
            self.state = ALIAS
            self.keep = original(request)

    def __dealloc__(self):
        if self.state == ACTIVE and runtime.engine != NULL:
            if self.handle.done.load():
                runtime.engine.release(self.handle)
            else:
                orphan(self.handle, &self.message, NULL, self.keep, False)

    def __eq__(self, other):
        if not isinstance(other, Request):
            return NotImplemented
        cdef Request r = <Request>other
        return identity(self) == identity(r)

    def __hash__(self):
        return hash(identity(self))

    def __bool__(self):
        return original(self).state != NULL_REQUEST

    cdef bint is_done(self) except -1:
        return pending(self) == NULL

    cdef int poll(self) except -1:
        """Give the engine a chance; run users' reductions that became due."""
        if pending(self) == NULL:
            return 0
        with nogil:
            runtime.engine.progress()
        runtime.run_parked()
        return 0

    cdef object finish(self, object status):
        """The end of a done request: fill in `status`, free it, raise its error; return the received object if there is one."""
        cdef EngineRequest *handle = self.handle
        cdef int before = self.state
        cdef object result = None
        cdef int source
        if before == NULL_REQUEST or before == INACTIVE:
            fill_empty(status, ANY_SOURCE)
            return None
        if before == ALIAS:
            return (<Request>self.keep).finish(status)
        self.state = INACTIVE if self.persistent is not None else NULL_REQUEST
        self.message.release()
        if self.companion is not None:
            companion, self.companion = self.companion, None
            (<Request>companion).finish(None)
        if before == NOBODY:
            fill_empty(status, PROC_NULL)
            return None
        try:
            source = self.source()
            self.handle = NULL
            fill_status(status, &handle.status, source)
            if handle.status.error != Error.kNone:
                if self.is_object and handle.status.error != Error.kNoMemory:
                    own(handle.buffer, 0)  # frees what had arrived
                fail_status(&handle.status, source, handle.length, self.what)
            if self.is_object and not handle.status.canceled:
                result = own(handle.buffer, handle.status.bytes)
        finally:
            runtime.engine.release(handle)
            if self.persistent is None:
                self.keep = None
        if self.then is not None:
            then, self.then = self.then, None
            then()
        return loads(result) if result is not None else None

    cdef int source(self) noexcept:
        """Rank of the peer of a done request in its communicator."""
        cdef int world = self.handle.status.source
        return self.inverse[world] if world >= 0 and self.inverse != NULL else world

    def Wait(self, status=None):
        """Wait for completion; return True. Raises what went wrong with the operation."""
        self.wait_done()
        self.finish(status)
        return True

    def wait(self, status=None):
        """Wait for completion; return the received object, None for other operations."""
        self.wait_done()
        return self.finish(status)

    def wait_done(self):
        """Wait without completing the request."""
        cdef EngineRequest *handle = pending(self)
        while handle != NULL:
            runtime.wait_for(handle)
            handle = pending(self)
        if runtime.pumps is not None and self.state != NULL_REQUEST:
            runtime.drain()  # the peer waits for what a send has only queued so far

    def Test(self, status=None):
        """Return whether the operation is complete; if so the request is freed."""
        self.poll()
        if not self.is_done():
            return False
        self.finish(status)
        return True

    def test(self, status=None):
        """Return (whether it is complete, the received object or None)."""
        self.poll()
        if not self.is_done():
            return (False, None)
        return (True, self.finish(status))

    def Get_status(self, status=None):
        """Return whether the operation is complete, without freeing the request."""
        if self.state == ALIAS:
            return original(self).Get_status(status)
        self.poll()
        if not self.is_done():
            return False
        if self.state == ACTIVE:
            fill_status(status, &self.handle.status, self.source())
        else:
            fill_empty(status, PROC_NULL if self.state == NOBODY else ANY_SOURCE)
        return True

    def get_status(self, status=None):
        """Return whether the operation is complete, without freeing the request."""
        return self.Get_status(status)

    def Cancel(self):
        """Withdraw a receive that has not matched; anything else goes on. The request still has to be waited for."""
        if self.state == ALIAS:
            return original(self).Cancel()
        if self.state == NULL_REQUEST:
            fail(ERR_REQUEST, "Cancel: the request is REQUEST_NULL")
        if self.state == ACTIVE and not self.handle.done.load():
            with nogil:
                runtime.engine.cancel(self.handle)

    def cancel(self):
        """Withdraw a receive that has not matched."""
        self.Cancel()

    def Free(self):
        """Forget the request: the operation goes on, its buffer is kept alive."""
        if self.state == ALIAS:
            return original(self).Free()
        if self.state == NULL_REQUEST:
            fail(ERR_REQUEST, "Free: the request is REQUEST_NULL")
        if self.state == ACTIVE:
            orphan(self.handle, &self.message, NULL, self.keep, False)
        self.persistent = None
        self.handle = NULL
        self.state = NULL_REQUEST
        self.keep = None
        self.message.release()

    def free(self):
        """Forget the request."""
        self.Free()


cdef Request original(Request r):
    """The request that `r` is another name for; else `r`."""
    return <Request>r.keep if r.state == ALIAS else r


cdef size_t identity(Request r) noexcept:
    """Equal for two names of one operation; 0 for REQUEST_NULL."""
    if r.state == ALIAS:
        return identity(<Request>r.keep)
    return 0 if r.state == NULL_REQUEST else <size_t><void *>r


cdef list listed(object requests):
    cdef list out = list(requests)
    for r in out:
        if not isinstance(r, Request):
            raise TypeError(f"requests: expecting Request, not {type(r).__name__}")
    return out


cdef object status_at(object statuses, Py_ssize_t i, object make):
    """The i-th of `statuses`, which grows if it is a list; None where there is none."""
    if statuses is None:
        return None
    if isinstance(statuses, list):
        while len(statuses) <= i:
            statuses.append(make())
    return statuses[i] if i < len(statuses) else None


cdef list complete_all(list requests, object statuses, object make):
    """Finish requests that are all done; the first error is raised after all were finished."""
    cdef list results = []
    cdef object first = None
    cdef Py_ssize_t i
    for i in range(len(requests)):
        try:
            results.append((<Request>requests[i]).finish(status_at(statuses, i, make)))
        except Exception as error:
            results.append(None)
            first = first or error
    if first is not None:
        raise first
    return results


cdef int wait_some(list requests) except -1:
    """Wait until one of the active requests is done."""
    cdef EngineRequest **handles = <EngineRequest **>malloc(len(requests) * sizeof(EngineRequest *) + 1)
    cdef size_t n = 0
    cdef EngineRequest *handle
    if handles == NULL:
        raise MemoryError()
    try:
        for r in requests:
            handle = pending(<Request>r)
            if handle == NULL and active(<Request>r):
                return 0
            if handle != NULL:
                handles[n] = handle
                n += 1
        if n:
            runtime.wait_any_of(handles, n)
    finally:
        free(handles)
    return 0


cdef bint active(Request r) noexcept:
    if r.state == ALIAS:
        return active(<Request>r.keep)
    return r.state == ACTIVE or r.state == NOBODY


cdef int progress_once() except -1:
    if runtime.engine != NULL:
        with nogil:
            runtime.engine.progress()
        runtime.run_parked()
    return 0


cdef Py_ssize_t first_done(list requests) except -2:
    cdef Py_ssize_t i
    for i in range(len(requests)):
        if active(<Request>requests[i]) and (<Request>requests[i]).is_done():
            return i
    return -1


cdef bint any_active(list requests) except -1:
    for r in requests:
        if active(<Request>r):
            return True
    return False


def wait_all(requests, statuses, make):
    """Wait for all; return the received objects. `statuses`: list (grows), sequence or None."""
    cdef list out = listed(requests)
    for r in out:
        (<Request>r).wait_done()
    return complete_all(out, statuses, make)


def test_all(requests, statuses, make):
    """Return the received objects if all are complete, else None."""
    cdef list out = listed(requests)
    progress_once()
    for r in out:
        if not (<Request>r).is_done():
            return None
    return complete_all(out, statuses, make)


def wait_any(requests, status):
    """Wait for one; return (index, received object); (UNDEFINED, None) if none is active."""
    cdef list out = listed(requests)
    cdef Py_ssize_t i
    while True:
        i = first_done(out)
        if i >= 0:
            return (i, (<Request>out[i]).finish(status))
        if not any_active(out):
            fill_empty(status, ANY_SOURCE)
            return (UNDEFINED, None)
        wait_some(out)


def test_any(requests, status):
    """Return (index, flag, received object); (UNDEFINED, True, None) if none is active."""
    cdef list out = listed(requests)
    cdef Py_ssize_t i
    if first_done(out) < 0:
        progress_once()
    i = first_done(out)
    if i >= 0:
        return (i, True, (<Request>out[i]).finish(status))
    if not any_active(out):
        fill_empty(status, ANY_SOURCE)
        return (UNDEFINED, True, None)
    return (UNDEFINED, False, None)


def some(requests, statuses, make, bint blocking):
    """Complete at least one (blocking) or all that are done: (indices, objects); None if none is active."""
    cdef list out = listed(requests)
    cdef list indices = []
    cdef list finished = []
    cdef Py_ssize_t i
    if not any_active(out):
        return None
    progress_once()
    while blocking and first_done(out) < 0:
        wait_some(out)
    for i in range(len(out)):
        if active(<Request>out[i]) and (<Request>out[i]).is_done():
            indices.append(i)
            finished.append(out[i])
    return (indices, complete_all(finished, statuses, make))


def status_any(requests, status):
    """Return (index, flag) as test_any, without freeing the request."""
    cdef list out = listed(requests)
    progress_once()
    cdef Py_ssize_t i = first_done(out)
    if i >= 0:
        (<Request>out[i]).Get_status(status)
        return (i, True)
    if any_active(out):
        return (UNDEFINED, False)
    fill_empty(status, ANY_SOURCE)
    return (UNDEFINED, True)


def status_all(requests, statuses, make):
    """Return whether all are complete, without freeing them."""
    cdef list out = listed(requests)
    cdef Py_ssize_t i
    progress_once()
    for r in out:
        if not (<Request>r).is_done():
            return False
    for i in range(len(out)):
        (<Request>out[i]).Get_status(status_at(statuses, i, make))
    return True


def status_some(requests, statuses, make):
    """Return the indices of all that are complete, without freeing them; None if none is active."""
    cdef list out = listed(requests)
    cdef list indices = []
    cdef Py_ssize_t i
    if not any_active(out):
        return None
    progress_once()
    for i in range(len(out)):
        if active(<Request>out[i]) and (<Request>out[i]).is_done():
            (<Request>out[i]).Get_status(status_at(statuses, len(indices), make))
            indices.append(i)
    return indices


def start_persistent(Request request):
    """Start an inactive persistent request."""
    request = original(request)
    if request.persistent is None or request.state != INACTIVE:
        fail(ERR_REQUEST, "Start: the request is " + ("active" if request.state != NULL_REQUEST else "REQUEST_NULL"))
    request.persistent(request)


def make_persistent(Request request, starter):
    """Turn a new request into an inactive persistent one; `starter(request)` starts it."""
    request.persistent = starter
    request.state = INACTIVE
    return request


def call_after(Request request, then):
    """Let `then()` be called when the request has ended without an error."""
    request.then = then


def adopt(Request request, Request operation):
    """Let `request` stand for the operation that `operation` holds, which becomes REQUEST_NULL."""
    request.handle = operation.handle
    request.inverse = operation.inverse
    operation.handle = NULL
    request.state, operation.state = operation.state, NULL_REQUEST
    request.message.take(operation.message)
    request.keep, request.comm, request.what = operation.keep, operation.comm, operation.what
    request.companion, request.then = operation.companion, operation.then
