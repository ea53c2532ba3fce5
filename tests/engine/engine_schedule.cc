// Schedules: decode refuses what is no schedule; executions walk the graph, park users' reductions, and end when something fails.
#include <map>
#include <stdexcept>

#include "engine/reduce.h"
#include "engine_world.h"

using namespace mpx;
using namespace mpx::test;

namespace {

constexpr int8_t kSendBuffer = 0, kReceiveBuffer = 1, kTemporary = 2, kNone = -1;
struct V {
    int64_t kind, peer, slot, source_buffer, source_offset, destination_buffer, destination_offset, bytes;
    std::vector<int64_t> after;
};

std::vector<int64_t> encode(const std::vector<V> &vertices, int64_t temporary) {
    std::vector<int64_t> edges, words;
    for (const V &v : vertices) {
        words.insert(words.end(), {v.kind, v.peer, v.slot, v.source_buffer, v.source_offset, v.destination_buffer, v.destination_offset,
                                   v.bytes, static_cast<int64_t>(edges.size()), static_cast<int64_t>(v.after.size())});
        edges.insert(edges.end(), v.after.begin(), v.after.end());
    }
    words.insert(words.begin(), {static_cast<int64_t>(vertices.size()), temporary, static_cast<int64_t>(edges.size())});
    words.insert(words.end(), edges.begin(), edges.end());
    return words;
}
std::unique_ptr<Schedule> decode(const std::vector<int64_t> &words) { return Schedule::decode(words.data(), words.size()); }

constexpr int32_t kWorld[] = {0, 1, 2};
Binding bind(const void *send, void *receive, uint64_t element = 8) {
    Binding b;
    b.context = 1;
    b.tag = 100;
    b.world = kWorld;
    b.send_buffer = send;
    b.receive_buffer = receive;
    b.element_size = element;
    b.reduce = reduce_function(ReduceOp::kSum, ElementType::kInt64);
    return b;
}

// Both ranks end with the sum: send mine, receive theirs into temporary memory, copy mine, add.
std::vector<V> allreduce(int64_t peer, int64_t bytes) {
    return {{Schedule::kSend, peer, 0, kSendBuffer, 0, kNone, -1, bytes, {}},
            {Schedule::kRecv, peer, 0, kNone, -1, kTemporary, 64, bytes, {}},
            {Schedule::kCopy, -1, 0, kSendBuffer, 0, kReceiveBuffer, 0, bytes, {}},
            {Schedule::kReduce, -1, 0, kTemporary, 64, kReceiveBuffer, 0, bytes, {1, 2}}};
}

}  // namespace

