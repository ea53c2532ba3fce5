// Sessions of transports that can put and do atomics (verbs will): a put under way when the link breaks is posted again, before the
// messages that it must precede; an atomic is never posted twice, and whoever asked is told when nobody can know whether it was carried
// out.
#include <deque>
#include <random>

#include "engine_world.h"
#include "session_pair.h"

using namespace mpx;
using namespace mpx::test;
using script::Call;
using script::Verb;

namespace {

struct Memory {
    uint64_t word = 0;
    mpx_rkey_h key;
    explicit Memory(SessionPair &pair) : key(pair.key_to(&word, sizeof word)) {}
    uint64_t address() const { return reinterpret_cast<uint64_t>(&word); }
};

struct Put {
    uint64_t value;
    Counted end;
    mpx_status post(SessionPair::Side &side, const Memory &to) {
        const mpx_iov iov{&value, sizeof value, nullptr};
        return side.ops().put_zcopy(side.ep(), &iov, 1, to.address(), to.key, &end);
    }
};

struct Add {
    uint64_t operand, before = ~uint64_t{0};
    Counted end;
    mpx_status post(SessionPair::Side &side, const Memory &to) {
        return side.ops().atomic64(side.ep(), MPX_ATOMIC_ADD, operand, 0, &before, to.address(), to.key, &end);
    }
};

mpx_status say(SessionPair::Side &side, uint64_t word) { return side.ops().am_short(side.ep(), kWord, word, nullptr, 0); }

// Counts the calls of each verb that `from` makes and the transport accepts.
struct Accepted {
    int count[static_cast<int>(Verb::kFence) + 1]{};
    int refuse_puts = 0, refuse_fences = 0;
    int &operator[](Verb verb) { return count[static_cast<int>(verb)]; }
    Accepted(SessionPair &pair, int from) {
        pair.fabric.answer = [this, from](const Call &call) -> mpx_status {
            if (call.from != from) return MPX_OK;
            if (call.verb == Verb::kPut && refuse_puts > 0 && count[static_cast<int>(Verb::kPut)] % 2 && refuse_puts--)
                return MPX_ERR_NO_RESOURCE;
            if (call.verb == Verb::kFence && refuse_fences > 0 && refuse_fences--) return MPX_ERR_NO_RESOURCE;
            (*this)[call.verb]++;
            return MPX_OK;
        };
    }
};

void bring_up(SessionPair &pair) {
    for (int i = 0; i < 2; i++) pair[i].on_word = [](uint64_t) {};
    while (say(pair[0], 0) != MPX_OK) pair.pump(1);
    pair.pump();
}

void settle(SessionPair &pair, const std::function<bool()> &settled) {
    const double limit = now() + 10;
    while (!settled()) {
        pair.pump(1);
        REQUIRE(now() < limit);
    }
}

}  // namespace

TEST_CASE("a put under way when the link breaks is posted again once, before the message that follows its fence") {
    // refused: how often the next link has no room for the second put, and none for the fence
    for (const bool landed : {false, true})
        for (const int refused : {0, 1, 3}) {
            CAPTURE(landed);
            CAPTURE(refused);
            SessionPair pair;
            Memory first(pair), second(pair);
            bring_up(pair);
            Accepted accepted(pair, 0);
            std::vector<uint64_t> heard;
            pair[1].on_word = [&](uint64_t word) {
                heard.push_back(word);
                CHECK(first.word == 11);  // both are there before the word that tells of them
                CHECK(second.word == 22);
            };
            pair.fabric.landed = landed;
            pair.fabric.hold_messages = pair.fabric.hold_completions = true;
            Put a{11, {}}, b{22, {}};
            REQUIRE(a.post(pair[0], first) == MPX_INPROGRESS);
            REQUIRE(b.post(pair[0], second) == MPX_INPROGRESS);
            REQUIRE(pair[0].ops().ep_fence(pair[0].ep()) == MPX_OK);
            REQUIRE(say(pair[0], 7) == MPX_OK);
            first.word = second.word = 0;  // as if the fence had come too late
            pair.pump();
            CHECK(heard.empty());
            pair.fabric.cut(0, 1);
            accepted.refuse_puts = accepted.refuse_fences = refused;
            pair.fabric.hold_messages = false;
            settle(pair, [&] { return !heard.empty(); });  // completions are held: only a fence can have made the puts visible
            CHECK(a.end.times + b.end.times == 0);
            pair.fabric.hold_completions = false;
            pair.pump();
            CHECK(heard == std::vector<uint64_t>{7});
            for (const Put *put : {&a, &b}) {
                CHECK(put->end.times == 1);
                CHECK(put->end.status == MPX_OK);
            }
            CHECK(accepted[Verb::kPut] == 4);
            CHECK(accepted[Verb::kFence] == 2);
            CHECK(pair[0].counters().reconnects == 1);
        }
}

