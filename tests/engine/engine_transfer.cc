// Every protocol moves content, whichever side comes first; credit bounds what waits; NO_RESOURCE anywhere loses and reorders nothing.
#include "engine_world.h"

using namespace mpx;
using namespace mpx::test;

namespace {

constexpr uint64_t kSizes[] = {0, 1, 63, 64, 65, 255, 256, 257, 504, 505, 1999, 2000, 2001, 3000, 20'000};

void no_get(mpx_iface_attr &a) { a.caps &= ~uint64_t{MPX_CAP_GET_ZCOPY}; }
void no_zcopy(mpx_iface_attr &a) { a.caps &= ~uint64_t{MPX_CAP_AM_ZCOPY}; }
void need_memh(mpx_iface_attr &a) { a.caps |= MPX_CAP_NEED_MEMH; }

// One message each way of each size: mode, who is first, capacity, the receive that sizes itself.
void exchange(World &world, SendMode mode, bool receive_first, int64_t capacity_change, bool allocate) {
    for (const uint64_t size : kSizes) {
        CAPTURE(size);
        CAPTURE(static_cast<int>(mode));
        CAPTURE(receive_first);
        CAPTURE(capacity_change);
        const std::string sent = content(size, size + 17);
        const uint64_t capacity = static_cast<uint64_t>(std::max<int64_t>(0, static_cast<int64_t>(size) + capacity_change));
        std::string got(capacity + 8, 'x');
        Request *r = nullptr, *s = nullptr;
        const auto receive = [&] { r = world[1].irecv(1, 0, 7, got.data(), capacity, allocate); };
        if (receive_first) receive();
        s = world[0].isend(1, 1, 7, sent.data(), size, mode);
        world.pump(5);
        if (!receive_first) receive();
        world.finish(r);
        world.finish(s);
        const uint64_t delivered = allocate ? size : std::min(size, capacity);
        CHECK(r->status.error == (delivered < size ? Error::kTruncate : Error::kNone));
        CHECK(r->status.bytes == delivered);
        CHECK(r->status.full_size == size);
        CHECK(s->status.error == Error::kNone);
        if (allocate) {
            CHECK(std::string(static_cast<char *>(r->buffer), size) == sent);
            std::free(r->buffer);
        } else {
            CHECK(got.substr(0, delivered) == sent.substr(0, delivered));
            CHECK(got.substr(delivered) == std::string(got.size() - delivered, 'x'));
        }
        world[1].release(r);
        world[0].release(s);
    }
}

void exchange_all(World &world) {
    for (const SendMode mode : {SendMode::kStandard, SendMode::kSync})
        for (const bool receive_first : {false, true})
            for (const int64_t change : {0, 5, -1, -40, -100'000})
                for (const bool allocate : {false, true}) exchange(world, mode, receive_first, change, allocate);
}

}  // namespace

TEST_CASE("content by every protocol") {
    for (const bool asynchronous : {true, false})
        for (const auto change : {+[](mpx_iface_attr &) {}, no_get, no_zcopy, need_memh}) {
            ScriptedWorld world(2, change);
            world.fabric.asynchronous = asynchronous;
            exchange_all(world);
            CHECK(world[1].unexpected_bytes() == 0);
            world.check_closed();
        }
}

TEST_CASE("content over the real transports") {
    for (const char *name : {"shm", "tcp"}) {
        RealWorld world(2, name);
        exchange(world, SendMode::kStandard, false, 0, false);
        exchange(world, SendMode::kSync, true, -1, false);
        exchange(world, SendMode::kStandard, true, 0, true);
        const std::string big = content(5'000'000, 1);
        for (const int to : {0, 1}) {  // itself, the other
            std::string got(big.size(), '\0');
            Request *r = world[to].irecv(0, 0, 3, got.data(), got.size(), false);
            Request *s = world[0].isend(0, to, 3, big.data(), big.size(), SendMode::kStandard);
            world.finish(r);
            world.finish(s);
            CHECK(got == big);
            world[to].release(r);
            world[0].release(s);
        }
        world[0].begin_farewell();
        world[1].begin_farewell();
        world.pump();
        world.close();
    }
}

TEST_CASE("a get that the transport refuses becomes fragments, and is not tried again") {
    for (const bool asynchronous : {true, false}) {
        ScriptedWorld world(2);
        world.fabric.asynchronous = asynchronous;
        world.fabric.get_outcome = MPX_ERR_UNSUPPORTED;
        int gets = 0;
        world.fabric.answer = [&](const script::Call &c) {
            gets += c.verb == script::Verb::kGet;
            return MPX_OK;
        };
        exchange(world, SendMode::kStandard, true, 0, false);
        exchange(world, SendMode::kStandard, false, -1, false);
        CHECK(gets == 1);
        world.check_closed();
    }
}

TEST_CASE("memory that cannot be registered goes by fragments") {
    ScriptedWorld world(2);
    world.fabric.refuse_registration = true;
    exchange(world, SendMode::kStandard, true, 0, false);
    world.check_closed();
}

TEST_CASE("a get in very many pieces needs no deep stack") {
    ScriptedWorld world(2, [](mpx_iface_attr &a) { a.max_zcopy = 1; });
    world.fabric.asynchronous = false;
    const std::string sent = content(1 << 20, 3);
    std::string got(sent.size(), '\0');
    Request *r = world[1].irecv(0, 0, 0, got.data(), got.size(), false);
    Request *s = world[0].isend(0, 1, 0, sent.data(), sent.size(), SendMode::kStandard);
    world.finish(r);
    world.finish(s);
    CHECK(got == sent);
    world.check_closed();
}

TEST_CASE("a synchronous send ends after its match, not before") {
    for (const uint64_t size : kSizes) {
        ScriptedWorld world(2);
        std::string sent = content(size, 1), got(size, '\0');
        Request *s = world[0].isend(0, 1, 0, sent.data(), size, SendMode::kSync);
        world.pump();
        CHECK_FALSE(s->done);
        Request *other = world[1].irecv(0, 0, 1, nullptr, 0, false);  // another tag
        world.pump();
        CHECK_FALSE(s->done);
        Request *r = world[1].irecv(0, 0, 0, got.data(), size, false);
        world.finish(s);
        world.finish(r);
        CHECK(got == sent);
        CHECK(world[1].cancel(other));
        CHECK_FALSE(world[1].cancel(r));
        CHECK_FALSE(world[0].cancel(s));
        world.check_closed();
    }
}

TEST_CASE("eager bytes stop at the window, rendezvous goes on, and receiving brings eager back") {
    Config config;
    config.eager_window = 16'384;
    for (const SendMode mode : {SendMode::kStandard, SendMode::kSync}) {
        ScriptedWorld world(2, nullptr, config);
        const std::string sent = content(400, 5);
        std::vector<Request *> sends;
        int rendezvous = 0;
        world.fabric.answer = [&](const script::Call &c) {
            rendezvous += c.id == kAmRts;
            return MPX_OK;
        };
        for (int i = 0; i < 200; i++) {
            sends.push_back(world[0].isend(0, 1, i, sent.data(), sent.size(), mode));
            world.pump(3);
            CHECK(world[1].unexpected_bytes() <= config.eager_window);
        }
        CHECK(rendezvous > 150);
        CHECK(world[1].unexpected_bytes() > config.eager_window / 2);
        for (int i = 0; i < 200; i++) {
            std::string got(sent.size(), '\0');
            Request *r = world[1].irecv(0, 0, kAnyTag, got.data(), got.size(), false);
            world.finish(r);
            CHECK(r->status.tag == i);
            CHECK(got == sent);
            world[1].release(r);
        }
        for (Request *s : sends) world.finish(s);
        CHECK(world[1].unexpected_bytes() == 0);
        rendezvous = 0;
        Request *again = world[0].isend(0, 1, 1000, sent.data(), sent.size(), mode);
        world.pump();
        CHECK(rendezvous == 0);
        CHECK(again->done == (mode == SendMode::kStandard));
        world.check_closed();
    }
}

TEST_CASE("messages of a freed context give their credit back") {
    Config config;
    config.eager_window = 8192;
    ScriptedWorld world(2, nullptr, config);
    const std::string sent = content(200, 5);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 5; i++) {
            Request *s = world[0].isend(2, 1, i, sent.data(), sent.size(), SendMode::kStandard);
            REQUIRE(s->done);  // eager: a rendezvous would wait for ever
            world[0].release(s);
        }
        world.pump(3);
        world[1].free_context(2);
        world.pump(3);
        REQUIRE(world[1].unexpected_bytes() == 0);
    }
    world.check_closed();
}

namespace {

// Messages of all protocols both ways; received in order, by content. `answer` plays the transport's moods.
uint64_t traffic(const std::function<mpx_status(const script::Call &)> &answer, bool asynchronous) {
    Config config;
    config.eager_window = 4096;  // credits travel too
    ScriptedWorld world(2, nullptr, config);
    world.fabric.asynchronous = asynchronous;
    world.fabric.answer = answer;
    const uint64_t sizes[] = {8, 300, 100, 2500, 0, 64, 700, 3000, 65, 400, 1, 2001};
    struct One {
        std::string sent, got;
        Request *send = nullptr, *receive = nullptr;
    };
    std::vector<One> all[2];
    for (auto &side : all) side.resize(std::size(sizes));
    const auto receive = [&](int to, size_t i) {
        One &one = all[to][i];
        one.got.resize(sizes[i]);
        one.receive = world[to].irecv(0, 1 - to, kAnyTag, one.got.data(), one.got.size(), false);
    };
    for (size_t i = 0; i < std::size(sizes); i++)
        for (const int to : {0, 1}) {
            One &one = all[to][i];
            if (i % 3 == 0) receive(to, i), receive(to, i + 1);
            one.sent = content(sizes[i], i + 100);
            one.send = world[1 - to].isend(0, to, static_cast<int32_t>(i), one.sent.data(), one.sent.size(),
                                           i % 4 == 1 ? SendMode::kSync : SendMode::kStandard);
            if (i % 3 == 2) receive(to, i);
            if (i % 5 == 0) world.progress();
        }
    for (const int to : {0, 1})
        for (size_t i = 0; i < std::size(sizes); i++) {
            One &one = all[to][i];
            CAPTURE(to);
            CAPTURE(i);
            world.finish(one.receive);
            world.finish(one.send);
            REQUIRE(one.receive->status.error == Error::kNone);
            REQUIRE(one.send->status.error == Error::kNone);
            REQUIRE(one.receive->status.tag == static_cast<int32_t>(i));
            REQUIRE(one.got == one.sent);
        }
    const uint64_t calls = world.fabric.calls;
    world.fabric.answer = nullptr;
    world.check_closed();
    return calls;
}

}  // namespace

TEST_CASE("NO_RESOURCE at the k-th call, for all k") {
    for (const bool asynchronous : {false, true})
        for (const uint64_t burst : {1, 2, 7}) {
            uint64_t total = 1000;
            for (uint64_t k = 0; k < total; k++) {
                CAPTURE(k);
                CAPTURE(burst);
                uint64_t call = 0;
                total = traffic(
                    [&](const script::Call &) {
                        call++;
                        return call > k && call <= k + burst ? MPX_ERR_NO_RESOURCE : MPX_OK;
                    },
                    asynchronous);
            }
            CHECK(total > 50);
        }
}

TEST_CASE("NO_RESOURCE at random") {
    std::mt19937_64 random(seed());
    for (int round = 0; round < 200; round++) {
        const uint64_t percent = random() % 90;
        traffic([&](const script::Call &) { return random() % 100 < percent ? MPX_ERR_NO_RESOURCE : MPX_OK; }, round % 2);
    }
}
