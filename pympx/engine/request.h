// Requests: one per operation in flight, pooled, addressed by peers through ids that carry a generation.
//
// Ownership: Engine::allocate hands a request to its user (the skin or a schedule), who gives it back by Engine::release
// after `done`. Until `done` the engine and the transport may touch it and its buffer; afterwards neither does.
// Threads: everything but `done`, `failed` and the fields it publishes belongs to the engine lock. Pool::give_back may be called by any
// thread.
#pragma once
#include <pympx/transport.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "error.h"
#include "list.h"

namespace mpx {

class Engine;
struct Peer;
struct Registration;
struct Request;

constexpr int32_t kAnySource = -2;
constexpr int32_t kAnyTag = -1;
constexpr int32_t kProcNull = -1;

struct Status {
    int32_t source = kAnySource;  // world rank
    int32_t tag = kAnyTag;
    Error error = Error::kNone;
    bool canceled = false;
    uint64_t bytes = 0;      // bytes delivered
    uint64_t full_size = 0;  // bytes of the message; more than `bytes` when truncated
};

enum class Kind : uint8_t { kSend, kRecv, kSchedule, kAgreement };
enum class Protocol : uint8_t { kShort, kEagerBcopy, kEagerZcopy, kRndvGet, kRndvFragments };
enum class SendMode : uint8_t { kStandard, kSync };

// Where a request stands; only the engine reads it.
enum class Stage : uint8_t {
    kIdle,
    kQueued,      // in Peer::pending
    kPosted,      // a receive waiting for its message
    kAwaitsPeer,  // sent; FIN or CTS to come
    kStreaming,   // fragments being sent
    kReceiving,   // fragments being received
    kTransport,   // a transport holds its completion
};

// Something that waits in Peer::pending: a send request or a control message.
struct PendingOp {
    ListLink<PendingOp> link;
    bool is_control = false;
};

// What a transport completes; leads back to its request.
struct Completion : mpx_completion {
    Request *request;
};

struct Request : PendingOp {
    Completion completion{};
    ListLink<Request> queue;    // posted queue, Peer::inflight, Peer::streams
    ListLink<Request> sibling;  // Execution::requests
    std::atomic<bool> done{false};
    std::atomic<bool> failed{false};  // a collective whose error is known while parts of it still hold the buffers
    Kind kind = Kind::kSend;
    Protocol protocol = Protocol::kShort;
    SendMode mode = SendMode::kStandard;
    Stage stage = Stage::kIdle;
    bool allocate = false;  // a receive that sizes itself: `buffer` is malloc'ed when matched, the user frees it
    uint32_t context = 0;
    int32_t source = kAnySource;  // receive: world rank or kAnySource
    int32_t tag = 0;
    uint32_t generation = 0;
    uint32_t index = 0;
    Peer *peer = nullptr;
    void *buffer = nullptr;
    uint64_t length = 0;    // bytes to send, or capacity
    uint64_t moved = 0;     // bytes sent or received so far
    uint64_t expected = 0;  // receive by fragments or get: bytes to come
    uint64_t remote = 0;    // the other side's request id
    uint64_t remote_address = 0;
    uint64_t order = 0;  // post order, across wildcards
    Registration *registration = nullptr;
    mpx_rkey_h rkey = nullptr;
    Status status;
    void (*on_done)(Request *) = nullptr;  // under the engine lock; for schedules
    void *owner = nullptr;
    Engine *engine = nullptr;
    uint32_t vertex = 0;
    uint64_t watcher = 0;                    // who wants to hear of its end, see watch.cc; 0: nobody
    std::atomic<uint32_t> *tally = nullptr;  // counted down at its end
    uint8_t awaited = 0;                     // by a thread that sleeps: Engine::Park
    Request *next_free = nullptr;

    uint64_t id() const { return uint64_t{index} << 32 | generation; }
};

class RequestPool {
public:
    // Engine lock held.
    Request *take() {
        if (!free_) refill();
        Request *r = free_;
        free_ = r->next_free;
        return r;
    }
    // Any thread, no lock. The request must be done.
    void give_back(Request *r) {
        Request *head = returned_.load(std::memory_order_relaxed);
        do {
            r->next_free = head;
        } while (!returned_.compare_exchange_weak(head, r, std::memory_order_release, std::memory_order_relaxed));
    }
    // Engine lock held. nullptr for an id that names no live request.
    Request *find(uint64_t id) const {
        const uint64_t index = id >> 32;
        if (index >= chunks_.size() * kChunk) return nullptr;
        Request *r = &chunks_[index / kChunk][index % kChunk];
        return r->generation == static_cast<uint32_t>(id) && r->stage != Stage::kIdle ? r : nullptr;
    }

private:
    static constexpr size_t kChunk = 256;
    void refill();
    std::vector<std::unique_ptr<Request[]>> chunks_;
    Request *free_ = nullptr;
    std::atomic<Request *> returned_{nullptr};
};

}  // namespace mpx
