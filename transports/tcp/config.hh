// The few settings that plugin.py hands over as JSON:
// {"addresses": ["192.0.2.1", "127.0.0.1"], "ports": [40000, 40100], "network": "0123456789abcdef0123456789abcdef"}.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "wire.hh"

namespace mpx::tcp {

struct Config {
    std::vector<uint32_t> ipv4;              // network order; the addresses to listen on, best first
    Id network{};                            // of this network namespace
    uint16_t first_port = 0, last_port = 0;  // 0: the kernel chooses
};

// False with a one-line reason. Absent keys keep their defaults: 127.0.0.1, any port, an unknown network. Unknown keys are an error.
bool parse_config(const char *json, Config &out, std::string &why);

}  // namespace mpx::tcp
