// The fast path of verbs as a library of its own that the conformance suite can load: its table, and a control path in C instead of
// pyverbs, which makes the same objects for each domain. VERBS_LIBRARY is the fast path, PYMPX_VERBS_DEVICE the device (port 1; default:
// the first).
//
// Objects of a domain live in a table here until domain_close. One thread.
#include <dlfcn.h>
#include <infiniband/verbs.h>
#include <pympx/transport.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

constexpr int kQueuePairs = 6, kSendDepth = 64, kReceiveDepth = 32, kInline = 128, kSge = 8;

struct Objects {
    ibv_context *context = nullptr;
    ibv_pd *pd = nullptr;
    ibv_comp_channel *channel = nullptr;
    ibv_cq *cq = nullptr;
    std::vector<ibv_qp *> queue_pairs;

    void close() {
        for (ibv_qp *qp : queue_pairs) ibv_destroy_qp(qp);
        if (cq) ibv_destroy_cq(cq);
        if (channel) ibv_destroy_comp_channel(channel);
        if (pd) ibv_dealloc_pd(pd);
        if (context) ibv_close_device(context);
    }
};

std::map<mpx_domain *, Objects> made;
std::string reason;

const mpx_transport &inner() {
    static const mpx_transport *table = [] {
        void *library = dlopen(std::getenv("VERBS_LIBRARY"), RTLD_NOW | RTLD_LOCAL);
        if (!library) throw std::runtime_error(dlerror());
        return reinterpret_cast<const mpx_transport *(*)()>(dlsym(library, MPX_TABLE_SYMBOL))();
    }();
    return *table;
}

ibv_context *open_device() {
    int count = 0;
    ibv_device **all = ibv_get_device_list(&count);
    const char *wanted = std::getenv("PYMPX_VERBS_DEVICE");
    ibv_context *context = nullptr;
    for (int i = 0; i < count && !context; ++i)
        if (!wanted || std::strcmp(wanted, ibv_get_device_name(all[i])) == 0) context = ibv_open_device(all[i]);
    ibv_free_device_list(all);
    return context;
}

// The first GID of RoCE v2 that is made of an IPv4 address.
unsigned find_gid(ibv_context *context, ibv_gid &gid) {
    constexpr uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    for (unsigned i = 0; i < 16; ++i) {
        ibv_gid_entry entry{};
        if (ibv_query_gid_ex(context, 1, i, &entry, 0) == 0 && entry.gid_type == IBV_GID_TYPE_ROCE_V2 &&
            std::memcmp(entry.gid.raw, kMapped, sizeof kMapped) == 0) {
            gid = entry.gid;
            return i;
        }
    }
    throw std::runtime_error("no GID of RoCE v2");
}

template <class T> std::string number(const char *key, T value) {
    return std::string(", \"") + key + "\": " + std::to_string(static_cast<unsigned long long>(value));
}
template <class T> std::string pointer(const char *key, T *value) { return number(key, reinterpret_cast<uintptr_t>(value)); }

std::string make(Objects &o) {
    o.context = open_device();
    if (!o.context) throw std::runtime_error("no RDMA device");
    o.pd = ibv_alloc_pd(o.context);
    o.channel = ibv_create_comp_channel(o.context);
    if (!o.pd || !o.channel) throw std::runtime_error("no protection domain or completion channel");
    o.cq = ibv_create_cq(o.context, kQueuePairs * (kSendDepth + kReceiveDepth), nullptr, o.channel, 0);
    if (!o.cq) throw std::runtime_error("no completion queue");
    for (int i = 0; i < kQueuePairs; ++i) {
        ibv_qp_init_attr init{};
        init.send_cq = init.recv_cq = o.cq;
        init.qp_type = IBV_QPT_RC;
        init.cap = {kSendDepth, kReceiveDepth, kSge, 1, kInline};
        o.queue_pairs.push_back(ibv_create_qp(o.pd, &init));
        if (!o.queue_pairs.back()) throw std::runtime_error("no queue pair");
    }
    ibv_port_attr port{};
    ibv_device_attr device{};
    if (ibv_query_port(o.context, 1, &port) != 0 || ibv_query_device(o.context, &device) != 0) throw std::runtime_error("no attributes");
    ibv_gid gid{};
    const unsigned gid_index = find_gid(o.context, gid);
    std::string json = "{\"device\": \"" + std::string(ibv_get_device_name(o.context->device)) + ":1\"";
    json += pointer("context", o.context) + pointer("protection_domain", o.pd) + pointer("channel", o.channel);
    json += pointer("completion_queue", o.cq) + number("gid_index", gid_index) + number("mtu", port.active_mtu);
    json += number("link_layer", port.link_layer) + number("lid", port.lid) + number("inline_bytes", kInline);
    json += number("send_depth", kSendDepth) + number("receive_depth", kReceiveDepth) + number("max_sge", kSge);
    json += number("max_reads", std::min(16, device.max_qp_rd_atom)) + number("max_message", port.max_msg_sz);
    json += number("atomics", device.atomic_cap != IBV_ATOMIC_NONE);
    json += ", \"queue_pairs\": [";
    for (ibv_qp *qp : o.queue_pairs) json += (json.back() == '[' ? "" : ", ") + std::to_string(reinterpret_cast<uintptr_t>(qp));
    json += "], \"gid\": [";
    for (const uint8_t byte : gid.raw) json += (json.back() == '[' ? "" : ", ") + std::to_string(byte);
    return json + "]}";
}

mpx_status domain_open(const mpx_domain_params *params, mpx_domain **out) {
    Objects objects;
    mpx_domain_params with = *params;
    std::string json;
    try {
        json = make(objects);
    } catch (const std::exception &error) {
        reason = error.what();
        objects.close();
        return MPX_ERR_UNSUPPORTED;
    }
    reason.clear();
    with.config_json = json.c_str();
    const mpx_status st = inner().domain_open(&with, out);
    if (st == MPX_OK) made[*out] = objects;
    else objects.close();
    return st;
}

void domain_close(mpx_domain *domain) {
    inner().domain_close(domain);
    made[domain].close();
    made.erase(domain);
}

const char *why() { return reason.empty() ? inner().why() : reason.c_str(); }

}  // namespace

extern "C" __attribute__((visibility("default"))) const mpx_transport *mpx_transport_table(void) {
    static mpx_transport table = [] {
        mpx_transport t = inner();
        t.why = why;
        t.domain_open = domain_open;
        t.domain_close = domain_close;
        return t;
    }();
    return &table;
}
