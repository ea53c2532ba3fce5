// The table, and the control entries that differ from the wrapped transport's. No exception leaves this file.
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "ep.h"
#include "fault.h"

namespace mpx::fault {
namespace {

const mpx_transport *inner_table = nullptr;
Settings wanted;
thread_local std::string own_why;  // empty: ask the wrapped transport

Iface *of(mpx_iface *iface) { return static_cast<Iface *>(iface); }
Ep *of(mpx_ep *ep) { return static_cast<Ep *>(ep); }

mpx_status fail(mpx_status st, const char *why) {
    own_why = why;
    return st;
}

const char *why() { return own_why.empty() ? inner_table->why() : own_why.c_str(); }

unsigned progress(mpx_iface *iface) { return of(iface)->progress(); }
void desc_release(mpx_iface *iface, void *data) { of(iface)->inner->ops->desc_release(of(iface)->inner, data); }
mpx_status event_arm(mpx_iface *iface) { return of(iface)->arm(); }
int event_fd(mpx_iface *iface) { return of(iface)->epoll; }

constexpr mpx_iface_ops kOps = {
    .size = sizeof(mpx_iface_ops),
    .am_short = am_short,
    .am_bcopy = am_bcopy,
    .am_zcopy = am_zcopy,
    .put_zcopy = put_zcopy,
    .get_zcopy = get_zcopy,
    .atomic64 = atomic64,
    .ep_fence = ep_fence,
    .ep_flush = ep_flush,
    .progress = progress,
    .desc_release = desc_release,
    .event_arm = event_arm,
    .event_fd = event_fd,
};

mpx_status iface_open(mpx_domain *domain, const mpx_iface_params *params, mpx_iface **out) {
    own_why.clear();
    try {
        auto iface = std::make_unique<Iface>(*params);
        iface->ops = &kOps;
        const mpx_status st = iface->open(domain);
        if (st == MPX_OK) *out = iface.release();
        else if (iface->epoll < 0 || !*inner_table->why()) return fail(st, "fault: no descriptor is left for its epoll and timerfd");
        return st;
    } catch (const std::bad_alloc &) {
        return fail(MPX_ERR_NO_MEMORY, "fault: out of memory");
    }
}

void iface_close(mpx_iface *iface) { delete of(iface); }
mpx_status iface_query(mpx_iface *iface, mpx_iface_attr *attr) { return inner_table->iface_query(of(iface)->inner, attr); }
mpx_status iface_address(mpx_iface *iface, void *out) { return inner_table->iface_address(of(iface)->inner, out); }
int iface_reachable(mpx_iface *iface, const void *address, size_t length) {
    own_why.clear();
    return inner_table->iface_reachable(of(iface)->inner, address, length);
}

mpx_status ep_create(mpx_iface *iface, const void *address, size_t length, mpx_ep **out) {
    own_why.clear();
    try {
        auto ep = std::make_unique<Ep>(of(iface), of(iface)->made);
        of(iface)->eps.reserve(of(iface)->eps.size() + 1);
        const mpx_status st = inner_table->ep_create(of(iface)->inner, address, length, &ep->inner);
        if (st != MPX_OK) return st;
        ep->inner->user = ep.get();
        of(iface)->made++;
        of(iface)->eps.push_back(ep.get());
        *out = ep.release();
        return MPX_OK;
    } catch (const std::bad_alloc &) {
        return fail(MPX_ERR_NO_MEMORY, "fault: out of memory");
    }
}

mpx_status ep_address(mpx_ep *ep, void *out) { return inner_table->ep_address(of(ep)->inner, out); }
mpx_status ep_connect(mpx_ep *ep, const void *address, size_t length) { return inner_table->ep_connect(of(ep)->inner, address, length); }
mpx_status ep_fence_off(mpx_ep *ep) { return inner_table->ep_fence_off(of(ep)->inner); }

mpx_status ep_repair(mpx_ep *ep, const void *address, size_t length) {
    const mpx_status st = inner_table->ep_repair(of(ep)->inner, address, length);
    if (st == MPX_OK) of(ep)->repaired();
    return st;
}

void ep_destroy(mpx_ep *ep) { of(ep)->owner()->destroy(of(ep)); }
uint64_t iface_bytes(mpx_iface *iface, int received) { return inner_table->iface_bytes(of(iface)->inner, received); }

void iface_forked(mpx_iface *iface) {
    of(iface)->close_descriptors();
    inner_table->iface_forked(of(iface)->inner);
}

// Domains, registrations and keys are the wrapped transport's own.
mpx_transport make_table(const mpx_transport &inner) {
    mpx_transport table = inner;
    table.size = sizeof table;
    table.name = "fault";
    table.why = why;
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
}

}  // namespace

const mpx_transport &wrapped() { return *inner_table; }
const Settings &settings() { return wanted; }

}  // namespace mpx::fault

extern "C" __attribute__((visibility("default"))) const mpx_transport *mpx_layer_table(const mpx_transport *over, const char *settings,
                                                                                       const char **why) {
    using namespace mpx::fault;
    static mpx_transport table;
    static std::string reason;
    try {
        if (inner_table && inner_table != over) throw std::invalid_argument("fault: it wraps one transport per process");
        if (over->abi_version != MPX_ABI_VERSION || over->size < sizeof *over) throw std::invalid_argument("fault: a table of another ABI");
        wanted = parse(settings);
        inner_table = over;
        table = make_table(*over);
        return &table;
    } catch (const std::exception &error) {
        reason = error.what();
        *why = reason.c_str();
        return nullptr;
    }
}
