// Transport fault: a layer between the engine and any transport's table that makes trouble which the contract allows.
//
//   engine -> Ep (burst? broken?) -> the wrapped ep          an operation is refused for a while, or finds its link broken
//   engine <- Iface::late_        <- Op <- its completion    a completion is delivered later
//   engine <- Ep::held            <- the wrapped iface       a message waits, and all behind it on its ep: order is kept
//
// Ownership: each object owns the wrapped one. An Op lives from the start of its operation to the delivery of its completion; a Held is a
// copy. Domains, registrations and keys are the wrapped transport's own.
// Threads: all calls come under the engine's lock. One transport is wrapped per process: the ABI's tables know no `this`.
#pragma once
#include <pympx/transport.h>

#include <cstdint>
#include <deque>
#include <map>
#include <random>
#include <vector>

#include "settings.h"

namespace mpx::fault {

using Nanoseconds = int64_t;  // of CLOCK_MONOTONIC
Nanoseconds now();

const mpx_transport &wrapped();
const Settings &settings();

struct Iface;
struct Ep;

struct Op : mpx_completion {
    Ep *ep;
    mpx_completion *outer;
    bool flush;                  // its completion stands for all before it, so it overtakes none
    mpx_status status = MPX_OK;  // once it is late
};

struct Held {
    Nanoseconds due;
    uint8_t id;
    std::vector<uint8_t> bytes;  // header, payload
    size_t header_length;
};

struct Ep : mpx_ep {
    Ep(Iface *, int64_t index);
    Iface *owner() const;

    // What stands against an operation now: OK, NO_RESOURCE, or how the link broke.
    mpx_status admit();
    mpx_status accepted(mpx_status st) {
        operations += st >= 0;
        return st;
    }
    void break_link(mpx_status);
    void repaired();

    mpx_ep *inner = nullptr;
    const int64_t index;
    uint64_t operations = 0;
    Nanoseconds burst_end = 0;  // 0: no burst
    Nanoseconds last_due = 0;   // of its late completions
    std::deque<Held> held;
    mpx_status broken = MPX_OK;
    bool told = false;  // on_error was called
};

struct Iface : mpx_iface {
    explicit Iface(const mpx_iface_params &);
    ~Iface();
    Iface(const Iface &) = delete;
    Iface &operator=(const Iface &) = delete;

    mpx_status open(mpx_domain *);
    unsigned progress();
    mpx_status arm();
    mpx_status start(Ep *, mpx_completion *outer, bool flush, mpx_status (*call)(Ep *, mpx_completion *, void *), void *arg);
    void destroy(Ep *);
    void close_descriptors();
    bool strikes(double chance) { return chance > 0 && std::uniform_real_distribution<>(0, 1)(random_) < chance; }
    Nanoseconds until(double longest_s) {  // a moment within that time from now
        return now() + 1 + static_cast<Nanoseconds>(std::uniform_real_distribution<>(0, longest_s * 1e9)(random_));
    }

    mpx_iface *inner = nullptr;
    int epoll = -1;
    std::vector<Ep *> eps;
    int64_t made = 0;  // eps so far

private:
    struct Slot {
        Iface *iface;
        uint8_t id;
    };
    static void on_done(mpx_completion *, mpx_status);
    static mpx_status on_message(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_ep *on_incoming(void *, const void *, size_t);
    static void on_error(void *, mpx_ep *, mpx_status);
    static void on_need_control(void *);
    void postpone(Op *, mpx_status);
    void deliver(Op *, mpx_status);
    unsigned deliver_held(Ep &, Nanoseconds at);
    bool due(Nanoseconds at, Nanoseconds *next) const;

    mpx_iface_params outer_;
    Slot slots_[MPX_AM_ID_MAX];
    mpx_am_handler handlers_[MPX_AM_ID_MAX];
    std::mt19937_64 random_;
    int timer_ = -1;
    int inner_fd_ = -1;  // as the epoll knows it
    std::multimap<Nanoseconds, Op *> late_;
    size_t held_bytes_ = 0;
    bool destroying_ = false;
};

}  // namespace mpx::fault
