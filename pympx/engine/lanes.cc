// Control lanes: over them the sessions of transports that connect eps pairwise speak (wireup.h), and the end of a peer's process shows.
// A lane is a session of another transport with the same peer, opened when a link is first wanted. See engine.h.
#include <cstring>

#include "engine.h"

namespace mpx {
namespace {

struct Text {
    const void *data;
    size_t length;
};

size_t copy(void *destination, void *arg) {
    const auto &text = *static_cast<const Text *>(arg);
    std::memcpy(destination, text.data, text.length);
    return text.length;
}

}  // namespace

void Engine::set_control_lane(int32_t rank, int transport, const std::string &address) {
    Locked locked(*this);
    Lane &lane = peers_.at(rank).control;
    lane.transport = transports_.at(transport).get();
    lane.address = address;
    has_lanes_ = true;
}

bool Engine::open_lane(Peer &p) {
    Lane &lane = p.control;
    if (lane.ep) return true;
    if (!lane.transport || !lane.transport->sessions || closed_) return false;
    if (lane.transport->sessions->create(lane.address.data(), lane.address.size(), config_.rank < p.rank, &lane.ep) != MPX_OK) {
        lane.ep = nullptr;
        return false;
    }
    lane.ep->user = &p;
    return true;
}

// The process is gone, or its host out of reach; so is what it has open elsewhere.
void Engine::lane_lost(Peer &p, mpx_status status) {
    if (p.ep) p.transport->sessions->condemn(p.ep, status, p.control.transport->sessions->reason(p.control.ep));
    else on_loss(p, status);
}

mpx_status Engine::say_over_lane(void *arg, mpx_ep *session, const void *message, size_t length) {
    Engine &e = *static_cast<Engine *>(arg);
    Peer &p = *static_cast<Peer *>(session->user);
    if (!e.open_lane(p)) return MPX_ERR_NO_RESOURCE;  // the session's patience ends
    Text text{message, length};
    return p.control.transport->ops->am_bcopy(p.control.ep, kAmWireup, length, copy, &text);
}

bool Engine::lane_lives(void *, const mpx_ep *session) {
    const Lane &lane = static_cast<const Peer *>(session->user)->control;
    return lane.ep && !lane.transport->sessions->has_failed(lane.ep);
}

mpx_status Engine::on_wireup(void *arg, void *ep_user, const void *, size_t, void *data, size_t length, unsigned) {
    Engine &e = *static_cast<Engine *>(arg);
    Peer &p = *static_cast<Peer *>(ep_user);
    if (!p.control.transport || !p.transport->sessions) return e.protocol_violation(p);
    e.open_to_tell(p);
    if (!p.ep) return MPX_OK;  // a peer that has failed here is told nothing; its own patience ends
    return p.transport->sessions->hear(p.ep, data, length) ? MPX_OK : e.protocol_violation(p);
}

// The session acts on it.
mpx_status Engine::on_lane_bye(void *, void *, const void *, size_t, void *, size_t, unsigned) { return MPX_OK; }

// At the end, once the peer's main link needs the lane no more: says BYE over it; true when both have.
bool Engine::lane_at_rest(Peer &p) {
    Lane &lane = p.control;
    if (!lane.ep) return true;
    Sessions &sessions = *lane.transport->sessions;
    const bool needed = p.ep && !p.transport->sessions->settled(p.ep);
    if (!lane.said_bye && !needed) lane.said_bye = lane.transport->ops->am_short(lane.ep, kAmLaneBye, 0, nullptr, 0) != MPX_ERR_NO_RESOURCE;
    return lane.said_bye && sessions.settled(lane.ep);
}

}  // namespace mpx
