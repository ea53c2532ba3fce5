// A peer that fails, leaves or speaks nonsense: every request ends exactly once, nothing stays registered, the rest of the job goes on.
#include "engine_world.h"

using namespace mpx;
using namespace mpx::test;

namespace {

void no_get(mpx_iface_attr &a) { a.caps &= ~uint64_t{MPX_CAP_GET_ZCOPY}; }

}  // namespace

TEST_CASE("a send ends once when its peer fails, wherever it stands") {
    const std::string data = content(3000, 1);
    const auto fail = [&](ScriptedWorld &world, Request *s, Stage stage) {
        REQUIRE(s->stage == stage);
        Ends ends(s);
        world.fabric.fail(0, 1);
        world.fabric.answer = nullptr;
        world.pump();
        CHECK(ends.times == 1);
        CHECK(ends.error == Error::kProcFailed);
        CHECK(world[0].peer_state(1) == static_cast<int>(Peer::State::kFailed));
        Request *later = world[0].isend(0, 1, 0, data.data(), 8, SendMode::kStandard);
        CHECK(later->done);
        CHECK(later->status.error == Error::kProcFailed);
        world.check_closed();
        CHECK(ends.times == 1);
    };
    const auto refuse = [](const script::Call &) { return MPX_ERR_NO_RESOURCE; };
    for (const uint64_t size : {0, 100, 300, 3000})
        for (const SendMode mode : {SendMode::kStandard, SendMode::kSync}) {
            SUBCASE("queued") {
                ScriptedWorld world(2);
                world.fabric.answer = refuse;
                fail(world, world[0].isend(0, 1, 0, data.data(), size, mode), Stage::kQueued);
            }
        }
    SUBCASE("awaiting FIN of a synchronous send") {
        ScriptedWorld world(2);
        fail(world, world[0].isend(0, 1, 0, data.data(), 8, SendMode::kSync), Stage::kAwaitsPeer);
    }
    SUBCASE("awaiting FIN of a get") {
        ScriptedWorld world(2);
        fail(world, world[0].isend(0, 1, 0, data.data(), 3000, SendMode::kStandard), Stage::kAwaitsPeer);
    }
    SUBCASE("awaiting CTS") {
        ScriptedWorld world(2, no_get);
        fail(world, world[0].isend(0, 1, 0, data.data(), 3000, SendMode::kSync), Stage::kAwaitsPeer);
    }
    SUBCASE("streaming") {
        ScriptedWorld world(2, [](mpx_iface_attr &a) {
            no_get(a);
            a.caps &= ~uint64_t{MPX_CAP_AM_ZCOPY};
        });
        std::string got(3000, '\0');
        world[1].irecv(0, 0, 0, got.data(), got.size(), false);
        int fragments = 0;
        world.fabric.answer = [&](const script::Call &c) { return c.id == kAmData && ++fragments > 2 ? MPX_ERR_NO_RESOURCE : MPX_OK; };
        Request *s = world[0].isend(0, 1, 0, data.data(), 3000, SendMode::kStandard);
        world.pump();
        fail(world, s, Stage::kStreaming);
    }
    SUBCASE("held by the transport") {
        ScriptedWorld world(2);
        world.fabric.hold_completions = true;
        fail(world, world[0].isend(0, 1, 0, data.data(), 300, SendMode::kStandard), Stage::kTransport);
    }
}

