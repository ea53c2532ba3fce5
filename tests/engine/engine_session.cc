// Sessions: nothing is lost, doubled or reordered however often links break; what cannot be is refused; death is told from a cut. Over the
// scripted transport, where the test says what is on its way when a link breaks, and over tcp, whose sockets it cuts in three ways.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "cable.h"
#include "cutting.h"
#include "engine_world.h"

using namespace mpx;
using namespace mpx::test;

namespace {

void may_break(mpx_iface_attr &a) { a.caps |= MPX_CAP_LINK_MAY_BREAK; }

// A plan of messages between all ordered pairs of ranks, run in random order. Receives name source and tag and are posted in order, so a
// message that is lost, doubled or overtaken meets the wrong receive, and its content tells.
class Traffic {
public:
    Traffic(World &world, uint64_t traffic_seed, int per_pair, size_t largest) : world_(world), random_(traffic_seed) {
        for (int from = 0; from < world.size(); from++)
            for (int to = 0; to < world.size(); to++) {
                if (from == to) continue;
                Stream s{from, to, {}, 0, 0};
                for (int i = 0; i < per_pair; i++) {
                    const auto size =
                        static_cast<size_t>(std::pow(2.0, std::uniform_real_distribution<>(0, std::log2(largest))(random_))) - 1;
                    s.messages.push_back(
                        {content(size, random_()), "", static_cast<int>(random_() % 3), random_() % 8 == 0, nullptr, nullptr});
                }
                streams_.push_back(std::move(s));
            }
    }
    // One random step. False when all is over.
    bool step() {
        Stream &s = streams_[random_() % streams_.size()];
        if (s.sent < s.messages.size() && s.sent < s.received + 40 && random_() % 2) {
            Message &m = s.messages[s.sent++];
            m.send = world_[s.from].isend(0, s.to, m.tag, m.text.data(), m.text.size(), m.sync ? SendMode::kSync : SendMode::kStandard);
        } else if (s.received < s.messages.size() && s.received < s.sent + 10) {
            Message &m = s.messages[s.received++];
            m.got.resize(m.text.size());
            m.receive = world_[s.to].irecv(0, s.from, m.tag, m.got.data(), m.got.size(), false);
        }
        for (auto n = random_() % 4; n > 0; n--) world_[static_cast<int>(random_() % static_cast<unsigned>(world_.size()))].progress();
        if (++steps_ % 64) return true;
        for (const Stream &each : streams_)
            if (each.sent < each.messages.size() || each.received < each.messages.size()) return true;
        for (const Stream &each : streams_)
            for (const Message &m : each.messages)
                if (!m.send->done || !m.receive->done) return true;
        return false;
    }
    void check() const {
        for (const Stream &s : streams_)
            for (const Message &m : s.messages) {
                REQUIRE(m.send->status.error == Error::kNone);
                REQUIRE(m.receive->status.error == Error::kNone);
                REQUIRE(m.receive->status.bytes == m.text.size());
                REQUIRE(m.got == m.text);
            }
    }
    LinkCounters total() const {
        LinkCounters sum;
        for (int a = 0; a < world_.size(); a++)
            for (int b = 0; b < world_.size(); b++) {
                const LinkCounters c = world_[a].link_counters(b);
                sum.cuts += c.cuts;
                sum.reconnects += c.reconnects;
                sum.replayed += c.replayed;
                sum.longest_stall = std::max(sum.longest_stall, c.longest_stall);
            }
        return sum;
    }
    std::mt19937_64 &random() { return random_; }

private:
    struct Message {
        std::string text, got;
        int tag;
        bool sync;
        Request *send, *receive;
    };
    struct Stream {
        int from, to;
        std::vector<Message> messages;
        size_t sent, received;
    };
    World &world_;
    std::mt19937_64 random_;
    std::vector<Stream> streams_;
    uint64_t steps_ = 0;
};

std::string word(uint64_t w) { return {reinterpret_cast<const char *>(&w), sizeof w}; }

}  // namespace

