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
    to.sin_port = a.at[0].port;
    to.sin_addr.s_addr = a.at[0].ipv4;
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
    mpx::tcp::Hello hello{mpx::tcp::kHelloMagic, parsed(s), {}, 0, 0};
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
    const mpx::tcp::Hello hello{mpx::tcp::kHelloMagic, parsed(s), {}, 0, 0};
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
            const mpx::tcp::Hello hello{mpx::tcp::kHelloMagic, parsed(peer), {}, 0, 0};
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
    CHECK(seconds() - asked < 2);  // it has taken a silent one's place
    CHECK(hear(s, silent.front()).empty());
    CHECK(seconds() - asked < 2);
    CHECK(hear(s, silent.back()).empty());  // there was room for him, but not for ever
    CHECK(seconds() - asked > 4);
    CHECK(seconds() - asked < 8);
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
        gone.at[0].port = at.sin_port;
        gone.id[0] ^= 1;
        mpx_ep *ep = s.ep_to({reinterpret_cast<const char *>(&gone), sizeof gone});
        CHECK(persist({&s}, [&] { return s.send(ep, 1, 0, "x"); }) == MPX_ERR_UNREACHABLE);
        CHECK(until({&s}, [&] { return s.errors.size() == 1; }));
        CHECK(s.last_why == "cannot reach 127.0.0.1:" + std::to_string(ntohs(gone.at[0].port)) + ": Connection refused");
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

TEST_CASE("handshakes that break again and again are a broken link: who is there cannot be told, so it may be the peer") {
    Side s;
    Address peer = parsed(s);
    peer.id[0] ^= 1;
    const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    sockaddr_in at = socket_address(peer);
    at.sin_port = 0;
    socklen_t len = sizeof at;
    REQUIRE(bind(listener, reinterpret_cast<sockaddr *>(&at), sizeof at) == 0);
    REQUIRE(listen(listener, 16) == 0);
    REQUIRE(getsockname(listener, reinterpret_cast<sockaddr *>(&at), &len) == 0);
    peer.at[0].port = at.sin_port;
    mpx_ep *ep = s.ep_to({reinterpret_cast<const char *>(&peer), sizeof peer});
    CHECK(s.send(ep, 1, 0, "x") == MPX_ERR_NO_RESOURCE);
    int broken = 0;
    CHECK(until({&s}, [&] {
        for (int fd; (fd = accept(listener, nullptr, nullptr)) >= 0; close(fd)) ++broken;
        return s.errors.size() == 1;
    }));
    CHECK(broken > 5);
    CHECK(s.errors[0].second == MPX_ERR_LINK_BROKEN);
    close(listener);
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
    CHECK(opened("{\"addresses\": [\"0.0.0.0\"]}") == MPX_ERR_INVALID);
    CHECK(std::string(table().why()).find("does not listen on all") != std::string::npos);
    CHECK(opened("{\"addresses\": [\"nowhere\"]}") == MPX_ERR_INVALID);
    CHECK(opened("{\"addresses\": []}") == MPX_ERR_INVALID);
    const std::string loopback = "\"127.0.0.1\"", comma = ", ";
    std::string many = loopback;
    for (size_t i = 1; i < mpx::tcp::kMaxPlaces; ++i) many += comma + loopback;
    CHECK(opened(("{\"addresses\": [" + many + "]}").c_str()) == MPX_OK);
    CHECK(opened(("{\"addresses\": [" + many + comma + loopback + "]}").c_str()) == MPX_ERR_INVALID);
    CHECK(opened("{\"network\": \"00112233445566778899aabbccddeeff\"}") == MPX_OK);
    CHECK(opened("{\"network\": \"00112233445566778899aabbccddeef\"}") == MPX_ERR_INVALID);
    CHECK(opened("{\"network\": \"00112233445566778899aabbccddeefg\"}") == MPX_ERR_INVALID);
    CHECK(opened("{\"ports\": [5, 4]}") == MPX_ERR_INVALID);
    CHECK(opened("{\"ports\": [5, 70000]}") == MPX_ERR_INVALID);
    CHECK(opened("{\"colour\": \"red\"}") == MPX_ERR_INVALID);
    CHECK(opened("[") == MPX_ERR_INVALID);
    mpx_domain_params keyless{sizeof keyless, "", "{}", "", 0};
    mpx_domain *domain = nullptr;
    CHECK(table().domain_open(&keyless, &domain) == MPX_ERR_INVALID);

    // Of this process alone, and not among those that the kernel gives away.
    const int first = 10'000 + getpid() * 16 % 20'000, single = first + 10;
    const auto range = [](int from, int to) { return "\"ports\": [" + std::to_string(from) + ", " + std::to_string(to) + "]"; };
    const std::string here = "\"addresses\": [\"127.0.0.1\"]";
    Side a("k", ("{" + here + ", " + range(first, first + 9) + "}").c_str()),
        b("k", ("{" + range(first, first + 9) + ", " + here + "}").c_str());
    for (Side *s : {&a, &b}) {
        CHECK(ntohs(parsed(*s).at[0].port) >= first);
        CHECK(ntohs(parsed(*s).at[0].port) <= first + 9);
        CHECK(parsed(*s).at[0].ipv4 == htonl(INADDR_LOOPBACK));
        CHECK(parsed(*s).count == 1);
    }
    connect(a, b);

    const std::string one = "{" + range(single, single) + "}";
    Side only("k", one.c_str());
    mpx_domain_params full{sizeof full, "", one.c_str(), "k", 1};
    REQUIRE(table().domain_open(&full, &domain) == MPX_OK);
    const mpx_am_handler none[MPX_AM_ID_MAX] = {};
    const mpx_iface_params ip{sizeof ip, none, nullptr, nullptr, nullptr, 0, nullptr};
    mpx_iface *iface = nullptr;
    CHECK(table().iface_open(domain, &ip, &iface) == MPX_ERR_UNREACHABLE);
    const std::string both = std::to_string(single) + "-" + std::to_string(single);
    CHECK(std::string(table().why()).find("every port of PYMPX_TCP_PORTS=" + both + " is in use at 127.0.0.1") != std::string::npos);
    table().domain_close(domain);
}