TEST_CASE("a receive ends once when its peer fails, wherever it stands") {
    const std::string data = content(3000, 1);
    std::string got(3000, '\0');
    const auto fail = [&](ScriptedWorld &world, Request *r, Stage stage) {
        REQUIRE(r->stage == stage);
        Ends ends(r);
        world.fabric.fail(1, 0);
        world.fabric.answer = nullptr;
        world.pump();
        CHECK(ends.times == 1);
        CHECK(ends.error == Error::kProcFailed);
        CHECK(r->status.source == 0);
        world.check_closed();
        CHECK(ends.times == 1);
    };
    const auto talk = [&](ScriptedWorld &world) {  // so that rank 1 has an ep to rank 0
        world[1].isend(1, 0, 0, nullptr, 0, SendMode::kStandard);
        world.pump();
    };
    SUBCASE("posted") {
        ScriptedWorld world(2);
        talk(world);
        fail(world, world[1].irecv(0, 0, 0, got.data(), got.size(), false), Stage::kPosted);
    }
    SUBCASE("posted for any source") {
        ScriptedWorld world(2);
        talk(world);
        fail(world, world[1].irecv(0, kAnySource, kAnyTag, got.data(), got.size(), false), Stage::kPosted);
    }
    SUBCASE("a get, held by the transport") {
        ScriptedWorld world(2);
        world.fabric.hold_completions = true;
        Request *r = world[1].irecv(0, 0, 0, got.data(), got.size(), false);
        world[0].isend(0, 1, 0, data.data(), data.size(), SendMode::kStandard);
        world.pump();
        fail(world, r, Stage::kTransport);
    }
    SUBCASE("a get, queued") {
        ScriptedWorld world(2);
        world.fabric.answer = [](const script::Call &c) { return c.verb == script::Verb::kGet ? MPX_ERR_NO_RESOURCE : MPX_OK; };
        Request *r = world[1].irecv(0, 0, 0, got.data(), got.size(), false);
        world[0].isend(0, 1, 0, data.data(), data.size(), SendMode::kStandard);
        world.pump();
        fail(world, r, Stage::kQueued);
    }
    SUBCASE("receiving fragments") {
        ScriptedWorld world(2, [](mpx_iface_attr &a) {
            no_get(a);
            a.caps &= ~uint64_t{MPX_CAP_AM_ZCOPY};
        });
        int fragments = 0;
        world.fabric.answer = [&](const script::Call &c) { return c.id == kAmData && ++fragments > 2 ? MPX_ERR_NO_RESOURCE : MPX_OK; };
        Request *r = world[1].irecv(0, 0, 0, got.data(), got.size(), false);
        world[0].isend(0, 1, 0, data.data(), data.size(), SendMode::kStandard);
        world.pump();
        REQUIRE(r->moved > 0);
        fail(world, r, Stage::kReceiving);
    }
}

TEST_CASE("what a dead peer sent whole can be received, what it only announced fails") {
    ScriptedWorld world(3);
    const std::string data = content(3000, 1);
    std::string got(3000, '\0');
    world[0].isend(0, 1, 5, data.data(), 100, SendMode::kStandard);
    world[0].isend(0, 1, 6, data.data(), 100, SendMode::kSync);
    world[0].isend(0, 1, 7, data.data(), 3000, SendMode::kStandard);
    world[2].isend(0, 1, 8, data.data(), 8, SendMode::kStandard);
    world.pump();
    world.fabric.fail(1, 0);
    world.pump();
    for (const int tag : {5, 6}) {
        Request *r = world[1].irecv(0, 0, tag, got.data(), got.size(), false);
        REQUIRE(r->done);
        CHECK(r->status.error == Error::kNone);
        CHECK(got.substr(0, 100) == data.substr(0, 100));
    }
    Request *announced = world[1].irecv(0, 0, 7, got.data(), got.size(), false);
    REQUIRE(announced->done);
    CHECK(announced->status.error == Error::kProcFailed);
    CHECK(announced->status.source == 0);
    CHECK(announced->status.tag == 7);
    Request *never = world[1].irecv(0, 0, 9, got.data(), got.size(), false);
    REQUIRE(never->done);
    CHECK(never->status.error == Error::kProcFailed);
    // The living are not touched, but a wildcard of a communicator with a dead member is.
    Request *living = world[1].irecv(0, kAnySource, 8, got.data(), got.size(), false);
    REQUIRE(living->done);
    CHECK(living->status.error == Error::kNone);
    Request *wild = world[1].irecv(0, kAnySource, kAnyTag, got.data(), got.size(), false);
    REQUIRE(wild->done);
    CHECK(wild->status.error == Error::kProcFailed);
    CHECK(wild->status.source == 0);
    CHECK(world[1].failed_ranks() == std::vector<int32_t>{0});
    world.check_closed();
}

