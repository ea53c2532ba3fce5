// MPI matching: posted receives and unexpected messages of one context, by {source, tag} with wildcards.
//
// Order: a message matches the receive posted first among those that fit; a receive matches the message that arrived first
// among those that fit. Within one source both queues are FIFO; numbers across sources restore the order for wildcards.
// Sources are world ranks. Engine lock held throughout.
#pragma once
#include <cstdint>
#include <vector>

#include "list.h"
#include "request.h"

namespace mpx {

// A message that arrived before its receive. Allocated with its payload or rkey behind it; freed by whoever matches it.
struct Message {
    enum class Form : uint8_t { kEager, kEagerSync, kRts, kGivenUp };
    ListLink<Message> link;
    Form form;
    Peer *peer;
    int32_t source;
    int32_t tag;
    uint64_t order;
    uint64_t size;  // of the message
    uint64_t sender_request;
    uint64_t address;
    uint64_t rkey_len;
    uint64_t credit;  // given back to the sender when this is freed

    char *payload() { return reinterpret_cast<char *>(this + 1); }
    static Message *create(size_t payload);
    static void destroy(Message *);
};

class MatchQueue {
public:
    explicit MatchQueue(size_t world_size) : posted_(world_size), unexpected_(world_size) {}
    std::vector<int32_t> members;  // world ranks; empty until the communicator is made here
    std::vector<int32_t> acked;    // failed members that the program acknowledged: wildcards need them no more
    uint32_t agreements = 0;       // begun here so far; the same on all members, as collectives
    bool revoked = false;
    ~MatchQueue();
    MatchQueue(const MatchQueue &) = delete;
    MatchQueue &operator=(const MatchQueue &) = delete;

    // The posted receive that a message fits, removed from the queue; nullptr if there is none.
    Request *take_posted(int32_t source, int32_t tag);
    void post(Request *);
    void withdraw(Request *);

    // The unexpected message that {source, tag} fits; stays in the queue.
    Message *find_unexpected(int32_t source, int32_t tag) const;
    void add_unexpected(Message *);
    void remove_unexpected(Message *);

    // Whether nothing waits here.
    bool idle() const;
    // The first posted receive that names `source` (kAnySource: a wildcard); nullptr if there is none.
    Request *first_posted(int32_t source) const { return (source == kAnySource ? posted_any_ : posted_[source]).front(); }

private:
    using PostedList = List<Request, &Request::queue>;
    static bool fits(int32_t wanted, int32_t tag) { return wanted == tag || wanted == kAnyTag; }
    std::vector<PostedList> posted_;
    PostedList posted_any_;
    std::vector<List<Message>> unexpected_;
    uint64_t post_order_ = 0;
    uint64_t arrival_order_ = 0;
};

}  // namespace mpx
