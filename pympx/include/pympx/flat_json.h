// A reader of the JSON that a plugin.py hands to its fast path (config_json): objects of keys with strings without escapes, non-negative
// integers, and lists of them. It owns nothing: the text must outlive it. What does not fit is `false`, and leaves it where it stopped.
#ifndef PYMPX_FLAT_JSON_H
#define PYMPX_FLAT_JSON_H
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>

namespace mpx {

class FlatJson {
public:
    explicit FlatJson(std::string_view text) : rest_(text) {}

    bool take(char c) {
        skip_space();
        if (rest_.empty() || rest_.front() != c) return false;
        rest_.remove_prefix(1);
        return true;
    }

    bool string(std::string &out) {
        if (!take('"')) return false;
        const size_t end = rest_.find('"');
        if (end == std::string_view::npos || rest_.substr(0, end).find('\\') != std::string_view::npos) return false;
        out = rest_.substr(0, end);
        rest_.remove_prefix(end + 1);
        return true;
    }

    bool integer(uint64_t &out) {
        skip_space();
        const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), out);
        if (error != std::errc{}) return false;
        rest_.remove_prefix(static_cast<size_t>(end - rest_.data()));
        return true;
    }

    // [item, item, ...], perhaps empty; `item` reads one.
    template <class Item> bool list(Item &&item) {
        if (!take('[')) return false;
        if (take(']')) return true;
        do {
            if (!item()) return false;
        } while (take(','));
        return take(']');
    }

    // {"key": value, ...}; `member` reads the value of the key that it is given.
    template <class Member> bool object(Member &&member) {
        if (!take('{')) return false;
        if (take('}')) return true;
        do {
            std::string key;
            if (!string(key) || !take(':') || !member(key)) return false;
        } while (take(','));
        return take('}');
    }

private:
    void skip_space() {
        while (!rest_.empty() && (rest_.front() == ' ' || rest_.front() == '\n' || rest_.front() == '\t' || rest_.front() == '\r'))
            rest_.remove_prefix(1);
    }

    std::string_view rest_;
};

}  // namespace mpx
#endif
