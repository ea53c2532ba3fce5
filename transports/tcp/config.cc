// See config.hh. A reader of exactly the JSON that plugin.py writes: one flat object, strings without escapes, pairs of integers.
#include "config.hh"

#include <arpa/inet.h>

#include <cctype>
#include <string_view>

namespace mpx::tcp {
namespace {

class Reader {
public:
    explicit Reader(std::string_view text) : rest_(text) {}

    bool take(char c) {
        while (!rest_.empty() && isspace(static_cast<unsigned char>(rest_.front()))) rest_.remove_prefix(1);
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

    bool port(uint16_t &out) {
        while (!rest_.empty() && rest_.front() == ' ') rest_.remove_prefix(1);
        unsigned value = 0, digits = 0;
        for (; !rest_.empty() && isdigit(static_cast<unsigned char>(rest_.front())) && digits < 5; ++digits, rest_.remove_prefix(1))
            value = value * 10 + static_cast<unsigned>(rest_.front() - '0');
        if (digits == 0 || value == 0 || value > 65535) return false;
        out = static_cast<uint16_t>(value);
        return true;
    }

private:
    std::string_view rest_;
};

}  // namespace

bool parse_config(const char *json, Config &out, std::string &why) {
    out = {};
    out.ipv4 = htonl(INADDR_LOOPBACK);
    Reader in(json && *json ? json : "{}");
    auto bad = [&](const std::string &what) {
        why = "tcp: config_json: " + what;
        return false;
    };
    if (!in.take('{')) return bad("not an object");
    if (in.take('}')) return true;
    do {
        std::string key, text;
        if (!in.string(key) || !in.take(':')) return bad("a key was expected");
        if (key == "address") {
            if (!in.string(text) || inet_pton(AF_INET, text.c_str(), &out.ipv4) != 1)
                return bad("address '" + text + "' is no IPv4 address");
            if (out.ipv4 == INADDR_ANY) return bad("address 0.0.0.0: name one address, tcp does not listen on all");
        } else if (key == "ports") {
            if (!in.take('[') || !in.port(out.first_port) || !in.take(',') || !in.port(out.last_port) || !in.take(']'))
                return bad("ports must be [first, last], 1..65535");
            if (out.first_port > out.last_port) return bad("ports: first > last");
        } else {
            return bad("unknown key '" + key + "'");
        }
    } while (in.take(','));
    return in.take('}') || bad("'}' expected");
}

}  // namespace mpx::tcp
