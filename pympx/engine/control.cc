// Set-up, failure of peers, and the end. See engine.h.
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "engine.h"

namespace mpx {
namespace {

template <mpx_am_fn Handler>
mpx_status unless_muted(void *arg, void *ep_user, const void *header, size_t header_length, void *data, size_t length, unsigned flags) {
    if (static_cast<Peer *>(ep_user)->muted) return MPX_OK;
    return Handler(arg, ep_user, header, header_length, data, length, flags);
}

}  // namespace

Engine::Engine(const Config &config, std::string job_key) : config_(config), job_key_(std::move(job_key)), peers_(config.size) {
    wake_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (wake_fd_ < 0) throw std::runtime_error(std::string("eventfd: ") + std::strerror(errno));
    for (int32_t rank = 0; rank < config.size; rank++) {
        peers_[rank].rank = rank;
        peers_[rank].credit = config.eager_window;
    }
    for (auto &handler : handlers_) handler = {on_unknown, this};
    handlers_[kAmEager].fn = unless_muted<on_eager>;
    handlers_[kAmEagerSync].fn = unless_muted<on_eager_sync>;
    handlers_[kAmRts].fn = unless_muted<on_rts>;
    handlers_[kAmCts].fn = unless_muted<on_cts>;
    handlers_[kAmData].fn = unless_muted<on_data>;
    handlers_[kAmFin].fn = unless_muted<on_fin>;
    handlers_[kAmCredit].fn = unless_muted<on_credit>;
    handlers_[kAmBye].fn = unless_muted<on_bye>;
    handlers_[kAmGivenUp].fn = unless_muted<on_given_up>;
}

Engine::~Engine() {
    close();
    ::close(wake_fd_);
}

int Engine::add_transport(const mpx_transport *table, const std::string &device, const std::string &config_json) {
    Locked locked(*this);
    const auto fail = [&](const char *step) {
        const std::string why = table->why();
        throw std::runtime_error(std::string(table->name) + ": " + step + (why.empty() ? " failed" : ": " + why));
    };
    auto t = std::make_unique<Transport>();
    t->table = table;
    t->name = table->name;
    const mpx_domain_params domain{sizeof domain, device.c_str(), config_json.c_str(), job_key_.data(), job_key_.size()};
    if (table->domain_open(&domain, &t->domain) != MPX_OK) fail("domain");
    const mpx_iface_params iface{sizeof iface, handlers_, on_incoming, on_error, this, 0};
    if (table->iface_open(t->domain, &iface, &t->iface) != MPX_OK) {
        table->domain_close(t->domain);
        fail("iface");
    }
    t->ops = t->iface->ops;
    t->attr.size = sizeof t->attr;
    try {
        if (table->iface_query(t->iface, &t->attr) != MPX_OK) fail("query");
        t->protocols = choose_protocols(t->attr);
    } catch (...) {
        table->iface_close(t->iface);
        table->domain_close(t->domain);
        throw;
    }
    transports_.push_back(std::move(t));
    return static_cast<int>(transports_.size()) - 1;
}

std::string Engine::address(int transport) const {
    std::lock_guard lock(mutex_);
    const Transport &t = *transports_.at(transport);
    std::string out(t.attr.iface_addr_len, '\0');
    if (t.table->iface_address(t.iface, out.data()) != MPX_OK) throw std::runtime_error(t.name + ": " + t.table->why());
    return out;
}

std::string Engine::unreachable_reason(int transport, const std::string &address) {
    Locked locked(*this);
    const Transport &t = *transports_.at(transport);
    if (address.size() == t.attr.iface_addr_len && t.table->iface_reachable(t.iface, address.data(), address.size())) return "";
    const std::string why = t.table->why();
    return why.empty() ? "not reachable" : why;
}

void Engine::set_peer(int32_t rank, int transport, const std::string &address) {
    Locked locked(*this);
    Peer &p = peers_.at(rank);
    p.transport = transports_.at(transport).get();
    p.address = address;
    p.state = Peer::State::kIdle;
}

Counters Engine::transport_counters(int transport) const {
    std::lock_guard lock(mutex_);
    return transports_.at(transport)->counters;
}

Counters Engine::peer_counters(int32_t rank) const {
    std::lock_guard lock(mutex_);
    return peers_.at(rank).counters;
}

uint64_t Engine::medium_bytes(int transport, bool received) const {
    std::lock_guard lock(mutex_);
    const Transport &t = *transports_.at(transport);
    return t.iface ? t.table->iface_bytes(t.iface, received) : 0;
}

int32_t Engine::peer_state(int32_t rank) const {
    std::lock_guard lock(mutex_);
    return static_cast<int32_t>(peers_.at(rank).state);
}

uint64_t Engine::unexpected_bytes() const {
    std::lock_guard lock(mutex_);
    return unexpected_bytes_;
}

int32_t Engine::peer_transport(int32_t rank) const {
    std::lock_guard lock(mutex_);
    const Transport *wanted = peers_.at(rank).transport;
    for (size_t i = 0; i < transports_.size(); i++)
        if (transports_[i].get() == wanted) return static_cast<int32_t>(i);
    return -1;
}

void Engine::define_context(uint32_t context, const int32_t *world, int32_t size) {
    Locked locked(*this);
    queue_of(context).members.assign(world, world + size);
}

void Engine::free_context(uint32_t context) {
    Locked locked(*this);
    if (context >= contexts_.size() || !contexts_[context]) return;
    while (Message *m = contexts_[context]->find_unexpected(kAnySource, kAnyTag)) {
        contexts_[context]->remove_unexpected(m);
        discard(m);
    }
    // A posted receive may still complete (MPI 4.1, section 7.4.3); the queue then stays until the end.
    if (contexts_[context]->idle()) contexts_[context].reset();
}

// --- peers

void Engine::open_ep(Peer &p) {
    if (p.state != Peer::State::kIdle) return;
    Transport &t = *p.transport;
    const mpx_status st = t.table->ep_create(t.iface, p.address.data(), p.address.size(), &p.ep);
    if (st != MPX_OK) {
        p.ep = nullptr;
        p.failure = st;
        fail_peer(p);
        return;
    }
    p.ep->user = &p;
    p.state = Peer::State::kOpen;
}

Peer *Engine::peer_of_address(const Transport &t, const void *address, size_t length) {
    for (Peer &p : peers_)
        if (p.transport == &t && p.address.size() == length && !std::memcmp(p.address.data(), address, length)) return &p;
    return nullptr;
}

mpx_ep *Engine::on_incoming(void *arg, const void *address, size_t length) {
    Engine &e = *static_cast<Engine *>(arg);
    for (const auto &t : e.transports_) {
        Peer *p = e.peer_of_address(*t, address, length);
        if (!p) continue;
        e.open_ep(*p);
        return p->ep;
    }
    return nullptr;
}

void Engine::on_error(void *arg, mpx_ep *ep, mpx_status status) {
    Engine &e = *static_cast<Engine *>(arg);
    auto *p = static_cast<Peer *>(ep->user);
    if (!p || p->failure_pending) return;
    p->failure_pending = true;
    p->failure = status;
    e.failures_.push_back(p);
}

void Engine::handle_failures() {
    std::vector<Peer *> failed;
    failed.swap(failures_);
    for (Peer *p : failed) fail_peer(*p);
}

void Engine::end_unfinished(Request *r, Error error) {
    if (r->kind == Kind::kSend) return finish_send(r, error);
    free_keys(r);
    complete(r, error);
}

void Engine::fail_peer(Peer &p) {
    if (p.state == Peer::State::kFailed) return;
    const Error error = p.failure == MPX_ERR_UNREACHABLE ? Error::kUnreachable : Error::kProcFailed;
    // The end of a link after BYE is no failure; what still hangs on it can never end, though.
    if (p.state != Peer::State::kLeft) p.state = Peer::State::kFailed;
    while (PendingOp *op = p.pending.pop_front()) {
        if (op->is_control) delete static_cast<ControlOp *>(op);
        else end_unfinished(static_cast<Request *>(op), error);
    }
    while (Request *r = p.streams.pop_front()) finish_send(r, error);
    for (Request *r = p.inflight.front(), *next; r; r = next) {
        next = decltype(p.inflight)::next(r);
        if (r->stage == Stage::kTransport) continue;  // the transport delivers its completion
        p.inflight.remove(r);
        end_unfinished(r, error);
    }
    fail_receives_from(p);
}

// p said BYE: it receives nothing more. What it has begun to fetch it fetches before it goes.
void Engine::fail_sends_to(Peer &p) {
    for (PendingOp *op = p.pending.front(), *next; op; op = next) {
        next = decltype(p.pending)::next(op);
        if (op->is_control || static_cast<Request *>(op)->kind != Kind::kSend) continue;
        p.pending.remove(op);
        finish_send(static_cast<Request *>(op), Error::kProcFailed);
    }
    for (Request *r = p.inflight.front(), *next; r; r = next) {
        next = decltype(p.inflight)::next(r);
        if (r->kind != Kind::kSend || r->stage != Stage::kAwaitsPeer) continue;
        p.inflight.remove(r);
        finish_send(r, Error::kProcFailed);
    }
}

void Engine::fail_receives_from(Peer &p) {
    for (size_t i = 0; i < contexts_.size(); i++) {  // by index: what ends here may start something in a new context
        MatchQueue *queue = contexts_[i].get();
        if (!queue) continue;
        const auto fail = [&](Request *r) {
            queue->withdraw(r);
            r->status.source = p.rank;
            complete(r, Error::kProcFailed);
        };
        while (Request *r = queue->first_posted(p.rank)) fail(r);
        if (is_collective(static_cast<uint32_t>(i)) && some_member_failed(*queue))
            for (const int32_t rank : std::vector<int32_t>(queue->members))
                while (Request *r = queue->first_posted(rank)) fail(r);
        if (!wildcard_is_hopeless(*queue)) continue;
        while (Request *r = queue->first_posted(kAnySource)) fail(r);
    }
    if (waiting_) completed_.notify_all();  // of those who probe
}

bool Engine::some_member_failed(const MatchQueue &queue) const {
    return std::any_of(queue.members.begin(), queue.members.end(),
                       [this](int32_t rank) { return peers_[rank].state == Peer::State::kFailed; });
}

// A wildcard receive cannot be trusted once a member died; members that left in order only matter when nobody else is there.
bool Engine::wildcard_is_hopeless(const MatchQueue &queue) const {
    if (closed_) return true;
    if (some_member_failed(queue)) return true;
    return queue.members.size() > 1 && std::all_of(queue.members.begin(), queue.members.end(), [this](int32_t rank) {
               return rank == config_.rank || peers_[rank].state == Peer::State::kLeft;
           });
}

// Whom to name for a receive that is hopeless.
int32_t Engine::culprit(const MatchQueue &queue, int32_t source) const {
    const auto gone = [this](int32_t rank, Peer::State state) { return rank != config_.rank && peers_[rank].state == state; };
    if (source != kAnySource && (gone(source, Peer::State::kFailed) || gone(source, Peer::State::kLeft))) return source;
    for (const Peer::State state : {Peer::State::kFailed, Peer::State::kLeft})
        for (const int32_t rank : queue.members)
            if (gone(rank, state)) return rank;
    return source;
}

int32_t Engine::failed_ranks(int32_t *out, int32_t capacity) const {
    std::lock_guard lock(mutex_);
    int32_t n = 0;
    for (const Peer &p : peers_)
        if (p.state == Peer::State::kFailed && n < capacity) out[n++] = p.rank;
    return n;
}

// --- the end

void Engine::begin_farewell() {
    Locked locked(*this);
    for (Peer &p : peers_)
        if (p.ep && p.rank != config_.rank && p.state != Peer::State::kFailed) send_control(p, kAmBye, 0);
}

mpx_status Engine::on_bye(void *arg, void *ep_user, const void *, size_t, void *, size_t, unsigned) {
    Engine &e = *static_cast<Engine *>(arg);
    Peer &p = *static_cast<Peer *>(ep_user);
    if (p.state != Peer::State::kFailed) p.state = Peer::State::kLeft;
    e.fail_sends_to(p);
    e.fail_receives_from(p);
    return MPX_OK;
}

bool Engine::farewell_over() const {
    return std::all_of(peers_.begin(), peers_.end(), [this](const Peer &p) {
        if (!p.ep || p.rank == config_.rank || p.state == Peer::State::kFailed) return true;
        return p.pending.empty() && p.state == Peer::State::kLeft;
    });
}

void Engine::close() {
    Locked locked(*this);
    if (closed_) return;
    closed_ = true;
    // All have left, so that nothing new starts while what is under way ends.
    for (Peer &p : peers_) p.state = Peer::State::kLeft;
    for (Peer &p : peers_)
        if (mpx_ep *ep = std::exchange(p.ep, nullptr)) p.transport->table->ep_destroy(ep);
    for (Peer &p : peers_) fail_peer(p);
    for (auto it = transports_.rbegin(); it != transports_.rend(); ++it) {
        (*it)->table->iface_close((*it)->iface);
        (*it)->table->domain_close((*it)->domain);
        (*it)->iface = nullptr;
    }
    contexts_.clear();
    if (sleeping_) wake_sleeper();
}

}  // namespace mpx
