// Memory that peers reach: mem_alloc's segments (peers map them: a get is one memcpy, rkey_ptr works) and any other memory
// (process_vm_readv and _writev, tried once per peer by reading its domain's nonce, then used or left alone).
//
// Gets, puts and flushes of an iface run in order, in pieces, inside progress; completions are called there, never in the call.
#include "shm.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace mpx::shm {

namespace {

constexpr size_t kMaxCached = 64;  // mapped segments of peers that no rkey uses

Domain *domain_of(mpx_domain *d) { return reinterpret_cast<Domain *>(d); }
Memh *memh_of(mpx_mem_h m) { return reinterpret_cast<Memh *>(m); }
Rkey *rkey_of(mpx_rkey_h r) { return reinterpret_cast<Rkey *>(r); }

size_t pages(size_t len) { return std::max((len + kPage - 1) / kPage * kPage, kPage); }

// The allocation that holds [addr, addr + len), or null.
const Allocation *find_allocation(const Domain &d, uint64_t addr, size_t len) {
    auto it = d.allocations.upper_bound(addr);
    if (it == d.allocations.begin()) return nullptr;
    const Allocation &a = (--it)->second;
    return addr - it->first <= a.map.size() && len <= a.map.size() - (addr - it->first) ? &a : nullptr;
}

void trim_cache(Domain &d) {
    while (d.mapped.size() > kMaxCached) {
        auto oldest = d.mapped.end();
        for (auto it = d.mapped.begin(); it != d.mapped.end(); ++it) {
            if (it->second.uses == 0 && (oldest == d.mapped.end() || it->second.last_use < oldest->second.last_use)) oldest = it;
        }
        if (oldest == d.mapped.end()) return;
        d.mapped.erase(oldest);
    }
}

// Maps the segment that a key names, once per segment. Null when it cannot be opened, or is not the one that was meant.
MappedSegment *map_segment(Domain &d, const PackedKey &key) {
    if (auto it = d.mapped.find(key.nonce); it != d.mapped.end()) return &it->second;
    const Fd fd = open_fd_of(key.pid, key.fd, O_RDWR | O_NONBLOCK);
    struct stat info {};
    if (!fd || fstat(fd.get(), &info) != 0 || size_t(info.st_size) <= kPage) return nullptr;
    const size_t len = size_t(info.st_size) - kPage;  // the nonce stands in the page behind the memory
    Nonce found;
    if (pread(fd.get(), found.data(), found.size(), off_t(len)) != ssize_t(found.size()) || found != key.nonce) return nullptr;
    if (key.addr < key.base || key.addr - key.base > len || key.len > len - (key.addr - key.base)) return nullptr;
    Mapping map;
    if (map_shared(fd, len, 0, map) != MPX_OK) return nullptr;
    trim_cache(d);
    MappedSegment &segment = d.mapped[key.nonce];
    segment.map = std::move(map);
    return &segment;
}

// Whether process_vm_readv reaches this very peer; asked of the kernel once.
bool vm_reaches(Peer &peer, const PackedKey &key) {
    if (peer.vm == Peer::VmAccess::kUntried) {
        Nonce nonce;
        iovec local{nonce.data(), nonce.size()}, remote{reinterpret_cast<void *>(key.base), nonce.size()};
        const ssize_t n = process_vm_readv(key.pid, &local, 1, &remote, 1, 0);
        peer.vm = n == ssize_t(nonce.size()) && nonce == key.nonce ? Peer::VmAccess::kAllowed : Peer::VmAccess::kRefused;
    }
    return peer.vm == Peer::VmAccess::kAllowed;
}

mpx_status start(mpx_ep *base, Operation::Kind kind, unsigned right, const mpx_iov *iov, size_t iovcnt, uint64_t raddr, mpx_rkey_h key,
                 mpx_completion *completion) {
    Ep *ep = static_cast<Ep *>(base);
    const Rkey *rkey = rkey_of(key);
    if (ep->status != MPX_OK) return ep->status;
    if (!rkey || iovcnt > kMaxIov || rkey->key.pid != ep->peer->address.pid) return MPX_ERR_INVALID;
    Operation op{kind, ep, rkey, raddr, 0, 0, iovcnt, {}, completion};
    for (size_t i = 0; i < iovcnt; ++i) {
        op.iov[i] = iov[i];
        op.len += iov[i].len;
    }
    const PackedKey &k = rkey->key;
    if (!(k.access & right) || raddr < k.addr || raddr - k.addr > k.len || op.len > k.len - (raddr - k.addr)) return MPX_ERR_INVALID;
    if (!rkey->mapped && (k.fd >= 0 || !vm_reaches(*ep->peer, k))) return MPX_ERR_UNSUPPORTED;
    ep->owner().operations.push_back(op);
    return MPX_INPROGRESS;
}

}  // namespace

