// The native service thread: it drives progress while the program computes, so that calls, active messages and one-sided access are served
// whatever the program does. See "serving" in engine.h.
//
// Threads: one per engine, from start_service() to close(); it blocks all signals, runs no Python and never needs the GIL. While others
// drive (their passes are counted) it naps, unarmed, so that their messages ring for nobody; else it sleeps on the transports' descriptors,
// beside a thread that waits. Who waits for calls never sleeps there: such a thread sleeps on the condition variable, and hands over to
// this one.
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <system_error>

#include "engine.h"

namespace mpx {
namespace {

// How late it may notice that nobody drives any more, where nobody hands over: longer while others have driven on and on, for a timer that
// fires in the middle of their messages costs them much (in a virtual machine 10 us and more).
constexpr std::chrono::microseconds kNap{20}, kLongestNap{640};
constexpr unsigned long kSlackNs = 1;  // the kernel's own 50 us would double that

}  // namespace

void Engine::start_service() {
    Locked locked(*this);
    if (closed_) throw std::runtime_error("the engine is closed");
    if (serving_) return;
    for (const auto &t : transports_)
        if (!(t->attr.caps & MPX_CAP_NATIVE_PROGRESS))
            throw std::runtime_error("transport " + t->name +
                                     " has no native progress: nothing can be served over it while the rank computes");
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    serving_ = true;
    try {
        service_ = std::thread([this] { serve(); });
    } catch (const std::system_error &error) {
        serving_ = false;
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        throw std::runtime_error(std::string("no service thread: ") + error.what());
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Engine::stop_service() {
    {
        Locked locked(*this);
        if (!service_.joinable()) return;
        stopping_.store(true, std::memory_order_relaxed);
        server_.wake();
        hand_over();
    }
    service_.join();
    Locked locked(*this);
    serving_ = false;
    completed_.notify_all();  // somebody else must drive now
}

// Not under the engine lock, which those who drive hold most of the time: to wait for it would slow them down.
void Engine::nap(std::chrono::microseconds time) {
    std::unique_lock lock(nap_mutex_);
    if (!handed_over_) handover_.wait_for(lock, time);
}

void Engine::hand_over() {
    const std::lock_guard lock(nap_mutex_);
    handed_over_ = true;
    handover_.notify_one();
}

void Engine::serve() {
    pthread_setname_np(pthread_self(), "pympx-service");
    prctl(PR_SET_TIMERSLACK, kSlackNs);
    Locked locked(*this);
    auto &lock = locked.lock();
    uint64_t seen = 0;
    while (!stopping_.load(std::memory_order_relaxed)) {
        const bool others_drive = passes_.load(std::memory_order_relaxed) != seen;
        unsigned events = 0;
        for (int i = 0; i < kPassesPerTurn; i++) {  // what has rung may take several to be there
            const unsigned here = progress_locked();
            events += here;
            if (!here) break;
        }
        seen = passes_.load(std::memory_order_relaxed);
        if (!parked_.empty() || control_needed_ || (events && waiting_for_anything_)) tell(kEverybody);
        if (others_drive) {
            handed_over_ = false;
            lock.unlock();
            auto time = kNap;
            for (uint64_t last = seen; !stopping_.load(std::memory_order_relaxed); time = std::min(2 * time, kLongestNap)) {
                nap(time);
                const uint64_t now = passes_.load(std::memory_order_relaxed);
                if (handed_over_ || now == last) break;
                last = now;
            }
            lock.lock();
            seen = passes_.load(std::memory_order_relaxed);
        } else if (!events && arm_all()) {
            sleep(lock, server_, config_.slice_ms);
        } else {
            lock.unlock();  // others want it too
            lock.lock();
        }
    }
}

}  // namespace mpx