TEST_CASE(
    "a put that was over before the link broke is not posted again; one that comes while it is down waits for its caller to try again") {
    SessionPair pair;
    Memory memory(pair);
    bring_up(pair);
    Accepted accepted(pair, 0);
    Put early{1, {}}, late{2, {}};
    REQUIRE(early.post(pair[0], memory) == MPX_INPROGRESS);
    pair.pump();
    REQUIRE(early.end.times == 1);
    pair.fabric.cut(0, 1);
    CHECK(late.post(pair[0], memory) == MPX_ERR_NO_RESOURCE);
    settle(pair, [&] { return late.post(pair[0], memory) == MPX_INPROGRESS; });
    pair.pump();
    CHECK(early.end.times == 1);
    CHECK(late.end.times == 1);
    CHECK(late.end.status == MPX_OK);
    CHECK(memory.word == 2);
    CHECK(accepted[Verb::kPut] == 2);
}

TEST_CASE("an atomic under way when the link breaks ends with an unknown outcome and is not posted again; one not yet posted is not lost") {
    for (const bool landed : {false, true}) {
        CAPTURE(landed);
        SessionPair pair;
        Memory counter(pair);
        bring_up(pair);
        Accepted accepted(pair, 0);
        pair.fabric.landed = landed;
        Add over{1, 99, {}}, under_way{10, 99, {}}, next{100, 99, {}};
        REQUIRE(over.post(pair[0], counter) == MPX_INPROGRESS);
        pair.pump();
        CHECK(over.end.status == MPX_OK);
        CHECK(over.before == 0);
        pair.fabric.hold_completions = true;
        REQUIRE(under_way.post(pair[0], counter) == MPX_INPROGRESS);
        pair.pump();
        pair.fabric.cut(0, 1);
        CHECK(next.post(pair[0], counter) == MPX_ERR_NO_RESOURCE);
        settle(pair, [&] { return next.post(pair[0], counter) == MPX_INPROGRESS; });
        pair.fabric.hold_completions = false;
        pair.pump();
        CHECK(under_way.end.times == 1);
        CHECK(under_way.end.status == MPX_ERR_UNKNOWN_OUTCOME);
        CHECK(next.end.times == 1);
        CHECK(next.end.status == MPX_OK);
        CHECK(next.before == (landed ? 11 : 1));
        CHECK(counter.word == (landed ? 111 : 101));
        CHECK(accepted[Verb::kAtomic] == 3);
        CHECK(over.end.times == 1);
    }
}

TEST_CASE("a flush waits for puts that are posted again") {
    SessionPair pair;
    Memory memory(pair);
    bring_up(pair);
    pair.fabric.hold_completions = true;
    Put put{5, {}};
    Counted flushed;
    REQUIRE(put.post(pair[0], memory) == MPX_INPROGRESS);
    REQUIRE(pair[0].ops().ep_flush(pair[0].ep(), &flushed) == MPX_INPROGRESS);
    pair.fabric.cut(0, 1);
    settle(pair, [&] { return pair[0].counters().reconnects == 1; });
    pair.pump();
    CHECK(flushed.times == 0);
    pair.fabric.hold_completions = false;
    pair.pump();
    CHECK(flushed.times == 1);
    CHECK(flushed.status == MPX_OK);
    CHECK(memory.word == 5);
}

