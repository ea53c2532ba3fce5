// A thread that plays with its memory in every way that the kernel offers and transfers from it meanwhile, for so many rounds.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "board.h"

// Unmaps, on a thread of its own, what it is told to: another thread can map the same addresses before the call has come to its end.
class Undertaker {
public:
    Undertaker();
    ~Undertaker();
    Undertaker(const Undertaker &) = delete;
    Undertaker &operator=(const Undertaker &) = delete;
    void unmap(char *at, size_t length);
    bool idle();  // it has
    void wait();  // until it has

private:
    void run();
    std::mutex mutex_;
    std::condition_variable changed_;
    char *at_ = nullptr;
    size_t length_ = 0;
    bool over_ = false;
    std::thread thread_;
};

class Player {
public:
    Player(Board &board, int seat, uint64_t seed);
    ~Player();
    Player(const Player &) = delete;
    Player &operator=(const Player &) = delete;
    void play(uint64_t rounds);

private:
    enum class Kind { kMapped, kAllocated, kShared, kFile };
    struct Buffer {
        Kind kind;
        char *at;
        size_t length;
    };

    uint64_t draw(uint64_t below) { return random_() % below; }
    Buffer make(Kind);
    void drop(const Buffer &);
    void transfer(const Buffer &);
    void change(Buffer &);
    void change_mapping(Buffer &);
    void hand_over(Buffer &);
    void renew(Buffer &);

    Board &board_;
    int seat_;
    std::mt19937_64 random_;
    std::vector<Buffer> buffers_;
    int file_ = -1;
    Undertaker undertaker_;
};
