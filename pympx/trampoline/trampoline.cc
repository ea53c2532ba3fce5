// See trampoline.h. A message on its way: id, length of its header (0 or 8), two zeros, generation of the sender's ep (32 bits), header,
// payload. Generations tell an ep made anew from the one before: what a destroyed ep had still to hear, its successor does not.
#include "trampoline.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace mpx {
namespace {

constexpr size_t kPrefix = 8;
constexpr size_t kGenerationAt = 4;
constexpr size_t kHeader = sizeof(uint64_t);
constexpr size_t kPackedAddress = Trampoline::kMaxAddress + 2;  // length, address, zeros

thread_local std::string last_why;

mpx_status fail_with(mpx_status st, std::string why) {
    last_why = std::move(why);
    return st;
}

// Trampolines by number, so that domain_open, which gets no object, finds its own.
std::mutex registry_mutex;
std::unordered_map<uint64_t, Trampoline *> registry;

bool unpack_address(const void *packed, size_t length, std::string *out) {
    if (length != kPackedAddress) return false;
    const auto *p = static_cast<const unsigned char *>(packed);
    const size_t n = p[0] | size_t{p[1]} << 8;
    if (n > Trampoline::kMaxAddress) return false;
    out->assign(reinterpret_cast<const char *>(p) + 2, n);
    return true;
}

void pack_address(const std::string &address, void *out) {
    auto *p = static_cast<unsigned char *>(out);
    std::memset(p, 0, kPackedAddress);
    p[0] = static_cast<unsigned char>(address.size());
    p[1] = static_cast<unsigned char>(address.size() >> 8);
    std::copy(address.begin(), address.end(), p + 2);
}

}  // namespace

struct Trampoline::Ep : mpx_ep {
    Ep(mpx_iface *i, Lane *l) : mpx_ep{i, nullptr, {}}, lane(l), generation(++l->generation) {}
    Lane *lane;
    uint32_t generation;
    uint32_t heard = 0;  // the peer's generation
    bool told = false;   // on_error was called
};

struct Trampoline::Iface : mpx_iface {
    Iface(const mpx_iface_ops *o, Trampoline *t, const mpx_iface_params &p) : mpx_iface{o}, owner(t), params(p) {}
    Trampoline *owner;
    mpx_iface_params params;
    std::unordered_map<std::string, Ep *> eps;
    std::unordered_map<std::string, uint32_t> ended;  // the newest generation of a peer whose ep here was destroyed
};

// The table's entries. A domain is the Trampoline itself.
struct TrampolineTable {
    using Ep = Trampoline::Ep;
    using Iface = Trampoline::Iface;

    static Trampoline *of(mpx_domain *d) { return reinterpret_cast<Trampoline *>(d); }
    static Iface *of(mpx_iface *i) { return static_cast<Iface *>(i); }
    static Ep *of(mpx_ep *e) { return static_cast<Ep *>(e); }

    static const char *why() { return last_why.c_str(); }

    static mpx_status domain_open(const mpx_domain_params *params, mpx_domain **out) {
        std::lock_guard lock(registry_mutex);
        const auto it = registry.find(std::strtoull(params->device, nullptr, 10));
        if (it == registry.end()) return fail_with(MPX_ERR_INVALID, "the device names no transport in Python of this process");
        if (std::exchange(it->second->open_, true)) return fail_with(MPX_ERR_INVALID, it->second->traits_.name + " is open already");
        *out = reinterpret_cast<mpx_domain *>(it->second);
        return MPX_OK;
    }
    static void domain_close(mpx_domain *d) { of(d)->open_ = false; }

    static mpx_status mem_alloc(mpx_domain *, size_t, void **, mpx_mem_h *) { return unsupported(); }
    static void mem_free(mpx_domain *, void *, mpx_mem_h) {}
    static mpx_status mem_reg(mpx_domain *, void *, size_t, int, unsigned, mpx_mem_h *) { return unsupported(); }
    static mpx_status mem_dereg(mpx_domain *, mpx_mem_h) { return unsupported(); }
    static mpx_status rkey_pack(mpx_domain *, mpx_mem_h, void *, size_t) { return unsupported(); }
    static mpx_status rkey_unpack(mpx_domain *, const void *, size_t, mpx_rkey_h *) { return unsupported(); }
    static void *rkey_ptr(mpx_domain *, mpx_rkey_h, uint64_t) { return nullptr; }
    static void rkey_release(mpx_domain *, mpx_rkey_h) {}
    static mpx_status unsupported() { return fail_with(MPX_ERR_UNSUPPORTED, "a transport in Python has messages only"); }

