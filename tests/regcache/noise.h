// What is transferred, and how it is compared.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

// Noise that differs from any other's, by its first word.
inline void fill(char *at, size_t length, uint64_t seed) {
    for (size_t i = 0; i < length; i += sizeof seed) {
        std::memcpy(at + i, &seed, std::min(sizeof seed, length - i));
        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    }
}

inline uint64_t count_differences(const char *a, const char *b, size_t length) {
    if (!std::memcmp(a, b, length)) return 0;
    uint64_t n = 0;
    for (size_t i = 0; i < length; i++) n += a[i] != b[i];
    return n;
}
