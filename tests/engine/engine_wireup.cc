// Links over a transport that connects eps pairwise: wired up over a control lane, by either side or both at once; broken and wired up
// again at any moment of the conversation; the lane itself cut; what ends a peer. All over the scripted transport, where the test says what
// is on its way when something breaks.
#include <algorithm>
#include <memory>

#include "engine/wireup.h"
#include "engine_world.h"

using namespace mpx;
using namespace mpx::test;

namespace {

bool done(const Request *r) { return r->done.load(); }

// Sends `count` messages each way between ranks 0 and 1, with random progress and what `trouble` does at random moments; checks them.
template <class Trouble> void converse(PairwiseWorld &w, uint64_t from_seed, int count, Trouble &&trouble) {
    std::mt19937_64 random(from_seed);
    struct Side {
        std::vector<std::string> sent, got;
        std::vector<Request *> sends, receives;
    } side[2];
    for (int rank = 0; rank < 2; rank++)
        for (int i = 0; i < count; i++) side[rank].sent.push_back(content(random() % 5000, random()));
    const double limit = now() + 30;
    for (bool over = false; !over;) {
        REQUIRE(now() < limit);
        for (int rank = 0; rank < 2; rank++) {
            Side &s = side[rank];
            const Side &other = side[1 - rank];
            if (s.sends.size() < s.sent.size() && random() % 3 == 0) {
                const std::string &text = s.sent[s.sends.size()];
                s.sends.push_back(w[rank].isend(0, 1 - rank, 3, text.data(), text.size(), SendMode::kStandard));
            }
            if (s.receives.size() < other.sent.size() && random() % 3 == 0) {
                if (s.got.capacity() < other.sent.size()) s.got.reserve(other.sent.size());
                s.got.emplace_back(other.sent[s.receives.size()].size(), '?');
                s.receives.push_back(w[rank].irecv(0, 1 - rank, 3, s.got.back().data(), s.got.back().size(), false));
            }
            for (auto n = random() % 4; n > 0; n--) w[rank].progress();
        }
        trouble(random);
        over = true;
        for (const Side &s : side) {
            over = over && s.sends.size() == s.sent.size() && s.receives.size() == s.sent.size();
            over = over && std::all_of(s.sends.begin(), s.sends.end(), done) && std::all_of(s.receives.begin(), s.receives.end(), done);
        }
    }
    for (int rank = 0; rank < 2; rank++) {
        CHECK(side[rank].got == side[1 - rank].sent);
        for (const Side &s : {side[0], side[1]})
            for (Request *r : s.receives) CHECK(r->status.error == Error::kNone);
    }
}

std::string wireup_message(uint64_t kind, uint64_t number, bool with_address) {
    const WireupHeader header{kind, number};
    std::string text(reinterpret_cast<const char *>(&header), sizeof header);
    return with_address ? text + std::string(sizeof(uint64_t), '\1') : text;
}

}  // namespace

TEST_CASE("wireup: nothing is opened before the first message; then both ends have one link, whoever spoke first") {
    for (const int first : {0, 1, 2}) {  // 2: both
        CAPTURE(first);
        PairwiseWorld w(2);
        w.pump();
        CHECK(w.fabric.next_number == 0);
        char got[2][8] = {};
        Request *sends[2] = {}, *receives[2] = {};
        for (int rank = 0; rank < 2; rank++) {
            receives[rank] = w[rank].irecv(0, 1 - rank, 1, got[rank], 8, false);
            if (first == rank || first == 2) sends[rank] = w[rank].isend(0, 1 - rank, 1, "message", 8, SendMode::kStandard);
        }
        for (int rank = 0; rank < 2; rank++) {
            if (!sends[rank]) continue;
            w.finish(sends[rank]);
            w.finish(receives[1 - rank]);
            CHECK(std::string(got[1 - rank]) == "message");
        }
        CHECK(w.fabric.next_number == 2);
        CHECK(w.fabric.nodes[0]->ep_to(1)->peer == w.fabric.nodes[1]->ep_to(0)->number);
        CHECK(w.fabric.nodes[1]->ep_to(0)->peer == w.fabric.nodes[0]->ep_to(1)->number);
    }
}

