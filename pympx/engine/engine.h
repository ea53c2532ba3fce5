// The engine: requests, matching, protocols, progress and waiting over any set of transports. No Python, no transport by name.
//
// Threads: every public method takes the engine lock itself unless its comment says otherwise; `try_` methods only try it, so
// they may be called with Python's GIL held. wait() sleeps without the lock; one thread at a time sleeps on the transports'
// descriptors, others on a condition variable, and a thread that leaves wakes another.
// Ownership: buffers belong to callers, who keep them until the request is done. Peers and transports live as long as the engine.
#pragma once
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "agreement.h"
#include "contexts.h"
#include "error.h"
#include "match.h"
#include "peer.h"
#include "raised.h"
#include "request.h"
#include "schedule.h"
#include "wire.h"

namespace mpx {

struct Config {
    int32_t rank = 0;
    int32_t size = 1;
    uint64_t eager_window = 4u << 20;  // bytes of unexpected eager messages per peer
    double spin_seconds = 50e-6;       // before a sleep
    double link_timeout = 30;          // seconds without a sign of a peer before it is given up, where links may break
    int slice_ms = 100;                // the longest time that a wait goes on without a look at signals and deadlines
    bool regcache = true;              // registrations may be kept
    bool crowded = false;              // more ranks than processors: who waits offers its own
};

// The kinds of active messages; above kActiveOwn they are the callers'.
constexpr uint32_t kActiveEcho = 0, kActiveOwn = 8, kActiveKinds = 16;

using Tally = std::atomic<uint32_t>;
constexpr uint32_t kMaxNumber = 0x7fffffff;  // of a call: a tag

struct Exchange {
    Request *answer = nullptr;  // nullptr: another thread had the lock
    uint32_t number = 0;
    Request *message = nullptr;  // nullptr: it has left, or never will because the answer ended in an error at once
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
    // For a transport that connects eps pairwise: over which other one, added before it, this peer's are connected.
    void set_control_lane(int32_t rank, int transport, const std::string &address);
    std::string describe_protocols(int transport) const { return transports_[transport]->protocols.describe(); }
    const mpx_iface_attr &attributes(int transport) const { return transports_[transport]->attr; }
    Counters transport_counters(int transport) const;
    Counters peer_counters(int32_t rank) const;
    LinkCounters link_counters(int32_t rank) const;  // zeros where links do not break
    CacheReport cache_report(int transport) const;
    std::string failure_reason(int32_t rank) const;  // of a failed peer, one line; empty: nothing more is known
    uint64_t medium_bytes(int transport, bool received) const;
    int32_t peer_transport(int32_t rank) const;
    int32_t peer_state(int32_t rank) const;

    // --- failures that programs survive (agreement.cc)
    Request *agree(uint32_t context, uint32_t flag, uint32_t next_context, bool heeds_failures, AgreementResult *result);
    void revoke(uint32_t context);
    bool any_revoked() const { return any_revoked_.load(std::memory_order_relaxed); }
    bool is_revoked(uint32_t context) const;
    std::vector<int32_t> failed_members(uint32_t context) const;
    int32_t acknowledge_failed(uint32_t context, int32_t count);  // returns how many are acknowledged now

    // --- exceptions that nobody caught (raised.cc, see raised.h)
    // Tells peers that we have a link to, or `everybody`; kEndsJob ends this process's own calls too.
    void tell_raised(uint32_t kind, uint32_t flags, std::string text, bool everybody);
    News news() const;
    Wait wait_news(uint64_t known, double seconds);  // until there is news, or time is over

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
    // A transport whose control path is to be asked for what its fast path lacks, which supply() hands over. False: none.
    bool take_control_need(int *transport);
    void supply(int transport, const std::string &json);
    void finish_parked(const Parked &work, bool ok);

    // --- active messages (active.cc). A handler runs inside progress, under the engine lock, and may call answer() alone. `header` is the
    // match word of the answer; where the kind has no handler (yet) the engine sends an empty one.
    using ActiveHandler = void (*)(void *arg, Engine &, int32_t source, uint64_t header, const void *payload, size_t length);
    void set_active_handler(uint32_t kind, ActiveHandler fn, void *arg);  // before any peer may send it; kind: from kActiveOwn on
    // The payload is copied. Throws std::length_error when it is longer than one message of the transport.
    Error send_active(int32_t rank, uint32_t kind, uint64_t header, const void *payload, size_t length);
    void answer(int32_t rank, uint64_t match, const void *payload, size_t length);

    // --- serving while the program computes (service.cc). Throws std::runtime_error where a transport has no native progress.
    void start_service();

    // --- event loops (watch.cc)
    int watch_fd();  // throws std::runtime_error when there can be none
    // To be called when the descriptor is readable, and after what it returns in milliseconds. Adds the keys of watched requests that
    // ended.
    int watch(std::vector<uint64_t> *ended);
    bool watch_request(Request *, uint64_t key);  // false: it is done

