// The engine's handlers of active messages, and the sessions' below them, against what eight peers of the job may say: sequences of
// messages of every kind, right and nearly right, while receives, sends, a collective, agreements and revocations are under way. What is
// received was sent by whom the status names; every request ends; a good peer's exchange is right afterwards.
#include <array>
#include <map>
#include <memory>
#include <utility>

#include "../engine/scripted_transport.h"
#include "engine/engine.h"
#include "input.h"

using namespace mpx;
using namespace mpx::fuzz;

namespace {

constexpr int kWorld = 10;  // 0: under test; 1: a good peer, an engine too; the rest is the fuzzer. More than 8: bit maps take two bytes
constexpr uint32_t kDefined = 12;
constexpr char kUntouched = '\x5a';
constexpr uint64_t kLongest = 256 * 1024;  // that a receive which sizes itself believes here

// Peers' memory cannot be read here: a get brings zeros from rank 1's real buffers only, else a pattern.
mpx_status get_zcopy(mpx_ep *ep, const mpx_iov *iov, size_t n, uint64_t remote, mpx_rkey_h key, mpx_completion *completion) {
    if (static_cast<script::Ep *>(ep)->to == 1 || static_cast<script::Node *>(ep->iface)->index == 1)
        return script::detail::get_zcopy(ep, iov, n, remote, key, completion);
    script::Fabric &f = *static_cast<script::Node *>(ep->iface)->fabric;
    if (const mpx_status st = script::detail::ask(ep, script::Verb::kGet, 0)) return st;
    if (f.get_outcome == MPX_OK) std::memset(iov->base, 'g', iov->len);
    if (!f.asynchronous) return f.get_outcome;
    return script::detail::hold(ep, {static_cast<script::Ep *>(ep), completion, nullptr, f.get_outcome, false});
}

constexpr mpx_iface_ops kOps = [] {
    mpx_iface_ops ops = script::detail::kOps;
    ops.get_zcopy = get_zcopy;
    return ops;
}();

mpx_status iface_open(mpx_domain *domain, const mpx_iface_params *params, mpx_iface **out) {
    const mpx_status st = script::detail::iface_open(domain, params, out);
    (*out)->ops = &kOps;
    return st;
}

mpx_status ep_fence_off(mpx_ep *) { return MPX_OK; }

constexpr mpx_transport kTable = [] {
    mpx_transport table = script::detail::kTable;
    table.iface_open = iface_open;
    table.ep_fence_off = ep_fence_off;
    return table;
}();

std::string address(int rank) { return raw(static_cast<uint64_t>(rank)); }

// Receives from rank 2, sends what it got to rank 3, and copies it.
std::unique_ptr<Schedule> schedule() {
    const int64_t words[] = {3, 64, 2,                          //
                             1, 2,  0, -1, 0, 1,  0, 32, 0, 0,  // RECV from 2 into the receive buffer
                             3, 0,  0, 1,  0, 2,  0, 32, 0, 1,  // COPY to temporary memory
                             0, 3,  0, 2,  0, -1, 0, 32, 1, 1,  // SEND to 3
                             0, 1};
    return Schedule::decode(words, sizeof words / sizeof words[0]);
}

struct Sent {  // eager, by the fuzzer
    int from;
    uint32_t context;
    int32_t tag;
    std::string payload;
};

struct Receive {
    Request *request;
    std::string buffer;
    bool checked = false;
};

class Game {
public:
    Game(const uint8_t *data, size_t size) : in_(data, size) {
        const uint8_t mode = in_.byte();
        sessions_ = mode & 1;
        sizes_itself_ = mode & 2;
        if (sessions_) fabric_.attr.caps |= MPX_CAP_LINK_MAY_BREAK;
        if (mode & 4) fabric_.attr.caps &= ~uint64_t{MPX_CAP_GET_ZCOPY};
        if (mode & 8) fabric_.attr.caps &= ~uint64_t{MPX_CAP_AM_ZCOPY};
        fabric_.asynchronous = mode & 16;
        Config config;
        config.size = kWorld;
        config.eager_window = 64 * 1024;
        for (config.rank = 0; config.rank < 2; config.rank++) {
            engines_[config.rank] = std::make_unique<Engine>(config, "the job's key");
            engines_[config.rank]->add_transport(&kTable, "", "{}");
        }
        fabric_.nodes.resize(kWorld, nullptr);
        std::array<int32_t, kWorld> everybody{};
        for (int rank = 0; rank < kWorld; rank++) everybody[rank] = rank;
        for (auto &engine : engines_) {
            for (int rank = 0; rank < kWorld; rank++) engine->set_peer(rank, 0, address(rank));
            for (uint32_t c = 0; c < kDefined; c++) engine->define_context(c, everybody.data(), kWorld);
        }
    }