TEST_CASE("links of every protocol break at random places, with refusals: all arrives once and in order") {
    uint64_t replayed = 0, reconnects = 0;
    for (const bool by_get : {true, false})
        for (int round = 0; round < 6; round++) {
            ScriptedWorld world(3, [by_get](mpx_iface_attr &a) {
                may_break(a);
                if (!by_get) a.caps &= ~uint64_t{MPX_CAP_GET_ZCOPY};
            });
            Traffic traffic(world, seed() + static_cast<uint64_t>(round), 150, 6000);
            auto &random = traffic.random();
            world.fabric.answer = [&](const script::Call &) { return random() % 5 ? MPX_OK : MPX_ERR_NO_RESOURCE; };
            const double limit = now() + 30;
            while (traffic.step()) {
                if (random() % 200 == 0) world.fabric.cut(static_cast<int>(random() % 3), static_cast<int>(random() % 3));
                if (random() % 50 == 0) world.fabric.hold_completions = random() % 2;
                if (random() % 50 == 0) world.fabric.hold_messages = random() % 2;
                REQUIRE(now() < limit);
            }
            traffic.check();
            const LinkCounters sum = traffic.total();
            CHECK(sum.reconnects <= sum.cuts);
            reconnects += sum.reconnects;
            replayed += sum.replayed;
            world.check_closed();
        }
    CHECK(replayed > 50);
    CHECK(reconnects > 50);
}

TEST_CASE("a zero-copy send keeps its buffer until the peer has it, and is sent again from it") {
    ScriptedWorld world(2, may_break);
    std::string data = content(300, 1), got(300, '\0');
    world.finish(world[0].isend(0, 1, 0, nullptr, 0, SendMode::kStandard));  // the link is up
    world.fabric.hold_messages = true;
    Request *s = world[0].isend(0, 1, 5, data.data(), data.size(), SendMode::kStandard);
    world.pump();
    CHECK_FALSE(s->done);  // the transport has let go of it, the peer has not said that it has it
    world.fabric.cut(0, 1);
    const std::string other = content(300, 2);  // what the buffer holds when it is sent again is what arrives
    std::copy(other.begin(), other.end(), data.begin());
    world.fabric.hold_messages = false;
    Request *r = world[1].irecv(0, 0, 5, got.data(), got.size(), false);
    world.finish(r);
    world.finish(s);
    CHECK(got == other);
    CHECK(world[0].link_counters(1).replayed == 1);
    world.check_closed();
}

TEST_CASE("what waits for acknowledgement is bounded, and the bound is no end") {
    ScriptedWorld world(2, may_break, {.eager_window = 64u << 20});
    const std::string data = content(200, 1);
    world.finish(world[0].isend(0, 1, 0, nullptr, 0, SendMode::kStandard));
    world.fabric.hold_messages = true;
    constexpr int kMessages = 20000;  // 4 MB
    std::vector<Request *> requests;
    for (int i = 0; i < kMessages; i++) requests.push_back(world[0].isend(0, 1, 1, data.data(), data.size(), SendMode::kStandard));
    CHECK(world.fabric.wire.size() <= ReplayBuffer::kCapacity / data.size());
    CHECK(world.fabric.wire.size() >= ReplayBuffer::kCapacity / (data.size() + 64));
    CHECK_FALSE(requests.back()->done);
    world.fabric.hold_messages = false;
    for (int i = 0; i < kMessages; i++) {
        std::string got(200, '\0');
        world.finish(world[1].irecv(0, 0, 1, got.data(), got.size(), false));
        REQUIRE(got == data);
    }
    for (Request *r : requests) world.finish(r);
    world.check_closed();
}

