// Sending: the hot path, the choice of protocol, rendezvous from the sender's side, and the queue of what had no room.
// See engine.h.
#include <cstring>
#include <utility>

#include "engine.h"

namespace mpx {
namespace {

// What an unexpected message costs its receiver beside the payload.
constexpr uint64_t kMessageCost = sizeof(Message) + 16;

struct Packed {
    const void *header;
    size_t header_length;
    const void *data;
    size_t length;
};

size_t pack(void *destination, void *arg) {
    const auto &p = *static_cast<const Packed *>(arg);
    std::memcpy(destination, p.header, p.header_length);
    if (p.length) std::memcpy(static_cast<char *>(destination) + p.header_length, p.data, p.length);
    return p.header_length + p.length;
}

mpx_status bcopy(Peer &p, uint8_t id, const void *header, size_t header_length, const void *data, size_t length) {
    Packed packed{header, header_length, data, length};
    return p.transport->ops->am_bcopy(p.ep, id, header_length + length, pack, &packed);
}

void count(Peer &p, uint64_t bytes) {
    p.counters.sent_bytes += bytes;
    p.counters.sent_messages++;
    p.transport->counters.sent_bytes += bytes;
    p.transport->counters.sent_messages++;
}

}  // namespace

Request *Engine::allocate(Kind kind) {
    Request *r = requests_.take();
    r->engine = this;
    r->generation++;
    r->done.store(false, std::memory_order_relaxed);
    r->failed.store(false, std::memory_order_relaxed);
    r->watcher = 0;
    r->tally = nullptr;
    r->awaited = 0;
    r->kind = kind;
    r->stage = Stage::kIdle;
    r->mode = SendMode::kStandard;
    r->allocate = false;
    r->peer = nullptr;
    r->moved = r->expected = 0;
    r->registration = nullptr;
    r->rkey = nullptr;
    r->status = {};
    r->on_done = nullptr;
    r->completion.done = on_transport_done;
    r->completion.request = r;
    return r;
}

bool Engine::send_now(Peer &p, uint64_t match, const void *buffer, uint64_t length) {
    if (p.state != Peer::State::kOpen || !p.pending.empty()) return false;
    const ProtocolTable &t = p.transport->protocols;
    const uint64_t cost = length + kMessageCost;
    if (length > t.max_bcopy || cost > p.credit) return false;
    const mpx_status st = length <= t.max_short ? p.transport->ops->am_short(p.ep, kAmEager, match, buffer, length)
                                                : bcopy(p, kAmEager, &match, sizeof match, buffer, length);
    if (st != MPX_OK) return false;
    p.credit -= cost;
    count(p, length);
    return true;
}

bool Engine::try_send(uint32_t context, int32_t rank, int32_t tag, const void *buffer, uint64_t length) {
    std::unique_lock lock(mutex_, std::try_to_lock);
    return lock && send_now(peers_[rank], match_word(context, tag), buffer, length);
}

Request *Engine::isend(uint32_t context, int32_t rank, int32_t tag, const void *buffer, uint64_t length, SendMode mode) {
    Locked locked(*this);
    return isend_locked(context, rank, tag, buffer, length, mode);
}

Request *Engine::try_isend(uint32_t context, int32_t rank, int32_t tag, const void *buffer, uint64_t length, SendMode mode) {
    std::unique_lock lock(mutex_, std::try_to_lock);
    return lock ? isend_locked(context, rank, tag, buffer, length, mode) : nullptr;
}

Request *Engine::isend_locked(uint32_t context, int32_t rank, int32_t tag, const void *buffer, uint64_t length, SendMode mode) {
    Request *r = allocate(Kind::kSend);
    Peer &p = peers_[rank];
    r->peer = &p;
    r->context = context;
    r->tag = tag;
    r->buffer = const_cast<void *>(buffer);
    r->length = length;
    r->mode = mode;
    r->status.source = rank;
    r->status.tag = tag;
    if (mode == SendMode::kStandard && !any_revoked() && send_now(p, match_word(context, tag), buffer, length)) {
        complete(r, Error::kNone);
        return r;
    }
    if (any_revoked() && queue_of(context).revoked) {
        complete(r, Error::kRevoked);
        return r;
    }
    open_ep(p);
    if (p.state != Peer::State::kOpen) {
        complete(r, p.failure == MPX_ERR_UNREACHABLE ? Error::kUnreachable : Error::kProcFailed);
        return r;
    }
    const ProtocolTable &t = p.transport->protocols;
    r->protocol = t.choose(length);
    if (r->protocol < Protocol::kRndvGet) {
        const uint64_t cost = length + kMessageCost;
        const bool too_long_to_pack = mode == SendMode::kSync && length + sizeof(SyncHeader) > p.transport->attr.max_am_bcopy;
        if (cost > p.credit || too_long_to_pack) r->protocol = length >= t.get_from ? Protocol::kRndvGet : Protocol::kRndvFragments;
        else p.credit -= cost;
    }
    if (!p.pending.empty() || start_send(r) == MPX_ERR_NO_RESOURCE) {
        r->stage = Stage::kQueued;
        queue(p, r);
    }
    return r;
}

// Sends the first, matchable message of a request. NO_RESOURCE: nothing happened. Other failures end the request here.
mpx_status Engine::start_send(Request *r) {
    Peer &p = *r->peer;
    const mpx_iface_ops &ops = *p.transport->ops;
    const uint64_t match = match_word(r->context, r->tag);
    mpx_status st = MPX_OK;
    bool waits = false;
    if (r->protocol >= Protocol::kRndvGet) {
        st = send_rts(r);
        waits = true;
    } else if (r->mode == SendMode::kSync) {
        const SyncHeader header{match, r->id()};
        st = bcopy(p, kAmEagerSync, &header, sizeof header, r->buffer, r->length);
        waits = true;
    } else if (r->protocol == Protocol::kShort) {
        st = ops.am_short(p.ep, kAmEager, match, r->buffer, r->length);
    } else if (r->protocol == Protocol::kEagerBcopy) {
        st = bcopy(p, kAmEager, &match, sizeof match, r->buffer, r->length);
    } else {
        const mpx_iov iov{r->buffer, r->length, nullptr};
        st = ops.am_zcopy(p.ep, kAmEager, &match, sizeof match, &iov, 1, &r->completion);
    }
    if (st == MPX_ERR_NO_RESOURCE) return st;
    if (st < 0) {
        finish_send(r, Error::kProcFailed);
        return st;
    }
    count(p, r->length);
    if (st == MPX_INPROGRESS || waits) {
        r->stage = waits ? Stage::kAwaitsPeer : Stage::kTransport;
        p.inflight.push_back(r);
    } else {
        finish_send(r, Error::kNone);
    }
    return MPX_OK;
}

mpx_status Engine::send_rts(Request *r) {
    Peer &p = *r->peer;
    Transport &t = *p.transport;
    struct {
        RtsHeader header;
        char rkey[kMaxRkey];
    } rts{{match_word(r->context, r->tag), r->id(), r->length, reinterpret_cast<uintptr_t>(r->buffer), 0}, {}};
    if (r->protocol == Protocol::kRndvGet && !p.get_refused) {
        if (!r->registration) r->registration = t.registrations->acquire(r->buffer, r->length, MPX_ACCESS_REMOTE_READ);
        // Where it cannot be registered: fragments.
        if (r->registration && t.table->rkey_pack(t.domain, r->registration->memh, rts.rkey, sizeof rts.rkey) == MPX_OK)
            rts.header.rkey_len = t.attr.rkey_packed_len;
    }
    return bcopy(p, kAmRts, &rts, sizeof(RtsHeader) + rts.header.rkey_len, nullptr, 0);
}

void Engine::finish_send(Request *r, Error error) {
    free_keys(r);
    r->status.bytes = r->status.full_size = r->length;
    complete(r, error);
}

// --- fragments

mpx_status Engine::on_cts(void *arg, void *ep_user, const void *, size_t, void *data, size_t length, unsigned) {
    Engine &e = *static_cast<Engine *>(arg);
    Peer &p = *static_cast<Peer *>(ep_user);
    CtsHeader cts;
    if (length != sizeof cts) return e.protocol_violation(p);
    std::memcpy(&cts, data, sizeof cts);
    Request *r = e.requests_.find(cts.sender_request);
    if (!r || r->peer != &p || r->stage != Stage::kAwaitsPeer || r->protocol < Protocol::kRndvGet || cts.limit > r->length)
        return p.usable() ? e.protocol_violation(p) : MPX_OK;  // it cannot know yet what we gave up
    p.inflight.remove(r);
    r->stage = Stage::kStreaming;
    r->remote = cts.receiver_request;
    r->expected = cts.limit;
    p.streams.push_back(r);
    e.flush_peer(p);
    return MPX_OK;
}

mpx_status Engine::send_fragment(Request *r, bool *last) {
    Peer &p = *r->peer;
    const DataHeader header{r->remote, r->moved};
    const uint64_t left = r->expected - r->moved;
    const uint64_t n = left < p.transport->protocols.fragment ? left : p.transport->protocols.fragment;
    const mpx_status st = bcopy(p, kAmData, &header, sizeof header, static_cast<const char *>(r->buffer) + r->moved, n);
    if (st == MPX_OK) r->moved += n;
    *last = r->moved == r->expected;
    return st;
}

// --- what had no room

void Engine::add_to_backlog(Peer &p) {
    if (p.in_backlog) return;
    p.in_backlog = true;
    backlog_.push_back(&p);
    wake_sleepers();  // it must arm for this ep too
}

void Engine::queue(Peer &p, PendingOp *op) {
    p.pending.push_back(op);
    add_to_backlog(p);
}

mpx_status Engine::post_control(Peer &p, const ControlOp &op) {
    if (op.id == kAmCts) return bcopy(p, op.id, &op.cts, sizeof op.cts, nullptr, 0);
    if (!op.body.empty()) return bcopy(p, op.id, op.body.data(), op.body.size(), nullptr, 0);
    if (op.id == kAmGivenUp)
        return p.transport->ops->am_short(p.ep, op.id, op.header, &op.cts.sender_request, sizeof op.cts.sender_request);
    return p.transport->ops->am_short(p.ep, op.id, op.header, nullptr, 0);
}

void Engine::send_control(Peer &p, uint8_t id, uint64_t header, const CtsHeader *cts) {
    ControlOp op{};
    op.id = id;
    op.header = header;
    if (cts) op.cts = *cts;
    post_or_queue(p, std::move(op));
}

void Engine::send_body(Peer &p, uint8_t id, std::string body) {
    ControlOp op{};
    op.id = id;
    op.body = std::move(body);
    post_or_queue(p, std::move(op));
}

void Engine::post_or_queue(Peer &p, ControlOp &&op) {
    if (!p.ep || (p.state == Peer::State::kFailed && op.id != kAmRaised)) return;
    if (p.pending.empty() && post_control(p, op) != MPX_ERR_NO_RESOURCE) return;
    op.is_control = true;
    queue(p, new ControlOp(std::move(op)));
}

// Sends until the transport has no room. Errors show up as on_error.
void Engine::flush_peer(Peer &p) {
    while (PendingOp *op = p.pending.front()) {
        if (op->is_control) {
            auto *control = static_cast<ControlOp *>(op);
            if (post_control(p, *control) == MPX_ERR_NO_RESOURCE) return add_to_backlog(p);
            p.pending.remove(op);
            delete control;
            continue;
        }
        auto *r = static_cast<Request *>(op);
        p.pending.remove(op);  // first: a request that ends here may be reused at once
        const bool is_get = r->kind == Kind::kRecv;
        if (is_get) {
            if (!get_next(r)) return;  // it queued itself again at the end
        } else if (start_send(r) == MPX_ERR_NO_RESOURCE) {
            p.pending.push_front(op);
            return add_to_backlog(p);
        }
    }
    while (Request *r = p.streams.pop_front()) {
        bool last = false;
        const mpx_status st = send_fragment(r, &last);
        if (st == MPX_ERR_NO_RESOURCE) {
            p.streams.push_front(r);
            return add_to_backlog(p);
        }
        if (st < 0) finish_send(r, Error::kProcFailed);
        else if (last) finish_send(r, Error::kNone);
        else p.streams.push_back(r);
    }
}

void Engine::flush_backlog() {
    std::vector<Peer *> peers;
    peers.swap(backlog_);
    for (Peer *p : peers) p->in_backlog = false;
    for (Peer *p : peers) flush_peer(*p);
}

}  // namespace mpx