TEST_CASE("decode refuses what is no schedule") {
    const auto good = encode(allreduce(1, 8), 128);
    CHECK_NOTHROW(decode(good));
    CHECK_NOTHROW(decode({0, 0, 0}));
    const auto with = [&](size_t at, int64_t value) {
        auto words = good;
        words.at(at) = value;
        return words;
    };
    CHECK_THROWS_AS(decode({}), std::invalid_argument);
    for (size_t n = 0; n < good.size(); n++)
        CHECK_THROWS_AS(decode({good.begin(), good.begin() + static_cast<long>(n)}), std::invalid_argument);
    for (const int64_t count : {int64_t{-1}, int64_t{5}, INT64_MAX, INT64_MIN, int64_t{1844674407370955162}}) {
        CHECK_THROWS_AS(decode(with(0, count)), std::invalid_argument);
        CHECK_THROWS_AS(decode(with(2, count)), std::invalid_argument);
    }
    CHECK_THROWS_AS(decode({1844674407370955162, 0, 0, 1, 2, 3, 4}), std::invalid_argument);  // times ten wraps to 4
    CHECK_THROWS_AS(decode(with(1, -1)), std::invalid_argument);
    const size_t first = 3, receive = 13, reduce = 33;
    CHECK_THROWS_AS(decode(with(first, 4)), std::invalid_argument);  // kind
    CHECK_THROWS_AS(decode(with(first, -1)), std::invalid_argument);
    CHECK_THROWS_AS(decode(with(first + 1, -1)), std::invalid_argument);  // peer of a send
    CHECK_THROWS_AS(decode(with(first + 1, int64_t{1} << 32)), std::invalid_argument);
    CHECK_THROWS_AS(decode(with(first + 2, 256)), std::invalid_argument);  // slot
    for (const int64_t buffer : {-1, 3, 256, -256, 258}) CHECK_THROWS_AS(decode(with(first + 3, buffer)), std::invalid_argument);
    for (const int64_t buffer : {-1, 3, 256}) CHECK_THROWS_AS(decode(with(receive + 5, buffer)), std::invalid_argument);
    CHECK_THROWS_AS(decode(with(receive + 5, kSendBuffer)), std::invalid_argument);  // nobody writes there
    CHECK_THROWS_AS(decode(with(first + 4, -8)), std::invalid_argument);
    CHECK_THROWS_AS(decode(with(receive + 6, 121)), std::invalid_argument);  // beyond temporary memory
    CHECK_THROWS_AS(decode(with(receive + 6, INT64_MAX)), std::invalid_argument);
    CHECK_THROWS_AS(decode(with(receive + 7, INT64_MAX)), std::invalid_argument);
    CHECK_THROWS_AS(decode(with(first + 7, -1)), std::invalid_argument);
    CHECK_THROWS_AS(decode(with(reduce + 8, INT64_MAX)), std::invalid_argument);  // dependencies
    CHECK_THROWS_AS(decode(with(reduce + 9, INT64_MAX)), std::invalid_argument);
    CHECK_THROWS_AS(decode(with(reduce + 9, 3)), std::invalid_argument);
    CHECK_THROWS_AS(decode(with(43, 3)), std::invalid_argument);  // itself
    CHECK_THROWS_AS(decode(with(43, -1)), std::invalid_argument);
}

TEST_CASE("decode takes random words for a schedule, or refuses them, and does nothing else") {
    std::mt19937_64 random(seed());
    const auto good = encode(allreduce(1, 8), 128);
    int taken = 0;
    for (int i = 0; i < 100'000; i++) {
        auto words = good;
        for (uint64_t changes = random() % 4 + 1; changes > 0; changes--) {
            int64_t &w = words[random() % words.size()];
            w = random() % 3 == 0 ? static_cast<int64_t>(random()) : w + static_cast<int64_t>(random() % 7) - 3;
        }
        if (random() % 10 == 0) words.resize(random() % 60);
        try {
            taken += decode(words) != nullptr;
        } catch (const std::invalid_argument &) {
        }
    }
    CHECK(taken > 0);
}

TEST_CASE("an exchange with temporary memory, started again and again, at every size") {
    for (const int64_t elements : {0, 1, 20, 60, 1000}) {
        const auto s0 = decode(encode(allreduce(1, elements * 8), 64 + elements * 8)),
                   s1 = decode(encode(allreduce(0, elements * 8), 64 + elements * 8));
        ScriptedWorld world(2);
        for (int64_t round = 0; round < 5; round++) {
            std::vector<int64_t> a(elements, round), b(elements, 10), ra(elements), rb(elements);
            Request *r0 = world[0].start(*s0, bind(a.data(), ra.data()));
            Request *r1 = world[1].start(*s1, bind(b.data(), rb.data()));
            world.finish(r0);
            world.finish(r1);
            CHECK(r0->status.error == Error::kNone);
            CHECK(ra == std::vector<int64_t>(elements, 10 + round));
            CHECK(rb == ra);
            world[0].release(r0);
            world[1].release(r1);
        }
        world.check_closed();
    }
}