    void play() {
        while (!in_.empty()) {
            step();
            look();
        }
        fabric_.answer = nullptr;
        fabric_.get_outcome = MPX_OK;
        progress(3);
        good_exchange();
        for (auto &engine : engines_) engine->close();
        look();
        for (const auto &r : receives_) check(r->request->done, "a receive has no end");
        for (const Request *r : others_) check(r->done, "a request has no end");
        for (const auto &r : receives_)
            if (r->request->allocate) std::free(r->request->buffer);
        check(fabric_.registrations == 0 && fabric_.keys == 0, "registrations or keys are left");
        engines_[0].reset();
        engines_[1].reset();
    }

private:
    Engine &engine() { return *engines_[0]; }
    int attacker() {  // mostly one of two, so that what belongs together meets
        const uint8_t b = in_.byte();
        return 2 + b % (b < 200 ? 2 : kWorld - 2);
    }
    uint32_t context() {
        const uint8_t b = in_.byte();
        const uint32_t any = b < 250 ? b : in_.number<uint32_t>() & kMaxContext;
        return any < 250 ? any % 6 : any;  // those of the good exchange are its own
    }
    int32_t tag() { return in_.byte() % 3; }
    uint64_t number() {
        switch (in_.byte() % 4) {
            case 0: return in_.number<uint64_t>();
            case 1: return in_.number<uint16_t>();
            default: return in_.byte() % 8;
        }
    }
    // Mostly one that was told, and then `from` becomes whom it was told.
    uint64_t request_id(int *from) {
        const uint8_t b = in_.byte();
        if (b % 8 == 0) return number();
        if (b % 8 == 1) return uint64_t{b / 8u} << 32 | in_.byte();
        if (ids_.empty()) return 0;
        const auto &[id, peer] = ids_[ids_.size() - 1 - b / 8 % ids_.size()];
        if (b % 8 != 2) *from = peer;
        return id;
    }
    uint64_t match() { return match_word(context(), tag()); }

    void progress(int rounds) {
        while (rounds-- > 0) {
            engine().progress();
            if (in_.empty()) engines_[1]->progress();
            // what was said to the fuzzer: it learns the numbers in it
            for (const script::Packet &p : fabric_.wire) {
                if (p.to < 2) continue;
                if ((p.id == kAmRts || p.id == kAmCts || p.id == kAmEagerSync) && p.data.size() >= 16) learn(p);
            }
            std::erase_if(fabric_.wire, [](const script::Packet &p) { return p.to >= 2; });
        }
    }
    void learn(const script::Packet &p) {  // in all three our request's number is the second
        uint64_t id;
        std::memcpy(&id, p.data.data() + 8, sizeof id);
        ids_.push_back({id, p.to});
    }

    void inject(int from, uint8_t id, std::string header, std::string data) {
        if (in_.byte() % 8 == 0) {
            if (!data.empty()) in_.spoil(data.data(), data.size());
            if (!header.empty() && in_.byte() % 2) in_.spoil(header.data(), header.size());
            if (in_.byte() % 4 == 0) data.resize(in_.below(static_cast<uint32_t>(data.size() + 20)));
            if (in_.byte() % 4 == 0) header.resize(in_.byte() % 20);
        }
        if (id == kAmRts && sizes_itself_ && data.size() >= sizeof(RtsHeader)) {
            RtsHeader rts;
            std::memcpy(&rts, data.data(), sizeof rts);
            rts.size %= kLongest;
            std::memcpy(data.data(), &rts, sizeof rts);
        }
        // what an eager message carries, as it is in the end
        if (id == kAmEager && (header.size() == 8 || (header.empty() && data.size() >= 8))) {
            uint64_t word;
            std::memcpy(&word, header.empty() ? data.data() : header.data(), 8);
            sent_.push_back({from, match_context(word), match_tag(word), header.empty() ? data.substr(8) : data});
        }
        if (id == kAmEagerSync && data.size() >= sizeof(SyncHeader)) {
            uint64_t word;
            std::memcpy(&word, data.data(), 8);
            sent_.push_back({from, match_context(word), match_tag(word), data.substr(sizeof(SyncHeader))});
        }
        if (id == kAmAgree || id == kAmRaised) agreed_ = true;
        fabric_.inject({from, 0, id, std::move(header), std::move(data)});
    }

