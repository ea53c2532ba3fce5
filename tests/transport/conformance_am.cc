// Active messages: order, content, attribution, limits, replies, kept descriptors.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>

#include "talk.h"

namespace mpx::conform {
namespace {

std::vector<int> others(const Party &p) {
    std::vector<int> all;
    for (int r = 0; r < p.size(); ++r)
        if (r != p.rank() || p.size() == 1) all.push_back(r);
    return all;
}

void converse(Party &p, Talk &talk) {
    wait_until(p.node(), "the planned messages", [&] {
        while (talk.send() && p.node().progress()) {
        }
        return talk.done();
    });
    p.barrier();
}

// One message, from `w.node(0)` to the other, checked byte by byte.
struct Single {
    World w{2};
    Peer &to = w.peer(0, 1);
    Bytes header, data;
    int arrived = 0;

    Single() {
        for (uint8_t id : {1, 2, 3, 31})
            w.node(1).on(id, [this](Incoming &in) {
                const auto *h = static_cast<const uint8_t *>(in.header);
                const auto *d = static_cast<const uint8_t *>(in.data);
                header.assign(h, h + in.header_len);
                data.assign(d, d + in.len);
                ++arrived;
                return mpx_status{MPX_OK};
            });
    }

    template <class F> void expect(const char *what, const Bytes &want_header, const Bytes &want, F &&send) {
        arrived = 0;
        mpx_status st = MPX_ERR_NO_RESOURCE;
        w.until(what, [&] { return st != MPX_ERR_NO_RESOURCE || (st = send()) != MPX_ERR_NO_RESOURCE; });
        if (!EXPECT(st >= 0, "%s of %zu bytes returned %d", what, want.size(), st)) return;
        w.until(what, [&] { return arrived && !w.node(0).outstanding(); });
        EXPECT(header == want_header, "%s of %zu bytes: the header arrived wrong", what, want.size());
        EXPECT(data == want, "%s of %zu bytes: the content arrived wrong (%zu bytes)", what, want.size(), data.size());
    }

