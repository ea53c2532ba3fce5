// The objects of the verbs transport and who owns what. All of it runs under the engine lock, one thread at a time.
//
// plugin.py makes the verbs objects (context, protection domain, completion channel, and batches of a completion queue with queue pairs)
// by pyverbs, hands their pointers over, and closes them after domain_close; nothing here creates or destroys one. What is done with them
// is done here: transitions of queue pairs, posting, polling, registering memory.
//
// Domain owns the registrations that it made. Iface owns its descriptors, the pool of send slots, and a QueuePair for each pointer that it
// got, with the receive buffers that go with it. An ep borrows a QueuePair from the moment it needs an address until it is fenced off or
// destroyed; then the queue pair is in RESET, no late byte lands anywhere, and the next ep may have it. Completions carry the number of
// the queue pair and of its use, so those of an earlier use are known and ignored.
#pragma once
#include <infiniband/verbs.h>
#include <pympx/transport.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "config.hh"
#include "library.hh"

namespace mpx::verbs {

inline constexpr size_t kMaxIov = 8;
inline constexpr size_t kResults = 64;  // atomics in flight per iface
inline constexpr int kPollBatch = 16;
inline constexpr unsigned kReserve = 1;     // credits that only a message that returns credits may use
inline constexpr int64_t kTickMs = 250;     // of the timer, while an ep is connected
inline constexpr unsigned kQuietTicks = 2;  // without a completion: the peer is asked by an RDMA READ of nothing
inline constexpr unsigned kPatienceTicks =
    12;  // without a completion though one is due: the queue pair is dead (a deleted device tells nothing)
inline constexpr unsigned kSpinsPerTick = 4096;

struct Iface;
struct Ep;

void set_why(std::string text);
const char *why();
std::string describe_errno(int error);

// What an iface tells its peers through the bootstrap's store.
struct Address {
    uint32_t form;
    uint16_t lid;
    uint8_t link_layer;
    uint8_t mtu;
    uint8_t gid[16];
    uint8_t id[16];  // of the iface
};
inline constexpr uint32_t kAddressForm = 0x31764272;

// What an ep tells its peer over the control lane.
struct EpAddress {
    uint32_t number;  // of the queue pair
    uint32_t psn;
    uint32_t receives;  // credits that the peer has
};

struct PackedKey {
    uint64_t base, len;
    uint32_t rkey, access;
};

// What travels as immediate data with every message, beside its bytes. The number tells a message that the card sends twice, as
// soft-RoCE by its source may when acknowledgements are lost and a later packet is missed. A queue pair holds fewer than there are numbers.
struct Immediate {
    static constexpr unsigned kCreditBits = 12, kNumberBits = 13;
    static constexpr uint32_t kWithHeader = 1u << 5, kCreditOnly = 1u << 6;
    static_assert(kMaxDepth < 1u << kCreditBits && kMaxDepth < 1u << kNumberBits && 7 + kCreditBits + kNumberBits == 32);
    uint32_t value;

    static Immediate of(uint8_t id, bool with_header, unsigned credits, uint64_t number) {
        return {id | (with_header ? kWithHeader : 0) | credits << 7 | static_cast<uint32_t>(number << (7 + kCreditBits))};
    }
    uint8_t id() const { return value & 31; }
    size_t header_len() const { return value & kWithHeader ? sizeof(uint64_t) : 0; }
    bool credit_only() const { return value & kCreditOnly; }
    unsigned credits() const { return value >> 7 & ((1u << kCreditBits) - 1); }
    bool has_number(uint64_t number) const { return value >> (7 + kCreditBits) == (number & ((1u << kNumberBits) - 1)); }
};

// The wr_id of a work request: which queue pair, which of its uses, and a receive's slot or the low bits of a send's position.
struct WorkId {
    static constexpr uint64_t kLow = 0xffffff;
    uint64_t value;

