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

inline constexpr uint16_t kAddressForm = 0x0401;  // version 1, IPv4
inline constexpr size_t kMaxAm = 65536 + 256;     // payload of one AM: 64 KiB and room for an upper layer's header
inline constexpr size_t kMaxHdr = 128;            // header of am_zcopy
inline constexpr size_t kMaxIov = 16;
inline constexpr size_t kMaxGets = 64;        // outstanding per peer; one more from the wire is a violation
inline constexpr size_t kPiece = 256 * 1024;  // of a get: an AM waits behind at most one

// An iface's address, 24 bytes, also what on_incoming receives.
struct Address {
    uint16_t form, port;
    uint32_t ipv4;
    Id id;
};
static_assert(sizeof(Address) == 24);

// connector -> acceptor: Hello; back: Challenge; then Proof; back: Verdict. Only then frames.
inline constexpr uint64_t kHelloMagic = 0x3170637478706d01;  // "\1mpxtcp1"
inline constexpr uint64_t kChallengeMagic = 0x3170637478706d02;
struct Hello {
    uint64_t magic;
    Address from;
    Nonce nonce;
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
enum : uint64_t { kAccepted = 0x414343455054, kBusy = 0x42555359 };  // kBusy: a crossing connect won, or an old link lives: try later
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
