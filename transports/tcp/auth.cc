// See auth.hh. Stateless but for the keys; called under the engine lock.
#include "auth.hh"

#include <sodium.h>

namespace mpx::tcp {

bool auth_init() { return sodium_init() >= 0; }

void random_bytes(void *out, size_t len) { randombytes_buf(out, len); }

JobKey::JobKey(const void *key, size_t len) : key_(static_cast<const uint8_t *>(key), static_cast<const uint8_t *>(key) + len) {}

JobKey::~JobKey() { sodium_memzero(key_.data(), key_.size()); }

Mac JobKey::prove(Role role, const Hello &hello, const Address &acceptor, const Nonce &acceptor_nonce) const {
    static const uint8_t domain[] = "pympx tcp 1";  // the key serves other purposes too
    crypto_auth_hmacsha256_state st;
    crypto_auth_hmacsha256_init(&st, key_.data(), key_.size());
    auto add = [&st](const void *p, size_t n) { crypto_auth_hmacsha256_update(&st, static_cast<const uint8_t *>(p), n); };
    add(domain, sizeof domain);
    add(&role, sizeof role);
    add(hello.nonce.data(), hello.nonce.size());
    add(acceptor_nonce.data(), acceptor_nonce.size());
    add(&hello.from, sizeof hello.from);
    add(&hello.attempt, sizeof hello.attempt);
    add(&hello.accepted, sizeof hello.accepted);
    add(&acceptor, sizeof acceptor);
    Mac mac;
    crypto_auth_hmacsha256_final(&st, mac.data());
    return mac;
}

bool same(const Mac &a, const Mac &b) { return sodium_memcmp(a.data(), b.data(), a.size()) == 0; }

KeySealer::KeySealer() {
    static_assert(sizeof key_ == crypto_shorthash_KEYBYTES);
    randombytes_buf(key_, sizeof key_);
}

uint64_t KeySealer::seal(uint64_t id) const {
    uint64_t out;
    static_assert(sizeof out == crypto_shorthash_BYTES);
    crypto_shorthash(reinterpret_cast<uint8_t *>(&out), reinterpret_cast<const uint8_t *>(&id), sizeof id, key_);
    return out;
}

}  // namespace mpx::tcp
