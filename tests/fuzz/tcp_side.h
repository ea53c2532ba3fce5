// One tcp iface as a fuzz target drives it, and connections to it that need no network: a socket pair whose near end is what accept or
// connect would have given. The far end belongs to the target. Everything is non-blocking; nothing waits for time to pass.
#pragma once
#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "input.h"
#include "tcp.hh"

extern "C" const mpx_transport *mpx_transport_table(void);

namespace mpx::fuzz {

constexpr char kKey[] = "the job's key";
constexpr uint8_t kNoHandler = 30;

struct Message {
    uint8_t id;
    std::string header, data;
    bool operator==(const Message &) const = default;
};

// An address as another iface would give it: `who` tells ifaces apart.
inline tcp::Address address_of(uint8_t who, uint16_t port, unsigned places = 1) {
    tcp::Address a{};
    a.form = tcp::kAddressForm;
    a.count = static_cast<uint16_t>(places);
    a.id.fill(who);
    for (unsigned i = 0; i < places; i++) a.at[i] = {htonl(INADDR_LOOPBACK), htons(port), 0};
    return a;
}

class Side {
public:
    Side() {
        const mpx_transport &t = *mpx_transport_table();
        const mpx_domain_params dp{sizeof dp, "", R"({"addresses": ["127.0.0.1"]})", kKey, sizeof kKey};
        check(t.domain_open(&dp, &domain) == MPX_OK, "no domain");
        for (uint8_t id = 0; id < MPX_AM_ID_MAX; id++) {
            slots_[id] = {this, id};
            handlers_[id] = {id == kNoHandler ? nullptr : receive, &slots_[id]};
        }
        const mpx_iface_params ip{sizeof ip, handlers_, incoming, error, this, 0, nullptr};
        mpx_iface *opened = nullptr;
        check(t.iface_open(domain, &ip, &opened) == MPX_OK, "no iface");
        iface = static_cast<tcp::Iface *>(opened);
    }
    ~Side() {
        while (!iface->eps.empty()) mpx_transport_table()->ep_destroy(iface->eps.begin()->second);
        while (!iface->links.empty()) iface->bury(iface->links.back().get());  // closing would wait for those that linger
        mpx_transport_table()->iface_close(iface);
        mpx_transport_table()->domain_close(domain);
    }
    Side(const Side &) = delete;

    tcp::Ep *ep_to(const tcp::Address &peer) {
        mpx_ep *ep = nullptr;
        if (mpx_transport_table()->ep_create(iface, &peer, sizeof peer, &ep) != MPX_OK) return nullptr;
        ep->user = ep;
        return static_cast<tcp::Ep *>(ep);
    }
    // A connection in `state`; returns its far end.
    int plug(tcp::Link::State state, tcp::Link **out = nullptr) {
        int ends[2];
        check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0, "no socket pair");
        iface->links.push_back(std::make_unique<tcp::Link>(iface, ends[0], state));
        tcp::Link *link = iface->links.back().get();
        if (state == tcp::Link::kAwaitHello) {  // as Iface::accept_new does
            link->deadline = tcp::now_ms() + tcp::kStrangerMs;
            link->arm(1);  // EPOLLIN
            ++iface->half_open;
        }
        if (out) *out = link;
        return ends[1];
    }
    void progress(int rounds = 1) {
        while (rounds-- > 0) {
            iface->force_poll = true;
            iface->ops->progress(iface);
        }
    }

    mpx_domain *domain = nullptr;
    tcp::Iface *iface = nullptr;
    std::vector<Message> inbox;
    int accepted = 0, errors = 0;

private:
    struct Slot {
        Side *side;
        uint8_t id;
    };
    static mpx_status receive(void *arg, void *user, const void *header, size_t header_length, void *data, size_t length, unsigned) {
        check(user != nullptr, "a message of no ep");
        const auto *slot = static_cast<Slot *>(arg);
        slot->side->inbox.push_back(
            {slot->id, {static_cast<const char *>(header), header_length}, {static_cast<const char *>(data), length}});
        return MPX_OK;
    }
    static mpx_ep *incoming(void *arg, const void *address, size_t length) {
        auto *side = static_cast<Side *>(arg);
        tcp::Address peer;
        check(length == sizeof peer, "on_incoming with half an address");
        std::memcpy(&peer, address, sizeof peer);
        side->accepted++;
        return side->ep_to(peer);
    }
    static void error(void *arg, mpx_ep *, mpx_status st) {
        check(st < 0, "on_error without an error");
        static_cast<Side *>(arg)->errors++;
    }

    Slot slots_[MPX_AM_ID_MAX];
    mpx_am_handler handlers_[MPX_AM_ID_MAX];
};

// All that can be read from a descriptor now.
inline std::string drain(int fd) {
    std::string all;
    char piece[65536];
    for (ssize_t n; (n = recv(fd, piece, sizeof piece, MSG_DONTWAIT)) > 0;) all.append(piece, static_cast<size_t>(n));
    return all;
}

inline void put(int fd, const std::string &bytes) { (void)!send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT); }

// A genuine peer at the far end of a fresh connection: gets in, sends a message, and it arrives.
inline void good_peer_gets_in(Side &side, uint8_t who) {
    const int fd = side.plug(tcp::Link::kAwaitHello);
    tcp::Hello hello{tcp::kHelloMagic, address_of(who, 9), {}, 1, 0};
    hello.nonce.fill(who);
    put(fd, raw(hello));
    side.progress(2);
    const std::string answer = drain(fd);
    tcp::Challenge c;
    check(answer.size() == sizeof c, "a genuine peer gets no challenge");
    std::memcpy(&c, answer.data(), sizeof c);
    const tcp::JobKey key(kKey, sizeof kKey);
    check(tcp::same(c.mac, key.prove(tcp::Role::kAcceptor, hello, c.from, c.nonce)), "the acceptor's proof is wrong");
    put(fd, raw(key.prove(tcp::Role::kConnector, hello, c.from, c.nonce)));
    side.progress(2);
    check(drain(fd) == raw(tcp::Verdict{tcp::kAccepted}), "a genuine peer is not accepted");
    const size_t before = side.inbox.size();
    put(fd, raw(tcp::Frame{4, tcp::kAmShort, 3, 0, 77}) + std::string("good\0\0\0\0", 8));
    side.progress(3);
    check(side.inbox.size() == before + 1 && side.inbox.back() == Message{3, raw(uint64_t{77}), "good"}, "a good peer's message is lost");
    ::close(fd);
}

}  // namespace mpx::fuzz
