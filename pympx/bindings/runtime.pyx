"""The process's engine: made at the first communication, ended by Finalize. Waiting with signals, time-outs and users' reductions."""
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_GetPointer
from libcpp.string cimport string

cdef extern from "pthread.h" nogil:
    int pthread_atfork(void (*)() noexcept nogil, void (*)() noexcept nogil, void (*)() noexcept nogil)

from .engine cimport CacheReport, Config, Counters, Engine, LinkCounters, News, Parked, Request, Wait, mpx_iface_attr, mpx_transport
from .errors cimport ERR_OTHER, fail

from time import monotonic

from .errors import register_explanation

cdef Engine *engine = NULL
cdef Engine *at_rest = NULL     # during a fork
cdef int polls = 400
cdef int own_rank = 0
cdef list hosts = []  # of each rank
cdef double timeout_seconds = 0
cdef object starter = None
cdef object reducer = None
cdef object supplier = None
cdef object ended = None
cdef list pumps = None
cdef double spin = 0            # seconds that a wait over pumps polls before it naps
cdef double quiet_since = 0     # since when no pump moved anything; 0: one just did
# Seconds. A sleep of 1 ms costs 1 % to 2 % of a core, so it grows on, to a hundredth of what the wait has lasted.
cdef double NAP = 1e-3
cdef double LONG_NAP = 20e-3


def register(start_function, run_reduction, supply_transport):
    """Set what starts the runtime (no arguments), what runs a user's reduction (op handle, in, inout, nbytes), and what asks a transport's
    control path (its number) for what its fast path lacks, and returns that as JSON."""
    global starter, reducer, supplier
    starter = start_function
    reducer = run_reduction
    supplier = supply_transport


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


def add_pump(new_pump):
    """Have the messages of a transport without native progress moved by `new_pump` (plugins/api.py) in every wait and call."""
    global pumps, polls
    pumps = (pumps or []) + [new_pump]
    polls = 1  # more would only delay the pump


cdef bint pump() except -1:
    """Move messages until the engine has no answers to what arrived. Returns whether any moved."""
    global quiet_since
    cdef bint any = False
    cdef bint again = True
    while again and engine != NULL:
        again = False
        for p in pumps:
            if p.move():
                any = True
                with nogil:
                    engine.progress()
                again |= p.pending()
    if any:
        quiet_since = 0
    return any


cdef int pump_or_nap() except -1:
    """Move messages; where there were none for a while sleep, the longer the longer there were none."""
    global quiet_since
    cdef double time, quiet
    if pump():
        return 0
    time = <double>monotonic()
    if quiet_since == 0:
        quiet_since = time
    quiet = time - quiet_since
    if quiet > spin:
        pumps[0].idle(min(max(20e-6, quiet / 4), max(NAP, min(LONG_NAP, quiet / 100))))
    return 0


cdef int drain() except -1:
    """Wait until pumps have handed on what was sent, so that it leaves although the program may not call us for long."""
    cdef double until = deadline()
    pump()
    for p in pumps or ():
        while p.pending() and engine != NULL:
            pump_or_nap()
            PyErr_CheckSignals()
            if until and <double>monotonic() > until:
                fail(ERR_OTHER, f"not sent within PYMPX_TIMEOUT = {timeout_seconds:g} s")
    return 0


cdef bint run_parked() except -1:
    """Run users' reductions that schedules wait for, pumps, and control paths that are needed. Returns whether there was a reduction."""
    cdef Parked work
    cdef bint found = False
    cdef bint ok
    cdef bint needed = True
    cdef int transport = 0
    cdef string json
    while needed:
        with nogil:
            needed = engine.take_control_need(&transport)
        if needed:
            json = supplier(transport).encode()
            with nogil:
                engine.supply(transport, json)
    if pumps is not None:
        pump()
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
        if pumps is not None:
            pump()
        return 1
    if outcome == <int>Wait.kNeedPython and not run_parked() and pumps is not None:
        pump_or_nap()
    PyErr_CheckSignals()
    if until and <double>monotonic() > until:
        fail(ERR_OTHER, f"no completion within PYMPX_TIMEOUT = {timeout_seconds:g} s")
    return 0


cdef int wait_for(Request *request) except -1:
    cdef Wait outcome
    cdef double until = 0
    if request.done.load():
        if pumps is not None:
            pump()
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


