// The engine: requests, matching, protocols, progress and waiting over any set of transports. No Python, no transport by name.
//
// Threads: every public method takes the engine lock itself unless its comment says otherwise; `try_` methods only try it, so
// they may be called with Python's GIL held. wait() sleeps without the lock; one thread at a time sleeps on the transports'
// descriptors, others on a condition variable, and a thread that leaves wakes another.
// Ownership: buffers belong to callers, who keep them until the request is done. Peers and transports live as long as the engine.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "error.h"
#include "match.h"
#include "peer.h"
#include "request.h"
#include "schedule.h"
#include "wire.h"

namespace mpx {

struct Config {
    int32_t rank = 0;
    int32_t size = 1;
    uint64_t eager_window = 4u << 20;  // bytes of unexpected eager messages per peer
    double spin_seconds = 50e-6;       // before a sleep
};

enum class Wait : int32_t { kDone, kInterrupted, kNeedPython };

class Engine {
public:
    explicit Engine(const Config &config, std::string job_key);
    ~Engine();
    Engine(const Engine &) = delete;
    Engine &operator=(const Engine &) = delete;

    // --- set-up (control.cc). Failures throw std::runtime_error with a reason.
    int add_transport(const mpx_transport *table, const std::string &device, const std::string &config_json);
    std::string address(int transport) const;
    std::string unreachable_reason(int transport, const std::string &address);  // empty: reachable
    void set_peer(int32_t rank, int transport, const std::string &address);
    std::string describe_protocols(int transport) const { return transports_[transport]->protocols.describe(); }
    const mpx_iface_attr &attributes(int transport) const { return transports_[transport]->attr; }
    Counters transport_counters(int transport) const;
    Counters peer_counters(int32_t rank) const;
    uint64_t medium_bytes(int transport, bool received) const;
    int32_t peer_transport(int32_t rank) const;
    int32_t peer_state(int32_t rank) const;

    // --- the end (control.cc): say BYE to everybody we know, wait() until farewells are over, close.
    void begin_farewell();
    void close();

    // --- sending (send.cc). rank: world rank. The peer's failure is the request's status.
    // Hot: the message left and the buffer is reusable, or nothing happened.
    bool try_send(uint32_t context, int32_t rank, int32_t tag, const void *buffer, uint64_t length);
    Request *isend(uint32_t context, int32_t rank, int32_t tag, const void *buffer, uint64_t length, SendMode mode);
    Request *try_isend(uint32_t context, int32_t rank, int32_t tag, const void *buffer, uint64_t length, SendMode mode);

    // --- receiving (receive.cc). source: world rank or kAnySource. allocate: buffer is ignored, Request::buffer is malloc'ed.
    Request *irecv(uint32_t context, int32_t source, int32_t tag, void *buffer, uint64_t capacity, bool allocate);
    // nullptr when the lock was taken by another thread. Polls for at most `polls` rounds.
    Request *try_irecv(uint32_t context, int32_t source, int32_t tag, void *buffer, uint64_t capacity, bool allocate, int polls);
    bool iprobe(uint32_t context, int32_t source, int32_t tag, Status *status);
    bool cancel(Request *);  // a receive that has not matched; true when withdrawn

    // --- collectives (schedule.cc)
    Request *start(Schedule &schedule, const Binding &binding);
    Request *try_start(Schedule &schedule, const Binding &binding, int polls);
    bool take_parked(Parked *out);
    void finish_parked(const Parked &work, bool ok);

    // --- progress and waiting (progress.cc, wait.cc)
    void progress();
    bool try_poll(const Request *request, int polls);  // true: done
    // They return kInterrupted after a signal and at least every 100 ms, so that the caller can look at signals and deadlines.
    Wait wait(const Request *request);
    Wait wait_any(Request *const *requests, size_t count);
    Wait wait_message(uint32_t context, int32_t source, int32_t tag, Status *status);
    Wait wait_farewell();
    // The request must be done. Any thread, no lock.
    void release(Request *r) { requests_.give_back(r); }
    // A context's members bound which failures reach its wildcard receives.
    void define_context(uint32_t context, const int32_t *world, int32_t size);
    void free_context(uint32_t context);
    uint64_t unexpected_bytes() const;
    int32_t failed_ranks(int32_t *out, int32_t capacity) const;

    const Config &config() const { return config_; }

private:
    // Tells a spinning thread that somebody wants the lock; std::mutex alone is not fair.
    class Locked {
    public:
        explicit Locked(Engine &engine) : engine_(engine), lock_(engine.mutex_, std::defer_lock) {
            engine_.contenders_.fetch_add(1, std::memory_order_relaxed);
            lock_.lock();
            engine_.contenders_.fetch_sub(1, std::memory_order_relaxed);
        }
        std::unique_lock<std::mutex> &lock() { return lock_; }

