# The part of the engine that the skin uses. See pympx/engine/engine.h for ownership and thread rules.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector


cdef extern from "pympx/transport.h" nogil:
    ctypedef struct mpx_transport:
        uint32_t size
        const char *name
    ctypedef struct mpx_iface_attr:
        uint64_t caps
        size_t iface_addr_len
        size_t ep_addr_len
        size_t rkey_packed_len
        size_t max_am_short
        size_t max_am_bcopy
        size_t max_am_zcopy
        size_t max_am_hdr
        size_t max_iov
        size_t min_zcopy
        size_t max_zcopy
        double latency_s
        double bandwidth_Bps
        double get_overhead_s
        double get_bandwidth_Bps
        double overhead_s
        double reg_fixed_s
        double reg_per_byte_s
        int atomic_domain


cdef extern from "engine/error.h" namespace "mpx" nogil:
    cdef enum class Error(int32_t):
        kNone
        kTruncate
        kProcFailed
        kUnreachable
        kNoMemory
        kCanceled
        kReduceFailed
        kRevoked
        kInternal


cdef extern from "engine/request.h" namespace "mpx" nogil:
    int32_t kAnySource
    cdef enum class SendMode(uint8_t):
        kStandard
        kSync
    cdef cppclass Status "mpx::Status":
        int32_t source
        int32_t tag
        Error error
        cbool canceled
        uint64_t bytes
        uint64_t full_size
    cdef cppclass AtomicBool "std::atomic<bool>":
        cbool load()
    cdef cppclass Request "mpx::Request":
        AtomicBool done
        AtomicBool failed
        Status status
        void *buffer
        uint64_t length


cdef extern from "engine/reduce.h" namespace "mpx" nogil:
    cdef enum class ReduceOp(uint8_t):
        kSum
    cdef enum class ElementType(uint8_t):
        kNone
    ctypedef void (*ReduceFn)(const void *, void *, size_t) noexcept nogil
    ReduceFn reduce_function(ReduceOp, ElementType)


cdef extern from "engine/schedule.h" namespace "mpx" nogil:
    cdef cppclass Schedule "mpx::Schedule":
        @staticmethod
        unique_ptr[Schedule] decode(const int64_t *, size_t) except +
    cdef cppclass Binding "mpx::Binding":
        uint32_t context
        int32_t tag
        const int32_t *world
        const void *send_buffer
        void *receive_buffer
        uint64_t element_size
        ReduceFn reduce
        void *python_op
    cdef cppclass Parked "mpx::Parked":
        void *python_op
        const void *inbuf "in"
        void *inout
        uint64_t bytes


cdef extern from "engine/peer.h" namespace "mpx" nogil:
    cdef cppclass Counters "mpx::Counters":
        uint64_t sent_bytes
        uint64_t sent_messages
        uint64_t received_bytes
        uint64_t received_messages

cdef extern from "engine/mr_cache.h" namespace "mpx" nogil:
    cdef cppclass CacheReport "mpx::CacheReport":
        cbool pays
        string reason
        uint64_t hits, misses, uncacheable, evictions, invalidated, bytes, regions

cdef extern from "engine/session.h" namespace "mpx" nogil:
    cdef cppclass LinkCounters "mpx::LinkCounters":
        uint64_t cuts
        uint64_t reconnects
        uint64_t replayed
        double longest_stall
        double last_cut
        double last_up


cdef extern from "engine/agreement.h" namespace "mpx" nogil:
    cdef cppclass AgreementResult "mpx::AgreementResult":
        uint32_t flag
        uint32_t next_context
        int32_t *flag_copy
        vector[uint8_t] gone


cdef extern from "engine/engine.h" namespace "mpx" nogil:
    cdef cppclass Config "mpx::Config":
        int32_t rank
        int32_t size
        uint64_t eager_window
        double spin_seconds
        double link_timeout
        cbool regcache
        cbool crowded
    cdef enum class Wait(int32_t):
        kDone
        kInterrupted
        kNeedPython
    cdef cppclass Report "mpx::Report":
        int32_t rank
        uint32_t kind
        string text
    cdef cppclass News "mpx::News":
        uint64_t version
        vector[Report] reports
        vector[int32_t] living
    cdef cppclass Engine "mpx::Engine":
        Engine(const Config &, string) except +
        int add_transport(const mpx_transport *, const string &, const string &) except +
        string address(int) except +
        string unreachable_reason(int, const string &) except +
        void set_peer(int32_t, int, const string &) except +
        string describe_protocols(int) except +
        void set_control_lane(int32_t, int, const string &) except +
        const mpx_iface_attr &attributes(int)
        Counters transport_counters(int) except +
        Counters peer_counters(int32_t) except +
        LinkCounters link_counters(int32_t) except +
        CacheReport cache_report(int) except +
        string failure_reason(int32_t) except +
        uint64_t medium_bytes(int, cbool) except +
        int32_t peer_transport(int32_t) except +
        Request *agree(uint32_t, uint32_t, uint32_t, cbool, AgreementResult *)
        void revoke(uint32_t)
        cbool any_revoked()
        cbool is_revoked(uint32_t)
        vector[int32_t] failed_members(uint32_t)
        int32_t acknowledge_failed(uint32_t, int32_t)
        void tell_raised(uint32_t, uint32_t, string, cbool)
        News news()
        Wait wait_news(uint64_t, double)
        void begin_farewell()
        void close()
        cbool try_send(uint32_t, int32_t, int32_t, const void *, uint64_t)
        Request *isend(uint32_t, int32_t, int32_t, const void *, uint64_t, SendMode)
        Request *try_isend(uint32_t, int32_t, int32_t, const void *, uint64_t, SendMode)
        Request *irecv(uint32_t, int32_t, int32_t, void *, uint64_t, cbool)
        Request *try_irecv(uint32_t, int32_t, int32_t, void *, uint64_t, cbool, int)
        cbool iprobe(uint32_t, int32_t, int32_t, Status *)
        cbool cancel(Request *)
        Request *start(Schedule &, const Binding &)
        Request *try_start(Schedule &, const Binding &, int)
        cbool take_parked(Parked *)
        cbool take_control_need(int *)
        void supply(int, const string &) except +
        void finish_parked(const Parked &, cbool)
        void progress()
        void lock_for_fork()
        void unlock_after_fork()
        void forked()
        cbool try_poll(const Request *, int)
        Wait wait(Request *)
        Wait wait_any(Request **, size_t)
        Wait wait_message(uint32_t, int32_t, int32_t, Status *)
        Wait wait_farewell()
        void release(Request *)
        void define_context(uint32_t, const int32_t *, int32_t)
        void free_context(uint32_t)
        uint64_t unexpected_bytes()
