// See mr_cache.h.
#include "mr_cache.h"

#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace mpx {
namespace {

constexpr double kLookUpSeconds = 1e-6;  // of a hit
constexpr size_t kRegions = 4096;
constexpr int kTries = 6;  // to arm or to register what changes meanwhile
constexpr unsigned kBothWays = MPX_ACCESS_LOCAL | MPX_ACCESS_REMOTE_READ;

bool may_pin_at_will() {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2]{};
    return !syscall(SYS_capget, &header, data) && data[0].effective & 1u << CAP_IPC_LOCK;
}

}  // namespace

// A quarter of the memory: what is kept is mostly memory that the program uses anyhow. Half of what may be pinned, where that is
// limited: transports pin memory of their own, and what is in use is pinned too.
MrCache::Limits MrCache::Limits::of_machine() {
    Limits limits{static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE)) / 4, kRegions};
    rlimit pinned{};
    if (!getrlimit(RLIMIT_MEMLOCK, &pinned) && pinned.rlim_cur != RLIM_INFINITY && !may_pin_at_will())
        limits.bytes = std::min<uint64_t>(limits.bytes, pinned.rlim_cur / 2);
    return limits;
}

MrCache::MrCache(const mpx_transport *table, mpx_domain *domain, double cost_s, bool allowed, Limits limits)
    : table_(table),
      domain_(domain),
      limits_(limits),
      page_mask_(sysconf(_SC_PAGESIZE) - 1) {
    report_.pays = cost_s > kLookUpSeconds;
    if (!report_.pays) report_.reason = "registering costs no more than looking it up";
    else if (!allowed) report_.reason = "PYMPX_REGCACHE=off";
}

MrCache::~MrCache() {
    if (forked_ || !monitor_) return;
    monitor_->remove(this);
    while (evict_one()) {
    }
    reap();
}

void MrCache::forked() {
    forked_ = true;
    if (monitor_) monitor_->forked();
}

CacheReport MrCache::report() const {
    CacheReport copy = report_;
    copy.invalidated = invalidated_.load(std::memory_order_relaxed);
    return copy;
}

void MrCache::own(const void *address, uint64_t length, mpx_mem_h memh) {
    const auto from = reinterpret_cast<uintptr_t>(address);
    Entry &e = owned_[from];
    e.kind = Entry::Kind::kOwned;
    e.memh = memh;
    e.pages = {from, from + length};
}

// --- acquire and release

Registration *MrCache::acquire(const void *address, uint64_t length, unsigned access, mpx_status *status) {
    mpx_status ignored;
    if (!status) status = &ignored;
    *status = forked_ ? MPX_ERR_UNSUPPORTED : MPX_OK;
    if (forked_) return nullptr;
    const Pages bytes{reinterpret_cast<uintptr_t>(address), reinterpret_cast<uintptr_t>(address) + length};
    if (const auto it = owned_.upper_bound(bytes.from); it != owned_.begin())
        if (Entry &e = std::prev(it)->second; e.pages.covers(bytes)) return &e;
    reap();
    if (length && keeps()) {
        const Pages pages{bytes.from & ~page_mask_, (bytes.to + page_mask_) & ~page_mask_};
        Entry *e = find(pages, access);
        if (!e) e = add(pages, access, status);
        if (e || *status != MPX_OK) return e;
    }
    auto once = std::make_unique<Entry>();
    once->pages = bytes;
    *status = enroll(once.get(), access, access);
    if (*status != MPX_OK) return nullptr;
    report_.uncacheable++;
    return once.release();
}

void MrCache::release(Registration *registration) {
    auto *e = static_cast<Entry *>(registration);
    if (forked_ || e->kind == Entry::Kind::kOwned) return;
    if (e->kind == Entry::Kind::kKept) {
        const std::lock_guard hold(monitor_->lock());
        if (--e->users) return;
        if (e->indexed) return idle_.push_back(e);
    }
    deregister(e);
}

bool MrCache::keeps() {
    if (monitor_) return true;
    if (!report_.reason.empty()) return false;
    monitor_ = MemMonitor::of_process(&report_.reason);
    if (!monitor_) return false;
    index_.reserve(limits_.regions);
    monitor_->add(this);
    return true;
}

MrCache::Entry *MrCache::find(const Pages &pages, unsigned access) {
    if (!monitor_->settle()) return nullptr;  // a miss is always right
    const std::lock_guard hold(monitor_->lock());
    Entry *e = index_.find(pages, [access](const Entry &x) { return x.usable && (x.access & access) == access; });
    if (!e) return nullptr;
    if (!e->users++) idle_.remove(e);
    report_.hits++;
    return e;
}

