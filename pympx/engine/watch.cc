// One descriptor for event loops: readable when watch() has something to do. The loop takes the part of a thread that sleeps in wait(): it
// polls the descriptor, the transports are armed for it, and whoever finds something meanwhile rings.
//
// Ownership: the engine owns the descriptor. Keys belong to the caller, even ones to event loops, odd ones to the thread in wait_served();
// a request's key is reported once, after its end.
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "engine.h"

namespace mpx {

constexpr int kWatchPasses = 64;  // then the loop's other tasks have their turn

int Engine::watch_fd() {
    Locked locked(*this);
    if (closed_) throw std::runtime_error("the engine is closed");
    if (watch_fd_ >= 0) return watch_fd_;
    const int all = epoll_create1(EPOLL_CLOEXEC), bell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    std::vector<int> fds{bell};
    for (const auto &t : transports_)
        if (t->attr.caps & MPX_CAP_EVENT_FD) fds.push_back(t->ops->event_fd(t->iface));
    for (const int fd : fds) {
        epoll_event event{};
        event.events = EPOLLIN;
        if (all >= 0 && bell >= 0 && epoll_ctl(all, EPOLL_CTL_ADD, fd, &event) == 0) continue;
        const int error = errno;
        if (all >= 0) ::close(all);
        if (bell >= 0) ::close(bell);
        throw std::runtime_error(std::string("no descriptor for event loops: ") + std::strerror(error));
    }
    watch_bell_ = bell;
    return watch_fd_ = all;
}

int Engine::watch(std::vector<uint64_t> *ended) {
    Locked locked(*this);
    watched_ = false;
    if (watch_bell_ >= 0) {
        uint64_t drained;
        [[maybe_unused]] const ssize_t n = read(watch_bell_, &drained, sizeof drained);
    }
    for (const auto &t : transports_) t->attention = kPassesPerTurn;  // one of them may have rung
    bool quiet = false;
    for (int i = 0; i < kWatchPasses && !quiet; i++) quiet = !progress_locked() && arm_all();
    int limit_ms = quiet ? config_.slice_ms : 0;
    for (const auto &t : transports_) {
        if (closed_) break;
        if (t->sessions) limit_ms = t->sessions->timeout_ms(limit_ms);
        if (!(t->attr.caps & MPX_CAP_EVENT_FD)) limit_ms = std::min(limit_ms, kSliceWithoutEvents);
    }
    ended->swap(ended_);
    watched_ = true;
    return limit_ms;
}

bool Engine::watch_request(Request *r, uint64_t key) {
    Locked locked(*this);
    if (r->done.load(std::memory_order_relaxed)) return false;
    r->watcher = key;
    return true;
}

void Engine::report_end(Request *r) {
    if (r->watcher & 1) {
        ended_served_.push_back(r->watcher);
        tell(kServing);
    } else {
        ended_.push_back(r->watcher);
        if (watched_) ring_watcher();
    }
}

void Engine::tell_served(uint64_t key) {
    Locked locked(*this);
    ended_served_.push_back(key);
    tell(kServing);
}

void Engine::ring_watcher() {
    watched_ = false;
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(watch_bell_, &one, sizeof one);
}

}  // namespace mpx