TEST_CASE("a session is resumed and acknowledged within what can be, or its peer fails, and nobody else") {
    using script::Packet;
    const auto refused = [](const std::vector<Packet> &packets, bool talk_first) {
        ScriptedWorld world(3, may_break);
        char got = 0;
        if (talk_first) {
            world.finish(world[0].isend(0, 1, 0, nullptr, 0, SendMode::kStandard));
            world.pump();
        }
        Request *waiting = world[0].irecv(0, 1, 99, &got, 1, false);
        for (const Packet &p : packets) world.fabric.inject(p);
        for (int i = 0; i < 5; i++) world[0].progress();
        CHECK(world[0].peer_state(1) == static_cast<int>(Peer::State::kFailed));
        REQUIRE(waiting->done);
        CHECK(waiting->status.error == Error::kProcFailed);
        CHECK(world[0].failure_reason(1).substr(0, 3) == "it ");
        Request *r = world[0].irecv(0, 2, 1, &got, 1, false);
        world[2].isend(0, 0, 1, "x", 1, SendMode::kStandard);
        world.finish(r);
        CHECK(r->status.error == Error::kNone);
        world.close();
    };
    const Packet resume{1, 0, kAmResume, word(1), word(0)};
    for (const uint64_t count : {uint64_t{2}, uint64_t{1} << 40, UINT64_MAX}) {
        refused({{1, 0, kAmResume, word(1), word(count)}}, false);
        refused({{1, 0, kAmAck, word(count), ""}}, true);
        refused({resume, {1, 0, kAmAck, word(count), ""}}, false);
    }
    refused({{1, 0, kAmAck, word(1), ""}, {1, 0, kAmAck, word(0), ""}}, true);  // it had more before
    refused({{1, 0, kAmResume, word(0), word(0)}}, false);                      // no link has this number
    refused({resume, resume}, false);
    refused({resume}, true);  // in the middle of a link
    refused({{1, 0, kAmResume, word(1), ""}}, false);
    refused({{1, 0, kAmResume, "", word(0)}}, false);
    refused({{1, 0, kAmResume, word(1), word(0) + "x"}}, false);
    refused({{1, 0, kAmAck, "", ""}}, true);
    refused({{1, 0, kAmAck, word(1), "x"}}, true);
    for (const uint8_t id : {kAmEager, kAmFin, kAmBye, kAmAck, kAmAskAck}) refused({{1, 0, id, word(0), ""}}, false);  // before RESUME
    std::mt19937_64 random(seed());
    for (int i = 0; i < 200; i++) {
        const auto noise = [&](size_t n) { return content(random() % 3 ? n : random() % 20, random()); };
        const uint8_t ids[] = {kAmResume, kAmAck};
        refused({resume, {1, 0, ids[random() % 2], noise(8), noise(8)}}, false);
    }
}

TEST_CASE("a peer without a link is given up after the time-out, with what was tried") {
    ScriptedWorld world(2, may_break, {.link_timeout = 0.3});
    const std::string data = content(300, 1);
    world.finish(world[0].isend(0, 1, 0, nullptr, 0, SendMode::kStandard));
    world.fabric.answer = [](const script::Call &) { return MPX_ERR_NO_RESOURCE; };
    world.fabric.cut(0, 1);
    const double start = now();
    Request *s = world[0].isend(0, 1, 0, data.data(), data.size(), SendMode::kStandard);
    Ends ends(s);
    while (!ends.times && now() < start + 5) world.progress();
    CHECK(now() - start > 0.25);
    CHECK(now() - start < 5);
    CHECK(ends.error == Error::kProcFailed);
    CHECK(ends.times == 1);
    CHECK(world[0].failure_reason(1).starts_with("no link for "));
    world.check_closed();
}

TEST_CASE("a link that breaks in the farewell: it ends, with BYE and all before it") {
    for (int delivered = 0; delivered < 12; delivered++) {
        CAPTURE(delivered);
        ScriptedWorld world(2, may_break);
        std::string got(8, '\0');
        for (const int rank : {0, 1}) world.finish(world[rank].isend(0, 1 - rank, 0, nullptr, 0, SendMode::kStandard));
        world.pump();
        Request *r = world[1].irecv(0, 0, 7, got.data(), got.size(), false);
        world[0].isend(0, 1, 7, "the last", 8, SendMode::kStandard);
        world[0].begin_farewell();
        if (delivered % 2) world[1].begin_farewell();
        for (int i = 0; i < delivered / 2; i++) world[i % 2].progress();
        world.fabric.cut(0, 1);
        if (delivered % 2 == 0) world[1].begin_farewell();
        for (const int rank : {0, 1}) {
            const double limit = now() + 10;
            while (world[rank].wait_farewell() != Wait::kDone) {
                world.progress();
                REQUIRE(now() < limit);
            }
        }
        CHECK(r->done);
        CHECK(r->status.error == Error::kNone);
        CHECK(got == "the last");
        for (const int rank : {0, 1}) CHECK(world[rank].peer_state(1 - rank) == static_cast<int>(Peer::State::kLeft));
        world.check_closed();
    }
}

