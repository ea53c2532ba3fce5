// The shm transport between real processes: content, back-pressure, sleep, death, memory, leaks.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <sys/mman.h>
#include <csignal>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <random>

#include "../../transports/shm/shm.h"
#include "shm_node.h"

using namespace shm_test;

namespace {

const unsigned kSeed = [] {
    const char *given = getenv("PYMPX_TEST_SEED");
    const unsigned seed = given ? unsigned(atol(given)) : std::random_device{}();
    printf("PYMPX_TEST_SEED=%u\n", seed);
    return seed;
}();

// Content that tells its message and its place in it.
Bytes pattern(uint64_t number, size_t len) {
    Bytes b(len);
    uint64_t x = (number + 1) * 0x9e3779b97f4a7c15u;
    for (auto &c : b) c = static_cast<unsigned char>((x = x * 6364136223846793005u + 1442695040888963407u) >> 56);
    return b;
}

struct Traffic {
    std::mt19937_64 random;
    uint64_t number = 0;
    explicit Traffic(unsigned seed) : random(seed) {}
    struct Item {
        uint64_t number;
        bool is_short;
        unsigned id;
        size_t len;
    };
    Item next(const mpx_iface_attr &a) {
        const bool is_short = random() % 2;
        const size_t max = is_short ? a.max_am_short : a.max_am_bcopy;
        const unsigned bits = unsigned(random() % 17);
        const size_t len = random() % 8 == 0 ? max : std::min(max, size_t(random() % (uint64_t{1} << bits)));
        return {number++, is_short, unsigned(random() % MPX_AM_ID_MAX), len};
    }
};

void send(Node &node, mpx_ep *ep, const Traffic::Item &item, unsigned spins) {
    if (item.is_short) node.send_short(ep, item.id, item.number, pattern(item.number, item.len), spins);
    else node.send_bcopy(ep, item.id, pattern(item.number, item.len), spins);
}

void expect(const Got &got, const Traffic::Item &item) {
    NEED(got.id == item.id);
    NEED(got.hdr_len == (item.is_short ? 8 : 0));
    if (item.is_short) NEED(got.hdr == item.number);
    NEED(got.data == pattern(item.number, item.len));
}

struct Done : mpx_completion {
    int calls = 0;
    mpx_status status = MPX_INPROGRESS;
    Done() {
        done = [](mpx_completion *c, mpx_status st) {
            Done *self = static_cast<Done *>(c);
            ++self->calls;
            self->status = st;
        };
    }
};

size_t entries(const char *dir) {
    size_t n = 0;
    for ([[maybe_unused]] const auto &e : std::filesystem::directory_iterator(dir)) ++n;
    return n;
}

size_t mappings_of_segments() {
    std::ifstream maps("/proc/self/maps");
    size_t n = 0;
    for (std::string line; std::getline(maps, line);) n += line.find("pympx-") != std::string::npos;
    return n;
}

}  // namespace

TEST_CASE("ping-pong: every size and id arrives with its content, whoever sleeps") {
    for (const unsigned spins : {0u, 50u, 2000u}) {
        CAPTURE(spins);
        const int rounds = 3000;
        Child child([&](int fd) {
            Node node;
            mpx_ep *ep = node.connect(swap_address(fd, node));
            const auto attr = node.attributes();
            Traffic in(kSeed), out(kSeed + 1);
            for (int i = 0; i < rounds; ++i) {
                node.until([&] { return !node.inbox.empty(); }, spins);
                NEED(node.inbox.size() == 1 && node.inbox[0].ep == ep);
                expect(node.inbox[0], in.next(attr));
                node.inbox.clear();
                send(node, ep, out.next(attr), spins);
            }
            take(fd, 1);
        });
        Node node;
        mpx_ep *ep = node.connect(swap_address(child.fd, node));
        const auto attr = node.attributes();
        Traffic out(kSeed), in(kSeed + 1);
        for (int i = 0; i < rounds; ++i) {
            send(node, ep, out.next(attr), spins);
            node.until([&] { return !node.inbox.empty(); }, spins);
            NEED(node.inbox.size() == 1 && node.inbox[0].ep == ep);
            expect(node.inbox[0], in.next(attr));
            node.inbox.clear();
        }
        put(child.fd, {0});
        CHECK(child.join() == 0);
        CHECK(node.incoming == 0);
        CHECK(node.errors.size() <= 1);
    }
}

