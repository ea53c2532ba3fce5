// Matching: random posts, arrivals, probes and cancels against an oracle that searches two lists; the pool of requests.
#include <list>
#include <set>

#include "engine_world.h"

using namespace mpx;
using namespace mpx::test;

namespace {

struct Post {
    uint32_t context;
    int32_t source, tag;
    Request *request;
};
struct Arrival {
    uint32_t context;
    int32_t source, tag;
    uint64_t key;
};

bool fits(const Post &p, const Arrival &a) {
    return p.context == a.context && (p.source == kAnySource || p.source == a.source) && (p.tag == kAnyTag || p.tag == a.tag);
}

// What MPI asks for: a message meets the first receive posted that it fits, a receive the first message that arrived.
struct Oracle {
    std::list<Post> posts;
    std::list<Arrival> arrivals;

    bool arrive(const Arrival &a, Post *met) {
        for (auto p = posts.begin(); p != posts.end(); ++p)
            if (fits(*p, a)) return *met = *p, posts.erase(p), true;
        return arrivals.push_back(a), false;
    }
    bool post(const Post &p, Arrival *met, bool take = true) {
        for (auto a = arrivals.begin(); a != arrivals.end(); ++a)
            if (fits(p, *a)) return *met = *a, take ? (void)arrivals.erase(a) : (void)0, true;
        if (take) posts.push_back(p);
        return false;
    }
};

}  // namespace

TEST_CASE("matching does what the oracle does, 10^5 times") {
    constexpr int kRanks = 4;
    Config config;
    config.eager_window = 1u << 30;
    ScriptedWorld world(kRanks, nullptr, config);
    std::mt19937_64 random(seed());
    const auto draw = [&](uint64_t n) { return random() % n; };
    Oracle oracle;
    uint64_t key = 0, matches = 0;
    const auto check = [&](Request *r, const Arrival &a) {
        auto *place = static_cast<uint64_t *>(r->buffer);
        REQUIRE(r->done);
        REQUIRE(*place == a.key);
        REQUIRE(r->status.source == a.source);
        REQUIRE(r->status.tag == a.tag);
        REQUIRE(r->status.error == Error::kNone);
        delete place;
        world[0].release(r);
        matches++;
    };
    for (int step = 0; step < 100'000; step++) {
        const auto context = static_cast<uint32_t>(draw(kContexts));
        const auto tag = static_cast<int32_t>(draw(5));
        const auto source = static_cast<int32_t>(draw(kRanks));  // itself too
        const Post wanted{context, draw(3) ? source : kAnySource, draw(3) ? tag : kAnyTag, nullptr};
        switch (draw(16)) {
            case 0: {  // probe
                Arrival expected{};
                Status status;
                const bool there = oracle.post(wanted, &expected, false);
                REQUIRE(world[0].iprobe(wanted.context, wanted.source, wanted.tag, &status) == there);
                if (there) {
                    REQUIRE(status.source == expected.source);
                    REQUIRE(status.tag == expected.tag);
                    REQUIRE(status.bytes == sizeof key);
                }
                break;
            }
            case 1: {  // cancel
                if (oracle.posts.empty()) break;
                const auto at = std::next(oracle.posts.begin(), static_cast<long>(draw(oracle.posts.size())));
                REQUIRE(world[0].cancel(at->request));
                REQUIRE(at->request->done);
                REQUIRE(at->request->status.canceled);
                REQUIRE_FALSE(world[0].cancel(at->request));
                delete static_cast<uint64_t *>(at->request->buffer);
                world[0].release(at->request);
                oracle.posts.erase(at);
                break;
            }
            default: {
                // The longer queue is fed less, so both stay a few dozen long.
                if (draw(100) < (oracle.arrivals.size() > oracle.posts.size() ? 60 : 40)) {
                    Arrival met{};
                    Request *r = world[0].irecv(wanted.context, wanted.source, wanted.tag, new uint64_t(0), sizeof key, false);
                    Post p = wanted;
                    p.request = r;
                    const bool meets = oracle.post(p, &met);
                    REQUIRE(r->done == meets);
                    if (meets) check(r, met);
                } else {
                    const Arrival a{context, source, tag, ++key};
                    Request *s = world[source].isend(context, 0, tag, &a.key, sizeof a.key, SendMode::kStandard);
                    world.finish(s);
                    world[source].release(s);
                    world[0].progress();
                    Post met{};
                    if (oracle.arrive(a, &met)) check(met.request, a);
                }
            }
        }
    }
    CHECK(matches > 20'000);
    for (const Post &p : oracle.posts) {
        CHECK(world[0].cancel(p.request));
        delete static_cast<uint64_t *>(p.request->buffer);
    }
    world.check_closed();
}

TEST_CASE("the pool hands out each request once, and old ids name nothing") {
    RequestPool pool;
    std::set<Request *> out;
    for (int i = 0; i < 1000; i++) {
        Request *r = pool.take();
        r->generation++;
        r->stage = Stage::kPosted;
        CHECK(out.insert(r).second);
        CHECK(pool.find(r->id()) == r);
    }
    CHECK(pool.find(uint64_t{5000} << 32 | 1) == nullptr);
    CHECK(pool.find(UINT64_MAX) == nullptr);
    std::set<uint64_t> old;
    for (Request *r : out) {
        old.insert(r->id());
        r->stage = Stage::kIdle;
        CHECK(pool.find(r->id()) == nullptr);
        pool.give_back(r);
    }
    bool reused = false;
    for (int i = 0; i < 2000; i++) {
        Request *r = pool.take();
        r->generation++;
        r->stage = Stage::kPosted;
        reused |= out.count(r) != 0;
        CHECK(old.count(r->id()) == 0);
    }
    CHECK(reused);
    for (const uint64_t id : old) CHECK(pool.find(id) == nullptr);
}
