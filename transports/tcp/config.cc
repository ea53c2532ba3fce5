// See config.hh.
#include "config.hh"

#include <arpa/inet.h>
#include <pympx/flat_json.h>

namespace mpx::tcp {
namespace {

int digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

bool parse_id(const std::string &text, Id &out) {
    if (text.size() != 2 * out.size()) return false;
    for (size_t i = 0; i < text.size(); ++i) {
        if (digit(text[i]) < 0) return false;
        out[i / 2] = static_cast<uint8_t>(out[i / 2] << 4 | digit(text[i]));
    }
    return true;
}

}  // namespace

bool parse_config(const char *json, Config &out, std::string &why) {
    out = {};
    why.clear();
    FlatJson in(json && *json ? json : "{}");
    const auto bad = [&](const std::string &what) {
        if (why.empty()) why = "tcp: config_json: " + what;
        return false;
    };
    const auto address = [&] {
        std::string text;
        uint32_t ipv4 = 0;
        if (!in.string(text) || inet_pton(AF_INET, text.c_str(), &ipv4) != 1) return bad("address '" + text + "' is no IPv4 address");
        if (ipv4 == INADDR_ANY) return bad("address 0.0.0.0: name addresses, tcp does not listen on all");
        if (out.ipv4.size() == kMaxPlaces) return bad("more than " + std::to_string(kMaxPlaces) + " addresses");
        out.ipv4.push_back(ipv4);
        return true;
    };
    std::vector<uint64_t> ports;
    const auto port = [&] {
        uint64_t value = 0;
        if (!in.integer(value) || value == 0 || value > UINT16_MAX) return false;
        ports.push_back(value);
        return true;
    };
    const auto member = [&](const std::string &key) {
        if (key == "addresses") return (in.list(address) && !out.ipv4.empty()) || bad("addresses must be a list of at least one");
        if (key == "network") {
            std::string text;
            return (in.string(text) && parse_id(text, out.network)) || bad("network must be 32 hexadecimal digits");
        }
        if (key != "ports") return bad("unknown key '" + key + "'");
        if (!in.list(port) || ports.size() != 2 || ports[0] > ports[1]) return bad("ports must be [first, last], 1..65535");
        out.first_port = static_cast<uint16_t>(ports[0]);
        out.last_port = static_cast<uint16_t>(ports[1]);
        return true;
    };
    if (!in.object(member)) return bad("not an object");
    if (out.ipv4.empty()) out.ipv4.push_back(htonl(INADDR_LOOPBACK));
    return true;
}

}  // namespace mpx::tcp