// Each word says: so many puts came before me. Puts go round a few slots and only ever grow, so a slot that holds less than the word
// promises shows a put that was lost or overtaken; the counter shows atomics that were carried out twice.
TEST_CASE("puts, atomics and messages at random, with refusals and cuts: words come once and in order, what they promise is there") {
    constexpr uint64_t kSlots = 4;
    uint64_t reconnects = 0, unknown = 0, put_again = 0;
    for (uint64_t round = 0; round < 20; round++) {
        std::mt19937_64 random(seed() + round);
        SessionPair pair;
        bring_up(pair);
        Memory counter(pair);
        std::deque<Memory> slots;
        for (uint64_t i = 0; i < kSlots; i++) slots.emplace_back(pair);
        std::deque<Put> puts;
        std::deque<Add> adds;
        uint64_t words = 0, heard = 0, posted = 0;
        std::deque<uint64_t> promised;
        pair[1].on_word = [&](uint64_t word) {
            CHECK(word == heard++);
            for (uint64_t slot = 0; slot < kSlots; slot++) {
                uint64_t last = 0;  // the last put before the word that went to this slot
                for (uint64_t n = promised[word]; n > 0 && !last; n--)
                    if (n % kSlots == slot) last = n;
                CHECK(slots[slot].word >= last);
            }
        };
        uint64_t accepted = 0;
        pair.fabric.answer = [&](const Call &call) {
            if (random() % 5 == 0) return MPX_ERR_NO_RESOURCE;
            accepted += call.verb == Verb::kPut;
            return MPX_OK;
        };
        const double limit = now() + 30;
        const auto open = [](const auto &all) {
            return std::count_if(all.begin(), all.end(), [](const auto &op) { return op.end.times == 0; });
        };
        for (int step = 0; step < 4000 || open(puts) || open(adds) || heard < words; step++) {
            REQUIRE(now() < limit);
            const bool more = step < 4000;
            switch (more ? random() % 8 : 7) {
                case 0:
                case 1: {
                    // one at a time to a slot: between puts that are under way together there is no order
                    const bool busy = puts.size() >= kSlots && puts[puts.size() - kSlots].end.times == 0;
                    if (busy) break;
                    puts.push_back({posted + 1, {}});
                    if (puts.back().post(pair[0], slots[(posted + 1) % kSlots]) == MPX_INPROGRESS) posted++;
                    else puts.pop_back();
                    break;
                }
                case 2:
                    adds.push_back({1, 0, {}});
                    if (adds.back().post(pair[0], counter) != MPX_INPROGRESS) adds.pop_back();
                    break;
                case 3:
                    if (pair[0].ops().ep_fence(pair[0].ep()) != MPX_OK) break;
                    promised.push_back(posted);
                    if (say(pair[0], words) == MPX_OK) words++;
                    else promised.pop_back();
                    break;
                default: pair[static_cast<int>(random() % 2)].progress();
            }
            if (more && random() % 100 == 0) pair.fabric.cut(0, 1);
            if (random() % 20 == 0) {
                pair.fabric.landed = random() % 2;
                pair.fabric.hold_messages = more && random() % 2;
                pair.fabric.hold_completions = more && random() % 2;
            }
        }
        uint64_t done = 0, maybe = 0;
        for (const Put &put : puts) CHECK((put.end.times == 1 && put.end.status == MPX_OK));
        for (const Add &add : adds) {
            CHECK(add.end.times == 1);
            CHECK((add.end.status == MPX_OK || add.end.status == MPX_ERR_UNKNOWN_OUTCOME));
            ++(add.end.status == MPX_OK ? done : maybe);
        }
        for (uint64_t slot = 0; slot < kSlots; slot++) CHECK(slots[slot].word + kSlots > posted);
        CHECK(counter.word >= done);
        CHECK(counter.word <= done + maybe);
        CHECK(pair[0].failures + pair[1].failures == 0);
        reconnects += pair[0].counters().reconnects;
        unknown += maybe;
        put_again += accepted - posted;
    }
    MESSAGE("reconnects " << reconnects << ", puts posted again " << put_again << ", atomics of unknown outcome " << unknown);
    CHECK(reconnects > 20);
    CHECK(unknown > 20);
    CHECK(put_again > 20);
}
