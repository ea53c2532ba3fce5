// Progress, completion and waiting. See engine.h for the thread rules.
#include <poll.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "engine.h"

namespace mpx {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kPassesPerOffer = 64;  // of the core, where there is a service thread
constexpr int kAttention = 256;      // passes

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

// Whether to look at transports that are only control lanes: in each pass while a link is being made, else once in a tick of the kernel's
// coarse clock (1 to 10 ms), however often or seldom the program calls. A look is a system call, as dear as a message over a card.
bool Engine::lanes_due() {
    if (!has_lanes_) return true;
    for (const auto &t : transports_)
        if (t->sessions && t->carries && t->sessions->busy()) return true;
    timespec time;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
    return std::exchange(lane_tick_, time.tv_nsec) != time.tv_nsec;
}

unsigned Engine::progress_locked() {
    if (closed_) return 0;
    unsigned events = 0;
    const bool look = lanes_due();
    for (const auto &t : transports_) {
        if (!t->carries && !look && !t->attention) continue;
        if (t->attention) --t->attention;
        const unsigned here = t->ops->progress(t->iface);
        if (here) t->attention = kAttention;
        events += here;
        t->registrations->reap();
    }
    if (!failures_.empty()) handle_failures();  // first: what is queued for a failed peer ends with the reason
    if (!backlog_.empty()) flush_backlog();
    // A thread asleep armed the transports before this; what they say from now on may no longer ring for it.
    if (events && server_.asleep) server_.wake();
    else if (events && waiter_.asleep && !serving_) waiter_.wake();
    if (events && watched_) ring_watcher();
    passes_.store(passes_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    return events;
}

void Engine::progress() {
    Locked locked(*this);
    progress_locked();
}

bool Engine::try_poll(const Request *request, int polls) {
    if (request->done.load(std::memory_order_acquire)) return true;
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return false;
    for (int i = 0; i < polls && !request->done.load(std::memory_order_relaxed); i++) {
        progress_locked();
        if (!serving_ || i % kPassesPerOffer != kPassesPerOffer - 1) continue;
        // The thread that is to answer may have been woken on this very core, and waits for it.
        lock.unlock();
        sched_yield();
        if (!lock.try_lock()) return false;
    }
    return request->done.load(std::memory_order_relaxed);
}

void Engine::complete(Request *r, Error error) {
    r->status.error = error;
    r->stage = Stage::kIdle;
    if (r->tally) r->tally->fetch_sub(1, std::memory_order_relaxed);
    if (r->on_done) return r->on_done(r);
    r->done.store(true, std::memory_order_release);
    if (r->watcher) report_end(r);
    if (waiting_for_anything_) tell(kEverybody);
    if (r->awaited) tell(r->awaited);
}

void Engine::Sleeper::wake() {
    if (woken) return;
    woken = true;
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(fd, &one, sizeof one);
}

void Engine::tell(unsigned parks) {
    if (parks & kOnDescriptors && waiter_.asleep) waiter_.wake();
    if (parks & kOnCondition && waiting_) completed_.notify_all();
    if (parks & kServing && waiting_to_serve_) call_came_.notify_all();
}

void Engine::wake_sleepers() {
    if (waiter_.asleep) waiter_.wake();
    if (server_.asleep) server_.wake();
}

// True when every transport will ring; false when work arrived meanwhile.
bool Engine::arm_all() {
    if (closed_) return true;
    for (const auto &t : transports_)
        if (t->attr.caps & MPX_CAP_EVENT_FD && t->ops->event_arm(t->iface) != MPX_OK) return false;
    return true;
}

// Engine lock held on entry and on return, released inside. True: something may have happened; false: signal or slice over.
bool Engine::sleep(std::unique_lock<std::mutex> &lock, Sleeper &self, int limit_ms) {
    std::vector<pollfd> fds{{self.fd, POLLIN, 0}};
    int slice = limit_ms;
    for (const auto &t : transports_) {
        if (closed_) break;
        if (t->sessions) slice = t->sessions->timeout_ms(slice);
        if (t->attr.caps & MPX_CAP_EVENT_FD) fds.push_back({t->ops->event_fd(t->iface), POLLIN, 0});
        else slice = kSliceWithoutEvents;
    }
    self.asleep = true;
    self.woken = false;
    lock.unlock();
    const int ready = poll(fds.data(), fds.size(), slice);
    lock.lock();
    self.asleep = false;
    uint64_t drained;
    [[maybe_unused]] const ssize_t n = read(self.fd, &drained, sizeof drained);
    return ready > 0 || (ready == 0 && slice < limit_ms);
}

// `awaited`: the requests that end the wait; none: anything may.
template <class Ready> Wait Engine::wait_until(int limit_ms, Request *const *awaited, size_t count, Ready ready, Park park) {
    Locked locked(*this);
    auto &lock = locked.lock();
    const auto say_how = [&](Park how) {
        for (size_t i = 0; i < count; i++)
            if (awaited[i]) awaited[i]->awaited |= how;
    };
    bool aside = park == kServing;  // leaves the descriptors to the service thread, where there is one
    waiting_for_anything_ += count == 0;
    const auto spin = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(config_.spin_seconds));
    const auto start = Clock::now();
    const auto slice_end = start + std::chrono::milliseconds(limit_ms);
    auto spin_end = start + spin;
    Wait result = Wait::kDone;
    bool spun = false, slept = false;
    for (;;) {
        if (ready()) break;
        if (!parked_.empty() || control_needed_) {
            result = Wait::kNeedPython;
            break;
        }
        if (serving_ ? spun && (waiter_.asleep || aside) : waiter_.asleep) {  // another thread drives
            if (!waiter_.asleep && !handed_over_) hand_over();
            say_how(park);
            const bool serves = park == kServing;
            int &sleepers = serves ? waiting_to_serve_ : waiting_;
            ++sleepers;
            const bool told = (serves ? call_came_ : completed_).wait_until(lock, slice_end) == std::cv_status::no_timeout;
            --sleepers;
            if (told) continue;
            if (!ready()) result = Wait::kInterrupted;
            break;
        }
        bool done = false;
        for (int i = 0; i < kPassesPerTurn && !done; i++) {
            progress_locked();
            done = ready() || !parked_.empty() || control_needed_;
        }
        if (done) continue;
        if (needs_python_) {
            result = Wait::kNeedPython;
            break;
        }
        const auto time = Clock::now();
        if (time >= slice_end) {  // however much goes on: signals and deadlines want to be looked at
            result = Wait::kInterrupted;
            break;
        }
        spun = time >= spin_end;
        if (serving_ && spun && (waiter_.asleep || aside)) continue;
        if (!spun || !arm_all()) {
            const bool wanted = config_.crowded || serving_ || contenders_.load(std::memory_order_relaxed) > 0;
            lock.unlock();
            wanted ? static_cast<void>(sched_yield()) : relax();
            lock.lock();
            continue;
        }
        say_how(kOnDescriptors);
        if (!sleep(lock, waiter_, limit_ms)) {
            if (!ready()) result = Wait::kInterrupted;
            break;
        }
        for (const auto &t : transports_) t->attention = kPassesPerTurn;  // one of them has rung
        slept = true;
        spun = false;                // what has rung is to be looked at
        if (serving_) aside = true;  // it may have been for a call, whose thread this one would only be in the way of
        else spin_end = Clock::now() + spin;
    }
    waiting_for_anything_ -= count == 0;
    if (waiting_ && !serving_) completed_.notify_all();  // somebody else must drive now
    else if (waiting_ && slept && !handed_over_) hand_over();
    return result;
}

Wait Engine::wait(Request *request) {
    return wait_until(config_.slice_ms, &request, 1, [request] {
        return request->done.load(std::memory_order_relaxed) || request->failed.load(std::memory_order_relaxed);
    });
}

Wait Engine::wait_any(Request *const *requests, size_t count) {
    return wait_until(config_.slice_ms, requests, count, [requests, count] {
        for (size_t i = 0; i < count; i++)
            if (requests[i] && requests[i]->done.load(std::memory_order_relaxed)) return true;
        return false;
    });
}

Wait Engine::wait_below(const Tally *tally, uint32_t limit) {
    return wait_until(config_.slice_ms, nullptr, 0, [=] { return tally->load(std::memory_order_relaxed) < limit; });
}

Wait Engine::wait_at_most(Request *request, int limit_ms) {
    return wait_until(std::clamp(limit_ms, 0, config_.slice_ms), &request, 1,
                      [request] { return request->done.load(std::memory_order_relaxed); });
}

// What a thread that serves waits for: one of the requests, or the end of a watched one (their keys are odd), whose keys it gets.
Wait Engine::wait_served(Request *const *requests, size_t count, int limit_ms, std::vector<uint64_t> *ended) {
    const Wait result = wait_until(
        std::clamp(limit_ms, 0, config_.slice_ms), requests, count,
        [=, this] {
            return !ended_served_.empty() ||
                   std::any_of(requests, requests + count, [](const Request *r) { return r->done.load(std::memory_order_relaxed); });
        },
        kServing);
    Locked locked(*this);
    ended->swap(ended_served_);
    return result;
}

Wait Engine::wait_message(uint32_t context, int32_t source, int32_t tag, Status *status) {
    return wait_until(config_.slice_ms, nullptr, 0, [=, this] {
        const MatchQueue &queue = queue_of(context);
        if (const Message *m = queue.find_unexpected(source, tag)) {
            *status = {m->source, m->tag, Error::kNone, false, m->size, m->size};
            return true;
        }
        if (!hopeless(context, queue, source)) return false;
        *status = {culprit(queue, source), tag, queue.revoked ? Error::kRevoked : Error::kProcFailed, false, 0, 0};
        return true;
    });
}

Wait Engine::wait_farewell() {
    return wait_until(config_.slice_ms, nullptr, 0, [this] { return farewell_over(); });
}

Wait Engine::wait_news(uint64_t known, double seconds) {
    const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    const int limit_ms = std::clamp(static_cast<int>(seconds * 1e3) + 1, 1, config_.slice_ms);
    return wait_until(limit_ms, nullptr, 0, [=, this] { return news_ != known || Clock::now() >= end; });
}

}  // namespace mpx
