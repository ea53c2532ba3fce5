// See board.h.
#include "board.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "noise.h"

namespace {

constexpr unsigned kSlots = 2048;
constexpr double kCost = 17e-6;  // what registering costs a real card

template <class Visit> void each_page(const void *at, size_t length, Visit visit) {
    const auto size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    for (uintptr_t page = reinterpret_cast<uintptr_t>(at) / size; page * size < reinterpret_cast<uintptr_t>(at) + length; page++)
        visit(page);
}

}  // namespace

Board::Board() : card_(open_card(kSlots, kLongest)) {
    cache_ = std::make_unique<mpx::MrCache>(card_->table(), card_->domain(), kCost, true);
}

Board::~Board() { cache_.reset(); }

void Board::changing(const void *at, size_t length) {
    const std::lock_guard hold(engine_);
    each_page(at, length, [this](uintptr_t page) {
        if (const auto it = used_.find(page); it != used_.end()) it->second = true;
    });
}

// The lock is held.
mpx::Registration *Board::begin(int seat, const char *at, size_t length, unsigned access) {
    uses_[seat].length = length;
    uses_[seat].at = const_cast<char *>(at);
    score_.rounds++;
    bool reused = false;
    each_page(at, length, [&](uintptr_t page) {
        bool &changed = used_[page];
        reused |= changed;
        changed = false;
    });
    score_.reused += reused;
    return cache_->acquire(at, length, access);
}

template <class Transfer> void Board::end(int seat, mpx::Registration *registration, Transfer transfer) {
    if (registration) {  // a fork may come before this
        const std::lock_guard hold(engine_);
        const uint64_t wrong = transfer(registration->memh);
        score_.stale_bytes += wrong;
        score_.stale_rounds += wrong != 0;
    }
    const std::lock_guard hold(engine_);
    uses_[seat].at = nullptr;
    if (registration) cache_->release(registration);
    else score_.refused++;
}

void Board::send(int seat, char *at, size_t length, uint64_t seed) {
    fill(at, length, seed);
    send_as_it_is(seat, at, length);
}

bool Board::send_at_once(int seat, char *at, size_t length, uint64_t seed, const std::function<bool()> &map) {
    mpx::Registration *registration;
    {
        const std::lock_guard hold(engine_);
        if (!map()) return false;
        fill(at, length, seed);
        registration = begin(seat, at, length, MPX_ACCESS_REMOTE_READ);
    }
    end(seat, registration, [&](mpx_mem_h memh) { return card_->send(memh, at, length); });
    return true;
}

void Board::send_as_it_is(int seat, const char *at, size_t length) {
    mpx::Registration *registration;
    {
        const std::lock_guard hold(engine_);
        registration = begin(seat, at, length, MPX_ACCESS_REMOTE_READ);
    }
    end(seat, registration, [&](mpx_mem_h memh) { return card_->send(memh, at, length); });
}

void Board::receive(int seat, char *at, size_t length, uint64_t seed) {
    mpx::Registration *registration;
    {
        const std::lock_guard hold(engine_);
        registration = begin(seat, at, length, MPX_ACCESS_LOCAL);
    }
    end(seat, registration, [&](mpx_mem_h memh) { return card_->receive(memh, at, length, seed); });
}

void Board::fork_once(char *own, size_t length) {
    pid_t child;
    {
        const std::lock_guard hold(engine_);
        child = fork();
        if (!child) {
            alarm(30);  // a child that waits for the parent's monitor
            cache_->forked();
            const auto size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
            mpx::Mappings mappings;
            mpx::Mapping mapping;
            for (const Use &use : uses_) {
                char *const at = use.at;
                if (!at || !mappings.at(reinterpret_cast<uintptr_t>(at), &mapping) || !mapping.ordinary)
                    continue;  // none, or the parent's too
                for (size_t i = 0; i < use.length; i += size) at[i] = static_cast<char>(~at[i]);
            }
            _exit(munmap(own, length) || cache_->acquire(own, length, MPX_ACCESS_LOCAL));
        }
    }
    int outcome = -1;
    const bool good = child > 0 && waitpid(child, &outcome, 0) == child && outcome == 0;
    const std::lock_guard hold(engine_);
    score_.forks++;
    score_.bad_children += !good;
}

Score Board::score() {
    const std::lock_guard hold(engine_);
    const mpx::CacheReport report = cache_->report();
    Score now = score_;
    now.hits = report.hits;
    now.misses = report.misses;
    now.uncacheable = report.uncacheable;
    now.evictions = report.evictions;
    now.invalidated = report.invalidated;
    return now;
}
