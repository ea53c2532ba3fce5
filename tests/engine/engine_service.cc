// Served while the program computes: the service thread, active messages, the descriptor for event loops. Over the real transports.
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "engine_world.h"

using namespace mpx;
using namespace mpx::test;

namespace {

constexpr uint32_t kAnswers = 2;  // context

void wait_for(Engine &e, Request *r) {
    const double limit = now() + 60;
    while (e.wait(r) != Wait::kDone)
        if (now() > limit) throw std::runtime_error("a request does not end");
}
std::string echoed(Engine &e, int rank, int tag, const std::string &text, double *seconds = nullptr) {
    std::string back(text.size(), '\0');
    const double begun = now();
    Request *r = e.irecv(kAnswers, rank, tag, back.data(), back.size(), false);
    CHECK(e.send_active(rank, kActiveEcho, match_word(kAnswers, tag), text.data(), text.size()) == Error::kNone);
    wait_for(e, r);
    if (seconds) *seconds = now() - begun;
    CHECK(r->status.error == Error::kNone);
    CHECK(r->status.bytes == text.size());
    e.release(r);
    return back;
}
void exchange(Engine &e, int peer, int tag, size_t size) {
    const std::string out = content(size, size);
    std::string in(size, '\0');
    Request *r = e.irecv(0, peer, tag, in.data(), size, false), *s = e.isend(0, peer, tag, out.data(), size, SendMode::kStandard);
    wait_for(e, r);
    wait_for(e, s);
    CHECK(in == out);
    e.release(r);
    e.release(s);
}

}  // namespace

TEST_CASE("active messages are served while the program does nothing, and nothing else serves them") {
    for (const char *form : {"shm", "tcp"}) {
        RealWorld world(2, form);
        char word = 0;
        Request *never = world[0].irecv(kAnswers, 1, 1, &word, 1, false);
        CHECK(world[0].send_active(1, kActiveEcho, match_word(kAnswers, 1), "x", 1) == Error::kNone);
        for (const double end = now() + 0.05; now() < end;) world[0].progress();
        CHECK(!never->done);
        world[1].start_service();
        world[1].start_service();  // there is one already
        wait_for(world[0], never);
        CHECK(word == 'x');
        world[0].release(never);
        std::vector<double> times(500);
        for (size_t i = 0; i < times.size(); i++) {
            const std::string text = content(i % 300, i);
            REQUIRE(echoed(world[0], 1, static_cast<int>(i), text, &times[i]) == text);
        }
        std::sort(times.begin(), times.end());
        std::printf("%s: echo by the service thread: median %.1f us, 99 %% %.1f us\n", form, times[250] * 1e6, times[495] * 1e6);
        CHECK_THROWS_AS(world[0].send_active(1, kActiveEcho, 0, content(1 << 20, 1).data(), 1 << 20), std::length_error);
        world.close();
    }
}

TEST_CASE("with service threads on both sides, several threads of both sides exchange messages, and active messages cross them") {
    for (const char *form : {"shm", "tcp"}) {
        RealWorld world(2, form);
        for (int rank = 0; rank < 2; rank++) world[rank].start_service();
        std::vector<std::thread> threads;
        for (int rank = 0; rank < 2; rank++) {
            for (int pair = 0; pair < 3; pair++)
                threads.emplace_back([&, rank, pair] {
                    std::mt19937_64 random(seed() + static_cast<uint64_t>(pair));
                    for (int i = 0; i < 200; i++) {
                        exchange(world[rank], 1 - rank, pair, random() % 4 ? random() % 200 : random() % 300'000);
                        if (random() % 8 == 0)
                            std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));  // both ways of waiting
                    }
                });
            threads.emplace_back([&, rank] {
                for (int i = 0; i < 200; i++) CHECK(echoed(world[rank], 1 - rank, 1000 + i, content(64, i)) == content(64, i));
            });
        }
        for (std::thread &t : threads) t.join();
        world.close();
    }
}

