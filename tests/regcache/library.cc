// What games.py calls, by ctypes: one board, players on threads of their own, a thread that forks.
//
// Threads: board_* by any; the rest by one.
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "player.h"

namespace {

std::unique_ptr<Board> board;
std::vector<std::thread> threads;
std::atomic<int> playing{0};
std::atomic<bool> over{false};
std::string reason;

// Forks again and again, each time with memory that was registered just before.
void fork_on() {
    const size_t length = 4 * static_cast<size_t>(sysconf(_SC_PAGESIZE));
    uint64_t seed = 1;
    while (!over) {
        void *own = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        board->send(kSeats - 1, static_cast<char *>(own), length, seed++);
        board->fork_once(static_cast<char *>(own), length);
        board->send(kSeats - 1, static_cast<char *>(own), length, seed++);
        board->changing(own, length);
        munmap(own, length);
    }
}

}  // namespace

extern "C" {

// Returns nullptr, or why it cannot be.
const char *board_open() {
    // Large blocks are always mappings, and the break goes back only when it is asked to.
    mallopt(M_MMAP_THRESHOLD, 128 << 10);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    try {
        board = std::make_unique<Board>();
    } catch (const std::runtime_error &error) {
        reason = error.what();
        return reason.c_str();
    }
    return nullptr;
}

void board_start(int players, uint64_t rounds, uint64_t seed) {
    playing = players;
    for (int seat = 1; seat <= players; seat++)
        threads.emplace_back([=] {
            Player(*board, seat, seed + static_cast<uint64_t>(seat)).play(rounds);
            playing--;
        });
    threads.emplace_back(fork_on);
}

int board_playing() { return playing; }

void board_finish() {
    over = true;
    for (std::thread &t : threads) t.join();
    threads.clear();
}

// Rounds of the caller, at seat 0.
void board_send(char *at, size_t length, uint64_t seed) { board->send(0, at, length, seed); }
void board_send_as_it_is(const char *at, size_t length) { board->send_as_it_is(0, at, length); }
void board_receive(char *at, size_t length, uint64_t seed) { board->receive(0, at, length, seed); }
void board_changing(const char *at, size_t length) { board->changing(at, length); }

void board_score(Score *out) { *out = board->score(); }

const char *board_reason() {
    reason = board->reason();
    return reason.c_str();
}

void board_close() { board.reset(); }
}
