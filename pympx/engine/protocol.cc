// See protocol.h.
#include "protocol.h"

#include <algorithm>
#include <stdexcept>

#include "wire.h"

namespace mpx {
namespace {

// What one more pass over cached memory costs; a rendezvous pays when it saves more than its extra round trip.
constexpr double kCopyBandwidth = 10e9;

uint64_t bytes(double n) {
    if (!(n > 0)) return 0;
    return n < 1e18 ? static_cast<uint64_t>(n) : UINT64_MAX;
}

uint64_t get_crossover(const mpx_iface_attr &attr) {
    if (!(attr.caps & MPX_CAP_GET_ZCOPY)) return UINT64_MAX;
    const double saved_per_byte = 1 / attr.bandwidth_Bps - 1 / attr.get_bandwidth_Bps;
    if (attr.get_overhead_s <= 0 && saved_per_byte >= 0) return 0;
    return saved_per_byte > 0 ? bytes(attr.get_overhead_s / saved_per_byte) : UINT64_MAX;
}

}  // namespace

ProtocolTable choose_protocols(const mpx_iface_attr &attr) {
    if (!(attr.caps & MPX_CAP_AM_SHORT) || !(attr.caps & MPX_CAP_AM_BCOPY))
        throw std::invalid_argument("the transport lacks am_short or am_bcopy");
    if (attr.max_am_bcopy < sizeof(RtsHeader) + kMaxRkey)
        throw std::invalid_argument("the transport's am_bcopy is too small for a rendezvous request: it takes " +
                                    std::to_string(attr.max_am_bcopy) + " bytes, not " + std::to_string(sizeof(RtsHeader) + kMaxRkey));
    if (attr.rkey_packed_len > kMaxRkey)
        throw std::invalid_argument("the transport's packed remote key has " + std::to_string(attr.rkey_packed_len) + " bytes, more than " +
                                    std::to_string(kMaxRkey));
    ProtocolTable t;
    const uint64_t bcopy = attr.max_am_bcopy - sizeof(uint64_t);
    t.max_short = std::min<uint64_t>(attr.max_am_short, bcopy);
    t.max_bcopy = bcopy;
    t.fragment = attr.max_am_bcopy - sizeof(DataHeader);
    t.get_from = get_crossover(attr);
    // Eager messages are too small to pay for a registration.
    if (attr.caps & MPX_CAP_AM_ZCOPY && !(attr.caps & MPX_CAP_NEED_MEMH) && attr.max_am_hdr >= sizeof(uint64_t)) {
        t.max_bcopy = std::clamp<uint64_t>(attr.min_zcopy ? attr.min_zcopy - 1 : 0, t.max_short, bcopy);
        t.max_zcopy = attr.max_am_zcopy;
    }
    // Where a get saves copies, eager ends as soon as a copy costs more than the handshake.
    const uint64_t worth = bytes(2 * attr.latency_s * kCopyBandwidth);
    const uint64_t limit = std::max(t.max_short, std::max(worth, t.get_from));
    t.max_bcopy = std::min(t.max_bcopy, limit);
    t.max_zcopy = std::min(t.max_zcopy, limit);
    return t;
}

std::string ProtocolTable::describe() const {
    std::string out;
    uint64_t from = 0;
    const auto range = [&](const char *name, uint64_t to) {
        if (to < from || to == UINT64_MAX) return;
        out += std::to_string(from) + ".." + std::to_string(to) + " " + name + ", ";
        from = to + 1;
    };
    range("short", max_short);
    range("eager bcopy", max_bcopy);
    range("eager zcopy", max_zcopy);
    if (get_from == UINT64_MAX) return out + std::to_string(from) + ".. rendezvous by fragments of " + std::to_string(fragment);
    if (get_from > from) range("rendezvous by fragments", get_from - 1);
    return out + std::to_string(from) + ".. rendezvous by get";
}

}  // namespace mpx
