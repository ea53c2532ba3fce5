// What travels between two tcp ifaces: addresses, the four handshake messages, frames. All integers little-endian except port and
// ipv4 (network order). Nothing here owns memory; every length read from the wire is checked where it is read (link.cc, handshake.cc).
#pragma once
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace mpx::tcp {

static_assert(std::endian::native == std::endian::little, "the wire format is the memory format of a little-endian machine");

using Id = std::array<uint8_t, 16>;  // of an iface, random
using Nonce = std::array<uint8_t, 32>;
using Mac = std::array<uint8_t, 32>;  // HMAC-SHA256

inline constexpr uint16_t kAddressForm = 0x0402;  // version 2, IPv4
inline constexpr size_t kMaxPlaces = 8;           // addresses that an iface can have
inline constexpr size_t kMaxAm = 65536 + 256;     // payload of one AM: 64 KiB and room for an upper layer's header
inline constexpr size_t kMaxHdr = 128;            // header of am_zcopy
inline constexpr size_t kMaxIov = 16;
inline constexpr size_t kMaxGets = 64;        // outstanding per peer; one more from the wire is a violation
inline constexpr size_t kPiece = 256 * 1024;  // of a get: an AM waits behind at most one

// Where an iface listens: one interface's address and a port.
struct Place {
    uint32_t ipv4;
    uint16_t port, reserved;
};

// An iface's address, also what on_incoming receives: the first `count` places, best first, the others zero. `network` is the same
// for ifaces that share a network namespace, which alone reach each other by loopback.
struct Address {
    uint16_t form, count;
    uint32_t reserved;
    Id id, network;
    std::array<Place, kMaxPlaces> at;
};
static_assert(sizeof(Address) == 104);

// connector -> acceptor: Hello; back: Challenge; then Proof; back: Verdict. Only then frames.
inline constexpr uint64_t kHelloMagic = 0x3170637478706d01;  // "\1mpxtcp1"
inline constexpr uint64_t kChallengeMagic = 0x3170637478706d02;
struct Hello {
    uint64_t magic;
    Address from;
    Nonce nonce;
    uint32_t attempt, accepted;  // connects that `from` has begun to this acceptor; the last of the acceptor's that it has accepted
};
struct Challenge {
    uint64_t magic;
    Address from;
    Nonce nonce;
    Mac mac;
};
struct Proof {
    Mac mac;
};
// kBusy: a crossing connect won, or an old link ends: try later. kRefused: we do not know the peer, or count it as failed.
enum : uint64_t { kAccepted = 0x414343455054, kBusy = 0x42555359, kRefused = 0x52454655534544 };
struct Verdict {
    uint64_t value;
};
inline constexpr size_t kMaxHandshake = sizeof(Challenge);

// Every frame is this header and `length` bytes, padded to 8 so that what handlers see is aligned.
enum Kind : uint8_t { kAmShort = 1, kAm = 2, kGetReq = 3, kGetData = 4, kGetFail = 5 };
struct Frame {
    uint32_t length;
    uint8_t kind;
    uint8_t am_id;
    uint16_t hdr_len;  // kAm: the first bytes of the body are its header
    uint64_t word;     // kAmShort: the header; kGet*: number of the request
};
static_assert(sizeof(Frame) == 16);

struct PackedKey {
    uint64_t id, secret;
};
struct GetRequest {
    PackedKey key;
    uint64_t raddr, length;
};
inline constexpr size_t kMaxFrame = sizeof(Frame) + kMaxHdr + kMaxAm;
inline constexpr size_t padding(size_t n) { return (8 - (n & 7)) & 7; }

}  // namespace mpx::tcp
