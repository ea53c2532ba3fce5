// Set-up, failure of peers, and the end. See engine.h.
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string_view>
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
    for (Sleeper *sleeper : {&waiter_, &server_}) {
        sleeper->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (sleeper->fd < 0) throw std::runtime_error(std::string("eventfd: ") + std::strerror(errno));
    }
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
    handlers_[kAmAgree].fn = unless_muted<on_agree>;
    handlers_[kAmRevoke].fn = unless_muted<on_revoke>;
    handlers_[kAmRaised].fn = unless_muted<on_raised>;
    handlers_[kAmActive].fn = unless_muted<on_active>;
    handlers_[kAmWireup].fn = unless_muted<on_wireup>;
    handlers_[kAmLaneBye].fn = unless_muted<on_lane_bye>;
    install_own_handlers();
}

Engine::~Engine() {
    close();
    for (const int fd : {waiter_.fd, server_.fd, watch_fd_, watch_bell_})
        if (fd >= 0) ::close(fd);
}

int Engine::add_transport(const mpx_transport *table, const std::string &device, const std::string &config_json) {
    Locked locked(*this);
    const auto fail = [&](const char *step) {
        const std::string why = table->why();
        throw std::runtime_error(std::string(table->name) + ": " + step + (why.empty() ? " failed" : ": " + why));
    };
    auto t = std::make_unique<Transport>();
    t->engine = this;
    t->table = table;
    t->name = table->name;
    const mpx_domain_params domain{sizeof domain, device.c_str(), config_json.c_str(), job_key_.data(), job_key_.size()};
    if (table->domain_open(&domain, &t->domain) != MPX_OK) fail("domain");
    const mpx_iface_params iface{sizeof iface, t->handlers, on_incoming, on_link_error, t.get(), 0, on_need_control};
    if (table->iface_open(t->domain, &iface, &t->base) != MPX_OK) {
        table->domain_close(t->domain);
        fail("iface");
    }
    t->iface = t->base;
    t->attr.size = sizeof t->attr;
    try {
        if (table->iface_query(t->base, &t->attr) != MPX_OK) fail("query");
        if (!(t->attr.caps & (MPX_CAP_CONNECT_IFACE | MPX_CAP_LINK_MAY_BREAK)))
            throw std::runtime_error(t->name + ": connects eps pairwise without LINK_MAY_BREAK");
        t->protocols = choose_protocols(t->attr);
    } catch (...) {
        close_transport(*t);
        throw;
    }
    const mpx_am_handler *handlers = handlers_;
    if (t->attr.caps & MPX_CAP_LINK_MAY_BREAK) {
        t->sessions = std::make_unique<Sessions>(table, t->base, handlers_, on_error, this, config_.link_timeout);
        t->iface = t->sessions.get();
        handlers = t->sessions->handlers();
        if (!(t->attr.caps & MPX_CAP_CONNECT_IFACE)) t->sessions->connect_over({say_over_lane, lane_lives, this}, t->attr.ep_addr_len);
    }
    std::copy(handlers, handlers + MPX_AM_ID_MAX, t->handlers);  // nothing arrives before the first progress
    t->ops = t->iface->ops;
    if (!(t->attr.caps & MPX_CAP_NATIVE_PROGRESS)) needs_python_ = true;
    t->registrations = std::make_unique<MrCache>(table, t->domain, t->attr.reg_fixed_s, config_.regcache);
    transports_.push_back(std::move(t));
    return static_cast<int>(transports_.size()) - 1;
}

void Engine::close_transport(Transport &t) {
    t.registrations.reset();
    t.table->iface_close(t.base);
    t.table->domain_close(t.domain);
    t.base = t.iface = nullptr;
}

std::string Engine::address(int transport) const {
    std::lock_guard lock(mutex_);
    const Transport &t = *transports_.at(transport);
    std::string out(t.attr.iface_addr_len, '\0');
    if (t.table->iface_address(t.base, out.data()) != MPX_OK) throw std::runtime_error(t.name + ": " + t.table->why());
    return out;
}

std::string Engine::unreachable_reason(int transport, const std::string &address) {
    Locked locked(*this);
    const Transport &t = *transports_.at(transport);
    if (address.size() == t.attr.iface_addr_len && t.table->iface_reachable(t.base, address.data(), address.size())) return "";
    const std::string why = t.table->why();
    return why.empty() ? "not reachable" : why;
}

