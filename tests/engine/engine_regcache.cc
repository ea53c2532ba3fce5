// The registration cache and what it stands on, with a transport that only counts: what hits, what is given up, what is never kept, and
// every way in which the kernel changes memory.
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <thread>

#include "engine/mappings.h"
#include "engine/mr_index.h"
#include "engine/range_set.h"
#include "engine_world.h"
#include "regcache_support.h"

using namespace mpx;
using namespace mpx::test;
using State = RangeSet::State;

namespace {

constexpr double kCost = 17e-6;
constexpr MrCache::Limits kRoomy{64u << 20, 256};

// One use of a buffer: what the card has of it must be what lies there now.
struct Use {
    bool kept, hit;
};
Use use(MrCache &cache, const void *at, size_t length, unsigned access = MPX_ACCESS_REMOTE_READ) {
    const CacheReport before = cache.report();
    Registration *r = cache.acquire(at, length, access);
    REQUIRE(r);
    const CountingCard::Region &region = CountingCard::region(r);
    CHECK((region.access & access) == access);
    CHECK(region.from <= reinterpret_cast<uintptr_t>(at));
    CHECK(region.to >= reinterpret_cast<uintptr_t>(at) + length);
    const CacheReport after = cache.report();
    const Use seen{after.uncacheable == before.uncacheable, after.hits > before.hits};
    if (seen.kept) CHECK_FALSE(CountingCard::stale(r, at, length));
    cache.release(r);
    return seen;
}
// What changed before this call has been told, and what was kept of it deregistered.
void reap(MrCache &cache) {
    std::string error;
    {
        const auto monitor = MemMonitor::of_process(&error);
        const std::lock_guard hold(monitor->lock());  // under which it is read and told
    }
    cache.reap();
}
bool hits(MrCache &cache, const void *at, size_t length, unsigned access = MPX_ACCESS_REMOTE_READ) {
    return use(cache, at, length, access).hit;
}
bool keeps(MrCache &cache, const void *at, size_t length) {
    use(cache, at, length);
    return hits(cache, at, length);
}

}  // namespace

TEST_CASE("regcache: ranges are what a list of pages says, and on the safe side when storage is short") {
    for (const size_t capacity : {1000, 6, 2, 1}) {
        std::mt19937_64 random(seed());
        RangeSet set(capacity);
        std::map<uintptr_t, State> model;
        constexpr uintptr_t kSpan = 60;
        for (int round = 0; round < 20'000; round++) {
            const uintptr_t from = random() % kSpan, to = from + 1 + random() % (kSpan - from);
            const auto of = [&](uintptr_t page) { return model.contains(page) ? model[page] : State::kUnknown; };
            switch (random() % 4) {
                case 0:
                    if (!set.begin_arming(from, to)) {
                        CHECK(capacity < 1000);
                        break;
                    }
                    {
                        uintptr_t lost = random() % 3 ? 0 : from + random() % (to - from);  // changed while it was being armed
                        if (lost) set.erase(lost, lost + 1);
                        const uintptr_t low = random() % 4 ? from : from + random() % (to - from), high = random() % 4 ? to : low;
                        for (uintptr_t page = from; page < to; page++) {
                            if (page == lost && lost) model.erase(page);
                            else if (of(page) == State::kUnknown && page >= low && page < high) model[page] = State::kArmed;
                        }
                        set.end_arming(low, high);
                    }
                    break;
                case 1:
                    set.taint(from, to);
                    for (uintptr_t page = from; page < to; page++) model[page] = State::kTainted;
                    break;
                default:
                    set.erase(from, to);
                    for (uintptr_t page = from; page < to; page++) model.erase(page);
            }
            for (uintptr_t a = 0; a < kSpan; a += 7) {
                const uintptr_t b = a + 1 + random() % (kSpan - a);
                State expected = State::kArmed;
                for (uintptr_t page = a; page < b && expected != State::kTainted; page++)
                    if (of(page) != State::kArmed) expected = of(page);
                for (uintptr_t page = a; page < b; page++)
                    if (of(page) == State::kTainted) expected = State::kTainted;
                const State said = set.cover(a, b);
                if (capacity == 1000) {
                    CHECK(said == expected);
                    CHECK((set.known_until(a) > a) == (of(a) != State::kUnknown));
                }
                if (said == State::kArmed) REQUIRE(expected == State::kArmed);
                if (expected == State::kTainted) REQUIRE(said == State::kTainted);
            }
        }
    }
}