TEST_CASE("wireup: links that break at any moment, on one side or both, lose and double nothing") {
    uint64_t cuts = 0;
    for (uint64_t round = 0; round < 60; round++) {
        CAPTURE(seed());
        CAPTURE(round);
        PairwiseWorld w(2);
        converse(w, seed() + round, 40, [&](std::mt19937_64 &random) {
            if (random() % 40) return;
            const auto rank = static_cast<int>(random() % 2);
            if (random() % 2) w.fabric.cut(0, 1);
            else w.fabric.fail(rank, 1 - rank, MPX_ERR_LINK_BROKEN);  // the other side hears of it by the lane
        });
        cuts += w[0].link_counters(1).cuts + w[1].link_counters(0).cuts;
    }
    CHECK(cuts > 100);
}

TEST_CASE("wireup: a lane on which nothing comes is hardly looked at, and what comes is heard all the same") {
    PairwiseWorld w(2);
    char got[8] = {};
    Request *receive = w[1].irecv(0, 0, 1, got, 8, false), *send = w[0].isend(0, 1, 1, "message", 8, SendMode::kStandard);
    w.finish(send);
    w.finish(receive);
    for (int i = 0; i < 2000; i++) w[0].progress();  // the attention that wireup got is over
    const uint64_t lane = w.control.passes, link = w.fabric.passes;
    for (int i = 0; i < 20000; i++) w[0].progress();
    CHECK(w.fabric.passes - link == 20000);
    CHECK(w.control.passes - lane < 200);
    w.fabric.fail(1, 0, MPX_ERR_LINK_BROKEN);  // rank 0 hears of it by the lane alone
    for (int i = 0; i < 5000 && w[0].link_counters(1).cuts == 0; i++) w.pump();
    CHECK(w[0].link_counters(1).cuts == 1);
}

TEST_CASE("wireup: the lane may break as well") {
    for (uint64_t round = 0; round < 60; round++) {
        CAPTURE(seed());
        CAPTURE(round);
        PairwiseWorld w(2);
        converse(w, seed() * 3 + round, 30, [&](std::mt19937_64 &random) {
            if (random() % 40 == 0) w.control.cut(0, 1);
            if (random() % 40 == 0) w.fabric.cut(0, 1);
        });
    }
}

TEST_CASE("wireup: a peer that only computes is waited for, whatever the patience") {
    Config config;
    config.link_timeout = 0.05;
    PairwiseWorld w(2, config);
    char got[8] = {};
    Request *send = w[0].isend(0, 1, 1, "message", 8, SendMode::kStandard);
    // The lane itself needs the other program; its kernel would answer here.
    for (const double until = now() + 0.02; now() < until;) w.pump();
    w.fabric.cut(0, 1);
    w.pump();
    for (const double until = now() + 0.3; now() < until;) w[0].progress();
    CHECK(w[0].peer_state(1) == static_cast<int>(Peer::State::kOpen));
    Request *receive = w[1].irecv(0, 0, 1, got, 8, false);
    w.finish(receive);
    w.finish(send);
    CHECK(std::string(got) == "message");
}

TEST_CASE("wireup: eps that can never be connected are given up") {
    Config config;
    config.link_timeout = 0.05;
    for (const int from : {0, 1}) {
        CAPTURE(from);
        PairwiseWorld w(2, config);
        w.fabric.answer = [](const script::Call &) { return MPX_ERR_NO_RESOURCE; };  // no link ever carries anything
        Request *send = w[from].isend(0, 1 - from, 1, "message", 8, SendMode::kStandard);
        w.finish(send);
        CHECK(send->status.error == Error::kUnreachable);
    }
    PairwiseWorld w(2, config);
    w.fabric.refuse_ep = true;
    Request *send = w[0].isend(0, 1, 1, "message", 8, SendMode::kStandard);
    w.finish(send);
    CHECK(send->status.error == Error::kUnreachable);
}

