// How a fuzz target reads its input: numbers and strings from the front, zeros and nothing when it is used up. And how it says that
// something is wrong: a message, then abort, which libFuzzer reports with the input.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace mpx::fuzz {

class Input {
public:
    Input(const uint8_t *data, size_t size) : at_(data), left_(size) {}
    bool empty() const { return left_ == 0; }
    template <class T> T number() {
        T value{};
        const size_t n = left_ < sizeof value ? left_ : sizeof value;
        std::memcpy(&value, at_, n);
        advance(n);
        return value;
    }
    uint8_t byte() { return number<uint8_t>(); }
    // Below `limit`.
    uint32_t below(uint32_t limit) { return number<uint16_t>() % limit; }
    // A length in front, `limit` at most; shorter where the input ends.
    std::string bytes(size_t limit) {
        size_t n = number<uint16_t>() % (limit + 1);
        if (n > left_) n = left_;
        std::string text(reinterpret_cast<const char *>(at_), n);
        advance(n);
        return text;
    }
    // Mutates `object`: as many bytes as the input says, each at a place that it says.
    void spoil(void *object, size_t size) {
        for (int n = byte() % 4; n > 0; n--) {
            const size_t place = number<uint16_t>() % size;
            static_cast<uint8_t *>(object)[place] = byte();
        }
    }

private:
    void advance(size_t n) {
        at_ += n;
        left_ -= n;
    }
    const uint8_t *at_;
    size_t left_;
};

inline void check(bool good, const char *what) {
    if (good) return;
    std::fprintf(stderr, "fuzz target: %s\n", what);
    std::abort();
}

template <class T> std::string raw(const T &object) { return {reinterpret_cast<const char *>(&object), sizeof object}; }

}  // namespace mpx::fuzz
