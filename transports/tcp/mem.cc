// Domains and memory registration: a table entry per registration, nothing pinned. A remote key is the entry's number with its generation
// and a keyed hash of it, so it can be neither guessed nor used after mem_dereg. The domain owns the entries; slots are reused.
#include <sys/mman.h>

#include <cstring>
#include <new>

#include "tcp.hh"

mpx_memh *mpx_domain::find(const mpx::tcp::PackedKey &packed, uint64_t addr, uint64_t len) {
    const uint64_t slot = packed.id >> 32;
    if (slot >= slots.size() || packed.secret != sealer.seal(packed.id)) return nullptr;
    mpx_memh &mem = slots[slot];
    if (!mem.live || mem.id != packed.id || !(mem.access & MPX_ACCESS_REMOTE_READ)) return nullptr;
    const uint64_t base = reinterpret_cast<uint64_t>(mem.addr);
    if (addr < base || addr - base > mem.len || len > mem.len - (addr - base)) return nullptr;
    return &mem;
}

namespace mpx::tcp {

mpx_status domain_open(const mpx_domain_params *params, mpx_domain **out) {
    if (!auth_init()) {
        set_why("tcp: no source of random bytes");
        return MPX_ERR_UNSUPPORTED;
    }
    if (!params->job_key || params->job_key_len == 0) {
        set_why("tcp: no job key; peers cannot be told from strangers");
        return MPX_ERR_INVALID;
    }
    Config config;
    std::string reason;
    if (!parse_config(params->config_json, config, reason)) {
        set_why(std::move(reason));
        return MPX_ERR_INVALID;
    }
    *out = new mpx_domain(config, params->job_key, params->job_key_len);
    return MPX_OK;
}

void domain_close(mpx_domain *domain) { delete domain; }

mpx_status mem_reg(mpx_domain *domain, void *addr, size_t len, int mem_type, unsigned access, mpx_mem_h *out) {
    if (mem_type != MPX_MEM_HOST) return MPX_ERR_UNSUPPORTED;
    if (access & ~(MPX_ACCESS_LOCAL | MPX_ACCESS_REMOTE_READ)) {
        set_why("tcp: peers can read registered memory, not write it");
        return MPX_ERR_UNSUPPORTED;
    }
    uint32_t slot;
    if (domain->free_slots.empty()) {
        slot = static_cast<uint32_t>(domain->slots.size());
        domain->slots.push_back({});
    } else {
        slot = domain->free_slots.back();
        domain->free_slots.pop_back();
    }
    mpx_memh &mem = domain->slots[slot];
    ++mem.generation;
    mem.addr = static_cast<uint8_t *>(addr);
    mem.len = len;
    mem.access = access;
    mem.live = true;
    mem.owned = false;
    mem.id = uint64_t{slot} << 32 | mem.generation;
    mem.serving = 0;
    *out = &mem;
    return MPX_OK;
}

mpx_status mem_dereg(mpx_domain *domain, mpx_mem_h mem) {
    if (!mem || !mem->live) return MPX_ERR_INVALID;
    if (mem->serving)
        for (Iface *iface : domain->ifaces)
            for (auto &link : iface->links) link->withdraw(mem);
    mem->live = false;
    domain->free_slots.push_back(static_cast<uint32_t>(mem->id >> 32));
    return MPX_OK;
}

mpx_status mem_alloc(mpx_domain *domain, size_t len, void **addr, mpx_mem_h *out) {
    if (len == 0) return MPX_ERR_INVALID;
    void *p = mmap(nullptr, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        set_why("tcp: mem_alloc of " + std::to_string(len) + " bytes: " + strerror(errno));
        return MPX_ERR_NO_MEMORY;
    }
    const mpx_status st = mem_reg(domain, p, len, MPX_MEM_HOST, MPX_ACCESS_LOCAL | MPX_ACCESS_REMOTE_READ, out);
    if (st != MPX_OK) {
        munmap(p, len);
        return st;
    }
    (*out)->owned = true;
    *addr = p;
    return MPX_OK;
}

void mem_free(mpx_domain *domain, void *addr, mpx_mem_h mem) {
    if (!mem || !mem->live || !mem->owned || mem->addr != addr) return;
    const size_t len = mem->len;
    mem_dereg(domain, mem);
    munmap(addr, len);
}

mpx_status rkey_pack(mpx_domain *domain, mpx_mem_h mem, void *out, size_t out_len) {
    if (!mem || !mem->live || out_len < sizeof(PackedKey)) return MPX_ERR_INVALID;
    const PackedKey key{mem->id, domain->sealer.seal(mem->id)};
    memcpy(out, &key, sizeof key);
    return MPX_OK;
}

mpx_status rkey_unpack(mpx_domain *, const void *in, size_t in_len, mpx_rkey_h *out) {
    if (in_len != sizeof(PackedKey)) return MPX_ERR_INVALID;
    auto *rkey = new mpx_rkey;
    memcpy(&rkey->key, in, sizeof rkey->key);
    *out = rkey;
    return MPX_OK;
}

void *rkey_ptr(mpx_domain *, mpx_rkey_h, uint64_t) { return nullptr; }

void rkey_release(mpx_domain *, mpx_rkey_h rkey) { delete rkey; }

}  // namespace mpx::tcp