    static mpx_status iface_open(mpx_domain *d, const mpx_iface_params *params, mpx_iface **out) {
        *out = new (std::nothrow) Iface(&kOps, of(d), *params);
        return *out ? mpx_status{MPX_OK} : fail_with(MPX_ERR_NO_MEMORY, "out of memory");
    }
    static void iface_close(mpx_iface *i) { delete of(i); }

    static mpx_status iface_query(mpx_iface *i, mpx_iface_attr *attr) {
        const TrampolineTraits &t = of(i)->owner->traits_;
        mpx_iface_attr a{};
        a.caps = MPX_CAP_AM_SHORT | MPX_CAP_AM_BCOPY | MPX_CAP_CONNECT_IFACE | (t.inter_node ? unsigned{MPX_CAP_INTER_NODE} : 0u);
        a.iface_addr_len = kPackedAddress;
        a.max_am_short = t.max_message - kPrefix - kHeader;
        a.max_am_bcopy = t.max_message - kPrefix;
        a.latency_s = t.latency_s;
        a.bandwidth_Bps = t.bandwidth_Bps;
        a.overhead_s = t.latency_s;
        a.atomic_domain = MPX_ATOMIC_DOMAIN_NONE;
        a.size = std::min(attr->size, sizeof a);
        std::memcpy(attr, &a, a.size);
        return MPX_OK;
    }
    static mpx_status iface_address(mpx_iface *i, void *out) {
        pack_address(of(i)->owner->traits_.address, out);
        return MPX_OK;
    }
    static int iface_reachable(mpx_iface *, const void *address, size_t length) {
        std::string parsed;
        if (unpack_address(address, length, &parsed)) return 1;
        last_why = "this is no address of a transport in Python";
        return 0;
    }
    static void iface_forked(mpx_iface *) {}  // descriptors are the Python methods' own
    static uint64_t iface_bytes(mpx_iface *i, int received) {
        return received ? of(i)->owner->received_bytes_.load() : of(i)->owner->sent_bytes_.load();
    }

    static mpx_status ep_create(mpx_iface *i, const void *packed, size_t length, mpx_ep **out) {
        std::string address;
        if (!unpack_address(packed, length, &address)) return fail_with(MPX_ERR_INVALID, "this is no address of a transport in Python");
        try {
            auto ep = std::make_unique<Ep>(i, &of(i)->owner->lane_of(address));
            of(i)->eps[address] = ep.get();
            *out = ep.release();
            return MPX_OK;
        } catch (const std::bad_alloc &) {
            return fail_with(MPX_ERR_NO_MEMORY, "out of memory");
        }
    }
    static mpx_status domain_supply(mpx_domain *, const char *) { return MPX_ERR_UNSUPPORTED; }
    static mpx_status ep_address(mpx_ep *, void *) { return MPX_ERR_UNSUPPORTED; }
    static mpx_status ep_connect(mpx_ep *, const void *, size_t) { return MPX_ERR_UNSUPPORTED; }
    static mpx_status ep_fence_off(mpx_ep *) { return MPX_ERR_UNSUPPORTED; }
    static mpx_status ep_repair(mpx_ep *, const void *, size_t) { return MPX_ERR_UNSUPPORTED; }
    static mpx_status ep_check(mpx_ep *, mpx_completion *) { return MPX_ERR_UNSUPPORTED; }
    static void ep_destroy(mpx_ep *e) {
        Iface &iface = *of(e->iface);
        iface.eps.erase(of(e)->lane->address);
        uint32_t &ended = iface.ended[of(e)->lane->address];
        ended = std::max(ended, of(e)->heard);
        delete of(e);
    }