def create(int rank, list host_names, bytes job_key, eager_window, double spin_seconds, bint crowded, double link_timeout, bint regcache):
    """Make the engine. host_names: of each rank; link_timeout: seconds without a sign of a peer; regcache: registrations may be kept;
    crowded: there are more ranks than processors.

    Raises RuntimeError when there is one.
    """
    global engine, polls, spin, own_rank, hosts
    cdef Config config
    if engine != NULL:
        raise RuntimeError("the engine exists")
    config.rank = rank
    config.size = len(host_names)
    config.eager_window = eager_window
    config.spin_seconds = spin_seconds
    config.link_timeout = link_timeout
    config.regcache = regcache
    config.crowded = crowded
    polls = 2 if crowded else 400
    spin = spin_seconds
    own_rank = rank
    hosts = host_names
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


def set_control_lane(int rank, int transport, bytes peer_address):
    """Say over which other transport the peer's eps are connected, where its own connects them pairwise."""
    engine.set_control_lane(rank, transport, <string>peer_address)


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


def link_counters(int rank):
    """What the session with a peer went through: cuts, reconnects, messages replayed, seconds of the longest stall; when a cut was noticed
    last and when the link was up last, in seconds of time.monotonic(); zeros without a session."""
    cdef LinkCounters c = engine.link_counters(rank)
    return {"cuts": c.cuts, "reconnects": c.reconnects, "replayed": c.replayed, "longest_stall_s": c.longest_stall,
            "last_cut_s": c.last_cut, "last_up_s": c.last_up}


def cache_counters(int transport):
    """What became of registrations over a transport: `pays`: they cost enough to be kept; `reason`: why none is, empty if they are; hits,
    misses (kept from then on), uncacheable (for one use), evictions, invalidated; bytes and regions registered now."""
    cdef CacheReport c = engine.cache_report(transport)
    return {"pays": c.pays, "reason": (<bytes>c.reason).decode(), "hits": c.hits, "misses": c.misses, "uncacheable": c.uncacheable,
            "evictions": c.evictions, "invalidated": c.invalidated, "bytes": c.bytes, "regions": c.regions}


def peer_transport(int rank):
    return engine.peer_transport(rank)


def explain_failure(int rank):
    """Say in one sentence why rank `rank` of COMM_WORLD counts as failed here; empty when nothing is known, or it has not."""
    if engine == NULL or rank < 0:
        return ""
    reason = (<bytes>engine.failure_reason(rank)).decode("utf-8", "replace")
    if reason.startswith("cannot reach "):
        return f"rank {own_rank} ({hosts[own_rank]}) cannot reach rank {rank} at {reason.removeprefix('cannot reach ')}"
    return f"rank {rank} ({hosts[rank]}): {reason}" if reason and not reason.startswith("rank ") else reason


register_explanation(explain_failure)


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
            break
        if outcome == Wait.kNeedPython and not run_parked() and pumps is not None:
            pump_or_nap()
        PyErr_CheckSignals()
    while pumps is not None and not all([p.flushed() for p in pumps]):
        pump_or_nap()
        PyErr_CheckSignals()


def tell_raised(int kind, int flags, string text, bint everybody):
    """Tell peers of an exception, as engine/raised.h has it; the first line of `text` is the error in short. `everybody`: opens links."""
    with nogil:
        engine.tell_raised(kind, flags, text, everybody)


def news(unsigned long long known, double seconds):
    """Wait at most `seconds` for another version than `known`; return (version, [(rank, kind, text), ...], ranks of living peers)."""
    cdef Wait outcome
    with nogil:
        outcome = engine.wait_news(known, seconds)
    if outcome == Wait.kNeedPython and not run_parked() and pumps is not None:
        pump_or_nap()
    cdef News n = engine.news()
    return n.version, [(r.rank, r.kind, <bytes>r.text) for r in n.reports], n.living


def end(str reason):
    """Close the engine; later communication raises `reason`."""
    global engine, ended, pumps
    ended = reason
    if engine == NULL:
        return
    cdef Engine *old = engine
    engine = NULL
    pumps = None
    old.close()  # not deleted: another thread may still be leaving it


# Inside fork(), so that the lock is held for its duration only: Python's own hooks may give up the GIL, for which others wait with it.
cdef void lock_for_fork() noexcept nogil:
    global at_rest
    at_rest = engine
    if at_rest != NULL:
        at_rest.lock_for_fork()


cdef void unlock_after_fork() noexcept nogil:
    if at_rest != NULL:
        at_rest.unlock_after_fork()


pthread_atfork(lock_for_fork, unlock_after_fork, unlock_after_fork)


def after_fork_in_child(str reason):
    """Let go of what the parent has open; later communication raises `reason`."""
    global engine, ended, pumps
    ended = reason
    engine = NULL
    pumps = None
    if at_rest != NULL:
        at_rest.forked()
