// An exception that nobody caught, told by kAmRaised: every call on every other rank ends once, later ones at once, and the links go on
// to carry what the ranks tell each other of their ends.
#include <array>

#include "engine/reduce.h"
#include "engine_world.h"

using namespace mpx;
using namespace mpx::test;

namespace {

constexpr uint32_t kRaised = 1, kFollowed = 2;
const std::string kWhy = "rank 2 raised ValueError: bad input; the job ends";

void raise(ScriptedWorld &world, int rank = 2) { world[rank].tell_raised(kRaised, kEndsJob, "ValueError: bad input\nthe traceback", true); }

void no_get(mpx_iface_attr &a) { a.caps &= ~uint64_t{MPX_CAP_GET_ZCOPY}; }
void fragments(mpx_iface_attr &a) {
    no_get(a);
    a.caps &= ~uint64_t{MPX_CAP_AM_ZCOPY};
}

// Rank 2 raises while `r` of rank `owner` waits for `peer`, which lives: it ends, once, and says why.
void check_ends(ScriptedWorld &world, Request *r, Stage stage, int owner, int peer, Error error = Error::kProcFailed) {
    REQUIRE(r->stage == stage);
    Ends ends(r);
    raise(world);
    world.pump();
    CHECK(ends.times == 1);
    CHECK(ends.error == error);
    CHECK(world[owner].failure_reason(peer) == kWhy);
    CHECK(world[owner].failure_reason(2) == kWhy);
    CHECK(world[owner].failed_ranks().size() == 2);
    world.fabric.answer = nullptr;
    world.fabric.hold_completions = false;
    world.pump();
    world.check_closed();
    CHECK(ends.times == 1);
}

}  // namespace

TEST_CASE("a send to a living rank ends once when a third one raised, wherever it stands") {
    const std::string data = content(3000, 1);
    for (const uint64_t size : {0, 100, 300, 3000})
        for (const SendMode mode : {SendMode::kStandard, SendMode::kSync}) {
            ScriptedWorld world(3);
            world.fabric.answer = [](const script::Call &c) { return c.from == 0 && c.to == 1 ? MPX_ERR_NO_RESOURCE : MPX_OK; };
            check_ends(world, world[0].isend(0, 1, 0, data.data(), size, mode), Stage::kQueued, 0, 1);
        }
    SUBCASE("awaiting FIN of a synchronous send") {
        ScriptedWorld world(3);
        check_ends(world, world[0].isend(0, 1, 0, data.data(), 8, SendMode::kSync), Stage::kAwaitsPeer, 0, 1);
    }
    SUBCASE("awaiting FIN of a get") {
        ScriptedWorld world(3);
        check_ends(world, world[0].isend(0, 1, 0, data.data(), 3000, SendMode::kStandard), Stage::kAwaitsPeer, 0, 1);
    }
    SUBCASE("awaiting CTS") {
        ScriptedWorld world(3, no_get);
        check_ends(world, world[0].isend(0, 1, 0, data.data(), 3000, SendMode::kSync), Stage::kAwaitsPeer, 0, 1);
    }
    SUBCASE("streaming") {
        ScriptedWorld world(3, fragments);
        std::string got(3000, '\0');
        world[1].irecv(0, 0, 0, got.data(), got.size(), false);
        int sent = 0;
        world.fabric.answer = [&](const script::Call &c) { return c.id == kAmData && ++sent > 2 ? MPX_ERR_NO_RESOURCE : MPX_OK; };
        Request *s = world[0].isend(0, 1, 0, data.data(), 3000, SendMode::kStandard);
        world.pump();
        check_ends(world, s, Stage::kStreaming, 0, 1);
    }
    SUBCASE("held by the transport") {
        ScriptedWorld world(3);
        world.fabric.hold_completions = true;
        Request *s = world[0].isend(0, 1, 0, data.data(), 300, SendMode::kStandard);
        check_ends(world, s, Stage::kTransport, 0, 1, Error::kNone);  // it had left
    }
}

