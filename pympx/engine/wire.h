// What travels in active messages: ids, the match word, headers. Little endian; all ranks run the same build.
#pragma once
#include <bit>
#include <cstdint>

namespace mpx {

static_assert(std::endian::native == std::endian::little, "the wire format is little endian");

enum AmId : uint8_t {
    kAmEager = 1,      // short: header = match word; bcopy: match word in front of the payload; zcopy: header = match word
    kAmEagerSync = 2,  // SyncHeader, payload; answered by kAmFin when matched
    kAmRts = 3,        // RtsHeader, rkey
    kAmCts = 4,        // CtsHeader: send fragments
    kAmData = 5,       // DataHeader, payload
    kAmFin = 6,        // header = sender's request id: matched (sync) or fetched (rendezvous by get)
    kAmCredit = 7,     // header = bytes of eager credit given back
    kAmGivenUp = 9,    // header = match word, payload = failed rank (64 bits): the message of a collective that will never be sent
    kAmBye = 8,        // the sender has finalized; end of its link is no failure
    kAmAgree = 10,     // see agreement.cc
    kAmRevoke = 11,    // header = context of the communicator
    kAmRaised = 15,    // see raised.h
    kAmActive = 18,    // ActiveHeader, payload: see active.cc
    // over control lanes (lanes.cc)
    kAmWireup = 16,   // see wireup.h
    kAmLaneBye = 17,  // as kAmBye, for the lane alone
    // of sessions (session.cc), not counted among the messages that they number
    kAmResume = 12,  // header = epoch, payload = messages received so far (64 bits)
    kAmAck = 13,     // header = messages received so far
    kAmAskAck = 14,  // to be answered by kAmAck; header = messages sent so far
};

// What ends a session in order: it is acknowledged at once, and afterwards the end of the link is no failure.
constexpr bool is_bye(uint8_t id) { return id == kAmBye || id == kAmLaneBye; }

// context (24 bits) | unused (8) | tag (32)
constexpr uint64_t match_word(uint32_t context, int32_t tag) { return uint64_t{context} << 40 | static_cast<uint32_t>(tag); }
constexpr uint32_t match_context(uint64_t word) { return static_cast<uint32_t>(word >> 40); }
constexpr int32_t match_tag(uint64_t word) { return static_cast<int32_t>(word & 0xffffffffu); }
// A communicator has two contexts: an even one for messages, the odd one after it for its collectives.
constexpr bool is_collective(uint32_t context) { return context & 1; }
constexpr uint32_t kMaxContext = (1u << 24) - 1;

struct SyncHeader {
    uint64_t match;
    uint64_t sender_request;
};
struct RtsHeader {
    uint64_t match;
    uint64_t sender_request;
    uint64_t size;
    uint64_t address;
    uint64_t rkey_len;  // 0: fragments only
};
struct CtsHeader {
    uint64_t sender_request;
    uint64_t receiver_request;
    uint64_t limit;  // bytes wanted: less than the message when the receive buffer is short
};
struct DataHeader {
    uint64_t receiver_request;
    uint64_t offset;
};
struct ActiveHeader {
    uint32_t kind;
    uint32_t unused;
    uint64_t header;
};
constexpr uint64_t kMaxRkey = 64;

}  // namespace mpx