    static mpx_status am_short(mpx_ep *e, uint8_t id, uint64_t header, const void *data, size_t length) {
        Trampoline &t = *of(e->iface)->owner;
        if (id >= MPX_AM_ID_MAX || length > t.traits_.max_message - kPrefix - kHeader) return MPX_ERR_INVALID;
        if (const mpx_status st = admit(e); st != MPX_OK) return st;
        std::vector<char> message(kPrefix + kHeader + length);
        message[0] = static_cast<char>(id);
        message[1] = kHeader;
        std::memcpy(message.data() + kGenerationAt, &of(e)->generation, sizeof of(e)->generation);
        std::memcpy(message.data() + kPrefix, &header, kHeader);
        if (length) std::memcpy(message.data() + kPrefix + kHeader, data, length);
        return t.push(*of(e)->lane, std::move(message));
    }
    static mpx_status am_bcopy(mpx_ep *e, uint8_t id, size_t length, mpx_pack_fn pack, void *arg) {
        Trampoline &t = *of(e->iface)->owner;
        if (id >= MPX_AM_ID_MAX || length > t.traits_.max_message - kPrefix) return MPX_ERR_INVALID;
        if (const mpx_status st = admit(e); st != MPX_OK) return st;
        std::vector<char> message(kPrefix + length);
        message[0] = static_cast<char>(id);
        std::memcpy(message.data() + kGenerationAt, &of(e)->generation, sizeof of(e)->generation);
        message.resize(kPrefix + pack(message.data() + kPrefix, arg));
        return t.push(*of(e)->lane, std::move(message));
    }
    // Before anything is packed: only the consumer shortens a lane, so there is still room afterwards.
    static mpx_status admit(mpx_ep *e) {
        const Trampoline &t = *of(e->iface)->owner;
        std::lock_guard lock(t.mutex_);
        if (of(e)->lane->failed || of(e)->told) return MPX_ERR_PEER_FAILED;
        return of(e)->lane->messages.size() < Trampoline::kMaxQueued ? MPX_OK : MPX_ERR_NO_RESOURCE;
    }
    static mpx_status am_zcopy(mpx_ep *, uint8_t, const void *, size_t, const mpx_iov *, size_t, mpx_completion *) {
        return MPX_ERR_UNSUPPORTED;
    }
    static mpx_status move(mpx_ep *, const mpx_iov *, size_t, uint64_t, mpx_rkey_h, mpx_completion *) { return MPX_ERR_UNSUPPORTED; }
    static mpx_status atomic64(mpx_ep *, unsigned, uint64_t, uint64_t, uint64_t *, uint64_t, mpx_rkey_h, mpx_completion *) {
        return MPX_ERR_UNSUPPORTED;
    }
    static mpx_status ep_fence(mpx_ep *) { return MPX_ERR_UNSUPPORTED; }
    static mpx_status ep_flush(mpx_ep *, mpx_completion *) { return MPX_ERR_UNSUPPORTED; }

    static unsigned progress(mpx_iface *abi) {
        Iface &iface = *of(abi);
        Trampoline &t = *iface.owner;
        if (!t.incoming_bytes_.load(std::memory_order_acquire)) return 0;
        std::deque<Trampoline::Incoming> arrived;
        {
            std::lock_guard lock(t.mutex_);
            arrived.swap(t.incoming_);
            t.incoming_bytes_ = 0;
        }
        for (Trampoline::Incoming &in : arrived) handle(iface, in);
        return static_cast<unsigned>(arrived.size());
    }
    static void handle(Iface &iface, Trampoline::Incoming &in) {
        const size_t n = in.message.size();
        const unsigned id = n >= kPrefix ? static_cast<unsigned char>(in.message[0]) : unsigned{MPX_AM_ID_MAX};
        const size_t header = n >= kPrefix ? static_cast<unsigned char>(in.message[1]) : 0;
        uint32_t generation = 0;
        if (n >= kPrefix) std::memcpy(&generation, in.message.data() + kGenerationAt, sizeof generation);
        const auto ended = iface.ended.find(in.address);
        if (!in.lost && ended != iface.ended.end() && generation <= ended->second) return;
        mpx_ep *ep = nullptr;
        if (const auto it = iface.eps.find(in.address); it != iface.eps.end()) {
            ep = it->second;
        } else if (!in.lost && in.address.size() <= Trampoline::kMaxAddress) {
            char packed[kPackedAddress];
            pack_address(in.address, packed);
            ep = iface.params.on_incoming(iface.params.arg, packed, sizeof packed);
        }
        if (!ep || of(ep)->told) return;
        of(ep)->heard = std::max(of(ep)->heard, generation);
        if (in.lost || id >= MPX_AM_ID_MAX || (header && header != kHeader) || n < kPrefix + header) {
            of(ep)->told = true;
            return iface.params.on_error(iface.params.arg, ep, in.lost ? MPX_ERR_PEER_FAILED : MPX_ERR_INVALID);
        }
        char *body = in.message.data() + kPrefix;
        const mpx_am_handler &handler = iface.params.am[id];
        handler.fn(handler.arg, ep->user, header ? body : nullptr, header, body + header, n - kPrefix - header, 0);
    }
    static void desc_release(mpx_iface *, void *) {}
    static mpx_status event_arm(mpx_iface *) { return MPX_ERR_UNSUPPORTED; }
    static int event_fd(mpx_iface *) { return -1; }

