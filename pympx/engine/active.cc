// Active messages between engines: kAmActive {ActiveHeader, payload} runs a handler at the receiver, inside progress, without Python. With
// the service thread they are served whatever the program does. They share sessions, order and failure with all other messages.
//
// Threads: handlers run under the engine lock and must be short; they may answer with a message, which a receive at the other side matches.
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "engine.h"

namespace mpx {
namespace {

// The echo: sends the payload back as the message that the header names.
void echo(void *, Engine &engine, int32_t source, uint64_t match, const void *payload, size_t length) {
    engine.answer(source, match, payload, length);
}

}  // namespace

void Engine::set_active_handler(uint32_t kind, ActiveHandler fn, void *arg) {
    Locked locked(*this);
    active_.at(kind) = {fn, arg};
}

void Engine::install_own_handlers() { active_[kActiveEcho] = {echo, nullptr}; }

Error Engine::send_active(int32_t rank, uint32_t kind, uint64_t header, const void *payload, size_t length) {
    Locked locked(*this);
    Peer &p = peers_[rank];
    open_ep(p);
    if (p.state != Peer::State::kOpen) return p.failure == MPX_ERR_UNREACHABLE ? Error::kUnreachable : Error::kProcFailed;
    const ActiveHeader head{kind, 0, header};
    if (sizeof head + length > p.transport->attr.max_am_bcopy)
        throw std::length_error("active message of " + std::to_string(length) + " bytes, at most " +
                                std::to_string(p.transport->attr.max_am_bcopy - sizeof head) + " fit over " + p.transport->name);
    std::string body(sizeof head + length, '\0');
    std::memcpy(body.data(), &head, sizeof head);
    if (length) std::memcpy(body.data() + sizeof head, payload, length);
    send_body(p, kAmActive, std::move(body));
    return Error::kNone;
}

// From a handler: a message to `rank` that it receives as it would any other.
void Engine::answer(int32_t rank, uint64_t match, const void *payload, size_t length) {
    if (send_now(peers_[rank], match, payload, length)) return;
    void *copy = std::malloc(length + 1);
    if (!copy) return;
    if (length) std::memcpy(copy, payload, length);
    Request *r = isend_locked(match_context(match), rank, match_tag(match), copy, length, SendMode::kStandard);
    free_when_done(r);
}

mpx_status Engine::on_active(void *arg, void *ep_user, const void *, size_t, void *data, size_t length, unsigned) {
    Engine &e = *static_cast<Engine *>(arg);
    Peer &p = *static_cast<Peer *>(ep_user);
    ActiveHeader head;
    if (length < sizeof head) return e.protocol_violation(p);
    std::memcpy(&head, data, sizeof head);
    if (head.kind >= e.active_.size()) return e.protocol_violation(p);
    const Active &handler = e.active_[head.kind];
    if (!handler.fn) e.answer(p.rank, head.header, nullptr, 0);  // its user was not started here: no fault of the peer's
    else handler.fn(handler.arg, e, p.rank, head.header, static_cast<char *>(data) + sizeof head, length - sizeof head);
    return MPX_OK;
}

}  // namespace mpx
