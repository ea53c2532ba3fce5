// The iface: its listening socket, its epoll set, its timer, progress, and the ends of links. The timer stands for all that no socket
// announces (deadlines, retries, acknowledgements awaited by ep_flush, silent peers), so a sleeper on event_fd wakes for these too.
#include <arpa/inet.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "tcp.hh"

namespace mpx::tcp {
namespace {

// While spinning: the hot socket is read this often before epoll is asked, when it is silent and when it speaks.
constexpr unsigned kIdleSpins = 16, kBusySpins = 32;
constexpr unsigned kLoneSpins = 128;  // with one connection, only strangers wait for what it costs each message
constexpr uint32_t kSilentMs = 2500;  // without a sign of the peer's kernel, though it was asked twice

// Ends a connection with a reset. Where only the way from the peer is dark, this reaches it; a FIN would wait behind data that nobody
// acknowledges, and what we send again until then would look like a sign of life.
void reset(int fd) {
    sockaddr nowhere{};
    nowhere.sa_family = AF_UNSPEC;
    (void)::connect(fd, &nowhere, sizeof nowhere);
}

}  // namespace

int64_t now_ms() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

std::string describe(const Place &at) {
    char text[INET_ADDRSTRLEN] = "?";
    inet_ntop(AF_INET, &at.ipv4, text, sizeof text);
    return std::string(text) + ":" + std::to_string(ntohs(at.port));
}

std::string describe(const Address &a) {
    std::string text;
    for (size_t i = 0; i < a.count; ++i) text += (i ? ", " : "") + describe(a.at[i]);
    return text;
}

Iface::~Iface() {
    for (int fd : listen_fds) ::close(fd);
    for (int fd : {epoll_fd, timer_fd})
        if (fd >= 0) ::close(fd);
}

// A socket that listens at `ipv4`, on `preferred` if that port is free, else -1 with errno.
int Iface::listen_at(uint32_t ipv4, const Config &config, uint16_t preferred, Place &place) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = ipv4;
    const unsigned count = config.last_port - config.first_port + 1u;
    unsigned start = 0;  // ranks of one job start at different places of a range
    random_bytes(&start, sizeof start);
    int err = EADDRINUSE;
    for (unsigned i = preferred ? 0 : 1; i <= count && (err == EADDRINUSE || err == EACCES); ++i) {
        const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0) return -1;
        const int on = 1;
        if (config.first_port) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        at.sin_port = i == 0 ? preferred : htons(static_cast<uint16_t>(config.first_port ? config.first_port + (start + i) % count : 0));
        socklen_t len = sizeof at;
        if (bind(fd, reinterpret_cast<sockaddr *>(&at), sizeof at) == 0 && listen(fd, 4096) == 0 &&
            getsockname(fd, reinterpret_cast<sockaddr *>(&at), &len) == 0) {
            place = {ipv4, at.sin_port, 0};
            return fd;
        }
        err = errno;
        ::close(fd);
    }
    errno = err;
    return -1;
}

// One socket per address, on the same port where that is free. The best address must be had; another that cannot be is left out.
bool Iface::listen_on(const Config &config) {
    address = {};
    address.form = kAddressForm;
    address.network = config.network;
    random_bytes(address.id.data(), address.id.size());
    for (const uint32_t ipv4 : config.ipv4) {
        Place &place = address.at[address.count];
        const int fd = listen_at(ipv4, config, address.at[0].port, place);
        if (fd >= 0) {
            listen_fds.push_back(fd);
            ++address.count;
        } else if (address.count == 0) {
            char text[INET_ADDRSTRLEN] = "?";
            inet_ntop(AF_INET, &ipv4, text, sizeof text);
            const std::string range = std::to_string(config.first_port) + "-" + std::to_string(config.last_port);
            if (config.first_port && errno == EADDRINUSE)
                set_why(std::string("tcp: every port of PYMPX_TCP_PORTS=") + range + " is in use at " + text +
                        ": give more, one per rank of a host");
            else
                set_why(std::string("tcp: cannot listen on ") + text + (config.first_port ? ", ports " + range : "") + ": " +
                        strerror(errno));
            return false;
        }
    }
    return true;
}

bool Iface::watch_listeners(int op) {
    bool all = true;
    for (int &fd : listen_fds) {
        epoll_event ev{};
        ev.events = EPOLLIN;
        ev.data.ptr = &fd;
        all = epoll_ctl(epoll_fd, op, fd, &ev) == 0 && all;
    }
    return all;
}

