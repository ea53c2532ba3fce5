// Wireup: how the sessions at the two ends of a link learn each other's ep addresses, where a transport connects eps pairwise
// (MPX_CAP_CONNECT_EP), and how they agree which link counts. They talk over a control lane: another transport's session with the same
// peer, which loses and reorders nothing.
//
// One end leads (the lower rank) and numbers the links; the other never starts one by itself:
//
//     PLEASE  n           follower: I need a link, and link n (0: none) is not it
//     OFFER   n, address  leader: link n ends here; whatever came before it is over
//     ACCEPT  n, address  follower: I have fenced off the links before n, and am connected to it; link n ends here
//     REFUSE              either: my session is over
//
// So there are no crossing attempts, and an ACCEPT of a link that the leader has given up meanwhile is known by its number. The leader
// speaks first on a link (RESUME); the follower answers, for before that it cannot know that the leader's end is ready.
#pragma once
#include <cstdint>
#include <string>

namespace mpx {

struct WireupHeader {
    uint64_t kind;
    uint64_t number;
};

// One end of the conversation; part of a Session.
struct Wireup {
    enum Kind : uint64_t { kNothing, kPlease, kOffer, kAccept, kRefuse };

    bool used = false;  // the transport connects eps pairwise
    bool leads = false;
    bool connected = false;    // our ep, to the peer's
    bool offered = false;      // follower: `peer` belongs to link `peer_number`, which is to be taken
    Kind due = kNothing;       // what is to be said next
    uint64_t number = 0;       // of the link that we have, or had last
    uint64_t peer_number = 0;  // of the last OFFER
    std::string peer;          // address of the peer's ep, to be connected to
    double last_look = 0;      // when we last looked whether the peer's process lives
};

}  // namespace mpx
