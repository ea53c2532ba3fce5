// Proof that both ends of a connection hold the job's key. HMAC-SHA256, random bytes and the constant-time comparison are libsodium's.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "wire.hh"

namespace mpx::tcp {

enum class Role : uint8_t { kConnector = 'C', kAcceptor = 'A' };

// False when the library cannot work here (no source of random bytes).
bool auth_init();
void random_bytes(void *out, size_t len);

// The key of a job; wiped at the end.
class JobKey {
public:
    JobKey(const void *key, size_t len);
    ~JobKey();
    JobKey(const JobKey &) = delete;
    JobKey &operator=(const JobKey &) = delete;

    // What `role` shows to prove itself in the conversation that these two messages opened (their macs are not covered).
    Mac prove(Role role, const Hello &hello, const Address &acceptor, const Nonce &acceptor_nonce) const;

private:
    std::vector<uint8_t> key_;
};

bool same(const Mac &a, const Mac &b);  // in constant time

// A keyed hash that makes remote keys unguessable: one per domain.
class KeySealer {
public:
    KeySealer();
    uint64_t seal(uint64_t id) const;

private:
    uint8_t key_[16];
};

}  // namespace mpx::tcp
