// tcp: active messages in order and whole, back-pressure with sleep, crossing connects, flush, endings.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tcp_world.hh"

using namespace world;

TEST_CASE("messages of every form and length arrive once, whole and in order") {
    MESSAGE("seed " << seed());
    std::mt19937 rng(seed());
    Side a, b;
    connect(a, b);
    const size_t max = a.attr().max_am_short;
    std::vector<Message> expected;
    std::vector<std::unique_ptr<Done>> dones;
    std::vector<std::string> keep;
    keep.reserve(3000);
    size_t seen = 0, inprogress = 0;
    b.on_message = [&](const Message &m) {
        REQUIRE(seen < expected.size());
        CHECK(m.from == b.ep_of(a));
        CHECK(m.id == expected[seen].id);
        CHECK(m.hdr == expected[seen].hdr);
        CHECK((m.data == expected[seen].data));
        ++seen;
    };
    mpx_ep *ep = a.ep_of(b);
    for (unsigned i = 0; i < 3000; ++i) {
        const size_t bits = rng() % 18;
        const size_t len = i % 50 == 0 ? max - rng() % 2 : std::min<size_t>(rng() % (size_t{1} << bits), max);
        keep.push_back(pattern(len, i));
        const std::string &text = keep.back();
        const uint8_t id = static_cast<uint8_t>(rng() % MPX_AM_ID_MAX);
        const unsigned form = rng() % 3;
        mpx_status st = MPX_OK;
        if (form == 0) {
            const uint64_t hdr = i;
            expected.push_back({nullptr, id, {reinterpret_cast<const char *>(&hdr), 8}, text});
            st = persist({&a, &b}, [&] { return a.iface->ops->am_short(ep, id, hdr, text.data(), len); });
        } else if (form == 1) {
            expected.push_back({nullptr, id, "", text});
            struct Arg {
                const std::string *text;
            } arg{&text};
            auto pack = [](void *dest, void *p) {
                const std::string &t = *static_cast<Arg *>(p)->text;
                memcpy(dest, t.data(), t.size());
                return t.size();
            };
            st = persist({&a, &b}, [&] { return a.iface->ops->am_bcopy(ep, id, len, pack, &arg); });
        } else {
            const std::string hdr = pattern(rng() % (a.attr().max_am_hdr + 1), i + 1);
            expected.push_back({nullptr, id, hdr, text});
            auto *p = const_cast<char *>(text.data());
            const size_t cut = len ? rng() % len : 0;
            const mpx_iov iov[3] = {{p, cut, nullptr}, {p, 0, nullptr}, {p + cut, len - cut, nullptr}};
            dones.push_back(std::make_unique<Done>());
            st = persist({&a, &b}, [&] { return a.iface->ops->am_zcopy(ep, id, hdr.data(), hdr.size(), iov, 3, dones.back().get()); });
            CHECK(dones.back()->calls == 0);
            if (st == MPX_OK) dones.pop_back();
            else ++inprogress;
            REQUIRE((st == MPX_OK || st == MPX_INPROGRESS));
            st = MPX_OK;
        }
        REQUIRE(st == MPX_OK);
        if (rng() % 8 == 0) b.progress();
    }
    CHECK(until({&a, &b}, [&] { return seen == 3000; }));
    for (auto &d : dones) {
        CHECK(d->calls == 1);
        CHECK(d->status == MPX_OK);
    }
    CHECK(a.errors.empty());
    CHECK(b.errors.empty());
    CHECK(table().iface_bytes(a.iface, 0) == table().iface_bytes(b.iface, 1));
}

TEST_CASE("limits are limits") {
    Side a, b;
    connect(a, b);
    const mpx_iface_attr attr = a.attr();
    const std::string big(attr.max_am_short + 1, 'x');
    mpx_ep *ep = a.ep_of(b);
    CHECK(a.send(ep, 1, 0, big) == MPX_ERR_INVALID);
    const mpx_iov iov{const_cast<char *>(big.data()), big.size(), nullptr};
    CHECK(a.iface->ops->am_zcopy(ep, 1, nullptr, 0, &iov, 1, nullptr) == MPX_ERR_INVALID);
    CHECK(a.iface->ops->am_zcopy(ep, 1, big.data(), attr.max_am_hdr + 1, &iov, 0, nullptr) == MPX_ERR_INVALID);
    CHECK(a.send(ep, MPX_AM_ID_MAX, 0, "") == MPX_ERR_INVALID);
    CHECK(a.iface->ops->put_zcopy(ep, nullptr, 0, 0, nullptr, nullptr) == MPX_ERR_UNSUPPORTED);
}

