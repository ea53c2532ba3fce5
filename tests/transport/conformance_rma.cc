// One-sided access between two processes: get, put, fence, flush, keys and their bounds, mapped memory, atomics.
#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "talk.h"

namespace mpx::conform {
namespace {

// All that the transport can grant.
unsigned every_access() {
    return MPX_ACCESS_LOCAL | MPX_ACCESS_REMOTE_READ | (has(MPX_CAP_PUT_ZCOPY) ? unsigned{MPX_ACCESS_REMOTE_WRITE} : 0u) |
           (has(MPX_CAP_ATOMIC64) ? unsigned{MPX_ACCESS_REMOTE_ATOMIC} : 0u);
}

// Memory that others reach: the transport's own (mem_alloc), or ordinary memory from `offset` into its page on.
class Exposed {
public:
    Exposed(Node &n, size_t len, bool own, size_t offset = 0, unsigned access = every_access())
        : domain_(n.domain()),
          len_(len),
          own_(own) {
        void *p = nullptr;
        if (own) {
            EXPECT(table().mem_alloc(domain_, len, &p, &memh_) == MPX_OK, "mem_alloc of %zu bytes failed: %s", len, table().why());
        } else {
            if (posix_memalign(&base_, static_cast<size_t>(sysconf(_SC_PAGESIZE)), len + offset + 1) != 0) throw std::bad_alloc();
            p = static_cast<uint8_t *>(base_) + offset;
            EXPECT(table().mem_reg(domain_, p, len, MPX_MEM_HOST, access, &memh_) == MPX_OK, "mem_reg failed: %s", table().why());
        }
        data_ = static_cast<uint8_t *>(p);
    }
    ~Exposed() {
        if (own_) table().mem_free(domain_, data_, memh_);
        else EXPECT(table().mem_dereg(domain_, memh_) == MPX_OK, "mem_dereg failed: %s", table().why());
        std::free(base_);
    }
    Exposed(const Exposed &) = delete;
    Exposed &operator=(const Exposed &) = delete;

    uint8_t *data() { return data_; }
    // Address and packed key, for exchange.
    Bytes ticket() {
        Bytes b(sizeof(uint64_t) + attributes().rkey_packed_len);
        const uint64_t address = reinterpret_cast<uintptr_t>(data_);
        std::memcpy(b.data(), &address, sizeof address);
        EXPECT(table().rkey_pack(domain_, memh_, b.data() + sizeof address, attributes().rkey_packed_len) == MPX_OK, "rkey_pack failed: %s",
               table().why());
        return b;
    }

private:
    mpx_domain *domain_;
    size_t len_;
    bool own_;
    void *base_ = nullptr;
    uint8_t *data_ = nullptr;
    mpx_mem_h memh_ = nullptr;
};

// The other end of a ticket.
class Remote {
public:
    Remote(Node &n, const Bytes &ticket) : domain_(n.domain()) {
        std::memcpy(&address, ticket.data(), sizeof address);
        const mpx_status st = table().rkey_unpack(domain_, ticket.data() + sizeof address, ticket.size() - sizeof address, &key);
        if (st != MPX_OK) throw std::runtime_error(std::string("rkey_unpack failed: ") + table().why());
    }
    ~Remote() { table().rkey_release(domain_, key); }
    Remote(const Remote &) = delete;
    Remote &operator=(const Remote &) = delete;

