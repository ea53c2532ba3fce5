// From a TCP connection to a link that both ends believe in. Connector: Hello; acceptor: Challenge; connector: Proof; acceptor: Verdict.
// Nothing that a stranger sends is acted on: before his proof holds he has cost one socket, 96 bytes and at most five seconds, and a wrong
// byte closes the socket without an answer.
//
// Crossing connects: the acceptor decides when the proof holds. An ep whose own connect is under way lets the one initiated by the lower id
// win: the higher id's owner adopts the incoming link and drops its own; the lower id's owner answers kBusy. No frame flows before a
// verdict, so nothing is lost or doubled. kBusy also answers a peer whose former link still lives here; it asks again a little later, when
// the old link's end has been seen. The connector waits without limit for an acceptor that computes: the kernel tells if its host is gone.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tcp.hh"

namespace mpx::tcp {
namespace {

void set_option(int fd, int level, int name, int value) { setsockopt(fd, level, name, &value, sizeof value); }

// Nagle off; the kernel asks an idle peer's kernel after 1 s, twice, 1 s apart (check_liveness covers unacknowledged data).
void set_options(int fd) {
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 2);
}

bool self_connected(int fd) {
    sockaddr_in a{}, b{};
    socklen_t la = sizeof a, lb = sizeof b;
    return getsockname(fd, reinterpret_cast<sockaddr *>(&a), &la) == 0 && getpeername(fd, reinterpret_cast<sockaddr *>(&b), &lb) == 0 &&
           a.sin_port == b.sin_port && a.sin_addr.s_addr == b.sin_addr.s_addr;
}

}  // namespace

bool Iface::connect(Ep *ep) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        fail(ep, MPX_ERR_UNREACHABLE, "cannot reach " + describe(ep->peer) + ": socket: " + strerror(errno));
        return false;
    }
    links.push_back(std::make_unique<Link>(this, fd, Link::kConnecting));
    Link *link = links.back().get();
    link->ep = ep;
    ep->link = link;
    link->deadline = now_ms() + kConnectMs;
    set_options(fd);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = ep->peer.port;
    to.sin_addr.s_addr = ep->peer.ipv4;
    if (::connect(fd, reinterpret_cast<sockaddr *>(&to), sizeof to) < 0 && errno != EINPROGRESS) {
        fail(ep, MPX_ERR_UNREACHABLE, "cannot reach " + describe(ep->peer) + ": " + strerror(errno));
        return false;
    }
    link->arm(EPOLLOUT);
    want_tick(kRetryMs);
    return true;
}

void Iface::accept_new() {
    while (half_open < kMaxHalfOpen) {
        const int fd = accept4(listen_fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED) continue;
            if (errno == EAGAIN) return;
            break;  // out of descriptors or memory: the backlog waits for the next tick
        }
        set_options(fd);
        links.push_back(std::make_unique<Link>(this, fd, Link::kAwaitHello));
        links.back()->deadline = now_ms() + kStrangerMs;
        links.back()->arm(EPOLLIN);
        ++half_open;
        want_tick(kRetryMs);
    }
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, listen_fd, nullptr);
    accepting = false;
    want_tick(kRetryMs);
}

bool Link::read_exactly(size_t n) {
    while (hs_have < n) {
        const ssize_t got = recv(fd, hs + hs_have, n - hs_have, MSG_DONTWAIT);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) return false;
        if (got <= 0) {
            if (ep) iface->lost_handshake(this, got == 0 ? "it closed the connection during the handshake" : strerror(errno));
            else iface->bury(this);
            return false;
        }
        hs_have += static_cast<size_t>(got);
        iface->bytes_received += static_cast<size_t>(got);
    }
    hs_have = 0;
    return true;
}

// The handshake's messages always fit an empty socket buffer.
bool Link::send_all(const void *p, size_t n) {
    if (send(fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT) == static_cast<ssize_t>(n)) {
        iface->bytes_sent += n;
        return true;
    }
    if (ep) iface->lost_handshake(this, strerror(errno));
    else iface->bury(this);
    return false;
}