    void step() {
        int from = attacker();
        switch (in_.byte() % 20) {
            case 0: inject(from, in_.byte() % MPX_AM_ID_MAX, in_.bytes(16), in_.bytes(64)); break;
            case 1: inject(from, kAmEager, raw(match()), in_.bytes(100)); break;
            case 2: inject(from, kAmEager, "", raw(match()) + in_.bytes(100)); break;
            case 3: inject(from, kAmEagerSync, "", raw(SyncHeader{match(), number()}) + in_.bytes(100)); break;
            case 4: {
                RtsHeader rts{match(), number(), number() * (in_.byte() % 2 ? 1 : 100), number(), in_.byte() % 2 ? 16u : 0u};
                inject(from, kAmRts, "", raw(rts) + std::string(rts.rkey_len, 'k'));
                break;
            }
            case 5: {
                const CtsHeader cts{request_id(&from), number(), number() * 64};
                inject(from, kAmCts, "", raw(cts));
                break;
            }
            case 6: {
                const DataHeader header{request_id(&from), in_.byte() % 2 ? 0 : number() * 8};
                inject(from, kAmData, "", raw(header) + in_.bytes(300));
                break;
            }
            case 7: {
                const uint64_t id = request_id(&from);
                inject(from, kAmFin, raw(id), "");
                break;
            }
            case 8: inject(from, kAmCredit, raw(number()), ""); break;
            case 9: inject(from, kAmGivenUp, raw(match()), raw(number())); break;
            case 10:
                if (in_.byte() % 4 == 0) inject(from, kAmBye, raw(uint64_t{0}), "");
                else if (in_.byte() % 4 == 0) inject(from, kAmRevoke, raw(uint64_t{context()}), "");
                break;
            case 11: {  // of an agreement
                const std::array<uint32_t, 6> header{in_.byte() % 7u, context() & ~1u, in_.byte() % 3u, in_.byte() % 2u, 1, 8};
                const std::string maps = in_.byte() % 3 ? std::string(4, static_cast<char>(in_.byte() % 4)) : in_.bytes(6);
                inject(from, kAmAgree, "", raw(header) + (in_.byte() % 3 ? maps : ""));
                break;
            }
            case 12: {
                inject(from, kAmResume, raw(in_.byte() % 4 ? ++epoch_ : number()), raw(in_.byte() % 4 ? uint64_t{0} : number()));
                break;
            }
            case 13:
                if (in_.byte() % 4 == 0) {
                    const RaisedHeader header{in_.byte() % 3u, in_.byte() % 5u, static_cast<uint32_t>(number() * 8)};
                    inject(from, kAmRaised, "", raw(header) + in_.bytes(60));
                } else if (in_.byte() % 2) inject(from, kAmAck, raw(number()), "");
                else if (in_.byte() % 2) inject(from, kAmAskAck, raw(number()), "");
                else inject(from, kAmActive, "", raw(ActiveHeader{in_.byte() % (kActiveKinds + 1), 0, match()}) + in_.bytes(100));
                break;
            case 14: {
                auto r = std::make_unique<Receive>();
                r->buffer.assign(in_.byte() % 2 ? in_.byte() : in_.below(3000), kUntouched);
                const bool own = sizes_itself_ && in_.byte() % 2;
                const int source = in_.byte() % 3 ? from : kAnySource;
                r->request = engine().irecv(context(), source, in_.byte() % 3 ? tag() : kAnyTag, r->buffer.data(), r->buffer.size(), own);
                receives_.push_back(std::move(r));
                break;
            }
            case 15: {
                static const std::string data(9000, 's');
                others_.push_back(engine().isend(context(), from, tag(), data.data(), in_.below(9000),
                                                 in_.byte() % 3 ? SendMode::kStandard : SendMode::kSync));
                break;
            }
            case 16:
                if (in_.byte() % 4 == 0) {
                    results_.push_back(std::make_unique<AgreementResult>());
                    others_.push_back(engine().agree(context() & ~1u & 7u, 3, 8, in_.byte() % 2, results_.back().get()));
                } else if (!receives_.empty()) {
                    Request *r = receives_[in_.byte() % receives_.size()]->request;
                    if (!r->done) engine().cancel(r);
                }
                break;
            case 17: {
                if (collectives_.size() > 4) break;
                collectives_.push_back(std::make_unique<std::array<char, 64>>());
                static const std::array<int32_t, 4> world{0, 1, 2, 3};
                Binding b;
                b.context = (context() & 7u) | 1u;
                b.tag = 100 + static_cast<int32_t>(collectives_.size());
                b.world = world.data();
                b.send_buffer = b.receive_buffer = collectives_.back()->data();
                others_.push_back(engine().start(*schedule_, b));
                if (in_.byte() % 2) inject(2, kAmEager, raw(match_word(b.context, b.tag)), in_.bytes(40));
                break;
            }
            case 18: {
                const uint8_t how = in_.byte() % 8;
                if (how < 2) fabric_.answer = [n = 0](const script::Call &) mutable { return n++ % 3 ? MPX_OK : MPX_ERR_NO_RESOURCE; };
                else if (how == 2) fabric_.get_outcome = MPX_ERR_UNSUPPORTED;
                else if (how == 3 && sessions_) fabric_.fail(0, from, MPX_ERR_LINK_BROKEN);
                else if (how == 4) fabric_.fail(0, from);
                else fabric_.answer = nullptr, fabric_.get_outcome = MPX_OK;
                break;
            }
            case 19: {  // a receive by fragments has begun
                auto r = std::make_unique<Receive>();
                r->buffer.assign(in_.byte(), kUntouched);
                r->request = engine().irecv(0, from, 50, r->buffer.data(), r->buffer.size(), false);
                receives_.push_back(std::move(r));
                const RtsHeader rts{match_word(0, 50), 1, in_.byte(), 0, 0};
                fabric_.inject({from, 0, kAmRts, "", raw(rts)});
                break;
            }
        }
        progress(1 + in_.byte() % 2);
    }

