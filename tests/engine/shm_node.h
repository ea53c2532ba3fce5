// A process's side of an shm test: domain, iface, handlers that record, sending that sleeps when there is no space.
// Every child is made by fork, ends by its own check() or by its time limit, and is waited for.
#ifndef PYMPX_TESTS_ENGINE_SHM_NODE_H
#define PYMPX_TESTS_ENGINE_SHM_NODE_H
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include <pympx/transport.h>

extern "C" const mpx_transport *mpx_transport_table(void);

namespace shm_test {

inline constexpr unsigned kLimit = 60;  // seconds that a process of a test may take

// In children and helpers, where a doctest assertion would be lost or slow.
inline void check(bool ok, const char *what, int line) {
    if (ok) return;
    fprintf(stderr, "pid %d, line %d: %s\n", int(getpid()), line, what);
    abort();
}
#define NEED(x) ::shm_test::check((x), #x, __LINE__)

using Bytes = std::vector<unsigned char>;
using Address = Bytes;

struct Got {
    mpx_ep *ep;
    unsigned id;
    uint64_t hdr;
    size_t hdr_len;
    Bytes data;
};

struct Node {
    const mpx_transport *t = mpx_transport_table();
    mpx_domain *domain = nullptr;
    mpx_iface *iface = nullptr;
    mpx_am_handler handlers[MPX_AM_ID_MAX];
    struct Slot {
        Node *node;
        unsigned id;
    } slots[MPX_AM_ID_MAX];
    std::function<void(Got &&)> on_message = [this](Got &&g) { inbox.push_back(std::move(g)); };
    std::function<mpx_ep *(const void *, size_t)> on_incoming = [this](const void *a, size_t n) { return accept(a, n); };
    std::vector<Got> inbox;
    std::vector<std::pair<mpx_ep *, mpx_status>> errors;
    std::vector<mpx_ep *> eps;
    unsigned incoming = 0;
    bool in_progress = false;

