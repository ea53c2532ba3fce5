// tcp: who does not hold the job's key gets nothing, and costs little.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tcp_world.hh"
#include "wire.hh"

using namespace world;
using mpx::tcp::Address;

namespace {

Address parsed(const Side &s) {
    Address a;
    REQUIRE(s.address.size() == sizeof a);
    memcpy(&a, s.address.data(), sizeof a);
    return a;
}

sockaddr_in socket_address(const Address &a) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = a.port;
    to.sin_addr.s_addr = a.ipv4;
    return to;
}

int stranger(const Side &s) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in to = socket_address(parsed(s));
    REQUIRE(connect(fd, reinterpret_cast<const sockaddr *>(&to), sizeof to) == 0);
    return fd;
}

// What the socket says next: bytes, or "" for its end; fails after 10 s.
std::string hear(Side &s, int fd) {
    char buf[4096];
    ssize_t n = -1;
    REQUIRE(until(
        {&s}, [&] { return (n = recv(fd, buf, sizeof buf, MSG_DONTWAIT)) >= 0 || errno == ECONNRESET; }, 10));
    return n > 0 ? std::string(buf, static_cast<size_t>(n)) : "";
}

}  // namespace

TEST_CASE("a wrong key is refused in both directions and nothing is delivered") {
    for (const bool from_wrong : {true, false}) {
        CAPTURE(from_wrong);
        Side right("the key"), wrong("the kez");
        Side &from = from_wrong ? wrong : right, &to = from_wrong ? right : wrong;
        mpx_ep *ep = from.ep_to(to.address);
        CHECK(persist({&right, &wrong}, [&] { return from.send(ep, 1, 0, "secret"); }) == MPX_ERR_UNREACHABLE);
        CHECK(until({&right, &wrong}, [&] { return from.errors.size() == 1; }));
        CHECK(from.errors[0].second == MPX_ERR_UNREACHABLE);
        CHECK(from.last_why.find("does not hold this job's key") != std::string::npos);
        CHECK(to.inbox.empty());
        CHECK(to.accepted == 0);
        CHECK(to.errors.empty());
    }
}

TEST_CASE("a connector that skips the acceptor's proof still has to give its own") {
    Side s;
    mpx::tcp::Hello hello{mpx::tcp::kHelloMagic, parsed(s), {}};
    hello.from.id[0] ^= 1;
    const int fd = stranger(s);
    REQUIRE(send(fd, &hello, sizeof hello, 0) == sizeof hello);
    const std::string challenge = hear(s, fd);
    REQUIRE(challenge.size() == sizeof(mpx::tcp::Challenge));
    // The acceptor's own mac sent back is no proof: the roles differ.
    mpx::tcp::Challenge c;
    memcpy(&c, challenge.data(), sizeof c);
    const mpx::tcp::Frame frame{0, mpx::tcp::kAmShort, 1, 0, 0};
    REQUIRE(send(fd, &c.mac, sizeof c.mac, 0) == sizeof c.mac);
    (void)send(fd, &frame, sizeof frame, MSG_NOSIGNAL);
    CHECK(hear(s, fd).empty());
    CHECK(s.inbox.empty());
    CHECK(s.accepted == 0);
    close(fd);
}

TEST_CASE("an iface does not talk to itself, nor to its own echo") {
    Side s;
    mpx_ep *ep = nullptr;
    CHECK(table().ep_create(s.iface, s.address.data(), s.address.size(), &ep) == MPX_ERR_UNREACHABLE);
    const mpx::tcp::Hello hello{mpx::tcp::kHelloMagic, parsed(s), {}};
    const int fd = stranger(s);
    REQUIRE(send(fd, &hello, sizeof hello, 0) == sizeof hello);
    CHECK(hear(s, fd).empty());
    close(fd);
}

