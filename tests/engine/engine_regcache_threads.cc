// The registration cache while threads change their memory at once, and map what others have just unmapped. Meant for ThreadSanitizer as
// much as for a plain run; the card only counts (tests/regcache has one that really pins).
#include <atomic>
#include <mutex>
#include <random>
#include <thread>

#include "engine_world.h"
#include "regcache_support.h"

using namespace mpx;
using namespace mpx::test;

TEST_CASE("regcache: threads map, unmap, move and empty their memory while others use theirs") {
    constexpr int kThreads = 3, kRounds = 1500;
    constexpr size_t kPages = 8;
    CountingCard card;
    MrCache cache(&card.table, card.domain(), 17e-6, true, {1u << 20, 64});
    std::mutex engine;  // as the engine's
    std::atomic<uint64_t> numbers{1}, stale{0};
    const uint64_t from = seed();
    std::vector<std::thread> threads;
    threads.reserve(kThreads);
    for (int t = 0; t < kThreads; t++)
        threads.emplace_back([&, t] {
            std::mt19937_64 random(from + static_cast<uint64_t>(t));
            std::vector<std::unique_ptr<Memory>> mine;
            const auto fill = [&](const Memory &m, size_t from, size_t n) {  // what is new
                for (; n > 0; n--, from++) *reinterpret_cast<uint64_t *>(m.page(from)) = numbers.fetch_add(1);
            };
            for (int i = 0; i < 4; i++) fill(*mine.emplace_back(std::make_unique<Memory>(kPages)), 0, kPages);
            for (int round = 0; round < kRounds; round++) {
                auto &m = mine[random() % mine.size()];
                const size_t first = random() % kPages, pages = 1 + random() % (kPages - first);
                const uint64_t what = random() % 12;
                if (what == 0) {
                    m->map(first, pages);
                } else if (what == 1) {
                    madvise(m->page(first), pages * kPage, random() % 2 ? MADV_DONTNEED : MADV_FREE);
                } else if (what == 2) {
                    m.reset();  // whoever comes first maps what was there
                    m = std::make_unique<Memory>(kPages);
                    fill(*m, 0, kPages);
                } else if (what == 3) {
                    // Leaves no hole that another thread might fill; refused where there are several mappings by now.
                    void *moved = mremap(m->page(first), pages * kPage, pages * kPage, MREMAP_MAYMOVE | kDontUnmap);
                    if (moved != MAP_FAILED) munmap(moved, pages * kPage);
                    else m->map(first, pages);
                }
                if (what <= 3) fill(*m, first, pages);
                Registration *r;
                {
                    const std::lock_guard hold(engine);
                    r = cache.acquire(m->page(first), pages * kPage, MPX_ACCESS_REMOTE_READ);
                    stale += !r || CountingCard::stale(r, m->page(first), pages * kPage);
                }
                const std::lock_guard hold(engine);
                if (r) cache.release(r);
            }
        });
    for (std::thread &t : threads) t.join();
    CHECK(stale == 0);
    const CacheReport report = cache.report();
    CHECK(report.hits > 0);
    CHECK(report.misses > 0);
    CHECK(report.invalidated > 0);
    CHECK(report.hits + report.misses + report.uncacheable == kThreads * kRounds);
}

TEST_CASE("regcache: a thread maps at once what another unmaps") {
    constexpr int kRounds = 2000;
    CountingCard card;
    MrCache cache(&card.table, card.domain(), 17e-6, true, {1u << 20, 64});
    Memory m(2);
    std::atomic<int> asked{0};
    std::thread other([&] {
        for (int round = 1; round <= kRounds; round++) {
            while (asked < round) std::this_thread::yield();
            munmap(m.at, m.size);
        }
    });
    int stale = 0;
    uint64_t number = 1;
    for (int round = 1; round <= kRounds; round++) {
        for (size_t n : {0, 1}) *reinterpret_cast<uint64_t *>(m.page(n)) = number++;
        Registration *r = cache.acquire(m.at, m.size, MPX_ACCESS_LOCAL);
        stale += CountingCard::stale(r, m.at, m.size);
        cache.release(r);
        asked = round;
        while (mmap(m.at, m.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED)
            std::this_thread::yield();
    }
    other.join();
    CHECK(stale == 0);
    CHECK(cache.report().misses > kRounds / 2);
}
