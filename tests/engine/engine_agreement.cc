// Agreement over the scripted transport: whoever dies, and whenever, all who live decide, and nobody decided otherwise.
#include <algorithm>
#include <random>
#include <vector>

#include "engine_world.h"

using namespace mpx;
using namespace mpx::test;

TEST_CASE("agreement: all who live decide alike, and as those did who died later") {
    std::mt19937_64 random(seed());
    const auto draw = [&](int n) { return static_cast<int>(random() % static_cast<uint64_t>(n)); };
    int decided_before_death = 0, leaders_died = 0;
    for (int round = 0; round < 2000; round++) {
        CAPTURE(round);
        const int n = 2 + draw(5);
        ScriptedWorld world(n);
        std::vector<AgreementResult> results(n);
        std::vector<Request *> requests(n, nullptr);
        std::vector<bool> dead(n, false);
        int victims = draw(n);
        const auto living = [&] { return static_cast<int>(std::count(dead.begin(), dead.end(), false)); };
        const auto over = [&] {
            for (int r = 0; r < n; r++)
                if (!dead[r] && !(requests[r] && requests[r]->done)) return false;
            return true;
        };
        for (int step = 0; !over(); step++) {
            REQUIRE(step < 20000);
            const int r = draw(n);
            if (dead[r]) continue;
            if (!requests[r] && draw(4) == 0) {
                requests[r] = world[r].agree(0, ~(1u << r), static_cast<uint32_t>(r), false, &results[r]);
            } else if (victims && living() > 1 && draw(40) == 0) {
                victims--;
                dead[r] = true;
                if (requests[r] && requests[r]->done) decided_before_death++;
                leaders_died += std::find(dead.begin(), dead.end(), false) - dead.begin() == r + 1;
            }
            for (int v = 0; v < n; v++)  // deaths are noticed when an ep exists, sooner or later
                if (dead[v] && draw(3) == 0) world.fabric.fail(r, v);
            if (!dead[r]) world[r].progress();
        }
        const AgreementResult *first = nullptr;
        for (int r = 0; r < n; r++) {
            if (!requests[r] || !requests[r]->done) continue;
            CHECK(requests[r]->status.error == Error::kNone);
            if (!first) first = &results[r];
            CHECK(results[r].flag == first->flag);
            CHECK(results[r].next_context == first->next_context);
            CHECK(results[r].gone == first->gone);
            if (!dead[r]) {
                CHECK_FALSE(has_bit(first->gone, r));
                CHECK((first->flag & 1u << r) == 0);
                CHECK(first->next_context >= static_cast<uint32_t>(r));
            }
        }
        world.close();
    }
    CHECK(decided_before_death > 0);
    CHECK(leaders_died > 100);
}

TEST_CASE("agreement: unacknowledged failures are an error for all, acknowledged ones for nobody") {
    ScriptedWorld world(3);
    const auto agree = [&](Error wanted) {
        AgreementResult results[2];
        Request *requests[2];
        for (int r = 0; r < 2; r++) requests[r] = world[r].agree(0, 3, 0, true, &results[r]);
        for (int r = 0; r < 2; r++) {
            world.finish(requests[r]);
            CHECK(requests[r]->status.error == wanted);
            CHECK(results[r].flag == 3);
            world[r].release(requests[r]);
        }
    };
    for (int r = 0; r < 2; r++) world[r].isend(0, 2, 0, nullptr, 0, SendMode::kStandard);
    for (int r = 0; r < 2; r++) world.fabric.fail(r, 2);
    for (int i = 0; i < 10; i++)
        for (int r = 0; r < 2; r++) world[r].progress();
    agree(Error::kProcFailed);
    CHECK(world[0].acknowledge_failed(0, 3) == 1);
    agree(Error::kProcFailed);  // one of two
    CHECK(world[1].acknowledge_failed(0, 0) == 0);
    CHECK(world[1].acknowledge_failed(0, 1) == 1);
    agree(Error::kNone);
    world.close();
}

TEST_CASE("revocation ends what waits and rejects what comes, on every member") {
    ScriptedWorld world(3);
    char byte = 0;
    Request *posted = world[1].irecv(0, 2, 5, &byte, 1, false);
    Request *wild = world[2].irecv(0, kAnySource, 5, &byte, 1, false);
    Request *waiting = world[0].isend(0, 1, 6, &byte, 1, SendMode::kSync);
    Request *other = world[1].irecv(2, 2, 5, &byte, 1, false);
    world.pump();
    CHECK_FALSE(waiting->done);
    world[0].revoke(0);
    world.pump();
    for (const Request *r : {posted, wild}) {
        REQUIRE(r->done);
        CHECK(r->status.error == Error::kRevoked);
    }
    CHECK(waiting->done);
    CHECK_FALSE(other->done);
    for (int r = 0; r < 3; r++) {
        CHECK(world[r].is_revoked(0));
        CHECK_FALSE(world[r].is_revoked(2));
        CHECK(world[r].isend(0, 0, 0, &byte, 1, SendMode::kStandard)->status.error == Error::kRevoked);
        CHECK(world[r].unexpected_bytes() == 0);
    }
    Request *goes_on = world[2].isend(2, 1, 5, &byte, 1, SendMode::kStandard);
    world.finish(goes_on);
    world.finish(other);
    world.close();
}

TEST_CASE("agreement: a contribution that came early and does not fit, or is nobody's, fails its sender; the others agree without it") {
    for (const bool of_member : {true, false}) {
        CAPTURE(of_member);
        ScriptedWorld world(10);
        const std::vector<int32_t> members = of_member ? std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9} : std::vector<int32_t>{0, 1, 2};
        for (int r = 0; r < 3; r++) world[r].define_context(2, members.data(), static_cast<int32_t>(members.size()));
        const uint32_t header[6] = {1, 2, 0, 1, 0, 99};  // CONTRIBUTE to the first agreement of context 2, as proposed
        const size_t maps = of_member ? 2 : 4;           // for ten members 4 bytes
        world.fabric.inject(
            {9, 0, kAmAgree, "", std::string(reinterpret_cast<const char *>(header), sizeof header) + std::string(maps, '\0')});
        world[0].progress();
        AgreementResult results[10];
        const int taking_part = of_member ? 9 : 3;
        for (int r = 3; r < taking_part; r++) world[r].define_context(2, members.data(), static_cast<int32_t>(members.size()));
        Request *requests[10];
        for (int r = 0; r < taking_part; r++) requests[r] = world[r].agree(2, 7, 0, false, &results[r]);
        if (of_member)
            for (int r = 1; r < taking_part; r++) world.fabric.fail(r, 9);
        for (int r = 0; r < taking_part; r++) {
            world.finish(requests[r]);
            CHECK(requests[r]->status.error == Error::kNone);
            CHECK(results[r].flag == 7);
            CHECK(results[r].next_context == 0);
        }
        CHECK(world[0].peer_state(9) == static_cast<int>(Peer::State::kFailed));
        world.close();
    }
}