TEST_CASE("a peer that cannot be reached ends its sends at once") {
    ScriptedWorld world(2);
    world.fabric.refuse_ep = true;
    Request *s = world[0].isend(0, 1, 0, nullptr, 0, SendMode::kStandard);
    REQUIRE(s->done);
    CHECK(s->status.error == Error::kUnreachable);
    world.check_closed();
}

TEST_CASE("BYE: the end of the link is no failure, sends and receives end, what came before can be received") {
    ScriptedWorld world(3);
    const std::string data = content(3000, 1);
    std::string got(3000, '\0');
    world[0].isend(0, 1, 5, data.data(), 100, SendMode::kStandard);
    Request *exact = world[1].irecv(0, 0, 1, got.data(), got.size(), false);
    Request *wild = world[1].irecv(0, kAnySource, 1, got.data(), got.size(), false);
    world[2].isend(1, 1, 0, nullptr, 0, SendMode::kStandard);
    world.pump();
    world[0].begin_farewell();
    world.pump();
    CHECK(world[1].peer_state(0) == static_cast<int>(Peer::State::kLeft));
    CHECK(exact->done);
    CHECK(exact->status.error == Error::kProcFailed);
    CHECK_FALSE(wild->done);  // rank 2 may still send
    world.fabric.fail(1, 0);
    world.pump();
    CHECK(world[1].peer_state(0) == static_cast<int>(Peer::State::kLeft));
    CHECK(world[1].failed_ranks().empty());
    CHECK_FALSE(wild->done);
    Request *r = world[1].irecv(0, 0, 5, got.data(), got.size(), false);
    REQUIRE(r->done);
    CHECK(r->status.error == Error::kNone);
    Request *s = world[1].isend(0, 0, 5, got.data(), 8, SendMode::kStandard);
    REQUIRE(s->done);
    CHECK(s->status.error == Error::kProcFailed);
    world.check_closed();
}

TEST_CASE("a message that was only announced fails when its sender said BYE and its link ended") {
    for (const bool by_get : {false, true}) {
        ScriptedWorld world(2, by_get ? +[](mpx_iface_attr &) {} : no_get);
        const std::string data = content(9000, 1);
        std::string got(9000, '\0');
        world[0].isend(0, 1, 5, data.data(), data.size(), SendMode::kStandard);
        world.pump();
        world[0].begin_farewell();
        world.pump();
        world.fabric.fail(1, 0);
        world.pump();
        Request *r = world[1].irecv(0, 0, 5, got.data(), got.size(), false);
        world.finish(r);
        CHECK(r->status.error == Error::kProcFailed);
        world.check_closed();
    }
}

TEST_CASE("the farewell is over when all have said BYE, or failed") {
    ScriptedWorld world(3);
    for (const int rank : {0, 1, 2})
        for (const int peer : {0, 1, 2}) world[rank].isend(0, peer, 0, nullptr, 0, SendMode::kStandard);
    world.pump();
    world[0].begin_farewell();
    world.pump();
    CHECK(world[0].wait_farewell() == Wait::kInterrupted);
    world[1].begin_farewell();
    world.pump();
    CHECK(world[0].wait_farewell() == Wait::kInterrupted);
    world.fabric.fail(0, 2);
    CHECK(world[0].wait_farewell() == Wait::kDone);
    world.check_closed();
}

