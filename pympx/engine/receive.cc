// Receiving: posting, probing, the handlers of arriving messages, rendezvous from the receiver's side. See engine.h.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "engine.h"

namespace mpx {
namespace {

constexpr uint64_t kMessageCost = sizeof(Message) + 16;  // as send.cc charges

void count(Peer &p, uint64_t bytes) {
    p.counters.received_bytes += bytes;
    p.counters.received_messages++;
    p.transport->counters.received_bytes += bytes;
    p.transport->counters.received_messages++;
}

}  // namespace

Request *Engine::irecv(uint32_t context, int32_t source, int32_t tag, void *buffer, uint64_t capacity, bool allocate) {
    Locked locked(*this);
    return irecv_locked(context, source, tag, buffer, capacity, allocate);
}

Request *Engine::try_irecv(uint32_t context, int32_t source, int32_t tag, void *buffer, uint64_t capacity, bool allocate, int polls) {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return nullptr;
    Request *r = irecv_locked(context, source, tag, buffer, capacity, allocate);
    for (int i = 0; i < polls && !r->done.load(std::memory_order_relaxed); i++) progress_locked();
    return r;
}

bool Engine::hopeless(uint32_t context, const MatchQueue &queue, int32_t source) const {
    if (queue.revoked) return true;
    if (source == kAnySource) return wildcard_is_hopeless(queue);
    if (is_collective(context) && some_member_failed(queue)) return true;
    return peers_[source].state == Peer::State::kFailed || peers_[source].state == Peer::State::kLeft;
}

Request *Engine::irecv_locked(uint32_t context, int32_t source, int32_t tag, void *buffer, uint64_t capacity, bool want_allocation) {
    Request *r = allocate(Kind::kRecv);
    r->context = context;
    r->source = source;
    r->tag = tag;
    r->buffer = want_allocation ? nullptr : buffer;
    r->length = capacity;
    r->allocate = want_allocation;
    MatchQueue &queue = queue_of(context);
    if (queue.revoked) {
        complete(r, Error::kRevoked);
    } else if (Message *m = queue.find_unexpected(source, tag)) {
        queue.remove_unexpected(m);
        consume(r, m);
    } else if (hopeless(context, queue, source)) {
        r->status.source = culprit(queue, source);
        complete(r, Error::kProcFailed);
    } else {
        r->stage = Stage::kPosted;
        queue.post(r);
    }
    return r;
}

bool Engine::iprobe(uint32_t context, int32_t source, int32_t tag, Status *status) {
    Locked locked(*this);
    MatchQueue &queue = queue_of(context);
    Message *m = queue.find_unexpected(source, tag);
    if (!m) {
        progress_locked();
        m = queue_of(context).find_unexpected(source, tag);
    }
    if (m) *status = {m->source, m->tag, Error::kNone, false, m->size, m->size};
    // Who polls must hear of a failure too; those that left in order are no error to a question.
    const bool failed = source == kAnySource ? std::any_of(queue.members.begin(), queue.members.end(),
                                                           [&](int32_t r) { return failed_unknown_to_the_program(queue, r); })
                                             : peers_[source].state == Peer::State::kFailed;
    if (m || (!failed && !queue.revoked)) return m;
    *status = {culprit(queue, source), tag, queue.revoked ? Error::kRevoked : Error::kProcFailed, false, 0, 0};
    return true;
}

bool Engine::cancel(Request *r) {
    Locked locked(*this);
    if (r->kind != Kind::kRecv || r->stage != Stage::kPosted) return false;
    queue_of(r->context).withdraw(r);
    r->status.canceled = true;
    complete(r, Error::kNone);
    return true;
}

// --- a message meets its receive

// Makes room for a message of `size` and fills in the status; false: the request was completed with kNoMemory.
bool Engine::reserve(Request *r, Peer &p, int32_t tag, uint64_t size) {
    r->status.source = p.rank;
    r->status.tag = tag;
    r->status.full_size = size;
    if (r->allocate) {
        r->length = size;
        r->buffer = std::malloc(size ? size : 1);
        if (!r->buffer) r->length = 0;
    }
    r->expected = size < r->length ? size : r->length;
    r->status.bytes = r->expected;
    if (r->allocate && !r->buffer) {
        complete(r, Error::kNoMemory);
        return false;
    }
    return true;
}

void Engine::deliver_eager(Request *r, Peer &p, int32_t tag, const void *data, uint64_t size) {
    if (!reserve(r, p, tag, size)) return;
    if (r->expected) std::memcpy(r->buffer, data, r->expected);
    count(p, size);
    complete(r, r->expected < size ? Error::kTruncate : Error::kNone);
}

void Engine::consume(Request *r, Message *m) {
    Peer &p = *m->peer;
    if (m->form == Message::Form::kRts) {
        const RtsHeader header{match_word(r->context, m->tag), m->sender_request, m->size, m->address, m->rkey_len};
        start_rendezvous(r, p, m->tag, header, m->payload());
    } else if (m->form == Message::Form::kGivenUp) {
        give_up(r, p, m->tag, static_cast<int32_t>(m->address));
    } else {
        deliver_eager(r, p, m->tag, m->payload(), m->size);
        if (m->form == Message::Form::kEagerSync) send_control(p, kAmFin, m->sender_request);
    }
    discard(m);
}

// Frees a message that left its queue; its sender may send as much again.
void Engine::discard(Message *m) {
    if (m->form != Message::Form::kRts) {
        unexpected_bytes_ -= m->size;
        give_credit(*m->peer, m->credit);
    }
    Message::destroy(m);
}

void Engine::give_credit(Peer &p, uint64_t bytes) {
    p.to_give_back += bytes;
    if (p.to_give_back < config_.eager_window / 4) return;
    send_control(p, kAmCredit, p.to_give_back);
    p.to_give_back = 0;
}

mpx_status Engine::on_credit(void *arg, void *ep_user, const void *header, size_t header_length, void *, size_t, unsigned) {
    Engine &e = *static_cast<Engine *>(arg);
    Peer &p = *static_cast<Peer *>(ep_user);
    uint64_t bytes;
    if (header_length != sizeof bytes) return e.protocol_violation(p);
    std::memcpy(&bytes, header, sizeof bytes);
    if (bytes > e.config_.eager_window - p.credit) return e.protocol_violation(p);
    p.credit += bytes;
    return MPX_OK;
}

// A message without a receive waits; so may a thread that probes.
void Engine::keep(MatchQueue &queue, Message *m) {
    if (m->form != Message::Form::kRts) unexpected_bytes_ += m->size;
    if (queue.revoked) return reject(m);
    queue.add_unexpected(m);
    if (waiting_for_anything_) tell(kEverybody);
}

mpx_status Engine::on_eager(void *arg, void *ep_user, const void *header, size_t header_length, void *data, size_t length, unsigned) {
    Engine &e = *static_cast<Engine *>(arg);
    Peer &p = *static_cast<Peer *>(ep_user);
    uint64_t match;
    if (header_length == 0) {  // by am_bcopy: the match word leads
        if (length < sizeof match) return e.protocol_violation(p);
        std::memcpy(&match, data, sizeof match);
        data = static_cast<char *>(data) + sizeof match;
        length -= sizeof match;
    } else if (header_length == sizeof match) {
        std::memcpy(&match, header, sizeof match);
    } else {
        return e.protocol_violation(p);
    }
    MatchQueue &queue = e.queue_of(match_context(match));
    const int32_t tag = match_tag(match);
    if (Request *r = queue.take_posted(p.rank, tag)) {
        e.deliver_eager(r, p, tag, data, length);
        e.give_credit(p, length + kMessageCost);
        return MPX_OK;
    }
    Message *m = Message::create(length);
    m->form = Message::Form::kEager;
    m->peer = &p;
    m->source = p.rank;
    m->tag = tag;
    m->size = length;
    m->credit = length + kMessageCost;
    if (length) std::memcpy(m->payload(), data, length);
    e.keep(queue, m);
    return MPX_OK;
}

mpx_status Engine::on_eager_sync(void *arg, void *ep_user, const void *, size_t, void *data, size_t length, unsigned) {
    Engine &e = *static_cast<Engine *>(arg);
    Peer &p = *static_cast<Peer *>(ep_user);
    SyncHeader header;
    if (length < sizeof header) return e.protocol_violation(p);
    std::memcpy(&header, data, sizeof header);
    const char *payload = static_cast<char *>(data) + sizeof header;
    length -= sizeof header;
    MatchQueue &queue = e.queue_of(match_context(header.match));
    const int32_t tag = match_tag(header.match);
    if (Request *r = queue.take_posted(p.rank, tag)) {
        e.deliver_eager(r, p, tag, payload, length);
        e.send_control(p, kAmFin, header.sender_request);
        e.give_credit(p, length + kMessageCost);
        return MPX_OK;
    }
    Message *m = Message::create(length);
    m->form = Message::Form::kEagerSync;
    m->peer = &p;
    m->source = p.rank;
    m->tag = tag;
    m->size = length;
    m->credit = length + kMessageCost;
    m->sender_request = header.sender_request;
    if (length) std::memcpy(m->payload(), payload, length);
    e.keep(queue, m);
    return MPX_OK;
}

// --- rendezvous

mpx_status Engine::on_rts(void *arg, void *ep_user, const void *, size_t, void *data, size_t length, unsigned) {
    Engine &e = *static_cast<Engine *>(arg);
    Peer &p = *static_cast<Peer *>(ep_user);
    RtsHeader header;
    if (length < sizeof header) return e.protocol_violation(p);
    std::memcpy(&header, data, sizeof header);
    if (header.rkey_len > kMaxRkey || length != sizeof header + header.rkey_len) return e.protocol_violation(p);
    const char *rkey = static_cast<char *>(data) + sizeof header;
    MatchQueue &queue = e.queue_of(match_context(header.match));
    const int32_t tag = match_tag(header.match);
    if (Request *r = queue.take_posted(p.rank, tag)) {
        e.start_rendezvous(r, p, tag, header, rkey);
        return MPX_OK;
    }
    Message *m = Message::create(header.rkey_len);
    m->form = Message::Form::kRts;
    m->peer = &p;
    m->source = p.rank;
    m->tag = tag;
    m->size = header.size;
    m->credit = 0;
    m->sender_request = header.sender_request;
    m->address = header.address;
    m->rkey_len = header.rkey_len;
    std::memcpy(m->payload(), rkey, header.rkey_len);
    e.keep(queue, m);
    return MPX_OK;
}

void Engine::start_rendezvous(Request *r, Peer &p, int32_t tag, const RtsHeader &header, const void *rkey) {
    r->peer = &p;
    r->remote = header.sender_request;
    r->remote_address = header.address;
    if (p.failure_pending || p.doomed || !p.ep) {  // its link ended, its data cannot come
        r->status.source = p.rank;
        r->status.tag = tag;
        return complete(r, Error::kProcFailed);
    }
    if (!reserve(r, p, tag, header.size)) return send_control(p, kAmFin, header.sender_request);
    if (!r->expected) {
        send_control(p, kAmFin, header.sender_request);
        count(p, 0);
        return complete(r, header.size ? Error::kTruncate : Error::kNone);
    }
    Transport &t = *p.transport;
    if (header.rkey_len && !p.get_refused && t.table->rkey_unpack(t.domain, rkey, header.rkey_len, &r->rkey) == MPX_OK) {
        if (t.attr.caps & MPX_CAP_NEED_MEMH) r->registration = t.registrations->acquire(r->buffer, r->expected, MPX_ACCESS_LOCAL);
        if (r->registration || !(t.attr.caps & MPX_CAP_NEED_MEMH)) {
            get_next(r);
            return;
        }
        t.table->rkey_release(t.domain, r->rkey);
        r->rkey = nullptr;
    }
    ask_for_fragments(r);
}

void Engine::ask_for_fragments(Request *r) {
    Peer &p = *r->peer;
    r->stage = Stage::kReceiving;
    p.inflight.push_back(r);
    const CtsHeader cts{r->remote, r->id(), r->expected};
    send_control(p, kAmCts, 0, &cts);
}

// Fetches what is left, piece by piece, until a piece takes its time. False: there was no room, the request queued itself.
bool Engine::get_next(Request *r) {
    Peer &p = *r->peer;
    Transport &t = *p.transport;
    while (r->moved < r->expected) {
        if (!p.ep) {  // the engine is being closed
            get_done(r, MPX_ERR_CANCELED);
            return true;
        }
        uint64_t n = r->expected - r->moved;
        if (t.attr.max_zcopy && n > t.attr.max_zcopy) n = t.attr.max_zcopy;
        const mpx_iov iov{static_cast<char *>(r->buffer) + r->moved, n, r->registration ? r->registration->memh : nullptr};
        const mpx_status st = t.ops->get_zcopy(p.ep, &iov, 1, r->remote_address + r->moved, r->rkey, &r->completion);
        if (st == MPX_ERR_NO_RESOURCE) {
            r->stage = Stage::kQueued;
            queue(p, r);
            return false;
        }
        if (st < 0) {
            get_done(r, st);
            return true;
        }
        r->moved += n;
        if (st == MPX_INPROGRESS) {
            r->stage = Stage::kTransport;
            p.inflight.push_back(r);
            return true;
        }
    }
    get_done(r, MPX_OK);
    return true;
}

void Engine::free_keys(Request *r) {
    Transport &t = *r->peer->transport;
    if (r->rkey) t.table->rkey_release(t.domain, r->rkey);
    r->rkey = nullptr;
    if (r->registration) t.registrations->release(r->registration);
    r->registration = nullptr;
}

void Engine::get_done(Request *r, mpx_status st) {
    Peer &p = *r->peer;
    free_keys(r);
    if (st == MPX_ERR_UNSUPPORTED) {
        p.get_refused = true;
        r->moved = 0;
        return ask_for_fragments(r);
    }
    if (st != MPX_OK) return complete(r, Error::kProcFailed);
    send_control(p, kAmFin, r->remote);
    count(p, r->status.full_size);
    complete(r, r->expected < r->status.full_size ? Error::kTruncate : Error::kNone);
}

// A transport's completion: an eager zcopy send or a piece of a get.
void Engine::on_transport_done(mpx_completion *completion, mpx_status st) {
    Request *r = static_cast<Completion *>(completion)->request;
    Peer &p = *r->peer;
    Engine &e = *r->engine;
    p.inflight.remove(r);
    r->stage = Stage::kQueued;
    if (r->kind == Kind::kSend) e.finish_send(r, st == MPX_OK ? Error::kNone : Error::kProcFailed);
    else if (st == MPX_OK && r->moved < r->expected) e.get_next(r);
    else e.get_done(r, st);
}

mpx_status Engine::on_data(void *arg, void *ep_user, const void *, size_t, void *data, size_t length, unsigned) {
    Engine &e = *static_cast<Engine *>(arg);
    Peer &p = *static_cast<Peer *>(ep_user);
    DataHeader header;
    if (length < sizeof header) return e.protocol_violation(p);
    std::memcpy(&header, data, sizeof header);
    length -= sizeof header;
    Request *r = e.requests_.find(header.receiver_request);
    if (!r || r->peer != &p || r->stage != Stage::kReceiving || header.offset != r->moved || length > r->expected - r->moved)
        return p.doomed ? MPX_OK : e.protocol_violation(p);
    std::memcpy(static_cast<char *>(r->buffer) + header.offset, static_cast<char *>(data) + sizeof header, length);
    r->moved += length;
    if (r->moved < r->expected) return MPX_OK;
    p.inflight.remove(r);
    count(p, r->status.full_size);
    e.complete(r, r->expected < r->status.full_size ? Error::kTruncate : Error::kNone);
    return MPX_OK;
}

mpx_status Engine::on_fin(void *arg, void *ep_user, const void *header, size_t header_length, void *, size_t, unsigned) {
    Engine &e = *static_cast<Engine *>(arg);
    Peer &p = *static_cast<Peer *>(ep_user);
    uint64_t id;
    if (header_length != sizeof id) return e.protocol_violation(p);
    std::memcpy(&id, header, sizeof id);
    Request *r = e.requests_.find(id);
    if (!r || r->peer != &p || r->stage != Stage::kAwaitsPeer) return p.usable() ? e.protocol_violation(p) : MPX_OK;
    p.inflight.remove(r);
    e.finish_send(r, Error::kNone);
    return MPX_OK;
}

// The sender of a collective's message could not go on because `failed_rank` failed; so can't we.
void Engine::give_up(Request *r, Peer &p, int32_t tag, int32_t failed_rank) {
    const bool known = failed_rank >= 0 && failed_rank < config_.size;
    r->status.source = known ? failed_rank : p.rank;
    r->status.tag = tag;
    complete(r, Error::kProcFailed);
}

mpx_status Engine::on_given_up(void *arg, void *ep_user, const void *header, size_t header_length, void *data, size_t length, unsigned) {
    Engine &e = *static_cast<Engine *>(arg);
    Peer &p = *static_cast<Peer *>(ep_user);
    uint64_t match, failed_rank;
    if (header_length != sizeof match || length != sizeof failed_rank) return e.protocol_violation(p);
    std::memcpy(&match, header, sizeof match);
    std::memcpy(&failed_rank, data, sizeof failed_rank);
    MatchQueue &queue = e.queue_of(match_context(match));
    const int32_t tag = match_tag(match);
    if (Request *r = queue.take_posted(p.rank, tag)) {
        e.give_up(r, p, tag, static_cast<int32_t>(failed_rank));
        return MPX_OK;
    }
    Message *m = Message::create(0);
    m->form = Message::Form::kGivenUp;
    m->peer = &p;
    m->source = p.rank;
    m->tag = tag;
    m->address = failed_rank;
    e.keep(queue, m);
    return MPX_OK;
}

mpx_status Engine::on_unknown(void *arg, void *ep_user, const void *, size_t, void *, size_t, unsigned) {
    return static_cast<Engine *>(arg)->protocol_violation(*static_cast<Peer *>(ep_user));
}

// A peer that speaks nonsense is treated as failed.
mpx_status Engine::protocol_violation(Peer &p) {
    p.muted = true;
    on_loss(p, MPX_ERR_INVALID);
    return MPX_ERR_INVALID;
}

}  // namespace mpx
