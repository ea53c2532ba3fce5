// For tests of the registration cache: a transport that only registers and remembers what, and memory that is a mapping of its own.
#pragma once
#include <pympx/transport.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <set>
#include <stdexcept>
#include <vector>

#include "engine/mr_cache.h"

namespace mpx::test {

constexpr int kDontUnmap = 4;  // MREMAP_DONTUNMAP
inline const size_t kPage = static_cast<size_t>(sysconf(_SC_PAGESIZE));

// What a card does that pins pages: it keeps what lay behind an address when it was registered. The program writes a number of its own at
// the start of each page of each new mapping; the card notes the numbers, and is stale where a page has another one now.
class CountingCard {
public:
    struct Region {
        uintptr_t from, to;
        unsigned access;
        std::vector<uint64_t> numbers;
    };

    mpx_transport table{};
    std::set<Region *> live;
    uint64_t registered = 0;           // ever
    uint64_t most_bytes = UINT64_MAX;  // at once
    unsigned refused_access = 0;
    std::function<void()> registering, deregistering;

    CountingCard() {
        table.name = "counting";
        table.mem_reg = [](mpx_domain *d, void *at, size_t length, int, unsigned access, mpx_mem_h *out) {
            return of(d).add(reinterpret_cast<uintptr_t>(at), length, access, out);
        };
        table.mem_dereg = [](mpx_domain *d, mpx_mem_h memh) {
            CountingCard &card = of(d);
            if (card.deregistering) card.deregistering();
            auto *region = reinterpret_cast<Region *>(memh);
            if (!card.live.erase(region)) throw std::runtime_error("deregistered twice");
            delete region;
            return static_cast<mpx_status>(MPX_OK);
        };
    }
    CountingCard(const CountingCard &) = delete;
    CountingCard &operator=(const CountingCard &) = delete;

    mpx_domain *domain() { return reinterpret_cast<mpx_domain *>(this); }
    static const Region &region(const Registration *r) { return *reinterpret_cast<const Region *>(r->memh); }
    static bool stale(const Registration *r, const void *at, size_t length) {
        const Region &g = region(r);
        const uintptr_t first = reinterpret_cast<uintptr_t>(at) & ~(kPage - 1);
        for (uintptr_t page = first; page < reinterpret_cast<uintptr_t>(at) + length; page += kPage)
            if (g.numbers[(page - g.from) / kPage] != number(page)) return true;
        return false;
    }

private:
    static CountingCard &of(mpx_domain *d) { return *reinterpret_cast<CountingCard *>(d); }
    static uint64_t number(uintptr_t page) { return *reinterpret_cast<const uint64_t *>(page); }

    mpx_status add(uintptr_t at, size_t length, unsigned access, mpx_mem_h *out) {
        uint64_t bytes = length;
        for (const Region *r : live) bytes += r->to - r->from;
        if (bytes > most_bytes) return MPX_ERR_NO_MEMORY;
        if (access & refused_access) return MPX_ERR_INVALID;
        auto *region = new Region{at, at + length, access, {}};
        for (uintptr_t page = at; page % kPage == 0 && page < at + length; page += kPage) region->numbers.push_back(number(page));
        live.insert(region);
        registered++;
        *out = reinterpret_cast<mpx_mem_h>(region);
        if (registering) registering();
        return MPX_OK;
    }
};

// Pages between two that cannot be touched, so that the kernel merges them with nothing.
class Memory {
public:
    explicit Memory(size_t pages, int protection = PROT_READ | PROT_WRITE, int flags = MAP_PRIVATE | MAP_ANONYMOUS, int fd = -1)
        : size(pages * kPage) {
        reserved_ = size + 2 * kPage;
        void *area = mmap(nullptr, reserved_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (area == MAP_FAILED) throw std::runtime_error("no memory");
        area_ = static_cast<char *>(area);
        at = area_ + kPage;
        map(0, pages, protection, flags, fd);
    }
    ~Memory() { munmap(area_, reserved_); }
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;

    // Maps some of the pages anew, in place of what is there.
    void map(size_t first, size_t pages, int protection = PROT_READ | PROT_WRITE, int flags = MAP_PRIVATE | MAP_ANONYMOUS, int fd = -1) {
        void *const where = at + first * kPage;
        if (mmap(where, pages * kPage, protection, flags | MAP_FIXED, fd, 0) != where) throw std::runtime_error("cannot map");
    }
    char *page(size_t n) const { return at + n * kPage; }

    char *at;
    size_t size;

private:
    char *area_;
    size_t reserved_;
};

}  // namespace mpx::test