TEST_CASE("closing ends every request, and frees what was registered") {
    const std::string data = content(9000, 1);
    std::string got[6];
    for (auto &g : got) g.resize(9000);
    for (const bool by_get : {true, false}) {
        ScriptedWorld world(2, by_get ? +[](mpx_iface_attr &) {} : no_get);
        world.fabric.hold_completions = true;
        world.fabric.answer = [](const script::Call &c) { return c.id == kAmData ? MPX_ERR_NO_RESOURCE : MPX_OK; };
        std::vector<Request *> requests;
        requests.push_back(world[1].irecv(0, 0, 1, got[0].data(), got[0].size(), false));           // posted
        requests.push_back(world[1].irecv(0, kAnySource, 2, got[1].data(), got[1].size(), false));  // posted
        requests.push_back(world[1].irecv(0, 0, 3, got[2].data(), got[2].size(), false));           // under way
        world[0].isend(0, 1, 3, data.data(), data.size(), SendMode::kStandard);
        world.pump();
        world[0].isend(0, 1, 4, data.data(), data.size(), SendMode::kStandard);
        world[0].progress();
        world.fabric.answer = [](const script::Call &) { return MPX_ERR_NO_RESOURCE; };
        requests.push_back(world[1].irecv(0, 0, 4, got[3].data(), got[3].size(), false));            // queued where it gets
        requests.push_back(world[1].isend(0, 0, 5, data.data(), data.size(), SendMode::kStandard));  // queued
        requests.push_back(world[1].isend(0, 0, 6, data.data(), 8, SendMode::kSync));                // queued
        world.progress();
        world.close();
        for (Request *r : requests) {
            REQUIRE(r->done);
            CHECK(r->status.error == Error::kProcFailed);
            CHECK(world[1].wait(r) == Wait::kDone);
        }
        CHECK(world.fabric.registrations == 0);
        CHECK(world.fabric.keys == 0);
        // A thread that is late: no crash, an error.
        Request *late = world[1].isend(0, 0, 0, nullptr, 0, SendMode::kStandard);
        REQUIRE(late->done);
        CHECK(late->status.error == Error::kProcFailed);
        late = world[1].irecv(0, kAnySource, 0, nullptr, 0, false);
        REQUIRE(late->done);
        Status status;
        CHECK_FALSE(world[1].iprobe(0, 0, 0, &status));
        CHECK(world[1].wait_message(0, 0, 0, &status) == Wait::kDone);
        CHECK(status.error == Error::kProcFailed);
    }
}

// --- nonsense

namespace {

std::string word(uint64_t w) { return {reinterpret_cast<const char *>(&w), sizeof w}; }
template <class T> std::string raw(const T &t) { return {reinterpret_cast<const char *>(&t), sizeof t}; }

// Rank 0 hears `p` from rank 1; rank 1 is failed by it, and rank 2 is still served.
void check_refused(script::Packet p, const std::function<void(ScriptedWorld &)> &prepare = nullptr) {
    CAPTURE(static_cast<int>(p.id));
    CAPTURE(p.header.size());
    CAPTURE(p.data.size());
    ScriptedWorld world(3);
    if (prepare) prepare(world);
    p.from = 1;
    p.to = 0;
    char got = 0;
    Request *waiting = world[0].irecv(0, 1, 99, &got, 1, false);
    world.fabric.inject(p);
    world.pump(5);
    CHECK(world[0].peer_state(1) == static_cast<int>(Peer::State::kFailed));
    REQUIRE(waiting->done);
    CHECK(waiting->status.error == Error::kProcFailed);
    // Nothing that it says afterwards counts.
    world.fabric.inject({1, 0, kAmEager, word(match_word(0, 3)), "abc"});
    world.fabric.inject({1, 0, kAmBye, word(0), ""});
    world.pump(5);
    Status status;
    CHECK(world[0].iprobe(0, 1, kAnyTag, &status));
    CHECK(status.error == Error::kProcFailed);
    CHECK(world[0].peer_state(1) == static_cast<int>(Peer::State::kFailed));
    world[2].isend(0, 0, 1, "x", 1, SendMode::kStandard);
    world.pump(5);
    CHECK(world[0].iprobe(0, 2, 1, &status));
    world.close();
}

}  // namespace