TEST_CASE("a receive from a living rank ends once when a third one raised, wherever it stands") {
    const std::string data = content(3000, 1);
    std::string got(3000, '\0');
    SUBCASE("posted") {
        ScriptedWorld world(3);
        check_ends(world, world[1].irecv(0, 0, 0, got.data(), got.size(), false), Stage::kPosted, 1, 0);
    }
    SUBCASE("posted for any source") {
        ScriptedWorld world(3);
        check_ends(world, world[1].irecv(0, kAnySource, kAnyTag, got.data(), got.size(), false), Stage::kPosted, 1, 0);
    }
    SUBCASE("a get, held by the transport") {
        ScriptedWorld world(3);
        world.fabric.hold_completions = true;
        Request *r = world[1].irecv(0, 0, 0, got.data(), got.size(), false);
        world[0].isend(0, 1, 0, data.data(), data.size(), SendMode::kStandard);
        world.pump();
        check_ends(world, r, Stage::kTransport, 1, 0);
    }
    SUBCASE("a get, queued") {
        ScriptedWorld world(3);
        world.fabric.answer = [](const script::Call &c) { return c.verb == script::Verb::kGet ? MPX_ERR_NO_RESOURCE : MPX_OK; };
        Request *r = world[1].irecv(0, 0, 0, got.data(), got.size(), false);
        world[0].isend(0, 1, 0, data.data(), data.size(), SendMode::kStandard);
        world.pump();
        check_ends(world, r, Stage::kQueued, 1, 0);
    }
    SUBCASE("receiving fragments") {
        ScriptedWorld world(3, fragments);
        int sent = 0;
        world.fabric.answer = [&](const script::Call &c) { return c.id == kAmData && ++sent > 2 ? MPX_ERR_NO_RESOURCE : MPX_OK; };
        Request *r = world[1].irecv(0, 0, 0, got.data(), got.size(), false);
        world[0].isend(0, 1, 0, data.data(), data.size(), SendMode::kStandard);
        world.pump();
        REQUIRE(r->moved > 0);
        check_ends(world, r, Stage::kReceiving, 1, 0);
    }
}

TEST_CASE("a collective and an agreement end; so do all calls that come later, but not those to oneself") {
    ScriptedWorld world(3);
    constexpr int32_t everybody[] = {0, 1, 2};
    const std::vector<int64_t> barrier{2, 0, 0, Schedule::kSend, 1, 0, -1, -1, -1, -1, 0, 0, 0, Schedule::kRecv, 1, 0, -1, -1, -1, -1,
                                       0, 0, 0};
    const auto schedule = Schedule::decode(barrier.data(), barrier.size());
    Binding binding;
    binding.context = 1;
    binding.world = everybody;
    Request *collective = world[0].start(*schedule, binding);
    AgreementResult result;
    Request *agreement = world[0].agree(0, 1, 0, true, &result);
    REQUIRE_FALSE(collective->done);
    REQUIRE_FALSE(agreement->done);
    raise(world);
    world.pump();
    REQUIRE(collective->done);
    CHECK(collective->status.error == Error::kProcFailed);
    REQUIRE(agreement->done);
    CHECK(agreement->status.error == Error::kProcFailed);

    char byte = 0;
    Status status;
    for (const uint32_t context : {0u, 2u})
        for (const int peer : {1, 2}) {
            Request *s = world[0].isend(context, peer, 0, "x", 1, SendMode::kStandard);
            Request *r = world[0].irecv(context, peer, 0, &byte, 1, false);
            REQUIRE((s->done && r->done));
            CHECK(s->status.error == Error::kProcFailed);
            CHECK(r->status.error == Error::kProcFailed);
            CHECK(world[0].wait_message(context, peer, 0, &status) == Wait::kDone);
            CHECK(status.error == Error::kProcFailed);
            CHECK(world[0].iprobe(context, peer, 0, &status));
            CHECK(status.error == Error::kProcFailed);
        }
    Request *any = world[0].irecv(0, kAnySource, kAnyTag, &byte, 1, false);
    REQUIRE(any->done);
    CHECK(any->status.error == Error::kProcFailed);
    CHECK(world[0].iprobe(0, kAnySource, kAnyTag, &status));
    CHECK(status.error == Error::kProcFailed);
    Request *again = world[0].start(*schedule, binding);
    REQUIRE(again->done);
    CHECK(again->status.error == Error::kProcFailed);

    Request *own = world[0].irecv(0, 0, 7, &byte, 1, false);
    world[0].isend(0, 0, 7, "y", 1, SendMode::kStandard);
    world.finish(own);
    CHECK(own->status.error == Error::kNone);
    CHECK(byte == 'y');
    CHECK(world[0].wait_farewell() == Wait::kDone);
    world.check_closed();
}

