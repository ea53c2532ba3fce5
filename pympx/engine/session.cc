// See session.h.
#include "session.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "session_impl.h"
#include "wire.h"

namespace mpx {
namespace {

constexpr double kFirstDelay = 5e-3, kLastDelay = 250e-3;  // between attempts to connect
constexpr double kFirstLink = 2.0;     // a peer that was never reached is given up after this, if the link's time-out is not shorter
constexpr double kSignInterval = 0.1;  // between two questions whether the peer gives a sign
constexpr uint64_t kAckBytes = ReplayBuffer::kCapacity / 4;
constexpr uint64_t kRecordCost = sizeof(Record) + 8;  // at least what a message costs its sender beside its bytes

double now() { return monotonic_s(); }

// What a link's end does to an operation, as opposed to an operation that was wrong.
bool is_of_link(mpx_status st) { return st != MPX_OK && st != MPX_ERR_UNSUPPORTED && st != MPX_ERR_INVALID && st != MPX_ERR_NO_MEMORY; }

struct Resume {
    uint64_t received;
};

Session &self(mpx_ep *ep) { return *static_cast<Session *>(ep); }

// A link that refuses is about to report its end; until then, and afterwards, the message waits.
mpx_status refused(mpx_status st) { return is_of_link(st) ? MPX_ERR_NO_RESOURCE : st; }

struct Tee {
    Record *record;
    mpx_pack_fn pack;
    void *arg;
};

size_t pack_once(void *destination, void *arg) {
    auto &tee = *static_cast<Tee *>(arg);
    tee.record->length = tee.pack(tee.record->payload(), tee.arg);
    std::memcpy(destination, tee.record->payload(), tee.record->length);
    return tee.record->length;
}

size_t pack_again(void *destination, void *arg) {
    auto *record = static_cast<Record *>(arg);
    std::memcpy(destination, record->payload(), record->length);
    return record->length;
}

mpx_status am_short(mpx_ep *e, uint8_t id, uint64_t header, const void *buffer, size_t length) {
    Session &s = self(e);
    if (s.state != Session::kUp) return s.not_up();
    Record *r = s.replay.reserve(length);
    if (!r) return MPX_ERR_NO_RESOURCE;
    const mpx_status st = s.base().am_short(s.ep, id, header, buffer, length);
    if (st != MPX_OK) return refused(st);
    r->id = id;
    r->form = Record::kShort;
    r->word = header;
    r->length = length;
    if (length) std::memcpy(r->payload(), buffer, length);
    s.replay.commit();
    s.link_sent = ++s.sent;
    if (is_bye(id)) s.bye = s.sent;
    return MPX_OK;
}

mpx_status am_bcopy(mpx_ep *e, uint8_t id, size_t length, mpx_pack_fn pack, void *arg) {
    Session &s = self(e);
    if (s.state != Session::kUp) return s.not_up();
    Record *r = s.replay.reserve(length);
    if (!r) return MPX_ERR_NO_RESOURCE;
    Tee tee{r, pack, arg};
    const mpx_status st = s.base().am_bcopy(s.ep, id, length, pack_once, &tee);
    if (st != MPX_OK) return refused(st);
    r->id = id;
    r->form = Record::kBcopy;
    s.replay.commit();
    s.link_sent = ++s.sent;
    return MPX_OK;
}

mpx_status am_zcopy(mpx_ep *e, uint8_t id, const void *header, size_t header_length, const mpx_iov *iov, size_t cnt,
                    mpx_completion *completion) {
    Session &s = self(e);
    if (s.state != Session::kUp) return s.not_up();
    if (cnt > kMaxIov || header_length > UINT16_MAX) return MPX_ERR_INVALID;
    Record *r = s.replay.reserve(header_length);
    if (!r) return MPX_ERR_NO_RESOURCE;
    Op *op = s.take(Op::kAm, iov, cnt, completion);
    const mpx_status st = s.base().am_zcopy(s.ep, id, header, header_length, iov, cnt, &op->inner);
    if (st != MPX_OK && st != MPX_INPROGRESS) {
        s.give_back(op);
        return refused(st);
    }
    op->held = st == MPX_INPROGRESS;
    r->id = id;
    r->form = Record::kZcopy;
    r->header_length = static_cast<uint16_t>(header_length);
    r->word = reinterpret_cast<uintptr_t>(op);
    r->length = header_length;
    if (header_length) std::memcpy(r->payload(), header, header_length);
    s.replay.commit();
    s.link_sent = ++s.sent;
    s.ask();
    return MPX_INPROGRESS;
}

mpx_status post_new(Session &s, Op *op, uint64_t remote, mpx_rkey_h rkey) {
    op->remote = remote;
    op->rkey = rkey;
    const mpx_status st = s.post(op);
    if (st == MPX_INPROGRESS) return st;
    s.give_back(op);
    return refused(st);
}

mpx_status put_zcopy(mpx_ep *e, const mpx_iov *iov, size_t cnt, uint64_t remote, mpx_rkey_h rkey, mpx_completion *completion) {
    Session &s = self(e);
    if (s.state != Session::kUp) return s.not_up();
    if (cnt > kMaxIov) return MPX_ERR_INVALID;
    return post_new(s, s.take(Op::kPut, iov, cnt, completion), remote, rkey);
}

mpx_status get_zcopy(mpx_ep *e, const mpx_iov *iov, size_t cnt, uint64_t remote, mpx_rkey_h rkey, mpx_completion *completion) {
    Session &s = self(e);
    if (s.state != Session::kUp) return s.not_up();
    if (cnt > kMaxIov) return MPX_ERR_INVALID;
    return post_new(s, s.take(Op::kGet, iov, cnt, completion), remote, rkey);
}

mpx_status atomic64(mpx_ep *e, unsigned operation, uint64_t operand, uint64_t compare, uint64_t *result, uint64_t remote, mpx_rkey_h rkey,
                    mpx_completion *completion) {
    Session &s = self(e);
    if (s.state != Session::kUp) return s.not_up();
    Op *op = s.take(Op::kAtomic, nullptr, 0, completion);
    const mpx_status st = s.base().atomic64(s.ep, operation, operand, compare, result, remote, rkey, &op->inner);
    op->held = st == MPX_INPROGRESS;
    if (st == MPX_INPROGRESS) return st;
    s.give_back(op);
    return refused(st);
}

mpx_status ep_fence(mpx_ep *e) {
    Session &s = self(e);
    return s.state == Session::kUp ? refused(s.base().ep_fence(s.ep)) : s.not_up();
}

mpx_status ep_flush(mpx_ep *e, mpx_completion *completion) {
    Session &s = self(e);
    if (s.ended()) return s.verdict;
    if (s.acknowledged == s.sent && s.ops.empty()) return MPX_OK;
    s.flushes.push_back({completion, s.sent, s.op_number});
    if (s.acknowledged != s.sent) s.ask();
    return MPX_INPROGRESS;
}

}  // namespace

// ---- operations

Op *Session::take(Op::Kind kind, const mpx_iov *iov, size_t cnt, mpx_completion *user_completion) {
    if (!free_ops) {
        all_ops.push_back(std::make_unique<Op>());
        free_ops = all_ops.back().get();
        free_ops->link.next = nullptr;
    }
    Op *op = free_ops;
    free_ops = op->link.next;
    op->inner.done = on_inner_done;
    op->inner.op = op;
    op->session = this;
    op->user = user_completion;
    op->number = ++op_number;
    op->kind = kind;
    op->held = op->acknowledged = false;
    op->iovcnt = cnt;
    std::copy(iov, iov + cnt, op->iov);
    ops.push_back(op);
    return op;
}

void Session::give_back(Op *op) {
    ops.remove(op);
    op->link.next = free_ops;
    free_ops = op;
}

void Session::finish(Op *op, mpx_status st) {
    mpx_completion *done = op->user;
    give_back(op);
    done->done(done, st);
    check_flushes();
}

void Session::finish_all(mpx_status st) {
    while (Op *op = ops.front()) finish(op, st);
    while (!flushes.empty()) {
        mpx_completion *done = flushes.front().user;
        flushes.pop_front();
        done->done(done, st);
    }
}

mpx_status Session::post(Op *op) {
    const auto verb = op->kind == Op::kGet ? base().get_zcopy : base().put_zcopy;
    const mpx_status st = verb(ep, op->iov, op->iovcnt, op->remote, op->rkey, &op->inner);
    op->held = st == MPX_INPROGRESS;
    return st;
}

void Session::on_inner_done(mpx_completion *completion, mpx_status st) {
    Op *op = static_cast<Op::Inner *>(completion)->op;
    Session &s = *op->session;
    op->held = false;
    if (s.closing) return s.finish(op, st);
    switch (op->kind) {
        case Op::kAm:
            if (op->acknowledged) s.finish(op, MPX_OK);
            return;
        case Op::kGet:
        case Op::kPut:
            if (!is_of_link(st)) s.finish(op, st);
            return;
        case Op::kAtomic: return s.finish(op, is_of_link(st) ? MPX_ERR_UNKNOWN_OUTCOME : st);
    }
}

void Session::check_flushes() {
    if (ended() || closing) return;
    while (!flushes.empty() && acknowledged >= flushes.front().position && (ops.empty() || ops.front()->number > flushes.front().number)) {
        mpx_completion *done = flushes.front().user;
        flushes.pop_front();
        done->done(done, MPX_OK);
    }
}

// ---- acknowledgements

void Session::acknowledge() {
    if (!open()) return;  // RESUME will say it
    const mpx_status st = base().am_short(ep, kAmAck, received, nullptr, 0);
    ack_due = st == MPX_ERR_NO_RESOURCE;
    if (st == MPX_OK) unacknowledged_bytes = 0;
    if (ack_due) owner->take_care(*this);
}

void Session::ask() {
    if (state != kUp) return;  // RESUME will tell
    ask_due = base().am_short(ep, kAmAskAck, sent, nullptr, 0) == MPX_ERR_NO_RESOURCE;
    if (ask_due) owner->take_care(*this);
}

bool Session::peer_has(uint64_t count) {
    if (count < acknowledged || count > link_sent) return false;
    while (acknowledged < count) {
        const Record *r = replay.at(replay.begin());
        Op *op = r->form == Record::kZcopy ? reinterpret_cast<Op *>(static_cast<uintptr_t>(r->word)) : nullptr;
        replay.pop();
        ++acknowledged;
        if (!op) continue;
        op->acknowledged = true;
        if (!op->held) finish(op, MPX_OK);
    }
    check_flushes();
    return true;
}

// ---- the life of a link

mpx_status Session::create_ep() {
    const mpx_status st = owner->table_->ep_create(owner->base_, address.data(), address.size(), &ep);
    if (st != MPX_OK) {
        ep = nullptr;
        return st;
    }
    ep->user = this;
    peer_resumed = fence_due = false;
    ++epoch;
    return MPX_OK;
}

void Session::destroy_link() {
    if (!ep) return;
    owner->table_->ep_fence_off(ep);
    owner->table_->ep_destroy(std::exchange(ep, nullptr));  // what it held is ours again
}

mpx_status Session::not_up() {
    if (ended()) return verdict;
    if (state == kIdle) {
        last_sign = retry_at = now();
        state = wireup.used ? kDown : kConnecting;
        owner->take_care(*this);
        if (state == kConnecting) greet();
    }
    return MPX_ERR_NO_RESOURCE;
}

void Session::break_link(mpx_status st, std::string reason) {
    if (over()) return;
    if (open()) {
        ++counters.cuts;
        attempts = state == kUp ? 0 : 1;
        last_sign = counters.last_cut = now();
    }
    if (state == kUp) cut_at = last_sign;
    verdict = st;
    why = std::move(reason);
    state = kBroken;
    owner->take_care(*this);
}

mpx_status Session::violate(std::string what) {
    if (!over()) break_link(MPX_ERR_INVALID, std::move(what));
    return MPX_ERR_INVALID;
}

void Session::tear_down() {
    destroy_link();
    ack_due = ask_due = false;
    if (verdict != MPX_ERR_LINK_BROKEN) return fail(verdict);
    if (settled()) return end(kResting, MPX_ERR_PEER_FAILED);
    state = kDown;
    const double delay = attempts ? owner->jitter(std::min(kFirstDelay * (1u << std::min(attempts - 1, 10u)), kLastDelay)) : 0;
    retry_at = now() + delay;
    if (last_sign == 0) last_sign = retry_at;
    ++attempts;
}

void Session::fail(mpx_status st) {
    destroy_link();
    replay.release();
    if (wireup.used) wireup.due = Wireup::kRefuse;
    owner->take_care(*this);
    end(kFailed, was_up && st == MPX_ERR_UNREACHABLE ? MPX_ERR_PEER_FAILED : st);
}

void Session::end(State how, mpx_status st) {
    state = how;
    verdict = st;
    finish_all(st);
    owner->on_error_(owner->arg_, this, st);
}

bool Session::out_of_patience(double time) const {
    return time - last_sign > (was_up ? owner->link_timeout_ : std::min(kFirstLink, owner->link_timeout_));
}

void Session::look_for_signs(double time) {
    if (time < next_question || question.asked) return;
    next_question = time + kSignInterval;
    const mpx_status st = owner->table_->ep_check(ep, &question);
    if (st == MPX_OK) last_sign = time;
    question.asked = st == MPX_INPROGRESS;
}

bool Session::greet() {
    const Resume body{received};
    if (base().am_short(ep, kAmResume, epoch, &body, sizeof body) != MPX_OK) return false;
    unacknowledged_bytes = 0;
    state = peer_resumed ? kReplaying : kAwaitResume;
    return true;
}

mpx_status Session::send_again(Record *r) {
    if (r->form == Record::kShort) return base().am_short(ep, r->id, r->word, r->payload(), r->length);
    if (r->form == Record::kBcopy) return base().am_bcopy(ep, r->id, r->length, pack_again, r);
    Op *op = reinterpret_cast<Op *>(static_cast<uintptr_t>(r->word));
    const mpx_status st = base().am_zcopy(ep, r->id, r->payload(), r->header_length, op->iov, op->iovcnt, &op->inner);
    op->held = st == MPX_INPROGRESS;
    return st;
}

// Gets and puts first: a put that an AM announced must not come after it.
unsigned Session::resume() {
    for (Op *op = ops.front(), *next; op; op = next) {
        next = List<Op>::next(op);
        if (op->held || op->kind == Op::kAm || op->kind == Op::kAtomic) continue;
        fence_due |= op->kind == Op::kPut;
        const mpx_status st = post(op);
        if (st == MPX_INPROGRESS) continue;
        if (refused(st) == MPX_ERR_NO_RESOURCE) return 0;
        finish(op, st);
    }
    if (fence_due && base().ep_fence(ep) != MPX_OK) return 0;
    fence_due = false;
    while (link_sent < sent) {
        const mpx_status st = send_again(replay.at(cursor));
        if (st != MPX_OK && st != MPX_INPROGRESS) return 0;
        ++link_sent;
        ++counters.replayed;
        cursor = replay.next(cursor);
    }
    state = kUp;
    attempts = 0;
    counters.last_up = now();
    if (was_up) {
        ++counters.reconnects;
        counters.longest_stall = std::max(counters.longest_stall, counters.last_up - cut_at);
    }
    was_up = true;
    if (sent != acknowledged && (!ops.empty() || !flushes.empty())) ask();
    return 1;
}

bool Session::needs_care() const {
    if (wireup.due == Wireup::kRefuse || wireup.offered) return true;
    if (condemned != MPX_OK) return !ended();
    return state == kUp ? ack_due || ask_due : state != kIdle && !ended();
}

// quiet: the transport had nothing to deliver.
unsigned Session::step(bool quiet) {
    unsigned events = 0;
    if (state == kFailed) return wireup.due == Wireup::kRefuse ? wire() : 0;
    if (condemned != MPX_OK) {
        if (!quiet || ended()) return 0;
        fail(condemned);
        return 1;
    }
    if (state == kBroken) {
        tear_down();
        ++events;
    }
    if (wireup.offered) events += take_offer();
    const double time = state == kDown || state == kConnecting || state == kAwaitResume ? now() : 0;
    if (state == kConnecting && !linked()) await_program(time);
    if (time != 0 && out_of_patience(time)) {
        char text[64];
        std::snprintf(text, sizeof text, "no link for %.3g s", time - last_sign);
        if (was_up || why.empty()) why = why.empty() ? text : text + (": " + why);
        fail(MPX_ERR_UNREACHABLE);
        return events + 1;
    }
    if (state == kDown) {
        if (time < retry_at) return events;
        const mpx_status st = create_link();
        ++events;
        if (st != MPX_OK) {
            why = owner->table_->why();
            fail(st);
            return events;
        }
        state = kConnecting;
    }
    if (wireup.used && state == kConnecting) events += wire();
    if (state == kConnecting && linked()) events += greet();
    if (state == kAwaitResume || (state == kConnecting && !wireup.used)) look_for_signs(time);
    if (state == kReplaying) events += resume();
    if (state == kUp) {
        if (ack_due) acknowledge();
        if (ask_due) ask();
    }
    return events;
}

// ---- all sessions of an iface

const mpx_iface_ops Sessions::kOps = {
    sizeof(mpx_iface_ops),
    am_short,
    am_bcopy,
    am_zcopy,
    put_zcopy,
    get_zcopy,
    atomic64,
    ep_fence,
    ep_flush,
    progress,
    [](mpx_iface *i, void *data) {
        auto *s = static_cast<Sessions *>(i);
        s->ops_->desc_release(s->base_, data);
    },
    [](mpx_iface *i) {
        auto *s = static_cast<Sessions *>(i);
        return s->ops_->event_arm(s->base_);
    },
    [](mpx_iface *i) {
        auto *s = static_cast<Sessions *>(i);
        return s->ops_->event_fd(s->base_);
    },
};

double monotonic_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

Sessions::Sessions(const mpx_transport *table, mpx_iface *base, const mpx_am_handler *handlers, OnError on_error, void *arg,
                   double link_timeout)
    : mpx_iface{&kOps},
      table_(table),
      base_(base),
      ops_(base->ops),
      on_error_(on_error),
      arg_(arg),
      link_timeout_(link_timeout),
      random_(std::random_device{}()) {
    for (uint8_t id = 0; id < MPX_AM_ID_MAX; id++) {
        slots_[id] = {this, handlers[id], id};
        outer_[id] = {on_message, &slots_[id]};
    }
    outer_[kAmResume].fn = on_resume;
    outer_[kAmAck].fn = on_acknowledge;
    outer_[kAmAskAck].fn = on_ask;
}

void Sessions::connect_over(const ControlLane &lane, size_t ep_address_length) {
    lane_ = lane;
    ep_address_length_ = ep_address_length;
}

mpx_status Sessions::create(const void *address, size_t length, bool leads, mpx_ep **out) {
    auto s = std::make_unique<Session>(this);
    s->address.assign(static_cast<const char *>(address), length);
    s->wireup.used = lane_.say != nullptr;
    s->wireup.leads = leads;
    if (!s->wireup.used)
        if (const mpx_status st = s->create_ep(); st != MPX_OK) return st;
    *out = s.release();
    return MPX_OK;
}

void Sessions::destroy(mpx_ep *ep) {
    Session &s = self(ep);
    s.closing = true;
    if (s.ep) table_->ep_destroy(std::exchange(s.ep, nullptr));
    s.state = Session::kFailed;
    s.verdict = MPX_ERR_CANCELED;
    s.finish_all(MPX_ERR_CANCELED);
    std::erase(cared_for_, &s);
    delete &s;
}

mpx_ep *Sessions::incoming(mpx_ep *ep) {
    Session &s = self(ep);
    if ((s.state == Session::kDown || s.state == Session::kResting) && s.create_link() == MPX_OK) {
        s.state = Session::kConnecting;
        s.last_sign = now();
        s.owner->take_care(s);
    }
    return s.state == Session::kIdle || s.state == Session::kConnecting ? s.ep : nullptr;
}

void Sessions::link_error(mpx_ep *link, mpx_status st) {
    if (auto *s = static_cast<Session *>(link->user)) s->break_link(st, table_->why());
}

bool Sessions::settled(const mpx_ep *ep) const {
    const auto &s = *static_cast<const Session *>(ep);
    return s.ended() || s.settled();
}

bool Sessions::has_failed(const mpx_ep *ep) const { return static_cast<const Session *>(ep)->state == Session::kFailed; }

bool Sessions::hear(mpx_ep *ep, const void *data, size_t length) { return self(ep).wireup.used && self(ep).hear(data, length); }

void Sessions::condemn(mpx_ep *ep, mpx_status st, const std::string &reason) {
    Session &s = self(ep);
    if (s.ended() || s.condemned != MPX_OK) return;
    s.condemned = st;
    s.why = reason;
    take_care(s);
}

const LinkCounters &Sessions::counters(const mpx_ep *ep) const { return static_cast<const Session *>(ep)->counters; }

const std::string &Sessions::reason(const mpx_ep *ep) const { return static_cast<const Session *>(ep)->why; }

int Sessions::timeout_ms(int limit) const {
    for (const Session *s : cared_for_)
        if (s->state == Session::kDown) limit = std::clamp(static_cast<int>((s->retry_at - now()) * 1e3) + 1, 0, limit);
    return limit;
}

unsigned Sessions::progress(mpx_iface *i) {
    auto *sessions = static_cast<Sessions *>(i);
    const unsigned events = sessions->ops_->progress(sessions->base_);
    return sessions->cared_for_.empty() ? events : events + sessions->maintain(events == 0);
}

unsigned Sessions::maintain(bool quiet) {
    unsigned events = 0;
    for (size_t i = 0; i < cared_for_.size();) {  // by index: what ends here may begin something
        Session *s = cared_for_[i];
        events += s->step(quiet);
        if (s->needs_care()) {
            ++i;
            continue;
        }
        s->cared_for = false;
        cared_for_[i] = cared_for_.back();
        cared_for_.pop_back();
    }
    return events;
}

void Sessions::take_care(Session &s) {
    if (std::exchange(s.cared_for, true)) return;
    cared_for_.push_back(&s);
}

double Sessions::jitter(double seconds) { return seconds * std::uniform_real_distribution<>(0.5, 1.0)(random_); }

// ---- what arrives

mpx_status Sessions::on_message(void *arg, void *ep_user, const void *header, size_t header_length, void *data, size_t length,
                                unsigned flags) {
    const Slot &slot = *static_cast<Slot *>(arg);
    Session &s = *static_cast<Session *>(ep_user);
    if (!s.open()) [[unlikely]]
        return s.violate("it spoke before it resumed its session");
    ++s.received;
    s.unacknowledged_bytes += kRecordCost + header_length + length;
    const mpx_status st = slot.inner.fn(slot.inner.arg, s.user, header, header_length, data, length, flags);
    if (is_bye(slot.id)) s.peer_left = true;
    if (is_bye(slot.id) || s.unacknowledged_bytes >= kAckBytes) s.acknowledge();
    return st;
}

mpx_status Sessions::on_resume(void *, void *ep_user, const void *header, size_t header_length, void *data, size_t length, unsigned) {
    Session &s = *static_cast<Session *>(ep_user);
    uint64_t epoch;
    Resume body;
    if (header_length != sizeof epoch || length != sizeof body) {
        const std::string sizes = std::to_string(header_length) + " + " + std::to_string(length);
        return s.violate("it resumed its session with a malformed message of " + sizes + " bytes");
    }
    std::memcpy(&epoch, header, sizeof epoch);
    std::memcpy(&body, data, sizeof body);
    if (s.over()) return MPX_OK;
    if (s.peer_resumed) return s.violate("it resumed its session twice over one link");
    if (epoch <= s.peer_epoch) return s.violate("it resumed its session with an epoch that is over");
    if (!s.peer_has(body.received)) return s.violate("it resumed its session with a number of messages that cannot be");
    s.peer_epoch = epoch;
    s.peer_resumed = true;
    s.link_sent = body.received;
    s.cursor = s.replay.begin();
    s.last_sign = now();
    s.state = s.state == Session::kAwaitResume ? Session::kReplaying : Session::kConnecting;
    s.owner->take_care(s);
    return MPX_OK;
}

mpx_status Sessions::on_acknowledge(void *, void *ep_user, const void *header, size_t header_length, void *, size_t length, unsigned) {
    Session &s = *static_cast<Session *>(ep_user);
    uint64_t count;
    if (header_length != sizeof count || length) return s.violate("it acknowledged with a malformed message");
    std::memcpy(&count, header, sizeof count);
    if (!s.open()) return s.violate("it acknowledged before it resumed its session");
    return s.peer_has(count) ? MPX_OK : s.violate("it acknowledged a number of messages that cannot be");
}

mpx_status Sessions::on_ask(void *, void *ep_user, const void *, size_t, void *, size_t, unsigned) {
    Session &s = *static_cast<Session *>(ep_user);
    if (!s.open()) return s.violate("it asked before it resumed its session");
    s.acknowledge();
    return MPX_OK;
}

}  // namespace mpx