    uint64_t address = 0;
    mpx_rkey_h key = nullptr;

private:
    mpx_domain *domain_;
};

// Starts an operation, whatever the back-pressure; the status of the call.
template <class F> mpx_status begin(Node &n, F &&call) {
    mpx_status st = MPX_ERR_NO_RESOURCE;
    wait_until(n, "room for an operation", [&] { return (st = call()) != MPX_ERR_NO_RESOURCE; });
    return st;
}

template <class F> mpx_status complete(Node &n, Op &op, F &&call) {
    const mpx_status st = begin(n, call);
    if (st < 0) return st;
    wait_until(n, op.what, [&] { return op.finished(); });
    return op.status;
}

std::vector<size_t> sizes() {
    std::vector<size_t> all{0, 1, 3, 7, 8, 9, 63, 1000, 4095, 4096, 4097, 12289, 65537, 1u << 20, (1u << 20) + 1, 64u << 20};
    std::erase_if(all, [](size_t n) { return n > attributes().max_zcopy; });
    return all;
}

// Runs `initiate` on rank 0 (over a loopback the only one) with the ticket of memory that the last rank exposed.
void with_target(size_t len, bool own, size_t offset, unsigned access, const std::function<void(uint8_t *)> &prepare,
                 const std::function<void(Node &, Peer &, Remote &)> &initiate, const std::function<void(uint8_t *)> &verify) {
    team(2, [&](Party &p) {
        const bool target = p.rank() == p.size() - 1;
        p.node().on(30, [](Incoming &) { return mpx_status{MPX_OK}; });
        std::unique_ptr<Exposed> exposed;
        Bytes ticket;
        if (target) {
            exposed = std::make_unique<Exposed>(p.node(), len, own, offset, access);
            prepare(exposed->data());
            ticket = exposed->ticket();
        }
        const auto tickets = p.exchange(ticket);
        if (p.rank() == 0) {
            Remote remote(p.node(), tickets.back());
            initiate(p.node(), p.peer(p.size() - 1), remote);
        }
        p.barrier();
        if (target) verify(exposed->data());
        p.barrier();
    });
}

constexpr size_t kTargetBytes = (64u << 20) + (1u << 20);

}  // namespace

CONFORMANCE(rma_get, "get: sizes from 0 to 64 MiB, offsets, pieces; content, edges, source, nothing touched after completion") {
    if (!need(MPX_CAP_GET_ZCOPY)) return;
    const uint64_t key = rng()();
    Bytes original(kTargetBytes);
    fill(original.data(), original.size(), key);
    for (bool own : {false, true}) {
        with_target(
            kTargetBytes, own, own ? 0 : 17, every_access(), [&](uint8_t *at) { std::memcpy(at, original.data(), original.size()); },
            [&](Node &n, Peer &peer, Remote &remote) {
                const auto one = [&](size_t offset, size_t len, size_t pieces) -> Op & {
                    Op &op = n.op("get_zcopy", Bytes(len + 32, 0x5a));
                    op.margin = 16;
                    op.check = [&original, offset, len](Op &o) {
                        EXPECT(o.status == MPX_OK, "get of %zu bytes completed with %d", len, o.status);
                        EXPECT(std::memcmp(o.buffer.data() + 16, original.data() + offset, len) == 0,
                               "get of %zu bytes from %zu: wrong content", len, offset);
                        const Bytes edge(16, 0x5a);
                        EXPECT(std::memcmp(o.buffer.data(), edge.data(), 16) == 0 &&
                                   std::memcmp(o.buffer.data() + 16 + len, edge.data(), 16) == 0,
                               "get of %zu bytes wrote outside of its buffer", len);
                    };
                    const mpx_status st = begin(n, [&] { return n.get(peer, op, remote.address + offset, remote.key, pieces); });
                    EXPECT(st >= 0, "get of %zu bytes from offset %zu returned %d", len, offset, st);
                    return op;
                };
                const uint64_t before = n.bytes(true);
                uint64_t moved = 0;
                for (size_t len : sizes())
                    for (size_t offset : {size_t{0}, size_t{1}, size_t{4095}}) {
                        if (len > (1u << 20) + 1 && offset) continue;
                        Op &op = one(offset, len, 1);
                        moved += len;
                        wait_until(n, "a get", [&] { return op.finished(); });
                    }
                EXPECT(n.bytes(true) - before >= moved, "bytes: %llu counted as received, %llu were got",
                       static_cast<unsigned long long>(n.bytes(true) - before), static_cast<unsigned long long>(moved));
                one(kTargetBytes - 5, 5, 1);  // up to the very end
                one(kTargetBytes, 0, 1);
                for (size_t pieces = 1; pieces <= std::min<size_t>(attributes().max_iov, 32); ++pieces) one(pieces, 1000 + pieces, pieces);
                for (uint64_t k = 0; k < 300 * options().rounds; ++k) {
                    one(draw(0, 1u << 20), draw_log(256u << 10), draw(1, std::min<size_t>(attributes().max_iov, 4)));
                    wait_until(n, "fewer gets in flight", [&] { return n.outstanding() < 32; });
                }
                wait_until(n, "all gets", [&] { return n.outstanding() == 0; });
                for (int k = 0; k < 200; ++k) n.progress();
                n.check_graves();
            },
            [&](uint8_t *at) { EXPECT(std::memcmp(at, original.data(), original.size()) == 0, "get changed its source"); });
    }
}

CONFORMANCE(rma_put, "put: sizes from 0 to 64 MiB, offsets, pieces; visible after flush, neighbours untouched") {
    if (!need(MPX_CAP_PUT_ZCOPY)) return;
    const uint64_t key = rng()();
    for (bool own : {false, true}) {
        for (size_t len : sizes()) {
            if (len > (1u << 20) + 1 && own) continue;
            const size_t offset = len % 2 ? 4095 : 64, pieces = len % 3 == 1 ? std::min<size_t>(attributes().max_iov, 3) : 1;
            const size_t whole = offset + len + 64;
            with_target(
                whole, own, 0, every_access(), [&](uint8_t *at) { std::fill_n(at, whole, kPoison); },
                [&](Node &n, Peer &peer, Remote &remote) {
                    Bytes data(len);
                    fill(data.data(), len, key);
                    const uint64_t before = n.bytes(false);
                    Op &op = n.op("put_zcopy", data);
                    const mpx_status st = complete(n, op, [&] { return n.put(peer, op, remote.address + offset, remote.key, pieces); });
                    EXPECT(st == MPX_OK, "put of %zu bytes ended with %d", len, st);
                    Op &flush = n.op("ep_flush");
                    const mpx_status fl = complete(n, flush, [&] { return n.flush(peer, flush); });
                    EXPECT(fl == MPX_OK, "ep_flush after a put ended with %d", fl);
                    EXPECT(n.bytes(false) - before >= len, "bytes: fewer counted as sent than were put");
                },
                [&](uint8_t *at) {
                    EXPECT(filled(at + offset, len, key), "put of %zu bytes: wrong content at the target", len);
                    EXPECT(poisoned(at, offset) && poisoned(at + offset + len, 64), "put of %zu bytes wrote outside of its range", len);
                });
        }
    }
}

CONFORMANCE(rma_fence, "put: an AM after ep_fence sees earlier puts") {
    if (!need(MPX_CAP_PUT_ZCOPY)) return;
    const uint64_t rounds = 200 * options().rounds, seed = rng()();
    team(2, [&](Party &p) {
        constexpr size_t kLen = 9000;
        const bool target = p.rank() == p.size() - 1;
        std::unique_ptr<Exposed> exposed;
        uint64_t seen = 0;
        p.node().on(1, [&](Incoming &in) {
            uint64_t round;
            std::memcpy(&round, in.header, sizeof round);
            EXPECT(filled(exposed->data() + (round % 2) * kLen, kLen, seed + round), "fence: the AM of round %llu came before its put",
                   static_cast<unsigned long long>(round));
            ++seen;
            return mpx_status{MPX_OK};
        });
        uint64_t told = 0;
        p.node().on(2, [&](Incoming &) { return ++told, mpx_status{MPX_OK}; });
        if (target) exposed = std::make_unique<Exposed>(p.node(), 2 * kLen, true);
        const auto tickets = p.exchange(target ? exposed->ticket() : Bytes{});
        if (p.rank() == 0) {
            Node &n = p.node();
            Remote remote(n, tickets.back());
            Peer &peer = p.peer(p.size() - 1);
            for (uint64_t round = 0; round < rounds; ++round) {
                Bytes data(kLen);
                fill(data.data(), kLen, seed + round);
                Op &op = n.op("put_zcopy", data);
                EXPECT(begin(n, [&] { return n.put(peer, op, remote.address + (round % 2) * kLen, remote.key); }) >= 0, "put failed");
                EXPECT(begin(n, [&] { return n.iface()->ops->ep_fence(peer.ep); }) == MPX_OK, "ep_fence failed");
                EXPECT(begin(n, [&] { return n.am_short(peer, 1, round, nullptr, 0); }) == MPX_OK, "am_short failed");
                // Two rounds may be on their way, in the two halves; the target says how far it is.
                wait_until(n, "the target's answer", [&] { return (p.size() == 1 ? seen : told) + 1 > round; });
            }
            wait_until(n, "the last answer", [&] { return (p.size() == 1 ? seen : told) == rounds && !n.outstanding(); });
        } else {
            uint64_t answered = 0;
            wait_until(p.node(), "all rounds", [&] {
                while (answered < seen && p.node().am_short(p.peer(0), 2, answered, nullptr, 0) == MPX_OK) ++answered;
                return answered == rounds;
            });
        }
        p.barrier();
    });
}

CONFORMANCE(rma_bounds, "rma: outside of the key's range or rights nothing is read or written") {
    if (!has(MPX_CAP_PUT_ZCOPY) && !need(MPX_CAP_GET_ZCOPY)) return;
    constexpr size_t kLen = 10000;
    const auto refused = [](Node &n, const char *what, mpx_status st) {
        EXPECT(st < 0 && st != MPX_ERR_NO_RESOURCE, "bounds: %s ended with %d", what, st);
        (void)n;
    };
    const struct {
        const char *what;
        int64_t offset;
        size_t len;
    } kOutside[] = {{"one byte before", -1, 8},
                    {"one byte beyond", kLen - 7, 8},
                    {"wholly before", -4096, 8},
                    {"wholly beyond", kLen, 1},
                    {"longer than the range", 0, kLen + 1},
                    {"far away", int64_t{1} << 40, 8},
                    {"around the end of the address space", -(int64_t{1} << 62), 8}};
    for (bool own : {false, true})
        with_target(
            kLen, own, own ? 0 : 64, every_access(), [&](uint8_t *at) { std::fill_n(at, kLen, 0x11); },
            [&](Node &n, Peer &peer, Remote &remote) {
                for (const auto &o : kOutside) {
                    const uint64_t raddr = remote.address + static_cast<uint64_t>(o.offset);
                    if (has(MPX_CAP_GET_ZCOPY)) {
                        Op &op = n.op(o.what, Bytes(o.len, 0x5a));
                        op.check = [&](Op &done) {
                            EXPECT(std::all_of(done.buffer.begin(), done.buffer.end(), [](uint8_t b) { return b == 0x5a; }),
                                   "bounds: a refused get (%s) wrote to its buffer", done.what);
                        };
                        refused(n, o.what, complete(n, op, [&] { return n.get(peer, op, raddr, remote.key); }));
                    }
                    if (has(MPX_CAP_PUT_ZCOPY)) {
                        Op &op = n.op(o.what, Bytes(o.len, 0x77));
                        refused(n, o.what, complete(n, op, [&] { return n.put(peer, op, raddr, remote.key); }));
                    }
                }
                EXPECT(begin(n, [&] { return n.am_short(peer, 30, 0, nullptr, 0); }) == MPX_OK, "after refused accesses the ep is dead");
                EXPECT(!peer.errors, "a refused access ended the ep");
            },
            [&](uint8_t *at) { EXPECT(std::all_of(at, at + kLen, [](uint8_t b) { return b == 0x11; }), "bounds: a refused put wrote"); });
    // Rights: readable memory is not writable.
    if (!has(MPX_CAP_PUT_ZCOPY)) return;
    with_target(
        kLen, false, 0, MPX_ACCESS_REMOTE_READ, [&](uint8_t *at) { std::fill_n(at, kLen, 0x11); },
        [&](Node &n, Peer &peer, Remote &remote) {
            Op &op = n.op("put into memory registered for reading", Bytes(8, 0x77));
            refused(n, op.what, complete(n, op, [&] { return n.put(peer, op, remote.address, remote.key); }));
        },
        [&](uint8_t *at) { EXPECT(std::all_of(at, at + kLen, [](uint8_t b) { return b == 0x11; }), "rights: a refused put wrote"); });
}

CONFORMANCE(rma_memh, "rma: a local buffer that is not registered for it is refused, where a registration is needed") {
    if (!need(MPX_CAP_NEED_MEMH | MPX_CAP_GET_ZCOPY)) return;
    constexpr size_t kLen = 10000;
    with_target(
        kLen, false, 0, every_access(), [&](uint8_t *at) { std::fill_n(at, kLen, 0x11); },
        [&](Node &n, Peer &peer, Remote &remote) {
            EXPECT(begin(n, [&] { return n.am_short(peer, 30, 0, nullptr, 0); }) == MPX_OK, "am_short failed");
            Bytes local(kLen, 0x5a);
            mpx_mem_h part = nullptr, to_be_read = nullptr;
            const auto reg = [&](size_t len, unsigned access, mpx_mem_h *memh) {
                return table().mem_reg(n.domain(), local.data(), len, MPX_MEM_HOST, access, memh);
            };
            EXPECT(reg(kLen / 2, MPX_ACCESS_LOCAL, &part) == MPX_OK && reg(kLen, MPX_ACCESS_REMOTE_READ, &to_be_read) == MPX_OK,
                   "mem_reg failed: %s", table().why());
            const struct {
                const char *what;
                mpx_mem_h memh;
            } kWrong[] = {{"no registration", nullptr}, {"one of another range", part}, {"one without the right to write", to_be_read}};
            for (const auto &[what, memh] : kWrong) {
                const mpx_iov iov{local.data(), kLen, memh};
                const mpx_status st = n.iface()->ops->get_zcopy(peer.ep, &iov, 1, remote.address, remote.key, &n.op(what));
                EXPECT(st == MPX_ERR_INVALID, "get into memory with %s returned %d instead of MPX_ERR_INVALID", what, st);
            }
            for (int k = 0; k < 200; ++k) n.progress();
            EXPECT(std::all_of(local.begin(), local.end(), [](uint8_t b) { return b == 0x5a; }), "a refused get wrote");
            for (mpx_mem_h memh : {part, to_be_read}) table().mem_dereg(n.domain(), memh);
            exercised(MPX_CAP_NEED_MEMH);
        },
        [&](uint8_t *) {});
}

CONFORMANCE(rma_pointer, "rkey_ptr: a peer's memory by load and store") {
    if (!has(MPX_CAP_RKEY_PTR)) {
        std::printf("  skipped: not advertised: RKEY_PTR\n");
        return;
    }
    constexpr size_t kLen = 1u << 20;
    const uint64_t key = rng()();
    with_target(
        kLen, true, 0, every_access(), [&](uint8_t *at) { fill(at, kLen, key); },
        [&](Node &n, Peer &, Remote &remote) {
            auto *p = static_cast<uint8_t *>(table().rkey_ptr(n.domain(), remote.key, remote.address));
            if (!EXPECT(p, "rkey_ptr of mem_alloc's memory is NULL: %s", table().why())) return;
            EXPECT(filled(p, kLen, key), "rkey_ptr: wrong content");
            EXPECT(table().rkey_ptr(n.domain(), remote.key, remote.address + 4097) == p + 4097, "rkey_ptr: offsets do not add up");
            EXPECT(!table().rkey_ptr(n.domain(), remote.key, remote.address - 1), "rkey_ptr before the range");
            EXPECT(!table().rkey_ptr(n.domain(), remote.key, remote.address + kLen + 4096), "rkey_ptr beyond the range");
            fill(p, kLen, key + 1);
            exercised(MPX_CAP_RKEY_PTR);
        },
        [&](uint8_t *at) { EXPECT(filled(at, kLen, key + 1), "rkey_ptr: the owner does not see what was stored"); });
}

CONFORMANCE(rma_atomic, "atomic64: every operation, and the sum of concurrent adds is exact") {
    if (!need(MPX_CAP_ATOMIC64)) return;
    const uint64_t adds = 500 * options().rounds;
    team(4, [&](Party &p) {
        Node &n = p.node();
        std::unique_ptr<Exposed> exposed;
        if (p.rank() == 0) {
            exposed = std::make_unique<Exposed>(n, 64, true);
            std::fill_n(exposed->data(), 64, 0);
        }
        const auto tickets = p.exchange(exposed ? exposed->ticket() : Bytes{});
        const bool cpu = attributes().atomic_domain == MPX_ATOMIC_DOMAIN_CPU;
        const bool adds_remotely = p.rank() > 0 || p.size() == 1;
        Bytes results;
        if (adds_remotely) {
            Remote remote(n, tickets.front());
            Peer &home = p.peer(0);
            std::vector<uint64_t> old(adds);
            for (uint64_t &result : old) {
                Op &op = n.op("atomic64");
                EXPECT(begin(n, [&] { return n.atomic(home, op, MPX_ATOMIC_ADD, 1, 0, &result, remote.address, remote.key); }) >= 0,
                       "atomic add failed");
                wait_until(n, "fewer atomics in flight", [&] { return n.outstanding() < 16; });
            }
            wait_until(n, "all atomics", [&] { return n.outstanding() == 0; });
            results.resize(old.size() * sizeof(uint64_t));
            std::memcpy(results.data(), old.data(), results.size());
        } else if (cpu) {
            for (uint64_t k = 0; k < adds; ++k) {
                std::atomic_ref(*reinterpret_cast<uint64_t *>(exposed->data())).fetch_add(1);
                if (k % 50 == 0) n.progress();
            }
        }
        const auto all = p.exchange(results);
        if (exposed) {
            std::vector<uint64_t> old;
            for (const Bytes &b : all)
                for (size_t i = 0; i + 8 <= b.size(); i += 8) std::memcpy(&old.emplace_back(), b.data() + i, 8);
            std::sort(old.begin(), old.end());
            EXPECT(std::adjacent_find(old.begin(), old.end()) == old.end(), "atomic: two adds saw one value");
            const uint64_t sum = std::atomic_ref(*reinterpret_cast<uint64_t *>(exposed->data())).load();
            const uint64_t want = old.size() + (cpu && p.size() > 1 ? adds : 0);
            EXPECT(sum == want, "atomic: the sum is %llu, not %llu", static_cast<unsigned long long>(sum),
                   static_cast<unsigned long long>(want));
        }
        p.barrier();
        if (p.rank() == p.size() - 1) {
            Remote remote(n, tickets.front());
            Peer &home = p.peer(0);
            uint64_t value = 0, old = 0;
            const auto check = [&](const char *what, unsigned op, uint64_t operand, uint64_t compare, uint64_t becomes) {
                Op &o = n.op(what);
                const mpx_status st =
                    complete(n, o, [&] { return n.atomic(home, o, op, operand, compare, &old, remote.address + 8, remote.key); });
                EXPECT(st == MPX_OK && old == value, "atomic %s ended with %d and saw %llx instead of %llx", what, st,
                       static_cast<unsigned long long>(old), static_cast<unsigned long long>(value));
                value = becomes;
            };
            check("swap", MPX_ATOMIC_SWAP, 0xf0f0, 0, 0xf0f0);
            check("add", MPX_ATOMIC_ADD, 0xf, 0, 0xf0ff);
            check("add that wraps", MPX_ATOMIC_ADD, ~uint64_t{0}, 0, 0xf0fe);
            check("and", MPX_ATOMIC_AND, 0xff00, 0, 0xf000);
            check("or", MPX_ATOMIC_OR, 0x1, 0, 0xf001);
            check("xor", MPX_ATOMIC_XOR, 0xf001f, 0, 0xff01e);
            check("cswap that finds it", MPX_ATOMIC_CSWAP, 5, 0xff01e, 5);
            check("cswap that does not", MPX_ATOMIC_CSWAP, 6, 4, 5);
            check("swap", MPX_ATOMIC_SWAP, 0, 0, 0);
            Op &odd = n.op("atomic outside of the key's range");
            const mpx_status st =
                complete(n, odd, [&] { return n.atomic(home, odd, MPX_ATOMIC_ADD, 1, 0, &old, remote.address + 64, remote.key); });
            EXPECT(st < 0 && st != MPX_ERR_NO_RESOURCE, "atomic outside of the key's range ended with %d", st);
        }
        p.barrier();
    });
}

}  // namespace mpx::conform
