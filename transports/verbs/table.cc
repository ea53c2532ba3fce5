// The table that the engine loads, and the reason of a thread's last failure. No exception leaves an entry: memory that runs out ends
// a control call with NO_MEMORY, and the process when it happens in an operation (all noexcept).
#include <cstring>
#include <new>

#include "verbs.hh"

namespace mpx::verbs {
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

constexpr mpx_transport kTable = {
    .abi_version = MPX_ABI_VERSION,
    .size = sizeof(mpx_transport),
    .name = "verbs",
    .why = why,
    .domain_open = Guard<domain_open>::call,
    .domain_close = domain_close,
    .mem_alloc = Guard<mem_alloc>::call,
    .mem_free = mem_free,
    .mem_reg = Guard<mem_reg>::call,
    .mem_dereg = Guard<mem_dereg>::call,
    .rkey_pack = Guard<rkey_pack>::call,
    .rkey_unpack = Guard<rkey_unpack>::call,
    .rkey_ptr = rkey_ptr,
    .rkey_release = rkey_release,
    .iface_open = Guard<iface_open>::call,
    .iface_close = iface_close,
    .iface_query = Guard<iface_query>::call,
    .iface_address = Guard<iface_address>::call,
    .iface_reachable = iface_reachable,
    .ep_create = Guard<ep_create>::call,
    .ep_address = Guard<ep_address>::call,
    .ep_connect = Guard<ep_connect>::call,
    .ep_fence_off = Guard<ep_fence_off>::call,
    .ep_repair = Guard<ep_repair>::call,
    .ep_check = Guard<ep_check>::call,
    .ep_destroy = ep_destroy,
    .iface_bytes = iface_bytes,
    .iface_forked = iface_forked,
    .domain_supply = Guard<domain_supply>::call,
};

}  // namespace

void set_why(std::string text) { why_text = std::move(text); }
const char *why() { return why_text.c_str(); }

std::string describe_errno(int error) {
    char text[128];
    return strerror_r(error, text, sizeof text);
}

}  // namespace mpx::verbs

extern "C" __attribute__((visibility("default"))) const mpx_transport *mpx_transport_table(void) { return &mpx::verbs::kTable; }
