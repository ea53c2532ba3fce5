// A transport with a planted fault: wraps the fast path named by FAULTY_LIBRARY and breaks one promise of the contract, named by
// FAULTY_FAULT. It exists so that the conformance suite can be seen to find each fault; with FAULTY_FAULT=none it must pass the whole
// suite.
//
// Ownership: each wrapper object owns the wrapped one. An operation's completion is wrapped by an Op that lives until its iface closes.
#include <dlfcn.h>
#include <pympx/transport.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <list>
#include <optional>
#include <vector>

namespace mpx {
namespace {

enum class Fault {
    kNone,
    kReorder,               // every 37th am_short is overtaken by the next message
    kDrop,                  // every 37th am_short is not sent
    kDuplicate,             // every 37th am_short is sent twice
    kWrongHeader,           // one bit of every 37th header
    kWrongContent,          // one bit of every 37th payload
    kWrongSender,           // messages attributed to nobody's ep
    kDoubleCompletion,      // every 37th completion runs twice
    kLostCompletion,        // every 37th completion never runs
    kEarlyCompletion,       // am_zcopy completes before its bytes were read
    kInlineCompletion,      // completions inside the call
    kInlineHandler,         // handlers inside am_short
    kTouchAfterCompletion,  // a get's destination written once more after its completion
    kShortGet,              // a get leaves out its last byte
    kWidePut,               // a put writes the byte behind its range too
    kBeyondLimit,           // am_bcopy beyond max_am_bcopy is accepted
    kNoBackPressure,        // queues without bound instead of NO_RESOURCE
    kLostWakeup,            // every 50th arm leaves the event deaf
    kBusyProgress,          // progress reports events when idle
    kLostCancel,            // ep_destroy forgets outstanding operations
    kDescriptorReused,      // kept descriptors are overwritten
    kFewBytes,              // iface_bytes counts half
    kKeptByChild,           // iface_forked leaves the descriptors open
    kOverclaims             // advertises CONNECT_EP
};

struct Name {
    const char *name;
    Fault fault;
};
constexpr Name kNames[] = {{"none", Fault::kNone},
                           {"reorder", Fault::kReorder},
                           {"drop", Fault::kDrop},
                           {"duplicate", Fault::kDuplicate},
                           {"wrong_hdr", Fault::kWrongHeader},
                           {"wrong_content", Fault::kWrongContent},
                           {"wrong_sender", Fault::kWrongSender},
                           {"double_completion", Fault::kDoubleCompletion},
                           {"lost_completion", Fault::kLostCompletion},
                           {"early_completion", Fault::kEarlyCompletion},
                           {"inline_completion", Fault::kInlineCompletion},
                           {"inline_handler", Fault::kInlineHandler},
                           {"touch_after_completion", Fault::kTouchAfterCompletion},
                           {"short_get", Fault::kShortGet},
                           {"wide_put", Fault::kWidePut},
                           {"beyond_limit", Fault::kBeyondLimit},
                           {"no_back_pressure", Fault::kNoBackPressure},
                           {"lost_wakeup", Fault::kLostWakeup},
                           {"busy_progress", Fault::kBusyProgress},
                           {"lost_cancel", Fault::kLostCancel},
                           {"descriptor_reused", Fault::kDescriptorReused},
                           {"few_bytes", Fault::kFewBytes},
                           {"kept_by_child", Fault::kKeptByChild},
                           {"overclaims", Fault::kOverclaims}};

[[noreturn]] void die(const char *what, const char *value) {
    std::fprintf(stderr, "faulty: %s: %s\n", what, value ? value : "not set");
    std::exit(3);
}

Fault fault() {
    static const Fault f = [] {
        const char *wanted = std::getenv("FAULTY_FAULT");
        for (const Name &n : kNames)
            if (wanted && std::strcmp(n.name, wanted) == 0) return n.fault;
        die("FAULTY_FAULT names no fault", wanted);
    }();
    return f;
}

const mpx_transport &inner() {
    static const mpx_transport *t = [] {
        const char *path = std::getenv("FAULTY_LIBRARY");
        void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
        void *symbol = library ? dlsym(library, MPX_TABLE_SYMBOL) : nullptr;
        if (!symbol) die("FAULTY_LIBRARY cannot be loaded", path);
        return reinterpret_cast<const mpx_transport *(*)()>(symbol)();
    }();
    return *t;
}

// True once in 37 times that the planted fault comes up.
bool strikes(Fault f, unsigned period = 37) {
    static unsigned times = 0;
    return fault() == f && ++times % period == 0;
}

struct Iface;
struct Ep;

struct Op : mpx_completion {
    Iface *iface;
    mpx_completion *outer;
    void *destination;  // of a get
    bool early;         // may complete before its time
    bool started = false, over = false, reported = false;
};

struct Queued {
    uint8_t id;
    bool is_short;
    uint64_t header;
    std::vector<uint8_t> payload;
};

struct Ep : mpx_ep {
    mpx_ep *wrapped = nullptr;
    std::deque<Queued> queue;    // kNoBackPressure
    std::optional<Queued> held;  // kReorder
    unsigned held_for = 0;       // calls of progress
};

struct Slot {
    Iface *iface;
    uint8_t id;
};

struct Iface : mpx_iface {
    mpx_iface *wrapped = nullptr;
    mpx_iface_params outer{};
    Slot slots[MPX_AM_ID_MAX];
    mpx_am_handler am[MPX_AM_ID_MAX];
    std::list<Op> started;
    std::vector<Ep *> eps;
    std::vector<uint8_t *> to_touch;
    bool destroying = false;
    int deaf_fd = -1;  // an epoll over the wrapped event, sometimes without it
    unsigned arms = 0;
};

Iface *of(mpx_iface *i) { return static_cast<Iface *>(i); }
Ep *of(mpx_ep *e) { return static_cast<Ep *>(e); }
const mpx_iface_ops &wrapped_ops(mpx_ep *e) { return *of(e)->wrapped->iface->ops; }

// ---- completions ----

void done(mpx_completion *self, mpx_status st) {
    Op &op = *static_cast<Op *>(self);
    op.over = true;
    if (op.reported) return;
    if (strikes(Fault::kLostCompletion) || (fault() == Fault::kLostCancel && op.iface->destroying)) return;
    op.reported = true;
    op.outer->done(op.outer, st);
    if (strikes(Fault::kDoubleCompletion)) op.outer->done(op.outer, st);
    if (op.destination && strikes(Fault::kTouchAfterCompletion)) op.iface->to_touch.push_back(static_cast<uint8_t *>(op.destination));
}

template <class F> mpx_status start(mpx_ep *e, mpx_completion *outer, void *destination, bool early, F &&call) {
    Iface *i = of(e->iface);
    Op &op = i->started.emplace_back();
    op.done = done;
    op.iface = i;
    op.outer = outer;
    op.destination = destination;
    op.early = early;
    const mpx_status st = call(&op);
    op.started = st == MPX_INPROGRESS;
    if (st == MPX_INPROGRESS && strikes(Fault::kInlineCompletion)) {
        op.reported = true;
        outer->done(outer, MPX_OK);
    }
    return st;
}

// ---- sending ----

mpx_status send_queued(Ep *e, const Queued &q) {
    const mpx_iface_ops &ops = wrapped_ops(e);
    if (q.is_short) return ops.am_short(e->wrapped, q.id, q.header, q.payload.data(), q.payload.size());
    return ops.am_bcopy(
        e->wrapped, q.id, q.payload.size(),
        [](void *to, void *arg) {
            const auto &p = *static_cast<const std::vector<uint8_t> *>(arg);
            if (!p.empty()) std::memcpy(to, p.data(), p.size());
            return p.size();
        },
        const_cast<std::vector<uint8_t> *>(&q.payload));
}

void release_held(Ep *e) {
    if (e->held && send_queued(e, *e->held) == MPX_OK) e->held.reset();
}

mpx_status am_short(mpx_ep *e, uint8_t id, uint64_t header, const void *buf, size_t len) {
    Ep *ep = of(e);
    const auto *bytes = static_cast<const uint8_t *>(buf);
    const auto copy = [&] { return Queued{id, true, header, {bytes, bytes + len}}; };
    if (!ep->queue.empty()) return ep->queue.push_back(copy()), MPX_OK;
    if (strikes(Fault::kDrop)) return MPX_OK;
    if (!ep->held && strikes(Fault::kReorder)) return ep->held = copy(), ep->held_for = 0, MPX_OK;
    if (strikes(Fault::kWrongHeader)) header ^= uint64_t{1} << 62;
    mpx_status st = wrapped_ops(e).am_short(ep->wrapped, id, header, buf, len);
    if (st == MPX_ERR_NO_RESOURCE && fault() == Fault::kNoBackPressure) return ep->queue.push_back(copy()), MPX_OK;
    if (st != MPX_OK) return st;
    if (strikes(Fault::kDuplicate)) wrapped_ops(e).am_short(ep->wrapped, id, header, buf, len);
    if (strikes(Fault::kInlineHandler)) ep->wrapped->iface->ops->progress(ep->wrapped->iface);
    release_held(ep);
    return st;
}

struct Pack {
    mpx_pack_fn fn;
    void *arg;
};

mpx_status am_bcopy(mpx_ep *e, uint8_t id, size_t len, mpx_pack_fn pack, void *arg) {
    Ep *ep = of(e);
    const auto copy = [&] {
        Queued q{id, false, 0, std::vector<uint8_t>(len)};
        q.payload.resize(pack(q.payload.data(), arg));
        return q;
    };
    if (!ep->queue.empty()) return ep->queue.push_back(copy()), MPX_OK;
    Pack p{pack, arg};
    const mpx_status st = wrapped_ops(e).am_bcopy(
        ep->wrapped, id, len,
        [](void *to, void *x) {
            const auto *inner_pack = static_cast<Pack *>(x);
            const size_t n = inner_pack->fn(to, inner_pack->arg);
            // not in a message that is nothing but its number: that is found as a wrong number
            if (n > sizeof(uint64_t) && strikes(Fault::kWrongContent)) static_cast<uint8_t *>(to)[n - 1] ^= 4;
            return n;
        },
        &p);
    if (st == MPX_ERR_INVALID && fault() == Fault::kBeyondLimit && id < MPX_AM_ID_MAX) return copy(), MPX_OK;
    if (st == MPX_ERR_NO_RESOURCE && fault() == Fault::kNoBackPressure) return ep->queue.push_back(copy()), MPX_OK;
    if (st == MPX_OK) release_held(ep);
    return st;
}

mpx_status am_zcopy(mpx_ep *e, uint8_t id, const void *header, size_t header_len, const mpx_iov *iov, size_t n, mpx_completion *c) {
    const mpx_status st =
        start(e, c, nullptr, true, [&](Op *op) { return wrapped_ops(e).am_zcopy(of(e)->wrapped, id, header, header_len, iov, n, op); });
    if (st == MPX_INPROGRESS) release_held(of(e));
    return st;
}

mpx_status put_zcopy(mpx_ep *e, const mpx_iov *iov, size_t n, uint64_t raddr, mpx_rkey_h key, mpx_completion *c) {
    const mpx_status st =
        start(e, c, nullptr, false, [&](Op *op) { return wrapped_ops(e).put_zcopy(of(e)->wrapped, iov, n, raddr, key, op); });
    if (st < 0 || fault() != Fault::kWidePut) return st;
    static uint8_t one_more = 0x13;
    static mpx_completion nobody{[](mpx_completion *, mpx_status) {}};
    size_t len = 0;
    for (size_t k = 0; k < n; ++k) len += iov[k].len;
    const mpx_iov extra{&one_more, 1, nullptr};
    wrapped_ops(e).put_zcopy(of(e)->wrapped, &extra, 1, raddr + len, key, &nobody);
    return st;
}

mpx_status get_zcopy(mpx_ep *e, const mpx_iov *iov, size_t n, uint64_t raddr, mpx_rkey_h key, mpx_completion *c) {
    std::vector<mpx_iov> pieces(iov, iov + n);
    if (n && pieces.back().len && fault() == Fault::kShortGet) --pieces.back().len;
    void *destination = n && pieces[0].len ? pieces[0].base : nullptr;
    return start(e, c, destination, false,
                 [&](Op *op) { return wrapped_ops(e).get_zcopy(of(e)->wrapped, pieces.data(), n, raddr, key, op); });
}

mpx_status atomic64(mpx_ep *e, unsigned what, uint64_t operand, uint64_t compare, uint64_t *result, uint64_t raddr, mpx_rkey_h key,
                    mpx_completion *c) {
    return start(e, c, nullptr, false,
                 [&](Op *op) { return wrapped_ops(e).atomic64(of(e)->wrapped, what, operand, compare, result, raddr, key, op); });
}

mpx_status ep_fence(mpx_ep *e) { return wrapped_ops(e).ep_fence(of(e)->wrapped); }
mpx_status ep_flush(mpx_ep *e, mpx_completion *c) {
    return start(e, c, nullptr, false, [&](Op *op) { return wrapped_ops(e).ep_flush(of(e)->wrapped, op); });
}

// ---- receiving ----

unsigned progress(mpx_iface *abi) {
    Iface *i = of(abi);
    for (uint8_t *p : i->to_touch) *p ^= 0xff;
    i->to_touch.clear();
    if (fault() == Fault::kEarlyCompletion)
        for (Op &op : i->started)
            if (op.started && op.early && !op.over && !op.reported) op.reported = true, op.outer->done(op.outer, MPX_OK);
    for (Ep *e : i->eps) {
        while (!e->queue.empty() && send_queued(e, e->queue.front()) == MPX_OK) e->queue.pop_front();
        if (e->held && ++e->held_for > 100) release_held(e);
    }
    const unsigned n = i->wrapped->ops->progress(i->wrapped);
    return n || fault() != Fault::kBusyProgress ? n : 1;
}

mpx_status handle(void *arg, void *user, const void *header, size_t header_len, void *data, size_t len, unsigned flags) {
    const Slot &slot = *static_cast<Slot *>(arg);
    const mpx_am_handler &h = slot.iface->outer.am[slot.id];
    void *outer_user = fault() == Fault::kWrongSender ? nullptr : static_cast<Ep *>(user)->user;
    const mpx_status st = h.fn(h.arg, outer_user, header, header_len, data, len, flags);
    if (st == MPX_INPROGRESS && len && strikes(Fault::kDescriptorReused)) static_cast<uint8_t *>(data)[len - 1] ^= 1;
    return st;
}

void desc_release(mpx_iface *i, void *data) { of(i)->wrapped->ops->desc_release(of(i)->wrapped, data); }

int event_fd(mpx_iface *i) { return fault() == Fault::kLostWakeup ? of(i)->deaf_fd : of(i)->wrapped->ops->event_fd(of(i)->wrapped); }

mpx_status event_arm(mpx_iface *abi) {
    Iface *i = of(abi);
    const mpx_status st = i->wrapped->ops->event_arm(i->wrapped);
    if (fault() != Fault::kLostWakeup || st != MPX_OK) return st;
    const int fd = i->wrapped->ops->event_fd(i->wrapped);
    epoll_event ev{EPOLLIN, {}};
    if (++i->arms % 50 == 0) epoll_ctl(i->deaf_fd, EPOLL_CTL_DEL, fd, nullptr);
    else if (i->arms % 50 == 1) epoll_ctl(i->deaf_fd, EPOLL_CTL_ADD, fd, &ev);
    return st;
}

constexpr mpx_iface_ops kOps = {
    sizeof(mpx_iface_ops), am_short,  am_bcopy, am_zcopy, put_zcopy, get_zcopy, atomic64, ep_fence, ep_flush, progress,
    desc_release,          event_arm, event_fd};

// ---- control ----

Ep *wrap(Iface *i) {
    auto *e = new Ep;
    e->iface = i;
    i->eps.push_back(e);
    return e;
}

void forget(Ep *e) {
    std::erase(of(e->iface)->eps, e);
    delete e;
}

mpx_status iface_open(mpx_domain *d, const mpx_iface_params *p, mpx_iface **out) {
    auto *i = new Iface;
    i->ops = &kOps;
    i->outer = *p;
    for (uint8_t id = 0; id < MPX_AM_ID_MAX; ++id) {
        i->slots[id] = {i, id};
        i->am[id] = {handle, &i->slots[id]};
    }
    mpx_iface_params mine = *p;
    mine.am = i->am;
    mine.arg = i;
    mine.on_incoming = [](void *arg, const void *addr, size_t len) -> mpx_ep * {
        auto *self = static_cast<Iface *>(arg);
        mpx_ep *e = self->outer.on_incoming(self->outer.arg, addr, len);
        return e ? of(e)->wrapped : nullptr;
    };
    mine.on_error = [](void *arg, mpx_ep *wrapped, mpx_status st) {
        auto *self = static_cast<Iface *>(arg);
        self->outer.on_error(self->outer.arg, static_cast<Ep *>(wrapped->user), st);
    };
    if (fault() == Fault::kLostWakeup) i->deaf_fd = epoll_create1(EPOLL_CLOEXEC);
    const mpx_status st = inner().iface_open(d, &mine, &i->wrapped);
    if (st == MPX_OK) *out = i;
    else delete i;
    return st;
}

void iface_close(mpx_iface *i) {
    inner().iface_close(of(i)->wrapped);
    if (of(i)->deaf_fd >= 0) close(of(i)->deaf_fd);
    delete of(i);
}

mpx_status iface_query(mpx_iface *i, mpx_iface_attr *a) {
    const mpx_status st = inner().iface_query(of(i)->wrapped, a);
    if (fault() == Fault::kOverclaims && a->size >= sizeof *a) a->caps |= MPX_CAP_CONNECT_EP, a->ep_addr_len = 16;
    return st;
}

mpx_status iface_address(mpx_iface *i, void *out) { return inner().iface_address(of(i)->wrapped, out); }
int iface_reachable(mpx_iface *i, const void *addr, size_t len) { return inner().iface_reachable(of(i)->wrapped, addr, len); }

mpx_status ep_create(mpx_iface *i, const void *addr, size_t len, mpx_ep **out) {
    Ep *e = wrap(of(i));
    const mpx_status st = inner().ep_create(of(i)->wrapped, addr, len, &e->wrapped);
    if (st != MPX_OK) return forget(e), st;
    e->wrapped->user = e;
    *out = e;
    return st;
}

mpx_status ep_address(mpx_ep *e, void *out) { return inner().ep_address(of(e)->wrapped, out); }
mpx_status ep_connect(mpx_ep *e, const void *addr, size_t len) { return inner().ep_connect(of(e)->wrapped, addr, len); }
mpx_status ep_fence_off(mpx_ep *e) { return inner().ep_fence_off(of(e)->wrapped); }
mpx_status ep_repair(mpx_ep *e, const void *addr, size_t len) { return inner().ep_repair(of(e)->wrapped, addr, len); }
mpx_status ep_check(mpx_ep *e, mpx_completion *c) {
    return start(e, c, nullptr, false, [&](Op *op) { return inner().ep_check(of(e)->wrapped, op); });
}

void ep_destroy(mpx_ep *e) {
    of(e->iface)->destroying = true;
    inner().ep_destroy(of(e)->wrapped);
    of(e->iface)->destroying = false;
    forget(of(e));
}

uint64_t iface_bytes(mpx_iface *i, int received) {
    const uint64_t n = inner().iface_bytes(of(i)->wrapped, received);
    return fault() == Fault::kFewBytes ? n / 2 : n;
}

void iface_forked(mpx_iface *i) {
    if (fault() != Fault::kKeptByChild) inner().iface_forked(of(i)->wrapped);
}

const mpx_transport *faulty_table() {
    static const mpx_transport t = [] {
        mpx_transport table = inner();  // domains and memory are the wrapped transport's
        table.iface_open = iface_open;
        table.iface_close = iface_close;
        table.iface_query = iface_query;
        table.iface_address = iface_address;
        table.iface_reachable = iface_reachable;
        table.ep_create = ep_create;
        table.ep_address = ep_address;
        table.ep_connect = ep_connect;
        table.ep_fence_off = ep_fence_off;
        table.ep_repair = ep_repair;
        table.ep_check = ep_check;
        table.ep_destroy = ep_destroy;
        table.iface_bytes = iface_bytes;
        table.iface_forked = iface_forked;
        return table;
    }();
    return &t;
}

}  // namespace
}  // namespace mpx

extern "C" __attribute__((visibility("default"))) const mpx_transport *mpx_transport_table(void) { return mpx::faulty_table(); }
