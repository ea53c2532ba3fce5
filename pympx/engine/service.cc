// The native service thread: it drives progress while the program computes, so that calls, active messages and one-sided access are served
// whatever the program does. See "serving" in engine.h.
//
// Threads: one per engine, from start_service() to close(); it blocks all signals, runs no Python and never needs the GIL. While it is
// there nobody else sleeps on the transports' descriptors: who waits polls for a while and then sleeps on the condition variable, and this
// thread wakes it. While others drive (their passes are counted) it naps, unarmed, so that their messages ring for nobody.
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <time.h>

#include <stdexcept>
#include <string>
#include <system_error>

#include "engine.h"

namespace mpx {
namespace {

constexpr long kNapNs = 50'000;        // how late it may notice that nobody drives any more
constexpr unsigned long kSlackNs = 1;  // the kernel's own 50 us would double that

void nap() {
    const timespec time{0, kNapNs};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &time, nullptr);
}

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
    if (sleeping_) wake_sleeper();  // it sleeps on the condition variable from now on
}

void Engine::stop_service() {
    {
        Locked locked(*this);
        if (!service_.joinable()) return;
        stopping_.store(true, std::memory_order_relaxed);
        if (sleeping_) wake_sleeper();
    }
    service_.join();
    Locked locked(*this);
    serving_ = false;
    completed_.notify_all();  // somebody else must drive now
}

void Engine::serve() {
    pthread_setname_np(pthread_self(), "pympx-service");
    prctl(PR_SET_TIMERSLACK, kSlackNs);
    Locked locked(*this);
    auto &lock = locked.lock();
    uint64_t seen = passes_.load(std::memory_order_relaxed);
    while (!stopping_.load(std::memory_order_relaxed)) {
        if (sleeping_) {  // since before there was this thread
            wake_sleeper();
            lock.unlock();
            nap();
            lock.lock();
            continue;
        }
        const bool others_drive = passes_.load(std::memory_order_relaxed) != seen;
        const unsigned events = progress_locked();
        seen = passes_.load(std::memory_order_relaxed);
        if (waiting_ && (!parked_.empty() || control_needed_ || (events && waiting_for_anything_))) completed_.notify_all();
        if (others_drive) {
            lock.unlock();
            for (uint64_t last = 0; last != seen && !stopping_.load(std::memory_order_relaxed);) {
                last = seen;
                nap();
                seen = passes_.load(std::memory_order_relaxed);
            }
            lock.lock();
        } else if (!events && arm_all()) {
            sleep(lock, config_.slice_ms);
        } else {
            lock.unlock();  // others want it too
            lock.lock();
        }
    }
}

}  // namespace mpx
