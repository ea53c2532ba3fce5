// Threads on one engine over the real transports: waits, wake-ups, sleep. Meant for ThreadSanitizer as much as for a plain run.
#include <time.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "cutting.h"
#include "engine_world.h"

using namespace mpx;
using namespace mpx::test;

namespace {

void wait_for(Engine &e, Request *r) {
    const double limit = now() + 60;
    while (e.wait(r) != Wait::kDone)
        if (now() > limit) throw std::runtime_error("a request does not end");
}
void send(Engine &e, uint32_t context, int to, int tag, const void *data, size_t n) {
    Request *s = e.isend(context, to, tag, data, n, SendMode::kStandard);
    wait_for(e, s);
    REQUIRE(s->status.error == Error::kNone);
    e.release(s);
}
void spin(uint64_t turns) {
    for (uint64_t i = 0; i < turns; i++) std::atomic_signal_fence(std::memory_order_seq_cst);
}
// Drives both ranks until a message has passed: the link is up.
void connect(World &world) {
    char word = 0;
    Request *r = world[1].irecv(0, 0, 0, &word, 1, false), *s = world[0].isend(0, 1, 0, &word, 1, SendMode::kStandard);
    world.finish(r);
    world.finish(s);
    world[1].release(r);
    world[0].release(s);
}
double cpu_seconds() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

}  // namespace

TEST_CASE("threads of both ranks send, receive, probe and cancel at once, also while their connection is cut again and again") {
    for (const char *form : {"shm", "tcp", "tcp, cut"}) {
        constexpr int kPairs = 3, kRounds = 300;
        const std::string name(form, 3);
        RealWorld world(2, name);
        connect(world);  // a peer that was never reached is given up soon, however often its handshakes are cut
        std::atomic<bool> over{name == form};
        std::thread cutter([&] {
            std::mt19937_64 random(seed());
            while (!over) {
                const std::vector<int> fds = connections();
                const uint64_t links = world[0].link_counters(1).reconnects;
                if (!fds.empty()) cut_connection(fds[random() % fds.size()], random() % 2 ? Cut::kShut : Cut::kReset);
                usleep(static_cast<useconds_t>(random() % 10000));
                // Mostly the next link may come up first: where handshakes are slow, none would survive.
                for (int ms = random() % 4 ? 200 : 0; ms > 0 && !over && world[0].link_counters(1).reconnects == links; ms--) usleep(1000);
            }
        });
        std::vector<std::thread> threads;
        std::atomic<int> wrong{0}, first_error{0}, running{2 * kPairs};
        for (int rank = 0; rank < 2; rank++)
            for (int pair = 0; pair < kPairs; pair++)
                threads.emplace_back([&, rank, pair] {
                    Engine &e = world[rank];
                    std::mt19937_64 random(seed() + static_cast<uint64_t>(pair));  // the same sizes on both sides
                    for (int i = 0; i < kRounds; i++) {
                        const uint64_t size = random() % 5 ? random() % 200 : random() % 200'000;
                        const std::string mine = content(size, size);
                        std::string theirs(size, '\0');
                        Request *never = e.irecv(2, 1 - rank, 500 + pair, nullptr, 0, false);
                        Request *s = e.isend(1, 1 - rank, pair, mine.data(), size, i % 3 ? SendMode::kStandard : SendMode::kSync);
                        Status status;
                        if (i % 4 == 0) {
                            while (e.wait_message(1, 1 - rank, pair, &status) != Wait::kDone) {
                            }
                            wrong += status.bytes != size;
                        } else if (i % 4 == 1) {
                            e.iprobe(1, kAnySource, pair, &status);
                        }
                        Request *r = e.irecv(1, i % 2 ? kAnySource : 1 - rank, pair, theirs.data(), size, false);
                        Request *both[] = {s, r};
                        while (e.wait_any(both, 2) != Wait::kDone) {
                        }
                        while (e.wait(r) != Wait::kDone) {
                        }
                        while (e.wait(s) != Wait::kDone) {
                        }
                        for (const Error error : {r->status.error, s->status.error})
                            if (int none = 0; error != Error::kNone) first_error.compare_exchange_strong(none, static_cast<int>(error));
                        wrong += theirs != mine || r->status.error != Error::kNone || s->status.error != Error::kNone;
                        wrong += !e.cancel(never);
                        e.release(never);
                        e.release(r);
                        e.release(s);
                        e.unexpected_bytes();
                        e.peer_state(1 - rank);
                    }
                    for (running--; running > 0; usleep(100)) e.progress();  // what was cut after it was sent is sent again
                });
        for (auto &t : threads) t.join();
        const std::string failed = form + (": " + world[0].failure_reason(1)) + " / " + world[1].failure_reason(0);
        CAPTURE(failed);
        CHECK(first_error.load() == 0);
        CHECK(wrong.load() == 0);
        if (!over) CHECK(world[0].link_counters(1).reconnects > 0);
        over = true;
        cutter.join();
        world.close();
    }
}

