// Several engines in one process: over the scripted transport (ScriptedWorld, one thread) or over the real ones, loaded from their
// libraries as the plugins load them (RealWorld: self to itself, the named transport to the others).
#pragma once
#include <dlfcn.h>
#include <doctest/doctest.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "scripted_transport.h"

namespace mpx::test {

constexpr uint32_t kContexts = 4;  // defined in each engine: 0 .. kContexts - 1

inline uint64_t seed() {
    static const uint64_t value = [] {
        const char *given = std::getenv("PYMPX_TEST_SEED");
        const uint64_t s = given ? std::strtoull(given, nullptr, 0) : std::random_device{}();
        std::printf("PYMPX_TEST_SEED=%llu\n", static_cast<unsigned long long>(s));
        return s;
    }();
    return value;
}

inline double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

inline std::string content(size_t n, uint64_t key) {
    std::mt19937_64 g(key);
    std::string s(n, '\0');
    for (char &c : s) c = static_cast<char>(g());
    return s;
}

class World {
public:
    Engine &operator[](int rank) { return *engines_[rank]; }
    int size() const { return static_cast<int>(engines_.size()); }
    void progress() {
        for (auto &e : engines_) e->progress();
    }
    // Drives all engines, on this thread. Stops the test when the request has no end.
    void finish(const Request *r) {
        const double limit = now() + 20;
        while (!r->done.load(std::memory_order_acquire)) {
            progress();
            if (now() > limit) throw std::runtime_error("a request does not end");
        }
    }
    void pump(int rounds = 50) {
        while (rounds-- > 0) progress();
    }
    void close() {
        for (auto &e : engines_) e->close();
    }

protected:
    void connect(int rank, int transport_to_self, int transport_to_others, const std::vector<std::string> &addresses,
                 const std::string &own) {
        std::vector<int32_t> everybody(engines_.size());
        for (int peer = 0; peer < size(); peer++) {
            everybody[peer] = peer;
            if (peer == rank) engines_[rank]->set_peer(peer, transport_to_self, own);
            else engines_[rank]->set_peer(peer, transport_to_others, addresses[peer]);
        }
        for (uint32_t c = 0; c < kContexts; c++) engines_[rank]->define_context(c, everybody.data(), size());
    }
    void make(int n, Config config) {
        config.size = n;
        for (config.rank = 0; config.rank < n; config.rank++) engines_.push_back(std::make_unique<Engine>(config, "the job's key"));
    }
    std::vector<std::unique_ptr<Engine>> engines_;
};

class ScriptedWorld : public World {
public:
    script::Fabric fabric;

    explicit ScriptedWorld(int n, const std::function<void(mpx_iface_attr &)> &change = nullptr, Config config = {}) {
        if (change) change(fabric.attr);
        make(n, config);
        std::vector<std::string> addresses;
        for (auto &e : engines_) {
            e->add_transport(&script::detail::kTable, "", "{}");
            addresses.push_back(e->address(0));
        }
        for (int rank = 0; rank < n; rank++) connect(rank, 0, 0, addresses, addresses[rank]);
    }
    ~ScriptedWorld() { engines_.clear(); }
    // Closes everything; nothing may stay registered.
    void check_closed() {
        close();
        CHECK(fabric.registrations == 0);
        CHECK(fabric.keys == 0);
    }
};

// `fabric` connects eps pairwise, over `control`; a rank's messages to itself go over `own`.
class PairwiseWorld : public World {
public:
    script::Fabric control, fabric, own;

    explicit PairwiseWorld(int n, const Config &config = {}) {
        control.attr.caps |= MPX_CAP_LINK_MAY_BREAK;
        fabric.attr.caps = (fabric.attr.caps & ~uint64_t{MPX_CAP_CONNECT_IFACE}) | MPX_CAP_CONNECT_EP | MPX_CAP_LINK_MAY_BREAK;
        fabric.attr.ep_addr_len = sizeof(uint64_t);
        make(n, config);
        std::vector<std::string> lanes, addresses;
        for (auto &e : engines_) {
            script::Fabric::current() = &control;
            e->add_transport(&script::detail::kTable, "", "{}");
            script::Fabric::current() = &fabric;
            e->add_transport(&script::detail::kTable, "", "{}");
            script::Fabric::current() = &own;
            e->add_transport(&script::detail::kTable, "", "{}");
            lanes.push_back(e->address(0));
            addresses.push_back(e->address(1));
        }
        for (int rank = 0; rank < n; rank++) {
            connect(rank, 2, 1, addresses, engines_[rank]->address(2));
            for (int peer = 0; peer < n; peer++)
                if (peer != rank) engines_[rank]->set_control_lane(peer, 0, lanes[peer]);
        }
    }
    ~PairwiseWorld() { engines_.clear(); }
};

class RealWorld : public World {
public:
    RealWorld(int n, const std::string &transport, Config config = {}) {
        const mpx_transport *self = load("self"), *other = load(transport);
        make(n, config);
        std::vector<std::string> own, addresses;
        for (auto &e : engines_) {
            e->add_transport(self, "", "{}");
            e->add_transport(other, "", transport == "tcp" ? R"({"addresses": ["127.0.0.1"]})" : "{}");
            own.push_back(e->address(0));
            addresses.push_back(e->address(1));
        }
        for (int rank = 0; rank < n; rank++) connect(rank, 0, 1, addresses, own[rank]);
    }

private:
    static const mpx_transport *load(const std::string &name) {
        const char *path = std::getenv(("PYMPX_TEST_MODULE_" + name).c_str());
        if (!path) throw std::runtime_error("PYMPX_TEST_MODULE_" + name + " is not set; run by meson test");
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!library) throw std::runtime_error(dlerror());
        return reinterpret_cast<const mpx_transport *(*)()>(dlsym(library, MPX_TABLE_SYMBOL))();
    }
};

// A completion counter: installed as on_done, it sees each completion of a request.
struct Ends {
    int times = 0;
    Error error = Error::kNone;
    explicit Ends(Request *r) {
        REQUIRE(!r->done);
        r->owner = this;
        r->on_done = [](Request *done) {
            auto *self = static_cast<Ends *>(done->owner);
            self->times++;
            self->error = done->status.error;
        };
    }
    Ends(const Ends &) = delete;
    Ends &operator=(const Ends &) = delete;
};

}  // namespace mpx::test
