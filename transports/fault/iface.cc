// Deliveries: late completions, messages held back, ends of bursts, news of broken links; and the event that announces them.
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "fault.h"

namespace mpx::fault {
namespace {

constexpr size_t kMaxHeld = 4u << 20;  // bytes held back per iface; beyond it the wrapped transport's own back-pressure takes over
constexpr Nanoseconds kNever = std::numeric_limits<Nanoseconds>::max();

// Two ifaces of one process do not suffer alike.
uint64_t seed_of_next() {
    static uint64_t opened = 0;
    return settings().seed + 0x9e3779b97f4a7c15u * opened++;
}

}  // namespace

Nanoseconds now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return Nanoseconds{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

Iface::Iface(const mpx_iface_params &params) : mpx_iface{nullptr}, outer_(params), random_(seed_of_next()) {
    for (unsigned id = 0; id < MPX_AM_ID_MAX; id++) {
        slots_[id] = {this, static_cast<uint8_t>(id)};
        handlers_[id] = {on_message, &slots_[id]};
    }
}

Iface::~Iface() {
    if (inner) wrapped().iface_close(inner);
    close_descriptors();
}

void Iface::close_descriptors() {
    for (const int fd : {timer_, epoll})
        if (fd >= 0) close(fd);
}

mpx_status Iface::open(mpx_domain *domain) {
    epoll = epoll_create1(EPOLL_CLOEXEC);
    timer_ = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    epoll_event event{EPOLLIN, {}};
    if (epoll < 0 || timer_ < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, timer_, &event) != 0) return MPX_ERR_NO_MEMORY;
    mpx_iface_params mine = outer_;
    mine.am = handlers_;
    mine.on_incoming = on_incoming;
    mine.on_error = on_error;
    if (mine.need_control) mine.need_control = on_need_control;
    mine.arg = this;
    return wrapped().iface_open(domain, &mine, &inner);
}

// ---- completions ----

mpx_status Iface::start(Ep *ep, mpx_completion *outer, bool flush, mpx_status (*call)(Ep *, mpx_completion *, void *), void *arg) {
    auto *op = new Op{{on_done}, ep, outer, flush};
    const mpx_status st = ep->accepted(call(ep, op, arg));
    if (st == MPX_OK && (strikes(settings().late) || (flush && ep->last_due))) {
        postpone(op, st);
        return MPX_INPROGRESS;
    }
    if (st != MPX_INPROGRESS) delete op;
    return st;
}

void Iface::on_done(mpx_completion *self, mpx_status st) {
    auto *op = static_cast<Op *>(self);
    Iface *iface = op->ep->owner();
    const bool late = !iface->destroying_ && (iface->strikes(settings().late) || (op->flush && op->ep->last_due));
    if (late) iface->postpone(op, st);
    else iface->deliver(op, st);
}

void Iface::postpone(Op *op, mpx_status st) {
    op->status = st;
    const Nanoseconds due = std::max(until(settings().delay_s), op->flush ? op->ep->last_due : 0);
    op->ep->last_due = std::max(op->ep->last_due, due);
    late_.emplace(due, op);
}

void Iface::deliver(Op *op, mpx_status st) {
    mpx_completion *outer = op->outer;
    delete op;
    outer->done(outer, st);
}

// ---- messages ----

mpx_status Iface::on_message(void *arg, void *user, const void *header, size_t header_length, void *data, size_t length, unsigned flags) {
    const Slot &slot = *static_cast<Slot *>(arg);
    Iface &iface = *slot.iface;
    auto *ep = static_cast<Ep *>(user);
    if (ep->broken != MPX_OK && !ep->told) return MPX_OK;  // what comes over a broken link is lost
    const mpx_am_handler &handler = iface.outer_.am[slot.id];
    const bool strikes = iface.strikes(settings().hold);
    if (ep->held.empty() && !strikes) return handler.fn(handler.arg, ep->user, header, header_length, data, length, flags);
    Held held{strikes ? iface.until(settings().delay_s) : 0, slot.id, std::vector<uint8_t>(header_length + length), header_length};
    if (header_length) std::memcpy(held.bytes.data(), header, header_length);
    if (length) std::memcpy(held.bytes.data() + header_length, data, length);
    iface.held_bytes_ += held.bytes.size();
    ep->held.push_back(std::move(held));
    return MPX_OK;
}

unsigned Iface::deliver_held(Ep &ep, Nanoseconds at) {
    unsigned delivered = 0;
    while (!ep.held.empty() && ep.held.front().due <= at) {
        Held held = std::move(ep.held.front());
        ep.held.pop_front();
        held_bytes_ -= held.bytes.size();
        const mpx_am_handler &handler = outer_.am[held.id];
        uint8_t *data = held.bytes.data() + held.header_length;
        handler.fn(handler.arg, ep.user, held.header_length ? held.bytes.data() : nullptr, held.header_length, data,
                   held.bytes.size() - held.header_length, 0);
        delivered++;
    }
    return delivered;
}

mpx_ep *Iface::on_incoming(void *arg, const void *address, size_t length) {
    auto &iface = *static_cast<Iface *>(arg);
    mpx_ep *ep = iface.outer_.on_incoming(iface.outer_.arg, address, length);
    return ep ? static_cast<Ep *>(ep)->inner : nullptr;
}

void Iface::on_need_control(void *arg) {
    const mpx_iface_params &outer = static_cast<Iface *>(arg)->outer_;
    outer.need_control(outer.arg);
}

void Iface::on_error(void *, mpx_ep *inner, mpx_status st) { static_cast<Ep *>(inner->user)->break_link(st); }

// ---- progress ----

unsigned Iface::progress() {
    const Nanoseconds at = now();
    unsigned events = 0;
    while (!late_.empty() && late_.begin()->first <= at) {
        Op *op = late_.begin()->second;
        late_.erase(late_.begin());
        deliver(op, op->status);
        events++;
    }
    for (size_t i = 0; i < eps.size(); i++) {  // by index: handlers make eps
        Ep &ep = *eps[i];
        events += deliver_held(ep, at);
        if (ep.burst_end && ep.burst_end <= at) {
            ep.burst_end = 0;
            events++;
        }
        if (ep.last_due <= at) ep.last_due = 0;
    }
    if (held_bytes_ < kMaxHeld) events += inner->ops->progress(inner);
    for (size_t i = 0; i < eps.size(); i++) {  // last: what had arrived comes before the news
        Ep &ep = *eps[i];
        if (ep.broken == MPX_OK || ep.told || !ep.held.empty()) continue;
        ep.told = true;
        outer_.on_error(outer_.arg, &ep, ep.broken);
        events++;
    }
    return events;
}

// Whether progress would do something at that time; else when it will.
bool Iface::due(Nanoseconds at, Nanoseconds *next) const {
    *next = late_.empty() ? kNever : late_.begin()->first;
    for (const Ep *ep : eps) {
        if (ep->burst_end) *next = std::min(*next, ep->burst_end);
        if (!ep->held.empty()) *next = std::min(*next, ep->held.front().due);
        else if (ep->broken != MPX_OK && !ep->told) return true;
    }
    return *next <= at;
}

mpx_status Iface::arm() {
    Nanoseconds next;
    if (due(now(), &next)) return MPX_ERR_NO_RESOURCE;
    if (const mpx_status st = inner->ops->event_arm(inner); st != MPX_OK) return st;
    const int fd = inner->ops->event_fd(inner);
    if (fd != inner_fd_) {
        epoll_event event{EPOLLIN, {}};
        if (inner_fd_ >= 0) epoll_ctl(epoll, EPOLL_CTL_DEL, inner_fd_, nullptr);
        inner_fd_ = epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0 ? fd : -1;
        if (inner_fd_ < 0) return MPX_ERR_NO_RESOURCE;  // cannot sleep: poll
    }
    itimerspec when{};  // all zero: never
    if (next != kNever) when.it_value = {next / 1'000'000'000, next % 1'000'000'000};
    timerfd_settime(timer_, TFD_TIMER_ABSTIME, &when, nullptr);
    return MPX_OK;
}

void Iface::destroy(Ep *ep) {
    destroying_ = true;
    wrapped().ep_destroy(ep->inner);
    destroying_ = false;
    for (auto it = late_.begin(); it != late_.end();) {
        if (it->second->ep != ep) {
            ++it;
            continue;
        }
        Op *op = it->second;
        it = late_.erase(it);
        deliver(op, op->status);
    }
    for (const Held &held : ep->held) held_bytes_ -= held.bytes.size();
    std::erase(eps, ep);
    delete ep;
}

}  // namespace mpx::fault
