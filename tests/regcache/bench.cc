// What the registration cache costs: a hit beside its floor, a miss, and what changing memory costs once it is watched. Prints medians;
// fails when a hit costs more than it may.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "card.h"
#include "engine/mr_cache.h"

namespace {

using Clock = std::chrono::steady_clock;
const size_t kPage = static_cast<size_t>(sysconf(_SC_PAGESIZE));
constexpr int kRounds = 2001;
constexpr double kMostPerHit = 2;  // us

// The median of `times` runs of `work`, each after `before`, in microseconds per run.
template <class Before, class Work> double median(int repeat, Before before, Work work) {
    std::vector<double> times;
    for (int i = 0; i < kRounds; i++) {
        before();
        const auto start = Clock::now();
        for (int k = 0; k < repeat; k++) work();
        times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count() / repeat);
    }
    std::nth_element(times.begin(), times.begin() + kRounds / 2, times.end());
    return times[kRounds / 2];
}
template <class Work> double median(Work work) {
    return median(
        50, [] {}, work);
}
void say(const char *what, double us) { std::printf("%-72s %8.2f us\n", what, us); }

char *map(size_t length) {
    char *at = static_cast<char *>(mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    std::memset(at, 1, length);
    return at;
}

// A userfaultfd of our own, to compare the questions that one can ask.
void questions() {
    const int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
    uffdio_api api{UFFD_API, UFFD_FEATURE_EVENT_UNMAP, 0};
    char *page = map(kPage);
    uffdio_register range{{reinterpret_cast<uintptr_t>(page), kPage}, UFFDIO_REGISTER_MODE_WP, 0};
    if (ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &range)) return;
    say("getppid", median([] { syscall(SYS_getppid); }));
    say("question by ZEROPAGE of nothing (the one that is asked)", median([&] {
            uffdio_zeropage z{};
            ioctl(fd, UFFDIO_ZEROPAGE, &z);
        }));
    say("question by ZEROPAGE of a page that is there", median([&] {
            uffdio_zeropage z{range.range, 0, 0};
            ioctl(fd, UFFDIO_ZEROPAGE, &z);
        }));
    say("question by WRITEPROTECT of a page", median([&] {
            uffdio_writeprotect w{range.range, 0};
            ioctl(fd, UFFDIO_WRITEPROTECT, &w);
        }));
    close(fd);
    munmap(page, kPage);
}

mpx_transport no_card() {
    mpx_transport table{};
    table.name = "none";
    table.mem_reg = [](mpx_domain *, void *at, size_t, int, unsigned, mpx_mem_h *out) {
        *out = static_cast<mpx_mem_h>(at);
        return static_cast<mpx_status>(MPX_OK);
    };
    table.mem_dereg = [](mpx_domain *, mpx_mem_h) { return static_cast<mpx_status>(MPX_OK); };
    return table;
}

void use(mpx::MrCache &cache, const void *at, size_t length) { cache.release(cache.acquire(at, length, MPX_ACCESS_LOCAL)); }

// Returns what a hit costs.
double cache_costs(const char *card, const mpx_transport *table, mpx_domain *domain, size_t length) {
    mpx::MrCache cache(table, domain, 17e-6, true);
    char what[100];
    char *at = map(length);
    const auto tell = [&](const char *event, double us) {
        std::snprintf(what, sizeof what, "%s, %s, %zu KiB", event, card, length >> 10);
        say(what, us);
    };
    use(cache, at, length);
    const double hit = median([&] { use(cache, at, length); });
    tell("hit and release", hit);
    {
        mpx::MrCache small(table, domain, 17e-6, true, {UINT64_MAX, 1});
        char *two = map(2 * length);
        tell("miss and eviction, watched memory", median(
                                                      10, [] {},
                                                      [&] {
                                                          use(small, two, length);
                                                          use(small, two + length, length);
                                                      }) /
                                                      2);
        munmap(two, 2 * length);
    }
    tell("miss, new memory", median(
                                 1,
                                 [&] {
                                     munmap(at, length);
                                     at = map(length);
                                     cache.reap();
                                 },
                                 [&] { use(cache, at, length); }));
    if (!cache.report().reason.empty()) std::printf("no cache: %s\n", cache.report().reason.c_str());
    munmap(at, length);
    std::vector<char *> many;
    for (int i = 0; i < 1000; i++) {
        many.push_back(map(4 * kPage));
        use(cache, many.back(), 4 * kPage);
    }
    size_t next = 0;
    tell("hit and release, one of 1000 regions of 16 KiB beside", median([&] { use(cache, many[next++ * 7 % many.size()], 4 * kPage); }));
    for (char *m : many) munmap(m, 4 * kPage);
    return hit;
}

void change_costs(size_t length) {
    const mpx_transport table = no_card();
    mpx::MrCache cache(&table, nullptr, 17e-6, true);
    char what[100], *at = nullptr;
    for (const bool watched : {false, true}) {
        const auto tell = [&](const char *event, double us) {
            std::snprintf(what, sizeof what, "%s of %zu KiB, %s", event, length >> 10, watched ? "watched" : "not watched");
            say(what, us);
        };
        const auto anew = [&] {
            if (at) munmap(at, length);
            at = map(length);
            if (watched) use(cache, at, length);
        };
        tell("munmap", median(1, anew, [&] { munmap(std::exchange(at, nullptr), length); }));
        tell("madvise DONTNEED", median(1, anew, [&] { madvise(at, length, MADV_DONTNEED); }));
    }
}

}  // namespace

int main() {
    questions();
    const mpx_transport none = no_card();
    cache_costs("a card that costs nothing", &none, nullptr, 64 << 10);
    const std::unique_ptr<Card> card = open_card(2048, 1 << 20);
    cache_costs("io_uring", card->table(), card->domain(), 64 << 10);
    const double hit = cache_costs("io_uring", card->table(), card->domain(), 1 << 20);
    change_costs(kPage);
    change_costs(64 << 10);
    change_costs(1 << 20);
    if (hit <= kMostPerHit) return 0;
    std::printf("a hit costs more than %.1f us\n", kMostPerHit);
    return 1;
}
