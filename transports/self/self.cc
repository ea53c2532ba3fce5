// Transport self: a process talks to itself. The smallest transport, and the one to read first: all of the contract, no wire.
//
// A sent message waits in a slot, taken from a pool of kSlots, until progress hands it to its handler; when no slot is free the
// sender hears NO_RESOURCE. A put, get or atomic is done at once, and only its completion waits in a slot: neither handlers nor
// completions ever run inside the call that causes them.
//
// Ownership: a domain owns its registrations, an iface its slots. A slot is free, queued, or kept by a handler as a descriptor.
// Threads: every call is made under the engine's lock, so there is nothing to lock here; `why` is per thread.
#include <pympx/transport.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

namespace mpx {
namespace {

constexpr size_t kSlots = 64;
constexpr size_t kMaxCopied = 8192;     // payload that a slot holds; 64 of them bound the queue to 512 KiB
constexpr size_t kMaxZcopy = 1u << 20;  // one AM from the sender's own buffer
constexpr size_t kMaxHeader = 256;
constexpr size_t kMaxIov = 8;
constexpr size_t kMaxKept = kSlots / 2;  // descriptors that handlers may hold back
constexpr size_t kAddressBytes = 16;
constexpr size_t kAlign = 64;

thread_local std::string last_why;

mpx_status fail(mpx_status st, const char *why) {
    last_why = why;
    return st;
}

// Wraps a control call: no exception crosses the ABI.
template <class F> mpx_status guarded(F &&call) {
    try {
        return call();
    } catch (const std::bad_alloc &) {
        return fail(MPX_ERR_NO_MEMORY, "self: out of memory");
    }
}

// ---- memory ----

struct Registration {
    uint64_t id;
    uintptr_t base;
    size_t len;
    unsigned access;
};

struct PackedKey {
    uint8_t domain[kAddressBytes];
    uint64_t id;
};

struct Domain {
    uint8_t id[kAddressBytes];
    uint64_t next = 1;
    std::unordered_map<uint64_t, std::unique_ptr<Registration>> live;  // by id: a key outlives its registration, never the reverse
};

Domain *from_abi(mpx_domain *d) { return reinterpret_cast<Domain *>(d); }
Registration *from_abi(mpx_mem_h m) { return reinterpret_cast<Registration *>(m); }
// An unpacked key is its registration's id in a pointer's clothes (ids start at 1): nothing to free, nothing to dangle.
uint64_t from_abi(mpx_rkey_h k) { return reinterpret_cast<uintptr_t>(k); }

bool draw(uint8_t (&id)[kAddressBytes]) { return getrandom(id, sizeof id, 0) == static_cast<ssize_t>(sizeof id); }

mpx_status add_registration(Domain *d, void *addr, size_t len, unsigned access, mpx_mem_h *out) {
    auto r = std::make_unique<Registration>(Registration{d->next++, reinterpret_cast<uintptr_t>(addr), len, access});
    *out = reinterpret_cast<mpx_mem_h>(r.get());
    d->live.emplace(r->id, std::move(r));
    return MPX_OK;
}

// The local address of [raddr, raddr+len) when the key's registration lives, covers it and grants `access`; else null.
void *resolve(Domain *d, mpx_rkey_h key, uint64_t raddr, size_t len, unsigned access) {
    const auto it = d->live.find(from_abi(key));
    if (it == d->live.end()) return nullptr;
    const Registration &r = *it->second;
    if ((r.access & access) != access || raddr < r.base || raddr - r.base > r.len || len > r.len - (raddr - r.base)) return nullptr;
    return reinterpret_cast<void *>(raddr);
}

mpx_status domain_open(const mpx_domain_params *p, mpx_domain **out) {
    if (!p || p->size < sizeof *p) return fail(MPX_ERR_INVALID, "self: domain parameters of another ABI version");
    return guarded([&] {
        auto d = std::make_unique<Domain>();
        if (!draw(d->id)) return fail(MPX_ERR_UNSUPPORTED, "self: getrandom failed");
        *out = reinterpret_cast<mpx_domain *>(d.release());
        return mpx_status{MPX_OK};
    });
}

void domain_close(mpx_domain *d) { delete from_abi(d); }

mpx_status mem_alloc(mpx_domain *d, size_t len, void **addr, mpx_mem_h *out) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    if (len > std::numeric_limits<size_t>::max() - page) return fail(MPX_ERR_NO_MEMORY, "self: mem_alloc of more than the address space");
    void *p = std::aligned_alloc(page, std::max(page, (len + page - 1) / page * page));
    if (!p) return fail(MPX_ERR_NO_MEMORY, "self: out of memory");
    const mpx_status st = guarded([&] {
        return add_registration(from_abi(d), p, len, MPX_ACCESS_REMOTE_READ | MPX_ACCESS_REMOTE_WRITE | MPX_ACCESS_REMOTE_ATOMIC, out);
    });
    if (st == MPX_OK) *addr = p;
    else std::free(p);
    return st;
}

mpx_status mem_dereg(mpx_domain *d, mpx_mem_h m) {
    from_abi(d)->live.erase(from_abi(m)->id);
    return MPX_OK;
}

void mem_free(mpx_domain *d, void *addr, mpx_mem_h m) {
    mem_dereg(d, m);
    std::free(addr);
}

mpx_status mem_reg(mpx_domain *d, void *addr, size_t len, int mem_type, unsigned access, mpx_mem_h *out) {
    if (mem_type != MPX_MEM_HOST) return fail(MPX_ERR_UNSUPPORTED, "self: only host memory can be registered");
    return guarded([&] { return add_registration(from_abi(d), addr, len, access, out); });
}

mpx_status rkey_pack(mpx_domain *d, mpx_mem_h m, void *out, size_t out_len) {
    if (out_len < sizeof(PackedKey)) return fail(MPX_ERR_INVALID, "self: rkey_pack needs rkey_packed_len bytes");
    PackedKey key;
    std::memcpy(key.domain, from_abi(d)->id, sizeof key.domain);
    key.id = from_abi(m)->id;
    std::memcpy(out, &key, sizeof key);
    return MPX_OK;
}

mpx_status rkey_unpack(mpx_domain *d, const void *in, size_t in_len, mpx_rkey_h *out) {
    if (in_len < sizeof(PackedKey)) return fail(MPX_ERR_INVALID, "self: the packed key is cut short");
    PackedKey key;
    std::memcpy(&key, in, sizeof key);
    if (std::memcmp(key.domain, from_abi(d)->id, sizeof key.domain) != 0)
        return fail(MPX_ERR_UNREACHABLE, "self: the key belongs to another domain");
    if (!from_abi(d)->live.count(key.id)) return fail(MPX_ERR_INVALID, "self: the key's memory is not registered any more");
    *out = reinterpret_cast<mpx_rkey_h>(static_cast<uintptr_t>(key.id));
    return MPX_OK;
}

void *rkey_ptr(mpx_domain *d, mpx_rkey_h key, uint64_t raddr) { return resolve(from_abi(d), key, raddr, 0, 0); }
void rkey_release(mpx_domain *, mpx_rkey_h) {}

// ---- iface: slots, their queue, and the event that says it is not empty ----

struct Ep : mpx_ep {};

enum class Kind : uint8_t { kCopied, kZcopy, kCompletion };

struct Slot {
    Ep *ep;
    mpx_completion *completion;  // null for kCopied
    Kind kind;
    uint8_t am_id;
    unsigned index;
    uint64_t header;  // of am_short
    size_t header_len, len, iovcnt;
    mpx_iov iov[kMaxIov];  // of kZcopy, whose header stands in the payload
};

struct Iface : mpx_iface {
    Domain *domain;
    mpx_iface_params params;
    uint8_t address[kAddressBytes];
    int fd = -1;
    bool armed = false, signalled = false;
    size_t stride = 0, kept = 0;
    uint64_t sent = 0, received = 0;
    Slot slots[kSlots];
    std::unique_ptr<uint8_t, decltype(&std::free)> payloads{nullptr, &std::free};  // per slot: headroom, payload
    Slot *free[kSlots];
    size_t free_count = 0;
    Slot *queue[kSlots];  // a ring
    size_t head = 0, queued = 0;
    std::vector<uint8_t> gathered;  // an AM of several iovs, for its handler