TEST_CASE("several addresses: one listening socket each, the same port where it is free") {
    Side a("k", "{\"addresses\": [\"127.0.0.1\", \"127.0.0.2\", \"127.0.0.3\", \"192.0.2.77\"]}");
    const Address address = parsed(a);
    CHECK(address.count == 3);  // 192.0.2.77 is nobody's
    for (size_t i = 0; i < address.count; ++i) {
        CHECK(address.at[i].ipv4 == htonl(INADDR_LOOPBACK + static_cast<uint32_t>(i)));
        CHECK(address.at[i].port == address.at[0].port);
    }
}

TEST_CASE("of a peer's addresses the first wins at which it proves itself; the others drop out in milliseconds") {
    Side peer, stranger_of_the_job, wrong_key("another key"), s;
    Address there = parsed(peer);
    const mpx::tcp::Place right = there.at[0];
    // nobody, another iface of the job, one with another key, a mute listener, one that closes at once, the peer
    const int mute = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), rude = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    auto place_of = [](int fd, bool listening) {
        sockaddr_in at{};
        at.sin_family = AF_INET;
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t len = sizeof at;
        REQUIRE(bind(fd, reinterpret_cast<sockaddr *>(&at), sizeof at) == 0);
        if (listening) REQUIRE(listen(fd, 16) == 0);
        REQUIRE(getsockname(fd, reinterpret_cast<sockaddr *>(&at), &len) == 0);
        return mpx::tcp::Place{at.sin_addr.s_addr, at.sin_port, 0};
    };
    const int nobody = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    // loopback places are tried last to first
    there.at = {right,
                place_of(rude, true),
                place_of(mute, true),
                parsed(wrong_key).at[0],
                parsed(stranger_of_the_job).at[0],
                place_of(nobody, false)};
    there.count = 6;
    mpx_ep *ep = s.ep_to({reinterpret_cast<const char *>(&there), sizeof there});
    const double begin = seconds();
    mpx_status st = MPX_ERR_NO_RESOURCE;
    CHECK(until({&s, &peer, &stranger_of_the_job, &wrong_key}, [&] {
        if (const int fd = accept(rude, nullptr, nullptr); fd >= 0) close(fd);
        return (st = s.send(ep, 1, 0, "found you")) != MPX_ERR_NO_RESOURCE;
    }));
    CHECK(st == MPX_OK);
    CHECK(seconds() - begin < 1);
    CHECK(until({&s, &peer}, [&] { return peer.inbox.size() == 1; }));
    CHECK(peer.accepted == 1);
    CHECK(stranger_of_the_job.accepted == 0);
    CHECK(wrong_key.accepted == 0);
    for (const int fd : {mute, rude, nobody}) close(fd);
}

TEST_CASE("which addresses are worth a try depends on who shares the network") {
    const std::string here(32, '1'), elsewhere(32, '2');
    auto config = [](const std::string &network, const std::string &addresses) {
        return "{\"network\": \"" + network + "\", \"addresses\": [" + addresses + "]}";
    };
    Side s("k", config(here, "\"127.0.0.2\", \"127.0.0.1\"").c_str());
    Side same("k", config(here, "\"127.0.0.1\"").c_str());
    Side other("k", config(elsewhere, "\"127.0.0.1\"").c_str());
    CHECK(table().iface_reachable(s.iface, same.address.data(), same.address.size()) == 1);
    CHECK(table().iface_reachable(s.iface, other.address.data(), other.address.size()) == 0);
    CHECK(std::string(table().why()).find("PYMPX_TCP_INTERFACES") != std::string::npos);
    Address docker = parsed(other);  // both hosts have it
    docker.at[0].ipv4 = parsed(s).at[0].ipv4;
    CHECK(table().iface_reachable(s.iface, &docker, sizeof docker) == 0);
}

TEST_CASE("addresses of other forms are unreachable, with a reason") {
    Side s;
    Address a = parsed(s);
    auto reachable = [&] { return table().iface_reachable(s.iface, &a, sizeof a); };
    CHECK(reachable() == 0);  // itself
    a.id[5] ^= 1;
    CHECK(reachable() == 1);
    CHECK(table().iface_reachable(s.iface, &a, sizeof a - 1) == 0);
    const Address good = a;
    for (const unsigned count : {0u, 9u, 65535u}) {
        a.count = static_cast<uint16_t>(count);
        CHECK(reachable() == 0);
    }
    a.count = 2;  // the second is empty
    CHECK(reachable() == 0);
    a = good;
    a.at[0].port = 0;
    CHECK(reachable() == 0);
    a = good;
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
            if (getpeername(candidate, reinterpret_cast<sockaddr *>(&peer), &len) == 0 && peer.sin_port == parsed(b).at[0].port)
                fd = candidate;
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
