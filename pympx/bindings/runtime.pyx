"""The process's engine: made at the first communication, ended by Finalize. Waiting with signals, time-outs and users' reductions."""
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer
from libcpp.string cimport string

from .engine cimport Config, Counters, Engine, Parked, Request, Wait, mpx_iface_attr, mpx_transport
from .errors cimport ERR_OTHER, fail

from time import monotonic

cdef Engine *engine = NULL
cdef int polls = 400
cdef double timeout_seconds = 0
cdef object starter = None
cdef object reducer = None
cdef object ended = None


def register(start_function, run_reduction):
    """Set what starts the runtime (no arguments) and what runs a user's reduction (op handle, in, inout, nbytes)."""
    global starter, reducer
    starter = start_function
    reducer = run_reduction


def set_timeout(double seconds):
    """Let blocking calls raise after `seconds` without completion; 0: never."""
    global timeout_seconds
    timeout_seconds = seconds


cdef int start() except -1:
    if engine != NULL:
        return 0
    if ended is not None:
        fail(ERR_OTHER, ended)
    starter()
    return 0


cdef double deadline() noexcept:
    return <double>monotonic() + timeout_seconds if timeout_seconds > 0 else 0


cdef bint run_parked() except -1:
    """Run users' reductions that schedules wait for. Returns whether there was one."""
    cdef Parked work
    cdef bint found = False
    cdef bint ok
    while engine.take_parked(&work):
        found = True
        ok = False
        try:
            reducer(<object>work.python_op, <size_t>work.inbuf, <size_t>work.inout, work.bytes)
            ok = True
        finally:
            with nogil:
                engine.finish_parked(work, ok)
    return found


cdef int after_wait(int outcome, double until) except -1:
    """Act on what a wait returned. Returns 1 when it is over."""
    if outcome == <int>Wait.kDone:
        return 1
    if outcome == <int>Wait.kNeedPython:
        run_parked()
    PyErr_CheckSignals()
    if until and <double>monotonic() > until:
        fail(ERR_OTHER, f"no completion within PYMPX_TIMEOUT = {timeout_seconds:g} s")
    return 0


cdef int wait_for(Request *request) except -1:
    cdef Wait outcome
    cdef double until = 0
    if request.done.load():
        return 0
    until = deadline()
    while engine != NULL:
        with nogil:
            outcome = engine.wait(request)
        if after_wait(<int>outcome, until):
            return 0
    return fail(ERR_OTHER, ended)


cdef int wait_any_of(Request **requests, size_t count) except -1:
    cdef Wait outcome
    cdef double until = deadline()
    while engine != NULL:
        with nogil:
            outcome = engine.wait_any(requests, count)
        if after_wait(<int>outcome, until):
            return 0
    return fail(ERR_OTHER, ended)


def create(int rank, int size, bytes job_key, eager_window, double spin_seconds, int hot_polls):
    """Make the engine. Raises RuntimeError when there is one."""
    global engine, polls
    cdef Config config
    if engine != NULL:
        raise RuntimeError("the engine exists")
    config.rank = rank
    config.size = size
    config.eager_window = eager_window
    config.spin_seconds = spin_seconds
    polls = hot_polls
    engine = new Engine(config, <string>job_key)


def is_running():
    return engine != NULL


def add_transport(capsule, str device, str config_json):
    """Open a transport; return its index. Raises RuntimeError with the transport's reason."""
    cdef mpx_transport *table = <mpx_transport *>PyCapsule_GetPointer(capsule, b"pympx.transport.v1")
    return engine.add_transport(table, <string>device.encode(), <string>config_json.encode())


def address(int transport):
    return <bytes>engine.address(transport)


def unreachable_reason(int transport, bytes peer_address):
    return (<bytes>engine.unreachable_reason(transport, <string>peer_address)).decode()


def set_peer(int rank, int transport, bytes peer_address):
    engine.set_peer(rank, transport, <string>peer_address)


def describe_protocols(int transport):
    return (<bytes>engine.describe_protocols(transport)).decode()


def attributes(int transport):
    """Limits and costs that transport number `transport` advertises: bytes and seconds."""
    cdef mpx_iface_attr a = engine.attributes(transport)
    return {"caps": a.caps, "iface_addr_len": a.iface_addr_len, "ep_addr_len": a.ep_addr_len, "rkey_packed_len": a.rkey_packed_len,
            "max_am_short": a.max_am_short, "max_am_bcopy": a.max_am_bcopy, "max_am_zcopy": a.max_am_zcopy, "max_am_hdr": a.max_am_hdr,
            "max_iov": a.max_iov, "min_zcopy": a.min_zcopy, "max_zcopy": a.max_zcopy, "latency_s": a.latency_s,
            "bandwidth_Bps": a.bandwidth_Bps, "get_overhead_s": a.get_overhead_s, "get_bandwidth_Bps": a.get_bandwidth_Bps,
            "overhead_s": a.overhead_s, "reg_fixed_s": a.reg_fixed_s, "reg_per_byte_s": a.reg_per_byte_s,
            "atomic_domain": a.atomic_domain}


cdef dict counters_dict(Counters c):
    return {"sent_bytes": c.sent_bytes, "messages": c.sent_messages, "received_bytes": c.received_bytes,
            "received_messages": c.received_messages}


def transport_counters(int transport):
    cdef dict counted = counters_dict(engine.transport_counters(transport))
    counted["medium_sent_bytes"] = engine.medium_bytes(transport, False)
    counted["medium_received_bytes"] = engine.medium_bytes(transport, True)
    return counted


def peer_counters(int rank):
    return counters_dict(engine.peer_counters(rank))


def peer_transport(int rank):
    return engine.peer_transport(rank)


def unexpected_bytes():
    """Bytes of eager messages that wait for their receive."""
    return engine.unexpected_bytes() if engine != NULL else 0


def farewell():
    """Say BYE to every peer that we know, and wait until all have said it."""
    cdef Wait outcome
    engine.begin_farewell()
    while True:
        with nogil:
            outcome = engine.wait_farewell()
        if outcome == Wait.kDone:
            return
        if outcome == Wait.kNeedPython:
            run_parked()
        PyErr_CheckSignals()


def end(str reason, bint forked=False):
    """Close the engine; later communication raises `reason`. In a forked child nothing that the parent shares is touched."""
    global engine, ended
    ended = reason
    if engine == NULL:
        return
    cdef Engine *old = engine
    engine = NULL
    if not forked:
        old.close()  # not deleted: another thread may still be leaving it