TEST_CASE("back-pressure: both sides sleep, nothing is lost or reordered, memory stays bounded") {
    const int count = 60000;
    Child child([&](int fd) {
        Node node;
        mpx_ep *ep = node.connect(swap_address(fd, node));
        const auto attr = node.attributes();
        Traffic out(kSeed);
        std::mt19937 random(kSeed);
        for (int i = 0; i < count; ++i) send(node, ep, out.next(attr), random() % 100);
        node.until([&] { return !node.inbox.empty(); });  // the receiver's word that all came
    });
    Node node;
    mpx_ep *ep = node.connect(swap_address(child.fd, node));
    const auto attr = node.attributes();
    Traffic in(kSeed);
    std::mt19937 random(kSeed + 7);
    int got = 0;
    node.on_message = [&](Got &&g) {
        expect(g, in.next(attr));
        ++got;
    };
    while (got < count) {
        const int goal = std::min(count, got + int(random() % 300));
        node.until([&] { return got >= goal; }, random() % 100);
    }
    node.send_short(ep, 0, 0, {});
    CHECK(child.join() == 0);
    CHECK(got == count);
}

TEST_CASE("a full ring says NO_RESOURCE, changes nothing, and becomes writable after the receiver read") {
    Child child([&](int fd) {
        Node node;
        mpx_ep *ep = node.connect(swap_address(fd, node));
        const Bytes big = pattern(0, node.attributes().max_am_bcopy);
        uint64_t sent = 0;
        while (node.try_bcopy(ep, 1, big) == MPX_OK) ++sent;
        NEED(sent >= 4);
        NEED(node.try_bcopy(ep, 1, big) == MPX_ERR_NO_RESOURCE);
        NEED(node.iface->ops->event_arm(node.iface) == MPX_OK);
        pollfd p{node.iface->ops->event_fd(node.iface), POLLIN, 0};
        NEED(poll(&p, 1, 0) == 0);
        put(fd, {1});  // now the receiver starts to read
        NEED(poll(&p, 1, 20000) == 1);
        node.send_bcopy(ep, 2, {});
        take(fd, 1);
    });
    Node node;
    node.connect(swap_address(child.fd, node));
    take(child.fd, 1);
    node.until([&] { return !node.inbox.empty() && node.inbox.back().id == 2; });
    for (const Got &g : node.inbox) CHECK(g.data == (g.id == 2 ? Bytes{} : pattern(0, node.attributes().max_am_bcopy)));
    put(child.fd, {0});
    CHECK(child.join() == 0);
}

TEST_CASE("wake-up races: two sleepers, a message every time one of them may be falling asleep") {
    const int rounds = 20000;
    auto side = [&](int fd, bool first) {
        Node node;
        mpx_ep *ep = node.connect(swap_address(fd, node));
        std::mt19937 random(kSeed + first);
        uint64_t seen = 0;
        node.on_message = [&](Got &&g) { NEED(g.hdr == seen++); };
        for (uint64_t i = 0; i < uint64_t(rounds); ++i) {
            if (first) node.send_short(ep, 3, i, {});
            node.until([&] { return seen > i; }, random() % 30);
            if (!first) node.send_short(ep, 3, i, {});
        }
        put(fd, {0});
        take(fd, 1);
    };
    Child child([&](int fd) { side(fd, false); });
    side(child.fd, true);
    CHECK(child.join() == 0);
}

TEST_CASE("many to one: unknown peers are announced once each, every stream keeps its order") {
    const int peers = 6, count = 2000;
    Node node;
    std::vector<Child> children;
    for (int k = 0; k < peers; ++k) {
        children.emplace_back([&](int fd) {
            Node mine;
            put(fd, mine.address());
            mpx_ep *ep = mine.connect(take(fd, mine.address().size()));
            const auto attr = mine.attributes();
            Traffic out(kSeed + unsigned(k));
            mine.send_short(ep, 0, uint64_t(k), {});
            for (int i = 0; i < count; ++i) send(mine, ep, out.next(attr), 10);
            take(fd, 1);
        });
    }
    for (Child &c : children) {
        take(c.fd, node.address().size());
        put(c.fd, node.address());
    }
    const auto attr = node.attributes();
    std::map<mpx_ep *, std::pair<Traffic, int>> from;
    int got = 0;
    node.on_message = [&](Got &&g) {
        const auto it = from.find(g.ep);
        if (it == from.end()) {
            from.emplace(g.ep, std::pair(Traffic(kSeed + unsigned(g.hdr)), 0));
        } else {
            expect(g, it->second.first.next(attr));
            ++got;
        }
    };
    node.until([&] { return got == peers * count; });
    CHECK(node.incoming == unsigned(peers));
    CHECK(from.size() == size_t(peers));
    for (Child &c : children) {
        put(c.fd, {0});
        CHECK(c.join() == 0);
    }
}