    // --- calls (exchange.cc): a message, and the receive of its answer, whose tag is the number that is written into the message at
    // `number_at` (32 bits). Counted in `tally` until the answer came.
    Exchange exchange(int32_t rank, uint32_t context, uint32_t answers, void *message, uint64_t length, uint64_t number_at, Tally *tally);
    Exchange try_exchange(int32_t rank, uint32_t context, uint32_t answers, void *message, uint64_t length, uint64_t number_at,
                          Tally *tally);
    void abandon(Request *answer);
    Wait wait_below(const Tally *tally, uint32_t limit);
    Wait wait_served(Request *const *requests, size_t count, int limit_ms, std::vector<uint64_t> *ended);
    void tell_served(uint64_t key);  // ends wait_served(), which reports the key
    Wait wait_at_most(Request *request, int limit_ms);

    // --- progress and waiting (progress.cc, wait.cc)
    void progress();
    // A fork happens between these two, in both processes, so that the child finds transports at rest. There, `forked` lets go of what the
    // parent has open; the child's engine is then neither used nor destroyed.
    void lock_for_fork() { mutex_.lock(); }
    void unlock_after_fork() { mutex_.unlock(); }
    void forked();
    bool try_poll(const Request *request, int polls);  // true: done
    // They return kInterrupted after a signal and at least every slice_ms, so that the caller can look at signals and deadlines;
    // kNeedPython when work is parked or a control path is needed, and at every turn when a transport has no native progress: the caller
    // moves its messages, or sleeps.
    Wait wait(Request *request);
    Wait wait_any(Request *const *requests, size_t count);
    Wait wait_message(uint32_t context, int32_t source, int32_t tag, Status *status);
    Wait wait_farewell();
    // The request must be done. Any thread, no lock.
    void release(Request *r) { requests_.give_back(r); }
    // A context's members bound which failures reach its wildcard receives.
    void define_context(uint32_t context, const int32_t *world, int32_t size);
    void free_context(uint32_t context);
    uint64_t unexpected_bytes() const;
    std::vector<int32_t> failed_ranks() const;  // in the order in which they were noticed

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

    // How a thread sleeps until its request is done: on the descriptors, one; on a condition variable, the others; those that serve on
    // their own.
    enum Park : uint8_t { kOnDescriptors = 1, kOnCondition = 2, kServing = 4, kEverybody = 7 };
    // A thread inside poll(2): one of those that wait, and the service thread.
    struct Sleeper {
        int fd = -1;  // ends it
        bool asleep = false;
        bool woken = false;  // and was told to look again
        void wake();
    };

    // set-up and failure
    void open_ep(Peer &);
    void connect(Peer &);
    void close_transport(Transport &);
    Peer *peer_of_address(const Transport &, const void *address, size_t length);
    void fail_peer(Peer &);
    void handle_failures();
    void fail_sends_to(Peer &);
    void fail_receives_from(Peer &);
    void cut(Peer &);
    bool some_member_failed(const MatchQueue &) const;
    int32_t culprit(const MatchQueue &, int32_t source) const;
    bool wildcard_is_hopeless(const MatchQueue &) const;
    bool farewell_over();
    void on_loss(Peer &, mpx_status);
    bool is_gone(int32_t rank) const;

