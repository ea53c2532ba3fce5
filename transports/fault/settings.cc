// See settings.h.
#include "settings.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

namespace mpx::fault {
namespace {

constexpr double kLongest = 10;  // seconds: beyond it everybody who waits gives up

[[noreturn]] void refuse(const std::string &word, const char *expected) {
    throw std::invalid_argument("fault: '" + word + "': expecting " + expected);
}

double number(const std::string &word, const std::string &value, double high, const char *expected) {
    char *end = nullptr;
    const double x = std::strtod(value.c_str(), &end);
    if (value.empty() || *end || !(x >= 0 && x <= high)) refuse(word, expected);
    return x;
}

uint64_t count(const std::string &word, const std::string &value) {
    char *end = nullptr;
    const uint64_t n = std::strtoull(value.c_str(), &end, 10);
    if (value.find_first_not_of("0123456789") != std::string::npos || value.empty() || *end) refuse(word, "a whole number");
    return n;
}

}  // namespace

Settings parse(const std::string &text) {
    Settings s;
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find(',', at), text.size());
        const std::string word = text.substr(at, end - at);
        at = end + 1;
        const size_t equals = word.find('=');
        const std::string name = word.substr(0, equals), value = equals == std::string::npos ? "" : word.substr(equals + 1);
        const auto chance = [&] { return number(word, value, 1, "a chance from 0 to 1"); };
        const auto seconds = [&] { return number(word, value, kLongest, "seconds from 0 to 10"); };
        if (name == "no_resource") s.no_resource = chance();
        else if (name == "burst") s.burst_s = seconds();
        else if (name == "late") s.late = chance();
        else if (name == "hold") s.hold = chance();
        else if (name == "delay") s.delay_s = seconds();
        else if (name == "break_at") s.break_at = count(word, value);
        else if (name == "break_ep") s.break_ep = static_cast<int64_t>(count(word, value));
        else if (name == "seed") s.seed = count(word, value);
        else refuse(word, "no_resource=, burst=, late=, hold=, delay=, break_at=, break_ep= or seed=");
    }
    return s;
}

}  // namespace mpx::fault