TEST_CASE("a killed peer: its complete messages arrive, then one error; the sleeper wakes; later calls fail") {
    for (const bool known : {true, false}) {
        CAPTURE(known);
        Node node;
        Child child([&](int fd) {
            Node mine;
            put(fd, mine.address());
            mpx_ep *ep = mine.connect(take(fd, mine.address().size()));
            for (uint64_t i = 0; i < 100; ++i) mine.send_short(ep, 5, i, pattern(i, 32));
            auto half = [](void *to, void *arg) -> size_t {  // dies while it writes
                memset(to, 0xff, 1000);
                put(*static_cast<int *>(arg), {1});
                raise(SIGKILL);
                return 1000;
            };
            ep->iface->ops->am_bcopy(ep, 5, 1000, half, &fd);
        });
        const Address theirs = take(child.fd, node.address().size());
        mpx_ep *ep = known ? node.connect(theirs) : nullptr;
        put(child.fd, node.address());
        take(child.fd, 1);
        if (!known) CHECK(WTERMSIG(child.join()) == SIGKILL);  // reaped: /proc/PID is gone before the first look
        node.until([&] { return !node.errors.empty(); });
        CHECK(node.inbox.size() == 100);
        for (uint64_t i = 0; i < node.inbox.size(); ++i) CHECK((node.inbox[i].hdr == i && node.inbox[i].data == pattern(i, 32)));
        for (int i = 0; i < 10000; ++i) node.progress();
        CHECK(node.errors.size() == 1);
        if (!known) ep = node.eps.at(0);
        CHECK(node.errors[0] == std::pair(ep, mpx_status(MPX_ERR_PEER_FAILED)));
        CHECK(node.try_short(ep, 0, 0, {}) == MPX_ERR_PEER_FAILED);
        CHECK(node.try_bcopy(ep, 0, {}) == MPX_ERR_PEER_FAILED);
        CHECK(node.t->ep_check(ep, nullptr) == MPX_ERR_PEER_FAILED);
        node.destroy(ep);
        if (known) CHECK(WTERMSIG(child.join()) == SIGKILL);
        mpx_ep *again = nullptr;
        CHECK(node.t->ep_create(node.iface, theirs.data(), theirs.size(), &again) == MPX_ERR_UNREACHABLE);
        CHECK(std::string(node.t->why()) != "");
    }
}

TEST_CASE("a stopped peer stops nobody: sends end in NO_RESOURCE, progress returns, all arrives after it goes on") {
    Child child([&](int fd) {
        Node node;
        mpx_ep *ep = node.connect(swap_address(fd, node));
        uint64_t seen = 0;
        node.on_message = [&](Got &&g) { NEED(g.data == pattern(seen++, 20000)); };
        raise(SIGSTOP);
        node.until([&] { return seen == 100; });
        node.send_short(ep, 0, 0, {});
        take(fd, 1);
    });
    Node node;
    mpx_ep *ep = node.connect(swap_address(child.fd, node));
    int status;
    REQUIRE(waitpid(child.pid, &status, WUNTRACED) == child.pid);
    REQUIRE(WIFSTOPPED(status));
    uint64_t sent = 0;
    while (node.try_bcopy(ep, 0, pattern(sent, 20000)) == MPX_OK) ++sent;
    CHECK(sent < 100);
    for (int i = 0; i < 20000; ++i) node.progress();
    CHECK(node.errors.empty());
    kill(child.pid, SIGCONT);
    for (; sent < 100; ++sent) node.send_bcopy(ep, 0, pattern(sent, 20000));
    node.until([&] { return !node.inbox.empty(); });
    put(child.fd, {0});
    CHECK(child.join() == 0);
}

