// Wireup (engine/wireup.h) against peers of the job that may say anything over their control lanes: offers, answers and refusals, right
// and nearly right, of links that are wanted, break, and carry messages. Every request ends; a good peer's exchange is right afterwards.
#include <memory>
#include <vector>

#include "../engine/scripted_transport.h"
#include "engine/engine.h"
#include "engine/wireup.h"
#include "input.h"

using namespace mpx;
using namespace mpx::fuzz;

namespace {

constexpr int kWorld = 4;
constexpr int kTested = 1, kGood = 3;  // 0 and 2 are the fuzzer: rank 1 follows the one and leads the other

std::string address(int rank) { return raw(static_cast<uint64_t>(rank)); }

class Game {
public:
    Game(const uint8_t *data, size_t size) : in_(data, size) {
        control_.attr.caps |= MPX_CAP_LINK_MAY_BREAK;
        fabric_.attr.caps = (fabric_.attr.caps & ~uint64_t{MPX_CAP_CONNECT_IFACE}) | MPX_CAP_CONNECT_EP | MPX_CAP_LINK_MAY_BREAK;
        fabric_.attr.ep_addr_len = sizeof(uint64_t);
        Config config;
        config.size = kWorld;
        config.eager_window = 64 * 1024;
        for (config.rank = 0; config.rank < kWorld; config.rank++) {
            if (config.rank != kTested && config.rank != kGood) {
                control_.nodes.push_back(nullptr);
                fabric_.nodes.push_back(nullptr);
                continue;
            }
            auto &engine = engines_[config.rank] = std::make_unique<Engine>(config, "the job's key");
            for (script::Fabric *f : {&control_, &fabric_}) {
                script::Fabric::current() = f;
                engine->add_transport(&script::detail::kTable, "", "{}");
            }
            const int32_t everybody[] = {0, 1, 2, 3};
            for (int rank = 0; rank < kWorld; rank++) {
                engine->set_peer(rank, rank == config.rank ? 0 : 1, address(rank));
                if (rank != config.rank) engine->set_control_lane(rank, 0, address(rank));
            }
            for (uint32_t c = 0; c < 2; c++) engine->define_context(c, everybody, kWorld);
        }
    }

    void play() {
        while (!in_.empty()) step();
        fabric_.answer = control_.answer = nullptr;
        good_exchange();
        for (const auto &engine : engines_)
            if (engine) engine->close();
        for (const Request *r : requests_) check(r->done, "a request has no end");
        check(fabric_.registrations == 0 && fabric_.keys == 0, "registrations or keys are left");
        for (auto &engine : engines_) engine.reset();
    }

private:
    Engine &engine() { return *engines_[kTested]; }

    void progress(int times) {
        for (; times > 0; times--)
            for (const auto &e : engines_)
                if (e) e->progress();
        // What was said to the fuzzer is not answered by itself.
        for (script::Fabric *f : {&control_, &fabric_})
            std::erase_if(f->wire, [](const script::Packet &p) { return p.to != kTested && p.to != kGood; });
    }

    uint64_t number() { return in_.byte() % 8 ? in_.byte() % 6 : in_.number<uint64_t>(); }

    void say(int from, uint8_t id, std::string header, std::string data) {
        control_.inject({from, kTested, id, std::move(header), std::move(data)});
    }

    void step() {
        const int from = in_.byte() % 2 ? 0 : 2;
        const script::Ep *ep = fabric_.nodes[kTested]->ep_to(from);
        switch (in_.byte() % 12) {
            case 0:
            case 1:
            case 2: {
                const WireupHeader header{in_.byte() % 6u, number()};
                std::string text = raw(header) + (in_.byte() % 2 ? raw(uint64_t{in_.byte()}) : "");
                if (in_.byte() % 8 == 0) in_.spoil(text.data(), text.size());
                say(from, kAmWireup, "", text);
                break;
            }
            case 3: say(from, in_.byte() % MPX_AM_ID_MAX, in_.bytes(16), in_.bytes(40)); break;
            case 4: say(from, kAmResume, raw(in_.byte() % 4 ? ++epoch_ : number()), raw(in_.byte() % 4 ? uint64_t{0} : number())); break;
            case 5: say(from, kAmLaneBye, raw(uint64_t{0}), ""); break;
            case 6: control_.fail(kTested, from, in_.byte() % 4 ? MPX_ERR_LINK_BROKEN : MPX_ERR_PEER_FAILED); break;
            case 7: fabric_.fail(kTested, from, MPX_ERR_LINK_BROKEN); break;
            case 8: {
                static const std::string data(9000, 's');
                requests_.push_back(engine().isend(0, from, 1, data.data(), in_.below(9000), SendMode::kStandard));
                break;
            }
            case 9:
                buffers_.push_back(std::make_unique<char[]>(64));
                requests_.push_back(engine().irecv(0, from, 1, buffers_.back().get(), 64, false));
                break;
            case 10:  // over the link itself
                if (!ep) break;
                if (in_.byte() % 2) fabric_.inject({from, kTested, kAmResume, raw(number()), raw(number()), ep->number});
                else
                    fabric_.inject(
                        {from, kTested, static_cast<uint8_t>(in_.byte() % MPX_AM_ID_MAX), in_.bytes(16), in_.bytes(60), ep->number});
                break;
            case 11: {
                const bool refuse = in_.byte() % 2;
                const auto some = [n = 0](const script::Call &) mutable { return n++ % 3 ? MPX_OK : MPX_ERR_NO_RESOURCE; };
                fabric_.answer = control_.answer = refuse ? std::function<mpx_status(const script::Call &)>(some) : nullptr;
                break;
            }
        }
        progress(1 + in_.byte() % 2);
    }

    void good_exchange() {
        for (const size_t size : {size_t{5}, size_t{300}, size_t{9000}})
            for (const int from : {kTested, kGood}) {
                const int to = kTested + kGood - from;
                std::string data(size, static_cast<char>('A' + size % 26)), got(size, '\0');
                Request *r = engines_[to]->irecv(0, from, 77, got.data(), size, false);
                Request *s = engines_[from]->isend(0, to, 77, data.data(), size, SendMode::kStandard);
                for (int i = 0; i < 5000 && !(r->done && s->done); i++) progress(1);
                check(r->done && s->done, "a good peer's exchange has no end");
                check(r->status.error == Error::kNone && s->status.error == Error::kNone && got == data, "a good peer's exchange is wrong");
            }
    }

    Input in_;
    script::Fabric control_, fabric_;
    std::unique_ptr<Engine> engines_[kWorld];
    std::vector<Request *> requests_;
    std::vector<std::unique_ptr<char[]>> buffers_;
    uint64_t epoch_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size > 4096) return -1;
    Game(data, size).play();
    return 0;
}