    ~Iface() {
        if (fd >= 0) close(fd);
    }

    uint8_t *payload(const Slot *s) { return payloads.get() + (s->index + 1) * stride - kMaxCopied; }

    Slot *take(Ep *ep, Kind kind, mpx_completion *completion) {
        if (!free_count) return nullptr;
        Slot *s = free[--free_count];
        s->ep = ep;
        s->kind = kind;
        s->completion = completion;
        return s;
    }

    void release(Slot *s) { free[free_count++] = s; }

    void enqueue(Slot *s) { queue[(head + queued++) % kSlots] = s; }

    Slot *dequeue() {
        Slot *s = queue[head];
        head = (head + 1) % kSlots;
        --queued;
        return s;
    }

    void push(Slot *s) {
        enqueue(s);
        if (armed && !signalled) signalled = eventfd_write(fd, 1) == 0;
    }

    void push_am(Slot *s, uint8_t id, size_t len, size_t header_len) {
        s->am_id = id;
        s->len = len;
        s->header_len = header_len;
        sent += len + header_len;
        push(s);
    }

    mpx_status push_completion(Ep *ep, mpx_completion *completion) {
        Slot *s = take(ep, Kind::kCompletion, completion);
        if (!s) return MPX_ERR_NO_RESOURCE;
        push(s);
        return MPX_INPROGRESS;
    }