mpx_status Operation::run(size_t budget) {
    if (kind == Kind::kFlush) return MPX_OK;
    if (ep->status != MPX_OK) return ep->status;
    std::array<iovec, kMaxIov> local;
    size_t n = 0, piece = 0, skip = position;
    for (size_t i = 0; i < iovcnt && piece < budget; ++i) {
        if (skip >= iov[i].len) {
            skip -= iov[i].len;
            continue;
        }
        const size_t take = std::min(iov[i].len - skip, budget - piece);
        local[n++] = iovec{static_cast<std::byte *>(iov[i].base) + skip, take};
        piece += take;
        skip = 0;
    }
    if (rkey->mapped) {
        std::byte *remote = rkey->pointer(raddr + position);
        for (size_t i = 0; i < n; ++i) {
            if (kind == Kind::kGet) memcpy(local[i].iov_base, remote, local[i].iov_len);
            else memcpy(remote, local[i].iov_base, local[i].iov_len);
            remote += local[i].iov_len;
        }
        position += piece;
    } else if (piece) {
        const iovec remote{reinterpret_cast<void *>(raddr + position), piece};
        const pid_t pid = rkey->key.pid;
        const ssize_t got = kind == Kind::kGet ? process_vm_readv(pid, local.data(), n, &remote, 1, 0)
                                               : process_vm_writev(pid, local.data(), n, &remote, 1, 0);
        if (got <= 0) return errno == ESRCH ? MPX_ERR_PEER_FAILED : errno == ENOMEM ? MPX_ERR_NO_MEMORY : MPX_ERR_INVALID;
        position += size_t(got);
        if (ep->peer->exited()) return MPX_ERR_PEER_FAILED;  // else the pid may have been another's already
    }
    return position == len ? MPX_OK : MPX_INPROGRESS;
}

mpx_status get_zcopy(mpx_ep *ep, const mpx_iov *iov, size_t iovcnt, uint64_t raddr, mpx_rkey_h key, mpx_completion *completion) {
    return start(ep, Operation::Kind::kGet, MPX_ACCESS_REMOTE_READ, iov, iovcnt, raddr, key, completion);
}

mpx_status put_zcopy(mpx_ep *ep, const mpx_iov *iov, size_t iovcnt, uint64_t raddr, mpx_rkey_h key, mpx_completion *completion) {
    return start(ep, Operation::Kind::kPut, MPX_ACCESS_REMOTE_WRITE, iov, iovcnt, raddr, key, completion);
}

// Puts that later messages must not overtake are carried out here: a copy, it waits for nobody.
mpx_status ep_fence(mpx_ep *base) {
    Ep *ep = static_cast<Ep *>(base);
    for (Operation &op : ep->owner().operations) {
        if (op.ep != ep || op.kind != Operation::Kind::kPut) continue;
        while (op.position < op.len) {
            if (op.run(SIZE_MAX) < 0) break;  // progress meets the same error and reports it
        }
    }
    return ep->status;
}

// What was published stands in the receiver's own segment: only gets and puts can be outstanding.
mpx_status ep_flush(mpx_ep *base, mpx_completion *completion) {
    Ep *ep = static_cast<Ep *>(base);
    if (ep->status != MPX_OK) return ep->status;
    auto &operations = ep->owner().operations;
    if (std::none_of(operations.begin(), operations.end(), [ep](const Operation &op) { return op.ep == ep; })) return MPX_OK;
    operations.push_back(Operation{Operation::Kind::kFlush, ep, nullptr, 0, 0, 0, 0, {}, completion});
    return MPX_INPROGRESS;
}