TEST_CASE("get and put: ordinary memory and memory from mem_alloc, completions only inside progress") {
    const size_t len = 3 * 1024 * 1024 + 77;
    for (const bool mapped : {true, false}) {
        CAPTURE(mapped);
        Child child([&](int fd) {
            Node node;
            node.connect(swap_address(fd, node));
            Bytes own(len);
            void *memory = own.data();
            mpx_mem_h allocated = nullptr, memh;
            if (mapped) NEED(node.t->mem_alloc(node.domain, len, &memory, &allocated) == MPX_OK);
            const unsigned rights = MPX_ACCESS_REMOTE_READ | MPX_ACCESS_REMOTE_WRITE;
            NEED(node.t->mem_reg(node.domain, memory, len, MPX_MEM_HOST, rights, &memh) == MPX_OK);
            const Bytes content = pattern(1, len);
            memcpy(memory, content.data(), len);
            Bytes key(node.attributes().rkey_packed_len);
            NEED(key.size() <= 64);
            NEED(node.t->rkey_pack(node.domain, memh, key.data(), key.size()) == MPX_OK);
            put(fd, key);
            const uint64_t at = reinterpret_cast<uint64_t>(memory);
            put(fd, Bytes(reinterpret_cast<const unsigned char *>(&at), reinterpret_cast<const unsigned char *>(&at) + 8));
            node.until([&] { return !node.inbox.empty(); });  // the AM behind the fence
            const Bytes written = pattern(2, 5000);
            NEED(memcmp(static_cast<unsigned char *>(memory) + 1000, written.data(), 5000) == 0);
            NEED(memcmp(static_cast<unsigned char *>(memory) + 6000, content.data() + 6000, len - 6000) == 0);
            put(fd, {0});
            take(fd, 1);
            NEED(node.t->mem_dereg(node.domain, memh) == MPX_OK);
            if (mapped) node.t->mem_free(node.domain, memory, allocated);
        });
        Node node;
        mpx_ep *ep = node.connect(swap_address(child.fd, node));
        const auto *ops = node.iface->ops;
        const Bytes key = take(child.fd, node.attributes().rkey_packed_len), where = take(child.fd, 8);
        uint64_t raddr;
        memcpy(&raddr, where.data(), 8);
        mpx_rkey_h rkey;
        REQUIRE(node.t->rkey_unpack(node.domain, key.data(), key.size(), &rkey) == MPX_OK);
        Bytes here(len, 0);
        mpx_iov iov[3] = {
            {here.data(), 1000, nullptr}, {here.data() + 1000, 2'000'000, nullptr}, {here.data() + 2'001'000, len - 2'001'000, nullptr}};
        Done get, flush, put_done;
        REQUIRE(ops->get_zcopy(ep, iov, 3, raddr, rkey, &get) == MPX_INPROGRESS);
        REQUIRE(ops->ep_flush(ep, &flush) == MPX_INPROGRESS);
        CHECK(get.calls == 0);
        CHECK(ops->event_arm(node.iface) == MPX_ERR_NO_RESOURCE);
        node.until([&] { return flush.calls > 0; });
        CHECK((get.calls == 1 && get.status == MPX_OK && flush.status == MPX_OK));
        CHECK(here == pattern(1, len));
        CHECK(ops->ep_flush(ep, &flush) == MPX_OK);

        Bytes out = pattern(2, 5000);
        mpx_iov source{out.data(), out.size(), nullptr};
        REQUIRE(ops->put_zcopy(ep, &source, 1, raddr + 1000, rkey, &put_done) == MPX_INPROGRESS);
        CHECK(put_done.calls == 0);
        REQUIRE(ops->ep_fence(ep) == MPX_OK);
        REQUIRE(node.try_short(ep, 1, 0, {}) == MPX_OK);  // no progress between: the fence alone orders it
        take(child.fd, 1);
        CHECK(put_done.calls == 0);
        node.until([&] { return put_done.calls == 1; });
        CHECK(put_done.status == MPX_OK);
        void *pointer = node.t->rkey_ptr(node.domain, rkey, raddr + 1000);
        CHECK((pointer != nullptr) == mapped);
        if (pointer) CHECK(memcmp(pointer, out.data(), out.size()) == 0);

        Done never;
        CHECK(ops->get_zcopy(ep, iov, 3, raddr + 1, rkey, &never) == MPX_ERR_INVALID);
        CHECK(ops->get_zcopy(ep, iov, 1, raddr - 1, rkey, &never) == MPX_ERR_INVALID);
        Done canceled;
        REQUIRE(ops->get_zcopy(ep, iov, 3, raddr, rkey, &canceled) == MPX_INPROGRESS);
        node.destroy(ep);
        CHECK((canceled.calls == 1 && canceled.status == MPX_ERR_CANCELED && never.calls == 0));
        node.t->rkey_release(node.domain, rkey);
        put(child.fd, {0});
        CHECK(child.join() == 0);
    }
}

