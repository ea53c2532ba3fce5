// Which protocol carries a message of a given size to a peer: a pure function of the transport's limits and costs.
#pragma once
#include <pympx/transport.h>

#include <cstdint>
#include <string>

#include "request.h"

namespace mpx {

struct ProtocolTable {
    // Sizes in bytes, inclusive upper ends; a protocol that the transport does not offer has an empty range.
    uint64_t max_short = 0;
    uint64_t max_bcopy = 0;
    uint64_t max_zcopy = 0;
    uint64_t get_from = UINT64_MAX;  // rendezvous by get from this size on
    uint64_t fragment = 0;           // payload bytes of one fragment

    uint64_t max_eager() const { return max_zcopy > max_bcopy ? max_zcopy : max_bcopy; }
    Protocol choose(uint64_t size) const {
        if (size <= max_short) return Protocol::kShort;
        if (size <= max_bcopy) return Protocol::kEagerBcopy;
        if (size <= max_zcopy) return Protocol::kEagerZcopy;
        return size >= get_from ? Protocol::kRndvGet : Protocol::kRndvFragments;
    }
    std::string describe() const;
};

// Throws std::invalid_argument when the transport cannot carry the engine's control messages.
ProtocolTable choose_protocols(const mpx_iface_attr &attr);

}  // namespace mpx
