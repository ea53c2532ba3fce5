// What the files of this transport share: addresses, the segment's layout, and the classes behind the opaque ABI types.
//
// Ownership: an Iface owns its segment, its wake pipe, its epoll, its Peers (one per other iface that it speaks with or hears
// from) and the receiving ends of rings (InRing). An Ep owns its sending ring and belongs to the list of its Peer. A Peer lives as
// long as it has an ep or a ring. A Domain owns registrations, mem_alloc's segments and a cache of mapped segments of peers.
// Threads: everything runs under the engine lock (transport.h); between processes only the words of ring.h and the slot words
// of the segment's header are shared.
#ifndef PYMPX_TRANSPORTS_SHM_SHM_H
#define PYMPX_TRANSPORTS_SHM_SHM_H
#include <array>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include <pympx/transport.h>

#include "ring.h"

namespace mpx::shm {

inline constexpr size_t kPage = 4096;
inline constexpr size_t kSlots = 1024;            // rings that one receiver can serve
inline constexpr size_t kRingBytes = 256 * 1024;  // README.md says how it was chosen
inline constexpr size_t kMaxShort = 4 * kCell - 16;
inline constexpr size_t kMaxBcopy = 32 * 1024 + 56;  // a piece of 32 KiB beside a header, 513 whole cells
inline constexpr size_t kMaxIov = 8;
inline constexpr uint16_t kTagShort = 0x100;  // in a message's tag beside the AM id: an 8-byte header comes first

using Nonce = std::array<uint8_t, 16>;

// An iface's address, the same on the bootstrap's store and in the control page of each ring that the iface sends through.
struct Address {
    uint64_t magic;
    int32_t pid, segment_fd, wake_fd, reserved;
    Nonce nonce;   // of the segment
    Nonce boot;    // of the running kernel
    uint64_t uts;  // of the host as its administrator sees it: the namespace that holds the hostname
};
inline constexpr uint64_t kAddressMagic = 0x32306d6873787070;  // also the layout's version

// Slot words: the head of the sender's nonce, and the state. A sender takes a free slot, makes its region ready, and at its end closes it;
// the receiver frees it when it is drained, or when the sender died.
enum class Slot : uint8_t { kFree, kClaimed, kReady, kClosed };
inline uint64_t slot_word(const Nonce &sender, Slot state) {
    uint64_t word;
    memcpy(&word, sender.data(), sizeof word);
    return word << 8 | uint8_t(state);
}
inline Slot slot_state(uint64_t word) { return Slot(word & 0xff); }

struct SegmentHeader {
    uint64_t magic;
    Nonce nonce;
    alignas(kCell) uint64_t bell;
    alignas(kCell) uint64_t pending[kSlots / 64];
    alignas(kCell) uint64_t slots[kSlots];
};
inline constexpr size_t kHeaderBytes = (sizeof(SegmentHeader) + kPage - 1) / kPage * kPage;

// A region of the segment: one page of this, then the ring's data.
struct RegionControl {
    RingControl ring;
    alignas(kCell) Address sender;
};
inline constexpr size_t kRegionBytes = kPage + kRingBytes;
inline constexpr size_t kSegmentBytes = kHeaderBytes + kSlots * kRegionBytes;

class Fd {
public:
    Fd() = default;
    explicit Fd(int fd) : fd_(fd) {}
    Fd(Fd &&other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Fd &operator=(Fd &&other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    ~Fd();
    int get() const { return fd_; }
    explicit operator bool() const { return fd_ >= 0; }

private:
    int fd_ = -1;
};

class Mapping {
public:
    Mapping() = default;
    Mapping(void *base, size_t len) : base_(static_cast<std::byte *>(base)), len_(len) {}
    Mapping(Mapping &&other) noexcept : base_(std::exchange(other.base_, nullptr)), len_(std::exchange(other.len_, 0)) {}
    Mapping &operator=(Mapping &&other) noexcept {
        std::swap(base_, other.base_);
        std::swap(len_, other.len_);
        return *this;
    }
    ~Mapping();
    std::byte *base() const { return base_; }
    size_t size() const { return len_; }
    explicit operator bool() const { return base_ != nullptr; }

private:
    std::byte *base_ = nullptr;
    size_t len_ = 0;
};

// segment.cc: control calls explain a failure by fail(), which keeps one line for why() and returns the status.
mpx_status fail(mpx_status st, const std::string &what);
mpx_status fail_errno(mpx_status st, const std::string &what);
const char *last_reason();

// Runs what may allocate, for callers that know no exceptions.
template <class F> mpx_status guard(F &&body) noexcept {
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return MPX_ERR_NO_MEMORY;
    } catch (const std::exception &e) {
        try {
            return fail(MPX_ERR_INVALID, e.what());
        } catch (...) {
            return MPX_ERR_NO_MEMORY;
        }
    }
}

Nonce random_nonce();
Nonce boot_id();
uint64_t uts_namespace();
Fd create_segment(const char *name, size_t len, mpx_status &st);
Fd open_fd_of(int32_t pid, int fd, int flags);             // through /proc/PID/fd/N
mpx_status open_segment(const Address &address, Fd &out);  // checks boot, magic and nonce
mpx_status map_shared(const Fd &fd, size_t len, size_t offset, Mapping &out);
mpx_status map_region(const Fd &segment, size_t slot, Mapping &out);  // control page, data, data again
inline RegionControl *region_control(const Mapping &m) { return reinterpret_cast<RegionControl *>(m.base()); }
inline std::byte *region_data(const Mapping &m) { return m.base() + kPage; }

struct Ep;
struct Iface;

// Another iface of this host.
struct Peer {
    Address address;
    Fd pidfd, wake_pipe;
    Mapping header;  // of its segment, when an ep needs it
    std::vector<Ep *> eps;
    unsigned rings = 0;
    bool dead = false;
    enum class VmAccess : uint8_t { kUntried, kAllowed, kRefused } vm = VmAccess::kUntried;