TEST_CASE("regcache: the index finds what a plain list finds") {
    struct Entry {
        Pages pages;
        int colour;
    };
    std::mt19937_64 random(seed());
    MrIndex<Entry> index;
    index.reserve(200);
    std::vector<std::unique_ptr<Entry>> all;
    for (int round = 0; round < 20'000; round++) {
        const uintptr_t from = random() % 500, to = from + 1 + random() % (random() % 10 ? 20 : 300);
        const Pages pages{from, to};
        const int colour = static_cast<int>(random() % 3);
        if (random() % 2 && all.size() < 200) {
            all.push_back(std::make_unique<Entry>(Entry{pages, colour}));
            index.insert(all.back().get());
        } else if (random() % 4 == 0) {
            const auto leaves = [&](const Entry &e) { return e.pages.from < to && e.pages.to > from && e.colour == colour; };
            size_t left = 0;
            index.remove(pages, [&](Entry &e) {
                CHECK(e.pages.from < to);
                CHECK(e.pages.to > from);
                left += e.colour == colour;
                return e.colour == colour;
            });
            CHECK(left == std::erase_if(all, [&](const auto &e) { return leaves(*e); }));
        }
        const Pages wanted{from, from + 1 + random() % 8};
        const Entry *found = index.find(wanted, [&](const Entry &e) { return e.colour == colour; });
        const bool there =
            std::any_of(all.begin(), all.end(), [&](const auto &e) { return e->pages.covers(wanted) && e->colour == colour; });
        REQUIRE((found != nullptr) == there);
        if (found) REQUIRE((found->pages.covers(wanted) && found->colour == colour));
    }
}

