// See wireup.h.
#include "wireup.h"

#include <cstring>
#include <utility>

#include "session_impl.h"

namespace mpx {

// Only the leader's link begins here; the follower asks for one.
mpx_status Session::begin_wireup() {
    wireup.connected = false;
    wireup.peer.clear();
    wireup.last_look = monotonic_s();
    wireup.due = wireup.leads ? Wireup::kOffer : Wireup::kPlease;
    if (!wireup.leads) return MPX_OK;
    ++wireup.number;
    return create_ep();
}

// The passive side fences the old link off before it answers.
unsigned Session::take_offer() {
    wireup.offered = false;
    if (state == kFailed) {
        wireup.due = Wireup::kRefuse;
        return wire();
    }
    if (open()) break_link(MPX_ERR_LINK_BROKEN, "the peer has given up the link");
    destroy_link();
    ack_due = ask_due = false;
    wireup.connected = false;
    wireup.due = Wireup::kNothing;
    wireup.number = wireup.peer_number;
    wireup.last_look = last_sign = monotonic_s();
    if (const mpx_status st = create_ep(); st != MPX_OK) {
        why = owner->table_->why();
        fail(st);
        return 1;
    }
    state = kConnecting;
    return 1;
}

// Connects when the peer's address is known, and says what is due, as far as the transport and the control lane have room.
unsigned Session::wire() {
    unsigned events = 0;
    if (ep && !wireup.connected && !wireup.peer.empty()) {
        const mpx_status st = owner->table_->ep_connect(ep, wireup.peer.data(), wireup.peer.size());
        if (st == MPX_ERR_NO_RESOURCE) return 0;
        if (st != MPX_OK) {
            break_link(MPX_ERR_LINK_BROKEN, owner->table_->why());
            return 1;
        }
        ++events;
        wireup.connected = true;
        wireup.peer.clear();
        if (!wireup.leads) wireup.due = Wireup::kAccept;
    }
    if (wireup.due == Wireup::kNothing) return events;
    const WireupHeader header{wireup.due, wireup.number};
    std::string message(reinterpret_cast<const char *>(&header), sizeof header);
    if (wireup.due == Wireup::kOffer || wireup.due == Wireup::kAccept) {
        message.resize(sizeof header + owner->ep_address_length_);
        const mpx_status st = owner->table_->ep_address(ep, message.data() + sizeof header);
        if (st == MPX_ERR_NO_RESOURCE) return events;
        if (st != MPX_OK) {
            break_link(MPX_ERR_LINK_BROKEN, owner->table_->why());
            return events + 1;
        }
    }
    const ControlLane &lane = owner->lane_;
    if (lane.say(lane.arg, this, message.data(), message.size()) == MPX_ERR_NO_RESOURCE) return events;
    wireup.due = Wireup::kNothing;  // a lane that has failed condemns the session
    return events + 1;
}

// While the peer's program has something to answer only its process must live: it may compute. The lane has a patience of its own.
void Session::await_program(double time) {
    const ControlLane &lane = owner->lane_;
    if (lane.lives(lane.arg, this)) last_sign += time - wireup.last_look;
    wireup.last_look = time;
}

bool Session::hear(const void *data, size_t length) {
    WireupHeader header;
    if (length < sizeof header) return false;
    std::memcpy(&header, data, sizeof header);
    const bool has_address = header.kind == Wireup::kOffer || header.kind == Wireup::kAccept;
    if (length != sizeof header + (has_address ? owner->ep_address_length_ : 0)) return false;
    if (header.kind == Wireup::kRefuse) {
        owner->condemn(this, MPX_ERR_UNREACHABLE, "it has given us up");
        return true;
    }
    if (wireup.leads != (header.kind == Wireup::kPlease || header.kind == Wireup::kAccept)) return false;
    if (state == kFailed) {
        wireup.due = Wireup::kRefuse;
        owner->take_care(*this);
        return true;
    }
    std::string address(static_cast<const char *>(data) + sizeof header, length - sizeof header);
    switch (header.kind) {
        case Wireup::kPlease:
            if (header.number > wireup.number) return false;
            if (header.number == wireup.number) link_wanted();  // else the next one is on its way
            break;
        case Wireup::kOffer:
            if (header.number <= wireup.number || header.number <= wireup.peer_number) return false;
            wireup.offered = true;
            wireup.peer_number = header.number;
            wireup.peer = std::move(address);
            break;
        case Wireup::kAccept:
            if (header.number > wireup.number) return false;
            if (header.number == wireup.number && state == kConnecting && !wireup.connected) wireup.peer = std::move(address);
            break;
        default: return false;
    }
    owner->take_care(*this);
    return true;
}

// The follower needs another link than the one we have.
void Session::link_wanted() {
    if (state == kIdle || state == kResting || state == kDown) {
        if (state != kDown) last_sign = monotonic_s();
        state = kDown;
        retry_at = monotonic_s();
    } else {
        break_link(MPX_ERR_LINK_BROKEN, "the peer has given up the link");
    }
}

}  // namespace mpx
