// How nodes of a transport that connects eps pairwise learn each other's ep addresses: what the engine's control lane does, over datagrams.
// The node with the lower address leads and numbers the links of a pair, see engine/wireup.h; READY tells the other that it may speak.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

namespace mpx::conform {

using Bytes = std::vector<uint8_t>;

struct WireupMessage {
    enum Kind : uint32_t { kPlease, kOffer, kAnswer, kAccept, kReady };  // kAnswer: an offer that a PLEASE asked for
    Kind kind;
    uint32_t number;
    Bytes from, ep;  // address of the node, of its ep
};

// Of one peer.
struct WireupState {
    uint32_t number = 0;       // of the last link
    bool asked = false;        // leader: the peer wanted it
    bool said = false;         // the ep's address is told
    bool connect_due = false;  // to peer_ep
    Bytes peer_ep;
};

// A datagram socket whose name stands at the end of its node's address. Owned by its Node; one thread.
class WireupSocket {
public:
    WireupSocket() = default;
    ~WireupSocket() { close(); }
    WireupSocket(const WireupSocket &) = delete;
    WireupSocket &operator=(const WireupSocket &) = delete;

    void open(Bytes &address);  // appends the name
    void close();
    int fd() const { return fd_; }
    int watch(int event_fd);  // a descriptor that is readable when either is
    void say(const Bytes &to, const WireupMessage &) const;
    std::optional<WireupMessage> hear() const;

private:
    int fd_ = -1, epoll_fd_ = -1;
};

}  // namespace mpx::conform
