// The receiving half, and life and death: what is polled, the way to sleep, who a message is from, what a peer's death does.
//
// A ring is `active` (polled by every progress) or parked (its sender rings the bell). Before a sleep all are parked; a ring
// wakes by its next message. event_fd is an epoll over the wake pipe and one pidfd per peer.
#include "shm.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace mpx::shm {

namespace {

constexpr unsigned kBatch = 32;             // messages of one ring per progress
constexpr unsigned kIdlePolls = 1u << 16;   // a ring that was empty so often is parked when it is not the only one
constexpr unsigned kEventPolls = 1u << 12;  // calls of progress between two looks at the kernel's events
constexpr size_t kPiece = 1u << 20;         // bytes of get and put per progress

uint64_t load_slot(uint64_t *p) { return NativeAtomics::load(p, RingOrders::kLook); }

}  // namespace

mpx_status Iface::open(Domain *of, const mpx_iface_params &with) {
    domain = of;
    memcpy(&params, &with, std::min(with.size, sizeof params));
    mpx_status st;
    segment = create_segment("pympx-rings", kSegmentBytes, st);
    if (st != MPX_OK) return st;
    if (fallocate(segment.get(), 0, 0, off_t(kHeaderBytes)) != 0)
        return fail_errno(MPX_ERR_NO_MEMORY, "no memory for the segment's header");
    st = map_shared(segment, kHeaderBytes, 0, header);
    if (st != MPX_OK) return st;
    madvise(header.base(), kHeaderBytes, MADV_DONTFORK);
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return fail_errno(MPX_ERR_NO_MEMORY, "cannot make a pipe");
    pipe_read = Fd(ends[0]);
    pipe_write = Fd(ends[1]);
    epoll = Fd(epoll_create1(EPOLL_CLOEXEC));
    epoll_event event{EPOLLIN, {.ptr = nullptr}};
    if (!epoll || epoll_ctl(epoll.get(), EPOLL_CTL_ADD, pipe_read.get(), &event) != 0) {
        return fail_errno(MPX_ERR_NO_MEMORY, "cannot make an epoll");
    }
    address = Address{kAddressMagic, getpid(), segment.get(), pipe_write.get(), 0, random_nonce(), boot_id(), uts_namespace()};
    own()->nonce = address.nonce;
    own()->magic = kAddressMagic;
    return MPX_OK;
}

Iface::~Iface() {
    std::vector<Ep *> left;
    for (auto &[nonce, peer] : peers) left.insert(left.end(), peer->eps.begin(), peer->eps.end());
    for (Ep *ep : left) destroy_ep(ep);
}

// A process that has ended makes a peer too, a dead one: what it sent before still counts.
mpx_status Iface::find_peer(const Address &at, Peer *&out) {
    if (const auto it = peers.find(at.nonce); it != peers.end()) {
        out = it->second.get();
        return MPX_OK;
    }
    auto peer = std::make_unique<Peer>();
    peer->address = at;
    peer->pidfd = Fd(static_cast<int>(syscall(SYS_pidfd_open, at.pid, 0)));
    if (!peer->pidfd && errno != ESRCH) return fail_errno(MPX_ERR_NO_MEMORY, "pidfd_open");
    Fd seg;
    const mpx_status st = open_segment(at, seg);  // proves who this pid is
    if (st == MPX_OK && peer->pidfd) {
        peer->wake_pipe = open_fd_of(at.pid, at.wake_fd, O_RDWR | O_NONBLOCK);  // read-write: no SIGPIPE when the peer closes it
        if (!peer->wake_pipe && !peer->exited()) return fail_errno(MPX_ERR_NO_MEMORY, "cannot open the peer's wake pipe");
    }
    if (st != MPX_OK && st != MPX_ERR_UNREACHABLE) return st;
    if (st != MPX_OK || !peer->pidfd || peer->exited()) {
        peer->dead = true;
    } else {
        epoll_event event{EPOLLIN, {.ptr = peer.get()}};
        if (epoll_ctl(epoll.get(), EPOLL_CTL_ADD, peer->pidfd.get(), &event) != 0) return fail_errno(MPX_ERR_NO_MEMORY, "epoll_ctl");
    }
    out = (peers[at.nonce] = std::move(peer)).get();
    return MPX_OK;
}

void Iface::drop_peer_if_unused(Peer *peer) {
    if (!peer->eps.empty() || peer->rings) return;
    if (peer->pidfd && !peer->dead) epoll_ctl(epoll.get(), EPOLL_CTL_DEL, peer->pidfd.get(), nullptr);
    std::erase(mourned, peer);
    peers.erase(Nonce(peer->address.nonce));
}

void Iface::forked() {
    for (auto &[nonce, peer] : peers) {
        peer->pidfd = Fd();
        peer->wake_pipe = Fd();
    }
    for (Fd *fd : {&segment, &pipe_read, &pipe_write, &epoll}) *fd = Fd();
}