TEST_CASE("a sleeping receiver pushes back; both sides wake by event_fd; nothing is lost") {
    Side a, b;
    connect(a, b);
    mpx_ep *ep = a.ep_of(b);
    const std::string text = pattern(40000, 1);
    uint64_t sent = 0, seen = 0;
    while (true) {  // until the kernel and our buffer are full and stay so
        if (a.send(ep, 2, sent, text) == MPX_OK) {
            ++sent;
            REQUIRE(sent < 100000);
            continue;
        }
        bool moved = false;
        for (int i = 0; i < 200; ++i) moved |= a.progress() != 0;
        if (!moved) break;
    }
    CHECK(sent > 1);
    b.on_message = [&](const Message &m) {
        uint64_t n;
        memcpy(&n, m.hdr.data(), 8);
        CHECK(n == seen);
        CHECK((m.data == text));
        ++seen;
    };
    auto sleep_on = [](Side &s, int ms) {
        if (s.iface->ops->event_arm(s.iface) != MPX_OK) return true;
        pollfd p{s.fd(), POLLIN, 0};
        return poll(&p, 1, ms) == 1;
    };
    while (sleep_on(a, 0)) a.progress();  // the handshake's timer may still tick, but no output can move
    CHECK(a.send(ep, 2, sent, text) == MPX_ERR_NO_RESOURCE);
    // From here nobody progresses without being woken.
    const uint64_t goal = sent + 200;
    const double end = seconds() + 20;
    while (seen < goal && seconds() < end) {
        pollfd p[2] = {{a.fd(), POLLIN, 0}, {b.fd(), POLLIN, 0}};
        if (a.iface->ops->event_arm(a.iface) == MPX_OK && b.iface->ops->event_arm(b.iface) == MPX_OK) REQUIRE(poll(p, 2, 10000) > 0);
        if (p[1].revents) b.progress();
        if (p[0].revents) a.progress();
        while (sent < goal && a.send(ep, 2, sent, text) == MPX_OK) ++sent;
    }
    CHECK(seen == goal);
}

TEST_CASE("crossing connects: many rounds, each message once and in order") {
    MESSAGE("seed " << seed());
    std::mt19937 rng(seed());
    for (int round = 0; round < 300; ++round) {
        CAPTURE(round);
        Side a, b;
        mpx_ep *ab = a.ep_to(b.address), *ba = b.ep_to(a.address);
        uint64_t sent_a = 0, sent_b = 0;
        const double end = seconds() + 20;
        while ((a.inbox.size() < 20 || b.inbox.size() < 20) && seconds() < end) {
            if (sent_a < 20 && rng() % 2 && a.send(ab, 3, sent_a, "from a") == MPX_OK) ++sent_a;
            if (sent_b < 20 && rng() % 2 && b.send(ba, 4, sent_b, "from b") == MPX_OK) ++sent_b;
            if (rng() % 2) a.progress();
            if (rng() % 2) b.progress();
        }
        REQUIRE(a.inbox.size() == 20);
        REQUIRE(b.inbox.size() == 20);
        for (uint64_t i = 0; i < 20; ++i) {
            CHECK(memcmp(a.inbox[i].hdr.data(), &i, 8) == 0);
            CHECK(memcmp(b.inbox[i].hdr.data(), &i, 8) == 0);
            CHECK(a.inbox[i].from == ab);
            CHECK(b.inbox[i].from == ba);
        }
        CHECK(a.accepted + b.accepted == 0);
        CHECK(a.errors.empty());
        CHECK(b.errors.empty());
    }
}

TEST_CASE("a peer without an ep is announced with its address and can be answered; or refused") {
    Side a, b;
    connect(a, b);
    CHECK(b.accepted == 1);
    CHECK(b.ep_of(a) != nullptr);
    CHECK(b.send(b.ep_of(a), 5, 9, "answer") == MPX_OK);
    CHECK(until({&a, &b}, [&] { return a.inbox.size() == 1; }));
    CHECK(a.inbox[0].data == "answer");

    Side c;
    b.welcome = false;
    mpx_ep *ep = c.ep_to(b.address);
    CHECK(persist({&b, &c}, [&] { return c.send(ep, 5, 0, "x"); }) == MPX_ERR_UNREACHABLE);
    CHECK(until({&b, &c}, [&] { return c.errors.size() == 1; }));
    CHECK(c.last_why.find("counts it as failed") != std::string::npos);
    CHECK(b.inbox.empty());
}

TEST_CASE("flush completes while the peer does not progress, and destroy keeps what was flushed") {
    Side a, b;
    connect(a, b);
    mpx_ep *ep = a.ep_of(b);
    for (uint64_t i = 0; i < 10; ++i) REQUIRE(a.send(ep, 6, i, pattern(1000, 7)) == MPX_OK);
    Done flushed;
    const mpx_status st = a.iface->ops->ep_flush(ep, &flushed);
    if (st == MPX_INPROGRESS) {
        CHECK(until({&a}, [&] { return flushed.calls == 1; }));
        CHECK(flushed.status == MPX_OK);
    } else {
        CHECK(st == MPX_OK);
    }
    REQUIRE(b.send(b.ep_of(a), 6, 0, "unread by a") == MPX_OK);  // closing over unread data must not reset
    a.close();
    CHECK(until({&b}, [&] { return !b.errors.empty(); }));
    CHECK(b.inbox.size() == 10);
    CHECK(b.errors.size() == 1);
    CHECK(b.errors[0].second == MPX_ERR_LINK_BROKEN);
    CHECK(b.send(b.eps.begin()->first, 6, 0, "x") == MPX_ERR_LINK_BROKEN);
    CHECK(b.last_why.find("closed the connection") != std::string::npos);
}