    // Null for nothing, the sender's own memory for one piece, a copy for several.
    void *contiguous(const Slot *s) {
        if (s->iovcnt <= 1) return s->iovcnt ? s->iov[0].base : nullptr;
        gathered.clear();
        for (size_t i = 0; i < s->iovcnt; ++i) {
            const auto *p = static_cast<const uint8_t *>(s->iov[i].base);
            gathered.insert(gathered.end(), p, p + s->iov[i].len);
        }
        return gathered.data();
    }

    void run_copied(Slot *s) {
        const mpx_am_handler &h = params.am[s->am_id];
        const unsigned flags = kept < kMaxKept ? unsigned{MPX_AM_F_DESC} : 0u;
        const void *header = s->header_len ? &s->header : nullptr;
        ++kept;  // while it runs, and on when it says so
        if (h.fn(h.arg, s->ep->user, header, s->header_len, payload(s), s->len, flags) == MPX_INPROGRESS && flags) return;
        --kept;
        release(s);
    }

    void run_zcopy(Slot *s) {
        const mpx_am_handler &h = params.am[s->am_id];
        h.fn(h.arg, s->ep->user, payload(s), s->header_len, contiguous(s), s->len, 0);
        finish(s, MPX_OK);
    }

    void finish(Slot *s, mpx_status st) {
        mpx_completion *completion = s->completion;
        release(s);  // first: what `done` sends finds room
        completion->done(completion, st);
    }

