// What the engine knows of one rank, and of one open transport. Owned by the Engine; engine lock held throughout.
#pragma once
#include <pympx/transport.h>

#include <cstdint>
#include <memory>
#include <string>

#include "list.h"
#include "mr_cache.h"
#include "protocol.h"
#include "request.h"
#include "session.h"
#include "wire.h"

namespace mpx {

struct Counters {
    uint64_t sent_bytes = 0;  // payload of users' messages and collectives, to other ranks and to itself
    uint64_t sent_messages = 0;
    uint64_t received_bytes = 0;
    uint64_t received_messages = 0;
};

struct Transport {
    Engine *engine = nullptr;
    const mpx_transport *table = nullptr;
    mpx_domain *domain = nullptr;
    mpx_iface *base = nullptr;           // the transport's own, for the control path
    mpx_iface *iface = nullptr;          // what is progressed: base, or the sessions above it
    const mpx_iface_ops *ops = nullptr;  // of iface
    std::unique_ptr<Sessions> sessions;  // where links may break
    std::unique_ptr<MrCache> registrations;
    mpx_am_handler handlers[MPX_AM_ID_MAX]{};
    mpx_iface_attr attr{};
    ProtocolTable protocols;
    std::string name;
    bool needs_control = false;  // its control path is to be asked
    bool carries = false;        // some peer's messages; one that is only a control lane is looked at now and then
    int attention = 0;           // passes for which such a one is looked at all the same, because something has come
    Counters counters;
};

// A message without a user's buffer: FIN, CTS, CREDIT, BYE. Queued only when the transport had no room.
struct ControlOp : PendingOp {
    uint8_t id;
    uint64_t header;
    CtsHeader cts;
    std::string body;  // of kAmAgree, kAmRaised
};

// The way to a peer over which its eps of another transport are connected, and its process's life is seen. Opened when it is needed.
struct Lane {
    Transport *transport = nullptr;
    std::string address;
    mpx_ep *ep = nullptr;
    bool said_bye = false;
};

struct Peer {
    enum class State : uint8_t { kUnknown, kIdle, kOpen, kLeft, kFailed };

    int32_t rank = -1;
    State state = State::kUnknown;
    bool in_backlog = false;
    bool failure_pending = false;  // on_error came; handled after progress
    bool doomed = false;           // it counts as failed because the job ends; its link may live, for kAmRaised
    bool told_raised = false;      // it has what this process says last about its end
    bool muted = false;            // it spoke nonsense: nothing that it says afterwards counts
    bool get_refused = false;      // a get said UNSUPPORTED: fragments from now on
    Transport *transport = nullptr;
    mpx_ep *ep = nullptr;
    std::string address;
    Lane control;  // where `transport` connects eps pairwise
    mpx_status failure = MPX_OK;
    std::string failure_reason;               // one line, where the session or the transport said why
    List<PendingOp> pending;                  // FIFO of what the transport refused; nothing overtakes it
    List<Request, &Request::queue> streams;   // sends in fragments, served in turn
    List<Request, &Request::queue> inflight;  // requests that end when this peer fails
    uint64_t credit = 0;                      // bytes of eager messages that we may still send
    uint64_t to_give_back = 0;                // bytes of its eager messages freed here, not yet told
    std::string raised;                       // of its kAmRaised, as far as it has come
    Counters counters;

    bool usable() const { return state == State::kOpen || state == State::kIdle; }
};

}  // namespace mpx
