// What plugin.py hands over as JSON: settings, what it found out about the device, and the addresses of the objects that it made.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

struct ibv_context;
struct ibv_pd;
struct ibv_comp_channel;
struct ibv_cq;
struct ibv_qp;

namespace mpx::verbs {

// A completion queue and the queue pairs that complete into it: as many as it has room for.
struct Batch {
    ibv_cq *completion_queue = nullptr;
    std::vector<ibv_qp *> queue_pairs;
};

inline constexpr unsigned kMaxDepth = 4095;  // of a queue; verbs.hh says what has room for no more

struct Config {
    ibv_context *context = nullptr;
    ibv_pd *protection_domain = nullptr;
    ibv_comp_channel *channel = nullptr;
    Batch batch;
    std::string device;  // name and port, for messages
    uint8_t gid[16] = {};
    unsigned port = 1, gid_index = 0, mtu = 1, link_layer = 0, lid = 0, pkey_index = 0;
    unsigned timeout = 14, retries = 6;  // of the queue pairs: 4.096 us * 2^timeout, so often again
    unsigned send_depth = 64, receive_depth = 32;
    unsigned inline_bytes = 0, max_sge = 1, max_reads = 1;
    uint64_t slot_bytes = 8192;
    uint64_t max_message = 1u << 30;
    bool atomics = false;
    uint64_t bandwidth = 1000000000;   // bytes per second, of the port
    uint64_t rendezvous_from = 16384;  // bytes
    unsigned latency_ns = 2000;
};

// False with a one-line reason. Absent keys keep their defaults, except that the objects must be there. Unknown keys are an error.
bool parse_config(const char *json, Config &out, std::string &why);

// {"completion_queue": 1, "queue_pairs": [2, 3]}, or {"failed": "why there are none"}, which becomes `why` with an empty batch.
bool parse_supply(const char *json, Batch &out, std::string &why);

}  // namespace mpx::verbs