// Marks, once; outstanding operations meet the status in the next progress.
void Iface::fail_ep(Ep *ep, mpx_status st) {
    if (ep->status != MPX_OK) return;
    ep->status = st;
    ep->disconnect();
    if (params.on_error) params.on_error(params.arg, ep, st);
}

void Iface::destroy_ep(Ep *ep) {
    std::vector<mpx_completion *> canceled;
    for (const Operation &op : operations) {
        if (op.ep == ep && op.completion) canceled.push_back(op.completion);
    }
    std::erase_if(operations, [ep](const Operation &op) { return op.ep == ep; });
    std::erase(blocked, ep);
    for (auto &ring : rings) {
        if (ring && ring->ep == ep) ring->ep = nullptr;
    }
    ep->disconnect();
    Peer *peer = ep->peer;
    std::erase(peer->eps, ep);
    drop_peer_if_unused(peer);
    delete ep;
    for (mpx_completion *completion : canceled) completion->done(completion, MPX_ERR_CANCELED);
}

// Finds whom the ring's messages are from. kLater: not now, for want of memory or descriptors.
Iface::Hearing Iface::attribute(InRing &ring) {
    if (!ring.peer) {
        const Address from = region_control(ring.region)->sender;
        const mpx_status st = find_peer(from, ring.peer);
        if (st == MPX_ERR_NO_MEMORY) return Hearing::kLater;
        ring.broken = st != MPX_OK;
        if (ring.broken) return Hearing::kDropped;
        ++ring.peer->rings;
        if (ring.peer->dead) mourned.push_back(ring.peer);
    }
    if (!ring.peer->eps.empty()) {
        ring.ep = ring.peer->eps.front();
    } else if (!ring.refused && params.on_incoming) {
        attributing = true;
        ring.ep = static_cast<Ep *>(params.on_incoming(params.arg, &ring.peer->address, sizeof(Address)));
        attributing = false;
        ring.refused = !ring.ep;
    }
    return ring.ep ? Hearing::kHeard : Hearing::kDropped;
}

unsigned Iface::receive(InRing &ring, unsigned limit) {
    unsigned n = 0;
    for (; n < limit && !ring.broken; ++n) {
        const uint64_t word = ring.in.poll();
        if (!word) break;
        if (!ring.ep) [[unlikely]] {
            if (attribute(ring) == Hearing::kLater || ring.broken) break;
        }
        const size_t len = Message::length(word), hdr = Message::tag(word) & kTagShort ? sizeof(uint64_t) : 0;
        const unsigned id = Message::tag(word) & 0xff;
        if (!(word & Message::kFull) || len > ring.in.max_length() || len < hdr || id >= MPX_AM_ID_MAX) [[unlikely]] {
            ring.broken = true;
            if (ring.ep) fail_ep(ring.ep, MPX_ERR_INVALID);
            break;
        }
        if (ring.ep) [[likely]] {
            std::byte *data = ring.in.front();
            const mpx_am_handler &handler = params.am[id];
            handler.fn(handler.arg, ring.ep->user, data, hdr, data + hdr, len - hdr, 0);
        }
        bytes_received += kWord + len;
        if (ring.in.consume(word) && ring.peer) ring.peer->wake();
    }
    return n;
}

void Iface::open_ring(size_t slot) {
    Mapping region;
    if (map_region(segment, slot, region) != MPX_OK) return;
    rings[slot] = std::make_unique<InRing>(slot, std::move(region));
}

void Iface::activate(InRing &ring) {
    ring.idle = 0;
    if (ring.active) return;
    ring.active = true;
    active.push_back(&ring);
}

// The sender has left and all is read: the slot may be claimed anew.
void Iface::retire(InRing &ring) {
    const size_t slot = ring.slot;
    Peer *peer = ring.peer;
    std::erase(active, &ring);
    rings[slot].reset();
    NativeAtomics::store(&own()->slots[slot], 0, std::memory_order_release);
    if (peer) {
        --peer->rings;
        drop_peer_if_unused(peer);
    }
}

// Somebody rang: find the rings that have something.
void Iface::collect() {
    for (size_t w = 0; w < kSlots / 64; ++w) {
        for (uint64_t bits = Bell<>::collect(&own()->pending[w]); bits; bits &= bits - 1) {
            const size_t slot = w * 64 + size_t(__builtin_ctzll(bits));
            const Slot state = slot_state(load_slot(&own()->slots[slot]));
            if (state != Slot::kReady && state != Slot::kClosed) continue;
            if (!rings[slot]) open_ring(slot);
            if (!rings[slot]) continue;
            rings[slot]->closed = state == Slot::kClosed;
            activate(*rings[slot]);
        }
    }
}