    void run(Slot *s) {
        if (s->kind == Kind::kCompletion) return finish(s, MPX_OK);
        received += s->len + s->header_len;
        if (s->kind == Kind::kCopied) return run_copied(s);
        run_zcopy(s);
    }
};

Iface *from_abi(mpx_iface *i) { return static_cast<Iface *>(i); }
Ep *from_abi(mpx_ep *e) { return static_cast<Ep *>(e); }
Iface *iface_of(mpx_ep *e) { return from_abi(e->iface); }

size_t total(const mpx_iov *iov, size_t n) {
    size_t sum = 0;
    for (size_t i = 0; i < n; ++i) sum += iov[i].len;
    return sum;
}

mpx_status am_short(mpx_ep *e, uint8_t id, uint64_t header, const void *buf, size_t len) {
    if (id >= MPX_AM_ID_MAX || len > kMaxCopied) return MPX_ERR_INVALID;
    Iface *i = iface_of(e);
    Slot *s = i->take(from_abi(e), Kind::kCopied, nullptr);
    if (!s) return MPX_ERR_NO_RESOURCE;
    s->header = header;
    if (len) std::memcpy(i->payload(s), buf, len);
    i->push_am(s, id, len, sizeof header);
    return MPX_OK;
}

mpx_status am_bcopy(mpx_ep *e, uint8_t id, size_t len, mpx_pack_fn pack, void *arg) {
    if (id >= MPX_AM_ID_MAX || len > kMaxCopied) return MPX_ERR_INVALID;
    Iface *i = iface_of(e);
    Slot *s = i->take(from_abi(e), Kind::kCopied, nullptr);
    if (!s) return MPX_ERR_NO_RESOURCE;
    i->push_am(s, id, pack(i->payload(s), arg), 0);
    return MPX_OK;
}

mpx_status am_zcopy(mpx_ep *e, uint8_t id, const void *header, size_t header_len, const mpx_iov *iov, size_t iovcnt, mpx_completion *c) {
    if (id >= MPX_AM_ID_MAX || header_len > kMaxHeader || iovcnt > kMaxIov || total(iov, iovcnt) > kMaxZcopy) return MPX_ERR_INVALID;
    Iface *i = iface_of(e);
    Slot *s = i->take(from_abi(e), Kind::kZcopy, c);
    if (!s) return MPX_ERR_NO_RESOURCE;
    if (header_len) std::memcpy(i->payload(s), header, header_len);
    s->iovcnt = iovcnt;
    std::copy_n(iov, iovcnt, s->iov);
    i->push_am(s, id, total(iov, iovcnt), header_len);
    return MPX_INPROGRESS;
}

// put and get differ in who is the source; both count as sent and received, since both ends are here.
template <class Move>
mpx_status move(mpx_ep *e, const mpx_iov *iov, size_t iovcnt, uint64_t raddr, mpx_rkey_h key, unsigned access, mpx_completion *c,
                Move &&copy) {
    Iface *i = iface_of(e);
    const size_t len = total(iov, iovcnt);
    auto *remote = static_cast<uint8_t *>(resolve(i->domain, key, raddr, len, access));
    if (iovcnt > kMaxIov || !remote) return MPX_ERR_INVALID;
    const mpx_status st = i->push_completion(from_abi(e), c);
    if (st != MPX_INPROGRESS) return st;
    for (size_t k = 0; k < iovcnt; remote += iov[k++].len)
        if (iov[k].len) copy(iov[k].base, remote, iov[k].len);
    i->sent += len;
    i->received += len;
    return st;
}

mpx_status put_zcopy(mpx_ep *e, const mpx_iov *iov, size_t iovcnt, uint64_t raddr, mpx_rkey_h key, mpx_completion *c) {
    return move(e, iov, iovcnt, raddr, key, MPX_ACCESS_REMOTE_WRITE, c,
                [](void *local, void *remote, size_t n) { std::memmove(remote, local, n); });
}

mpx_status get_zcopy(mpx_ep *e, const mpx_iov *iov, size_t iovcnt, uint64_t raddr, mpx_rkey_h key, mpx_completion *c) {
    return move(e, iov, iovcnt, raddr, key, MPX_ACCESS_REMOTE_READ, c,
                [](void *local, void *remote, size_t n) { std::memmove(local, remote, n); });
}

// Returns the old value.
uint64_t apply(std::atomic_ref<uint64_t> target, unsigned op, uint64_t operand, uint64_t compare) {
    switch (op) {
        case MPX_ATOMIC_ADD: return target.fetch_add(operand);
        case MPX_ATOMIC_AND: return target.fetch_and(operand);
        case MPX_ATOMIC_OR: return target.fetch_or(operand);
        case MPX_ATOMIC_XOR: return target.fetch_xor(operand);
        case MPX_ATOMIC_SWAP: return target.exchange(operand);
        default: target.compare_exchange_strong(compare, operand); return compare;
    }
}

mpx_status atomic64(mpx_ep *e, unsigned op, uint64_t operand, uint64_t compare, uint64_t *result, uint64_t raddr, mpx_rkey_h key,
                    mpx_completion *c) {
    Iface *i = iface_of(e);
    auto *target = static_cast<uint64_t *>(resolve(i->domain, key, raddr, sizeof(uint64_t), MPX_ACCESS_REMOTE_ATOMIC));
    if (op > MPX_ATOMIC_CSWAP || !target || raddr % alignof(uint64_t)) return MPX_ERR_INVALID;
    const mpx_status st = i->push_completion(from_abi(e), c);
    if (st != MPX_INPROGRESS) return st;
    const uint64_t old = apply(std::atomic_ref(*target), op, operand, compare);
    if (result) *result = old;
    return st;
}

mpx_status ep_fence(mpx_ep *) { return MPX_OK; }  // a put was done before its call returned
mpx_status ep_flush(mpx_ep *e, mpx_completion *c) { return iface_of(e)->push_completion(from_abi(e), c); }

// Only what was queued at the start: handlers that answer each other for ever do not keep their caller here.
unsigned progress(mpx_iface *abi) {
    Iface *i = from_abi(abi);
    const size_t n = i->queued;
    for (size_t k = 0; k < n; ++k) i->run(i->dequeue());
    return static_cast<unsigned>(n);
}

void desc_release(mpx_iface *abi, void *data) {
    Iface *i = from_abi(abi);
    const size_t at = static_cast<size_t>(static_cast<uint8_t *>(data) - i->payloads.get());
    --i->kept;
    i->release(&i->slots[at / i->stride]);
}

// While at most half the slots are kept, a sender that heard NO_RESOURCE can go on exactly when the queue has moved.
mpx_status event_arm(mpx_iface *abi) {
    Iface *i = from_abi(abi);
    if (i->queued) return MPX_ERR_NO_RESOURCE;
    eventfd_t ignored;
    if (i->signalled && eventfd_read(i->fd, &ignored) == 0) i->signalled = false;
    i->armed = true;
    return MPX_OK;
}

int event_fd(mpx_iface *i) { return from_abi(i)->fd; }

constexpr mpx_iface_ops kOps = {
    sizeof(mpx_iface_ops), am_short,  am_bcopy, am_zcopy, put_zcopy, get_zcopy, atomic64, ep_fence, ep_flush, progress,
    desc_release,          event_arm, event_fd};

mpx_status iface_open(mpx_domain *d, const mpx_iface_params *p, mpx_iface **out) {
    if (!p || p->size < sizeof *p || !p->am) return fail(MPX_ERR_INVALID, "self: iface parameters of another ABI version");
    return guarded([&] {
        auto i = std::make_unique<Iface>();
        i->ops = &kOps;
        i->domain = from_abi(d);
        i->params = *p;
        i->stride = (p->rx_headroom + kMaxCopied + kAlign - 1) / kAlign * kAlign;
        i->payloads.reset(static_cast<uint8_t *>(std::aligned_alloc(kAlign, i->stride * kSlots)));
        if (!i->payloads) throw std::bad_alloc();
        for (unsigned k = kSlots; k-- > 0;) {
            i->slots[k].index = k;
            i->release(&i->slots[k]);
        }
        if (!draw(i->address)) return fail(MPX_ERR_UNSUPPORTED, "self: getrandom failed");
        i->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (i->fd < 0) return fail(MPX_ERR_NO_RESOURCE, "self: eventfd failed, probably too many open files (ulimit -n)");
        *out = i.release();
        return mpx_status{MPX_OK};
    });
}

void iface_close(mpx_iface *i) { delete from_abi(i); }

mpx_status iface_query(mpx_iface *, mpx_iface_attr *out) {
    mpx_iface_attr a{};
    a.size = std::min(out->size, sizeof a);
    a.caps = MPX_CAP_AM_SHORT | MPX_CAP_AM_BCOPY | MPX_CAP_AM_ZCOPY | MPX_CAP_PUT_ZCOPY | MPX_CAP_GET_ZCOPY | MPX_CAP_ATOMIC64 |
             MPX_CAP_RKEY_PTR | MPX_CAP_CONNECT_IFACE | MPX_CAP_EVENT_FD | MPX_CAP_NATIVE_PROGRESS;
    a.iface_addr_len = kAddressBytes;
    a.rkey_packed_len = sizeof(PackedKey);
    a.max_am_short = kMaxCopied;
    a.max_am_bcopy = kMaxCopied;
    a.max_am_zcopy = kMaxZcopy;
    a.max_am_hdr = kMaxHeader;
    a.max_iov = kMaxIov;
    a.min_zcopy = 1024;
    a.max_zcopy = std::numeric_limits<size_t>::max();
    a.latency_s = 11e-9;  // the figures: README.md
    a.bandwidth_Bps = 13e9;
    a.get_overhead_s = 10e-9;
    a.get_bandwidth_Bps = 28e9;
    a.overhead_s = 8e-9;
    a.reg_fixed_s = 31e-9;
    a.atomic_domain = MPX_ATOMIC_DOMAIN_CPU;
    std::memcpy(out, &a, a.size);
    return MPX_OK;
}

mpx_status iface_address(mpx_iface *i, void *out) {
    std::memcpy(out, from_abi(i)->address, kAddressBytes);
    return MPX_OK;
}

int iface_reachable(mpx_iface *i, const void *addr, size_t len) {
    if (len == kAddressBytes && std::memcmp(addr, from_abi(i)->address, len) == 0) return 1;
    last_why = "self: the address is not this iface's own";
    return 0;
}

mpx_status ep_create(mpx_iface *i, const void *addr, size_t len, mpx_ep **out) {
    if (!iface_reachable(i, addr, len)) return MPX_ERR_UNREACHABLE;
    return guarded([&] {
        auto e = std::make_unique<Ep>();
        e->iface = i;
        *out = e.release();
        return mpx_status{MPX_OK};
    });
}

// Messages that were queued through the ep go with it: nobody is left to attribute them to.
void ep_destroy(mpx_ep *abi) {
    Iface *i = iface_of(abi);
    std::vector<Slot *> doomed;
    for (size_t n = i->queued; n > 0; --n) {
        Slot *s = i->dequeue();
        if (s->ep == abi) doomed.push_back(s);
        else i->enqueue(s);
    }
    for (Slot *s : doomed) {
        if (s->kind == Kind::kCopied) i->release(s);
        else i->finish(s, s->kind == Kind::kCompletion ? MPX_OK : MPX_ERR_CANCELED);
    }
    delete from_abi(abi);
}

uint64_t iface_bytes(mpx_iface *i, int received) { return received ? from_abi(i)->received : from_abi(i)->sent; }

void iface_forked(mpx_iface *i) {
    if (from_abi(i)->fd >= 0) close(from_abi(i)->fd);
}

const char *why() { return last_why.c_str(); }

mpx_status unsupported(const char *what) { return fail(MPX_ERR_UNSUPPORTED, what); }
mpx_status ep_address(mpx_ep *, void *) { return unsupported("self: eps have no address, they connect by the iface's"); }
mpx_status ep_connect(mpx_ep *, const void *, size_t) { return unsupported("self: eps have no address, they connect by the iface's"); }
mpx_status ep_fence_off(mpx_ep *) { return unsupported("self: there is no link that could break"); }
mpx_status ep_repair(mpx_ep *, const void *, size_t) { return unsupported("self: there is no link that could break"); }
mpx_status domain_supply(mpx_domain *, const char *) { return unsupported("self: it needs nothing of its control path"); }
mpx_status ep_check(mpx_ep *e, mpx_completion *c) { return iface_of(e)->push_completion(from_abi(e), c); }  // who asks is alive

constexpr mpx_transport kTable = {MPX_ABI_VERSION, sizeof(mpx_transport),
                                  "self",          why,
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

}  // namespace
}  // namespace mpx

extern "C" __attribute__((visibility("default"))) const mpx_transport *mpx_transport_table(void) { return &mpx::kTable; }