    template <class F> void refuse(const char *what, F &&send) {
        mpx_status st = MPX_ERR_NO_RESOURCE;
        w.until(what, [&] { return (st = send()) != MPX_ERR_NO_RESOURCE; });
        EXPECT(st == MPX_ERR_INVALID, "%s returned %d instead of MPX_ERR_INVALID", what, st);
        arrived = 0;
        w.settle();
        EXPECT(!arrived, "%s: refused, and arrived", what);
    }
};

Bytes random_bytes(size_t len) {
    Bytes b(len);
    fill(b.data(), len, rng()());
    return b;
}

Bytes as_bytes(uint64_t x) {
    Bytes b(sizeof x);
    std::memcpy(b.data(), &x, sizeof x);
    return b;
}

constexpr size_t kLargestTried = 64u << 20;

std::vector<size_t> lengths_up_to(size_t limit) {
    std::vector<size_t> all{0, 1, 3, 7, 8, 9, 63, 64, 65, 255, 4095, 4096, 4097, limit / 2};
    if (limit <= kLargestTried) all.insert(all.end(), {limit - 1, limit});
    std::erase_if(all, [&](size_t n) { return n > std::min(limit, kLargestTried); });
    return all;
}

}  // namespace

CONFORMANCE(am_stream, "am: mixed kinds and sizes between two processes arrive once, in order, whole") {
    const uint64_t seed = rng()();
    team(2, [&](Party &p) {
        Talk talk(p.node(), p.rank(),
                  {.seed = seed, .count = 3000 * options().rounds, .max_len = 256u << 10, .to = others(p), .from = others(p)});
        converse(p, talk);
    });
}

CONFORMANCE(am_stream_inside, "am: mixed kinds and sizes between two ifaces of one process") {
    World w(2);
    const uint64_t seed = rng()(), count = 2000 * options().rounds;
    Talk a(w.node(0), 0, {.seed = seed, .count = count, .to = {1}, .from = {1}});
    if (options().loopback) {
        w.until("the planned messages", [&] { return a.send(), a.done(); });
        return;
    }
    Talk b(w.node(1), 1, {.seed = seed, .count = count, .to = {0}, .from = {0}});
    // Uneven turns: now one side runs ahead, now the other.
    w.until("the planned messages", [&] {
        Talk &t = draw(0, 1) ? a : b;
        for (uint64_t n = draw(0, 20); n && t.send(); --n) {
        }
        for (uint64_t n = draw(0, 20); n; --n) w.node(static_cast<int>(draw(0, 1))).progress();
        return a.done() && b.done();
    });
}

CONFORMANCE(am_limits, "am: zero length, limits, and one beyond") {
    Single s;
    Node &n = s.w.node(0);
    const mpx_iface_attr &a = attributes();
    for (size_t len : lengths_up_to(a.max_am_short)) {
        const Bytes data = random_bytes(len);
        const uint64_t header = rng()();
        s.expect("am_short", as_bytes(header), data, [&] { return n.am_short(s.to, 1, header, len ? data.data() : nullptr, len); });
    }
    for (size_t len : lengths_up_to(a.max_am_bcopy)) {
        const Bytes data = random_bytes(len);
        s.expect("am_bcopy", {}, data, [&] { return n.am_bcopy(s.to, 2, data); });
    }
    const Bytes less = random_bytes(100);
    s.expect("am_bcopy whose pack writes less than announced", {}, less, [&] { return n.am_bcopy(s.to, 2, less, a.max_am_bcopy); });
    s.expect("am_bcopy whose pack writes nothing", {}, {}, [&] { return n.am_bcopy(s.to, 2, {}, 512); });
    const Bytes eight = random_bytes(8);
    s.expect("am_bcopy with the highest id", {}, eight, [&] { return n.am_bcopy(s.to, MPX_AM_ID_MAX - 1, eight); });

    if (a.max_am_short < kLargestTried) {
        const Bytes data = random_bytes(a.max_am_short + 1);
        s.refuse("am_short beyond max_am_short", [&] { return n.am_short(s.to, 1, 1, data.data(), data.size()); });
    }
    if (a.max_am_bcopy < kLargestTried) {
        const Bytes data = random_bytes(a.max_am_bcopy + 1);
        s.refuse("am_bcopy beyond max_am_bcopy", [&] { return n.am_bcopy(s.to, 2, data); });
    }
    s.refuse("am_short with id MPX_AM_ID_MAX", [&] { return n.am_short(s.to, MPX_AM_ID_MAX, 1, nullptr, 0); });
    s.refuse("am_bcopy with id MPX_AM_ID_MAX", [&] { return n.am_bcopy(s.to, MPX_AM_ID_MAX, eight); });
    s.expect("am_bcopy after refusals", {}, eight, [&] { return n.am_bcopy(s.to, 2, eight); });
}

CONFORMANCE(am_zcopy_limits, "am: zcopy limits of payload, header and pieces") {
    if (!need(MPX_CAP_AM_ZCOPY)) return;
    Single s;
    Node &n = s.w.node(0);
    const mpx_iface_attr &a = attributes();
    const auto zcopy = [&](const Bytes &header, const Bytes &data, size_t pieces) {
        Op &op = n.op("am_zcopy", data);
        s.expect("am_zcopy", header, data, [&] { return n.am_zcopy(s.to, 3, header, op, pieces); });
        if (!op.finished()) return;
        EXPECT(op.status == MPX_OK, "am_zcopy of %zu bytes completed with %d", data.size(), op.status);
    };
    for (size_t len : lengths_up_to(a.max_am_zcopy)) zcopy(random_bytes(8), random_bytes(len), 1);
    for (size_t header : {size_t{0}, size_t{1}, a.max_am_hdr - 1, a.max_am_hdr}) zcopy(random_bytes(header), random_bytes(1000), 1);
    for (size_t pieces = 1; pieces <= std::min<size_t>(a.max_iov, 64); ++pieces) zcopy(random_bytes(8), random_bytes(5 * pieces), pieces);
    zcopy(random_bytes(8), {}, 0);
    zcopy(random_bytes(8), {}, 1);
    zcopy(random_bytes(8), random_bytes(a.max_iov - 1), a.max_iov);  // one piece is empty

    const auto refuse = [&](const char *what, uint8_t id, size_t header, size_t len, size_t pieces) {
        Op &op = n.op(what, random_bytes(len));
        const Bytes head = random_bytes(header);
        s.refuse(what, [&] { return n.am_zcopy(s.to, id, head, op, pieces); });
    };
    if (a.max_am_zcopy < kLargestTried) refuse("am_zcopy beyond max_am_zcopy", 3, 8, a.max_am_zcopy + 1, 1);
    if (a.max_am_hdr < kLargestTried) refuse("am_zcopy with a header beyond max_am_hdr", 3, a.max_am_hdr + 1, 8, 1);
    if (a.max_iov < 65536) refuse("am_zcopy in more than max_iov pieces", 3, 8, a.max_iov + 1, a.max_iov + 1);
    refuse("am_zcopy with id MPX_AM_ID_MAX", MPX_AM_ID_MAX, 8, 8, 1);
    if (has(MPX_CAP_NEED_MEMH)) {
        const Bytes data = random_bytes(64);
        const mpx_iov bare{const_cast<uint8_t *>(data.data()), data.size(), nullptr};
        Op &op = n.op("am_zcopy without memh");
        s.refuse("am_zcopy without a memh", [&] { return n.iface()->ops->am_zcopy(s.to.ep, 3, data.data(), 8, &bare, 1, &op); });
        exercised(MPX_CAP_NEED_MEMH);
    }
}

CONFORMANCE(am_crowd, "am: four processes, each to each, are told apart") {
    const uint64_t seed = rng()();
    team(4, [&](Party &p) {
        Talk talk(p.node(), p.rank(),
                  {.seed = seed, .count = 600 * options().rounds, .max_len = 32u << 10, .to = others(p), .from = others(p)});
        converse(p, talk);
    });
}

CONFORMANCE(am_funnel, "am: many to one, then one to many") {
    if (!need_two_parties()) return;
    const uint64_t seed = rng()();
    team(5, [&](Party &p) {
        const std::vector<int> all = others(p), hub{0}, none;
        const bool me = p.rank() == 0;
        TalkShape shape{
            .seed = seed, .count = 500 * options().rounds, .max_len = 32u << 10, .to = me ? none : hub, .from = me ? all : none};
        {
            Talk in(p.node(), p.rank(), shape);
            converse(p, in);
        }
        std::swap(shape.to, shape.from);
        ++shape.seed;
        Talk out(p.node(), p.rank(), shape);
        p.barrier();
        converse(p, out);
    });
}

CONFORMANCE(am_reply, "am: a handler may send") {
    World w(2);
    const uint64_t rounds = 2000 * options().rounds;
    uint64_t asked = 0, answered = 0, late = 0;
    std::vector<uint64_t> owed;
    const auto answer = [&](Peer &to, uint64_t x) {
        Bytes payload = as_bytes(x * 3);
        return x % 2 ? w.node(1).am_short(to, 5, x * 3, payload.data(), 8) : w.node(1).am_bcopy(to, 6, payload);
    };
    Peer *asker = nullptr;
    w.node(1).on(4, [&](Incoming &in) {
        uint64_t x;
        std::memcpy(&x, in.header, sizeof x);
        asker = in.from;
        if (!owed.empty() || answer(*in.from, x) != MPX_OK) owed.push_back(x), ++late;
        return mpx_status{MPX_OK};
    });
    const auto take = [&](Incoming &in) {
        uint64_t x = 0;
        if (EXPECT(in.len == 8, "an answer of %zu bytes", in.len)) std::memcpy(&x, in.data, sizeof x);
        EXPECT(x == answered * 3, "answer %llu where %llu was due", static_cast<unsigned long long>(x),
               static_cast<unsigned long long>(answered * 3));
        ++answered;
        return mpx_status{MPX_OK};
    };
    w.node(0).on(5, take);
    w.node(0).on(6, take);
    w.until("all answers", [&] {
        while (asked < rounds && w.node(0).am_short(w.peer(0, 1), 4, asked, nullptr, 0) == MPX_OK) ++asked;
        while (!owed.empty() && answer(*asker, owed.front()) == MPX_OK) owed.erase(owed.begin());
        return answered == rounds;
    });
}

CONFORMANCE(am_descriptors, "am: descriptors kept, given back late and in another order, also after their ep") {
    constexpr size_t kHeadroom = 48;
    World w(2, kHeadroom);
    struct Kept {
        uint8_t *data;
        size_t len;
        uint64_t key;
    };
    std::vector<Kept> kept;
    uint64_t sent = 0, received = 0, offered = 0;
    const uint64_t count = 3000 * options().rounds;
    bool hold_all = true;
    const auto give_back = [&](size_t i) {
        const Kept k = kept[i];
        kept[i] = kept.back();
        kept.pop_back();
        EXPECT(filled(k.data, k.len, k.key), "a kept descriptor of %zu bytes changed", k.len);
        EXPECT(poisoned(k.data - kHeadroom, kHeadroom), "the headroom of a kept descriptor changed");
        Node &n = w.node(1);
        n.iface()->ops->desc_release(n.iface(), k.data);
    };
    const std::function<mpx_status(Incoming &)> keep = [&](Incoming &in) {
        const uint64_t key = received++;
        EXPECT(filled(in.data, in.len, key), "message %llu arrived with wrong content", static_cast<unsigned long long>(key));
        if (!(in.flags & MPX_AM_F_DESC)) return mpx_status{MPX_OK};
        ++offered;
        if (!hold_all && draw(0, 1)) return mpx_status{MPX_OK};
        auto *data = static_cast<uint8_t *>(in.data);
        std::fill_n(data - kHeadroom, kHeadroom, kPoison);
        kept.push_back({data, in.len, key});
        return mpx_status{MPX_INPROGRESS};
    };
    w.node(1).on(1, keep);
    w.node(1).on(2, keep);
    const size_t limit = std::min<size_t>(attributes().max_am_bcopy, 4096);
    Bytes payload;
    bool ready = false;
    const auto run = [&](uint64_t until, bool release) {
        w.until("messages while descriptors are kept", [&] {
            for (mpx_status st = MPX_OK; sent < until && st == MPX_OK;) {
                if (!ready) {
                    payload.resize(draw_log(limit));
                    fill(payload.data(), payload.size(), sent);
                    ready = true;
                }
                const bool brief = payload.size() <= attributes().max_am_short && sent % 2;
                st = brief ? w.node(0).am_short(w.peer(0, 1), 1, sent, payload.data(), payload.size())
                           : w.node(0).am_bcopy(w.peer(0, 1), 2, payload);
                if (st == MPX_OK) ready = false, ++sent;
            }
            for (uint64_t n = release ? draw(0, 8) : 0; n && !kept.empty(); --n) give_back(draw(0, kept.size() - 1));
            return received == until;
        });
    };
    run(count / 3, false);  // all that may be kept is kept: the rest must still flow
    hold_all = false;
    run(count, true);
    if (!EXPECT(received == count, "%llu of %llu messages", static_cast<unsigned long long>(received),
                static_cast<unsigned long long>(count)))
        return;
    std::printf("  %llu descriptors were offered, %zu outlive their eps\n", static_cast<unsigned long long>(offered), kept.size());
    w.node(0).destroy_ep(options().loopback ? 0 : 1);
    if (!options().loopback && w.node(1).has_ep(0)) w.node(1).destroy_ep(0);
    w.settle();
    while (!kept.empty()) give_back(draw(0, kept.size() - 1));
}

CONFORMANCE(am_bytes, "am: the byte counters grow by at least the payload") {
    World w(2);
    const uint64_t seed = rng()(), sent = w.node(0).bytes(false), received = w.node(1).bytes(true);
    Talk a(w.node(0), 0, {.seed = seed, .count = 500, .to = {1}, .from = options().loopback ? std::vector<int>{1} : std::vector<int>{}});
    std::unique_ptr<Talk> b;
    if (!options().loopback) b = std::make_unique<Talk>(w.node(1), 1, TalkShape{.seed = seed, .count = 500, .from = {0}});
    w.until("500 messages", [&] { return a.send(), a.done() && (!b || b->done()); });
    const uint64_t payload = a.payload_sent(), out = w.node(0).bytes(false) - sent, in = w.node(1).bytes(true) - received;
    const auto loose = payload * 2 + 500 * 1024;
    EXPECT(out >= payload && out <= loose, "%llu bytes counted as sent, %llu of payload", static_cast<unsigned long long>(out),
           static_cast<unsigned long long>(payload));
    EXPECT(in >= payload && in <= loose, "%llu bytes counted as received, %llu of payload", static_cast<unsigned long long>(in),
           static_cast<unsigned long long>(payload));
}

}  // namespace mpx::conform