// A new registration that is kept; nullptr with *status MPX_OK when this memory, or now, is none to keep one of.
MrCache::Entry *MrCache::add(const Pages &pages, unsigned access, mpx_status *status) {
    if (!make_room(pages.bytes())) return nullptr;
    auto e = std::make_unique<Entry>();
    e->kind = Entry::Kind::kKept;
    e->pages = pages;
    for (int tries = 0; tries < kTries; tries++) {
        RangeSet::State cover;
        {
            const std::lock_guard hold(monitor_->lock());
            cover = monitor_->cover(pages.from, pages.to);
            e->indexed = cover == RangeSet::State::kArmed;
            if (e->indexed) index_.insert(e.get());
        }
        if (cover == RangeSet::State::kTainted) return nullptr;
        if (cover != RangeSet::State::kArmed) {
            if (monitor_->arm(pages.from, pages.to)) return nullptr;
            continue;
        }
        *status = enroll(e.get(), access, access | kBothWays);
        {
            const std::lock_guard hold(monitor_->lock());
            if (*status != MPX_OK) {
                take_out(*e);
                return nullptr;
            }
            if (e->indexed) {
                supersede(*e);
                e->usable = true;
                report_.misses++;
                return e.release();
            }
        }
        withdraw(*e);  // it changed meanwhile
    }
    return nullptr;
}

// Takes out what `e` makes superfluous. The lock is held.
void MrCache::supersede(const Entry &e) {
    index_.remove(e.pages, [&](Entry &other) {
        if (other.users || !e.pages.covers(other.pages) || (other.access & ~e.access)) return false;
        report_.evictions++;
        bury(other);
        return true;
    });
}

// `e` is idle, and out of the index. The lock is held.
void MrCache::bury(Entry &e) {
    e.indexed = false;
    idle_.remove(&e);
    dead_.push_back(&e);
    any_dead_.store(true, std::memory_order_relaxed);
}

void MrCache::changed(uintptr_t from, uintptr_t to) noexcept {
    index_.remove({from, to}, [this](Entry &e) {
        invalidated_.fetch_add(1, std::memory_order_relaxed);
        if (e.users) e.indexed = false;
        else bury(e);
        return true;
    });
}

void MrCache::reap_dead() {
    List<Entry> dead;
    {
        const std::lock_guard hold(monitor_->lock());
        std::swap(dead, dead_);
        any_dead_.store(false, std::memory_order_relaxed);
    }
    while (Entry *e = dead.pop_front()) deregister(e);
}

// --- room

bool MrCache::make_room(uint64_t bytes) {
    if (bytes > limits_.bytes) return false;
    while (report_.bytes + bytes > limits_.bytes || report_.regions >= limits_.regions)
        if (!evict_one()) return false;
    return true;
}

// Gives up what was unused for longest. Returns its bytes, 0 when all is in use.
uint64_t MrCache::evict_one() {
    if (!monitor_) return 0;
    Entry *e;
    {
        const std::lock_guard hold(monitor_->lock());
        e = idle_.pop_front();
        if (!e) return 0;
        take_out(*e);
        report_.evictions++;
    }
    const uint64_t bytes = e->pages.bytes();
    deregister(e);
    return bytes;
}

void MrCache::take_out(Entry &e) {
    index_.remove(e.pages, [&](const Entry &other) { return &other == &e; });
    e.indexed = false;
}

// --- the transport

// Registers with `wide` access, or with what is `wanted` where the memory or the transport does not allow as much.
mpx_status MrCache::enroll(Entry *e, unsigned wanted, unsigned wide) {
    for (;;) {
        void *const start = reinterpret_cast<void *>(e->pages.from);
        const mpx_status st = table_->mem_reg(domain_, start, e->pages.bytes(), MPX_MEM_HOST, wide, &e->memh);
        if (st == MPX_OK) {
            e->access = wide;
            report_.bytes += e->pages.bytes();
            report_.regions++;
            return st;
        }
        if (st != MPX_ERR_NO_MEMORY && wide != wanted) {
            wide = wanted;
            continue;
        }
        uint64_t freed = 0;  // more may be pinned than the limits say, by others too
        for (uint64_t n = 1; st == MPX_ERR_NO_MEMORY && n && freed < e->pages.bytes(); freed += n) n = evict_one();
        if (!freed) return st;
    }
}

void MrCache::withdraw(Entry &e) {
    table_->mem_dereg(domain_, e.memh);
    report_.bytes -= e.pages.bytes();
    report_.regions--;
}

void MrCache::deregister(Entry *e) {
    withdraw(*e);
    delete e;
}

}  // namespace mpx
