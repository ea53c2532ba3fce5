// A trampoline (transports in Python) as a fast path that reaches only itself, for the conformance suite. Who includes this says what moves
// messages between the trampoline's queues: `open_medium`. Each call of progress moves first, as a wait of the skin does.
//
// One domain and its iface have a medium each, since a process has as many trampolines as transports in Python.
#pragma once
#include <map>
#include <memory>
#include <string>

#include "trampoline/trampoline.h"

namespace mpx {

struct Medium {
    virtual ~Medium() = default;
    virtual std::string device() = 0;
    virtual void move() = 0;
};
std::unique_ptr<Medium> open_medium();
const mpx_transport *trampoline_table();  // of any trampoline: all have the same entries

namespace looped {

struct Loop {
    std::unique_ptr<Medium> medium;
    mpx_iface_ops ops;
    const mpx_iface_ops *inner_ops = nullptr;
};

inline std::map<const void *, std::unique_ptr<Loop>> loops;  // by domain and, without owning, found by iface
inline std::map<const mpx_iface *, Loop *> by_iface;
inline const mpx_transport *any = nullptr;
inline thread_local std::string last_why;

inline mpx_status domain_open(const mpx_domain_params *params, mpx_domain **out) {
    auto loop = std::make_unique<Loop>();
    loop->medium = open_medium();
    const std::string device = loop->medium->device();
    mpx_domain_params mine = *params;
    mine.device = device.c_str();
    const mpx_status st = any->domain_open(&mine, out);
    if (st == MPX_OK) loops[*out] = std::move(loop);
    return st;
}

inline void domain_close(mpx_domain *d) {
    any->domain_close(d);
    loops.erase(d);
}

inline unsigned progress(mpx_iface *i) {
    by_iface.at(i)->medium->move();
    return by_iface.at(i)->inner_ops->progress(i);
}

inline mpx_status iface_open(mpx_domain *d, const mpx_iface_params *params, mpx_iface **out) {
    const mpx_status st = any->iface_open(d, params, out);
    if (st != MPX_OK) return st;
    Loop *loop = loops.at(d).get();
    by_iface[*out] = loop;
    loop->inner_ops = (*out)->ops;
    loop->ops = *loop->inner_ops;
    loop->ops.progress = progress;
    (*out)->ops = &loop->ops;
    return st;
}

inline void iface_close(mpx_iface *i) {
    by_iface.erase(i);
    any->iface_close(i);
}

inline int iface_reachable(mpx_iface *i, const void *address, size_t length) {
    mpx_iface_attr a{};
    a.size = sizeof a;
    any->iface_query(i, &a);
    std::string mine(a.iface_addr_len, '\0');
    any->iface_address(i, mine.data());
    if (mine == std::string(static_cast<const char *>(address), length)) return 1;
    last_why = "loop: only itself";
    return 0;
}

inline mpx_status ep_create(mpx_iface *i, const void *address, size_t length, mpx_ep **out) {
    return iface_reachable(i, address, length) ? any->ep_create(i, address, length, out) : mpx_status{MPX_ERR_UNREACHABLE};
}

inline const char *why() { return last_why.empty() ? any->why() : last_why.c_str(); }

}  // namespace looped
}  // namespace mpx

extern "C" __attribute__((visibility("default"))) const mpx_transport *mpx_transport_table(void) {
    using namespace mpx;
    looped::any = trampoline_table();
    static mpx_transport table = *looped::any;
    table.why = looped::why;
    table.domain_open = looped::domain_open;
    table.domain_close = looped::domain_close;
    table.iface_open = looped::iface_open;
    table.iface_close = looped::iface_close;
    table.iface_reachable = looped::iface_reachable;
    table.ep_create = looped::ep_create;
    return &table;
}