TEST_CASE("a refused peer is drained and not heard; an ep made later hears it") {
    Child child([&](int fd) {
        Node node;
        mpx_ep *ep = node.connect(swap_address(fd, node));
        for (uint64_t i = 0; i < 200; ++i) node.send_bcopy(ep, 1, pattern(i, 20000));
        take(fd, 1);
        node.send_short(ep, 2, 42, {});
        take(fd, 1);
    });
    Node node;
    node.on_incoming = [](const void *, size_t) -> mpx_ep * { return nullptr; };
    const Address theirs = swap_address(child.fd, node);
    const uint64_t all = 200 * (8 + 20000);
    node.until([&] { return node.t->iface_bytes(node.iface, 1) == all; });
    CHECK((node.inbox.empty() && node.incoming == 1));
    node.connect(theirs);
    put(child.fd, {0});
    node.until([&] { return !node.inbox.empty(); });
    CHECK(node.inbox[0].hdr == 42);
    put(child.fd, {0});
    CHECK(child.join() == 0);
}

TEST_CASE("a state word that no sender writes: an error on the ep, no crash, no further message") {
    using namespace mpx::shm;
    for (const uint64_t bad : {Message::pack(kRingBytes, 1), Message::pack(0xffffffff, 1), Message::pack(4, 0x101), Message::pack(8, 77),
                               uint64_t{4}, ~uint64_t{0}}) {
        CAPTURE(bad);
        Node a, b;
        mpx_ep *to_b = a.connect(b.address()), *to_a = b.connect(a.address());
        REQUIRE(a.try_short(to_b, 1, 1, {}) == MPX_OK);
        b.until([&] { return b.inbox.size() == 1; });
        NativeAtomics::store(reinterpret_cast<uint64_t *>(region_data(static_cast<Ep *>(to_b)->region) + kCell), bad,
                             std::memory_order_release);
        b.until([&] { return !b.errors.empty(); }, 1);
        CHECK((b.errors.size() == 1 && b.errors[0] == std::pair(to_a, mpx_status(MPX_ERR_INVALID))));
        CHECK(b.inbox.size() == 1);
        CHECK(b.iface->ops->event_arm(b.iface) == MPX_OK);
        CHECK(b.try_short(to_a, 1, 1, {}) == MPX_ERR_INVALID);
    }
}

TEST_CASE("unreachable: another host, another process under that pid, a closed iface: with the reason") {
    Node a;
    Address gone;
    {
        Node b;
        gone = b.address();
        CHECK(a.t->iface_reachable(a.iface, gone.data(), gone.size()) == 1);
    }
    mpx_ep *ep = nullptr;
    CHECK(a.t->iface_reachable(a.iface, gone.data(), gone.size()) == 0);
    CHECK(a.t->ep_create(a.iface, gone.data(), gone.size(), &ep) == MPX_ERR_UNREACHABLE);
    mpx::shm::Address other;
    const Address mine = a.address();
    memcpy(&other, mine.data(), sizeof other);
    other.nonce[3] ^= 1;
    CHECK(a.t->iface_reachable(a.iface, &other, sizeof other) == 0);
    CHECK(std::string(a.t->why()).find("not the peer") != std::string::npos);
    memcpy(&other, mine.data(), sizeof other);
    other.boot[0] ^= 1;
    CHECK(a.t->iface_reachable(a.iface, &other, sizeof other) == 0);
    CHECK(std::string(a.t->why()).find("another host") != std::string::npos);
    CHECK(a.t->iface_reachable(a.iface, mine.data(), mine.size() - 1) == 0);
}

TEST_CASE("eps come and go more often than there are slots; no descriptor or mapping is left") {
    const size_t fds = entries("/proc/self/fd"), maps = mappings_of_segments();
    {
        Node a, b;
        b.on_incoming = [&](const void *, size_t) { return b.eps.empty() ? b.connect(a.address()) : b.eps[0]; };
        for (uint64_t i = 0; i < 2 * mpx::shm::kSlots + 5; ++i) {
            mpx_ep *ep = a.connect(b.address());
            REQUIRE(a.try_short(ep, 1, i, {}) == MPX_OK);
            a.destroy(ep);
            b.until([&] { return b.inbox.size() > i; });  // sent before the destroy: arrives
            CHECK(b.inbox[i].hdr == i);
        }
        for (int i = 0; i < 3; ++i) b.progress();
        CHECK(entries("/proc/self/fd") <= fds + 2 * 4 + 2 * 2);
        CHECK(mappings_of_segments() <= maps + 2 + 2 + 2);
    }
    CHECK(entries("/proc/self/fd") == fds);
    CHECK(mappings_of_segments() == maps);
}