unsigned Iface::run_operations() {
    unsigned n = 0;
    for (size_t budget = kPiece; budget && !operations.empty(); ++n) {
        Operation &op = operations.front();
        const size_t before = op.position;
        const mpx_status st = op.run(budget);
        const size_t moved = op.position - before;
        (op.kind == Operation::Kind::kGet ? bytes_received : bytes_sent) += moved;
        budget -= std::min(budget, moved);
        if (st == MPX_INPROGRESS) continue;
        mpx_completion *completion = op.completion;
        operations.pop_front();
        if (completion) completion->done(completion, st);
    }
    return n;
}

// All that the peer completed before it died is delivered, then its eps are told.
void Iface::peer_died(Peer &peer) {
    if (!peer.dead && peer.pidfd) epoll_ctl(epoll.get(), EPOLL_CTL_DEL, peer.pidfd.get(), nullptr);
    peer.dead = true;
    collect();
    ++peer.rings;  // keeps it while its rings go
    for (size_t slot = 0; slot < kSlots; ++slot) {
        if (!rings[slot] || (rings[slot]->peer && rings[slot]->peer != &peer)) continue;
        InRing &ring = *rings[slot];
        if (!ring.peer && region_control(ring.region)->sender.nonce != peer.address.nonce) continue;
        receive(ring, ~0u);
        if (ring.peer == &peer || !ring.peer) retire(ring);
    }
    release_slots_of(peer.address.nonce);
    const std::vector<Ep *> eps = peer.eps;
    for (Ep *ep : eps) fail_ep(ep, MPX_ERR_PEER_FAILED);
    --peer.rings;
    drop_peer_if_unused(&peer);
}

// Slots that a sender claimed and did not live to use.
void Iface::release_slots_of(const Nonce &sender) {
    for (size_t slot = 0; slot < kSlots; ++slot) {
        const uint64_t word = load_slot(&own()->slots[slot]);
        if (rings[slot] || word != slot_word(sender, slot_state(word))) continue;
        NativeAtomics::store(&own()->slots[slot], 0, std::memory_order_release);
    }
}

unsigned Iface::check_events() {
    epoll_event events[16];
    const int n = epoll_wait(epoll.get(), events, 16, 0);
    unsigned done = 0;
    for (int i = 0; i < n; ++i) {
        if (Peer *peer = static_cast<Peer *>(events[i].data.ptr)) {
            peer_died(*peer);
            ++done;
        } else {
            char bytes[256];
            while (read(pipe_read.get(), bytes, sizeof bytes) == ssize_t(sizeof bytes)) {
            }
        }
    }
    return done;
}

// An empty ring: leaves it unpolled when it has ended, or has long been idle and is not the only one. True: it left `active`.
bool Iface::rest(InRing &ring) {
    if (ring.closed) {
        retire(ring);
        return true;
    }
    if (!ring.broken && (++ring.idle < kIdlePolls || active.size() == 1)) return false;
    ring.idle = 0;
    if (!ring.broken && !ring.in.park()) return false;
    ring.active = false;
    std::erase(active, &ring);
    return true;
}

unsigned Iface::progress() {
    unsigned n = 0;
    for (size_t i = 0; i < active.size();) {
        InRing &ring = *active[i];
        const unsigned got = receive(ring, kBatch);
        if (!got && rest(ring)) continue;
        if (got) {
            n += got;
            ring.idle = 0;
            if (i) std::swap(active[i], active[0]);  // the last active one is looked at first
        }
        ++i;
    }
    if (Bell<>::answer(&own()->bell)) [[unlikely]] {
        collect();
        ++n;
    }
    if (!operations.empty()) n += run_operations();
    if (armed || ++calls % kEventPolls == 0) [[unlikely]] {
        armed = false;
        n += check_events();
    }
    while (!mourned.empty()) [[unlikely]] {
            Peer *peer = mourned.back();
            mourned.pop_back();
            peer_died(*peer);
            ++n;
        }
    return n;
}

mpx_status Iface::arm() {
    armed = true;
    if (!operations.empty() || !mourned.empty()) return MPX_ERR_NO_RESOURCE;
    for (Ep *ep : blocked) {
        if (ep->out && ep->out->want_space(ep->blocked_len)) continue;
        ep->blocked_len = 0;
        std::erase(blocked, ep);
        return MPX_ERR_NO_RESOURCE;
    }
    while (!active.empty()) {
        InRing &ring = *active.back();
        if (ring.closed || (!ring.broken && !ring.in.park())) return MPX_ERR_NO_RESOURCE;
        ring.active = false;
        active.pop_back();
    }
    return Bell<>::arm(&own()->bell) ? MPX_OK : MPX_ERR_NO_RESOURCE;
}

}  // namespace mpx::shm
