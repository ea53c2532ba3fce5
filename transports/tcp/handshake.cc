// From a TCP connection to a link that both ends believe in. Connector: Hello; acceptor: Challenge; connector: Proof; acceptor: Verdict.
// Nothing that a stranger sends is acted on: before his proof holds he has cost one socket, 176 bytes and at most five seconds, less when
// many come, and a wrong byte closes the socket without an answer.
//
// Crossing connects: the acceptor decides when the proof holds. An ep whose own connect is under way lets the one initiated by the lower id
// win: the higher id's owner adopts the incoming link and drops its own; the lower id's owner answers kBusy. No frame flows before a
// verdict, so nothing is lost or doubled.
//
// A peer whose former link still lives here has lost that link if it says so: its connect is newer than the link (it began later than the
// one that made it, or knows that it accepted ours). Then the old link is fenced before anything is answered, on_error follows, and kBusy
// lets the peer ask again a few milliseconds later. A connect that is older than the link was overtaken by it: kBusy, and the link stays.
//
// The connector waits without limit for an acceptor that computes: the kernel tells if its host is gone. Refused, by the kernel or by the
// peer itself (kRefused), or answered by another process: UNREACHABLE, the peer is gone. No answer, or a connection that breaks in the
// handshake: LINK_BROKEN, it may live.
//
// A peer has several places, and not each leads to it: another host may have the same docker0, a firewall may be in the way. They are tried
// side by side, each kStaggerMs after the one before or as soon as that fails. The first at which *that very iface* proves itself becomes
// the ep's link and only there we prove ourselves, so at most one connection of ours can be accepted; the other tries are closed. Until
// then nothing of ours was accepted anywhere, so a connection from the peer whose proof holds is taken instead.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "tcp.hh"

namespace mpx::tcp {
namespace {

void set_option(int fd, int level, int name, int value) { setsockopt(fd, level, name, &value, sizeof value); }

constexpr int kRtoMaxMs = 44;  // TCP_RTO_MAX_MS of Linux 6.15; refused before, and absent from Debian 12's headers

// Nagle off; the kernel asks an idle peer's kernel after 1 s, twice, 1 s apart (check_liveness covers unacknowledged data), and retries and
// probes closed windows at least once a second where it can be told to.
void set_options(int fd) {
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 2);
    set_option(fd, IPPROTO_TCP, kRtoMaxMs, 1000);
}

bool self_connected(int fd) {
    sockaddr_in a{}, b{};
    socklen_t la = sizeof a, lb = sizeof b;
    return getsockname(fd, reinterpret_cast<sockaddr *>(&a), &la) == 0 && getpeername(fd, reinterpret_cast<sockaddr *>(&b), &lb) == 0 &&
           a.sin_port == b.sin_port && a.sin_addr.s_addr == b.sin_addr.s_addr;
}

}  // namespace

std::vector<Place> Iface::places_of(const Address &peer) const {
    const bool same = peer.network == address.network;
    const auto loopback = [](const Place &at) { return (ntohl(at.ipv4) >> 24) == 127; };
    const auto ours = [this](const Place &at) {
        return std::any_of(address.at.begin(), address.at.begin() + address.count, [&](const Place &own) { return own.ipv4 == at.ipv4; });
    };
    std::vector<Place> places;
    if (!same && std::all_of(address.at.begin(), address.at.begin() + address.count, loopback)) return places;
    for (size_t i = 0; i < peer.count; ++i) {
        const Place &at = peer.at[i];
        if (same && loopback(at)) places.insert(places.begin(), at);  // not even a firewall is in its way
        else if (same || !(loopback(at) || ours(at))) places.push_back(at);
    }
    return places;
}

void Iface::connect(Ep *ep) {
    ep->untried = places_of(ep->peer);
    ep->why.clear();
    ep->timed_out = ep->late_eof = ep->may_pass = false;
    Meetings &meeting = meetings[ep->peer.id];
    ep->patience_ms = ++meeting.connects % kPatientConnect ? meeting.patience_ms : kConnectMs;
    try_next(ep);
}