TEST_CASE("malformed messages fail their sender, and nobody else") {
    for (const uint8_t id : {kAmEager, kAmEagerSync, kAmRts, kAmCts, kAmData, kAmFin, kAmCredit})
        for (const size_t length : {0, 1, 7}) check_refused({0, 0, id, "", std::string(length, 'x')});
    for (const uint8_t id : {kAmEager, kAmFin, kAmCredit})
        for (const size_t length : {1, 4, 7}) check_refused({0, 0, id, std::string(length, 'x'), ""});
    for (const uint8_t id : {0, 9, 31}) check_refused({0, 0, id, word(1), "abc"});
    check_refused({0, 0, kAmEagerSync, "", std::string(sizeof(SyncHeader) - 1, 'x')});
    check_refused({0, 0, kAmRts, "", std::string(sizeof(RtsHeader) - 1, 'x')});
    check_refused({0, 0, kAmRts, "", raw(RtsHeader{0, 0, 100, 0, kMaxRkey + 1}) + std::string(kMaxRkey + 1, 'x')});
    check_refused({0, 0, kAmRts, "", raw(RtsHeader{0, 0, 100, 0, 16}) + std::string(15, 'x')});
    check_refused({0, 0, kAmRts, "", raw(RtsHeader{0, 0, 100, 0, UINT64_MAX})});
    check_refused({0, 0, kAmCts, "", raw(CtsHeader{uint64_t{3} << 32 | 1, 0, 0}) + "x"});
    for (const uint64_t request : {uint64_t{0}, uint64_t{1}, UINT64_MAX, uint64_t{700} << 32}) {
        check_refused({0, 0, kAmCts, "", raw(CtsHeader{request, 0, 1})});
        check_refused({0, 0, kAmData, "", raw(DataHeader{request, 0}) + "x"});
        check_refused({0, 0, kAmFin, word(request), ""});
    }
    check_refused({0, 0, kAmCredit, word(1), ""});  // more than it was sent
    check_refused({0, 0, kAmCredit, word(UINT64_MAX), ""});
    const uint32_t limit = kMaxRaised;
    for (const size_t length : {size_t{0}, size_t{1}, sizeof(RaisedHeader) - 1})
        check_refused({0, 0, kAmRaised, "", std::string(length, 'x')});
    check_refused({0, 0, kAmRaised, word(1), raw(RaisedHeader{1, 0, 0})});
    check_refused({0, 0, kAmRaised, "", raw(RaisedHeader{0, 0, 1}) + "x"});                     // of no kind
    check_refused({0, 0, kAmRaised, "", raw(RaisedHeader{1, kEndsJob | kEndsPeer, 1}) + "x"});  // both
    check_refused({0, 0, kAmRaised, "", raw(RaisedHeader{1, 4, 1}) + "x"});                     // unknown
    check_refused({0, 0, kAmRaised, "", raw(RaisedHeader{1, 0, 2}) + "xyz"});                   // more than announced
    check_refused({0, 0, kAmRaised, "", raw(RaisedHeader{1, 0, 0}) + "x"});                     // nothing was
    check_refused({0, 0, kAmRaised, "", raw(RaisedHeader{1, 0, 2})});                           // a piece of nothing
    check_refused({0, 0, kAmRaised, "", raw(RaisedHeader{1, 0, limit + 1}) + "x"});
    check_refused({0, 0, kAmRaised, "", raw(RaisedHeader{1, kEndsJob, UINT32_MAX}) + "x"});
    check_refused({0, 0, kAmRaised, "", raw(RaisedHeader{1, 0, 3}) + "xyz1"}, [](ScriptedWorld &world) {  // a second piece, too long
        world.fabric.inject({1, 0, kAmRaised, "", raw(RaisedHeader{1, 0, 3}) + "x"});
        world.pump(5);
        CHECK(world[0].news().reports.empty());
    });
}