TEST_CASE("random graphs of copies run each vertex once, after those it waits for") {
    std::mt19937_64 random(seed());
    for (int round = 0; round < 300; round++) {
        // Vertex i reads a cell that an earlier one wrote, and writes its own: the order shows in the content.
        const size_t n = 1 + random() % 40;
        std::vector<V> vertices;
        std::vector<size_t> origin(n);
        for (size_t i = 0; i < n; i++) {
            if (i == 0 || random() % 4 == 0) {
                origin[i] = i;
                vertices.push_back(
                    {Schedule::kCopy, -1, 0, kSendBuffer, static_cast<int64_t>(i * 8), kReceiveBuffer, static_cast<int64_t>(i * 8), 8, {}});
                continue;
            }
            const size_t from = random() % i;
            origin[i] = origin[from];
            V v{Schedule::kCopy, -1, 0, kReceiveBuffer, static_cast<int64_t>(from * 8), kReceiveBuffer, static_cast<int64_t>(i * 8), 8, {}};
            v.after.push_back(static_cast<int64_t>(from));
            while (random() % 2) v.after.push_back(static_cast<int64_t>(random() % i));
            vertices.push_back(v);
        }
        const auto schedule = decode(encode(vertices, 0));
        ScriptedWorld world(1);
        std::vector<uint64_t> in(n), out(n), expected(n);
        for (auto &x : in) x = random();
        for (size_t i = 0; i < n; i++) expected[i] = in[origin[i]];
        Request *r = world[0].start(*schedule, bind(in.data(), out.data()));
        REQUIRE(r->done);
        CHECK(out == expected);
    }
}

TEST_CASE("a reduction that needs Python is parked, run by whoever waits, and may fail") {
    for (const bool ok : {true, false}) {
        auto vertices = allreduce(1, 8);
        vertices.push_back({Schedule::kCopy, -1, 0, kReceiveBuffer, 0, kReceiveBuffer, 8, 8, {3}});
        const auto s0 = decode(encode(vertices, 128)), s1 = decode(encode(allreduce(0, 8), 128));
        ScriptedWorld world(2);
        int64_t a = 3, b = 4, ra[2] = {0, 0}, rb = 0;
        int handle;
        Binding mine = bind(&a, ra);
        mine.python_op = &handle;
        Request *r0 = world[0].start(*s0, mine);
        Parked work;
        CHECK_FALSE(world[0].take_parked(&work));
        Request *r1 = world[1].start(*s1, bind(&b, &rb));
        world.finish(r1);
        CHECK(world[0].wait(r0) == Wait::kNeedPython);
        REQUIRE(world[0].take_parked(&work));
        CHECK(work.python_op == &handle);
        CHECK(work.bytes == 8);
        CHECK_FALSE(world[0].take_parked(&work));
        CHECK_FALSE(r0->done);
        *static_cast<int64_t *>(work.inout) += *static_cast<const int64_t *>(work.in);
        world[0].finish_parked(work, ok);
        REQUIRE(r0->done);
        CHECK(r0->status.error == (ok ? Error::kNone : Error::kReduceFailed));
        CHECK(ra[1] == (ok ? 7 : 0));  // after a failure nothing new starts
        CHECK(rb == 7);
        world.check_closed();
    }
}

