// A transport in memory for tests of the engine's protocols: the real ABI, and a Fabric through which the test decides when messages and
// completions are delivered, what a posting call answers, and when an ep fails. It counts registrations and keys, so that a test sees
// leaks.
//
// Ownership: a Fabric outlives the engines on it. Threads: none; all engines of a Fabric are driven by one thread, except where a test
// says otherwise and uses a single engine.
#pragma once
#include <pympx/transport.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace mpx::script {

enum class Verb { kShort, kBcopy, kZcopy, kGet, kPut, kAtomic, kFence };
struct Call {
    int from, to;
    Verb verb;
    uint8_t id;
};
struct Packet {
    int from, to;
    uint8_t id;
    std::string header, data;
    uint64_t ep = 0;  // the receiver's, where eps are connected pairwise
};

class Fabric;

struct Ep : mpx_ep {
    int to = -1;
    mpx_status broken = MPX_OK;
    uint64_t number = 0, peer = 0;  // where eps are connected pairwise: its own address, and the one that it is connected to
};
struct Outstanding {
    Ep *ep;
    mpx_completion *completion;
    std::function<void()> effect;  // on memory, when it ends well
    mpx_status status;
    bool remote;  // the effect is on the peer's memory
};
struct Node : mpx_iface {
    Fabric *fabric = nullptr;
    int index = -1;
    mpx_iface_params params{};
    int fd = -1;
    std::vector<std::unique_ptr<Ep>> eps;
    std::deque<Outstanding> outstanding;
    std::vector<Ep *> to_fail;

    Ep *ep_to(int peer) const {
        for (const auto &e : eps)
            if (e->to == peer) return e.get();
        return nullptr;
    }
    Ep *ep_numbered(uint64_t number) const {
        for (const auto &e : eps)
            if (e->number == number) return e.get();
        return nullptr;
    }
    void ring() const { eventfd_write(fd, 1); }
};

class Fabric {
public:
    Fabric() {
        current() = this;
        attr.size = sizeof attr;
        attr.caps = MPX_CAP_AM_SHORT | MPX_CAP_AM_BCOPY | MPX_CAP_AM_ZCOPY | MPX_CAP_GET_ZCOPY | MPX_CAP_CONNECT_IFACE | MPX_CAP_EVENT_FD |
                    MPX_CAP_NATIVE_PROGRESS;
        attr.iface_addr_len = sizeof(uint64_t);
        attr.rkey_packed_len = 16;
        attr.max_am_short = 64;
        attr.max_am_bcopy = 512;
        attr.max_am_zcopy = 4096;
        attr.max_am_hdr = 64;
        attr.max_iov = 1;
        attr.min_zcopy = 256;
        attr.max_zcopy = 1000;  // gets come in pieces
        attr.latency_s = 50e-9;
        attr.bandwidth_Bps = 1e9;
        attr.get_overhead_s = 1.0001e-6;
        attr.get_bandwidth_Bps = 2e9;  // a get pays from 2000 bytes on
    }
    ~Fabric() { current() = nullptr; }
    Fabric(const Fabric &) = delete;
    Fabric &operator=(const Fabric &) = delete;

    // --- what a test sets
    mpx_iface_attr attr{};
    std::function<mpx_status(const Call &)> answer;  // MPX_OK: the call is accepted; anything else is returned, and nothing happened
    bool hold_messages = false;
    bool hold_completions = false;
    bool asynchronous = true;         // zcopy, get, put and atomic answer INPROGRESS
    bool landed = false;              // puts and atomics that a cut ends had their effect all the same
    mpx_status get_outcome = MPX_OK;  // of the completion
    bool refuse_registration = false;
    bool refuse_ep = false;
    int spare_eps = 1 << 30;        // pairwise: that many get an address, then the control path is needed
    std::atomic<bool> busy{false};  // progress always has something to do

    // --- what it may look at
    int registrations = 0, keys = 0;
    uint64_t calls = 0, passes = 0;  // of operations; of progress, by all nodes
    std::deque<Packet> wire;
    std::vector<Node *> nodes;

    void inject(Packet p) {
        Node *to = nodes[p.to];
        wire.push_back(std::move(p));
        if (to) to->ring();
    }
    // The ep of `rank` to `peer` fails at the next progress: outstanding completions end with `st`, then on_error.
    void fail(int rank, int peer, mpx_status st = MPX_ERR_PEER_FAILED) {
        Node *n = nodes[rank];
        Ep *ep = n ? n->ep_to(peer) : nullptr;
        if (!ep || ep->broken != MPX_OK) return;
        ep->broken = st;
        n->to_fail.push_back(ep);
        n->ring();
    }