TEST_CASE("a message with a probing thread, a wait that begins before the service, and an end in the middle of waits") {
    RealWorld world(2, "tcp");
    exchange(world[0], 0, 0, 1);
    std::atomic<bool> probed{false};
    std::thread early([&] { exchange(world[0], 1, 5, 100); });
    std::thread peer([&] { exchange(world[1], 0, 5, 100); });
    early.join();
    peer.join();
    char byte = 0;
    Request *last = world[0].irecv(0, 1, 7, &byte, 1, false);
    std::thread waiting([&] { wait_for(world[0], last); });
    std::thread probing([&] {
        Status status;
        while (world[0].wait_message(0, 1, 9, &status) != Wait::kDone) {
        }
        probed = status.bytes == 3;
    });
    world[0].start_service();
    world[1].start_service();
    for (int tag : {9, 7}) {
        Request *s = world[1].isend(0, 0, tag, "abc", tag == 9 ? 3 : 1, SendMode::kStandard);
        wait_for(world[1], s);
        world[1].release(s);
    }
    waiting.join();
    probing.join();
    CHECK(probed);
    CHECK(byte == 'a');
    world[0].release(last);
    Request *open = world[0].irecv(0, 1, 11, &byte, 1, false);
    std::thread left([&] { wait_for(world[0], open); });
    world[0].close();
    left.join();
    CHECK(open->status.error != Error::kNone);
}

TEST_CASE("the service thread takes no signals, and costs next to nothing while nothing happens") {
    RealWorld world(2, "shm");
    static std::atomic<int> taken;
    taken = 0;
    struct sigaction action {
    }, before;
    action.sa_handler = [](int) { taken++; };
    sigaction(SIGUSR1, &action, &before);
    world[1].start_service();
    sigset_t mine, old;
    sigemptyset(&mine);
    sigaddset(&mine, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &mine, &old);
    kill(getpid(), SIGUSR1);  // only the service thread could take it
    timespec begun, ended;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begun);
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ended);
    CHECK(taken == 0);
    pthread_sigmask(SIG_SETMASK, &old, nullptr);
    CHECK(taken == 1);
    sigaction(SIGUSR1, &before, nullptr);
    const double cpu = static_cast<double>(ended.tv_sec - begun.tv_sec) + 1e-9 * static_cast<double>(ended.tv_nsec - begun.tv_nsec);
    CHECK(cpu < 0.02 * 0.5);
    world.close();
}

TEST_CASE("an event loop that polls the descriptor hears of every request that it watches, once") {
    for (const char *form : {"shm", "tcp"})
        for (const bool served : {false, true}) {
            RealWorld world(2, form);
            if (served) world[0].start_service();
            constexpr int kMessages = 300;
            std::vector<char> bytes(kMessages);
            std::vector<Request *> requests;
            std::vector<int> heard(kMessages + 1);
            for (int i = 0; i < kMessages; i++) {
                requests.push_back(world[0].irecv(0, 1, i, &bytes[i], 1, false));
                REQUIRE(world[0].watch_request(requests[i], 2 * (static_cast<uint64_t>(i) + 1)));
            }
            std::thread sender([&] {
                std::mt19937_64 random(seed());
                for (int i = 0; i < kMessages; i++) {
                    const char byte = static_cast<char>(i);
                    Request *s = world[1].isend(0, 0, kMessages - 1 - i, &byte, 1, SendMode::kStandard);
                    wait_for(world[1], s);
                    world[1].release(s);
                    if (random() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 500));
                }
            });
            const double limit = now() + 60;
            int left = kMessages;
            uint64_t polls = 0;
            std::vector<uint64_t> ended;
            while (left > 0 && now() < limit) {
                ended.clear();
                const int timeout = world[0].watch(&ended);
                for (const uint64_t key : ended) {
                    heard.at(key / 2)++;
                    left--;
                }
                if (!left) break;
                pollfd fd{world[0].watch_fd(), POLLIN, 0};
                poll(&fd, 1, timeout);
                polls++;
            }
            sender.join();
            CHECK(left == 0);
            CHECK(std::count(heard.begin() + 1, heard.end(), 1) == kMessages);
            for (int i = 0; i < kMessages; i++) {
                CHECK(bytes[i] == static_cast<char>(kMessages - 1 - i));
                CHECK(!world[0].watch_request(requests[i], 2));
                world[0].release(requests[i]);
            }
            // Quiet again: nothing rings.
            int timeout = 0;
            for (int i = 0; i < 100 && timeout == 0; i++) timeout = world[0].watch(&ended);
            pollfd fd{world[0].watch_fd(), POLLIN, 0};
            CHECK(poll(&fd, 1, 20) <= (form == std::string("tcp") ? 1 : 0));
            std::printf("%s%s: %d messages in %llu turns\n", form, served ? ", served" : "", kMessages,
                        static_cast<unsigned long long>(polls));
            world.close();
        }
}