TEST_CASE("an error in one vertex starts nothing new, withdraws receives, waits for what holds buffers, and tells who waits for us") {
    // From ranks 1 and 2 in parallel, and a rendezvous to rank 2; rank 1 dies while that is on its way.
    const std::vector<V> vertices = {{Schedule::kSend, 2, 2, kSendBuffer, 0, kNone, -1, 3000, {}},
                                     {Schedule::kRecv, 1, 0, kNone, -1, kReceiveBuffer, 0, 8, {}},
                                     {Schedule::kRecv, 2, 0, kNone, -1, kReceiveBuffer, 8, 8, {}},
                                     {Schedule::kCopy, -1, 0, kReceiveBuffer, 0, kReceiveBuffer, 16, 8, {1}},
                                     {Schedule::kSend, 2, 1, kReceiveBuffer, 8, kNone, -1, 8, {2}}};
    const auto schedule = decode(encode(vertices, 0));
    ScriptedWorld world(3);
    world[0].isend(0, 1, 0, nullptr, 0, SendMode::kStandard);
    const std::string sent = content(3000, 1);
    std::string got(3000, '\0');
    uint64_t out[3] = {5, 5, 5};
    Request *r = world[0].start(*schedule, bind(sent.data(), out));
    world.pump();
    CHECK_FALSE(r->failed);
    world.fabric.fail(0, 1);
    world.pump();
    CHECK(r->failed);
    CHECK_FALSE(r->done);  // rank 2 may still read the send buffer
    const uint64_t seven = 7;
    world[2].isend(1, 0, 100, &seven, 8, SendMode::kStandard);
    Request *whole = world[2].irecv(1, 0, 102, got.data(), got.size(), false);
    world.finish(r);
    world.finish(whole);
    CHECK(got == sent);
    CHECK(r->status.error == Error::kProcFailed);
    CHECK(r->status.source == 1);
    CHECK(out[1] == 5);  // withdrawn
    CHECK(out[2] == 5);  // not started
    Request *told = world[2].irecv(1, 0, 101, got.data(), got.size(), false);
    world.finish(told);
    CHECK(told->status.error == Error::kProcFailed);
    CHECK(told->status.source == 1);
    world.check_closed();
}

TEST_CASE("a truncated receive is the schedule's error") {
    const auto schedule = decode(encode({{Schedule::kRecv, 1, 0, kNone, -1, kReceiveBuffer, 0, 8, {}}}, 0));
    ScriptedWorld world(2);
    uint64_t out[2] = {0, 5}, in[2] = {1, 2};
    Request *r = world[0].start(*schedule, bind(nullptr, out));
    world[1].isend(1, 0, 100, in, 16, SendMode::kStandard);
    world.finish(r);
    CHECK(r->status.error == Error::kTruncate);
    CHECK(r->status.full_size == 16);
    CHECK(out[0] == 1);
    CHECK(out[1] == 5);
    world.check_closed();
}

TEST_CASE("predefined reductions: NaN stays, integers wrap, pairs keep the lower index, unaligned memory") {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    for (const auto op : {ReduceOp::kMin, ReduceOp::kMax})
        for (const auto &[x, y] : {std::pair{nan, 1.0}, {1.0, nan}}) {
            double in = x, io = y;
            reduce_function(op, ElementType::kDouble)(&in, &io, 1);
            CHECK(io != io);
        }
    int8_t a = 127, b = 1;
    reduce_function(ReduceOp::kSum, ElementType::kInt8)(&a, &b, 1);
    CHECK(b == -128);
    int64_t c = INT64_MAX, d = INT64_MAX;
    reduce_function(ReduceOp::kProd, ElementType::kInt64)(&c, &d, 1);
    CHECK(d == 1);
    uint16_t e = 65535, f = 65535;
    reduce_function(ReduceOp::kProd, ElementType::kUint16)(&e, &f, 1);
    CHECK(f == 1);
    struct {
        int value, index;
    } p{4, 7}, q{4, 3};
    reduce_function(ReduceOp::kMaxloc, ElementType::kIntInt)(&p, &q, 1);
    CHECK(q.index == 3);
    alignas(8) char memory[17] = {}, other[17] = {};
    memory[1] = 5;
    other[1] = 6;
    reduce_function(ReduceOp::kSum, ElementType::kInt64)(memory + 1, other + 1, 2);
    CHECK(other[1] == 11);
    CHECK(!reduce_function(ReduceOp::kSum, ElementType::kByte));
    CHECK(!reduce_function(ReduceOp::kMin, ElementType::kComplexDouble));
    CHECK(!reduce_function(ReduceOp::kBand, ElementType::kDouble));
    CHECK(!reduce_function(ReduceOp::kSum, ElementType::kNone));
}