    SegmentHeader *segment() const { return reinterpret_cast<SegmentHeader *>(header.base()); }
    void wake();
    bool exited() const;  // asks the kernel
};

// mem.cc
struct Allocation {
    Fd fd;
    Mapping map;
    Nonce nonce;
    size_t file_len;
};
struct Memh {
    uint64_t addr, len;
    unsigned access;
    const Allocation *allocation;  // null: ordinary memory
};
// A packed remote key. `base` and `nonce`: of memory from mem_alloc the segment's first address and nonce, the segment being
// file `fd` of process `pid`; of other memory (fd -1) the domain's nonce and where it stands in that process.
struct PackedKey {
    uint64_t addr, len, base;
    int32_t pid, fd;
    uint32_t access, reserved;
    Nonce nonce;
};
struct MappedSegment {
    Mapping map;
    unsigned uses = 0;
    uint64_t last_use = 0;
};
struct Rkey {
    PackedKey key;
    MappedSegment *mapped;  // null: only by process_vm_*
    std::byte *pointer(uint64_t raddr) const { return mapped->map.base() + (raddr - key.base); }
};
struct Domain {
    Nonce nonce;  // read by peers to see whether, and whom, process_vm_readv reaches
    std::map<uint64_t, Allocation> allocations;
    std::map<Nonce, MappedSegment> mapped;
    uint64_t clock = 0;
};

// One get, put or flush in flight; they run in order, a piece per progress.
struct Operation {
    enum class Kind : uint8_t { kGet, kPut, kFlush } kind;
    Ep *ep;
    const Rkey *rkey;
    uint64_t raddr;
    size_t len, position;
    size_t iovcnt;
    std::array<mpx_iov, kMaxIov> iov;
    mpx_completion *completion;
    mpx_status run(size_t budget);  // INPROGRESS: not yet through
};

struct Ep : mpx_ep {
    std::unique_ptr<RingSender<>> out;  // null: not connected, or failed
    uint64_t *pending = nullptr;        // the word of the receiver's bitmap that holds `bit`
    uint64_t bit = 0;
    size_t blocked_len = 0;      // what found no space, 0: nothing did
    mpx_status status = MPX_OK;  // not OK: what every call returns from now on
    Peer *peer = nullptr;
    uint64_t slot = 0;
    Mapping region;