mpx_status mem_alloc(mpx_domain *domain, size_t len, void **addr, mpx_mem_h *memh) {
    Domain *d = domain_of(domain);
    mpx_status st;
    const size_t body = pages(len);
    Allocation a{create_segment("pympx-memory", body + kPage, st), Mapping(), random_nonce(), body + kPage};
    if (st != MPX_OK) return st;
    int rc;
    do {
        rc = fallocate(a.fd.get(), 0, 0, off_t(a.file_len));
    } while (rc != 0 && errno == EINTR);
    if (rc != 0) return fail_errno(MPX_ERR_NO_MEMORY, "no memory for an allocation of " + std::to_string(len) + " bytes");
    if (pwrite(a.fd.get(), a.nonce.data(), a.nonce.size(), off_t(body)) != ssize_t(a.nonce.size())) {
        return fail_errno(MPX_ERR_NO_MEMORY, "cannot write to a memfd");
    }
    st = map_shared(a.fd, body, 0, a.map);
    if (st != MPX_OK) return st;
    *addr = a.map.base();
    const uint64_t at = reinterpret_cast<uint64_t>(*addr);
    const auto [it, fresh] = d->allocations.emplace(at, std::move(a));
    const unsigned all = MPX_ACCESS_LOCAL | MPX_ACCESS_REMOTE_READ | MPX_ACCESS_REMOTE_WRITE;
    *memh = reinterpret_cast<mpx_mem_h>(new Memh{at, len, all, &it->second});
    return fresh ? MPX_OK : MPX_ERR_INVALID;
}

// Peers may still have it mapped: the pages are given back at once, whatever they hold.
void mem_free(mpx_domain *domain, void *addr, mpx_mem_h memh) {
    Domain *d = domain_of(domain);
    const auto it = d->allocations.find(reinterpret_cast<uint64_t>(addr));
    delete memh_of(memh);
    if (it == d->allocations.end()) return;
    fallocate(it->second.fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, off_t(it->second.file_len));
    d->allocations.erase(it);
}

mpx_status mem_reg(mpx_domain *domain, void *addr, size_t len, int mem_type, unsigned access, mpx_mem_h *memh) {
    if (mem_type != MPX_MEM_HOST) return fail(MPX_ERR_UNSUPPORTED, "only host memory can be registered");
    const uint64_t at = reinterpret_cast<uint64_t>(addr);
    *memh = reinterpret_cast<mpx_mem_h>(new Memh{at, len, access, find_allocation(*domain_of(domain), at, len)});
    return MPX_OK;
}

mpx_status mem_dereg(mpx_domain *, mpx_mem_h memh) {
    delete memh_of(memh);
    return MPX_OK;
}

mpx_status rkey_pack(mpx_domain *domain, mpx_mem_h memh, void *out, size_t out_len) {
    const Domain *d = domain_of(domain);
    const Memh *m = memh_of(memh);
    if (out_len < sizeof(PackedKey)) return fail(MPX_ERR_INVALID, "a remote key takes " + std::to_string(sizeof(PackedKey)) + " bytes");
    const Allocation *a = m->allocation;
    const void *base = a ? static_cast<const void *>(a->map.base()) : d->nonce.data();
    const PackedKey key{m->addr,   m->len, reinterpret_cast<uint64_t>(base), getpid(), a ? a->fd.get() : -1,
                        m->access, 0,      a ? a->nonce : d->nonce};
    memcpy(out, &key, sizeof key);
    return MPX_OK;
}

mpx_status rkey_unpack(mpx_domain *domain, const void *in, size_t in_len, mpx_rkey_h *rkey) {
    Domain *d = domain_of(domain);
    PackedKey key;
    if (in_len < sizeof key) return fail(MPX_ERR_INVALID, "a remote key takes " + std::to_string(sizeof key) + " bytes");
    memcpy(&key, in, sizeof key);
    MappedSegment *mapped = key.fd >= 0 ? map_segment(*d, key) : nullptr;
    if (mapped) {
        ++mapped->uses;
        mapped->last_use = ++d->clock;
    }
    *rkey = reinterpret_cast<mpx_rkey_h>(new Rkey{key, mapped});
    return MPX_OK;
}

void *rkey_ptr(mpx_domain *, mpx_rkey_h rkey, uint64_t raddr) {
    const Rkey *r = rkey_of(rkey);
    return r->mapped && raddr >= r->key.addr && raddr - r->key.addr < r->key.len ? r->pointer(raddr) : nullptr;
}

void rkey_release(mpx_domain *domain, mpx_rkey_h rkey) {
    Rkey *r = rkey_of(rkey);
    if (r->mapped) --r->mapped->uses;
    delete r;
    trim_cache(*domain_of(domain));
}

}  // namespace mpx::shm
