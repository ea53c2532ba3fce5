// Counts calls of memcpy and memmove of more than 4 KiB, between copies_begin and copies_end: to be preloaded into a rank.
//
// Any thread. Nothing is owned.
#include <dlfcn.h>

#include <atomic>
#include <cstddef>

namespace {

constexpr size_t kLarge = 4096;
std::atomic<bool> counting{false};
std::atomic<unsigned long> large{0};

using Copy = void *(*)(void *, const void *, size_t);

void note(size_t n) {
    if (n > kLarge && counting.load(std::memory_order_relaxed)) large++;
}

Copy next(const char *name) { return reinterpret_cast<Copy>(dlsym(RTLD_NEXT, name)); }

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void copies_begin() {
    large = 0;
    counting = true;
}

EXPORTED unsigned long copies_end() {
    counting = false;
    return large;
}

EXPORTED void *memmove(void *to, const void *from, size_t n) noexcept {
    static const Copy real = next("memmove");
    note(n);
    return real(to, from, n);
}

EXPORTED void *memcpy(void *to, const void *from, size_t n) noexcept {
    static const Copy real = next("memmove");
    note(n);
    return real(to, from, n);
}

EXPORTED void *__memcpy_chk(void *to, const void *from, size_t n, size_t) noexcept { return memcpy(to, from, n); }
EXPORTED void *__memmove_chk(void *to, const void *from, size_t n, size_t) noexcept { return memmove(to, from, n); }