    Iface &owner() const;
    mpx_status connect();
    void disconnect();
};

struct InRing {
    InRing(size_t slot_index, Mapping &&mapping)
        : slot(slot_index),
          region(std::move(mapping)),
          in(&region_control(region)->ring, region_data(region), kRingBytes / kCell) {}
    size_t slot;
    Mapping region;
    RingReceiver<> in;
    Peer *peer = nullptr;
    Ep *ep = nullptr;      // whom its messages are attributed to
    bool refused = false;  // on_incoming said no: drained, not heard
    bool broken = false;   // a state word that no sender of ours writes: never read again
    bool active = false;   // polled by progress
    bool closed = false;   // the sender left: freed when drained
    unsigned idle = 0;
};

struct Iface : mpx_iface {
    Domain *domain = nullptr;
    mpx_iface_params params{};
    Address address{};
    Fd segment, pipe_read, pipe_write, epoll;
    Mapping header;
    std::map<Nonce, std::unique_ptr<Peer>> peers;
    std::array<std::unique_ptr<InRing>, kSlots> rings;
    std::vector<InRing *> active;
    std::vector<Ep *> blocked;
    std::deque<Operation> operations;
    std::vector<Peer *> mourned;  // dead, their eps not yet told
    unsigned calls = 0;
    bool armed = false;
    bool attributing = false;  // inside on_incoming: an ep to a dead peer may be made, for what it still has to say
    uint64_t bytes_sent = 0, bytes_received = 0;

    ~Iface();
    SegmentHeader *own() const { return reinterpret_cast<SegmentHeader *>(header.base()); }
    mpx_status open(Domain *of, const mpx_iface_params &with);
    mpx_status find_peer(const Address &at, Peer *&out);  // makes it when new
    void drop_peer_if_unused(Peer *peer);
    void forked();
    void fail_ep(Ep *ep, mpx_status st);
    void destroy_ep(Ep *ep);

    unsigned progress();
    mpx_status arm();

private:
    enum class Hearing : uint8_t { kHeard, kDropped, kLater };
    unsigned receive(InRing &ring, unsigned limit);
    Hearing attribute(InRing &ring);
    bool rest(InRing &ring);
    void collect();
    void open_ring(size_t slot);
    void activate(InRing &ring);
    void retire(InRing &ring);
    void release_slots_of(const Nonce &sender);
    unsigned run_operations();
    unsigned check_events();
    void peer_died(Peer &peer);
};

inline Iface &Ep::owner() const { return *static_cast<Iface *>(iface); }

// ep.cc, mem.cc, iface.cc: what transport.cc puts into the tables
mpx_status am_short(mpx_ep *, uint8_t id, uint64_t hdr, const void *buf, size_t len);
mpx_status am_bcopy(mpx_ep *, uint8_t id, size_t len, mpx_pack_fn pack, void *arg);
mpx_status put_zcopy(mpx_ep *, const mpx_iov *, size_t iovcnt, uint64_t raddr, mpx_rkey_h, mpx_completion *);
mpx_status get_zcopy(mpx_ep *, const mpx_iov *, size_t iovcnt, uint64_t raddr, mpx_rkey_h, mpx_completion *);
mpx_status ep_fence(mpx_ep *);
mpx_status ep_flush(mpx_ep *, mpx_completion *);
mpx_status mem_alloc(mpx_domain *, size_t len, void **addr, mpx_mem_h *);
void mem_free(mpx_domain *, void *addr, mpx_mem_h);
mpx_status mem_reg(mpx_domain *, void *addr, size_t len, int mem_type, unsigned access, mpx_mem_h *);
mpx_status mem_dereg(mpx_domain *, mpx_mem_h);
mpx_status rkey_pack(mpx_domain *, mpx_mem_h, void *out, size_t out_len);
mpx_status rkey_unpack(mpx_domain *, const void *in, size_t in_len, mpx_rkey_h *);
void *rkey_ptr(mpx_domain *, mpx_rkey_h, uint64_t raddr);
void rkey_release(mpx_domain *, mpx_rkey_h);

}  // namespace mpx::shm
#endif