    private:
        Engine &engine_;
        std::unique_lock<std::mutex> lock_;
    };

    // set-up and failure
    void open_ep(Peer &);
    Peer *peer_of_address(const Transport &, const void *address, size_t length);
    void fail_peer(Peer &);
    void handle_failures();
    void fail_sends_to(Peer &);
    void fail_receives_from(Peer &);
    bool some_member_failed(const MatchQueue &) const;
    int32_t culprit(const MatchQueue &, int32_t source) const;
    bool wildcard_is_hopeless(const MatchQueue &) const;
    bool farewell_over() const;

    // sending; all return what the transport said
    Request *allocate(Kind);
    Request *isend_locked(uint32_t context, int32_t rank, int32_t tag, const void *buffer, uint64_t length, SendMode mode);
    bool send_now(Peer &, uint64_t match, const void *buffer, uint64_t length);
    mpx_status start_send(Request *);
    mpx_status send_rts(Request *);
    void queue(Peer &, PendingOp *);
    void send_control(Peer &, uint8_t id, uint64_t header, const CtsHeader *cts = nullptr);
    mpx_status post_control(Peer &, uint8_t id, uint64_t header, const CtsHeader &cts);
    mpx_status send_fragment(Request *, bool *last);
    void flush_peer(Peer &);
    void flush_backlog();
    void add_to_backlog(Peer &);

    // receiving
    Request *irecv_locked(uint32_t context, int32_t source, int32_t tag, void *buffer, uint64_t capacity, bool allocate);
    MatchQueue &queue_of(uint32_t context);
    bool reserve(Request *, Peer &, int32_t tag, uint64_t size);
    void deliver_eager(Request *, Peer &, int32_t tag, const void *data, uint64_t size);
    void start_rendezvous(Request *, Peer &, int32_t tag, const RtsHeader &, const void *rkey);
    void ask_for_fragments(Request *);
    bool get_next(Request *);
    void get_done(Request *, mpx_status);
    void free_keys(Request *);
    void end_unfinished(Request *, Error);
    void give_credit(Peer &, uint64_t bytes);
    void consume(Request *, Message *);
    void give_up(Request *, Peer &, int32_t tag, int32_t failed_rank);
    void keep(MatchQueue &, Message *);
    void discard(Message *);
    bool hopeless(uint32_t context, const MatchQueue &, int32_t source) const;

    // handlers of active messages; arg is the Engine, ep_user the Peer
    static mpx_status on_eager(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_status on_eager_sync(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_status on_rts(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_status on_cts(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_status on_data(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_status on_fin(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_status on_credit(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_status on_bye(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_status on_given_up(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_status on_unknown(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_ep *on_incoming(void *, const void *, size_t);
    static void on_error(void *, mpx_ep *, mpx_status);
    static void on_transport_done(mpx_completion *, mpx_status);

    // schedules
    Request *start_locked(Schedule &schedule, const Binding &binding);
    void advance(Execution &);
    void run_vertex(Execution &, uint32_t vertex);
    void vertex_ended(Execution &, uint32_t vertex, Error);
    static void on_vertex_done(Request *);
    void withdraw_receives(Execution &);
    void tell_successors(Execution &);
    void finish(Execution &);

    // completion, progress, sleep
    void complete(Request *, Error);
    void finish_send(Request *, Error);
    unsigned progress_locked();
    bool arm_all();
    void wake_sleeper();
    template <class Ready> Wait wait_until(Ready ready);
    bool sleep(std::unique_lock<std::mutex> &lock);
    mpx_status protocol_violation(Peer &);

    Config config_;
    std::string job_key_;
    mutable std::mutex mutex_;
    std::vector<std::unique_ptr<Transport>> transports_;
    std::vector<Peer> peers_;
    std::vector<std::unique_ptr<MatchQueue>> contexts_;
    RequestPool requests_;
    std::vector<Peer *> backlog_;
    std::vector<Peer *> failures_;
    std::vector<Parked> parked_;
    mpx_am_handler handlers_[MPX_AM_ID_MAX];
    uint64_t unexpected_bytes_ = 0;
    int wake_fd_ = -1;
    std::atomic<int> contenders_{0};
    bool sleeping_ = false;  // a thread is inside poll(2)
    bool woken_ = false;     // and was told to look again
    int waiting_ = 0;        // threads on the condition variable
    bool closed_ = false;
    std::condition_variable completed_;
};

}  // namespace mpx
