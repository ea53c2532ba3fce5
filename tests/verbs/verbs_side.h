// One end of a link over the fast path of verbs, without an engine: a domain, its iface, an ep. Whoever has two ends, or a way to another
// process, carries the addresses. Throws std::runtime_error with the step and the transport's reason.
//
// One thread. The end owns what it opened, until close().
#pragma once
#include <dlfcn.h>
#include <pympx/transport.h>

#include <stdexcept>
#include <string>

// The table of a library that verbs_objects.cc became.
inline const mpx_transport *load_table(const char *path) {
    void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!library) throw std::runtime_error(path ? dlerror() : "which library?");
    return reinterpret_cast<const mpx_transport *(*)()>(dlsym(library, MPX_TABLE_SYMBOL))();
}

struct VerbsSide {
    const mpx_transport *table;
    mpx_domain *domain = nullptr;
    mpx_iface *iface = nullptr;
    mpx_ep *ep = nullptr;
    mpx_iface_attr attr{};
    mpx_am_handler am[MPX_AM_ID_MAX];
    uint64_t received = 0;  // messages

    explicit VerbsSide(const mpx_transport *t) : table(t) {
        for (auto &handler : am)
            handler = {[](void *arg, void *, const void *, size_t, void *, size_t, unsigned) {
                           ++static_cast<VerbsSide *>(arg)->received;
                           return mpx_status{MPX_OK};
                       },
                       this};
        const mpx_domain_params dp{sizeof dp, "", "{}", "key", 3};
        const mpx_iface_params ip{sizeof ip, am, nullptr, [](void *, mpx_ep *, mpx_status) { throw std::runtime_error("the link broke"); },
                                  this,      0,  nullptr};
        need("domain_open", table->domain_open(&dp, &domain));
        need("iface_open", table->iface_open(domain, &ip, &iface));
        attr.size = sizeof attr;
        need("iface_query", table->iface_query(iface, &attr));
    }
    VerbsSide(const VerbsSide &) = delete;
    VerbsSide &operator=(const VerbsSide &) = delete;

    void need(const char *step, mpx_status st) const {
        if (st != MPX_OK) throw std::runtime_error(std::string(step) + ": status " + std::to_string(st) + " " + table->why());
    }
    std::string address() const {
        std::string own(attr.iface_addr_len, '\0');
        need("iface_address", table->iface_address(iface, own.data()));
        return own;
    }
    // Makes the ep to a peer; returns what the peer's ep connects to.
    std::string link_to(const std::string &peer) {
        std::string link(attr.ep_addr_len, '\0');
        need("ep_create", table->ep_create(iface, peer.data(), peer.size(), &ep));
        need("ep_address", table->ep_address(ep, link.data()));
        return link;
    }
    void connect(const std::string &to) { need("ep_connect", table->ep_connect(ep, to.data(), to.size())); }
    unsigned progress() { return iface->ops->progress(iface); }
    void close() {
        table->ep_destroy(ep);
        table->iface_close(iface);
        table->domain_close(domain);
    }
};
