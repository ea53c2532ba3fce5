// Conversations: one node sends planned messages of all kinds to its peers and checks what each of them sends, by content and order.
// Both sides derive the plan of a direction from (seed, sender, receiver), so the receiver knows every byte that is to come.
#pragma once
#include "harness.h"

namespace mpx::conform {

enum MessageKind : uint8_t { kShort = 1, kBcopy = 2, kZcopy = 3 };  // also their AM ids

struct Message {
    MessageKind kind;
    size_t len, header_len, pieces;
    uint64_t sequence, key;
};

class Plan {
public:
    Plan() = default;
    Plan(uint64_t seed, uint64_t kinds, size_t max_len);
    const Message &next();

private:
    std::mt19937_64 random_;
    std::vector<MessageKind> kinds_;
    size_t max_len_ = 0;
    Message current_{};
    uint64_t sequence_ = 0;
};

constexpr uint64_t kAllKinds = MPX_CAP_AM_SHORT | MPX_CAP_AM_BCOPY | MPX_CAP_AM_ZCOPY;

struct TalkShape {
    uint64_t seed = 0, kinds = kAllKinds;
    uint64_t count = 0;         // messages to each peer
    size_t max_len = 65536;     // payload bytes; a kind's own limit may be lower
    size_t window = 64;         // operations outstanding at once
    bool peer_may_die = false;  // then sends may fail before on_error was told
    std::vector<int> to{}, from{};
};

class Talk {
public:
    Talk(Node &node, int me, TalkShape shape);
    // Sends until every peer said NO_RESOURCE, or all is sent. True when anything was sent.
    bool send();
    void limit(uint64_t count) { shape_.count = count; }  // what each peer gets in all; the other side is to expect the same
    void expect(uint64_t count) { expected_ = count; }
    bool sent() const;
    bool received() const;
    bool done() const { return sent() && received() && node_.outstanding() == 0; }
    uint64_t messages_sent() const;
    uint64_t messages_received() const;
    uint64_t payload_sent() const { return payload_sent_; }
    uint64_t payload_received() const { return payload_received_; }

private:
    struct Out {
        Plan plan;
        const Message *next = nullptr;
        Bytes payload, header;
        Op *op = nullptr;
        uint64_t sent = 0;
    };
    struct In {
        Plan plan;
        uint64_t received = 0;
        bool broken = false;
    };
    mpx_status send_one(Peer &peer, Out &out);
    void check(Incoming &in, MessageKind kind);

    Node &node_;
    TalkShape shape_;
    uint64_t expected_;
    std::map<int, Out> out_;
    std::map<int, In> in_;
    uint64_t payload_sent_ = 0, payload_received_ = 0;
};

// Both talks of a pair of nodes (one over a loopback transport), each progressed only when its own event says so.
// False, with a violation, when all sleep and no event comes.
bool drive_by_events(const std::vector<std::pair<Node *, Talk *>> &parties);

}  // namespace mpx::conform
