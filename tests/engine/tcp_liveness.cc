// tcp: a peer that merely computes is alive, however long; a host that fell silent is noticed, with data in flight or without.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cable.h"
#include "tcp_world.hh"

using namespace world;
using mpx::test::own_network;
using mpx::test::set_cable;

namespace {

// 0: noticed by both; else the number of the step that failed. Runs in a child.
int silent_host(bool data_in_flight) {
    if (!own_network()) return 100;
    Side a, b;
    connect(a, b);
    if (!until({&a, &b}, [&] { return a.iface->ops->ep_flush(a.ep_of(b), nullptr) == MPX_OK; })) return 1;
    if (!set_cable(false)) return 2;
    const double pulled = seconds();
    if (data_in_flight && (a.send(a.ep_of(b), 1, 0, "into the void") != MPX_OK || b.send(b.ep_of(a), 1, 0, "too") != MPX_OK)) return 3;
    while ((a.errors.empty() || b.errors.empty()) && seconds() < pulled + 15) {  // asleep: event_fd has to tell
        for (Side *s : {&a, &b}) {
            pollfd p{s->fd(), POLLIN, 0};
            if (s->iface->ops->event_arm(s->iface) != MPX_OK || poll(&p, 1, 50) > 0) s->progress();
        }
    }
    if (a.errors.size() != 1 || b.errors.size() != 1) return 4;
    if (a.errors[0].second != MPX_ERR_LINK_BROKEN) return 5;
    return seconds() - pulled > 3.2 ? 6 : 0;
}

}  // namespace

TEST_CASE("a silent host is noticed within 3 s, asleep, idle or with data in flight") {
    for (const bool data : {false, true}) {
        CAPTURE(data);
        const pid_t child = fork();
        if (child == 0) _exit(silent_host(data));
        int status = 0;
        REQUIRE(waitpid(child, &status, 0) == child);
        REQUIRE(WIFEXITED(status));
        if (WEXITSTATUS(status) == 100) MESSAGE("not run: no network namespace may be made here");
        else CHECK(WEXITSTATUS(status) == 0);
    }
}

TEST_CASE("a peer that computes for seconds with its window closed is alive") {
    Side a, b;
    connect(a, b);
    const std::string text = pattern(60000, 1);
    uint64_t sent = 0;
    for (const double start = seconds(); seconds() < start + 8;) {
        if (a.send(a.ep_of(b), 1, sent, text) == MPX_OK) ++sent;
        else {
            pollfd p{a.fd(), POLLIN, 0};
            if (a.iface->ops->event_arm(a.iface) == MPX_OK) poll(&p, 1, 100);
            a.progress();
        }
        REQUIRE(a.errors.empty());
    }
    size_t seen = 0, wrong = 0;
    b.on_message = [&](const Message &m) { wrong += memcmp(m.hdr.data(), &seen, 8) != 0 || m.data != text, ++seen; };
    CHECK(until({&a, &b}, [&] { return seen == sent; }));
    CHECK(wrong == 0);
    CHECK(a.errors.empty());
    CHECK(b.errors.empty());
}

TEST_CASE("a copy of a dead link's socket, as a forked child has it, rings for nobody") {
    Side a, b;
    mpx_ep *ep = a.ep_to(b.address);
    CHECK(until({&a, &b}, [&] { return a.send(ep, 1, 0, "met") == MPX_OK; }));
    CHECK(until({&a, &b}, [&] { return b.inbox.size() == 1; }));
    std::vector<int> copies;
    for (int fd = 3; fd < 64; ++fd) {
        sockaddr_in peer{};
        socklen_t len = sizeof peer;
        if (getpeername(fd, reinterpret_cast<sockaddr *>(&peer), &len) == 0 && peer.sin_family == AF_INET) copies.push_back(fd);
    }
    for (int &fd : copies) fd = dup(fd);
    CHECK(copies.size() == 2);
    for (const int fd : copies) shutdown(fd, SHUT_RDWR);
    CHECK(until({&a, &b}, [&] { return a.errors.size() == 1 && b.errors.size() == 1; }));
    a.destroy(ep);
    b.destroy(b.ep_of(a));
    for (int i = 0; i < 100; ++i) {
        pollfd p{a.fd(), POLLIN, 0};
        if (poll(&p, 1, 0) > 0) a.progress();
        b.progress();
    }
    pollfd p{a.fd(), POLLIN, 0};
    CHECK(poll(&p, 1, 0) == 0);
    for (const int fd : copies) close(fd);
}

TEST_CASE("two sleepers connect, talk and flush by event_fd alone, both at once") {
    for (int round = 0; round < 50; ++round) {
        CAPTURE(round);
        Side a, b;
        Side *sides[2] = {&a, &b};
        mpx_ep *eps[2] = {a.ep_to(b.address), b.ep_to(a.address)};
        Done flushed[2];
        bool said[2] = {}, flushing[2] = {};
        const double end = seconds() + 20;
        auto finished = [&] { return a.inbox.size() == 1 && b.inbox.size() == 1 && flushed[0].calls && flushed[1].calls; };
        while (!finished() && seconds() < end) {
            for (int i = 0; i < 2; ++i) {
                Side &s = *sides[i];
                if (!said[i]) said[i] = s.send(eps[i], 1, 0, "woken") == MPX_OK;
                else if (!flushing[i]) {
                    flushing[i] = true;
                    if (s.iface->ops->ep_flush(eps[i], &flushed[i]) == MPX_OK) flushed[i].done(&flushed[i], MPX_OK);
                }
            }
            if (finished()) break;
            pollfd p[2] = {{a.fd(), POLLIN, 0}, {b.fd(), POLLIN, 0}};
            bool sleep = flushing[0] || !said[0];
            for (Side *s : sides) sleep &= s->iface->ops->event_arm(s->iface) == MPX_OK;
            if (sleep && (flushing[1] || !said[1])) REQUIRE(poll(p, 2, 10000) > 0);
            for (int i = 0; i < 2; ++i)
                if (p[i].revents) sides[i]->progress();
        }
        CHECK(finished());
    }
}