TEST_CASE("what had arrived whole can be received, what was only announced fails") {
    ScriptedWorld world(3);
    const std::string data = content(3000, 1);
    std::string got(3000, '\0');
    world[0].isend(0, 1, 5, data.data(), 100, SendMode::kStandard);
    world[0].isend(0, 1, 6, data.data(), 3000, SendMode::kStandard);
    world.pump();
    raise(world);
    world.pump();
    Request *whole = world[1].irecv(0, 0, 5, got.data(), got.size(), false);
    REQUIRE(whole->done);
    CHECK(whole->status.error == Error::kNone);
    CHECK(got.substr(0, 100) == data.substr(0, 100));
    Request *announced = world[1].irecv(0, 0, 6, got.data(), got.size(), false);
    REQUIRE(announced->done);
    CHECK(announced->status.error == Error::kProcFailed);
    world.check_closed();
}

TEST_CASE("a thread's exception ends the calls of its own process too") {
    ScriptedWorld world(2);
    char byte = 0;
    Request *r = world[0].irecv(0, 1, 0, &byte, 1, false);
    world[0].tell_raised(kRaised, kEndsJob, "KeyError: 3", true);
    REQUIRE(r->done);
    CHECK(r->status.error == Error::kProcFailed);
    CHECK(world[0].failure_reason(1) == "rank 0 raised KeyError: 3; the job ends");
    world.check_closed();
}

TEST_CASE("ranks tell each other of their ends, over links that live on; texts of any length arrive") {
    ScriptedWorld world(3);
    const std::string text = "ValueError: long\n" + content(kMaxRaised, 7);  // in 40 pieces
    const News before = world[0].news();
    CHECK(before.reports.empty());
    CHECK(before.living == std::vector<int32_t>{1, 2});
    world[0].tell_raised(kRaised, kEndsJob, text, true);
    world.pump();
    for (const int rank : {1, 2}) {
        const News news = world[rank].news();
        REQUIRE(news.reports.size() == 1);
        CHECK(news.reports[0].rank == 0);
        CHECK(news.reports[0].kind == kRaised);
        CHECK(news.reports[0].text == text.substr(0, kMaxRaised));
        world[rank].tell_raised(kFollowed, 0, "", false);
    }
    world.pump();
    const News after = world[0].news();
    REQUIRE(after.reports.size() == 2);
    CHECK(after.version > before.version);
    CHECK((after.reports[0].kind == kFollowed && after.reports[1].kind == kFollowed));
    CHECK(after.living == std::vector<int32_t>{1, 2});
    world.fabric.fail(0, 2);
    world.pump();
    CHECK(world[0].news().living == std::vector<int32_t>{1});
    world.check_closed();
}