TEST_CASE("ids of requests that belong to another, or stand elsewhere, are refused") {
    static const std::string data = content(3000, 1);
    static std::string got(3000, '\0');
    const auto refused = [](uint8_t id, const std::function<script::Packet(Request *)> &make, int peer, uint64_t size, SendMode mode) {
        script::Packet p{0, 0, id, "", ""};
        check_refused(
            [&] {
                // ids are the same in each fresh world: learn it in one, use it in another
                ScriptedWorld world(3, no_get);
                world.fabric.hold_messages = true;
                script::Packet q = make(world[0].isend(0, peer, 0, data.data(), size, mode));
                world.close();
                q.id = id;
                return q;
            }(),
            [&](ScriptedWorld &world) {
                world.fabric.answer = [](const script::Call &c) { return c.from == 0 && c.verb != script::Verb::kShort ? MPX_OK : MPX_OK; };
                world[0].isend(0, peer, 0, data.data(), size, mode);
            });
    };
    const auto fin = [](Request *s) { return script::Packet{0, 0, 0, word(s->id()), ""}; };
    refused(kAmFin, fin, 2, 3000, SendMode::kStandard);  // sent to rank 2, answered by rank 1
    const auto cts = [](Request *s) { return script::Packet{0, 0, 0, "", raw(CtsHeader{s->id(), 1, 3001})}; };
    refused(kAmCts, cts, 1, 3000, SendMode::kStandard);  // asks for more than there is
    const auto stream = [](Request *s) { return script::Packet{0, 0, 0, "", raw(CtsHeader{s->id(), 1, 8})}; };
    refused(kAmCts, stream, 1, 8, SendMode::kSync);  // the message was sent whole
    const auto data_to_send = [](Request *s) { return script::Packet{0, 0, 0, "", raw(DataHeader{s->id(), 0}) + "x"}; };
    refused(kAmData, data_to_send, 1, 3000, SendMode::kStandard);  // a send receives nothing
}

TEST_CASE("fragments out of place are refused") {
    for (const auto &[offset, length] :
         {std::pair<uint64_t, size_t>{1, 10}, {3000, 1}, {0, 3001}, {UINT64_MAX, 1}, {2999, 2}, {UINT64_MAX - 5, 10}}) {
        CAPTURE(offset);
        ScriptedWorld world(2, no_get);
        std::string got(3000, '\0');
        Request *r = world[0].irecv(0, 1, 0, got.data(), got.size(), false);
        world.fabric.inject({1, 0, kAmRts, "", raw(RtsHeader{match_word(0, 0), 77, 3000, 0, 0})});
        world[0].progress();
        REQUIRE(r->stage == Stage::kReceiving);
        Ends ends(r);
        world.fabric.inject({1, 0, kAmData, "", raw(DataHeader{r->id(), offset}) + std::string(length, 'x')});
        world[0].progress();
        CHECK(ends.times == 1);
        CHECK(ends.error == Error::kProcFailed);
        world.close();
    }
}

TEST_CASE("a message for the highest context is kept, at a bounded price") {
    ScriptedWorld world(2);
    world.fabric.inject({1, 0, kAmEager, word(match_word(kMaxContext, 3)), "abc"});
    world.pump(3);
    Status status;
    CHECK(world[0].iprobe(kMaxContext, 1, 3, &status));
    CHECK(status.bytes == 3);
    world.close();
}

