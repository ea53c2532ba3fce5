// Agreement, and revocation of communicators. See agreement.h.
#include "agreement.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "engine.h"

namespace mpx {
namespace {

constexpr size_t kRemembered = 1024;  // decided agreements whose result a later leader may ask for
constexpr size_t kPending = 1024;     // undecided ones; more is nonsense from a peer

enum class Step : uint32_t { kContribute = 1, kAsk, kPropose, kConfirm, kCommit };

struct AgreeHeader {
    Step step;
    uint32_t context;
    uint32_t number;
    uint32_t proposed;
    uint32_t flag;
    uint32_t next_context;
};

size_t map_bytes(size_t members) { return (members + 7) / 8; }

}  // namespace

void Agreed::combine(const Agreed &other) {
    flag &= other.flag;
    next_context = std::max(next_context, other.next_context);
    for (size_t i = 0; i < gone.size(); i++) gone[i] |= other.gone[i];
    for (size_t i = 0; i < acked.size(); i++) acked[i] &= other.acked[i];
}

Request *Engine::agree(uint32_t context, uint32_t flag, uint32_t next_context, bool heeds_failures, AgreementResult *result) {
    Locked locked(*this);
    Request *r = allocate(Kind::kAgreement);
    r->context = context;
    r->stage = Stage::kAwaitsPeer;
    MatchQueue &queue = queue_of(context);
    Agreement &a = agreement(context, queue.agreements++);
    a.members = queue.members;
    a.request = r;
    a.result = result;
    a.heeds_failures = heeds_failures;
    const size_t bytes = map_bytes(a.members.size());
    a.own.value = {flag, next_context, std::vector<uint8_t>(bytes), std::vector<uint8_t>(bytes)};
    for (size_t i = 0; i < a.members.size(); i++) {
        if (is_gone(a.members[i])) set_bit(a.own.value.gone, static_cast<int32_t>(i));
        if (std::count(queue.acked.begin(), queue.acked.end(), a.members[i])) set_bit(a.own.value.acked, static_cast<int32_t>(i));
    }
    // What was heard before the members were known here is looked at now.
    std::erase_if(a.contributions, [&](const auto &entry) {
        const bool fits = std::count(a.members.begin(), a.members.end(), entry.first) && entry.second.value.gone.size() == bytes;
        if (!fits) protocol_violation(peers_[entry.first]);
        return !fits;
    });
    step_agreements();
    return r;
}

Agreement &Engine::agreement(uint32_t context, uint32_t number) {
    auto &a = agreements_[{context, number}];
    if (!a) {
        a = std::make_unique<Agreement>();
        a->context = context;
        a->number = number;
    }
    return *a;
}

void Engine::tell(const Agreement &a, int32_t rank, uint32_t step, const Agreement::Contribution *what) {
    AgreeHeader header{static_cast<Step>(step), a.context, a.number, 0, 0, 0};
    std::string body(sizeof header, '\0');
    if (what) {
        header.proposed = what->proposed;
        header.flag = what->value.flag;
        header.next_context = what->value.next_context;
        for (const auto *bits : {&what->value.gone, &what->value.acked}) body.append(bits->begin(), bits->end());
    }
    std::memcpy(body.data(), &header, sizeof header);
    open_ep(peers_[rank]);
    send_body(peers_[rank], kAmAgree, std::move(body));
}

// Whatever may have changed: goes on until nothing does. Opening an ep may show that a peer is gone, hence the loop.
void Engine::step_agreements() {
    agreements_changed_ = true;
    if (stepping_) return;
    stepping_ = true;
    while (std::exchange(agreements_changed_, false))
        for (auto &entry : agreements_)
            if (entry.second->request) step(*entry.second);
    stepping_ = false;
}

void Engine::step(Agreement &a) {
    for (const int32_t asker : std::exchange(a.askers, {}))
        if (!is_gone(asker)) tell(a, asker, static_cast<uint32_t>(Step::kContribute), &a.own);
    const int32_t leader = *std::find_if(a.members.begin(), a.members.end(), [this](int32_t rank) { return !is_gone(rank); });
    if (leader != config_.rank) {
        if (std::exchange(a.told, leader) != leader) tell(a, leader, static_cast<uint32_t>(Step::kContribute), &a.own);
        return;
    }
    const auto everybody = [&](auto has) {
        return std::all_of(a.members.begin(), a.members.end(), [&](int32_t r) { return r == config_.rank || is_gone(r) || has(r); });
    };
    const auto tell_everybody = [&](Step step, const Agreement::Contribution *what) {
        for (const int32_t rank : a.members)
            if (rank != config_.rank && !is_gone(rank)) tell(a, rank, static_cast<uint32_t>(step), what);
    };
    for (const int32_t rank : a.members)  // whose end is to be noticed
        if (rank != config_.rank && !is_gone(rank)) open_ep(peers_[rank]);
    if (a.members.front() != config_.rank && !std::exchange(a.asked, true)) tell_everybody(Step::kAsk, nullptr);
    if (!a.proposing) {
        if (!everybody([&](int32_t rank) { return a.contributions.count(rank) > 0; })) return;
        for (const auto &[rank, c] : a.contributions) {
            if (a.own.proposed) break;
            if (c.proposed) a.own = c;
        }
        if (!a.own.proposed) {
            for (const auto &entry : a.contributions) a.own.value.combine(entry.second.value);
            for (size_t i = 0; i < a.members.size(); i++)
                if (is_gone(a.members[i])) set_bit(a.own.value.gone, static_cast<int32_t>(i));
            a.own.proposed = true;
        }
        a.proposing = true;
        tell_everybody(Step::kPropose, &a.own);
    }
    if (!everybody([&](int32_t rank) { return a.confirmed.count(rank) > 0; })) return;
    tell_everybody(Step::kCommit, &a.own);
    decide(a);
}

void Engine::decide(Agreement &a) {
    a.decided = true;
    Request *r = std::exchange(a.request, nullptr);
    Error error = Error::kNone;
    for (size_t i = 0; i < a.members.size(); i++) {
        const auto member = static_cast<int32_t>(i);
        if (!has_bit(a.own.value.gone, member)) continue;
        Peer &p = peers_[a.members[i]];
        if (!is_gone(p.rank) && p.rank != config_.rank) on_loss(p, MPX_ERR_PEER_FAILED);  // others saw it end
        if (!a.heeds_failures || has_bit(a.own.value.acked, member) || error != Error::kNone) continue;
        error = Error::kProcFailed;
        r->status.source = p.rank;
    }
    a.result->flag = a.own.value.flag;
    a.result->next_context = a.own.value.next_context;
    a.result->gone = a.own.value.gone;
    if (a.result->flag_copy) *a.result->flag_copy = static_cast<int32_t>(a.own.value.flag);
    a.result = nullptr;
    a.contributions.clear();
    remembered_.push_back({a.context, a.number});
    complete(r, error);
    if (remembered_.size() > kRemembered) {
        agreements_.erase(remembered_.front());
        remembered_.pop_front();
    }
}

mpx_status Engine::on_agree(void *arg, void *ep_user, const void *, size_t, void *data, size_t length, unsigned) {
    Engine &e = *static_cast<Engine *>(arg);
    Peer &p = *static_cast<Peer *>(ep_user);
    AgreeHeader header;
    if (length < sizeof header) return e.protocol_violation(p);
    std::memcpy(&header, data, sizeof header);
    const size_t bytes = (length - sizeof header) / 2;
    const bool carries = header.step == Step::kContribute || header.step == Step::kPropose || header.step == Step::kCommit;
    if (header.context > kMaxContext || length != sizeof header + 2 * bytes || bytes > map_bytes(e.peers_.size()) || carries != (bytes > 0))
        return e.protocol_violation(p);
    const auto *bits = static_cast<const uint8_t *>(data) + sizeof header;
    const Agreement::Contribution told{{header.flag, header.next_context, {bits, bits + bytes}, {bits + bytes, bits + 2 * bytes}},
                                       header.proposed != 0};
    if (!e.agreements_.count({header.context, header.number}) && e.agreements_.size() - e.remembered_.size() >= kPending)
        return e.protocol_violation(p);
    Agreement &a = e.agreement(header.context, header.number);
    const bool member = a.members.empty() || std::count(a.members.begin(), a.members.end(), p.rank);
    if (!member || (a.request && carries && bytes != map_bytes(a.members.size()))) return e.protocol_violation(p);
    const auto reply = [&](Step step, const Agreement::Contribution *what) { e.tell(a, p.rank, static_cast<uint32_t>(step), what); };
    switch (header.step) {
        case Step::kContribute:
        case Step::kAsk:
            if (a.decided) reply(Step::kCommit, &a.own);
            else if (header.step == Step::kContribute) a.contributions[p.rank] = told;
            else if (!std::count(a.askers.begin(), a.askers.end(), p.rank)) a.askers.push_back(p.rank);
            break;
        case Step::kPropose:
            if (!a.request && !a.decided) return e.protocol_violation(p);
            if (a.request) a.own = {told.value, true};
            reply(Step::kConfirm, nullptr);
            break;
        case Step::kConfirm: a.confirmed.insert(p.rank); break;
        case Step::kCommit:
            if (!a.request && !a.decided) return e.protocol_violation(p);
            if (a.request) {
                a.own = {told.value, true};
                // A leader that learned of the decision passes it on: others may wait for it.
                if (a.asked)
                    for (const int32_t rank : a.members)
                        if (rank != e.config_.rank && rank != p.rank && !e.is_gone(rank))
                            e.tell(a, rank, static_cast<uint32_t>(Step::kCommit), &a.own);
                e.decide(a);
            }
            break;
        default: return e.protocol_violation(p);
    }
    e.step_agreements();
    return MPX_OK;
}

void Engine::end_agreements() {
    for (auto &entry : agreements_) {
        Agreement &a = *entry.second;
        if (Request *r = std::exchange(a.request, nullptr)) complete(r, Error::kProcFailed);
    }
    agreements_.clear();
    remembered_.clear();
}

// --- revocation: every operation on the communicator ends, on every member, sooner or later

void Engine::revoke(uint32_t context) {
    Locked locked(*this);
    mark_revoked(context);
}

bool Engine::is_revoked(uint32_t context) const {
    std::lock_guard lock(mutex_);
    const MatchQueue *queue = contexts_.find(context);
    return queue && queue->revoked;
}

// Tells every member, also when it was told itself: who began may have died while telling.
void Engine::mark_revoked(uint32_t context) {
    if (queue_of(context).revoked) return;
    any_revoked_.store(true, std::memory_order_relaxed);
    for (const uint32_t c : {context, context + 1}) {
        MatchQueue &queue = queue_of(c);
        queue.revoked = true;
        while (Message *m = queue.find_unexpected(kAnySource, kAnyTag)) {
            queue.remove_unexpected(m);
            reject(m);
        }
        for (const int32_t rank : std::vector<int32_t>(queue.members))
            while (Request *r = queue.first_posted(rank)) end_revoked(queue, r);
        while (Request *r = queue.first_posted(kAnySource)) end_revoked(queue, r);
    }
    for (Peer &p : peers_)
        for (PendingOp *op = p.pending.front(), *next; op; op = next) {
            next = decltype(p.pending)::next(op);
            if (op->is_control) continue;
            auto *r = static_cast<Request *>(op);
            if (r->kind != Kind::kSend || (r->context & ~1u) != context) continue;
            p.pending.remove(op);
            finish_send(r, Error::kRevoked);
        }
    for (const int32_t rank : std::vector<int32_t>(queue_of(context).members)) {
        if (rank == config_.rank || is_gone(rank)) continue;
        open_ep(peers_[rank]);
        send_control(peers_[rank], kAmRevoke, context);
    }
    tell(kEverybody);  // of those who probe
    wake_sleepers();
}

void Engine::end_revoked(MatchQueue &queue, Request *r) {
    queue.withdraw(r);
    complete(r, Error::kRevoked);
}

// A message that nobody will receive: its sender need not wait for that.
void Engine::reject(Message *m) {
    if (m->form == Message::Form::kEagerSync || m->form == Message::Form::kRts) send_control(*m->peer, kAmFin, m->sender_request);
    discard(m);
}

mpx_status Engine::on_revoke(void *arg, void *ep_user, const void *header, size_t header_length, void *, size_t, unsigned) {
    Engine &e = *static_cast<Engine *>(arg);
    uint64_t context;
    if (header_length != sizeof context) return e.protocol_violation(*static_cast<Peer *>(ep_user));
    std::memcpy(&context, header, sizeof context);
    if (context >= kMaxContext || is_collective(static_cast<uint32_t>(context))) return e.protocol_violation(*static_cast<Peer *>(ep_user));
    e.mark_revoked(static_cast<uint32_t>(context));
    return MPX_OK;
}

// --- failures that the program knows of

std::vector<int32_t> Engine::failed_members(uint32_t context) const {
    std::vector<int32_t> out = failed_ranks();
    std::lock_guard lock(mutex_);
    const MatchQueue *queue = contexts_.find(context);
    std::erase_if(out, [&](int32_t rank) { return !queue || !std::count(queue->members.begin(), queue->members.end(), rank); });
    return out;
}

int32_t Engine::acknowledge_failed(uint32_t context, int32_t count) {
    const std::vector<int32_t> failed = failed_members(context);
    Locked locked(*this);
    auto &acked = queue_of(context).acked;
    for (const int32_t rank : failed)
        if (static_cast<int32_t>(acked.size()) < count && !std::count(acked.begin(), acked.end(), rank)) acked.push_back(rank);
    return static_cast<int32_t>(acked.size());
}

}  // namespace mpx
