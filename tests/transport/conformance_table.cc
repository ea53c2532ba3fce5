// The table, the attributes, and what is not advertised.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>

#include "talk.h"

namespace mpx::conform {

CONFORMANCE(table_complete, "table: versions, no null entry, a name") {
    const mpx_transport &t = table();
    EXPECT(t.abi_version == MPX_ABI_VERSION, "abi_version %u", t.abi_version);
    EXPECT(t.size >= sizeof(mpx_transport), "size %u of the table, %zu needed", t.size, sizeof(mpx_transport));
    EXPECT(t.name && *t.name, "the table has no name");
    // All entries after the name are function pointers.
    void *entries[(sizeof(mpx_transport) - offsetof(mpx_transport, why)) / sizeof(void *)];
    std::memcpy(entries, reinterpret_cast<const char *>(&t) + offsetof(mpx_transport, why), sizeof entries);
    for (size_t i = 0; i < std::size(entries); ++i) EXPECT(entries[i], "entry %zu after `name` is NULL", i);

    World w(1);
    const mpx_iface_ops *ops = w.node(0).iface()->ops;
    if (!EXPECT(ops && ops->size >= sizeof(mpx_iface_ops), "iface ops missing or too small")) return;
    void *calls[(sizeof(mpx_iface_ops) - offsetof(mpx_iface_ops, am_short)) / sizeof(void *)];
    std::memcpy(calls, reinterpret_cast<const char *>(ops) + offsetof(mpx_iface_ops, am_short), sizeof calls);
    for (size_t i = 0; i < std::size(calls); ++i) EXPECT(calls[i], "entry %zu of the iface ops is NULL", i);
    EXPECT(t.why() != nullptr, "why() returned NULL");
}

CONFORMANCE(table_attributes, "table: attributes fit the capabilities") {
    const mpx_iface_attr &a = attributes();
    EXPECT(a.size == sizeof a, "iface_query filled %zu of %zu bytes", a.size, sizeof a);
    EXPECT(cap_names(a.caps).find("unknown") == std::string::npos, "unknown capability bits in %llx",
           static_cast<unsigned long long>(a.caps));
    EXPECT(has(MPX_CAP_AM_SHORT) && has(MPX_CAP_AM_BCOPY), "the engine needs am_short and am_bcopy");
    EXPECT(has(MPX_CAP_CONNECT_IFACE) || has(MPX_CAP_CONNECT_EP), "no way to connect");
    EXPECT(a.iface_addr_len > 0 && a.iface_addr_len <= 4096, "iface_addr_len %zu", a.iface_addr_len);
    EXPECT(!has(MPX_CAP_CONNECT_EP) || a.ep_addr_len > 0, "CONNECT_EP without an address");
    const bool rma = a.caps & (MPX_CAP_PUT_ZCOPY | MPX_CAP_GET_ZCOPY | MPX_CAP_ATOMIC64 | MPX_CAP_RKEY_PTR);
    EXPECT(!rma || a.rkey_packed_len > 0, "one-sided access without a packed key");
    EXPECT(!has(MPX_CAP_AM_BCOPY) || a.max_am_bcopy >= 512, "max_am_bcopy %zu", a.max_am_bcopy);
    EXPECT(!has(MPX_CAP_AM_SHORT) || a.max_am_short >= 8, "max_am_short %zu", a.max_am_short);
    EXPECT(!has(MPX_CAP_AM_ZCOPY) || (a.max_am_zcopy > 0 && a.max_am_hdr >= 8), "max_am_zcopy %zu, max_am_hdr %zu", a.max_am_zcopy,
           a.max_am_hdr);
    const bool zcopy = a.caps & (MPX_CAP_AM_ZCOPY | MPX_CAP_PUT_ZCOPY | MPX_CAP_GET_ZCOPY);
    EXPECT(!zcopy || a.max_iov > 0, "zero-copy with max_iov 0");
    EXPECT(!(a.caps & (MPX_CAP_PUT_ZCOPY | MPX_CAP_GET_ZCOPY)) || a.max_zcopy > 0, "put or get with max_zcopy 0");
    EXPECT(a.latency_s > 0 && a.latency_s < 1, "latency %g s", a.latency_s);
    EXPECT(a.bandwidth_Bps > 1e6 && a.bandwidth_Bps < 1e13, "bandwidth %g B/s", a.bandwidth_Bps);
    EXPECT(!has(MPX_CAP_GET_ZCOPY) || (a.get_bandwidth_Bps > 1e6 && a.get_bandwidth_Bps < 1e13), "get bandwidth %g B/s",
           a.get_bandwidth_Bps);
    EXPECT(a.get_overhead_s >= 0 && a.overhead_s >= 0 && a.reg_fixed_s >= 0 && a.reg_per_byte_s >= 0, "a negative cost");
    EXPECT(has(MPX_CAP_ATOMIC64) == (a.atomic_domain != MPX_ATOMIC_DOMAIN_NONE), "atomic_domain %d", a.atomic_domain);

    // A caller that knows less of the struct gets less of it.
    World w(1);
    struct {
        size_t size;
        uint64_t caps;
        uint8_t beyond[64];
    } old{offsetof(mpx_iface_attr, iface_addr_len), 0, {}};
    std::fill(std::begin(old.beyond), std::end(old.beyond), kPoison);
    EXPECT(table().iface_query(w.node(0).iface(), reinterpret_cast<mpx_iface_attr *>(&old)) == MPX_OK, "iface_query with a smaller size");
    EXPECT(old.caps == a.caps, "capabilities %llx with a smaller size", static_cast<unsigned long long>(old.caps));
    EXPECT(poisoned(old.beyond, sizeof old.beyond), "iface_query wrote beyond the size that the caller gave");
}

CONFORMANCE(table_addresses, "table: addresses differ, foreign and malformed ones are refused with a reason") {
    Node a, b;
    EXPECT(a.address() != b.address(), "two ifaces have one address");
    const Bytes own = a.iface_address(), other = b.iface_address();
    const bool reach = table().iface_reachable(a.iface(), other.data(), other.size());
    EXPECT(reach == !options().loopback, "iface_reachable says %d of another iface of this host", reach);
    if (options().loopback) {
        EXPECT(table().iface_reachable(a.iface(), own.data(), own.size()), "a loopback that does not reach itself");
        mpx_ep *ep = nullptr;
        EXPECT(table().ep_create(a.iface(), other.data(), other.size(), &ep) < 0, "an ep to another iface over a loopback");
        EXPECT(*table().why(), "no reason given for a refused ep");
    }
    EXPECT(!table().iface_reachable(a.iface(), other.data(), other.size() - 1), "a cut address is reachable");
    EXPECT(*table().why(), "no reason given for an unreachable address");
    EXPECT(!table().iface_reachable(a.iface(), other.data(), 0), "an empty address is reachable");
}

CONFORMANCE(table_unsupported, "table: what is not advertised returns UNSUPPORTED") {
    World w(2);
    Node &n = w.node(0);
    mpx_ep *ep = w.peer(0, 1).ep;
    const mpx_iface_ops *ops = n.iface()->ops;
    Op &op = n.op("an unsupported operation");
    uint64_t word = 0;
    uint8_t scratch[4096] = {};
    const mpx_iov iov{scratch, 8, nullptr};
    // While there is back-pressure a refusal for good may hide behind one that passes: asked again.
    const auto refused = [&](uint64_t cap, const char *what, const std::function<mpx_status()> &call) {
        if (has(cap)) return;
        mpx_status st = MPX_ERR_NO_RESOURCE;
        w.until(what, [&] { return (st = call()) != MPX_ERR_NO_RESOURCE; });
        EXPECT(st == MPX_ERR_UNSUPPORTED, "%s is not advertised and returned %d", what, st);
    };
    refused(MPX_CAP_AM_ZCOPY, "am_zcopy", [&] { return ops->am_zcopy(ep, 1, scratch, 8, &iov, 1, &op); });
    refused(MPX_CAP_PUT_ZCOPY, "put_zcopy", [&] { return ops->put_zcopy(ep, &iov, 1, 0, nullptr, &op); });
    refused(MPX_CAP_GET_ZCOPY, "get_zcopy", [&] { return ops->get_zcopy(ep, &iov, 1, 0, nullptr, &op); });
    refused(MPX_CAP_ATOMIC64, "atomic64", [&] { return ops->atomic64(ep, MPX_ATOMIC_ADD, 1, 0, &word, 0, nullptr, &op); });
    refused(MPX_CAP_EVENT_FD, "event_arm", [&] { return ops->event_arm(n.iface()); });
    refused(MPX_CAP_CONNECT_EP, "ep_address", [&] { return table().ep_address(ep, scratch); });
    refused(MPX_CAP_CONNECT_EP, "ep_connect", [&] { return table().ep_connect(ep, scratch, 16); });
    refused(MPX_CAP_LINK_MAY_BREAK, "ep_repair", [&] { return table().ep_repair(ep, scratch, 16); });
    mpx_mem_h m = nullptr;
    const mpx_status st = table().mem_reg(n.domain(), scratch, sizeof scratch, 99, MPX_ACCESS_LOCAL, &m);
    EXPECT(st == MPX_ERR_UNSUPPORTED, "mem_reg of an unknown memory type returned %d", st);
    w.settle();
    EXPECT(!op.finished(), "an unsupported operation completed");
}

CONFORMANCE(table_closes, "table: what was opened is closed, down to the last descriptor") {
    { World warm(2); }
    const int before = open_descriptors();
    for (int i = 0; i < 5; ++i) {
        World w(2);
        w.peer(0, 1);
        Talk a(w.node(0), 0, {.seed = options().seed, .count = 10, .to = {1}});
        if (options().loopback) {
            Talk both(w.node(0), 0, {.seed = options().seed, .count = 10, .to = {0}, .from = {0}});
            w.until("ten messages", [&] { return both.send(), both.done(); });
        } else {
            Talk b(w.node(1), 1, {.seed = options().seed, .count = 10, .from = {0}});
            w.until("ten messages", [&] { return a.send(), a.done() && b.done(); });
        }
    }
    const int after = open_descriptors();
    EXPECT(after == before, "%d descriptors were open before, %d after", before, after);
}

}  // namespace mpx::conform
