// See wireup.h.
#include "wireup.h"

#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <stdexcept>

#include "harness.h"

namespace mpx::conform {
namespace {

constexpr size_t kNameBytes = 16;

// In the abstract namespace: nothing is left behind.
socklen_t place(sockaddr_un &at, const uint8_t *name) {
    at = {};
    at.sun_family = AF_UNIX;
    std::memcpy(at.sun_path + 1, name, kNameBytes);
    return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + kNameBytes);
}

void append(Bytes &to, const Bytes &field) {
    const auto length = static_cast<uint32_t>(field.size());
    const auto *p = reinterpret_cast<const uint8_t *>(&length);
    to.insert(to.end(), p, p + sizeof length);
    to.insert(to.end(), field.begin(), field.end());
}

Bytes take(const uint8_t *&at) {
    uint32_t length;
    std::memcpy(&length, at, sizeof length);
    Bytes field(at + sizeof length, at + sizeof length + length);
    at += sizeof length + length;
    return field;
}

}  // namespace

void WireupSocket::open(Bytes &address) {
    uint8_t name[kNameBytes];
    sockaddr_un at;
    fd_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd_ < 0 || getrandom(name, sizeof name, 0) != sizeof name || bind(fd_, reinterpret_cast<sockaddr *>(&at), place(at, name)) != 0)
        throw std::runtime_error("no socket for the wireup");
    address.insert(address.end(), name, name + kNameBytes);
}

void WireupSocket::close() {
    for (int *fd : {&fd_, &epoll_fd_}) {
        if (*fd >= 0) ::close(*fd);
        *fd = -1;
    }
}

int WireupSocket::watch(int event_fd) {
    if (fd_ < 0) return event_fd;
    if (epoll_fd_ >= 0) return epoll_fd_;
    epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
    for (const int fd : {fd_, event_fd}) {
        epoll_event event{EPOLLIN, {}};
        if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) != 0) throw std::runtime_error("epoll_ctl failed");
    }
    return epoll_fd_;
}

void WireupSocket::say(const Bytes &to, const WireupMessage &m) const {
    Bytes text;
    for (const uint32_t word : {static_cast<uint32_t>(m.kind), m.number}) {
        const auto *p = reinterpret_cast<const uint8_t *>(&word);
        text.insert(text.end(), p, p + sizeof word);
    }
    append(text, m.from);
    append(text, m.ep);
    sockaddr_un at;
    const socklen_t length = place(at, to.data() + to.size() - kNameBytes);
    sendto(fd_, text.data(), text.size(), 0, reinterpret_cast<sockaddr *>(&at), length);  // who has gone does not miss it
}

std::optional<WireupMessage> WireupSocket::hear() const {
    uint8_t text[1024];
    const ssize_t n = recv(fd_, text, sizeof text, 0);
    if (n <= 0) return {};
    uint32_t words[2];
    std::memcpy(words, text, sizeof words);
    const uint8_t *at = text + sizeof words;
    WireupMessage m{static_cast<WireupMessage::Kind>(words[0]), words[1], {}, {}};
    m.from = take(at);
    m.ep = take(at);
    return m;
}

// ---- the nodes' part ----

void Node::begin_wireup(const Peer &p) {
    WireupState &s = wireups_[p.index];
    s.said = s.connect_due = s.asked = false;
    if (leads(p.index)) ++s.number;
    else wireup_.say(known_.at(p.index), {WireupMessage::kPlease, s.number, address_, {}});
}

// Tells addresses, and connects, as far as the transport is ready.
unsigned Node::wire() {
    unsigned events = 0;
    while (const auto message = wireup_.hear()) {
        hear(*message);
        ++events;
    }
    for (auto &[index, p] : peers_) {
        if (!p.ep || p.linked) continue;
        WireupState &s = wireups_[index];
        const auto say = [&, &p = p](WireupMessage::Kind kind) {
            Bytes own(attributes().ep_addr_len);
            if (kind != WireupMessage::kReady && table().ep_address(p.ep, own.data()) != MPX_OK) return false;
            wireup_.say(known_.at(p.index), {kind, s.number, address_, own});
            ++events;
            return true;
        };
        if (leads(index) && !s.said) s.said = say(s.asked ? WireupMessage::kAnswer : WireupMessage::kOffer);
        if (!s.connect_due) continue;
        const mpx_status st = table().ep_connect(p.ep, s.peer_ep.data(), s.peer_ep.size());
        if (st == MPX_ERR_NO_RESOURCE) continue;
        EXPECT(st == MPX_OK, "ep_connect returned %d: %s", st, table().why());
        s.connect_due = false;
        if (leads(index)) p.linked = say(WireupMessage::kReady);
        else s.said = say(WireupMessage::kAccept);
    }
    return events;
}

void Node::hear(const WireupMessage &m) {
    for (const auto &[index, address] : known_) {
        if (address != m.from) continue;
        WireupState &s = wireups_[index];
        const auto renew = [&, index = index](bool asked) {
            if (has_ep(index)) destroy_ep(index);
            peer(index);
            s.asked = asked;
        };
        switch (m.kind) {
            case WireupMessage::kPlease:
                if (m.number == s.number) renew(true);
                return;
            case WireupMessage::kOffer:
            case WireupMessage::kAnswer:
                if (m.number <= s.number) return;
                if (m.kind == WireupMessage::kAnswer && !has_ep(index)) {  // who asked is gone
                    s.number = m.number;
                    return;
                }
                if (!has_ep(index) || s.said) renew(false);
                s.number = m.number;
                s.peer_ep = m.ep;
                s.connect_due = true;
                return;
            case WireupMessage::kAccept:
                if (m.number != s.number || !has_ep(index) || peers_[index].linked) return;
                s.peer_ep = m.ep;
                s.connect_due = true;
                return;
            case WireupMessage::kReady:
                if (m.number == s.number && has_ep(index)) peers_[index].linked = true;
                return;
        }
    }
}

}  // namespace mpx::conform
