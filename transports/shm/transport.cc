// The tables of the ABI and the control entries: domain, iface, ep. No exception leaves this file.
#include "shm.h"

#include <sys/mman.h>

#include <algorithm>

namespace mpx::shm {

namespace {

// What the transport says of itself. Times and rates: bench/shm_pingpong, see README.md.
constexpr double kLatency = 0.2e-6, kBandwidth = 13e9, kGetOverhead = 0.8e-6, kGetBandwidth = 9.5e9, kOverhead = 0.06e-6;

Iface *iface_of(mpx_iface *i) { return static_cast<Iface *>(i); }

mpx_status domain_open(const mpx_domain_params *, mpx_domain **out) {
    return guard([&]() -> mpx_status {
        auto domain = std::make_unique<Domain>();
        domain->nonce = random_nonce();
        *out = reinterpret_cast<mpx_domain *>(domain.release());
        return MPX_OK;
    });
}

void domain_close(mpx_domain *domain) { delete reinterpret_cast<Domain *>(domain); }

mpx_status get_domain_memory(mpx_domain *d, size_t len, void **addr, mpx_mem_h *memh) {
    return guard([&] { return mem_alloc(d, len, addr, memh); });
}
mpx_status register_memory(mpx_domain *d, void *addr, size_t len, int type, unsigned access, mpx_mem_h *memh) {
    return guard([&] { return mem_reg(d, addr, len, type, access, memh); });
}
mpx_status unpack_key(mpx_domain *d, const void *in, size_t len, mpx_rkey_h *rkey) {
    return guard([&] { return rkey_unpack(d, in, len, rkey); });
}

mpx_status am_zcopy(mpx_ep *, uint8_t, const void *, size_t, const mpx_iov *, size_t, mpx_completion *) { return MPX_ERR_UNSUPPORTED; }
mpx_status atomic64(mpx_ep *, unsigned, uint64_t, uint64_t, uint64_t *, uint64_t, mpx_rkey_h, mpx_completion *) {
    return MPX_ERR_UNSUPPORTED;
}
mpx_status put(mpx_ep *ep, const mpx_iov *iov, size_t n, uint64_t raddr, mpx_rkey_h key, mpx_completion *c) {
    return guard([&] { return put_zcopy(ep, iov, n, raddr, key, c); });
}
mpx_status get(mpx_ep *ep, const mpx_iov *iov, size_t n, uint64_t raddr, mpx_rkey_h key, mpx_completion *c) {
    return guard([&] { return get_zcopy(ep, iov, n, raddr, key, c); });
}
mpx_status flush(mpx_ep *ep, mpx_completion *c) {
    return guard([&] { return ep_flush(ep, c); });
}
unsigned progress(mpx_iface *iface) { return iface_of(iface)->progress(); }
void desc_release(mpx_iface *, void *) {}
mpx_status event_arm(mpx_iface *iface) { return iface_of(iface)->arm(); }
int event_fd(mpx_iface *iface) { return iface_of(iface)->epoll.get(); }

constexpr mpx_iface_ops kOps = {
    .size = sizeof(mpx_iface_ops),
    .am_short = am_short,
    .am_bcopy = am_bcopy,
    .am_zcopy = am_zcopy,
    .put_zcopy = put,
    .get_zcopy = get,
    .atomic64 = atomic64,
    .ep_fence = ep_fence,
    .ep_flush = flush,
    .progress = progress,
    .desc_release = desc_release,
    .event_arm = event_arm,
    .event_fd = event_fd,
};

mpx_status iface_open(mpx_domain *domain, const mpx_iface_params *params, mpx_iface **out) {
    return guard([&]() -> mpx_status {
        auto iface = std::make_unique<Iface>();
        iface->ops = &kOps;
        const mpx_status st = iface->open(reinterpret_cast<Domain *>(domain), *params);
        if (st == MPX_OK) *out = iface.release();
        return st;
    });
}

void iface_close(mpx_iface *iface) { delete iface_of(iface); }

mpx_status iface_query(mpx_iface *, mpx_iface_attr *attr) {
    mpx_iface_attr a{};
    a.caps = MPX_CAP_AM_SHORT | MPX_CAP_AM_BCOPY | MPX_CAP_GET_ZCOPY | MPX_CAP_PUT_ZCOPY | MPX_CAP_RKEY_PTR | MPX_CAP_CONNECT_IFACE |
             MPX_CAP_EVENT_FD | MPX_CAP_NATIVE_PROGRESS;
    a.iface_addr_len = sizeof(Address);
    a.rkey_packed_len = sizeof(PackedKey);
    a.max_am_short = kMaxShort;
    a.max_am_bcopy = kMaxBcopy;
    a.max_iov = kMaxIov;
    a.max_zcopy = SIZE_MAX / 2;
    a.latency_s = kLatency;
    a.bandwidth_Bps = kBandwidth;
    a.get_overhead_s = kGetOverhead;
    a.get_bandwidth_Bps = kGetBandwidth;
    a.overhead_s = kOverhead;
    a.atomic_domain = MPX_ATOMIC_DOMAIN_NONE;
    a.size = std::min(attr->size, sizeof a);
    memcpy(attr, &a, a.size);
    return MPX_OK;
}

mpx_status iface_address(mpx_iface *iface, void *out) {
    memcpy(out, &iface_of(iface)->address, sizeof(Address));
    return MPX_OK;
}

mpx_status parse_address(const void *addr, size_t len, Address &out) {
    if (len != sizeof out)
        return fail(MPX_ERR_INVALID, "an address takes " + std::to_string(sizeof out) + " bytes, not " + std::to_string(len));
    memcpy(&out, addr, sizeof out);
    return MPX_OK;
}

int iface_reachable(mpx_iface *, const void *addr, size_t len) {
    return guard([&]() -> mpx_status {
               Address address;
               const mpx_status st = parse_address(addr, len, address);
               Fd segment;
               return st != MPX_OK ? st : open_segment(address, segment);
           }) == MPX_OK;
}

mpx_status ep_create(mpx_iface *base, const void *addr, size_t len, mpx_ep **out) {
    return guard([&]() -> mpx_status {
        Iface *iface = iface_of(base);
        Address address;
        mpx_status st = parse_address(addr, len, address);
        if (st != MPX_OK) return st;
        auto ep = std::make_unique<Ep>();
        Peer *peer;
        st = iface->find_peer(address, peer);
        if (st != MPX_OK) return st;
        if (!peer->dead && !peer->header) {
            Fd segment;
            st = open_segment(address, segment);
            if (st == MPX_OK) st = map_shared(segment, kHeaderBytes, 0, peer->header);
            if (st == MPX_OK) madvise(peer->header.base(), kHeaderBytes, MADV_DONTFORK);
        } else if (peer->dead && !iface->attributing) {
            Fd segment;
            st = open_segment(address, segment);  // names the reason
            if (st == MPX_OK) st = fail(MPX_ERR_UNREACHABLE, "process " + std::to_string(address.pid) + " has ended");
        }
        if (st != MPX_OK) {
            iface->drop_peer_if_unused(peer);
            return st;
        }
        ep->iface = iface;
        ep->peer = peer;
        peer->eps.push_back(ep.get());
        *out = ep.release();
        return MPX_OK;
    });
}

mpx_status ep_address(mpx_ep *, void *) { return MPX_ERR_UNSUPPORTED; }
mpx_status ep_connect(mpx_ep *, const void *, size_t) { return MPX_ERR_UNSUPPORTED; }
mpx_status ep_repair(mpx_ep *, const void *, size_t) { return MPX_ERR_UNSUPPORTED; }

// Links do not break: nothing comes any more only from a process that has ended.
mpx_status ep_fence_off(mpx_ep *base) { return static_cast<Ep *>(base)->peer->dead ? MPX_OK : MPX_ERR_UNSUPPORTED; }

mpx_status ep_check(mpx_ep *base, mpx_completion *) {
    const Ep *ep = static_cast<Ep *>(base);
    if (ep->status != MPX_OK) return ep->status;
    return ep->peer->dead || ep->peer->exited() ? MPX_ERR_PEER_FAILED : MPX_OK;
}

void ep_destroy(mpx_ep *base) {
    Ep *ep = static_cast<Ep *>(base);
    ep->owner().destroy_ep(ep);
}

mpx_status domain_supply(mpx_domain *, const char *) { return MPX_ERR_UNSUPPORTED; }
void iface_forked(mpx_iface *iface) { iface_of(iface)->forked(); }
uint64_t iface_bytes(mpx_iface *iface, int received) { return received ? iface_of(iface)->bytes_received : iface_of(iface)->bytes_sent; }

constexpr mpx_transport kTransport = {
    .abi_version = MPX_ABI_VERSION,
    .size = sizeof(mpx_transport),
    .name = "shm",
    .why = last_reason,
    .domain_open = domain_open,
    .domain_close = domain_close,
    .mem_alloc = get_domain_memory,
    .mem_free = mem_free,
    .mem_reg = register_memory,
    .mem_dereg = mem_dereg,
    .rkey_pack = rkey_pack,
    .rkey_unpack = unpack_key,
    .rkey_ptr = rkey_ptr,
    .rkey_release = rkey_release,
    .iface_open = iface_open,
    .iface_close = iface_close,
    .iface_query = iface_query,
    .iface_address = iface_address,
    .iface_reachable = iface_reachable,
    .ep_create = ep_create,
    .ep_address = ep_address,
    .ep_connect = ep_connect,
    .ep_fence_off = ep_fence_off,
    .ep_repair = ep_repair,
    .ep_check = ep_check,
    .ep_destroy = ep_destroy,
    .iface_bytes = iface_bytes,
    .iface_forked = iface_forked,
    .domain_supply = domain_supply,
};

}  // namespace

}  // namespace mpx::shm

extern "C" [[gnu::visibility("default")]] const mpx_transport *mpx_transport_table(void) { return &mpx::shm::kTransport; }