TEST_CASE("regcache: both ways to find a mapping agree, and tell ordinary memory from what others can change") {
    Memory private_memory(4);
    Memory shared(4, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
    const int memfd = memfd_create("test", MFD_CLOEXEC), file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    REQUIRE(ftruncate(memfd, 16 * static_cast<off_t>(kPage)) == 0);
    Memory of_memfd(4, PROT_READ | PROT_WRITE, MAP_SHARED, memfd), copied(4, PROT_READ | PROT_WRITE, MAP_PRIVATE, memfd);
    Memory of_file(1, PROT_READ, MAP_PRIVATE, file);
    const int segment = shmget(IPC_PRIVATE, 4 * kPage, 0600);
    void *const sysv = shmat(segment, nullptr, 0);
    shmctl(segment, IPC_RMID, nullptr);
    char on_stack = 0;
    void *const on_heap = sbrk(static_cast<intptr_t>(kPage));
    Mappings mappings;
    const auto both = [&](const void *at) {
        const auto address = reinterpret_cast<uintptr_t>(at);
        Mapping asked{}, read{};
        const int by_list = mappings.read(address, &read), by_question = mappings.ask(address, &asked);
        REQUIRE(by_list == 1);
        if (by_question >= 0) {
            CHECK(by_question == 1);
            CHECK(asked.start == read.start);
            CHECK(asked.end == read.end);
            CHECK(asked.ordinary == read.ordinary);
        }
        CHECK(read.start <= address);
        CHECK(read.end > address);
        return read;
    };
    const Mapping own = both(private_memory.page(1));
    CHECK(own.start == reinterpret_cast<uintptr_t>(private_memory.at));
    CHECK(own.end == own.start + private_memory.size);
    CHECK(own.ordinary);
    CHECK(both(on_heap).ordinary);
    CHECK(both(&on_stack).ordinary);
    for (const void *at : {static_cast<const void *>(shared.at), static_cast<const void *>(of_memfd.at),
                           static_cast<const void *>(copied.at), static_cast<const void *>(of_file.at), static_cast<const void *>(sysv)})
        CHECK_FALSE(both(at).ordinary);
    Mapping none;
    CHECK_FALSE(mappings.at(kPage, &none));
    CHECK(mappings.read(kPage, &none) == 0);
    CHECK(mappings.read(UINTPTR_MAX - kPage, &none) == 0);
    shmdt(sysv);
    close(memfd);
    close(file);
}

TEST_CASE("regcache: what comes again hits, whichever way it goes") {
    CountingCard card;
    MrCache cache(&card.table, card.domain(), kCost, true, kRoomy);
    Memory m(16);
    CHECK_FALSE(hits(cache, m.page(2) + 100, 5000));
    CHECK(hits(cache, m.page(2) + 100, 5000));
    CHECK(hits(cache, m.page(2), 2 * kPage, MPX_ACCESS_LOCAL));
    CHECK(hits(cache, m.page(3) + 7, 1));
    CHECK(card.registered == 1);
    CHECK_FALSE(hits(cache, m.page(3), kPage + 1));  // a page more
    CHECK(card.live.size() == 2);
    CHECK_FALSE(hits(cache, m.page(1), 6 * kPage));  // covers both, which are then of no use
    CHECK(hits(cache, m.page(2) + 100, 5000));
    CHECK(hits(cache, m.page(3), kPage + 1));
    CHECK(card.live.size() == 1);
    CHECK(card.registered == 3);
    const CacheReport report = cache.report();
    CHECK(report.pays);
    CHECK(report.reason.empty());
    CHECK(report.hits == 5);
    CHECK(report.misses == 3);
    CHECK(report.evictions == 2);
    CHECK(report.uncacheable == 0);
    CHECK(report.bytes == 6 * kPage);
    CHECK(report.regions == 1);
}

TEST_CASE("regcache: more access than an entry has is a new one; memory that cannot be written is registered for reading only") {
    CountingCard card;
    MrCache cache(&card.table, card.domain(), kCost, true, kRoomy);
    Memory m(4);
    card.refused_access = MPX_ACCESS_LOCAL;  // as for memory that cannot be written
    CHECK_FALSE(hits(cache, m.at, kPage));
    CHECK(hits(cache, m.at, kPage));
    Registration *read_only = cache.acquire(m.at, kPage, MPX_ACCESS_REMOTE_READ);
    CHECK(CountingCard::region(read_only).access == MPX_ACCESS_REMOTE_READ);
    mpx_status status = MPX_OK;
    CHECK(cache.acquire(m.at, kPage, MPX_ACCESS_LOCAL, &status) == nullptr);
    CHECK(status == MPX_ERR_INVALID);
    card.refused_access = 0;
    CHECK_FALSE(hits(cache, m.at, kPage, MPX_ACCESS_LOCAL));
    CHECK(hits(cache, m.at, kPage, MPX_ACCESS_LOCAL));
    CHECK_FALSE(hits(cache, m.at, kPage, MPX_ACCESS_LOCAL | MPX_ACCESS_REMOTE_WRITE));
    CHECK(hits(cache, m.at, kPage, MPX_ACCESS_REMOTE_READ | MPX_ACCESS_REMOTE_WRITE));
    cache.release(read_only);
}

TEST_CASE("regcache: the least recently used gives way to limits of bytes and of regions; what is in use never does") {
    for (const bool by_bytes : {false, true}) {
        CountingCard card;
        MrCache cache(&card.table, card.domain(), kCost, true,
                      by_bytes ? MrCache::Limits{3 * kPage, 100} : MrCache::Limits{100 * kPage, 3});
        Memory m(20);
        for (size_t n : {0, 2, 4}) CHECK_FALSE(hits(cache, m.page(n), 1));
        CHECK(hits(cache, m.page(0), 1));
        CHECK_FALSE(hits(cache, m.page(6), 1));  // instead of 2
        CHECK(hits(cache, m.page(4), 1));
        CHECK(hits(cache, m.page(0), 1));
        CHECK(hits(cache, m.page(6), 1));
        CHECK_FALSE(hits(cache, m.page(2), 1));  // instead of 4
        CHECK(card.live.size() == 3);
        std::vector<Registration *> held;
        for (size_t n : {0, 2, 6, 8, 10}) held.push_back(cache.acquire(m.page(n), 1, MPX_ACCESS_LOCAL));
        CHECK(card.live.size() == 5);  // beyond the limits: for one use
        CHECK(cache.report().uncacheable == 2);
        CHECK(cache.acquire(m.page(0), 1, MPX_ACCESS_LOCAL) == held[0]);
        cache.release(held[0]);
        for (Registration *r : held) cache.release(r);
        CHECK(card.live.size() == 3);
        CHECK(hits(cache, m.page(0), 1));
        if (by_bytes) {
            CHECK_FALSE(use(cache, m.page(12), 4 * kPage).kept);  // larger than everything
            CHECK(hits(cache, m.page(0), 1));
        }
    }
}

TEST_CASE("regcache: where the kernel pins no more, others give way before the transport's refusal counts") {
    CountingCard card;
    MrCache cache(&card.table, card.domain(), kCost, true, kRoomy);
    Memory m(20);
    card.most_bytes = 4 * kPage;
    for (size_t n : {0, 1, 2, 3}) use(cache, m.page(n), 1);
    CHECK(use(cache, m.page(10), 2 * kPage).kept);
    CHECK(card.live.size() == 3);
    CHECK(hits(cache, m.page(3), 1));
    Registration *held = cache.acquire(m.page(10), 2 * kPage, MPX_ACCESS_LOCAL);
    mpx_status status = MPX_OK;
    CHECK(cache.acquire(m.page(5), 3 * kPage, MPX_ACCESS_LOCAL, &status) == nullptr);
    CHECK(status == MPX_ERR_NO_MEMORY);
    CHECK(card.live.size() == 1);
    CHECK(cache.acquire(m.page(10), 1, MPX_ACCESS_LOCAL) == held);
    cache.release(held);
    cache.release(held);
}

TEST_CASE("regcache: nothing is kept where it does not pay, is switched off, or is the runtime's own") {
    CountingCard card;
    Memory m(4);
    MrCache cheap(&card.table, card.domain(), 50e-9, true, kRoomy), off(&card.table, card.domain(), kCost, false, kRoomy);
    for (MrCache *cache : {&cheap, &off})
        for (int round = 1; round <= 3; round++) {
            Registration *r = cache->acquire(m.at + 10, 100, MPX_ACCESS_LOCAL);
            CHECK(CountingCard::region(r).from == reinterpret_cast<uintptr_t>(m.at + 10));
            CHECK(CountingCard::region(r).to == reinterpret_cast<uintptr_t>(m.at + 110));
            CHECK(CountingCard::region(r).access == MPX_ACCESS_LOCAL);
            CHECK(cache->report().regions == 1);
            cache->release(r);
            CHECK(card.live.empty());
            CHECK(cache->report().uncacheable == static_cast<uint64_t>(round));
        }
    CHECK_FALSE(cheap.report().pays);
    CHECK(cheap.report().reason == "registering costs no more than looking it up");
    CHECK(off.report().pays);
    CHECK(off.report().reason == "PYMPX_REGCACHE=off");

    MrCache cache(&card.table, card.domain(), kCost, true, kRoomy);
    const auto memh = reinterpret_cast<mpx_mem_h>(&card);
    for (MrCache *owner : {&cache, &cheap}) {
        owner->own(m.page(1), 2 * kPage, memh);
        const uint64_t before = card.registered;
        for (const char *at : {m.page(1), m.page(2), m.page(3) - 1}) {
            Registration *r = owner->acquire(at, 1, MPX_ACCESS_REMOTE_WRITE);
            CHECK(r->memh == memh);
            owner->release(r);
        }
        CHECK(card.registered == before);
        for (const auto &[at, length] : {std::pair<const char *, size_t>{m.page(0), kPage + 1}, {m.page(3) - 1, 2}, {m.page(3), 1}}) {
            Registration *r = owner->acquire(at, length, MPX_ACCESS_LOCAL);
            CHECK(r->memh != memh);
            owner->release(r);
        }
        owner->disown(m.page(1));
        Registration *r = owner->acquire(m.page(1), 1, MPX_ACCESS_LOCAL);
        CHECK(r->memh != memh);
        owner->release(r);
    }
}

namespace {

struct Operation {
    const char *name;
    void (*run)(Memory &);
    bool tainted = false;  // its pages are not kept again until they are unmapped
};

// Each changes the memory of pages 4 to 8 of sixteen, or all of them.
const Operation kOperations[] = {
    {"munmap of a part", [](Memory &m) { munmap(m.page(4), 4 * kPage), m.map(4, 4); }},
    {"munmap of all", [](Memory &m) { munmap(m.at, m.size), m.map(0, 16); }},
    {"munmap around it", [](Memory &m) { munmap(m.page(3), 6 * kPage), m.map(3, 6); }},
    {"mmap over it", [](Memory &m) { m.map(4, 4); }},
    {"mmap over all", [](Memory &m) { m.map(0, 16); }},
    {"mmap over one page of it", [](Memory &m) { m.map(7, 1); }},
    {"mremap to elsewhere",
     [](Memory &m) {
         Memory other(4);
         REQUIRE(mremap(m.page(4), 4 * kPage, 4 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, other.at) == other.at);
         m.map(4, 4);
     }},
    {"mremap to elsewhere, the old place stays mapped",
     [](Memory &m) {
         Memory other(4);
         REQUIRE(mremap(m.page(4), 4 * kPage, 4 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED | kDontUnmap, other.at) == other.at);
     }},
    {"mremap of something else to it",
     [](Memory &m) {
         Memory other(4);
         REQUIRE(mremap(other.at, 4 * kPage, 4 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, m.page(4)) == m.page(4));
     }},
    {"mremap to less, and back to more",
     [](Memory &m) {
         REQUIRE(mremap(m.at, 16 * kPage, 6 * kPage, 0) == m.at);
         REQUIRE(mremap(m.at, 6 * kPage, 16 * kPage, 0) == m.at);
     }},
    {"madvise DONTNEED", [](Memory &m) { REQUIRE(madvise(m.page(4), 4 * kPage, MADV_DONTNEED) == 0); }, true},
    {"madvise DONTNEED of one page of it", [](Memory &m) { REQUIRE(madvise(m.page(7), kPage, MADV_DONTNEED) == 0); }, true},
    {"madvise FREE", [](Memory &m) { REQUIRE(madvise(m.page(4), 4 * kPage, MADV_FREE) == 0); }, true},
};

void number(Memory &m, uint64_t first) {
    for (size_t n = 0; n < m.size / kPage; n++) *reinterpret_cast<uint64_t *>(m.page(n)) = first + n;
}

}  // namespace

TEST_CASE("regcache: whatever the kernel does to memory, what was registered is not used again; what lies beside it is") {
    CountingCard card;
    MrCache cache(&card.table, card.domain(), kCost, true, kRoomy);
    for (const Operation &operation : kOperations) {
        const std::string name = operation.name;
        CAPTURE(name);
        const bool all = name.find("all") != std::string::npos, rest = name.find("less") != std::string::npos;  // all behind page 6 too
        Memory m(16);
        number(m, 100);
        CHECK(keeps(cache, m.page(0), 3 * kPage));
        for (const size_t n : {4, 12}) CHECK(keeps(cache, m.page(n), 4 * kPage));
        Registration *in_use = cache.acquire(m.page(4), 4 * kPage, MPX_ACCESS_LOCAL);
        const auto *of_card = reinterpret_cast<CountingCard::Region *>(in_use->memh);
        const size_t held = card.live.size();
        operation.run(m);
        number(m, 1000);
        reap(cache);
        CHECK(card.live.size() == held - (all ? 2 : rest ? 1 : 0));
        CHECK(card.live.contains(const_cast<CountingCard::Region *>(of_card)));
        const Use next = use(cache, m.page(4), 4 * kPage);  // another one, although the first is still in use
        CHECK_FALSE(next.hit);
        cache.release(in_use);
        CHECK_FALSE(card.live.contains(const_cast<CountingCard::Region *>(of_card)));
        CHECK(next.kept == !operation.tainted);
        CHECK(hits(cache, m.page(4), 4 * kPage) == !operation.tainted);
        if (!all) number(m, 100);  // beside it nothing has changed
        CHECK(hits(cache, m.page(0), 3 * kPage) == !all);
        if (!rest) CHECK(hits(cache, m.page(12), 4 * kPage) == !all);
        if (operation.tainted) {
            CHECK_FALSE(keeps(cache, m.page(6), 2 * kPage));
            m.map(4, 4);
            number(m, 2000);
            CHECK(keeps(cache, m.page(4), 4 * kPage));
        }
    }
    CHECK(cache.report().invalidated >= std::size(kOperations));
}

TEST_CASE("regcache: memory that grows, moves as a whole, or is the program's break") {
    CountingCard card;
    MrCache cache(&card.table, card.domain(), kCost, true, kRoomy);
    char *at = static_cast<char *>(mmap(nullptr, 8 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK(keeps(cache, at, 8 * kPage));
    for (size_t pages : {16, 64, 256}) {  // in place or elsewhere, as the kernel likes; the whole of an armed mapping may
        at = static_cast<char *>(mremap(at, pages / (pages == 16 ? 2 : 4) * kPage, pages * kPage, MREMAP_MAYMOVE));
        REQUIRE(at != MAP_FAILED);
        *reinterpret_cast<uint64_t *>(at) = pages;
        CHECK(keeps(cache, at, pages * kPage));
    }
    munmap(at, 256 * kPage);
    reap(cache);
    CHECK(card.live.empty());

    // Nothing may allocate between the two ends of a use of the break.
    auto *const end = static_cast<char *>(sbrk(static_cast<intptr_t>(8 * kPage + kPage)));
    char *const heap = end + (kPage - reinterpret_cast<uintptr_t>(end) % kPage);
    bool kept[3], stale = false;
    for (int round = 0; round < 3; round++) {
        *reinterpret_cast<uint64_t *>(heap) = 7 + static_cast<uint64_t>(round);
        Registration *r = cache.acquire(heap, 4 * kPage, MPX_ACCESS_LOCAL);
        stale |= CountingCard::stale(r, heap, 4 * kPage);
        cache.release(r);
        const uint64_t hits_before = cache.report().hits;
        r = cache.acquire(heap, 4 * kPage, MPX_ACCESS_LOCAL);
        kept[round] = cache.report().hits > hits_before;
        cache.release(r);
        if (sbrk(0) == end + 9 * kPage) {
            sbrk(-9 * static_cast<intptr_t>(kPage));
            sbrk(9 * static_cast<intptr_t>(kPage));
        } else {
            stale = true;  // somebody else moved it: the test is void
        }
    }
    CHECK_FALSE(stale);
    CHECK(kept[0]);
    CHECK(kept[1]);
    CHECK(kept[2]);
    CHECK(cache.report().uncacheable == 0);
}

TEST_CASE("regcache: what others can change without notice is never kept, nor what another userfaultfd watches") {
    CountingCard card;
    MrCache cache(&card.table, card.domain(), kCost, true, kRoomy);
    const int memfd = memfd_create("test", MFD_CLOEXEC);
    REQUIRE(ftruncate(memfd, 16 * static_cast<off_t>(kPage)) == 0);
    Memory shared(4, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS), of_memfd(4, PROT_READ | PROT_WRITE, MAP_SHARED, memfd),
        copied(4, PROT_READ | PROT_WRITE, MAP_PRIVATE, memfd), half(8), watched(4);
    half.map(4, 4, PROT_READ | PROT_WRITE, MAP_SHARED, memfd);
    for (const Memory *m : {&shared, &of_memfd, &copied, &half}) {
        CHECK_FALSE(use(cache, m->at, m->size).kept);
        CHECK(card.live.empty());
    }
    CHECK(keeps(cache, half.at, 4 * kPage));
    CHECK_FALSE(keeps(cache, half.page(3), 2 * kPage));

    const int other = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
    uffdio_api api{UFFD_API, 0, 0};
    REQUIRE(ioctl(other, UFFDIO_API, &api) == 0);
    const auto watch = [other](const Memory &m) {
        uffdio_register range{{reinterpret_cast<uintptr_t>(m.at), m.size}, UFFDIO_REGISTER_MODE_WP, 0};
        return ioctl(other, UFFDIO_REGISTER, &range) ? errno : 0;
    };
    CHECK(watch(shared) == 0);  // by nobody else
    CHECK(watch(half) == EBUSY);
    REQUIRE(watch(watched) == 0);
    CHECK_FALSE(keeps(cache, watched.at, watched.size));
    close(other);
    CHECK(keeps(cache, watched.at, watched.size));
    close(memfd);
}

TEST_CASE("regcache: a whole mapping is armed, at the price of one look into the kernel's list; mappings of many kinds side by side") {
    CountingCard card;
    MrCache cache(&card.table, card.domain(), kCost, true, kRoomy);
    Memory m(64);
    Mapping before{}, after{};
    Mappings mappings;
    REQUIRE(mprotect(m.page(32), 16 * kPage, PROT_READ) == 0);  // three mappings now
    CHECK(keeps(cache, m.page(10), kPage));
    CHECK(keeps(cache, m.page(30), 30 * kPage));
    std::string error;
    const auto monitor = MemMonitor::of_process(&error);
    REQUIRE(monitor);
    {
        const std::lock_guard hold(monitor->lock());
        CHECK(monitor->cover(reinterpret_cast<uintptr_t>(m.at), reinterpret_cast<uintptr_t>(m.at) + m.size) == State::kArmed);
    }
    REQUIRE(mappings.at(reinterpret_cast<uintptr_t>(m.page(10)), &before));
    CHECK(before.start == reinterpret_cast<uintptr_t>(m.at));  // not split
    REQUIRE(mprotect(m.page(32), 16 * kPage, PROT_READ | PROT_WRITE) == 0);
    REQUIRE(mappings.at(reinterpret_cast<uintptr_t>(m.page(10)), &after));
    CHECK(after.end == reinterpret_cast<uintptr_t>(m.at) + m.size);  // and merged again
    CHECK(keeps(cache, m.page(30), 30 * kPage));
}

TEST_CASE("regcache: what changes while it is being registered is not kept, and freeing inside the transport blocks nobody") {
    CountingCard card;
    MrCache cache(&card.table, card.domain(), kCost, true, kRoomy);
    Memory m(8), other(8);
    int times = 0;
    card.registering = [&] {
        if (!times++) m.map(0, 2);
    };
    CHECK(use(cache, m.at, 4 * kPage).kept);  // at the second try
    CHECK(card.registered == 2);
    CHECK(card.live.size() == 1);
    card.registering = [&] { m.map(0, 2); };  // always
    CHECK_FALSE(use(cache, m.at, 8 * kPage).kept);
    card.registering = nullptr;
    CHECK(keeps(cache, other.at, 4 * kPage));
    CHECK(keeps(cache, other.page(4), 4 * kPage));
    card.deregistering = [&] {  // as freeing memory does
        other.map(4, 4);
        card.deregistering = nullptr;
    };
    other.map(0, 1);
    reap(cache);
    CHECK_FALSE(hits(cache, other.page(4), 4 * kPage));
}

TEST_CASE("regcache: memory that is mapped anew before the kernel was heard is not taken for the old") {
    CountingCard card;
    MrCache cache(&card.table, card.domain(), kCost, true, kRoomy);
    std::string error;
    const auto monitor = MemMonitor::of_process(&error);
    REQUIRE(monitor);
    for (int round = 0; round < 300; round++) {
        Memory m(4);
        number(m, 1);
        CHECK(keeps(cache, m.at, m.size));
        monitor->lock().lock();  // the thread cannot read
        std::thread other([&m] { munmap(m.at, m.size); });
        while (mmap(m.at, m.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED)
            std::this_thread::yield();
        number(m, 1000);
        monitor->lock().unlock();
        CHECK_FALSE(use(cache, m.at, m.size).hit);
        other.join();
        CHECK(keeps(cache, m.at, m.size));
    }
}

TEST_CASE("regcache: two caches of one process share the monitor; the last one ends it") {
    CountingCard card, second;
    Memory m(4);
    {
        MrCache a(&card.table, card.domain(), kCost, true, kRoomy);
        CHECK(keeps(a, m.at, m.size));
        MrCache b(&second.table, second.domain(), kCost, true, kRoomy);
        CHECK(keeps(b, m.at, m.size));
        m.map(0, 4);
        CHECK_FALSE(hits(a, m.at, m.size));
        CHECK_FALSE(hits(b, m.at, m.size));
    }
    CHECK(card.live.empty());
    CHECK(second.live.empty());
    m.map(0, 4);  // nobody is asked
    MrCache c(&card.table, card.domain(), kCost, true, kRoomy);
    CHECK(keeps(c, m.at, m.size));
}

TEST_CASE("regcache: a forked child has no cache and waits for nobody; the parent's goes on") {
    CountingCard card;
    MrCache cache(&card.table, card.domain(), kCost, true, kRoomy);
    Memory m(8);
    number(m, 5);
    CHECK(keeps(cache, m.at, m.size));
    Registration *in_use = cache.acquire(m.at, m.size, MPX_ACCESS_LOCAL);
    const pid_t child = fork();
    if (!child) {
        alarm(20);  // where it waits for a reader
        cache.forked();
        mpx_status status = MPX_OK;
        int wrong = cache.acquire(m.at, m.size, MPX_ACCESS_LOCAL, &status) || status != MPX_ERR_UNSUPPORTED;
        cache.release(in_use);
        m.map(0, 4);
        munmap(m.page(4), 4 * kPage);
        cache.~MrCache();
        wrong |= card.live.size() != 1;  // dropped, not deregistered
        _exit(wrong);
    }
    int outcome = -1;
    REQUIRE(waitpid(child, &outcome, 0) == child);
    CHECK(outcome == 0);
    cache.release(in_use);
    CHECK(hits(cache, m.at, m.size));
    m.map(0, 8);
    CHECK_FALSE(hits(cache, m.at, m.size));
    CHECK(keeps(cache, m.at, m.size));
}

namespace {

// As a container's profile does, to the whole process.
void refuse_userfaultfd() {
    sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const sock_fprog filter{std::size(program), program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter)) _exit(2);
}

}  // namespace

TEST_CASE("regcache: where the kernel's notice cannot be had, each registration is for one use, and one line says why") {
    const pid_t child = fork();
    if (!child) {
        alarm(20);
        CountingCard card;
        MrCache cache(&card.table, card.domain(), kCost, true, kRoomy);
        Memory m(4);
        refuse_userfaultfd();
        bool good = true;
        for (int round = 1; round <= 3; round++) {
            Registration *r = cache.acquire(m.at, m.size, MPX_ACCESS_LOCAL);
            good &= r && card.live.size() == 1 && cache.report().uncacheable == static_cast<uint64_t>(round);
            cache.release(r);
            good &= card.live.empty();
        }
        _exit(good && cache.report().pays && cache.report().reason == "userfaultfd: Operation not permitted" ? 0 : 1);
    }
    int outcome = -1;
    REQUIRE(waitpid(child, &outcome, 0) == child);
    CHECK(outcome == 0);
}

TEST_CASE("regcache: limits come from the machine and from what may be pinned") {
    const MrCache::Limits machine = MrCache::Limits::of_machine();
    CHECK(machine.bytes > 1u << 20);
    CHECK(machine.regions >= 1024);
    const pid_t child = fork();
    if (!child) {
        rlimit pinned{1u << 20, 1u << 20};
        setrlimit(RLIMIT_MEMLOCK, &pinned);
        if (setuid(65534) && getuid() == 0) _exit(2);
        _exit(MrCache::Limits::of_machine().bytes == 1u << 19 ? 0 : 1);
    }
    int outcome = -1;
    REQUIRE(waitpid(child, &outcome, 0) == child);
    CHECK(outcome == 0);
}

TEST_CASE("regcache: the engine's rendezvous registers a buffer once") {
    for (const bool on : {true, false}) {
        Config config;
        config.regcache = on;
        const auto change = [](mpx_iface_attr &attr) {
            attr.caps |= MPX_CAP_NEED_MEMH;
            attr.reg_fixed_s = kCost;
        };
        ScriptedWorld world(2, change, config);
        Memory out(4), in(4);
        for (int round = 0; round < 10; round++) {
            std::memset(out.at, 'a' + round, out.size);
            Request *r = world[1].irecv(0, 0, 0, in.at, in.size, false);
            Request *s = world[0].isend(0, 1, 0, out.at, out.size, SendMode::kStandard);
            world.finish(r);
            world.finish(s);
            CHECK(std::memcmp(out.at, in.at, in.size) == 0);
            world[1].release(r);
            world[0].release(s);
        }
        for (int rank : {0, 1}) {
            const CacheReport report = world[rank].cache_report(0);
            CHECK(report.pays);
            CHECK(report.reason == (on ? "" : "PYMPX_REGCACHE=off"));
            CHECK(report.hits == (on ? 9 : 0));
            CHECK(report.misses == (on ? 1 : 0));
            CHECK(report.uncacheable == (on ? 0 : 10));
            CHECK(report.regions == (on ? 1 : 0));
        }
        out.map(0, 4);
        std::string error;
        const auto monitor = MemMonitor::of_process(&error);
        { const std::lock_guard hold(monitor->lock()); }  // it has been told
        world.progress();
        CHECK(world.fabric.registrations == (on ? 1 : 0));  // its pages are free at once
        world.check_closed();
        CHECK(world[0].cache_report(0).regions == 0);
    }
}
