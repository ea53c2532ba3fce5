// Exceptions that nobody caught. See raised.h.
#include "raised.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "engine.h"

namespace mpx {
namespace {

constexpr size_t kMaxReason = 300;  // bytes of an error in the message of another

std::string reason(int32_t rank, const std::string &text, bool job_ends) {
    std::string error = text.substr(0, std::min(text.find('\n'), kMaxReason));
    return "rank " + std::to_string(rank) + " raised " + error + (job_ends ? "; the job ends" : "");
}

}  // namespace

void Engine::tell_raised(uint32_t kind, uint32_t flags, std::string text, bool everybody) {
    Locked locked(*this);
    if (closed_) return;
    if (text.size() > kMaxRaised) text.resize(kMaxRaised);
    const bool again = kind == own_report_.kind && flags == own_report_.flags && text == own_report_.text;
    own_report_ = {config_.rank, kind, flags, std::move(text)};
    for (Peer &p : peers_) {
        if (p.rank == config_.rank) continue;
        p.told_raised = p.told_raised && again;
        if (everybody) open_to_tell(p);
        tell_raised_to(p);
    }
    if (flags & kEndsJob)
        for (Peer &p : peers_) doom(p, reason(config_.rank, own_report_.text, true));
    handle_failures();
}

// A peer that is counted as failed while it lives may have no link yet.
void Engine::open_to_tell(Peer &p) {
    if (p.state == Peer::State::kIdle || (p.doomed && !p.ep && !p.failure_pending && p.state == Peer::State::kFailed)) connect(p);
}

void Engine::tell_raised_to(Peer &p) {
    if (p.told_raised || !own_report_.kind || !p.ep || p.failure_pending || p.state == Peer::State::kLeft) return;
    p.told_raised = true;
    const std::string &text = own_report_.text;
    const RaisedHeader header{own_report_.kind, own_report_.flags, static_cast<uint32_t>(text.size())};
    const size_t room = p.transport->attr.max_am_bcopy - sizeof header;
    size_t at = 0;
    do {
        std::string body(sizeof header, '\0');
        std::memcpy(body.data(), &header, sizeof header);
        body.append(text, at, room);
        at += room;
        send_body(p, kAmRaised, std::move(body));
    } while (at < text.size());
}

// Only marks, as on_loss does: handle_failures acts, outside the transports.
void Engine::doom(Peer &p, const std::string &why) {
    if (p.rank == config_.rank || p.doomed || p.failure_pending || p.state == Peer::State::kFailed) return;
    p.doomed = true;
    p.failure = MPX_ERR_PEER_FAILED;
    p.failure_reason = why;
    failures_.push_back(&p);
}

mpx_status Engine::on_raised(void *arg, void *ep_user, const void *, size_t header_length, void *data, size_t length, unsigned) {
    Engine &e = *static_cast<Engine *>(arg);
    Peer &p = *static_cast<Peer *>(ep_user);
    RaisedHeader header;
    if (header_length || length < sizeof header) return e.protocol_violation(p);
    std::memcpy(&header, data, sizeof header);
    const size_t piece = length - sizeof header;
    if (!header.kind || header.flags > kEndsPeer || header.total > kMaxRaised || p.raised.size() + piece > header.total ||
        (!piece && header.total))
        return e.protocol_violation(p);
    p.raised.append(static_cast<const char *>(data) + sizeof header, piece);
    if (p.raised.size() < header.total) return MPX_OK;
    Report report{p.rank, header.kind, header.flags, std::exchange(p.raised, {})};
    if (header.flags & kEndsJob)
        for (Peer &other : e.peers_) e.doom(other, reason(p.rank, report.text, true));
    if (header.flags & kEndsPeer) {
        e.doom(p, reason(p.rank, report.text, false));
        if (!e.own_report_.kind) {  // only that it was heard
            const RaisedHeader heard{kHeard, 0, 0};
            e.send_body(p, kAmRaised, std::string(reinterpret_cast<const char *>(&heard), sizeof heard));
        }
    }
    const auto known = std::find_if(e.reports_.begin(), e.reports_.end(), [&](const Report &r) { return r.rank == p.rank; });
    if (known == e.reports_.end()) e.reports_.push_back(std::move(report));
    else *known = std::move(report);
    e.news_++;
    e.tell(kEverybody);
    e.tell_raised_to(p);
    return MPX_OK;
}

News Engine::news() const {
    std::lock_guard lock(mutex_);
    News out{news_, reports_, {}};
    for (const Peer &p : peers_) {
        const bool gone = p.failure_pending || p.state == Peer::State::kLeft || (p.state == Peer::State::kFailed && !p.doomed);
        if (p.rank != config_.rank && !gone && !closed_) out.living.push_back(p.rank);
    }
    return out;
}

}  // namespace mpx
