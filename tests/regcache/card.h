// A card: what registers pins pages, as a network card's driver does, and what is later sent from the buffer, or received into it, moves
// between those pages and the wire, whatever the program has mapped there by then. card_io_uring.cc is one, card_verbs.cc another; a
// program is linked with one of them.
//
// Threads: one at a time. Ownership: what was registered is deregistered before the card ends.
#pragma once
#include <pympx/transport.h>

#include <cstddef>
#include <cstdint>
#include <memory>

class Card {
public:
    virtual ~Card() = default;
    // What registers and deregisters.
    virtual const mpx_transport *table() const = 0;
    virtual mpx_domain *domain() = 0;
    // Sends from registered memory; returns how many bytes on the wire differ from what the program sees at `at`.
    virtual uint64_t send(mpx_mem_h, const char *at, size_t length) = 0;
    // Receives noise that begins with `seed` into registered memory; returns how many bytes the program does not see.
    virtual uint64_t receive(mpx_mem_h, char *at, size_t length, uint64_t seed) = 0;
};

// For buffers up to `longest` bytes, at most `slots` registered at once. Throws std::runtime_error where there is none.
std::unique_ptr<Card> open_card(unsigned slots, size_t longest);