    static WorkId receive(uint32_t queue_pair, uint32_t use, uint64_t slot) {
        return {uint64_t{1} << 63 | send(queue_pair, use, slot).value};
    }
    static WorkId send(uint32_t queue_pair, uint32_t use, uint64_t position) {
        return {uint64_t{queue_pair & 0x7fffff} << 40 | uint64_t{use & 0xffff} << 24 | (position & kLow)};
    }
    bool is_receive() const { return value >> 63; }
    uint32_t queue_pair() const { return value >> 40 & 0x7fffff; }
    uint32_t use() const { return value >> 24 & 0xffff; }
    uint64_t low() const { return value & kLow; }
};

// Memory of our own that the card reads and writes.
class Pinned {
public:
    Pinned() = default;
    ~Pinned() { release(); }
    Pinned(const Pinned &) = delete;
    Pinned &operator=(const Pinned &) = delete;
    bool allocate(mpx_domain *domain, size_t bytes);  // false with why()
    void release();
    uint8_t *data() const { return data_; }
    uint32_t lkey() const { return mr_->lkey; }
    explicit operator bool() const { return mr_ != nullptr; }

private:
    mpx_domain *domain_ = nullptr;
    uint8_t *data_ = nullptr;
    size_t bytes_ = 0;
    ibv_mr *mr_ = nullptr;
};

}  // namespace mpx::verbs

// The ABI's opaque types are ours to define.
struct mpx_memh {
    ibv_mr *mr;
    void *addr;
    size_t len;
    unsigned access;
    bool owned;  // from mem_alloc
};
struct mpx_rkey {
    mpx::verbs::PackedKey key;
};
struct mpx_domain {
    mpx::verbs::Config config;
    mpx::verbs::Library library;
    mpx::verbs::Iface *iface = nullptr;
};

namespace mpx::verbs {

struct QueuePair {
    ibv_qp *qp = nullptr;
    uint32_t index = 0;
    uint32_t use = 0;  // how many eps have had it
    Ep *ep = nullptr;
    Pinned receives;  // one slot for each receive that is posted
};

// What a queue pair was given to do and has not finished, in order.
struct Work {
    enum Kind : uint8_t { kMessage, kGet, kPut, kAtomic, kAsk };
    Kind kind;
    uint8_t *slot = nullptr;  // of the send pool
    mpx_completion *completion = nullptr;
    uint64_t bytes = 0;   // of a get
    uint32_t atomic = 0;  // in Iface::atomics
};

// An atomic that the card cannot do in one step is done by compare-and-swap until nobody came between.
struct Atomic {
    unsigned operation;
    uint64_t operand, expected, remote;
    uint32_t rkey;
    uint64_t *result;
    mpx_completion *completion;
    Ep *ep;
    bool posted;
};

struct Flush {
    mpx_completion *completion;
    uint64_t position;  // of `posted`
};

struct Ep : mpx_ep {
    enum State : uint8_t { kNew, kReady, kConnected, kBreaking, kBroken };

    Iface *owner = nullptr;
    Address peer{};
    QueuePair *qp = nullptr;
    State state = kNew;
    bool heard = false;      // the peer's end is connected
    bool crediting = false;  // in Iface::crediting
    bool asking = false;
    bool timed = false;  // in Iface::connected
    unsigned psn = 0;
    unsigned credits = 0;  // receives that the peer has posted for us
    unsigned owed = 0;     // receives posted anew of which it does not know
    uint64_t messages_sent = 0, messages_received = 0;
    uint64_t posted = 0, retired = 0, signaled = 0;  // signaled: position after the last that asked for a completion
    unsigned reads = 0;                              // gets and atomics in flight
    unsigned last_tick = 0;
    std::vector<Work> work;  // a ring of Config::send_depth
    std::deque<Flush> flushes;
    std::string reason;

    Work &at(uint64_t position) { return work[position % work.size()]; }
    bool room() const { return posted - retired < work.size(); }
};

struct Iface : mpx_iface {
    Iface(mpx_domain *domain, const mpx_iface_params &params);
    ~Iface();

    mpx_domain *domain;
    mpx_iface_params params;
    Address address{};
    int epoll_fd = -1, timer_fd = -1;
    std::vector<std::unique_ptr<QueuePair>> queue_pairs;
    std::vector<QueuePair *> spare;
    std::vector<ibv_cq *> completion_queues;
    std::string no_supply;  // why the control path had nothing to hand over
    bool asked_supply = false;