// Begins to connect to the next place; goes on to those after it when that fails at once.
void Iface::try_next(Ep *ep) {
    while (!ep->untried.empty()) {
        const Place at = ep->untried.front();
        ep->untried.erase(ep->untried.begin());
        ep->next_try = now_ms() + kStaggerMs;
        want_tick(kRetryMs);
        const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0) {
            ep->why.push_back(describe(at) + ": socket: " + strerror(errno));
            ep->may_pass = true;
            continue;
        }
        links.push_back(std::make_unique<Link>(this, fd, Link::kConnecting));
        Link *link = links.back().get();
        link->ep = ep;
        link->to = at;
        link->deadline = now_ms() + ep->patience_ms;
        ep->tries.push_back(link);
        set_options(fd);
        sockaddr_in to{};
        to.sin_family = AF_INET;
        to.sin_port = at.port;
        to.sin_addr.s_addr = at.ipv4;
        if (::connect(fd, reinterpret_cast<sockaddr *>(&to), sizeof to) == 0 || errno == EINPROGRESS) return link->arm(EPOLLOUT);
        const int err = errno;
        ep->why.push_back(describe(at) + ": " + strerror(err));
        ep->may_pass |= err != ECONNREFUSED;
        bury(link);
    }
    if (ep->tries.empty()) all_failed(ep);
}

// One try ended without having reached the peer.
void Iface::try_failed(Link *link, const std::string &reason, bool may_pass) {
    Ep *ep = link->ep;
    ep->may_pass |= may_pass;
    ep->why.push_back(describe(link->to) + ": " + reason);
    bury(link);
    if (!ep->untried.empty()) try_next(ep);
    else if (ep->tries.empty()) all_failed(ep);
}

// A connection that ended inside the handshake may have met a peer that is just ending or has too many strangers: ask again. Refused
// everywhere, or answered by somebody else: the peer is gone. Anything else that happens to packets on their way may pass.
void Iface::all_failed(Ep *ep) {
    if (ep->late_eof) {
        const int64_t now = now_ms();
        if (ep->eof_since == 0) ep->eof_since = now;
        if (++ep->late_eofs <= kMaxLateEof || now - ep->eof_since < kLateEofMs) return retry(ep);
    }
    std::string text = "cannot reach ";
    for (size_t i = 0; i < ep->why.size(); ++i) text += (i ? ", nor " : "") + ep->why[i];
    if (ep->timed_out) text += "; open the port or set PYMPX_TCP_PORTS / PYMPX_TCP_INTERFACES";
    fail(ep, ep->may_pass ? MPX_ERR_LINK_BROKEN : MPX_ERR_UNREACHABLE, text);
}

void Iface::drop_tries(Ep *ep) {
    ep->untried.clear();
    while (!ep->tries.empty()) bury(ep->tries.back());
}

// Whom to give up when too many have not authenticated: those who said nothing first, then the oldest. A peer's own handshake takes a
// few milliseconds, so a flood must be faster than that to be in its way, and then the peer tries again.
Link *Iface::stranger_to_drop() const {
    const Link *worst = nullptr;
    for (const auto &link : links) {
        if (link->state != Link::kAwaitHello && link->state != Link::kAwaitProof) continue;
        const auto rank = [](const Link *l) { return std::pair(l->state == Link::kAwaitProof, l->deadline); };
        if (!worst || rank(link.get()) < rank(worst)) worst = link.get();
    }
    return const_cast<Link *>(worst);
}

