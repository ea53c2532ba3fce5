// The sending half: active messages into the ring that this ep owns in its peer's segment. The ring is claimed at first use.
#include "shm.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <cerrno>

namespace mpx::shm {

namespace {

// Takes a slot of the peer's segment, gives the ring memory (so that no later touch can fail), and makes it known to be ready.
mpx_status claim(Peer &peer, const Address &self, const Fd &segment, uint64_t &slot) {
    uint64_t *slots = peer.segment()->slots;
    for (slot = 0; slot < kSlots; ++slot) {
        if (NativeAtomics::load(&slots[slot], std::memory_order_relaxed) == 0 &&
            NativeAtomics::cas(&slots[slot], 0, slot_word(self.nonce, Slot::kClaimed), std::memory_order_acquire)) {
            break;
        }
    }
    if (slot == kSlots) return fail(MPX_ERR_NO_MEMORY, "the peer serves " + std::to_string(kSlots) + " rings already");
    int rc;
    do {
        rc = fallocate(segment.get(), 0, off_t(kHeaderBytes + slot * kRegionBytes), off_t(kRegionBytes));
    } while (rc != 0 && errno == EINTR);
    if (rc == 0) return MPX_OK;
    const mpx_status st = fail_errno(MPX_ERR_NO_MEMORY, "no memory for a ring of " + std::to_string(kRingBytes) + " bytes");
    NativeAtomics::store(&slots[slot], 0, std::memory_order_release);
    return st;
}

// Publishes the `len` bytes written, and wakes the receiver when it does not poll this ring.
inline void publish(Ep *ep, size_t len, uint16_t tag) {
    if (ep->out->publish(len, tag) && Bell<>::ring(&ep->peer->segment()->bell, ep->pending, ep->bit)) ep->peer->wake();
    ep->owner().bytes_sent += kWord + len;
}

[[gnu::noinline]] mpx_status no_space(Ep *ep, size_t len) {
    if (ep->blocked_len == 0) ep->owner().blocked.push_back(ep);
    ep->blocked_len = len;
    return MPX_ERR_NO_RESOURCE;
}

}  // namespace

// Connects at first use; afterwards `out` is null only when the ep failed.
[[gnu::noinline]] mpx_status Ep::connect() {
    if (status != MPX_OK) return status;
    if (peer->dead) return MPX_ERR_PEER_FAILED;
    Fd segment;
    mpx_status st = open_segment(peer->address, segment);
    if (st != MPX_OK) return st == MPX_ERR_UNREACHABLE ? MPX_ERR_PEER_FAILED : st;
    const Address &self = owner().address;
    st = claim(*peer, self, segment, slot);
    if (st != MPX_OK) return st;
    st = map_region(segment, slot, region);
    uint64_t *word = &peer->segment()->slots[slot];
    if (st != MPX_OK) {
        NativeAtomics::store(word, 0, std::memory_order_release);
        return st;
    }
    RegionControl *control = region_control(region);
    control->sender = self;
    out = std::make_unique<RingSender<>>(&control->ring, region_data(region), kRingBytes / kCell);
    out->init();
    pending = &peer->segment()->pending[slot / 64];
    bit = uint64_t{1} << slot % 64;
    NativeAtomics::store(word, slot_word(self.nonce, Slot::kReady), std::memory_order_relaxed);  // the first bell carries it
    return MPX_OK;
}

// Gives the ring back: the receiver drains it and frees the slot.
void Ep::disconnect() {
    if (!out) return;
    out.reset();
    SegmentHeader *segment = peer->segment();
    NativeAtomics::store(&segment->slots[slot], slot_word(owner().address.nonce, Slot::kClosed), RingOrders::kLeave);
    if (Bell<>::ring(&segment->bell, pending, bit)) peer->wake();
    region = Mapping();
}

mpx_status am_short(mpx_ep *base, uint8_t id, uint64_t hdr, const void *buf, size_t len) {
    Ep *ep = static_cast<Ep *>(base);
    if (len > kMaxShort || id >= MPX_AM_ID_MAX) [[unlikely]]
        return MPX_ERR_INVALID;
    if (!ep->out) [[unlikely]] {
        const mpx_status st = guard([ep] { return ep->connect(); });
        if (st != MPX_OK) return st;
    }
    std::byte *to = ep->out->reserve(sizeof hdr + len);
    if (!to) [[unlikely]]
        return no_space(ep, sizeof hdr + len);
    memcpy(to, &hdr, sizeof hdr);
    if (len) memcpy(to + sizeof hdr, buf, len);
    publish(ep, sizeof hdr + len, static_cast<uint16_t>(id | kTagShort));
    return MPX_OK;
}

mpx_status am_bcopy(mpx_ep *base, uint8_t id, size_t len, mpx_pack_fn pack, void *arg) {
    Ep *ep = static_cast<Ep *>(base);
    if (len > kMaxBcopy || id >= MPX_AM_ID_MAX) [[unlikely]]
        return MPX_ERR_INVALID;
    if (!ep->out) [[unlikely]] {
        const mpx_status st = guard([ep] { return ep->connect(); });
        if (st != MPX_OK) return st;
    }
    std::byte *to = ep->out->reserve(len);
    if (!to) [[unlikely]]
        return no_space(ep, len);
    const size_t written = pack(to, arg);
    if (written > len) [[unlikely]]
        return MPX_ERR_INVALID;  // unpublished: the receiver never sees it
    publish(ep, written, id);
    return MPX_OK;
}

}  // namespace mpx::shm