TEST_CASE("garbage closes the socket silently; peers still get through") {
    MESSAGE("seed " << seed());
    std::mt19937 rng(seed());
    Side s, peer;
    for (int i = 0; i < 300; ++i) {
        CAPTURE(i);
        const int fd = stranger(s);
        std::string junk = pattern(1 + rng() % 300, rng());
        if (i % 3 == 0) {  // a right beginning
            const mpx::tcp::Hello hello{mpx::tcp::kHelloMagic, parsed(peer), {}};
            junk = std::string(reinterpret_cast<const char *>(&hello), sizeof hello) + junk;
        }
        CHECK(send(fd, junk.data(), junk.size(), MSG_NOSIGNAL) > 0);
        shutdown(fd, SHUT_WR);
        std::string heard = hear(s, fd);
        if (!heard.empty()) {
            CHECK(i % 3 == 0);
            CHECK(heard.size() == sizeof(mpx::tcp::Challenge));
            heard = hear(s, fd);
        }
        CHECK(heard.empty());
        close(fd);
    }
    CHECK(s.inbox.empty());
    CHECK(s.accepted == 0);
    connect(peer, s);
    CHECK(peer.send(peer.ep_of(s), 1, 0, "through") == MPX_OK);
    CHECK(until({&s, &peer}, [&] { return s.inbox.size() == 1; }));
}

TEST_CASE("silent strangers are limited in number and time") {
    Side s, peer;
    std::vector<int> silent;
    for (int i = 0; i < 200; ++i) silent.push_back(stranger(s));
    const double asked = seconds();
    mpx_ep *ep = peer.ep_to(s.address);  // behind them in the backlog
    mpx_status st;
    CHECK(until({&s, &peer}, [&] { return (st = peer.send(ep, 1, 0, "patient")) != MPX_ERR_NO_RESOURCE; }));
    CHECK(st == MPX_OK);
    const double waited = seconds() - asked;
    CHECK(waited > 4);  // for a place among the half-open ones
    CHECK(waited < 8);
    for (const int fd : silent) {
        CHECK(hear(s, fd).empty());
        close(fd);
    }
    CHECK(until({&s, &peer}, [&] { return s.inbox.size() == 1; }));
}

TEST_CASE("a listener that is no peer, or no listener: the reason is told") {
    Side s;
    Address gone = parsed(s);
    {
        const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);  // a port that nobody listens on
        sockaddr_in at = socket_address(gone);
        at.sin_port = 0;
        socklen_t len = sizeof at;
        REQUIRE(bind(fd, reinterpret_cast<sockaddr *>(&at), sizeof at) == 0);
        REQUIRE(getsockname(fd, reinterpret_cast<sockaddr *>(&at), &len) == 0);
        gone.port = at.sin_port;
        gone.id[0] ^= 1;
        mpx_ep *ep = s.ep_to({reinterpret_cast<const char *>(&gone), sizeof gone});
        CHECK(persist({&s}, [&] { return s.send(ep, 1, 0, "x"); }) == MPX_ERR_UNREACHABLE);
        CHECK(until({&s}, [&] { return s.errors.size() == 1; }));
        CHECK(s.last_why == "cannot reach 127.0.0.1:" + std::to_string(ntohs(gone.port)) + ": Connection refused");
        close(fd);
    }
    Side other;
    Address stale = parsed(other);  // another iface took the port
    stale.id[3] ^= 1;
    mpx_ep *ep = s.ep_to({reinterpret_cast<const char *>(&stale), sizeof stale});
    CHECK(persist({&s, &other}, [&] { return s.send(ep, 1, 0, "x"); }) == MPX_ERR_UNREACHABLE);
    CHECK(until({&s, &other}, [&] { return s.errors.size() == 2; }));
    CHECK(s.last_why.find("another process listens there") != std::string::npos);
    CHECK(other.accepted == 0);
}