void Link::handshake() {
    if (state == kConnecting) {
        int err = 0;
        socklen_t len = sizeof err;
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len);
        if (err == 0 && self_connected(fd)) err = ECONNREFUSED;  // nobody listened: the kernel gave us our own port
        if (err) return iface->fail(ep, MPX_ERR_UNREACHABLE, "cannot reach " + describe(ep->peer) + ": " + strerror(err));
        hello.magic = kHelloMagic;
        hello.from = iface->address;
        random_bytes(hello.nonce.data(), hello.nonce.size());
        if (!send_all(&hello, sizeof hello)) return;
        state = kAwaitChallenge;
        arm(EPOLLIN);
    }
    const JobKey &key = iface->domain->key;
    if (state == kAwaitChallenge) {
        Challenge c;
        if (!read_exactly(sizeof c)) return;
        memcpy(&c, hs, sizeof c);
        const char *wrong = nullptr;
        if (c.magic != kChallengeMagic) wrong = "what listens there does not speak this protocol";
        else if (memcmp(&c.from, &ep->peer, sizeof c.from) != 0) wrong = "another process listens there";
        else if (!same(c.mac, key.prove(Role::kAcceptor, hello, c.from, c.nonce))) wrong = "it does not hold this job's key";
        if (wrong) return iface->fail(ep, MPX_ERR_UNREACHABLE, "cannot reach " + describe(ep->peer) + ": " + wrong);
        const Proof proof{key.prove(Role::kConnector, hello, c.from, c.nonce)};
        if (!send_all(&proof, sizeof proof)) return;
        state = kAwaitVerdict;
    }
    if (state == kAwaitVerdict) {
        Verdict v;
        if (!read_exactly(sizeof v)) return;
        memcpy(&v, hs, sizeof v);
        if (v.value == kAccepted) return go_up(ep);
        if (v.value != kBusy) return iface->lost_handshake(this, "it sent no verdict");
        Ep *mine = ep;
        iface->bury(this);
        const int64_t now = now_ms();
        if (mine->busy_since == 0) mine->busy_since = now;
        if (now - mine->busy_since < kBusyMs) iface->retry(mine);
        else iface->fail(mine, MPX_ERR_UNREACHABLE, "cannot reach " + describe(mine->peer) + ": it keeps an older connection of ours");
        return;
    }
    if (state == kAwaitHello) {
        if (!read_exactly(sizeof hello)) return;
        memcpy(&hello, hs, sizeof hello);
        if (hello.magic != kHelloMagic || hello.from.form != kAddressForm || hello.from.id == iface->address.id) return iface->bury(this);
        random_bytes(nonce.data(), nonce.size());
        const Challenge c{kChallengeMagic, iface->address, nonce, key.prove(Role::kAcceptor, hello, iface->address, nonce)};
        if (!send_all(&c, sizeof c)) return;
        state = kAwaitProof;
    }
    if (state == kAwaitProof) {
        Proof proof;
        if (!read_exactly(sizeof proof)) return;
        memcpy(&proof, hs, sizeof proof);
        if (!same(proof.mac, key.prove(Role::kConnector, hello, iface->address, nonce))) return iface->bury(this);
        iface->verdict(this);
    }
}

// The peer's proof held.
void Iface::verdict(Link *link) {
    const auto found = eps.find(link->hello.from.id);
    Ep *ep = found == eps.end() ? nullptr : found->second;
    if (!ep) {
        ep = static_cast<Ep *>(params.on_incoming(params.arg, &link->hello.from, sizeof link->hello.from));
        if (!ep) return bury(link);
    } else if (ep->failed || ep->live || (ep->link && address.id < link->hello.from.id)) {
        const Verdict busy{kBusy};
        if (link->send_all(&busy, sizeof busy)) bury(link);
        return;
    }
    if (ep->link) bury(ep->link);
    const Verdict accepted{kAccepted};
    if (!link->send_all(&accepted, sizeof accepted)) {  // the ep can connect by itself
        if (!ep->failed) retry(ep);
        return;
    }
    --half_open;
    link->go_up(ep);
}

void Link::go_up(Ep *of) {
    state = kUp;
    ep = of;
    in.reset(new uint8_t[kInCapacity]);
    out.reset(new uint8_t[kOutCapacity]);
    ep->link = ep->live = this;
    ep->retry_at = ep->busy_since = 0;
    ep->late_eofs = 0;
    iface->hot = this;
    arm(EPOLLIN);
    iface->want_tick(1000);
}

void Iface::retry(Ep *ep) {
    ep->retry_at = now_ms() + kRetryMs;
    want_tick(kRetryMs);
}

void Iface::lost_handshake(Link *link, const char *reason) {
    Ep *ep = link->ep;
    const std::string text = "cannot reach " + describe(ep->peer) + ": " + reason;
    bury(link);
    if (++ep->late_eofs > kMaxLateEof) fail(ep, MPX_ERR_UNREACHABLE, text);
    else retry(ep);
}

}  // namespace mpx::tcp
