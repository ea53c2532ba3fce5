// Registrations of a transport's domain: made once and kept for buffers that come again, until their memory changes (mem_monitor.h), others
// need the room, or the transport is closed. Where keeping them does not pay, is switched off, or cannot be made safe, each is made for
// one use; whoever needs a registration sees no difference.
//
// A registration that may be kept covers whole pages, and where the memory allows it both sending and receiving, so the same buffer hits
// either way. How one comes to be: it is put into the index while its pages are armed, then registered, and usable only if it is still in
// the index: so no change between the two is missed. The monitor's thread takes what has changed out of the index, and no more; it is
// deregistered later, by whoever calls here, when nobody uses it.
//
// Threads: the engine lock is held in every method; only changed() is called by others, under the monitor's lock. Ownership: the cache owns
// its registrations, the domain outlives it; all that was acquired is released before it ends.
#pragma once
#include <pympx/transport.h>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "list.h"
#include "mem_monitor.h"
#include "mr_index.h"

namespace mpx {

struct Registration {
    mpx_mem_h memh = nullptr;
};

struct CacheReport {
    bool pays = false;   // registering costs enough that keeping it is of use
    std::string reason;  // why nothing is kept all the same, one line; empty: it is
    uint64_t hits = 0;
    uint64_t misses = 0;       // registered and kept
    uint64_t uncacheable = 0;  // registered for one use
    uint64_t evictions = 0;    // given up for others
    uint64_t invalidated = 0;  // given up because memory changed
    uint64_t bytes = 0;        // registered now, and in how many regions
    uint64_t regions = 0;
};

class MrCache final : MemMonitor::Listener {
public:
    struct Limits {
        uint64_t bytes;
        size_t regions;
        static Limits of_machine();
    };

    // cost_s: of a registration, as the transport's attributes have it. allowed: by PYMPX_REGCACHE.
    MrCache(const mpx_transport *table, mpx_domain *domain, double cost_s, bool allowed, Limits limits = Limits::of_machine());
    ~MrCache();
    MrCache(const MrCache &) = delete;
    MrCache &operator=(const MrCache &) = delete;

    // A registration of at least this memory with at least this access. nullptr: the transport refused, by *status.
    Registration *acquire(const void *address, uint64_t length, unsigned access, mpx_status *status = nullptr);
    void release(Registration *);
    // Deregisters what changed, so that its pages are free. Cheap when nothing did.
    void reap() {
        if (any_dead_.load(std::memory_order_relaxed)) reap_dead();
    }
    // Memory that the runtime itself registered, with every access that it may want, and unmaps only after disown.
    void own(const void *address, uint64_t length, mpx_mem_h);
    void disown(const void *address) { owned_.erase(reinterpret_cast<uintptr_t>(address)); }

    CacheReport report() const;
    // In a forked child, which has copies of nothing: everything is dropped; acquire() fails from now on.
    void forked();

private:
    struct Entry : Registration {
        enum class Kind : uint8_t { kKept, kOnce, kOwned };
        Kind kind = Kind::kOnce;
        bool indexed = false;
        bool usable = false;
        unsigned access = 0;
        uint32_t users = 1;
        Pages pages{};         // kKept: whole ones; else as it was asked for
        ListLink<Entry> link;  // idle_ or dead_
    };

    void changed(uintptr_t from, uintptr_t to) noexcept override;
    bool keeps();
    Entry *find(const Pages &, unsigned access);
    Entry *add(const Pages &, unsigned access, mpx_status *status);
    void supersede(const Entry &);
    void bury(Entry &);
    void take_out(Entry &);
    void reap_dead();
    bool make_room(uint64_t bytes);
    uint64_t evict_one();
    mpx_status enroll(Entry *, unsigned wanted, unsigned wide);
    void withdraw(Entry &);
    void deregister(Entry *);

    const mpx_transport *table_;
    mpx_domain *domain_;
    Limits limits_;
    uintptr_t page_mask_;
    bool forked_ = false;
    std::map<uintptr_t, Entry> owned_;  // by address
    std::shared_ptr<MemMonitor> monitor_;
    // Under the monitor's lock, if there is one:
    MrIndex<Entry> index_;
    List<Entry> idle_;  // indexed and without users, the longest unused first
    List<Entry> dead_;  // changed, to be deregistered
    std::atomic<bool> any_dead_{false};
    std::atomic<uint64_t> invalidated_{0};
    CacheReport report_;  // but for the former; not under that lock
};

}  // namespace mpx