bool Iface::open() {
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (epoll_fd < 0 || timer_fd < 0) {
        set_why(std::string("tcp: cannot make an event set: ") + strerror(errno));
        return false;
    }
    if (!listen_on(domain->config)) return false;
    watch_listeners(EPOLL_CTL_ADD);
    epoll_event ev{};
    ev.events = EPOLLIN;
    ev.data.ptr = &timer_fd;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &ev);
    return true;
}

// ---- progress

unsigned Iface::progress() {
    unsigned events = 0;
    if (!broken.empty()) events += report_broken();
    for (size_t i = 0; i < flushing.size();) {
        Link *link = flushing[i];
        events += link->check_flush();
        if (link->flushes.empty()) std::erase(flushing, link);
        else ++i;
    }
    if (hot) events += hot->read_in();
    const bool ask =
        events ? ++busy_spins >= (writers ? 2 : kBusySpins) : ++idle_spins >= (links.size() > 1 ? kIdleSpins : kLoneSpins) || writers;
    if (ask || force_poll || !hot) {
        busy_spins = idle_spins = 0;
        force_poll = false;
        events += poll();
    }
    if (!broken.empty()) events += report_broken();
    graveyard.clear();
    return events;
}

unsigned Iface::poll() {
    epoll_event ready[64];
    const int n = epoll_wait(epoll_fd, ready, 64, 0);
    unsigned events = 0;
    for (int i = 0; i < n; ++i) {
        void *tag = ready[i].data.ptr;
        if (tag >= listen_fds.data() && tag < listen_fds.data() + listen_fds.size()) {
            accept_new(*static_cast<int *>(tag));
            ++events;
        } else if (tag == &timer_fd) {
            tick();
        } else {
            auto *link = static_cast<Link *>(tag);
            if (link->state == Link::kDead) continue;
            if (link->state == Link::kUp) {
                if (ready[i].events & EPOLLOUT) events += link->write_out();
                if (link->state == Link::kUp && (ready[i].events & ~EPOLLOUT)) {
                    events += link->read_in();
                    if (link->state == Link::kUp) hot = link;
                }
            } else if (link->state == Link::kLinger) {
                linger_step(link);
            } else {
                link->handshake();
                ++events;
            }
        }
    }
    return events;
}

void Iface::want_tick(int64_t ms) {
    if (period_ms && period_ms <= ms) return;
    period_ms = ms;
    const timespec t{ms / 1000, ms % 1000 * 1000000};
    const itimerspec spec{t, t};
    timerfd_settime(timer_fd, 0, &spec, nullptr);
}

void Iface::tick() {
    uint64_t expirations;
    if (read(timer_fd, &expirations, sizeof expirations) < 0) return;
    const int64_t now = now_ms();
    std::vector<Link *> all;
    for (auto &link : links) all.push_back(link.get());
    for (Link *link : all) {
        const bool late = link->deadline && now >= link->deadline;
        if (link->state == Link::kUp || link->state == Link::kAwaitChallenge || link->state == Link::kAwaitVerdict) check_liveness(link);
        else if (link->state == Link::kConnecting && late) {
            const bool met = meetings[link->ep->peer.id].patience_ms < kConnectMs;  // then no setting is to blame
            link->ep->timed_out |= !met;
            try_failed(link, met ? "no answer" : "timed out after " + std::to_string(kConnectMs / 1000) + " s", true);
        } else if ((link->state == Link::kAwaitHello || link->state == Link::kAwaitProof || link->state == Link::kLinger) && late)
            bury(link);
    }
    for (auto &[id, ep] : eps)
        if (ep->retry_at && now >= ep->retry_at && !ep->failed) {
            ep->retry_at = 0;
            if (!ep->trying()) connect(ep);
        } else if (!ep->untried.empty() && now >= ep->next_try) {
            try_next(ep);
        }
    if (!accepting) accepting = watch_listeners(EPOLL_CTL_ADD);
    int64_t next = links.empty() ? 0 : kLivenessMs;
    for (auto &link : links)
        if (link->state != Link::kUp) next = kRetryMs;
    for (auto &[id, ep] : eps)
        if (ep->retry_at) next = kBusyRetryMs;
        else if (!ep->untried.empty() && next != kBusyRetryMs) next = kRetryMs;
    if (!accepting) next = kRetryMs;
    if (!flushing.empty()) next = 1;
    if (next == period_ms) return;
    period_ms = 0;
    if (next) return want_tick(next);
    const itimerspec off{};
    timerfd_settime(timer_fd, 0, &off, nullptr);
}