TEST_CASE("wireup: when the lane says that the process is gone, what has arrived is delivered, then the peer has failed") {
    PairwiseWorld w(2);
    char got[8] = {}, more[8];
    Request *first = w[0].isend(0, 1, 1, "first", 6, SendMode::kStandard);
    Request *receive = w[1].irecv(0, 0, 1, got, 8, false);
    w.finish(receive);
    w.finish(first);
    Request *last = w[0].isend(0, 1, 1, "last", 5, SendMode::kStandard);
    CHECK(done(last));
    w.control.fail(1, 0, MPX_ERR_UNREACHABLE);
    for (int i = 0; i < 20; i++) w[1].progress();
    CHECK(w[1].peer_state(0) == static_cast<int>(Peer::State::kFailed));
    receive = w[1].irecv(0, 0, 1, got, 8, false);
    CHECK(done(receive));
    CHECK(receive->status.error == Error::kNone);
    CHECK(std::string(got) == "last");
    receive = w[1].irecv(0, 0, 1, more, 8, false);
    CHECK(done(receive));
    CHECK(receive->status.error == Error::kProcFailed);
}

TEST_CASE("wireup: a side that has given up says so, and the other ends too") {
    Config config;
    config.link_timeout = 0.05;
    PairwiseWorld w(2, config);
    char got[8] = {};
    Request *send = w[0].isend(0, 1, 1, "message", 8, SendMode::kStandard);
    Request *receive = w[1].irecv(0, 0, 1, got, 8, false);
    w.finish(receive);
    w.finish(send);
    w.fabric.fail(1, 0, MPX_ERR_PEER_FAILED);  // not a cut: rank 1's session is over
    w.pump();
    REQUIRE(w[1].peer_state(0) == static_cast<int>(Peer::State::kFailed));
    w.fabric.fail(0, 1, MPX_ERR_LINK_BROKEN);
    receive = w[0].irecv(0, 1, 1, got, 8, false);
    w.finish(receive);
    CHECK(receive->status.error == Error::kProcFailed);
}

TEST_CASE("wireup: what only the control path can make is asked for, and handed over while somebody waits") {
    PairwiseWorld w(2);
    w.fabric.spare_eps = 0;
    char got[8] = {};
    Request *receive = w[1].irecv(0, 0, 1, got, 8, false);
    Request *send = w[0].isend(0, 1, 1, "message", 8, SendMode::kStandard);
    w.pump();
    CHECK_FALSE(done(send));
    CHECK(w[0].wait(receive) == Wait::kNeedPython);
    int transport = -1;
    REQUIRE(w[0].take_control_need(&transport));
    CHECK(transport == 1);
    CHECK_FALSE(w[0].take_control_need(&transport));
    w[0].supply(1, "8");
    w.finish(receive);
    w.finish(send);
    CHECK(std::string(got) == "message");
}

TEST_CASE("wireup: both sides part in order, the lane last") {
    PairwiseWorld w(2);
    char got[8] = {};
    Request *send = w[0].isend(0, 1, 1, "message", 8, SendMode::kStandard);
    Request *receive = w[1].irecv(0, 0, 1, got, 8, false);
    w.finish(receive);
    w.finish(send);
    w[0].begin_farewell();
    w[1].begin_farewell();
    bool over[2] = {};
    const double limit = now() + 10;
    while (!(over[0] && over[1])) {
        REQUIRE(now() < limit);
        if (now() > limit - 9.9) w.fabric.cut(0, 1);  // too late to do harm, or healed
        for (int rank = 0; rank < 2; rank++) {
            w.pump(3);
            over[rank] = over[rank] || w[rank].wait_farewell() == Wait::kDone;
        }
    }
    CHECK(w[0].failed_ranks().empty());
    CHECK(w[1].failed_ranks().empty());
}

TEST_CASE("wireup: what cannot be said over a lane is the end of who said it") {
    for (const std::string &nonsense :
         {std::string("short"), wireup_message(Wireup::kOffer, 9, false), wireup_message(Wireup::kAccept, 1, true),
          wireup_message(Wireup::kPlease, 0, true), wireup_message(77, 1, false), wireup_message(Wireup::kNothing, 1, false)}) {
        CAPTURE(nonsense.size());
        PairwiseWorld w(2);
        char got[8] = {};
        Request *send = w[0].isend(0, 1, 1, "message", 8, SendMode::kStandard);
        Request *receive = w[1].irecv(0, 0, 1, got, 8, false);
        w.finish(receive);
        w.finish(send);
        w.control.inject({0, 1, kAmWireup, "", nonsense});  // rank 1 follows: it hears offers alone
        w.pump();
        CHECK(w[1].peer_state(0) == static_cast<int>(Peer::State::kFailed));
    }
}
