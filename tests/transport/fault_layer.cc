// Transport fault around self: each kind of trouble happens, as often as it was asked for, and its end is an event.
//
// fault_layer --transport=SELF --layer=FAULT --settings=... --loopback --test-case=...: one case per set of settings, see meson.build.
#include <doctest/doctest.h>
#include <poll.h>

#include <cstring>

#include "talk.h"

namespace mpx::conform {
namespace {

constexpr int kTries = 2000;

struct Stream {
    World w{2};
    Node &n = w.node(0);
    uint64_t received = 0;

    Stream() {
        n.on(1, [this](Incoming &in) {
            uint64_t sequence;
            std::memcpy(&sequence, in.header, sizeof sequence);
            EXPECT(sequence == received, "message %llu came as number %llu", static_cast<unsigned long long>(sequence),
                   static_cast<unsigned long long>(received));
            ++received;
            return mpx_status{MPX_OK};
        });
    }
    mpx_status send(uint64_t sequence) { return n.am_short(w.peer(0, 1), 1, sequence, nullptr, 0); }
};

// Sleeps on the event alone until progress does something.
bool woken(Node &n, const char *what) {
    while (n.arm() == MPX_OK) {
        pollfd fd{n.event_fd(), POLLIN, 0};
        if (!EXPECT(poll(&fd, 1, 5000) == 1, "%s: no event in 5 s", what)) return false;
        if (n.progress()) return true;
    }
    return n.progress() > 0;
}

}  // namespace

// no_resource=0.25: of the operations that no burst refuses, every fourth begins one; its end wakes a sleeper.
CONFORMANCE(fault_bursts, "fault: bursts of NO_RESOURCE come as often as asked for, and end with an event") {
    Stream s;
    int bursts = 0;
    for (int k = 0; k < kTries; ++k) {
        mpx_status st;
        while ((st = s.send(static_cast<uint64_t>(k))) == MPX_ERR_NO_RESOURCE) {
            ++bursts;
            if (!woken(s.n, "the end of a burst")) return;
        }
        if (!EXPECT(st == MPX_OK, "am_short returned %d", st)) return;
        // Nothing is left under way, so that the next event is a burst's end.
        s.w.until("the message", [&] { return s.received == static_cast<uint64_t>(k) + 1; });
    }
    // A mean of 667 bursts; five standard deviations are 150.
    EXPECT(bursts > 500 && bursts < 850, "%d bursts in %d operations", bursts, kTries);
}

// hold=0.25: every fourth message waits, those behind it too; they arrive in order, and the end of the wait is an event.
CONFORMANCE(fault_holds, "fault: messages are held back as often as asked for, in order, and their delivery is an event") {
    Stream s;
    int held = 0;
    for (int k = 0; k < kTries; ++k) {
        if (!EXPECT(s.send(static_cast<uint64_t>(k)) == MPX_OK, "am_short failed")) return;
        s.n.progress();
        held += s.received <= static_cast<uint64_t>(k);
        while (s.received <= static_cast<uint64_t>(k))
            if (!woken(s.n, "the delivery of a held message")) return;
    }
    EXPECT(held > 350 && held < 650, "%d of %d messages were held", held, kTries);
}

// late=0.5: every second completion comes late, and an event announces it.
CONFORMANCE(fault_late, "fault: completions come late as often as asked for, with an event") {
    Stream s;
    s.n.on(3, [](Incoming &) { return mpx_status{MPX_OK}; });
    int late = 0;
    for (int k = 0; k < kTries; ++k) {
        Op &op = s.n.op("am_zcopy", Bytes(16));
        if (!EXPECT(s.n.am_zcopy(s.w.peer(0, 1), 3, Bytes(8), op) >= 0, "am_zcopy failed")) return;
        s.n.progress();
        late += !op.finished();
        while (!op.finished())
            if (!woken(s.n, "a late completion")) return;
        EXPECT(op.status == MPX_OK, "a late completion with status %d", op.status);
    }
    EXPECT(late > 850 && late < 1150, "%d of %d completions were late", late, kTries);
}

// break_at=100: the 100th operation finds the link broken, on_error follows once, the ep then ends in order.
CONFORMANCE(fault_breaks, "fault: an ep breaks at the chosen operation, and says so once") {
    Stream s;
    for (uint64_t k = 0; k < 99; ++k) {
        if (!EXPECT(s.send(k) == MPX_OK, "operation %llu failed", static_cast<unsigned long long>(k + 1))) return;
        s.w.until("the message", [&] { return s.received == k + 1; });
    }
    EXPECT(s.send(99) == MPX_ERR_PEER_FAILED, "the 100th operation did not find a broken link");
    EXPECT(!s.w.peer(0, 1).errors, "on_error inside the call");
    if (!woken(s.n, "on_error")) return;
    EXPECT(s.w.peer(0, 1).errors == 1, "on_error came %d times", s.w.peer(0, 1).errors);
    EXPECT(s.send(100) == MPX_ERR_PEER_FAILED, "an operation after the break went through");
    s.w.settle();
    EXPECT(s.received == 99, "%llu messages arrived", static_cast<unsigned long long>(s.received));
    s.n.destroy_ep(0);
    EXPECT(s.send(99) == MPX_OK, "an ep made anew is broken from its start");
}

}  // namespace mpx::conform