TEST_CASE("what was accepted is sent after ep_destroy; a new ep talks again") {
    Side a, b;
    connect(a, b);
    uint64_t sent = 0;
    const std::string text = pattern(30000, 3);
    for (int round = 0; round < 3; ++round) {
        mpx_ep *ep = a.ep_of(b);
        b.errors.clear();
        const uint64_t before = sent;
        while (a.send(ep, 7, sent, text) == MPX_OK) ++sent;  // the output buffer is full
        REQUIRE(sent > before);
        a.destroy(ep);
        REQUIRE(until({&a, &b}, [&] { return b.errors.size() == 1; }));
        CHECK(b.inbox.size() == sent);
        b.destroy(b.errors[0].first);
        mpx_ep *again = a.ep_to(b.address);
        REQUIRE(persist({&a, &b}, [&] { return a.send(again, 7, sent, text); }) == MPX_OK);
        ++sent;
    }
    CHECK(until({&a, &b}, [&] { return b.inbox.size() == sent; }));
    for (uint64_t i = 0; i < sent; ++i) CHECK(memcmp(b.inbox[i].hdr.data(), &i, 8) == 0);
}

TEST_CASE("a new ep waits until the peer has let the old one go") {
    Side a, b;
    connect(a, b);
    a.destroy(a.ep_of(b));
    mpx_ep *again = a.ep_to(b.address);
    const double asked = seconds();
    while (seconds() < asked + 0.1) {  // b keeps its broken ep for a while: a is told to ask again
        CHECK(a.send(again, 1, 0, "early") == MPX_ERR_NO_RESOURCE);
        a.progress();
        b.progress();
    }
    REQUIRE(b.errors.size() == 1);
    b.destroy(b.errors[0].first);
    CHECK(persist({&a, &b}, [&] { return a.send(again, 1, 0, "now"); }) == MPX_OK);
    CHECK(until({&a, &b}, [&] { return b.inbox.size() == 1; }));
    CHECK(b.inbox[0].data == "now");
}

TEST_CASE("a killed process breaks the link once; its last messages are received first") {
    Side a;
    int ready[2];
    REQUIRE(pipe(ready) == 0);
    const pid_t child = fork();
    if (child == 0) {
        Side b;
        mpx_ep *ep = b.ep_to(a.address);
        const double end = seconds() + 20;
        uint64_t i = 0;
        while (i < 5 && seconds() < end) {
            if (b.send(ep, 8, i, "last words") == MPX_OK) ++i;
            b.progress();
        }
        if (write(ready[1], "x", 1) != 1) _exit(1);
        for (;;) pause();
    }
    char x;
    pollfd p{ready[0], POLLIN, 0};
    CHECK(until({&a}, [&] { return poll(&p, 1, 0) == 1; }));
    CHECK(read(ready[0], &x, 1) == 1);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    CHECK(until({&a}, [&] { return a.errors.size() == 1; }));
    CHECK(a.inbox.size() == 5);
    for (int i = 0; i < 1000; ++i) a.progress();
    CHECK(a.errors.size() == 1);
    close(ready[0]);
    close(ready[1]);
}

TEST_CASE("a hundred peers of one iface all get through") {
    Side hub;
    std::vector<std::unique_ptr<Side>> spokes;
    for (int i = 0; i < 100; ++i) spokes.push_back(std::make_unique<Side>());
    std::map<mpx_ep *, uint64_t> from;
    hub.on_message = [&](const Message &m) {
        uint64_t n;
        memcpy(&n, m.hdr.data(), 8);
        CHECK(from[m.from]++ == n);
    };
    std::vector<uint64_t> sent(100);
    auto complete = [&] {
        uint64_t all = 0;
        for (auto &[ep, n] : from) all += n;
        return all == 100 * 20;
    };
    std::vector<mpx_ep *> eps;
    for (auto &s : spokes) eps.push_back(s->ep_to(hub.address));
    CHECK(until({&hub}, [&] {
        for (size_t i = 0; i < 100; ++i) {
            if (sent[i] < 20 && spokes[i]->send(eps[i], 9, sent[i], "spoke") == MPX_OK) ++sent[i];
            spokes[i]->progress();
        }
        return complete();
    }));
    CHECK(from.size() == 100);
    for (auto &s : spokes) CHECK(s->errors.empty());
}
