// Two or more tcp ifaces in one process, progressed in turn: what the tcp tests share. Every wait has a limit.
#pragma once
#include <doctest/doctest.h>
#include <poll.h>
#include <pympx/transport.h>
#include <time.h>

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

extern "C" const mpx_transport *mpx_transport_table(void);

namespace world {

inline const mpx_transport &table() { return *mpx_transport_table(); }

inline double seconds() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

inline unsigned seed() {
    const char *given = getenv("PYMPX_TEST_SEED");
    static const unsigned value = given ? static_cast<unsigned>(strtoul(given, nullptr, 0)) : std::random_device{}();
    return value;
}

struct Done : mpx_completion {
    int calls = 0;
    mpx_status status = 77;
    Done() {
        done = [](mpx_completion *c, mpx_status st) {
            auto *self = static_cast<Done *>(c);
            ++self->calls;
            self->status = st;
        };
    }
    Done(const Done &) = delete;
};

struct Message {
    mpx_ep *from;
    uint8_t id;
    std::string hdr, data;
};

// One rank: domain, iface, what it received.
class Side {
public:
    explicit Side(const std::string &key = "the job's key", const char *config = "{\"addresses\": [\"127.0.0.1\"]}") {
        mpx_domain_params dp{sizeof dp, "", config, key.data(), key.size()};
        REQUIRE(table().domain_open(&dp, &domain) == MPX_OK);
        for (int i = 0; i < MPX_AM_ID_MAX; ++i) {
            slots_[i] = {this, static_cast<uint8_t>(i)};
            handlers_[i] = {receive, &slots_[i]};
        }
        mpx_iface_params ip{sizeof ip, handlers_, incoming, error, this, 0, nullptr};
        REQUIRE(table().iface_open(domain, &ip, &iface) == MPX_OK);
        address.resize(attr().iface_addr_len);
        REQUIRE(table().iface_address(iface, address.data()) == MPX_OK);
    }
    ~Side() { close(); }
    Side(const Side &) = delete;

    void close() {
        if (!iface) return;
        for (auto &[ep, unused] : eps) table().ep_destroy(ep);
        eps.clear();
        table().iface_close(iface);
        table().domain_close(domain);
        iface = nullptr;
    }

    mpx_iface_attr attr() const {
        mpx_iface_attr a{};
        a.size = sizeof a;
        REQUIRE(table().iface_query(iface, &a) == MPX_OK);
        return a;
    }

    mpx_ep *ep_to(const std::string &addr) {
        mpx_ep *ep = nullptr;
        REQUIRE(table().ep_create(iface, addr.data(), addr.size(), &ep) == MPX_OK);
        ep->user = ep;
        eps[ep] = addr;
        return ep;
    }
    void destroy(mpx_ep *ep) {
        table().ep_destroy(ep);
        eps.erase(ep);
    }
    mpx_ep *ep_of(const Side &peer) const {
        for (auto &[ep, addr] : eps)
            if (addr == peer.address) return ep;
        return nullptr;
    }
    unsigned progress() { return iface->ops->progress(iface); }
    int fd() const { return iface->ops->event_fd(iface); }

    mpx_status send(mpx_ep *ep, uint8_t id, uint64_t hdr, const std::string &text) {
        return iface->ops->am_short(ep, id, hdr, text.data(), text.size());
    }

    mpx_domain *domain = nullptr;
    mpx_iface *iface = nullptr;
    std::string address;
    std::map<mpx_ep *, std::string> eps;
    std::vector<Message> inbox;
    std::vector<std::pair<mpx_ep *, mpx_status>> errors;
    std::string last_why;
    int accepted = 0;
    bool welcome = true;
    std::function<void(const Message &)> on_message;  // instead of the inbox

private:
    struct Slot {
        Side *side;
        uint8_t id;
    };

    static mpx_status receive(void *arg, void *user, const void *hdr, size_t hdr_len, void *data, size_t len, unsigned) {
        auto *slot = static_cast<Slot *>(arg);
        CHECK(reinterpret_cast<uintptr_t>(hdr) % 8 == 0);
        if (hdr_len % 8 == 0) CHECK(reinterpret_cast<uintptr_t>(data) % 8 == 0);
        Message m{static_cast<mpx_ep *>(user), slot->id, {static_cast<const char *>(hdr), hdr_len}, {static_cast<char *>(data), len}};
        if (slot->side->on_message) slot->side->on_message(m);
        else slot->side->inbox.push_back(std::move(m));
        return MPX_OK;
    }
    static mpx_ep *incoming(void *arg, const void *addr, size_t len) {
        auto *side = static_cast<Side *>(arg);
        ++side->accepted;
        return side->welcome ? side->ep_to({static_cast<const char *>(addr), len}) : nullptr;
    }
    static void error(void *arg, mpx_ep *ep, mpx_status st) {
        auto *side = static_cast<Side *>(arg);
        side->errors.emplace_back(ep, st);
        side->last_why = table().why();
    }

    Slot slots_[MPX_AM_ID_MAX];
    mpx_am_handler handlers_[MPX_AM_ID_MAX];
};

// Progresses all sides until the condition holds; false after `limit` seconds.
template <class Cond> bool until(std::initializer_list<Side *> sides, Cond cond, double limit = 20) {
    const double end = seconds() + limit;
    while (!cond()) {
        for (Side *s : sides) s->progress();
        if (seconds() > end) return false;
    }
    return true;
}

// Repeats an operation over NO_RESOURCE; returns its first other status, or NO_RESOURCE after 20 s.
template <class Op> mpx_status persist(std::initializer_list<Side *> sides, Op op) {
    mpx_status st = MPX_ERR_NO_RESOURCE;
    until(sides, [&] { return (st = op()) != MPX_ERR_NO_RESOURCE; });
    return st;
}

// `a` has an ep to `b` that is up, and `b` one to `a`.
inline void connect(Side &a, Side &b) {
    mpx_ep *ep = a.ep_to(b.address);
    const size_t before = b.inbox.size();
    REQUIRE(persist({&a, &b}, [&] { return a.send(ep, 31, 0, "hello"); }) == MPX_OK);
    REQUIRE(until({&a, &b}, [&] { return b.inbox.size() > before; }));
    b.inbox.pop_back();
}

inline std::string pattern(size_t len, unsigned salt) {
    std::string text(len, '\0');
    uint64_t x = salt * 0x9E3779B97F4A7C15u + 1;
    for (size_t i = 0; i < len; ++i) {
        if (i % 8 == 0) x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        text[i] = static_cast<char>(x >> (i % 8 * 8));
    }
    return text;
}

}  // namespace world
