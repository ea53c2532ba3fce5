// Back-pressure and sleeping: NO_RESOURCE must come, and no event may be lost.
#include <doctest/doctest.h>
#include <poll.h>

#include <algorithm>

#include "talk.h"

namespace mpx::conform {
namespace {

constexpr uint64_t kMaxBuffered = 256u << 20;  // bytes that may be on their way to a receiver that does not progress
constexpr uint64_t kMaxQueued = 500'000;       // messages

// Sends without the receiver's progress until the sender hears NO_RESOURCE for good.
bool exhaust(World &w, Talk &talk) {
    for (double last = now_s(); now_s() - last < 0.05;) {
        if (talk.send()) last = now_s();
        if (!options().loopback) w.node(0).progress();
        if (talk.payload_sent() > kMaxBuffered || talk.messages_sent() >= kMaxQueued) {
            violation("back-pressure: %llu messages of %llu bytes were accepted while the receiver slept",
                      static_cast<unsigned long long>(talk.messages_sent()), static_cast<unsigned long long>(talk.payload_sent()));
            return false;
        }
    }
    return true;
}

void exhaust_and_wake(uint64_t kind, size_t max_len) {
    World w(2);
    const uint64_t seed = rng()();
    TalkShape shape{.seed = seed, .kinds = kind, .count = 1, .max_len = max_len, .window = SIZE_MAX, .to = {1}};
    if (options().loopback) shape.from = {1};
    Talk tx(w.node(0), 0, shape);
    std::unique_ptr<Talk> rx;
    if (!options().loopback)
        rx = std::make_unique<Talk>(w.node(1), 1, TalkShape{.seed = seed, .kinds = kind, .max_len = max_len, .from = {0}});
    Talk &in = rx ? *rx : tx;
    in.expect(1);
    if (!w.until("the first message", [&] { return tx.send(), tx.done() && in.received(); })) return;

    tx.limit(kMaxQueued);
    in.expect(kMaxQueued);
    if (!exhaust(w, tx)) return;
    std::printf("  %s up to %zu bytes: NO_RESOURCE after %llu messages, %llu KiB\n", cap_names(kind).c_str(), max_len,
                static_cast<unsigned long long>(tx.messages_sent()), static_cast<unsigned long long>(tx.payload_sent() >> 10));
    const uint64_t all = tx.messages_sent() + 500;
    tx.limit(all);
    in.expect(all);
    if (!has(MPX_CAP_EVENT_FD)) {
        w.until("what was held back", [&] { return tx.send(), tx.done() && in.done(); });
        return;
    }
    // From here each side moves only when its event says so. The sender arms before the receiver has done anything.
    if (rx) drive_by_events({{&w.node(0), &tx}, {&w.node(1), rx.get()}});
    else drive_by_events({{&w.node(0), &tx}});
}

}  // namespace

CONFORMANCE(flow_exhausted, "flow: a sleeping receiver exhausts the sender, then both wake by events and all arrives") {
    for (uint64_t kind : {MPX_CAP_AM_SHORT, MPX_CAP_AM_BCOPY, MPX_CAP_AM_ZCOPY})
        for (size_t max_len : {size_t{8}, size_t{64} << 10})
            if (has(kind)) exhaust_and_wake(kind, max_len);
    exhaust_and_wake(kAllKinds, 16u << 10);
}

CONFORMANCE(flow_both, "flow: both directions saturated, both sides asleep between events") {
    if (!need(MPX_CAP_EVENT_FD)) return;
    World w(2);
    const uint64_t seed = rng()(), count = 3000 * options().rounds;
    const TalkShape shape{.seed = seed, .count = count, .max_len = 64u << 10, .window = 1000, .to = {1}, .from = {1}};
    Talk a(w.node(0), 0, shape);
    if (options().loopback) {
        drive_by_events({{&w.node(0), &a}});
        return;
    }
    TalkShape back = shape;
    back.to = back.from = {0};
    Talk b(w.node(1), 1, back);
    // Both ways full before anyone receives.
    for (double last = now_s(); now_s() - last < 0.02;)
        if (a.send() || b.send()) last = now_s();
    drive_by_events({{&w.node(0), &a}, {&w.node(1), &b}});
}

CONFORMANCE(flow_both_processes, "flow: both directions saturated between processes that sleep") {
    const uint64_t seed = rng()();
    team(2, [&](Party &p) {
        const std::vector<int> other{1 - p.rank()};
        Talk talk(p.node(), p.rank(),
                  {.seed = seed, .count = 3000 * options().rounds, .max_len = 64u << 10, .window = 1000, .to = other, .from = other});
        // Sends whenever it may, and sleeps as soon as it may: the event alone says when to go on.
        wait_until(p.node(), "both directions", [&] {
            talk.send();
            return talk.done();
        });
        p.barrier();
    });
}

CONFORMANCE(flow_idle, "flow: progress returns 0 when idle, and an idle event stays silent") {
    World w(2);
    const uint64_t seed = rng()();
    Talk a(w.node(0), 0, {.seed = seed, .count = 100, .to = {1}, .from = options().loopback ? std::vector<int>{1} : std::vector<int>{}});
    std::unique_ptr<Talk> b;
    if (!options().loopback) b = std::make_unique<Talk>(w.node(1), 1, TalkShape{.seed = seed, .count = 100, .from = {0}});
    w.until("100 messages", [&] { return a.send(), a.done() && (!b || b->done()); });
    unsigned quiet = 0;
    for (const double from = now_s(); quiet < 1000 && now_s() - from < 3;) quiet = w.progress() ? 0 : quiet + 1;
    EXPECT(quiet >= 1000, "idle: progress keeps reporting events while nothing is sent");
    if (!has(MPX_CAP_EVENT_FD)) return;
    bool silent = false;
    for (int tries = 0; tries < 100 && !silent; ++tries) {
        Node &n = w.node(1);
        if (n.arm() != MPX_OK) {
            n.progress();
            continue;
        }
        pollfd fd{n.event_fd(), POLLIN, 0};
        silent = poll(&fd, 1, 20) == 0;
        if (!silent) n.progress();
    }
    EXPECT(silent, "idle: the event fires again and again while nothing is sent");
}

CONFORMANCE(flow_arm, "event: a message between arm and poll wakes, one before arm is not slept over") {
    if (!need(MPX_CAP_EVENT_FD)) return;
    World w(2);
    Node &to = w.node(1);
    uint64_t sent = 0, received = 0;
    to.on(1, [&](Incoming &) { return ++received, mpx_status{MPX_OK}; });
    // True: at once. Else everybody was progressed meanwhile, so that nothing is armed any more.
    const auto send = [&] {
        int tries = 0;
        w.until("room to send", [&] {
            const mpx_status st = w.node(0).am_short(w.peer(0, 1), 1, sent, nullptr, 0);
            sent += st == MPX_OK;
            return ++tries, st == MPX_OK;
        });
        return tries == 1;
    };
    send();
    w.until("the first message", [&] { return received == sent; });
    for (uint64_t round = 0; round < 1000 * options().rounds; ++round) {
        const bool before = draw(0, 1);
        if (before) send();
        const uint64_t due = received + 1;
        while (received < due) {
            if (to.arm() != MPX_OK) {
                to.progress();
                continue;
            }
            if (sent < due && !send()) continue;
            pollfd fd{to.event_fd(), POLLIN, 0};
            // The sender is progressed too: what it sent may need that to leave.
            bool awake = false;
            for (const double from = now_s(); !awake && now_s() - from < 5;) {
                if (!options().loopback) w.node(0).progress();
                awake = poll(&fd, 1, options().loopback ? 5000 : 1) > 0;
            }
            if (!EXPECT(awake, "lost wake-up: round %llu, a message sent %s arm, and 5 s of silence",
                        static_cast<unsigned long long>(round), before ? "before" : "after"))
                return;
            exercised(MPX_CAP_EVENT_FD);
            to.progress();
        }
    }
}

CONFORMANCE(flow_rounds, "event: 10^4 rounds of arm, poll and wake between two processes") {
    if (!need(MPX_CAP_EVENT_FD)) return;
    const uint64_t seed = rng()(), rounds = 10'000 * options().rounds;
    team(2, [&](Party &p) {
        Node &n = p.node();
        std::mt19937_64 random(seed + static_cast<uint64_t>(p.rank()));
        uint64_t received = 0, sent = 0;
        n.on(1, [&](Incoming &) { return ++received, mpx_status{MPX_OK}; });
        const auto send = [&] {
            wait_until(n, "room to send", [&] {
                const bool ok = n.am_short(p.peer(p.size() - 1 - p.rank()), 1, sent, nullptr, 0) == MPX_OK;
                sent += ok;
                return ok;
            });
        };
        for (uint64_t round = 0; round < rounds; ++round) {
            // Rank 0 serves, rank 1 answers; over a loopback the one does both.
            if (p.rank() == 0) send();
            for (uint64_t k = random() % 4; k; --k) n.progress();
            if (!wait_until(n, "the other's turn", [&] { return received > round; })) return;
            for (uint64_t k = random() % 4; k; --k) n.progress();
            if (p.rank() == 1) send();
        }
        p.barrier();
        EXPECT(received == rounds, "%llu of %llu turns", static_cast<unsigned long long>(received),
               static_cast<unsigned long long>(rounds));
    });
}

}  // namespace mpx::conform