    std::vector<std::unique_ptr<Pinned>> send_memory;
    std::vector<uint8_t *> slots;  // free ones
    Pinned results;
    Atomic atomics[kResults];
    std::vector<uint32_t> free_atomics;
    std::deque<uint32_t> atomics_to_go_on;

    std::vector<Ep *> eps, crediting, breaking;
    std::vector<ibv_wc> stash;  // polled by event_arm, which may not act
    bool armed = false;
    bool starved = false;     // an operation was refused for what only a completion of our own gives back
    unsigned operations = 0;  // whose completion somebody waits for
    unsigned tick = 0, idle_polls = 0, connected = 0;
    uint64_t bytes_sent = 0, bytes_received = 0;

    bool open();
    void close_descriptors();
    unsigned progress();
    mpx_status arm();

    // iface.cc
    void handle(const ibv_wc &wc);
    void look_at_descriptors();
    void read_async_events();
    void on_tick();
    void set_timer(bool on);
    unsigned settle_breaking();
    uint32_t lkey_of(const uint8_t *slot) const;
    uint8_t *take_slot();
    bool more_slots();

    // link.cc
    mpx_status lend(Ep *ep);
    mpx_status connect(Ep *ep, const EpAddress &to);
    void take_back(Ep *ep);
    void break_ep(Ep *ep, std::string reason);
    void end_work(Ep *ep, mpx_status st);
    mpx_status supply(const char *json);
    void adopt(const Batch &batch);

    // ep.cc
    mpx_status post(Ep *ep, ibv_send_wr &wr, const Work &work);
    mpx_status post_message(Ep *ep, ibv_sge *sge, int pieces, uint8_t *slot, Immediate immediate);
    mpx_status post_slot(Ep *ep, uint8_t *slot, size_t len, Immediate immediate);
    bool ask(Ep *ep, mpx_completion *completion);
    bool return_credits(Ep *ep);
    void post_receive(QueuePair &qp, uint32_t slot);
    void retire(Ep *ep, uint64_t position);
    void finish(Ep *ep, const Work &work);
    void go_on(uint32_t atomic);
    mpx_status post_atomic(Ep *ep, uint32_t index);
};

extern const mpx_iface_ops kOps;
size_t max_short(const Config &);

// The control path, one function per entry of the table.
mpx_status domain_open(const mpx_domain_params *, mpx_domain **);
void domain_close(mpx_domain *);
mpx_status domain_supply(mpx_domain *, const char *);
mpx_status mem_alloc(mpx_domain *, size_t, void **, mpx_mem_h *);
void mem_free(mpx_domain *, void *, mpx_mem_h);
mpx_status mem_reg(mpx_domain *, void *, size_t, int, unsigned, mpx_mem_h *);
mpx_status mem_dereg(mpx_domain *, mpx_mem_h);
mpx_status rkey_pack(mpx_domain *, mpx_mem_h, void *, size_t);
mpx_status rkey_unpack(mpx_domain *, const void *, size_t, mpx_rkey_h *);
void *rkey_ptr(mpx_domain *, mpx_rkey_h, uint64_t);
void rkey_release(mpx_domain *, mpx_rkey_h);
mpx_status iface_open(mpx_domain *, const mpx_iface_params *, mpx_iface **);
void iface_close(mpx_iface *);
mpx_status iface_query(mpx_iface *, mpx_iface_attr *);
mpx_status iface_address(mpx_iface *, void *);
int iface_reachable(mpx_iface *, const void *, size_t);
mpx_status ep_create(mpx_iface *, const void *, size_t, mpx_ep **);
mpx_status ep_address(mpx_ep *, void *);
mpx_status ep_connect(mpx_ep *, const void *, size_t);
mpx_status ep_fence_off(mpx_ep *);
mpx_status ep_repair(mpx_ep *, const void *, size_t);
mpx_status ep_check(mpx_ep *, mpx_completion *);
void ep_destroy(mpx_ep *);
uint64_t iface_bytes(mpx_iface *, int);
void iface_forked(mpx_iface *);

}  // namespace mpx::verbs
