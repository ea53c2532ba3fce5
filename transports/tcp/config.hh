// The few settings that plugin.py hands over as JSON: {"address": "192.0.2.1", "ports": [40000, 40100]}.
#pragma once
#include <cstdint>
#include <string>

namespace mpx::tcp {

struct Config {
    uint32_t ipv4 = 0;                       // network order; the one address to listen on
    uint16_t first_port = 0, last_port = 0;  // 0: the kernel chooses
};

// False with a one-line reason. Absent keys keep their defaults: 127.0.0.1, any port. Unknown keys are an error.
bool parse_config(const char *json, Config &out, std::string &why);

}  // namespace mpx::tcp