    Node() {
        mpx_domain_params dp{sizeof dp, "", "{}", "", 0};
        NEED(t->domain_open(&dp, &domain) == MPX_OK);
        for (unsigned i = 0; i < MPX_AM_ID_MAX; ++i) {
            slots[i] = {this, i};
            handlers[i] = {handle, &slots[i]};
        }
        mpx_iface_params ip{};
        ip.size = sizeof ip;
        ip.am = handlers;
        ip.on_incoming = [](void *arg, const void *a, size_t n) {
            Node *node = static_cast<Node *>(arg);
            ++node->incoming;
            return node->on_incoming(a, n);
        };
        ip.on_error = [](void *arg, mpx_ep *ep, mpx_status st) { static_cast<Node *>(arg)->errors.emplace_back(ep, st); };
        ip.arg = this;
        NEED(t->iface_open(domain, &ip, &iface) == MPX_OK);
    }
    Node(const Node &) = delete;
    ~Node() {
        for (mpx_ep *ep : eps) t->ep_destroy(ep);
        t->iface_close(iface);
        t->domain_close(domain);
    }
    static mpx_status handle(void *arg, void *user, const void *hdr, size_t hdr_len, void *data, size_t len, unsigned) {
        Slot *slot = static_cast<Slot *>(arg);
        NEED(slot->node->in_progress);
        Got g{static_cast<mpx_ep *>(user), slot->id, 0, hdr_len, {}};
        memcpy(&g.hdr, hdr, hdr_len);
        if (len) g.data.assign(static_cast<unsigned char *>(data), static_cast<unsigned char *>(data) + len);
        slot->node->on_message(std::move(g));
        return MPX_OK;
    }
    mpx_ep *accept(const void *a, size_t n) {
        mpx_ep *ep = nullptr;
        if (t->ep_create(iface, a, n, &ep) != MPX_OK) {
            fprintf(stderr, "ep_create: %s\n", t->why());
            abort();
        }
        ep->user = ep;
        eps.push_back(ep);
        return ep;
    }
    mpx_ep *connect(const Address &a) { return accept(a.data(), a.size()); }
    void destroy(mpx_ep *ep) {
        std::erase(eps, ep);
        t->ep_destroy(ep);
    }
    Address address() const {
        mpx_iface_attr attr = attributes();
        Address a(attr.iface_addr_len);
        NEED(t->iface_address(iface, a.data()) == MPX_OK);
        return a;
    }
    mpx_iface_attr attributes() const {
        mpx_iface_attr attr{};
        attr.size = sizeof attr;
        NEED(t->iface_query(iface, &attr) == MPX_OK);
        return attr;
    }
    unsigned progress() {
        in_progress = true;
        const unsigned n = iface->ops->progress(iface);
        in_progress = false;
        return n;
    }
    // Sleeps as the engine does; a sleep that nothing ends is the failure these tests look for.
    void sleep() {
        if (iface->ops->event_arm(iface) != MPX_OK) return void(progress());
        pollfd p{iface->ops->event_fd(iface), POLLIN, 0};
        NEED(poll(&p, 1, 20000) == 1);
        progress();
    }
    void until(const std::function<bool()> &done, unsigned spins = 0) {
        for (unsigned i = 0; !done();) {
            if (i++ < spins) progress();
            else i = 0, sleep();
        }
    }
    mpx_status try_short(mpx_ep *ep, unsigned id, uint64_t hdr, const Bytes &data) {
        return ep->iface->ops->am_short(ep, uint8_t(id), hdr, data.data(), data.size());
    }
    mpx_status try_bcopy(mpx_ep *ep, unsigned id, const Bytes &data) {
        auto pack = [](void *to, void *arg) {
            const Bytes &d = *static_cast<const Bytes *>(arg);
            if (!d.empty()) memcpy(to, d.data(), d.size());
            return d.size();
        };
        return ep->iface->ops->am_bcopy(ep, uint8_t(id), data.size(), pack, const_cast<Bytes *>(&data));
    }
    void send_short(mpx_ep *ep, unsigned id, uint64_t hdr, const Bytes &data, unsigned spins = 0) {
        mpx_status st = MPX_ERR_NO_RESOURCE;
        until([&] { return (st = try_short(ep, id, hdr, data)) != MPX_ERR_NO_RESOURCE; }, spins);
        NEED(st == MPX_OK);
    }
    void send_bcopy(mpx_ep *ep, unsigned id, const Bytes &data, unsigned spins = 0) {
        mpx_status st = MPX_ERR_NO_RESOURCE;
        until([&] { return (st = try_bcopy(ep, id, data)) != MPX_ERR_NO_RESOURCE; }, spins);
        NEED(st == MPX_OK);
    }
};

// A child process with a socket to its parent, for addresses and signs.
struct Child {
    pid_t pid;
    int fd;

    explicit Child(const std::function<void(int)> &body) {
        int ends[2];
        NEED(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        pid = fork();
        NEED(pid >= 0);
        if (pid == 0) {
            close(ends[0]);
            alarm(kLimit);
            body(ends[1]);
            _exit(0);
        }
        close(ends[1]);
        fd = ends[0];
    }
    Child(Child &&o) noexcept : pid(std::exchange(o.pid, -1)), fd(std::exchange(o.fd, -1)) {}
    Child(const Child &) = delete;
    ~Child() {
        if (pid > 0) {
            kill(pid, SIGKILL);
            waitpid(pid, nullptr, 0);
        }
        if (fd >= 0) close(fd);
    }
    // 0: the child ended well.
    int join() {
        int status = -1;
        NEED(waitpid(pid, &status, 0) == pid);
        pid = -1;
        return status;
    }
};

inline void put(int fd, const Bytes &b) { NEED(write(fd, b.data(), b.size()) == ssize_t(b.size())); }
inline Bytes take(int fd, size_t n) {
    Bytes b(n);
    for (size_t at = 0; at < n;) {
        const ssize_t r = read(fd, b.data() + at, n - at);
        NEED(r > 0);
        at += size_t(r);
    }
    return b;
}
inline Address swap_address(int fd, const Node &node) {
    const Address mine = node.address();
    put(fd, mine);
    return take(fd, mine.size());
}

}  // namespace shm_test
#endif