// Some at a time, so that a flood leaves time for peers.
void Iface::accept_new(int listen_fd) {
    for (int i = 0; i < kAcceptBurst; ++i) {
        sockaddr_in from{};
        socklen_t len = sizeof from;
        const int fd = accept4(listen_fd, reinterpret_cast<sockaddr *>(&from), &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED) continue;
            if (errno == EAGAIN) return;
            watch_listeners(EPOLL_CTL_DEL);  // out of descriptors or memory: the backlog waits for the next tick
            accepting = false;
            return want_tick(kRetryMs);
        }
        if (half_open >= kMaxHalfOpen) bury(stranger_to_drop());
        set_options(fd);
        links.push_back(std::make_unique<Link>(this, fd, Link::kAwaitHello));
        Link *link = links.back().get();
        link->to = {from.sin_addr.s_addr, from.sin_port, 0};
        link->deadline = now_ms() + kStrangerMs;
        link->arm(EPOLLIN);
        ++half_open;
        want_tick(kRetryMs);
        link->handshake();  // a peer's hello has come with it
    }
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
        if (err) return iface->try_failed(this, strerror(err), err != ECONNREFUSED);
        Meetings &meetings = iface->meetings[ep->peer.id];
        hello.attempt = ++meetings.attempts;
        hello.accepted = meetings.accepted;
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
        else if (c.from.id != ep->peer.id) wrong = "another process listens there";
        else if (!same(c.mac, key.prove(Role::kAcceptor, hello, c.from, c.nonce))) wrong = "it does not hold this job's key";
        if (wrong) return iface->try_failed(this, wrong, false);
        std::erase(ep->tries, this);
        iface->drop_tries(ep);
        ep->link = this;
        ours = true;
        const Proof proof{key.prove(Role::kConnector, hello, c.from, c.nonce)};
        if (!send_all(&proof, sizeof proof)) return;
        state = kAwaitVerdict;
    }
    if (state == kAwaitVerdict) {
        Verdict v;
        if (!read_exactly(sizeof v)) return;
        memcpy(&v, hs, sizeof v);
        if (v.value == kAccepted) return go_up(ep);
        if (v.value != kBusy && v.value != kRefused) return iface->lost_handshake(this, "it sent no verdict");
        Ep *mine = ep;
        iface->bury(this);
        if (v.value == kRefused)
            return iface->fail(mine, MPX_ERR_UNREACHABLE,
                               "cannot reach " + describe(to) + ": it does not know this rank, or counts it as failed");
        const int64_t now = now_ms();
        if (mine->busy_since == 0) mine->busy_since = now;
        if (now - mine->busy_since < kBusyMs) iface->retry(mine, kBusyRetryMs);
        else iface->fail(mine, MPX_ERR_LINK_BROKEN, "cannot reach " + describe(to) + ": it keeps an older connection of ours");
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
        if (!ep) {
            const Verdict refused{kRefused};
            if (link->send_all(&refused, sizeof refused)) bury(link);
            return;
        }
    } else if (ep->failed || ep->live || (ep->link && address.id < link->hello.from.id)) {
        if (const Link *live = ep->failed ? nullptr : ep->live) {
            const uint32_t known = live->ours ? link->hello.accepted : link->hello.attempt - 1;
            if (known >= live->hello.attempt) {
                ep->live->fenced = true;
                fail(ep, MPX_ERR_LINK_BROKEN, "the connection to " + describe(ep->live->to) + " broke: the peer lost it");
            }
        }
        const Verdict busy{kBusy};
        if (link->send_all(&busy, sizeof busy)) bury(link);
        return;
    }
    if (ep->link) bury(ep->link);
    drop_tries(ep);
    const Verdict accepted{kAccepted};
    if (!link->send_all(&accepted, sizeof accepted)) {  // the ep can connect by itself
        if (!ep->failed) retry(ep);
        return;
    }
    --half_open;
    meetings[ep->peer.id].accepted = link->hello.attempt;
    link->go_up(ep);
}

void Link::go_up(Ep *of) {
    state = kUp;
    ep = of;
    in.reset(new uint8_t[kInCapacity]);
    out.reset(new uint8_t[kOutCapacity]);
    ep->link = ep->live = this;
    ep->retry_at = ep->busy_since = ep->eof_since = 0;
    ep->late_eofs = 0;
    Meetings &meeting = iface->meetings[ep->peer.id];
    meeting.connects = 0;
    tcp_info info{};
    socklen_t len = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0)
        meeting.patience_ms = std::clamp<int64_t>(info.tcpi_rtt / 1000 * 4, kReconnectMs, kConnectMs);
    iface->hot = this;
    arm(EPOLLIN);
    iface->want_tick(kLivenessMs);
}

void Iface::retry(Ep *ep, int64_t ms) {
    ep->retry_at = now_ms() + ms;
    want_tick(ms);
}

void Iface::lost_handshake(Link *link, const char *reason) {
    Ep *ep = link->ep;
    ep->late_eof = ep->may_pass = true;
    if (link != ep->link) return try_failed(link, reason, true);
    ep->why = {describe(link->to) + ": " + reason};
    bury(link);
    all_failed(ep);
}

}  // namespace mpx::tcp