// --- tcp

TEST_CASE("tcp: connections are cut at any moment, in handshakes and resumes too: all arrives once and in order") {
    for (const Cut how : {Cut::kShut, Cut::kReset, Cut::kForget})
        for (const int every : {100, 20}) {
            CAPTURE(static_cast<int>(how));
            CAPTURE(every);
            RealWorld world(3, "tcp");
            Traffic traffic(world, seed(), 200, 700000);
            auto &random = traffic.random();
            uint64_t cuts = 0;
            const double limit = now() + 60;
            while (traffic.step()) {
                REQUIRE(now() < limit);
                if (cuts >= 300 || random() % static_cast<unsigned>(every)) continue;
                const std::vector<int> fds = connections();
                if (fds.empty()) continue;
                cut_connection(fds[random() % fds.size()], how);
                cuts++;
            }
            traffic.check();
            const LinkCounters sum = traffic.total();
            MESSAGE("cuts made " << cuts << ", noticed " << sum.cuts << ", reconnects " << sum.reconnects << ", replayed " << sum.replayed
                                 << ", longest stall " << sum.longest_stall << " s");
            CHECK(sum.cuts > 10);
            CHECK(sum.reconnects > 10);
            world.close();
        }
}

TEST_CASE("tcp: an engine that is gone is a failed peer at once, also while its link is down") {
    for (const bool cut_first : {false, true}) {
        RealWorld world(2, "tcp");
        char got = 0;
        world.finish(world[0].isend(0, 1, 0, "x", 1, SendMode::kStandard));
        world.finish(world[1].irecv(0, 0, 0, &got, 1, false));
        Request *r = world[0].irecv(0, 1, 1, &got, 1, false);
        if (cut_first)
            for (const int fd : connections()) cut_connection(fd, Cut::kShut);
        world[1].close();
        const double start = now();
        while (!r->done && now() < start + 5) world[0].progress();
        REQUIRE(r->done);
        CHECK(r->status.error == Error::kProcFailed);
        CHECK(now() - start < 2);
        CHECK(world[0].failure_reason(1).find("refused") != std::string::npos);
        world.close();
    }
}

namespace {

// 0: all went well; else the number of the step that failed. Runs in a child.
int pull_the_cable(bool data_in_flight) {
    if (!own_network()) return 100;
    RealWorld world(2, "tcp");
    const std::string data = content(1 << 20, 1);
    std::string got(data.size(), '\0');
    world.finish(world[0].isend(0, 1, 0, nullptr, 0, SendMode::kStandard));
    world.pump();
    if (!set_cable(false)) return 1;
    const double pulled = now();
    Request *s = data_in_flight ? world[0].isend(0, 1, 1, data.data(), data.size(), SendMode::kStandard) : nullptr;
    while (world[0].link_counters(1).cuts == 0) {
        world.progress();
        if (now() > pulled + 3.2) return 2;
    }
    for (const double noticed = now(); now() < noticed + 1.5;) world.progress();  // attempts to connect fail
    if (world[0].peer_state(1) != static_cast<int>(Peer::State::kOpen)) return 3;
    if (!set_cable(true)) return 4;
    const double back = now();
    Request *r = world[1].irecv(0, 0, 1, got.data(), got.size(), false);
    if (!s) s = world[0].isend(0, 1, 1, data.data(), data.size(), SendMode::kStandard);
    while (!r->done || !s->done) {
        world.progress();
        if (now() > back + 3) return 5;
    }
    if (got != data || r->status.error != Error::kNone || s->status.error != Error::kNone) return 6;
    return world[0].link_counters(1).reconnects == 1 ? 0 : 7;
}

}  // namespace

TEST_CASE("tcp: a cable that is pulled is noticed within 3 s, and nothing is lost when it is back") {
    for (const bool data_in_flight : {false, true}) {
        CAPTURE(data_in_flight);
        const pid_t child = fork();
        if (child == 0) _exit(pull_the_cable(data_in_flight));
        int status = 0;
        REQUIRE(waitpid(child, &status, 0) == child);
        REQUIRE(WIFEXITED(status));
        if (WEXITSTATUS(status) == 100) MESSAGE("not run: no network namespace may be made here");
        else CHECK(WEXITSTATUS(status) == 0);
    }
}
