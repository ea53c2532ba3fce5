// The fast path of a transport that is written in Python: a table whose C side only moves messages between queues. No Python here.
//
//   engine -> am_short, am_bcopy -> Lane (one per peer, bounded) -> front, pop   -> the transport's send()
//   engine <- progress           <- incoming_                    <- put, fail    <- the transport's poll()
//
// Threads: the table's calls come under the engine's lock; the queue's methods from the one thread that moves messages, with the GIL and
// without the engine's lock. `mutex_` guards the queues between them: a leaf, held for a few instructions or one copy.
// Ownership: a Trampoline lives to the end of the process, for the engine keeps its table. An address is what the transport's open()
// returned on that rank.
#pragma once
#include <pympx/transport.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace mpx {

struct TrampolineTraits {
    std::string name;
    std::string address;  // of this rank, at most kMaxAddress bytes
    size_t max_message;   // bytes that one send takes
    double latency_s, bandwidth_Bps;
    bool inter_node;
};

class Trampoline {
public:
    static constexpr size_t kMaxAddress = 126;

    explicit Trampoline(TrampolineTraits traits);
    ~Trampoline();
    Trampoline(const Trampoline &) = delete;
    Trampoline &operator=(const Trampoline &) = delete;

    const mpx_transport *table() const { return &table_; }
    std::string device() const;  // by which domain_open finds this object

    // What is to be sent. A message stays where it is until it is popped; lanes are never removed.
    bool pending() const { return queued_.load(std::memory_order_acquire) > 0; }
    size_t lanes() const;
    const std::string &address(size_t lane) const;
    const std::vector<char> *front(size_t lane) const;  // nullptr: nothing
    void pop(size_t lane);

    // What arrived. False: the queue is full, progress first.
    bool room() const { return incoming_bytes_.load(std::memory_order_acquire) < kMaxIncoming; }
    void put(const char *address, size_t address_length, const void *message, size_t length);
    // A peer is lost: what is queued for it is dropped, its ep fails once what arrived is handled.
    void fail(const char *address, size_t address_length);

private:
    friend struct TrampolineTable;
    struct Lane {
        std::string address;
        std::deque<std::vector<char>> messages;
        bool failed = false;
        uint32_t generation = 0;  // of the newest ep
    };
    struct Incoming {
        std::string address;
        std::vector<char> message;
        bool lost;
    };
    struct Ep;
    struct Iface;
    static constexpr size_t kMaxQueued = 64;          // messages per lane
    static constexpr size_t kMaxIncoming = 8u << 20;  // bytes

    mpx_status push(Lane &, std::vector<char> message);
    Lane &lane_of(const std::string &address);

    TrampolineTraits traits_;
    mpx_transport table_;
    uint64_t number_;
    mutable std::mutex mutex_;
    std::deque<Lane> lanes_;
    std::deque<Incoming> incoming_;
    std::atomic<size_t> queued_{0}, incoming_bytes_{0};
    std::atomic<uint64_t> sent_bytes_{0}, received_bytes_{0};
    bool open_ = false;
};

}  // namespace mpx
