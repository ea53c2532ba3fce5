// Domains, and memory that the card may reach: each registration pins its pages until mem_dereg. Keys carry the range and the rights, so
// that an access outside of them is refused here; the card would end the whole link for it.
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "verbs.hh"

namespace mpx::verbs {
namespace {

constexpr unsigned kAllAccess = MPX_ACCESS_LOCAL | MPX_ACCESS_REMOTE_READ | MPX_ACCESS_REMOTE_WRITE | MPX_ACCESS_REMOTE_ATOMIC;

int rights(unsigned access) {
    int r = 0;
    if (access & (MPX_ACCESS_LOCAL | MPX_ACCESS_REMOTE_WRITE | MPX_ACCESS_REMOTE_ATOMIC)) r |= IBV_ACCESS_LOCAL_WRITE;
    if (access & MPX_ACCESS_REMOTE_READ) r |= IBV_ACCESS_REMOTE_READ;
    if (access & MPX_ACCESS_REMOTE_WRITE) r |= IBV_ACCESS_REMOTE_WRITE;
    if (access & MPX_ACCESS_REMOTE_ATOMIC) r |= IBV_ACCESS_REMOTE_ATOMIC;
    return r;
}

ibv_mr *pin(mpx_domain *domain, void *addr, size_t len, int access) {
    ibv_mr *mr = domain->library.reg_mr(domain->config.protection_domain, addr, len, access);
    if (mr) return mr;
    const int error = errno;
    std::string text = "verbs: " + domain->config.device + " does not register " + std::to_string(len) + " bytes: " + describe_errno(error);
    rlimit limit{};
    if (error == ENOMEM && getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        text +=
            "; a process may lock " + std::to_string(limit.rlim_cur >> 10) + " KiB here: raise it (ulimit -l unlimited, or limits.conf)";
    set_why(std::move(text));
    errno = error;
    return nullptr;
}

mpx_status status_of(int error) {
    return error == ENOMEM || error == EAGAIN ? MPX_ERR_NO_MEMORY : error == EFAULT ? MPX_ERR_INVALID : MPX_ERR_UNSUPPORTED;
}

void *map_pages(size_t len) {
    void *p = mmap(nullptr, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p != MAP_FAILED) return p;
    set_why("verbs: " + std::to_string(len) + " bytes of memory: " + describe_errno(errno));
    return nullptr;
}

}  // namespace

bool Pinned::allocate(mpx_domain *domain, size_t bytes) {
    void *p = map_pages(bytes);
    if (!p) return false;
    mr_ = pin(domain, p, bytes, IBV_ACCESS_LOCAL_WRITE);
    if (!mr_) {
        munmap(p, bytes);
        return false;
    }
    domain_ = domain;
    data_ = static_cast<uint8_t *>(p);
    bytes_ = bytes;
    return true;
}

void Pinned::release() {
    if (!mr_) return;
    domain_->library.dereg_mr(mr_);
    munmap(data_, bytes_);
    mr_ = nullptr;
}

mpx_status domain_open(const mpx_domain_params *params, mpx_domain **out) {
    auto domain = std::make_unique<mpx_domain>();
    std::string reason;
    if (!parse_config(params->config_json, domain->config, reason)) {
        set_why(std::move(reason));
        return MPX_ERR_INVALID;
    }
    if (!domain->library.load(reason)) {
        set_why(std::move(reason));
        return MPX_ERR_UNSUPPORTED;
    }
    *out = domain.release();
    return MPX_OK;
}

void domain_close(mpx_domain *domain) { delete domain; }

mpx_status mem_reg(mpx_domain *domain, void *addr, size_t len, int mem_type, unsigned access, mpx_mem_h *out) {
    if (mem_type != MPX_MEM_HOST) return MPX_ERR_UNSUPPORTED;
    if (len == 0 || access & ~kAllAccess) return MPX_ERR_INVALID;
    ibv_mr *mr = pin(domain, addr, len, rights(access));
    if (!mr) return status_of(errno);
    *out = new mpx_memh{mr, addr, len, access, false};
    return MPX_OK;
}

mpx_status mem_dereg(mpx_domain *domain, mpx_mem_h mem) {
    if (!mem) return MPX_ERR_INVALID;
    const int error = domain->library.dereg_mr(mem->mr);
    delete mem;
    return error ? MPX_ERR_INVALID : MPX_OK;
}

mpx_status mem_alloc(mpx_domain *domain, size_t len, void **addr, mpx_mem_h *out) {
    if (len == 0) return MPX_ERR_INVALID;
    void *p = map_pages(len);
    if (!p) return MPX_ERR_NO_MEMORY;
    const mpx_status st = mem_reg(domain, p, len, MPX_MEM_HOST, kAllAccess, out);
    if (st != MPX_OK) {
        munmap(p, len);
        return st;
    }
    (*out)->owned = true;
    *addr = p;
    return MPX_OK;
}

void mem_free(mpx_domain *domain, void *addr, mpx_mem_h mem) {
    if (!mem || !mem->owned || mem->addr != addr) return;
    const size_t len = mem->len;
    mem_dereg(domain, mem);
    munmap(addr, len);
}

mpx_status rkey_pack(mpx_domain *, mpx_mem_h mem, void *out, size_t out_len) {
    if (!mem || out_len < sizeof(PackedKey)) return MPX_ERR_INVALID;
    const PackedKey key{reinterpret_cast<uintptr_t>(mem->addr), mem->len, mem->mr->rkey, mem->access};
    std::memcpy(out, &key, sizeof key);
    return MPX_OK;
}

mpx_status rkey_unpack(mpx_domain *, const void *in, size_t in_len, mpx_rkey_h *out) {
    if (in_len < sizeof(PackedKey)) return MPX_ERR_INVALID;
    auto key = std::make_unique<mpx_rkey>();
    std::memcpy(&key->key, in, sizeof key->key);
    *out = key.release();
    return MPX_OK;
}

void *rkey_ptr(mpx_domain *, mpx_rkey_h, uint64_t) { return nullptr; }

void rkey_release(mpx_domain *, mpx_rkey_h key) { delete key; }

}  // namespace mpx::verbs
