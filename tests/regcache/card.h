// io_uring's fixed buffers as a card: registering pins pages as a network card's driver does, and what is later written from the buffer, or
// read into it, moves between those pages and a file, whatever the program has mapped there by then. A file in memory is the wire.
//
// Threads: one at a time. Ownership: the card owns its ring and the wire; what was registered is deregistered before it ends.
#pragma once
#include <linux/io_uring.h>
#include <pympx/transport.h>

#include <cstddef>
#include <cstdint>
#include <vector>

class Card {
public:
    // Buffers up to `longest` bytes, at most `slots` registered at once. Throws std::runtime_error where io_uring is refused.
    Card(unsigned slots, size_t longest);
    ~Card();
    Card(const Card &) = delete;
    Card &operator=(const Card &) = delete;

    const mpx_transport *table() const { return &table_; }
    mpx_domain *domain() { return reinterpret_cast<mpx_domain *>(this); }

    // Sends from registered memory; returns how many bytes on the wire differ from what the program sees at `at`.
    uint64_t send(mpx_mem_h, const char *at, size_t length);
    // Receives noise that begins with `seed` into registered memory; returns how many bytes the program does not see.
    uint64_t receive(mpx_mem_h, char *at, size_t length, uint64_t seed);

private:
    mpx_status add(void *at, size_t length, mpx_mem_h *out);
    mpx_status update(unsigned slot, void *at, size_t length);
    void carry_out(unsigned char operation, mpx_mem_h, const char *at, size_t length);

    mpx_transport table_{};
    int ring_ = -1, wire_fd_ = -1;
    size_t longest_;
    char *wire_ = nullptr;
    void *rings_ = nullptr;
    size_t rings_size_ = 0;
    io_uring_sqe *entries_ = nullptr;
    unsigned *sq_tail_ = nullptr, *sq_array_ = nullptr, *cq_head_ = nullptr, *cq_tail_ = nullptr;
    unsigned sq_mask_ = 0, cq_mask_ = 0;
    io_uring_cqe *completions_ = nullptr;
    size_t entries_size_ = 0;
    std::vector<unsigned> free_slots_;
};

// Noise that differs from any other's, by its first word.
void fill(char *at, size_t length, uint64_t seed);