TEST_CASE("settings: one address, a range of ports, and clear refusals") {
    auto opened = [](const char *config) {
        mpx_domain_params dp{sizeof dp, "", config, "k", 1};
        mpx_domain *domain = nullptr;
        const mpx_status st = table().domain_open(&dp, &domain);
        if (st == MPX_OK) table().domain_close(domain);
        return st;
    };
    CHECK(opened("{}") == MPX_OK);
    CHECK(opened("{\"address\": \"0.0.0.0\"}") == MPX_ERR_INVALID);
    CHECK(std::string(table().why()).find("does not listen on all") != std::string::npos);
    CHECK(opened("{\"address\": \"nowhere\"}") == MPX_ERR_INVALID);
    CHECK(opened("{\"ports\": [5, 4]}") == MPX_ERR_INVALID);
    CHECK(opened("{\"ports\": [5, 70000]}") == MPX_ERR_INVALID);
    CHECK(opened("{\"colour\": \"red\"}") == MPX_ERR_INVALID);
    CHECK(opened("[") == MPX_ERR_INVALID);
    mpx_domain_params keyless{sizeof keyless, "", "{}", "", 0};
    mpx_domain *domain = nullptr;
    CHECK(table().domain_open(&keyless, &domain) == MPX_ERR_INVALID);

    Side a("k", "{\"address\": \"127.0.0.1\", \"ports\": [47110, 47119]}"),
        b("k", "{\"ports\": [47110, 47119], \"address\": \"127.0.0.1\"}");
    for (Side *s : {&a, &b}) {
        CHECK(ntohs(parsed(*s).port) >= 47110);
        CHECK(ntohs(parsed(*s).port) <= 47119);
        CHECK(parsed(*s).ipv4 == htonl(INADDR_LOOPBACK));
    }
    connect(a, b);
}

TEST_CASE("addresses of other forms are unreachable, with a reason") {
    Side s;
    Address a = parsed(s);
    auto reachable = [&] { return table().iface_reachable(s.iface, &a, sizeof a); };
    CHECK(reachable() == 0);  // itself
    a.id[5] ^= 1;
    CHECK(reachable() == 1);
    CHECK(table().iface_reachable(s.iface, &a, sizeof a - 1) == 0);
    a.ipv4 = inet_addr("192.0.2.9");
    CHECK(reachable() == 0);
    CHECK(std::string(table().why()).find("PYMPX_TCP_INTERFACES") != std::string::npos);
    a.form = 7;
    CHECK(reachable() == 0);
}

TEST_CASE("an authenticated peer that sends no frames, or too long ones, loses the link and does no harm") {
    MESSAGE("seed " << seed());
    std::mt19937 rng(seed());
    for (int i = 0; i < 60; ++i) {
        CAPTURE(i);
        Side a, b;
        connect(a, b);
        // The descriptor of a's connection: the one whose peer is b's listening port.
        int fd = -1;
        for (int candidate = 3; candidate < 256; ++candidate) {
            sockaddr_in peer{};
            socklen_t len = sizeof peer;
            if (getpeername(candidate, reinterpret_cast<sockaddr *>(&peer), &len) == 0 && peer.sin_port == parsed(b).port) fd = candidate;
        }
        REQUIRE(fd >= 0);
        CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
        mpx::tcp::Frame f{static_cast<uint32_t>(rng()), static_cast<uint8_t>(rng() % 8), static_cast<uint8_t>(rng() % 40),
                          static_cast<uint16_t>(rng()), rng()};
        if (i == 0) f = {1u << 31, mpx::tcp::kAmShort, 1, 0, 0};
        if (i == 1) f = {8, mpx::tcp::kAm, 1, 9, 0};
        if (i == 2) f = {64, mpx::tcp::kGetData, 0, 0, 1};
        if (i == 3) f = {0, mpx::tcp::kGetFail, 0, 0, 1};
        REQUIRE(send(fd, &f, sizeof f, MSG_NOSIGNAL) == sizeof f);
        shutdown(fd, SHUT_WR);
        CHECK(until({&a, &b}, [&] { return b.errors.size() == 1; }));
        CHECK(b.errors[0].second == MPX_ERR_LINK_BROKEN);
    }
}