TEST_CASE("10^5 random messages crash nothing") {
    std::mt19937_64 random(seed());
    const auto draw = [&](uint64_t n) { return random() % n; };
    const std::string data = content(3000, 1);
    std::unique_ptr<ScriptedWorld> world;
    std::vector<std::unique_ptr<std::string>> buffers;
    std::vector<Request *> requests;
    int worlds = 0;
    constexpr std::array<uint8_t, 12> kIds{kAmEager,  kAmEagerSync, kAmRts,     kAmCts,   kAmData,   kAmFin,
                                           kAmCredit, kAmBye,       kAmGivenUp, kAmAgree, kAmRevoke, kAmRaised};
    for (int i = 0; i < 100'000; i++) {
        const auto state = world ? static_cast<Peer::State>((*world)[0].peer_state(1)) : Peer::State::kFailed;
        if (!world || ((state == Peer::State::kFailed || state == Peer::State::kLeft) && draw(10) == 0)) {
            if (world) {
                world->check_closed();
                for (Request *r : requests) {
                    REQUIRE(r->done);
                    if (r->allocate) std::free(r->buffer);
                }
            }
            world.reset();
            requests.clear();
            buffers.clear();
            worlds++;
            world = std::make_unique<ScriptedWorld>(
                2, draw(2) ? no_get : +[](mpx_iface_attr &) {});
            world->fabric.asynchronous = draw(2);
        }
        Engine &e = (*world)[0];
        if (draw(4) == 0) {
            const uint64_t size = draw(2) ? draw(100) : draw(3000);
            if (draw(2)) {
                buffers.push_back(std::make_unique<std::string>(size, '\0'));
                requests.push_back(e.irecv(static_cast<uint32_t>(draw(2)), draw(2) ? 1 : kAnySource,
                                           draw(2) ? kAnyTag : static_cast<int32_t>(draw(3)), buffers.back()->data(), size, draw(3) == 0));
            } else {
                requests.push_back(e.isend(0, 1, 1, data.data(), size, draw(2) ? SendMode::kSync : SendMode::kStandard));
            }
        }
        const auto some_id = [&]() -> uint64_t {
            if (!requests.empty() && draw(8)) return requests[draw(requests.size())]->id();
            return draw(2) ? random() : draw(5) << 32 | draw(5);
        };
        const auto number = [&]() -> uint64_t { return draw(4) == 0 ? random() : draw(3001); };
        const uint64_t match =
            match_word(static_cast<uint32_t>(draw(2000) ? draw(2) : draw(kMaxContext + 1)), static_cast<int32_t>(draw(3)));
        script::Packet p{1, 0, static_cast<uint8_t>(draw(10) ? kIds[draw(kIds.size())] : draw(MPX_AM_ID_MAX)), "", ""};
        switch (p.id) {
            case kAmEager: (draw(2) ? p.header : p.data) = word(match); break;
            case kAmEagerSync: p.data = raw(SyncHeader{match, some_id()}); break;
            case kAmRts: {
                const uint64_t rkey = draw(3) ? 0 : 16;
                const uint64_t size = draw(20) ? draw(3000) : number();
                p.data = raw(RtsHeader{match, some_id(), size, reinterpret_cast<uint64_t>(data.data()), rkey});
                if (rkey) p.data += word(reinterpret_cast<uint64_t>(data.data())) + word(std::min<uint64_t>(size, data.size()));
                break;
            }
            case kAmCts: p.data = raw(CtsHeader{some_id(), some_id(), number()}); break;
            case kAmData: p.data = raw(DataHeader{some_id(), draw(2) ? 0 : number()}) + std::string(draw(500), 'd'); break;
            case kAmAgree: {
                const uint32_t step = static_cast<uint32_t>(draw(7)), context = static_cast<uint32_t>(draw(3));
                p.data = raw(std::array<uint32_t, 6>{step, context, static_cast<uint32_t>(draw(3)), static_cast<uint32_t>(draw(2)), 1, 8});
                if (draw(3)) p.data += std::string(2, static_cast<char>(draw(4)));
                break;
            }
            case kAmRevoke: p.header = word(draw(3) ? 2 : number()); break;
            case kAmRaised: {
                const uint32_t total = static_cast<uint32_t>(draw(10) ? draw(4) : number());
                p.data =
                    raw(RaisedHeader{static_cast<uint32_t>(draw(8)), static_cast<uint32_t>(draw(4)), total}) + std::string(draw(4), 't');
                break;
            }
            default: p.header = word(draw(2) ? some_id() : number());
        }
        if (draw(10) == 0) p.data += std::string(draw(100), 'g');
        if (draw(20) == 0) p.data.resize(draw(p.data.size() + 1));
        if (draw(20) == 0) p.header.resize(draw(p.header.size() + 1));
        if (draw(20) == 0 && !p.data.empty()) p.data[draw(p.data.size())] = static_cast<char>(random());
        world->fabric.inject(p);
        e.progress();
        std::erase_if(world->fabric.wire, [](const script::Packet &q) { return q.to == 1; });  // rank 1 does not listen
    }
    CHECK(worlds > 1000);
    world->close();
    for (Request *r : requests)
        if (r->allocate) std::free(r->buffer);
}
