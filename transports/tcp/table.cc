// The table that the engine loads, and the reason of a thread's last failure. No exception leaves an entry: memory that runs out ends
// a control call with NO_MEMORY, and the process when it happens in an operation (all noexcept).
#include <new>

#include "tcp.hh"

namespace mpx::tcp {
namespace {

thread_local std::string why_text;

template <auto fn> struct Guard;
template <class... Args, mpx_status (*fn)(Args...)> struct Guard<fn> {
    static mpx_status call(Args... args) noexcept {
        why_text.clear();
        try {
            return fn(args...);
        } catch (const std::bad_alloc &) {
            return MPX_ERR_NO_MEMORY;
        }
    }
};

mpx_status ep_address(mpx_ep *, void *) { return MPX_ERR_UNSUPPORTED; }
mpx_status ep_connect(mpx_ep *, const void *, size_t) { return MPX_ERR_UNSUPPORTED; }
mpx_status ep_repair(mpx_ep *, const void *, size_t) { return MPX_ERR_UNSUPPORTED; }
mpx_status domain_supply(mpx_domain *, const char *) { return MPX_ERR_UNSUPPORTED; }

constexpr mpx_transport kTable = {
    MPX_ABI_VERSION,
    sizeof(mpx_transport),
    "tcp",
    why,
    Guard<domain_open>::call,
    domain_close,
    Guard<mem_alloc>::call,
    mem_free,
    Guard<mem_reg>::call,
    Guard<mem_dereg>::call,
    Guard<rkey_pack>::call,
    Guard<rkey_unpack>::call,
    rkey_ptr,
    rkey_release,
    Guard<iface_open>::call,
    iface_close,
    Guard<iface_query>::call,
    Guard<iface_address>::call,
    iface_reachable,
    Guard<ep_create>::call,
    ep_address,
    ep_connect,
    ep_fence_off,
    ep_repair,
    Guard<ep_check>::call,
    ep_destroy,
    iface_bytes,
    iface_forked,
    domain_supply,
};

}  // namespace

void set_why(std::string text) { why_text = std::move(text); }
const char *why() { return why_text.c_str(); }

}  // namespace mpx::tcp

extern "C" __attribute__((visibility("default"))) const mpx_transport *mpx_transport_table(void) { return &mpx::tcp::kTable; }