// A wake-up that is lost costs the rest of a slice: so long that the machine does not hold a thread up as long.
Config with_long_slices() {
    Config config;
    config.slice_ms = 20'000;
    return config;
}
constexpr double kLate = 5;

// Each round wakes one of three threads, chosen at random.
TEST_CASE("no wake-up is lost in 10^4 rounds") {
    for (const char *name : {"shm", "tcp"}) {
        constexpr int kThreads = 3, kRounds = 5000;
        Config config = with_long_slices();
        config.spin_seconds = 2e-6;  // mostly asleep
        RealWorld world(2, name, config);
        std::vector<std::thread> threads;
        for (int t = 0; t < kThreads; t++)
            threads.emplace_back([&, t] {
                Engine &e = world[1];
                for (uint64_t word = 1; word != 0;) {
                    Request *r = e.irecv(0, 0, t, &word, sizeof word, false);
                    while (e.wait(r) != Wait::kDone) {
                    }
                    e.release(r);
                    send(e, 0, 0, 100, &word, sizeof word);
                }
            });
        std::mt19937_64 random(seed());
        double longest = 0;
        const auto round = [&](int t, uint64_t word) {
            const double start = now();
            send(world[0], 0, 1, t, &word, sizeof word);
            uint64_t back = 0;
            Request *r = world[0].irecv(0, 1, 100, &back, sizeof back, false);
            wait_for(world[0], r);
            world[0].release(r);
            REQUIRE(back == word);
            longest = std::max(longest, now() - start);
        };
        for (uint64_t i = 1; i <= kRounds; i++) {
            round(static_cast<int>(random() % kThreads), i);
            spin(random() % 4 ? random() % 300 : random() % 20'000);
        }
        for (int t = 0; t < kThreads; t++) round(t, 0);
        for (auto &t : threads) t.join();
        MESSAGE(std::string(name) << ": longest round " << longest << " s");
        CHECK(longest < kLate);
        world.close();
    }
}

TEST_CASE("a thread that waits for any message is told while another sleeps on the transports") {
    RealWorld world(2, "shm", with_long_slices());
    char never = 0, word = 1;
    connect(world);
    Request *r = world[1].irecv(1, 0, 0, &never, 1, false);
    std::atomic<bool> stop{false}, prompt{true};
    std::thread sleeper([&] {
        while (!stop) world[1].wait(r);
    });
    for (int round = 0; round < 20; round++) {
        std::atomic<bool> started{false};
        double told = 0;
        std::thread prober([&] {
            Status status;
            started = true;
            while (world[1].wait_message(2, 0, round, &status) != Wait::kDone) {
            }
            told = now();
        });
        const double start = now();
        while (!started || now() - start < 0.01) std::this_thread::yield();  // it should sleep by now; a message that is early proves less
        const double sent = now();
        send(world[0], 2, 1, round, &word, 1);
        prober.join();
        if (told - sent > kLate) prompt = false;
        Request *got = world[1].irecv(2, 0, round, &word, 1, false);
        wait_for(world[1], got);
    }
    stop = true;
    sleeper.join();
    CHECK(prompt);
    world[1].cancel(r);
    world.close();
}

TEST_CASE("a sleeper is woken by a completion that another thread's progress produced") {
    for (const char *name : {"shm", "tcp"}) {
        RealWorld world(2, name, with_long_slices());
        std::atomic<bool> stop{false};
        std::thread other([&] {
            while (!stop) {
                world[1].progress();
                spin(5000);  // without this it would hold the lock nearly always, and a mutex is not fair
            }
        });
        double longest = 0;
        for (int round = 0; round < 200; round++) {
            int word = round, got = -1;
            Request *r = world[1].irecv(0, 0, 0, &got, sizeof got, false);
            double told = 0;
            std::thread sleeper([&] {
                wait_for(world[1], r);
                told = now();
            });
            const double start = now();
            while (now() - start < 0.0003) std::this_thread::yield();
            const double sent = now();
            send(world[0], 0, 1, 0, &word, sizeof word);
            sleeper.join();
            longest = std::max(longest, told - sent);
            REQUIRE(got == round);
            world[1].release(r);
        }
        stop = true;
        other.join();
        CHECK(longest < kLate);
        world.close();
    }
}

TEST_CASE("a wait without events returns after about 100 ms, asleep all the while") {
    for (const char *name : {"shm", "tcp"}) {
        RealWorld world(2, name);
        connect(world);
        char word = 0;
        Request *r = world[1].irecv(0, 0, 0, &word, 1, false);
        const double cpu = cpu_seconds();
        std::vector<double> took;
        for (int i = 0; i < 11; i++) {
            const double start = now();
            CHECK(world[1].wait(r) == Wait::kInterrupted);
            took.push_back(now() - start);
        }
        std::sort(took.begin(), took.end());
        CHECK(took.front() > 0.09);
        CHECK(took[5] < 0.2);  // the median: the machine may hold a thread up now and then
        CHECK(cpu_seconds() - cpu < 0.05);
        world[1].cancel(r);
        world.close();
    }
}

TEST_CASE("a wait returns after about 100 ms even when other traffic never stops") {
    ScriptedWorld world(1);
    world.fabric.busy = true;
    char word = 0;
    Request *r = world[0].irecv(0, 0, 0, &word, 1, false);
    std::atomic<bool> rescued{false};
    std::thread rescue([&] {  // a wait that is stuck shall fail this test, not hang it
        const double limit = now() + 5;
        while (now() < limit && world.fabric.busy) std::this_thread::yield();
        rescued = world.fabric.busy.load();
        world.fabric.busy = false;
    });
    const double start = now();
    const Wait outcome = world[0].wait(r);
    const double took = now() - start;
    world.fabric.busy = false;
    rescue.join();
    CHECK(outcome == Wait::kInterrupted);
    CHECK(took > 0.09);
    CHECK(!rescued);
    world.close();
}

TEST_CASE("while one thread waits over a busy transport, others get the lock") {
    ScriptedWorld world(1);
    world.fabric.busy = true;
    char word = 0;
    Request *r = world[0].irecv(0, 0, 0, &word, 1, false);
    std::atomic<bool> stop{false};
    std::thread waiter([&] {
        while (!stop) world[0].wait(r);
    });
    const double start = now();
    for (int i = 0; i < 100; i++) world[0].peer_counters(0);
    CHECK(now() - start < 5);  // 10 s where each waits for the end of a slice
    stop = true;
    world.fabric.busy = false;
    waiter.join();
    world.close();
}

TEST_CASE("threads that wait while the engine is closed hear of it") {
    for (const char *name : {"shm", "tcp"}) {
        RealWorld world(2, name);
        std::vector<std::thread> threads;
        std::atomic<int> failed{0}, waiting{0};
        for (int t = 0; t < 3; t++)
            threads.emplace_back([&, t] {
                char word = 0;
                Request *r = world[1].irecv(0, t ? 0 : kAnySource, t, &word, 1, false);
                waiting++;
                while (world[1].wait(r) != Wait::kDone) {
                }
                failed += r->status.error == Error::kProcFailed;
                world[1].release(r);
            });
        const double start = now();
        while (waiting < 3 || now() - start < 0.01) std::this_thread::yield();
        world.close();
        for (auto &t : threads) t.join();
        CHECK(failed == 3);
    }
}
