// What all players share: the card, the cache above it under one lock as the engine has it, and the score. A round is one transfer from or
// to a player's buffer, checked byte by byte.
//
// It keeps account, by pages, of which addresses were used for a transfer and have had their mapping changed since: the next transfer there
// must not find the old registration. Whoever changes memory says so *before*, so that no other player is there first.
//
// Threads: any. Ownership: buffers are their player's, who leaves them alone during a transfer.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "card.h"
#include "engine/mr_cache.h"

constexpr int kSeats = 8;
constexpr size_t kLongest = 1u << 20;

struct Score {
    uint64_t rounds, stale_bytes, stale_rounds, hits, misses, uncacheable, reused, evictions, invalidated, refused, forks, bad_children;
};

class Board {
public:
    Board();
    ~Board();
    Board(const Board &) = delete;
    Board &operator=(const Board &) = delete;

    // One round: the program stores noise and sends it, or receives noise and looks. seat: of the player, below kSeats. at: not empty.
    void send(int seat, char *at, size_t length, uint64_t seed);
    void receive(int seat, char *at, size_t length, uint64_t seed);
    // What a program sends that it cannot write.
    void send_as_it_is(int seat, const char *at, size_t length);
    void changing(const void *at, size_t length);
    // Sends what is mapped just now, by `map`: no other player comes between. False, and no round: `map` says that it could not.
    bool send_at_once(int seat, char *at, size_t length, uint64_t seed, const std::function<bool()> &map);

    // A child is made while no player is inside the cache, as pympx does it; it writes into what others are transferring, unmaps memory
    // of its own that the parent had registered, and ends.
    void fork_once(char *own, size_t length);

    Score score();
    std::string reason() { return cache_->report().reason; }

private:
    struct Use {
        std::atomic<char *> at{nullptr};
        std::atomic<size_t> length{0};
    };
    mpx::Registration *begin(int seat, const char *at, size_t length, unsigned access);
    template <class Transfer> void end(int seat, mpx::Registration *, Transfer transfer);

    std::mutex engine_;
    std::unique_ptr<Card> card_;
    std::unique_ptr<mpx::MrCache> cache_;
    std::unordered_map<uintptr_t, bool> used_;  // page: was its mapping changed since?
    Score score_{};
    Use uses_[kSeats];
};