TEST_CASE("only ranks with a link are told, or everybody; who is told late hears what was said before") {
    ScriptedWorld world(3);
    world[0].isend(0, 1, 0, nullptr, 0, SendMode::kStandard);
    world.pump();
    world[0].tell_raised(kRaised, kEndsJob, "first", false);
    world.pump();
    CHECK(world[1].news().reports.size() == 1);
    CHECK(world[2].news().reports.empty());
    world[2].tell_raised(kRaised, kEndsJob, "second",
                         true);  // rank 0, which it has no link to, counts as failed there: a link all the same
    world.pump();
    REQUIRE(world[2].news().reports.size() == 1);  // who is told tells what it has told
    CHECK(world[2].news().reports[0].text == "first");
    CHECK(world[0].news().reports.size() == 1);
    world.check_closed();
}

TEST_CASE("with kEndsPeer only the sender counts as failed, and knows that it was heard") {
    ScriptedWorld world(3);
    char byte = 0;
    Request *from_it = world[0].irecv(0, 2, 0, &byte, 1, false);
    Request *from_other = world[0].irecv(0, 1, 0, &byte, 1, false);
    world[2].tell_raised(kRaised, kEndsPeer, "ValueError: bad input", true);
    world.pump();
    REQUIRE(from_it->done);
    CHECK(from_it->status.error == Error::kProcFailed);
    CHECK(world[0].failure_reason(2) == "rank 2 raised ValueError: bad input");
    CHECK_FALSE(from_other->done);
    CHECK(world[0].failed_ranks() == std::vector<int32_t>{2});
    const News heard = world[2].news();
    REQUIRE(heard.reports.size() == 2);
    CHECK((heard.reports[0].kind == kHeard && heard.reports[1].kind == kHeard));
    world[1].isend(0, 0, 0, "z", 1, SendMode::kStandard);
    world.pump();
    REQUIRE(from_other->done);
    CHECK(byte == 'z');
    world.check_closed();
}

TEST_CASE("a report waits for room, ahead of nothing that the user sent, and for a link that is cut") {
    SUBCASE("no room") {
        ScriptedWorld world(3);
        bool full = true;
        world.fabric.answer = [&](const script::Call &c) { return full && c.to == 1 ? MPX_ERR_NO_RESOURCE : MPX_OK; };
        Request *s = world[2].isend(0, 1, 0, nullptr, 0, SendMode::kStandard);
        REQUIRE(s->stage == Stage::kQueued);
        raise(world);
        world.pump();
        CHECK(s->done);  // it will never leave
        CHECK(world[1].failed_ranks().empty());
        full = false;
        world.pump();
        CHECK(world[1].failure_reason(0) == kWhy);
        world.check_closed();
    }
    SUBCASE("a cut") {
        ScriptedWorld world(3, [](mpx_iface_attr &a) { a.caps |= MPX_CAP_LINK_MAY_BREAK; });
        for (const int peer : {0, 1}) world[2].isend(0, peer, 0, nullptr, 0, SendMode::kStandard);
        world.pump();
        world.fabric.hold_messages = true;
        raise(world);
        world.fabric.cut(2, 1);  // what was on its way is lost
        world.fabric.hold_messages = false;
        const double limit = now() + 10;
        while (world[1].failed_ranks().empty() && now() < limit) world.pump();
        CHECK(world[1].failure_reason(0) == kWhy);
        CHECK(world[0].failure_reason(1) == kWhy);
        world.check_closed();
    }
}

TEST_CASE("waiting for news ends with news, or when time is over") {
    ScriptedWorld world(2);
    const double start = now();
    const uint64_t version = world[0].news().version;
    for (int turns = 0; now() < start + 0.05; turns++) {
        REQUIRE(turns < 1000);
        CHECK(world[0].wait_news(version, 0.05) != Wait::kNeedPython);
        CHECK(world[0].news().version == version);
    }
    CHECK(now() - start < 5);
    world[1].tell_raised(kRaised, kEndsJob, "x", true);
    CHECK(world[0].wait_news(version, 60) == Wait::kDone);
    CHECK(world[0].news().version != version);
    CHECK(now() - start < 10);
    world.check_closed();
}
