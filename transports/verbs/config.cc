// See config.hh.
#include "config.hh"

#include <pympx/flat_json.h>

namespace mpx::verbs {
namespace {

template <class T> bool pointer(FlatJson &in, T *&out) {
    uint64_t value = 0;
    if (!in.integer(value) || !value) return false;
    out = reinterpret_cast<T *>(static_cast<uintptr_t>(value));
    return true;
}

bool queue_pairs(FlatJson &in, std::vector<ibv_qp *> &out) {
    return in.list([&] {
        ibv_qp *qp = nullptr;
        if (!pointer(in, qp)) return false;
        out.push_back(qp);
        return true;
    });
}

bool number(FlatJson &in, unsigned &out, unsigned largest) {
    uint64_t value = 0;
    if (!in.integer(value) || value > largest) return false;
    out = static_cast<unsigned>(value);
    return true;
}

}  // namespace

bool parse_config(const char *json, Config &out, std::string &why) {
    out = {};
    FlatJson in(json ? json : "");
    const auto value_of = [&](const std::string &key) {
        if (key == "context") return pointer(in, out.context);
        if (key == "protection_domain") return pointer(in, out.protection_domain);
        if (key == "channel") return pointer(in, out.channel);
        if (key == "completion_queue") return pointer(in, out.batch.completion_queue);
        if (key == "queue_pairs") return queue_pairs(in, out.batch.queue_pairs);
        if (key == "device") return in.string(out.device);
        if (key == "gid") {
            size_t n = 0;
            return in.list([&] {
                unsigned byte = 0;
                if (n == sizeof out.gid || !number(in, byte, 255)) return false;
                out.gid[n++] = static_cast<uint8_t>(byte);
                return true;
            }) && n == sizeof out.gid;
        }
        if (key == "port") return number(in, out.port, 255);
        if (key == "gid_index") return number(in, out.gid_index, 255);
        if (key == "mtu") return number(in, out.mtu, 5);
        if (key == "link_layer") return number(in, out.link_layer, 2);
        if (key == "lid") return number(in, out.lid, UINT16_MAX);
        if (key == "pkey_index") return number(in, out.pkey_index, UINT16_MAX);
        if (key == "timeout") return number(in, out.timeout, 31);
        if (key == "retries") return number(in, out.retries, 7);
        if (key == "send_depth") return number(in, out.send_depth, kMaxDepth);
        if (key == "receive_depth") return number(in, out.receive_depth, kMaxDepth);
        if (key == "inline_bytes") return number(in, out.inline_bytes, 1u << 12);
        if (key == "max_sge") return number(in, out.max_sge, 1u << 12);
        if (key == "max_reads") return number(in, out.max_reads, 255);
        if (key == "latency_ns") return number(in, out.latency_ns, 1u << 30);
        if (key == "slot_bytes") return in.integer(out.slot_bytes);
        if (key == "max_message") return in.integer(out.max_message);
        if (key == "bandwidth") return in.integer(out.bandwidth);
        if (key == "rendezvous_from") return in.integer(out.rendezvous_from);
        unsigned atomics = 0;
        if (key != "atomics" || !number(in, atomics, 1)) return false;
        out.atomics = atomics;
        return true;
    };
    why.clear();
    const auto member = [&](const std::string &key) {
        if (value_of(key)) return true;
        why = "verbs: config_json: no key '" + key + "' with such a value";
        return false;
    };
    if (!in.object(member)) {
        if (why.empty()) why = "verbs: config_json: not an object";
        return false;
    }
    const bool whole = out.context && out.protection_domain && out.channel && out.batch.completion_queue;
    if (!whole) why = "verbs: config_json: the control path has handed over no objects";
    else if (out.send_depth < 8 || out.receive_depth < 8 || out.slot_bytes < 512 || !out.max_sge || !out.bandwidth)
        why = "verbs: config_json: a depth below 8, slots below 512 bytes, or nothing where something must be";
    return why.empty();
}

bool parse_supply(const char *json, Batch &out, std::string &why) {
    out = {};
    why.clear();
    FlatJson in(json ? json : "");
    const auto member = [&](const std::string &key) {
        if (key == "failed") return in.string(why);
        if (key == "completion_queue") return pointer(in, out.completion_queue);
        return key == "queue_pairs" && queue_pairs(in, out.queue_pairs);
    };
    if (in.object(member) && (!why.empty() || (out.completion_queue && !out.queue_pairs.empty()))) return true;
    why = "verbs: the control path supplied something else than queue pairs";
    return false;
}

}  // namespace mpx::verbs