void Engine::set_peer(int32_t rank, int transport, const std::string &address) {
    Locked locked(*this);
    Peer &p = peers_.at(rank);
    p.transport = transports_.at(transport).get();
    p.transport->carries = true;
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

LinkCounters Engine::link_counters(int32_t rank) const {
    std::lock_guard lock(mutex_);
    const Peer &p = peers_.at(rank);
    return p.ep && p.transport->sessions ? p.transport->sessions->counters(p.ep) : LinkCounters{};
}

CacheReport Engine::cache_report(int transport) const {
    std::lock_guard lock(mutex_);
    const Transport &t = *transports_.at(transport);
    return t.registrations ? t.registrations->report() : CacheReport{};
}

std::string Engine::failure_reason(int32_t rank) const {
    std::lock_guard lock(mutex_);
    return peers_.at(rank).failure_reason;
}

uint64_t Engine::medium_bytes(int transport, bool received) const {
    std::lock_guard lock(mutex_);
    const Transport &t = *transports_.at(transport);
    return t.base ? t.table->iface_bytes(t.base, received) : 0;
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
    MatchQueue *queue = contexts_.find(context);
    if (!queue) return;
    while (Message *m = queue->find_unexpected(kAnySource, kAnyTag)) {
        queue->remove_unexpected(m);
        discard(m);
    }
    // A posted receive may still complete (MPI 4.1, section 7.4.3); the queue then stays until the end.
    if (queue->idle()) contexts_.remove(context);
}

// --- peers

void Engine::open_ep(Peer &p) {
    if (p.state == Peer::State::kIdle) connect(p);
}

void Engine::connect(Peer &p) {
    Transport &t = *p.transport;
    const mpx_status st = t.sessions ? t.sessions->create(p.address.data(), p.address.size(), config_.rank < p.rank, &p.ep)
                                     : t.table->ep_create(t.base, p.address.data(), p.address.size(), &p.ep);
    if (st != MPX_OK) {
        p.ep = nullptr;
        p.failure = st;
        p.failure_pending = p.doomed;
        fail_peer(p);
        return;
    }
    p.ep->user = &p;
    if (!p.doomed) p.state = Peer::State::kOpen;
}

Peer *Engine::peer_of_address(const Transport &t, const void *address, size_t length) {
    for (Peer &p : peers_)
        if ((p.transport == &t && p.address.size() == length && !std::memcmp(p.address.data(), address, length)) ||
            (p.control.transport == &t && p.control.address.size() == length && !std::memcmp(p.control.address.data(), address, length)))
            return &p;
    return nullptr;
}

mpx_ep *Engine::on_incoming(void *arg, const void *address, size_t length) {
    Transport &t = *static_cast<Transport *>(arg);
    Engine &e = *t.engine;
    Peer *p = e.peer_of_address(t, address, length);
    if (!p) return nullptr;
    if (p->control.transport == &t) return e.open_lane(*p) ? t.sessions->incoming(p->control.ep) : nullptr;
    e.open_to_tell(*p);
    return t.sessions && p->ep ? t.sessions->incoming(p->ep) : p->ep;
}

void Engine::on_link_error(void *arg, mpx_ep *ep, mpx_status status) {
    Transport &t = *static_cast<Transport *>(arg);
    if (t.sessions) t.sessions->link_error(ep, status);
    else on_error(t.engine, ep, status);
}

void Engine::on_error(void *arg, mpx_ep *ep, mpx_status status) {
    auto *p = static_cast<Peer *>(ep->user);
    if (!p) return;
    if (ep == p->control.ep) return static_cast<Engine *>(arg)->lane_lost(*p, status);
    if (p->failure_pending) return;
    const Transport &t = *p->transport;
    const std::string_view why = t.table->why();
    if (!p->doomed && t.sessions) p->failure_reason = p->state == Peer::State::kLeft ? "" : t.sessions->reason(ep);
    else if (!p->doomed && why.starts_with("cannot reach ")) p->failure_reason = why;
    static_cast<Engine *>(arg)->on_loss(*p, status);
}

void Engine::on_need_control(void *arg) {
    Transport &t = *static_cast<Transport *>(arg);
    t.needs_control = t.engine->control_needed_ = true;
    t.engine->wake_sleepers();
}

bool Engine::take_control_need(int *transport) {
    Locked locked(*this);
    for (size_t i = 0; control_needed_ && i < transports_.size(); i++)
        if (std::exchange(transports_[i]->needs_control, false)) {
            *transport = static_cast<int>(i);
            return true;
        }
    return control_needed_ = false;
}

void Engine::supply(int transport, const std::string &json) {
    Locked locked(*this);
    const Transport &t = *transports_.at(transport);
    if (t.base && t.table->domain_supply(t.domain, json.c_str()) != MPX_OK) throw std::runtime_error(t.name + ": " + t.table->why());
}

// Only marks; handle_failures acts, outside the transports.
void Engine::on_loss(Peer &p, mpx_status status) {
    if (p.failure_pending) return;
    p.failure_pending = true;
    news_++;
    tell(kEverybody);
    if (p.doomed) return;
    p.failure = status;
    failures_.push_back(&p);
}

bool Engine::is_gone(int32_t rank) const {
    const Peer &p = peers_[rank];
    return rank != config_.rank && (p.failure_pending || p.doomed || p.state == Peer::State::kFailed || p.state == Peer::State::kLeft);
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
    if (p.state != Peer::State::kLeft) {
        p.state = Peer::State::kFailed;
        failed_in_order_.push_back(p.rank);
    }
    List<PendingOp> to_tell;
    while (PendingOp *op = p.pending.pop_front()) {
        if (op->is_control && p.doomed && static_cast<ControlOp *>(op)->id == kAmRaised) to_tell.push_back(op);
        else if (op->is_control) delete static_cast<ControlOp *>(op);
        else end_unfinished(static_cast<Request *>(op), error);
    }
    while (PendingOp *op = to_tell.pop_front()) p.pending.push_back(op);
    while (Request *r = p.streams.pop_front()) finish_send(r, error);
    for (Request *r = p.inflight.front(), *next; r; r = next) {
        next = decltype(p.inflight)::next(r);
        if (r->stage == Stage::kTransport) continue;  // the transport delivers its completion
        p.inflight.remove(r);
        end_unfinished(r, error);
    }
    if (p.doomed && !p.inflight.empty()) cut(p);
    fail_receives_from(p);
    step_agreements();
}

// What a transport holds for a peer that may live on ends only with the link.
void Engine::cut(Peer &p) {
    p.failure_pending = true;
    while (PendingOp *op = p.pending.pop_front()) delete static_cast<ControlOp *>(op);
    if (mpx_ep *ep = std::exchange(p.ep, nullptr))
        p.transport->sessions ? p.transport->sessions->destroy(ep) : p.transport->table->ep_destroy(ep);
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
    for (uint32_t i = contexts_.skip(0); i <= kMaxContext;
         i = contexts_.skip(i + 1)) {  // what ends here may start something in a new context
        MatchQueue *queue = contexts_.find(i);
        if (!queue) continue;
        const auto fail = [&](Request *r) {
            queue->withdraw(r);
            r->status.source = p.rank;
            complete(r, Error::kProcFailed);
        };
        while (Request *r = queue->first_posted(p.rank)) fail(r);
        if (is_collective(i) && some_member_failed(*queue))
            for (const int32_t rank : std::vector<int32_t>(queue->members))
                while (Request *r = queue->first_posted(rank)) fail(r);
        if (!wildcard_is_hopeless(*queue)) continue;
        while (Request *r = queue->first_posted(kAnySource)) fail(r);
    }
    tell(kEverybody);  // of those who probe
}

bool Engine::some_member_failed(const MatchQueue &queue) const {
    return std::any_of(queue.members.begin(), queue.members.end(),
                       [this](int32_t rank) { return peers_[rank].state == Peer::State::kFailed; });
}

// A wildcard receive cannot be trusted once a member died, unless the program knows that; members that left in order only matter when
// nobody else is there.
bool Engine::wildcard_is_hopeless(const MatchQueue &queue) const {
    if (closed_) return true;
    if (std::any_of(queue.members.begin(), queue.members.end(), [&](int32_t rank) { return failed_unknown_to_the_program(queue, rank); }))
        return true;
    return queue.members.size() > 1 &&
           std::all_of(queue.members.begin(), queue.members.end(), [this](int32_t rank) { return rank == config_.rank || is_gone(rank); });
}

bool Engine::failed_unknown_to_the_program(const MatchQueue &queue, int32_t rank) const {
    return peers_[rank].state == Peer::State::kFailed && !std::count(queue.acked.begin(), queue.acked.end(), rank);
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

std::vector<int32_t> Engine::failed_ranks() const {
    std::lock_guard lock(mutex_);
    return failed_in_order_;
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
    e.news_++;
    e.fail_sends_to(p);
    e.fail_receives_from(p);
    e.step_agreements();
    return MPX_OK;
}

bool Engine::farewell_over() {
    bool over = true;
    for (Peer &p : peers_) {
        if (p.rank == config_.rank || p.state == Peer::State::kFailed) continue;
        const bool at_rest = !p.ep || (p.pending.empty() && p.state == Peer::State::kLeft &&
                                       (!p.transport->sessions || p.transport->sessions->settled(p.ep)));
        over &= at_rest && lane_at_rest(p);
    }
    return over;
}

void Engine::forked() {
    for (const auto &t : transports_) {
        t->table->iface_forked(t->base);
        t->registrations->forked();
    }
    for (int *fd : {&waiter_.fd, &server_.fd, &watch_fd_, &watch_bell_})
        if (*fd >= 0) ::close(std::exchange(*fd, -1));
}

void Engine::close() {
    stop_service();
    Locked locked(*this);
    if (closed_) return;
    closed_ = true;
    // All have left, so that nothing new starts while what is under way ends.
    for (Peer &p : peers_) p.state = Peer::State::kLeft;
    for (Peer &p : peers_)
        if (mpx_ep *ep = std::exchange(p.ep, nullptr))
            p.transport->sessions ? p.transport->sessions->destroy(ep) : p.transport->table->ep_destroy(ep);
    for (Peer &p : peers_)
        if (mpx_ep *ep = std::exchange(p.control.ep, nullptr)) p.control.transport->sessions->destroy(ep);
    for (Peer &p : peers_) fail_peer(p);
    end_agreements();
    for (auto it = transports_.rbegin(); it != transports_.rend(); ++it) close_transport(**it);
    contexts_.clear();
    wake_sleepers();
    if (watched_) ring_watcher();
}

}  // namespace mpx