    bool pairwise() const { return !(attr.caps & MPX_CAP_CONNECT_IFACE); }
    uint64_t next_number = 0;

    // The link between two ranks breaks: what is on its way is lost, gets and sends that are outstanding end.
    void cut(int a, int b) {
        std::erase_if(wire, [a, b](const Packet &p) { return (p.from == a && p.to == b) || (p.from == b && p.to == a); });
        fail(a, b, MPX_ERR_LINK_BROKEN);
        fail(b, a, MPX_ERR_LINK_BROKEN);
    }

    static Fabric *&current() {
        static Fabric *fabric = nullptr;
        return fabric;
    }
};

namespace detail {

struct Region {
    uint64_t address, length;
};

inline Node *node(mpx_iface *i) { return static_cast<Node *>(i); }
inline Node *node(mpx_ep *e) { return static_cast<Node *>(e->iface); }

inline mpx_status ask(mpx_ep *abi, Verb verb, uint8_t id) {
    auto *ep = static_cast<Ep *>(abi);
    Node *n = node(abi);
    if (ep->broken != MPX_OK) return ep->broken;
    if (n->fabric->pairwise() && !ep->peer) return MPX_ERR_NO_RESOURCE;
    n->fabric->calls++;
    return n->fabric->answer ? n->fabric->answer({n->index, ep->to, verb, id}) : MPX_OK;
}
inline void deliver(mpx_ep *abi, uint8_t id, std::string header, std::string data) {
    auto *ep = static_cast<Ep *>(abi);
    node(abi)->fabric->inject({node(abi)->index, ep->to, id, std::move(header), std::move(data), ep->peer});
}
inline std::string bytes(const void *at, size_t n) { return n ? std::string(static_cast<const char *>(at), n) : std::string(); }

inline mpx_status am_short(mpx_ep *ep, uint8_t id, uint64_t header, const void *buffer, size_t length) {
    if (length > node(ep)->fabric->attr.max_am_short) return MPX_ERR_INVALID;
    if (const mpx_status st = ask(ep, Verb::kShort, id)) return st;
    deliver(ep, id, bytes(&header, sizeof header), bytes(buffer, length));
    return MPX_OK;
}
inline mpx_status am_bcopy(mpx_ep *ep, uint8_t id, size_t length, mpx_pack_fn pack, void *arg) {
    if (length > node(ep)->fabric->attr.max_am_bcopy) return MPX_ERR_INVALID;
    if (const mpx_status st = ask(ep, Verb::kBcopy, id)) return st;
    std::string data(length, '\0');
    data.resize(pack(data.data(), arg));
    deliver(ep, id, "", std::move(data));
    return MPX_OK;
}
inline mpx_status hold(mpx_ep *ep, Outstanding o) {
    node(ep)->outstanding.push_back(std::move(o));
    node(ep)->ring();
    return MPX_INPROGRESS;
}
inline mpx_status am_zcopy(mpx_ep *ep, uint8_t id, const void *header, size_t header_length, const mpx_iov *iov, size_t,
                           mpx_completion *completion) {
    Fabric &f = *node(ep)->fabric;
    if (iov->len > f.attr.max_am_zcopy) return MPX_ERR_INVALID;
    if (const mpx_status st = ask(ep, Verb::kZcopy, id)) return st;
    deliver(ep, id, bytes(header, header_length), bytes(iov->base, iov->len));
    return f.asynchronous ? hold(ep, {static_cast<Ep *>(ep), completion, nullptr, MPX_OK, false}) : MPX_OK;
}
inline bool inside(mpx_rkey_h key, uint64_t remote, size_t length) {
    const auto &region = *reinterpret_cast<Region *>(key);
    return remote >= region.address && remote + length <= region.address + region.length;
}
inline mpx_status carry_out(mpx_ep *ep, Outstanding o) {
    if (node(ep)->fabric->asynchronous) return hold(ep, std::move(o));
    if (o.status == MPX_OK) o.effect();
    return o.status;
}
inline mpx_status get_zcopy(mpx_ep *ep, const mpx_iov *iov, size_t, uint64_t remote, mpx_rkey_h key, mpx_completion *completion) {
    Fabric &f = *node(ep)->fabric;
    if (!inside(key, remote, iov->len) || iov->len > f.attr.max_zcopy) return MPX_ERR_INVALID;
    if (const mpx_status st = ask(ep, Verb::kGet, 0)) return st;
    const auto effect = [into = iov->base, remote, n = iov->len] { std::memcpy(into, reinterpret_cast<const void *>(remote), n); };
    return carry_out(ep, {static_cast<Ep *>(ep), completion, effect, f.get_outcome, false});
}
// Lands as late as it may: when it completes, or at a fence.
inline mpx_status put_zcopy(mpx_ep *ep, const mpx_iov *iov, size_t, uint64_t remote, mpx_rkey_h key, mpx_completion *completion) {
    Fabric &f = *node(ep)->fabric;
    if (!(f.attr.caps & MPX_CAP_PUT_ZCOPY)) return MPX_ERR_UNSUPPORTED;
    if (!inside(key, remote, iov->len) || iov->len > f.attr.max_zcopy) return MPX_ERR_INVALID;
    if (const mpx_status st = ask(ep, Verb::kPut, 0)) return st;
    const auto effect = [from = iov->base, remote, n = iov->len] { std::memcpy(reinterpret_cast<void *>(remote), from, n); };
    return carry_out(ep, {static_cast<Ep *>(ep), completion, effect, MPX_OK, true});
}
inline mpx_status atomic64(mpx_ep *ep, unsigned operation, uint64_t operand, uint64_t, uint64_t *result, uint64_t remote, mpx_rkey_h key,
                           mpx_completion *completion) {
    Fabric &f = *node(ep)->fabric;
    if (!(f.attr.caps & MPX_CAP_ATOMIC64) || operation != MPX_ATOMIC_ADD) return MPX_ERR_UNSUPPORTED;
    if (!inside(key, remote, sizeof(uint64_t))) return MPX_ERR_INVALID;
    if (const mpx_status st = ask(ep, Verb::kAtomic, 0)) return st;
    const auto effect = [operand, result, word = reinterpret_cast<uint64_t *>(remote)] {
        *result = *word;
        *word += operand;
    };
    return carry_out(ep, {static_cast<Ep *>(ep), completion, effect, MPX_OK, true});
}
inline mpx_status ep_fence(mpx_ep *ep) {
    if (const mpx_status st = ask(ep, Verb::kFence, 0)) return st;
    for (Outstanding &o : node(ep)->outstanding)
        if (o.ep == ep && o.remote && o.effect) std::exchange(o.effect, nullptr)();
    return MPX_OK;
}
inline mpx_status ep_flush(mpx_ep *, mpx_completion *) { return MPX_OK; }

inline void finish(const Outstanding &o, mpx_status st, bool landed = false) {
    if (o.effect && (st == MPX_OK || (landed && o.remote))) o.effect();
    o.completion->done(o.completion, st);
}
// Ends all that `ep` has outstanding, whatever is held.
inline void drop(Node *n, const Ep *ep, mpx_status st) {
    for (size_t left = n->outstanding.size(); left > 0; left--) {
        const Outstanding o = n->outstanding.front();
        n->outstanding.pop_front();
        if (o.ep == ep) finish(o, st, n->fabric->landed);
        else n->outstanding.push_back(o);
    }
}
inline unsigned progress(mpx_iface *i) {
    Node *n = node(i);
    Fabric &f = *n->fabric;
    unsigned events = f.busy ? 1 : 0;
    ++f.passes;
    std::deque<Packet> mail, later;  // what handlers send meanwhile comes behind what is on the wire
    if (!f.hold_messages) {
        const auto mine = std::stable_partition(f.wire.begin(), f.wire.end(), [n](const Packet &p) { return p.to != n->index; });
        mail.assign(std::move_iterator(mine), std::move_iterator(f.wire.end()));
        f.wire.erase(mine, f.wire.end());
    }
    for (Packet &p : mail) {
        events++;
        if (f.pairwise()) {
            Ep *to = n->ep_numbered(p.ep);
            if (!to || !to->peer || to->broken != MPX_OK) {  // the card there does not answer
                f.fail(p.from, p.to, MPX_ERR_LINK_BROKEN);
                continue;
            }
        }
        const uint64_t address = static_cast<uint64_t>(p.from);
        mpx_ep *ep = f.pairwise() ? n->ep_numbered(p.ep) : n->ep_to(p.from);
        if (!ep) ep = n->params.on_incoming(n->params.arg, &address, sizeof address);
        if (ep && static_cast<Ep *>(ep)->broken == MPX_ERR_LINK_BROKEN) {  // of the next link; this one is still to be cleared away
            later.push_back(std::move(p));
            continue;
        }
        if (!ep || static_cast<Ep *>(ep)->broken != MPX_OK) continue;
        // Exactly as long as the message: a sanitizer sees each byte read beyond.
        std::unique_ptr<char[]> header(p.header.empty() ? nullptr : new char[p.header.size()]), data(new char[p.data.size()]);
        std::copy(p.header.begin(), p.header.end(), header.get());
        std::copy(p.data.begin(), p.data.end(), data.get());
        n->params.am[p.id].fn(n->params.am[p.id].arg, ep->user, header.get(), p.header.size(), data.get(), p.data.size(), 0);
    }
    f.wire.insert(f.wire.begin(), std::move_iterator(later.begin()), std::move_iterator(later.end()));
    for (size_t left = f.hold_completions ? 0 : n->outstanding.size(); left > 0; left--) {
        const Outstanding o = n->outstanding.front();
        n->outstanding.pop_front();
        events++;
        finish(o, o.status);
    }
    while (!n->to_fail.empty()) {
        Ep *ep = n->to_fail.back();
        n->to_fail.pop_back();
        events++;
        drop(n, ep, ep->broken);
        n->params.on_error(n->params.arg, ep, ep->broken);
    }
    return events;
}
inline void desc_release(mpx_iface *, void *) {}
inline mpx_status event_arm(mpx_iface *i) {
    Node *n = node(i);
    Fabric &f = *n->fabric;
    eventfd_t drained;
    eventfd_read(n->fd, &drained);
    if (f.busy) n->ring();
    const bool mail = !f.hold_messages && std::any_of(f.wire.begin(), f.wire.end(), [n](const Packet &p) { return p.to == n->index; });
    return mail || (!f.hold_completions && !n->outstanding.empty()) || !n->to_fail.empty() ? MPX_ERR_NO_RESOURCE : MPX_OK;
}
inline int event_fd(mpx_iface *i) { return node(i)->fd; }

inline const char *why() { return ""; }
inline mpx_status domain_open(const mpx_domain_params *, mpx_domain **out) {
    *out = reinterpret_cast<mpx_domain *>(Fabric::current());
    return MPX_OK;
}
inline Fabric &fabric(mpx_domain *d) { return *reinterpret_cast<Fabric *>(d); }
inline void domain_close(mpx_domain *) {}
inline mpx_status mem_alloc(mpx_domain *, size_t, void **, mpx_mem_h *) { return MPX_ERR_UNSUPPORTED; }
inline void mem_free(mpx_domain *, void *, mpx_mem_h) {}
inline mpx_status mem_reg(mpx_domain *d, void *at, size_t length, int, unsigned, mpx_mem_h *out) {
    if (fabric(d).refuse_registration) return MPX_ERR_UNSUPPORTED;
    fabric(d).registrations++;
    *out = reinterpret_cast<mpx_mem_h>(new Region{reinterpret_cast<uint64_t>(at), length});
    return MPX_OK;
}
inline mpx_status mem_dereg(mpx_domain *d, mpx_mem_h m) {
    fabric(d).registrations--;
    delete reinterpret_cast<Region *>(m);
    return MPX_OK;
}
inline mpx_status rkey_pack(mpx_domain *, mpx_mem_h m, void *out, size_t) {
    std::memcpy(out, reinterpret_cast<Region *>(m), sizeof(Region));
    return MPX_OK;
}
inline mpx_status rkey_unpack(mpx_domain *d, const void *in, size_t length, mpx_rkey_h *out) {
    if (length != sizeof(Region)) return MPX_ERR_INVALID;
    auto *region = new Region;
    std::memcpy(region, in, sizeof *region);
    fabric(d).keys++;
    *out = reinterpret_cast<mpx_rkey_h>(region);
    return MPX_OK;
}
inline void *rkey_ptr(mpx_domain *, mpx_rkey_h, uint64_t) { return nullptr; }
inline void rkey_release(mpx_domain *d, mpx_rkey_h key) {
    fabric(d).keys--;
    delete reinterpret_cast<Region *>(key);
}
inline constexpr mpx_iface_ops kOps = {
    sizeof(mpx_iface_ops), am_short,  am_bcopy, am_zcopy, put_zcopy, get_zcopy, atomic64, ep_fence, ep_flush, progress,
    desc_release,          event_arm, event_fd};
inline mpx_status iface_open(mpx_domain *d, const mpx_iface_params *params, mpx_iface **out) {
    auto *n = new Node;
    n->ops = &kOps;
    n->fabric = &fabric(d);
    n->index = static_cast<int>(n->fabric->nodes.size());
    n->params = *params;
    n->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    n->fabric->nodes.push_back(n);
    *out = n;
    return MPX_OK;
}
inline void iface_close(mpx_iface *i) {
    Node *n = node(i);
    n->fabric->nodes[n->index] = nullptr;
    ::close(n->fd);
    delete n;
}
inline mpx_status iface_query(mpx_iface *i, mpx_iface_attr *out) {
    *out = node(i)->fabric->attr;
    return MPX_OK;
}
inline mpx_status iface_address(mpx_iface *i, void *out) {
    const auto address = static_cast<uint64_t>(node(i)->index);
    std::memcpy(out, &address, sizeof address);
    return MPX_OK;
}
inline int iface_reachable(mpx_iface *, const void *, size_t) { return 1; }
inline mpx_status ep_create(mpx_iface *i, const void *address, size_t, mpx_ep **out) {
    if (node(i)->fabric->refuse_ep) return MPX_ERR_UNREACHABLE;
    auto ep = std::make_unique<Ep>();
    uint64_t to;
    std::memcpy(&to, address, sizeof to);
    ep->iface = i;
    ep->to = static_cast<int>(to);
    *out = ep.get();
    node(i)->eps.push_back(std::move(ep));
    return MPX_OK;
}
inline mpx_status ready(mpx_ep *e) {
    auto *ep = static_cast<Ep *>(e);
    Node *n = node(e);
    if (!n->fabric->pairwise()) return MPX_ERR_UNSUPPORTED;
    if (ep->number) return MPX_OK;
    if (n->fabric->spare_eps == 0) {
        n->params.need_control(n->params.arg);
        return MPX_ERR_NO_RESOURCE;
    }
    n->fabric->spare_eps--;
    ep->number = ++n->fabric->next_number;
    return MPX_OK;
}
inline mpx_status ep_address(mpx_ep *ep, void *out) {
    if (const mpx_status st = ready(ep)) return st;
    std::memcpy(out, &static_cast<Ep *>(ep)->number, sizeof(uint64_t));
    return MPX_OK;
}
inline mpx_status ep_connect(mpx_ep *ep, const void *address, size_t) {
    if (const mpx_status st = ready(ep)) return st;
    std::memcpy(&static_cast<Ep *>(ep)->peer, address, sizeof(uint64_t));
    return MPX_OK;
}
inline mpx_status ep_fence_off(mpx_ep *) { return MPX_ERR_UNSUPPORTED; }
inline mpx_status ep_repair(mpx_ep *, const void *, size_t) { return MPX_ERR_UNSUPPORTED; }
inline mpx_status ep_check(mpx_ep *, mpx_completion *) { return MPX_ERR_UNSUPPORTED; }
// What the peer's memory still gives is delivered; the rest of a get finds the ep gone.
inline void ep_destroy(mpx_ep *e) {
    Node *n = node(e);
    bool first = true;
    for (size_t left = n->outstanding.size(); left > 0; left--) {
        const Outstanding o = n->outstanding.front();
        n->outstanding.pop_front();
        if (o.ep != e) n->outstanding.push_back(o);
        else finish(o, std::exchange(first, false) ? o.status : MPX_ERR_CANCELED);
    }
    std::erase_if(n->to_fail, [e](const Ep *other) { return other == e; });
    std::erase_if(n->eps, [e](const auto &other) { return other.get() == e; });
}
inline uint64_t iface_bytes(mpx_iface *, int) { return 0; }
inline void iface_forked(mpx_iface *) {}
inline mpx_status domain_supply(mpx_domain *d, const char *eps) {
    fabric(d).spare_eps = std::atoi(eps);
    return MPX_OK;
}

inline constexpr mpx_transport kTable = {MPX_ABI_VERSION, sizeof(mpx_transport),
                                         "scripted",      why,
                                         domain_open,     domain_close,
                                         mem_alloc,       mem_free,
                                         mem_reg,         mem_dereg,
                                         rkey_pack,       rkey_unpack,
                                         rkey_ptr,        rkey_release,
                                         iface_open,      iface_close,
                                         iface_query,     iface_address,
                                         iface_reachable, ep_create,
                                         ep_address,      ep_connect,
                                         ep_fence_off,    ep_repair,
                                         ep_check,        ep_destroy,
                                         iface_bytes,     iface_forked,
                                         domain_supply};

}  // namespace detail
}  // namespace mpx::script