    static constexpr mpx_iface_ops kOps = {
        .size = sizeof(mpx_iface_ops),
        .am_short = am_short,
        .am_bcopy = am_bcopy,
        .am_zcopy = am_zcopy,
        .put_zcopy = move,
        .get_zcopy = move,
        .atomic64 = atomic64,
        .ep_fence = ep_fence,
        .ep_flush = ep_flush,
        .progress = progress,
        .desc_release = desc_release,
        .event_arm = event_arm,
        .event_fd = event_fd,
    };
};

Trampoline::Trampoline(TrampolineTraits traits) : traits_(std::move(traits)) {
    using T = TrampolineTable;
    table_ = {
        .abi_version = MPX_ABI_VERSION,
        .size = sizeof(mpx_transport),
        .name = traits_.name.c_str(),
        .why = T::why,
        .domain_open = T::domain_open,
        .domain_close = T::domain_close,
        .mem_alloc = T::mem_alloc,
        .mem_free = T::mem_free,
        .mem_reg = T::mem_reg,
        .mem_dereg = T::mem_dereg,
        .rkey_pack = T::rkey_pack,
        .rkey_unpack = T::rkey_unpack,
        .rkey_ptr = T::rkey_ptr,
        .rkey_release = T::rkey_release,
        .iface_open = T::iface_open,
        .iface_close = T::iface_close,
        .iface_query = T::iface_query,
        .iface_address = T::iface_address,
        .iface_reachable = T::iface_reachable,
        .ep_create = T::ep_create,
        .ep_address = T::ep_address,
        .ep_connect = T::ep_connect,
        .ep_fence_off = T::ep_fence_off,
        .ep_repair = T::ep_repair,
        .ep_check = T::ep_check,
        .ep_destroy = T::ep_destroy,
        .iface_bytes = T::iface_bytes,
        .iface_forked = T::iface_forked,
        .domain_supply = T::domain_supply,
    };
    static uint64_t made = 0;
    std::lock_guard lock(registry_mutex);
    number_ = ++made;
    registry[number_] = this;
}

Trampoline::~Trampoline() {
    std::lock_guard lock(registry_mutex);
    registry.erase(number_);
}

std::string Trampoline::device() const { return std::to_string(number_); }

Trampoline::Lane &Trampoline::lane_of(const std::string &address) {
    std::lock_guard lock(mutex_);
    for (Lane &lane : lanes_)
        if (lane.address == address) return lane;
    lanes_.push_back({address, {}, false, 0});
    return lanes_.back();
}

mpx_status Trampoline::push(Lane &lane, std::vector<char> message) {
    std::lock_guard lock(mutex_);
    sent_bytes_ += message.size();
    lane.messages.push_back(std::move(message));
    queued_.fetch_add(1, std::memory_order_release);
    return MPX_OK;
}

size_t Trampoline::lanes() const {
    std::lock_guard lock(mutex_);
    return lanes_.size();
}

const std::string &Trampoline::address(size_t lane) const {
    std::lock_guard lock(mutex_);
    return lanes_[lane].address;
}

const std::vector<char> *Trampoline::front(size_t lane) const {
    std::lock_guard lock(mutex_);
    const auto &messages = lanes_[lane].messages;
    return messages.empty() ? nullptr : &messages.front();
}

void Trampoline::pop(size_t lane) {
    std::lock_guard lock(mutex_);
    lanes_[lane].messages.pop_front();
    queued_.fetch_sub(1, std::memory_order_release);
}

void Trampoline::put(const char *address, size_t address_length, const void *message, size_t length) {
    const char *bytes = static_cast<const char *>(message);
    Incoming in{std::string(address, address_length), std::vector<char>(bytes, bytes + length), false};
    std::lock_guard lock(mutex_);
    received_bytes_ += length;
    incoming_.push_back(std::move(in));
    incoming_bytes_.fetch_add(length + 1, std::memory_order_release);
}

void Trampoline::fail(const char *address, size_t address_length) {
    Incoming in{std::string(address, address_length), {}, true};
    std::lock_guard lock(mutex_);
    for (Lane &lane : lanes_) {
        if (lane.address != in.address || lane.failed) continue;
        lane.failed = true;
        queued_.fetch_sub(lane.messages.size(), std::memory_order_release);
        lane.messages.clear();
    }
    incoming_.push_back(std::move(in));
    incoming_bytes_.fetch_add(1, std::memory_order_release);
}

}  // namespace mpx