    // control lanes (lanes.cc)
    bool open_lane(Peer &);
    void lane_lost(Peer &, mpx_status);
    bool lane_at_rest(Peer &);
    static mpx_status say_over_lane(void *, mpx_ep *session, const void *message, size_t length);
    static bool lane_lives(void *, const mpx_ep *session);
    static mpx_status on_wireup(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_status on_lane_bye(void *, void *, const void *, size_t, void *, size_t, unsigned);

    // agreement and revocation
    Agreement &agreement(uint32_t context, uint32_t number);
    void tell(const Agreement &, int32_t rank, uint32_t step, const Agreement::Contribution *what);
    void step_agreements();
    void step(Agreement &);
    void decide(Agreement &);
    void end_agreements();
    void mark_revoked(uint32_t context);
    void end_revoked(MatchQueue &, Request *);
    void reject(Message *);

    // uncaught exceptions
    void open_to_tell(Peer &);
    void tell_raised_to(Peer &);
    void doom(Peer &, const std::string &reason);

    // sending; all return what the transport said
    Request *allocate(Kind);
    Request *isend_locked(uint32_t context, int32_t rank, int32_t tag, const void *buffer, uint64_t length, SendMode mode);
    bool send_now(Peer &, uint64_t match, const void *buffer, uint64_t length);
    mpx_status start_send(Request *);
    mpx_status send_rts(Request *);
    void queue(Peer &, PendingOp *);
    void send_control(Peer &, uint8_t id, uint64_t header, const CtsHeader *cts = nullptr);
    void send_body(Peer &, uint8_t id, std::string body);
    mpx_status post_control(Peer &, const ControlOp &);
    void post_or_queue(Peer &, ControlOp &&);
    mpx_status send_fragment(Request *, bool *last);
    void flush_peer(Peer &);
    void flush_backlog();
    void add_to_backlog(Peer &);

    // receiving
    Request *irecv_locked(uint32_t context, int32_t source, int32_t tag, void *buffer, uint64_t capacity, bool allocate);
    MatchQueue &queue_of(uint32_t context) { return contexts_.at(context, peers_.size()); }
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
    bool failed_unknown_to_the_program(const MatchQueue &, int32_t rank) const;

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
    static mpx_status on_agree(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_status on_revoke(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_status on_active(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_status on_raised(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_status on_unknown(void *, void *, const void *, size_t, void *, size_t, unsigned);
    // of transports; arg is the Transport
    static mpx_ep *on_incoming(void *, const void *, size_t);
    static void on_link_error(void *, mpx_ep *, mpx_status);
    static void on_need_control(void *);
    static void on_error(void *, mpx_ep *, mpx_status);  // arg is the Engine, the ep as the engine knows it
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
    bool lanes_due();
    bool arm_all();
    void wake_sleepers();
    void tell(unsigned parks);
    template <class Ready> Wait wait_until(int limit_ms, Request *const *awaited, size_t count, Ready ready, Park park = kOnCondition);
    bool sleep(std::unique_lock<std::mutex> &lock, Sleeper &, int limit_ms);
    mpx_status protocol_violation(Peer &);
    void install_own_handlers();
    void serve();
    void nap(std::chrono::microseconds time);
    void hand_over();
    void stop_service();
    void ring_watcher();
    void report_end(Request *);
    Exchange exchange_locked(int32_t rank, uint32_t context, uint32_t answers, void *message, uint64_t length, uint64_t number_at,
                             Tally *tally);
    void free_when_done(Request *);
    static constexpr int kPassesPerTurn = 16;      // between two looks at the clock
    static constexpr int kSliceWithoutEvents = 1;  // milliseconds, over a transport that cannot wake us

    Config config_;
    std::string job_key_;
    mutable std::mutex mutex_;
    std::vector<std::unique_ptr<Transport>> transports_;
    std::vector<Peer> peers_;
    Contexts contexts_;
    RequestPool requests_;
    std::vector<Peer *> backlog_;
    std::vector<Peer *> failures_;
    std::vector<int32_t> failed_in_order_;
    std::map<std::pair<uint32_t, uint32_t>, std::unique_ptr<Agreement>> agreements_;  // by context and number
    std::deque<std::pair<uint32_t, uint32_t>> remembered_;                            // those decided
    bool stepping_ = false;
    bool agreements_changed_ = false;
    std::atomic<bool> any_revoked_{false};
    Report own_report_;            // kind 0: nothing was told
    std::vector<Report> reports_;  // of peers, the last of each
    uint64_t news_ = 0;            // counts what news() shows
    std::vector<Parked> parked_;
    mpx_am_handler handlers_[MPX_AM_ID_MAX];
    uint64_t unexpected_bytes_ = 0;
    std::atomic<int> contenders_{0};
    Sleeper waiter_, server_;
    int waiting_ = 0;               // threads on completed_
    int waiting_to_serve_ = 0;      // threads on call_came_
    int waiting_for_anything_ = 0;  // threads in waits for more than requests
    struct Active {
        ActiveHandler fn = nullptr;
        void *arg = nullptr;
    };
    std::array<Active, kActiveKinds> active_;
    uint32_t numbers_ = 0;             // of calls
    std::atomic<uint64_t> passes_{0};  // of progress, by whomever
    std::thread service_;
    bool serving_ = false;                  // there is a service thread
    std::mutex nap_mutex_;                  // a leaf
    std::condition_variable handover_;      // ends the service thread's nap
    std::atomic<bool> handed_over_{false};  // those who drove have stopped
    std::atomic<bool> stopping_{false};
    int watch_fd_ = -1, watch_bell_ = -1;
    bool watched_ = false;                        // an event loop relies on what was armed
    std::vector<uint64_t> ended_, ended_served_;  // keys of requests, for event loops and for the thread that serves
    bool closed_ = false;
    bool has_lanes_ = false;       // some transport is a control lane
    long lane_tick_ = 0;           // when they were last looked at
    bool control_needed_ = false;  // by a transport
    bool needs_python_ = false;    // a transport has no native progress: whoever waits must return to move its messages
    std::condition_variable completed_, call_came_;
};

}  // namespace mpx