// Keepalive is silent while data is in flight, and TCP_USER_TIMEOUT would kill a link whose peer merely computes with its window closed.
// So we look ourselves: asked twice in vain (data sent again, an idle peer or a closed window probed), and nothing heard of the peer's
// kernel for a while.
void Iface::check_liveness(Link *link) {
    tcp_info info{};
    socklen_t len = sizeof info;
    if (getsockopt(link->fd, IPPROTO_TCP, TCP_INFO, &info, &len) < 0) return;
    const bool asked = (info.tcpi_unacked && info.tcpi_retransmits >= 2) || info.tcpi_probes >= 2;
    if (!asked || info.tcpi_last_ack_recv < kSilentMs) return;
    if (link->state == Link::kUp) {
        reset(link->fd);
        return link_failed(link, "its host is silent");
    }
    if (link != link->ep->link) return try_failed(link, "its host fell silent", true);
    fail(link->ep, MPX_ERR_LINK_BROKEN, "cannot reach " + describe(link->to) + ": its host fell silent");
}

// ---- ends

void Iface::fail(Ep *ep, mpx_status st, std::string reason) {
    if (ep->failed) return;
    ep->failed = st;
    ep->reason = std::move(reason);
    ep->retry_at = 0;
    broken.push_back(ep);
}

void Iface::link_failed(Link *link, const std::string &reason) {
    Ep *ep = link->ep;
    fail(ep, MPX_ERR_LINK_BROKEN, "the connection to " + describe(link->to) + " broke: " + reason);
    bury(link);
    link->cancel(ep->failed);
}

unsigned Iface::report_broken() {
    unsigned events = 0;
    while (!broken.empty()) {
        Ep *ep = broken.back();
        broken.pop_back();
        if (Link *link = ep->live) {  // a send failed: what the peer sent before is still to be read
            while (!link->fenced && link->state == Link::kUp && link->read_in()) ++events;
            if (link->state == Link::kUp) link_failed(link, "fenced off");
        } else if (ep->link) {
            bury(ep->link);
        }
        drop_tries(ep);
        ++events;
        set_why(ep->reason);
        params.on_error(params.arg, ep, ep->failed);
    }
    return events;
}

void Iface::bury(Link *link) {
    if (link->state == Link::kAwaitHello || link->state == Link::kAwaitProof) --half_open;
    if (link->state == Link::kUp && (link->armed & EPOLLOUT)) --writers;
    if (link->state == Link::kUp) shutdown(link->fd, SHUT_RDWR);  // a forked child may hold it too: closing alone would not end it
    link->hang_up();
    link->state = Link::kDead;
    if (hot == link) hot = nullptr;
    std::erase(flushing, link);
    if (link->ep && link->ep->link == link) link->ep->link = link->ep->live = nullptr;
    if (link->ep) std::erase(link->ep->tries, link);
    const auto at = std::find_if(links.begin(), links.end(), [link](auto &owned) { return owned.get() == link; });
    graveyard.push_back(std::move(*at));
    *at = std::move(links.back());
    links.pop_back();
}

// The ep is gone; what was accepted from it is still sent, then our end is closed and the peer's bytes are discarded until its own EOF:
// closing at once could answer them with a reset that destroys what the peer has not read.
void Iface::linger(Link *link) {
    link->spill_head();
    link->cancel(MPX_ERR_CANCELED);
    if (link->armed & EPOLLOUT) --writers;
    if (hot == link) hot = nullptr;
    link->ep->link = link->ep->live = nullptr;
    link->ep = nullptr;
    link->state = Link::kLinger;
    link->deadline = now_ms() + kLingerMs;
    want_tick(kRetryMs);
    linger_step(link);
}

void Iface::linger_step(Link *link) {
    if (!link->eof)
        for (int i = 0; i < 16; ++i) {
            const ssize_t n = recv(link->fd, link->in.get(), kInCapacity, MSG_DONTWAIT);
            if (n > 0) {
                bytes_received += static_cast<size_t>(n);
                continue;
            }
            if (n == 0) link->eof = true;
            else if (errno != EAGAIN && errno != EINTR) return bury(link);
            break;
        }
    link->write_out();
    if (link->tx_broken) return bury(link);
    if (link->idle_out() && !link->shut) link->shut = shutdown(link->fd, SHUT_WR) == 0;
    if (link->eof && link->idle_out()) return bury(link);
    if (link->eof) link->arm(EPOLLOUT);
}