    // What has been received was sent.
    void look() {
        for (auto &r : receives_) {
            const Request *q = r->request;
            if (r->checked || !q->done) continue;
            r->checked = true;
            if (q->status.error != Error::kNone && q->status.error != Error::kTruncate) continue;
            if (q->status.canceled) continue;
            check(q->status.source >= 2 && q->status.source < kWorld, "received from nobody");
            check(q->status.bytes <= q->length && q->status.bytes <= q->status.full_size, "received more than fits");
            check(q->allocate || r->buffer.find_first_not_of(kUntouched, q->status.bytes) == std::string::npos, "wrote beyond the message");
            const char *got = static_cast<const char *>(q->buffer);
            if (q->remote_address || q->remote || q->moved) continue;  // by rendezvous: the fuzzer announced it
            bool found = q->status.full_size == 0;
            for (const Sent &s : sent_)
                found |= s.from == q->status.source && s.tag == q->status.tag && s.context == q->context &&
                         s.payload.size() == q->status.full_size && std::memcmp(s.payload.data(), got, q->status.bytes) == 0;
            check(found, "received what nobody sent");
        }
    }

    void good_exchange() {
        if (agreed_) return;  // its members' word is law: it may have called rank 1 dead
        uint32_t c = 8;
        while (c < kDefined && (engine().is_revoked(c) || engines_[1]->is_revoked(c))) c += 2;
        if (c >= kDefined) return;
        for (const size_t size : {size_t{5}, size_t{300}, size_t{3000}, size_t{9000}})
            for (int from = 0; from < 2; from++) {
                std::string data(size, static_cast<char>('A' + size % 26)), got(size, '\0');
                Request *r = engines_[1 - from]->irecv(c, from, 77, got.data(), size, false);
                Request *s = engines_[from]->isend(c, 1 - from, 77, data.data(), size, SendMode::kStandard);
                for (int i = 0; i < 3000 && !(r->done && s->done); i++) progress(1);
                check(r->done && s->done, "a good peer's exchange has no end");
                check(r->status.error == Error::kNone && s->status.error == Error::kNone, "a good peer's exchange fails");
                check(r->status.source == from && r->status.bytes == size && got == data, "a good peer's exchange is wrong");
            }
    }

    Input in_;
    script::Fabric fabric_;
    std::unique_ptr<Engine> engines_[2];
    std::unique_ptr<Schedule> schedule_ = schedule();
    std::vector<std::unique_ptr<Receive>> receives_;
    std::vector<Request *> others_;
    std::vector<std::unique_ptr<AgreementResult>> results_;
    std::vector<std::unique_ptr<std::array<char, 64>>> collectives_;
    std::vector<Sent> sent_;
    std::vector<std::pair<uint64_t, int>> ids_;
    uint64_t epoch_ = 0;
    bool sessions_ = false, sizes_itself_ = false, agreed_ = false;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size > 4096) return -1;
    Game(data, size).play();
    return 0;
}
