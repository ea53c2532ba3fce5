// The shm ring between two threads of one process, for ThreadSanitizer: content, order, both sides sleeping on pipes.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <poll.h>
#include <unistd.h>

#include <random>
#include <thread>
#include <vector>

#include "../../transports/shm/ring.h"

using namespace mpx::shm;

namespace {

struct Pipe {
    int ends[2];
    Pipe() { REQUIRE(pipe(ends) == 0); }
    ~Pipe() { close(ends[0]), close(ends[1]); }
    void wake() {
        const char c = 0;
        REQUIRE(write(ends[1], &c, 1) == 1);
    }
    void wait() {
        pollfd p{ends[0], POLLIN, 0};
        REQUIRE(poll(&p, 1, 20000) == 1);  // a lost wake-up ends here
        char c;
        REQUIRE(read(ends[0], &c, 1) == 1);
    }
};

constexpr uint64_t kCells = 64;
constexpr int kMessages = 100000;

// No double mapping here, but twice the memory: both sides address a message by its first cell alone.
struct Shared {
    RingControl control{};
    alignas(kCell) std::byte data[2 * kCells * kCell] = {};
    alignas(kCell) uint64_t bell = 0;
    alignas(kCell) uint64_t pending = 0;
};

size_t length(std::mt19937 &random) { return random() % (kCells * kCell / 2); }

}  // namespace

TEST_CASE("two threads: every message whole and in order, nobody sleeps for ever") {
    const unsigned seed = std::random_device{}();
    printf("seed %u\n", seed);
    auto shared = std::make_unique<Shared>();
    Pipe to_receiver, to_sender;
    RingSender<> out(&shared->control, shared->data, kCells);
    out.init();
    std::thread receiver([&] {
        RingReceiver<> in(&shared->control, shared->data, kCells);
        std::mt19937 random(seed), pause(seed + 1);
        bool parked = true;
        for (int i = 0; i < kMessages;) {
            if (Bell<>::answer(&shared->bell) && Bell<>::collect(&shared->pending)) parked = false;
            const uint64_t word = parked ? 0 : in.poll();
            if (word) {
                const size_t len = length(random);
                REQUIRE(Message::length(word) == len);
                const std::byte value = std::byte(i);
                for (size_t b = 0; b < len; ++b) {
                    if (in.front()[b] != value) FAIL("message " << i << " byte " << b);
                }
                if (in.consume(word)) to_sender.wake();
                ++i;
            } else if (pause() % 8 == 0) {
                if (!parked) parked = in.park();
                if (parked && Bell<>::arm(&shared->bell)) to_receiver.wait();
            }
        }
    });
    std::mt19937 random(seed);
    for (int i = 0; i < kMessages; ++i) {
        const size_t len = length(random);
        std::byte *to;
        while (!(to = out.reserve(len))) {
            if (out.want_space(len)) to_sender.wait();
        }
        for (size_t b = 0; b < len; ++b) to[b] = std::byte(i);
        if (out.publish(len, 7) && Bell<>::ring(&shared->bell, &shared->pending, 1)) to_receiver.wake();
    }
    receiver.join();
}