void Iface::close() {
    while (!eps.empty()) ep_destroy(eps.begin()->second);
    const int64_t end = now_ms() + kCloseMs;
    for (;;) {
        std::vector<Link *> all;
        for (auto &link : links) all.push_back(link.get());
        for (Link *link : all) {
            if (link->state != Link::kLinger) bury(link);
            else linger_step(link);
            if (link->state == Link::kLinger && link->shut && link->acknowledged(link->sent)) bury(link);
        }
        const int64_t left = end - now_ms();
        if (links.empty() || left <= 0) break;
        pollfd p{epoll_fd, POLLIN, 0};
        ::poll(&p, 1, static_cast<int>(std::min<int64_t>(left, 1)));  // acknowledgements raise no event
    }
    std::erase(domain->ifaces, this);
}

// ---- control path

mpx_status iface_open(mpx_domain *domain, const mpx_iface_params *params, mpx_iface **out) {
    auto iface = std::make_unique<Iface>(domain, *params);
    iface->ops = &kOps;
    if (!iface->open()) return MPX_ERR_UNREACHABLE;
    domain->ifaces.push_back(iface.get());
    *out = iface.release();
    return MPX_OK;
}

void iface_close(mpx_iface *self) {
    auto *iface = static_cast<Iface *>(self);
    iface->close();
    delete iface;
}

mpx_status iface_query(mpx_iface *, mpx_iface_attr *attr) {
    mpx_iface_attr a{};
    a.size = std::min(attr->size, sizeof a);
    a.caps = MPX_CAP_AM_SHORT | MPX_CAP_AM_BCOPY | MPX_CAP_AM_ZCOPY | MPX_CAP_GET_ZCOPY | MPX_CAP_CONNECT_IFACE | MPX_CAP_EVENT_FD |
             MPX_CAP_INTER_NODE | MPX_CAP_LINK_MAY_BREAK | MPX_CAP_NATIVE_PROGRESS;
    a.iface_addr_len = sizeof(Address);
    a.rkey_packed_len = sizeof(PackedKey);
    a.max_am_short = a.max_am_bcopy = a.max_am_zcopy = kMaxAm;
    a.max_am_hdr = kMaxHdr;
    a.max_iov = kMaxIov;
    a.max_zcopy = SIZE_MAX;
    // Measured over loopback (README.md): there fragments and gets take equally long at about 160 KiB, and so these say.
    a.latency_s = 2.8e-6;
    a.bandwidth_Bps = 6.8e9;
    a.get_overhead_s = 5e-6;
    a.get_bandwidth_Bps = 8.6e9;
    a.overhead_s = 1.5e-6;
    a.reg_fixed_s = 5e-8;
    a.atomic_domain = MPX_ATOMIC_DOMAIN_NONE;
    const size_t n = a.size;
    memcpy(attr, &a, n);
    return MPX_OK;
}

mpx_status iface_address(mpx_iface *self, void *out) {
    memcpy(out, &static_cast<Iface *>(self)->address, sizeof(Address));
    return MPX_OK;
}

int iface_reachable(mpx_iface *self, const void *addr, size_t len) {
    Address peer;
    if (len != sizeof peer) {
        set_why("tcp: an address of " + std::to_string(len) + " bytes is none of ours");
        return 0;
    }
    memcpy(&peer, addr, sizeof peer);
    const auto *iface = static_cast<Iface *>(self);
    const auto usable = [](const Place &at) { return at.ipv4 != 0 && at.port != 0; };
    if (peer.form != kAddressForm || peer.count == 0 || peer.count > kMaxPlaces ||
        !std::all_of(peer.at.begin(), peer.at.begin() + peer.count, usable))
        set_why("tcp: an address of another form");
    else if (peer.id == iface->address.id) set_why("tcp: " + describe(peer) + " is this process itself");
    else if (iface->places_of(peer).empty())
        set_why("tcp: from " + describe(iface->address) + " no way leads to another host's " + describe(peer) +
                " (loopback, or the same address here); set PYMPX_TCP_INTERFACES");
    else return 1;
    return 0;
}

uint64_t iface_bytes(mpx_iface *self, int received) {
    auto *iface = static_cast<Iface *>(self);
    return received ? iface->bytes_received : iface->bytes_sent;
}

void iface_forked(mpx_iface *self) {
    auto *iface = static_cast<Iface *>(self);
    for (const auto *links : {&iface->links, &iface->graveyard})
        for (const auto &link : *links)
            if (link->fd >= 0) ::close(link->fd);
    for (const int fd : iface->listen_fds) ::close(fd);
    ::close(iface->epoll_fd);
    ::close(iface->timer_fd);
}

}  // namespace mpx::tcp
