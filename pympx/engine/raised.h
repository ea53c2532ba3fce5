// What ranks tell each other of exceptions that nobody caught: kAmRaised {header, text}, in pieces where a transport's messages are short.
//
// Who raised says kEndsJob: every receiver then counts all its peers as failed, by the path of real failures, so that what is pending and
// what comes later ends with a reason that names rank and error. The links themselves live on (Peer::doomed) for more of these messages:
// each rank reports its own end to those that told it theirs. With kEndsPeer only the sender counts as failed, and the engine answers for
// the receiver. The kinds are the callers' affair, above the engine; 0 is none.
//
// Ownership: reports belong to the Engine; news() copies them. Engine lock held throughout.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace mpx {

constexpr uint32_t kEndsJob = 1, kEndsPeer = 2;
constexpr uint32_t kHeard = ~0u;         // the kind of the engine's own answer
constexpr size_t kMaxRaised = 20 << 10;  // bytes of text; its first line is the error in short

struct RaisedHeader {
    uint32_t kind;
    uint32_t flags;
    uint32_t total;  // bytes of the whole text
};

struct Report {
    int32_t rank = -1;
    uint32_t kind = 0;
    uint32_t flags = 0;
    std::string text;
};

struct News {
    uint64_t version = 0;         // another one: something below has changed
    std::vector<Report> reports;  // the last of each peer, in the order in which peers began to report
    std::vector<int32_t> living;  // peers that have neither left nor ended, as far as their links tell
};

}  // namespace mpx
