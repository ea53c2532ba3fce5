// Beginnings and ends of eps: connecting from both sides, strangers, destruction with operations in flight, a peer's death.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "talk.h"

namespace mpx::conform {

CONFORMANCE(life_connect, "life: both sides connect at once") {
    for (uint64_t round = 0; round < 20 * options().rounds; ++round) {
        World w(2);
        const uint64_t seed = rng()();
        w.peer(0, 1);
        Talk a(w.node(0), 0, {.seed = seed, .count = 20, .to = {1}, .from = {1}});
        if (options().loopback) {
            w.until("20 messages", [&] { return a.send(), a.done(); });
            continue;
        }
        w.peer(1, 0);
        Talk b(w.node(1), 1, {.seed = seed, .count = 20, .to = {0}, .from = {0}});
        w.until("20 messages each way over two eps that were made at once", [&] { return a.send(), b.send(), a.done() && b.done(); });
    }
}

CONFORMANCE(life_check, "life: ep_check of a living peer says so, or is UNSUPPORTED") {
    World w(2);
    const uint64_t seed = rng()();
    Talk a(w.node(0), 0, {.seed = seed, .count = 1, .to = {1}, .from = options().loopback ? std::vector<int>{1} : std::vector<int>{}});
    std::unique_ptr<Talk> b;
    if (!options().loopback) b = std::make_unique<Talk>(w.node(1), 1, TalkShape{.seed = seed, .count = 1, .from = {0}});
    w.until("the first message", [&] { return a.send(), a.done() && (!b || b->done()); });
    for (int round = 0; round < 10; ++round) {
        Op &op = w.node(0).op("ep_check");
        const mpx_status st = w.node(0).check(w.peer(0, 1), op);
        if (st == MPX_ERR_UNSUPPORTED) {
            std::printf("  ep_check is UNSUPPORTED\n");
            return;
        }
        if (!EXPECT(st >= 0, "ep_check of a living peer returned %d", st)) return;
        if (w.until("the answer of ep_check", [&] { return op.finished(); }))
            EXPECT(op.status == MPX_OK, "ep_check completed with %d", op.status);
    }
    EXPECT(!w.peer(0, 1).errors, "ep_check of a living peer ended in on_error");
}

CONFORMANCE(life_stranger, "life: who is refused by on_incoming is not heard, and others are") {
    if (!need_two_parties()) return;
    Node a, b, c;
    a.know(1, b.address());
    c.know(1, b.address());
    b.know(2, c.address());  // and not a
    const uint64_t seed = rng()();
    Talk stranger(a, 0, {.seed = seed, .count = 50, .max_len = 1000, .peer_may_die = true, .to = {1}});
    Talk friendly(c, 2, {.seed = seed, .count = 50, .max_len = 1000, .to = {1}});
    Talk host(b, 1, {.seed = seed, .count = 50, .max_len = 1000, .from = {2}});
    for (double last = now_s(); now_s() - last < 8 && !(friendly.done() && host.done());) {
        // A stranger whose ep was ended has nothing more to say.
        if (!(a.has_ep(1) && a.peer(1).errors)) stranger.send();
        friendly.send();
        if (a.progress() + b.progress() + c.progress()) last = now_s();
    }
    EXPECT(host.received(), "the friend was heard %llu of 50 times", static_cast<unsigned long long>(host.messages_received()));
    EXPECT(!b.has_ep(0), "the stranger got an ep");
}

CONFORMANCE(life_fork, "life: a forked child lets go of all descriptors, and its parent talks on") {
    const size_t before = open_descriptors();
    World w(2);
    const auto talk = [&](const char *what) {
        const uint64_t seed = rng()();
        TalkShape shape{.seed = seed, .count = 50, .max_len = 100'000, .to = {1}};
        if (options().loopback) shape.from = {1};
        Talk a(w.node(0), 0, shape);
        std::unique_ptr<Talk> b;
        if (!options().loopback)
            b = std::make_unique<Talk>(w.node(1), 1, TalkShape{.seed = seed, .count = 50, .max_len = 100'000, .from = {0}});
        w.until(what, [&] { return a.send(), a.done() && (!b || b->done()); });
    };
    talk("messages before the fork");
    const pid_t child = fork();
    if (child == 0) {
        for (size_t i = 0; i < w.size(); ++i)
            if (!i || !options().loopback) w.node(static_cast<int>(i)).forked();
        _exit(static_cast<int>(std::min<size_t>(open_descriptors() - before, 100)));
    }
    int status = 0;
    while (waitpid(child, &status, WNOHANG) == 0) w.progress();
    EXPECT(WIFEXITED(status), "the child ended with wait status %d", status);
    EXPECT(WEXITSTATUS(status) == 0, "the child still has %d descriptors", WEXITSTATUS(status));
    talk("messages after the child has gone");
}

CONFORMANCE(life_destroy, "life: an ep destroyed with operations in flight, each completed once; then a new one talks") {
    for (uint64_t round = 0; round < 40 * options().rounds; ++round) {
        World w(2);
        Node &tx = w.node(0), &rx = w.node(1);
        const int there = options().loopback ? 0 : 1;
        const uint64_t seed = rng()();
        TalkShape shape{.seed = seed, .count = 1, .max_len = 1u << 20, .window = SIZE_MAX, .to = {1}};
        if (options().loopback) shape.from = {1};
        Talk out(tx, 0, shape);
        std::unique_ptr<Talk> in;
        if (!options().loopback) in = std::make_unique<Talk>(rx, 1, TalkShape{.seed = seed, .count = 1, .max_len = 1u << 20, .from = {0}});
        const bool connected = draw(0, 2);
        if (connected && !w.until("the first message", [&] { return out.send(), out.done() && (in ? *in : out).received(); })) return;

        out.limit(draw(1, 60));
        out.send();
        Bytes exposed(256u << 10, 0x42);
        mpx_mem_h memh = nullptr;
        mpx_rkey_h key = nullptr;
        if (has(MPX_CAP_GET_ZCOPY)) {
            Bytes packed(attributes().rkey_packed_len);
            EXPECT(table().mem_reg(rx.domain(), exposed.data(), exposed.size(), MPX_MEM_HOST, MPX_ACCESS_REMOTE_READ, &memh) == MPX_OK,
                   "mem_reg failed");
            EXPECT(table().rkey_pack(rx.domain(), memh, packed.data(), packed.size()) == MPX_OK, "rkey_pack failed");
            EXPECT(table().rkey_unpack(tx.domain(), packed.data(), packed.size(), &key) == MPX_OK, "rkey_unpack failed");
            for (uint64_t n = draw(0, 8); n; --n) {
                Op &op = tx.op("get_zcopy", Bytes(draw_log(exposed.size()), 0));
                if (tx.get(w.peer(0, 1), op, reinterpret_cast<uintptr_t>(exposed.data()), key) < 0) break;
            }
        }
        for (uint64_t n = draw(0, 3); n; --n) w.node(static_cast<int>(draw(0, 1))).progress();
        tx.destroy_ep(there);
        EXPECT(tx.outstanding() == 0, "destroy: %zu of %d completions did not come before ep_destroy returned", tx.outstanding(),
               tx.completions());
        EXPECT(tx.completions(MPX_OK) + tx.completions(MPX_ERR_CANCELED) == tx.completions(),
               "destroy: a completion with neither OK nor CANCELED");
        // What arrives afterwards is a prefix of what was sent, and never the poison that the buffers now hold: Talk checks.
        w.settle();
        tx.check_graves();
        if (key) table().rkey_release(tx.domain(), key);
        if (memh) table().mem_dereg(rx.domain(), memh);
        if (rx.has_ep(0)) rx.destroy_ep(0);
        w.settle();

        const uint64_t again = rng()();
        shape = {.seed = again, .count = 20, .max_len = 64u << 10, .to = {1}};
        if (options().loopback) shape.from = {1};
        Talk out2(tx, 0, shape);
        if (!options().loopback)
            in = std::make_unique<Talk>(rx, 1, TalkShape{.seed = again, .count = 20, .max_len = 64u << 10, .from = {0}});
        if (!w.until("messages over an ep made anew", [&] {
                // The receiver may have to drop an ep that it learns to be dead only now.
                if (rx.has_ep(0) && rx.peer(0).errors && &rx != &tx) rx.destroy_ep(0);
                return out2.send(), out2.done() && (options().loopback || in->done());
            }))
            return;
    }
}

namespace {

constexpr uint64_t kDelivered = 8;  // complete messages that the victim has sent before its end

void peer_dies(bool busy) {
    const uint64_t seed = rng()();
    team(
        2,
        [&](Party &p) {
            Node &n = p.node();
            const int other = 1 - p.rank();
            Talk talk(n, p.rank(), {.seed = seed, .count = 3, .max_len = 1000, .peer_may_die = true, .to = {other}, .from = {other}});
            wait_until(n, "the first messages", [&] { return talk.send(), talk.done(); });
            Bytes exposed(8u << 20, 0x42), ticket;
            mpx_mem_h memh = nullptr;
            if (has(MPX_CAP_GET_ZCOPY) && p.rank() == 1) {
                ticket.resize(attributes().rkey_packed_len);
                EXPECT(table().mem_reg(n.domain(), exposed.data(), exposed.size(), MPX_MEM_HOST, MPX_ACCESS_REMOTE_READ, &memh) == MPX_OK,
                       "mem_reg failed");
                EXPECT(table().rkey_pack(n.domain(), memh, ticket.data(), ticket.size()) == MPX_OK, "rkey_pack failed");
                const uint64_t address = reinterpret_cast<uintptr_t>(exposed.data());
                ticket.insert(ticket.end(), reinterpret_cast<const uint8_t *>(&address), reinterpret_cast<const uint8_t *>(&address + 1));
            }
            ticket = p.exchange(ticket)[1];
            if (p.rank() == 1) {
                talk.limit(3 + kDelivered);
                wait_until(n, "the last words sent", [&] { return talk.send(), talk.sent() && !n.outstanding(); });
                for (double last = now_s(); now_s() - last < 0.02;)
                    if (n.progress()) last = now_s();
                if (busy) {  // and on, to die in the middle of a message
                    talk.limit(UINT64_MAX);
                    talk.send();
                    n.progress();
                }
                p.exchange({}, false);
                kill(getpid(), SIGKILL);
                pause();
            }
            talk.expect(3 + kDelivered);
            p.exchange({}, false);
            Peer &peer = p.peer(1);
            mpx_rkey_h key = nullptr;
            if (busy) {
                if (!ticket.empty()) {
                    uint64_t address;
                    std::memcpy(&address, ticket.data() + attributes().rkey_packed_len, sizeof address);
                    const mpx_status st = table().rkey_unpack(n.domain(), ticket.data(), attributes().rkey_packed_len, &key);
                    for (int k = 0; st == MPX_OK && k < 4; ++k) n.get(peer, n.op("get_zcopy", Bytes(exposed.size())), address, key);
                }
                talk.limit(200);
                talk.send();
            }
            const double from = now_s();
            wait_until(n, "on_error and the outstanding completions of a killed peer",
                       [&] { return peer.errors && !n.outstanding() && talk.messages_received() >= 3 + kDelivered; });
            EXPECT(peer.errors == 1, "peer died: on_error %d times", peer.errors);
            EXPECT(n.outstanding() == 0, "peer died: %zu completions are missing", n.outstanding());
            EXPECT(talk.messages_received() >= 3 + kDelivered, "peer died: %llu of its %llu complete messages were delivered",
                   static_cast<unsigned long long>(talk.messages_received()), static_cast<unsigned long long>(3 + kDelivered));
            EXPECT(now_s() - from < 10, "peer died: noticed after %.1f s", now_s() - from);
            for (int k = 0; k < 100; ++k) n.progress();
            if (peer.errors) {
                const mpx_status st = n.am_short(peer, 1, 0, nullptr, 0);
                EXPECT(st < 0 && st != MPX_ERR_NO_RESOURCE, "peer died: a later send returned %d", st);
            }
            if (has(MPX_CAP_LINK_MAY_BREAK)) {
                const mpx_status st = table().ep_fence_off(peer.ep);
                if (EXPECT(st == MPX_OK, "LINK_MAY_BREAK is advertised, and ep_fence_off of a broken link returned %d", st))
                    exercised(MPX_CAP_LINK_MAY_BREAK);
            }
            n.destroy_ep(1);
            if (key) table().rkey_release(n.domain(), key);
        },
        1);
}

}  // namespace

CONFORMANCE(life_killed_idle, "life: a peer killed while nothing is outstanding") {
    if (need_two_parties()) peer_dies(false);
}

CONFORMANCE(life_killed_busy, "life: a peer killed with operations in flight both ways") {
    if (need_two_parties()) peer_dies(true);
}

}  // namespace mpx::conform
