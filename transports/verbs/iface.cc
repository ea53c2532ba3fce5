// The iface: progress (completions, credits, broken eps), the descriptors that a sleeper waits on, and the timer. The timer stands for what
// no completion announces: a peer that has been quiet is asked by an RDMA READ of nothing, which its card answers while its program
// computes; a queue pair that owes a completion for long is dead, for a device that is deleted says nothing.
#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "verbs.hh"

namespace mpx::verbs {
namespace {

constexpr size_t kSlotsAtOnce = 64;
constexpr size_t kMaxSlotMemory = 16u << 20;  // of the pool of send slots

bool make_nonblocking(int fd) {
    const int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

}  // namespace

Iface::Iface(mpx_domain *d, const mpx_iface_params &p) : mpx_iface{&kOps}, domain(d), params(p) {
    for (uint32_t i = 0; i < kResults; ++i) free_atomics.push_back(i);
}

Iface::~Iface() {
    close_descriptors();
    domain->iface = nullptr;
}

void Iface::close_descriptors() {
    for (int *fd : {&epoll_fd, &timer_fd})
        if (*fd >= 0) ::close(std::exchange(*fd, -1));
}

bool Iface::open() {
    const Config &c = domain->config;
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    bool good = epoll_fd >= 0 && timer_fd >= 0;
    for (const int fd : {c.channel->fd, c.context->async_fd, timer_fd}) {
        epoll_event event{EPOLLIN, {}};
        event.data.fd = fd;
        good = good && (fd == timer_fd || make_nonblocking(fd)) && epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
    }
    if (!good) {
        set_why("verbs: " + c.device + ": descriptors to sleep on: " + describe_errno(errno));
        return false;
    }
    address.form = kAddressForm;
    address.lid = static_cast<uint16_t>(c.lid);
    address.link_layer = static_cast<uint8_t>(c.link_layer);
    address.mtu = static_cast<uint8_t>(c.mtu);
    std::memcpy(address.gid, c.gid, sizeof address.gid);
    if (getrandom(address.id, sizeof address.id, 0) != sizeof address.id) {
        set_why("verbs: no source of random bytes");
        return false;
    }
    if (c.atomics && !results.allocate(domain, kResults * sizeof(uint64_t))) return false;
    if (!more_slots()) return false;
    domain->iface = this;
    adopt(c.batch);
    return true;
}

// ---- send slots ----

bool Iface::more_slots() {
    const size_t bytes = kSlotsAtOnce * domain->config.slot_bytes;
    if ((send_memory.size() + 1) * bytes > std::max(kMaxSlotMemory, bytes)) return false;
    auto memory = std::make_unique<Pinned>();
    if (!memory->allocate(domain, bytes)) return false;
    for (size_t i = 0; i < kSlotsAtOnce; ++i) slots.push_back(memory->data() + i * domain->config.slot_bytes);
    send_memory.push_back(std::move(memory));
    return true;
}

uint8_t *Iface::take_slot() {
    if (slots.empty() && !more_slots()) return nullptr;
    uint8_t *slot = slots.back();
    slots.pop_back();
    return slot;
}

uint32_t Iface::lkey_of(const uint8_t *slot) const {
    const size_t bytes = kSlotsAtOnce * domain->config.slot_bytes;
    for (const auto &memory : send_memory)
        if (slot >= memory->data() && slot < memory->data() + bytes) return memory->lkey();
    return 0;
}

// ---- progress ----

void Iface::handle(const ibv_wc &wc) {
    const WorkId id{wc.wr_id};
    QueuePair &qp = *queue_pairs[id.queue_pair()];
    if (!qp.ep || id.use() != (qp.use & 0xffff)) return;  // of an earlier use
    Ep *ep = qp.ep;
    ep->last_tick = tick;
    if (wc.status != IBV_WC_SUCCESS) return break_ep(ep, domain->library.wc_status_str(wc.status));
    if (!id.is_receive()) {
        const uint64_t position = ep->retired + ((id.low() - ep->retired) & WorkId::kLow);
        return retire(ep, position);
    }
    const Immediate immediate{ntohl(wc.imm_data)};
    if (!immediate.has_number(ep->messages_received)) return break_ep(ep, "a message came twice, or out of turn");
    ++ep->messages_received;
    uint8_t *data = qp.receives.data() + id.low() * domain->config.slot_bytes;
    ep->heard = true;
    ep->credits += immediate.credits();
    bytes_received += wc.byte_len;
    if (!immediate.credit_only()) {
        const size_t header_len = std::min<size_t>(immediate.header_len(), wc.byte_len);
        const mpx_am_handler &handler = params.am[immediate.id()];
        handler.fn(handler.arg, ep->user, data, header_len, data + header_len, wc.byte_len - header_len, 0);
    }
    post_receive(qp, static_cast<uint32_t>(id.low()));
    ++ep->owed;
    if (ep->owed < domain->config.receive_depth / 2 || ep->crediting) return;
    ep->crediting = true;
    crediting.push_back(ep);
}

// All that has arrived was handled; now what is broken ends.
unsigned Iface::settle_breaking() {
    std::vector<Ep *> ended;
    ended.swap(breaking);
    for (Ep *ep : ended) {
        take_back(ep);
        end_work(ep, MPX_ERR_LINK_BROKEN);
        set_why(ep->reason);
        params.on_error(params.arg, ep, MPX_ERR_LINK_BROKEN);
    }
    return static_cast<unsigned>(ended.size());
}

unsigned Iface::progress() {
    unsigned events = 0;
    bool drained = true;
    if (!stash.empty()) {
        std::vector<ibv_wc> found;
        found.swap(stash);
        for (const ibv_wc &wc : found) handle(wc);
        events += static_cast<unsigned>(found.size());
    }
    for (ibv_cq *cq : completion_queues) {
        ibv_wc wc[kPollBatch];
        const int n = ibv_poll_cq(cq, kPollBatch, wc);
        for (int i = 0; i < n; ++i) handle(wc[i]);
        if (n > 0) events += static_cast<unsigned>(n);
        drained &= n < kPollBatch;
    }
    if (armed || (!events && ++idle_polls >= kSpinsPerTick)) look_at_descriptors();
    if (events) idle_polls = 0;
    if (!crediting.empty())
        std::erase_if(crediting, [&](Ep *ep) {
            const bool done = ep->state != Ep::kConnected || ep->owed < domain->config.receive_depth / 2 || return_credits(ep);
            ep->crediting = !done;
            return done;
        });
    for (size_t n = atomics_to_go_on.size(); n > 0; --n) {
        const uint32_t atomic = atomics_to_go_on.front();
        atomics_to_go_on.pop_front();
        go_on(atomic);
    }
    if (drained && !breaking.empty()) events += settle_breaking();
    return events;
}

// ---- sleeping ----

mpx_status Iface::arm() {
    if (!breaking.empty()) return MPX_ERR_NO_RESOURCE;
    // Messages are sent as solicited. Our own completions need to wake us only when somebody waits for what they bring.
    const bool all = operations || starved || !crediting.empty() || !atomics_to_go_on.empty();
    armed = true;
    for (ibv_cq *cq : completion_queues) {
        if (ibv_req_notify_cq(cq, !all) != 0) return MPX_ERR_NO_RESOURCE;
        ibv_wc wc[kPollBatch];  // what came before the notification was asked for
        const int n = ibv_poll_cq(cq, kPollBatch, wc);
        if (n > 0) stash.insert(stash.end(), wc, wc + n);
    }
    return stash.empty() ? MPX_OK : MPX_ERR_NO_RESOURCE;
}

void Iface::look_at_descriptors() {
    armed = false;
    idle_polls = 0;
    const Config &c = domain->config;
    epoll_event found[4];
    const int n = epoll_wait(epoll_fd, found, 4, 0);
    for (int i = 0; i < n; ++i) {
        const int fd = found[i].data.fd;
        if (fd == c.channel->fd) {
            ibv_cq *cq = nullptr;
            void *context = nullptr;
            while (domain->library.get_cq_event(c.channel, &cq, &context) == 0) domain->library.ack_cq_events(cq, 1);
        } else if (fd == c.context->async_fd) {
            read_async_events();
        } else {
            uint64_t times;
            if (read(timer_fd, &times, sizeof times) == sizeof times) on_tick();
        }
    }
}

void Iface::read_async_events() {
    ibv_async_event event;
    while (domain->library.get_async_event(domain->config.context, &event) == 0) {
        const bool of_device = event.event_type == IBV_EVENT_DEVICE_FATAL;
        const bool of_queue_pair = event.event_type == IBV_EVENT_QP_FATAL || event.event_type == IBV_EVENT_QP_REQ_ERR ||
                                   event.event_type == IBV_EVENT_QP_ACCESS_ERR || event.event_type == IBV_EVENT_PATH_MIG_ERR;
        for (Ep *ep : eps)
            if (ep->qp && (of_device || (of_queue_pair && event.element.qp == ep->qp->qp)))
                break_ep(ep, of_device ? "the device has failed" : "the queue pair has failed");
        domain->library.ack_async_event(&event);
    }
}

void Iface::set_timer(bool on) {
    itimerspec period{};
    if (on) period.it_interval.tv_nsec = period.it_value.tv_nsec = kTickMs * 1'000'000;
    timerfd_settime(timer_fd, 0, &period, nullptr);
}

void Iface::on_tick() {
    ++tick;
    for (Ep *ep : eps) {
        if (ep->state != Ep::kConnected) continue;
        const unsigned quiet = tick - ep->last_tick;
        if (ep->signaled > ep->retired && quiet >= kPatienceTicks)
            break_ep(ep, "no completion for " + std::to_string(quiet * kTickMs) + " ms");
        else if (ep->heard && !ep->asking && quiet >= kQuietTicks) ask(ep, nullptr);
    }
}

// ---- for the table ----

mpx_status iface_open(mpx_domain *domain, const mpx_iface_params *params, mpx_iface **out) {
    if (domain->iface) {
        set_why("verbs: a domain has one iface");
        return MPX_ERR_INVALID;
    }
    auto iface = std::make_unique<Iface>(domain, *params);
    if (!iface->open()) return MPX_ERR_NO_MEMORY;
    *out = iface.release();
    return MPX_OK;
}

void iface_close(mpx_iface *i) { delete static_cast<Iface *>(i); }

mpx_status iface_query(mpx_iface *i, mpx_iface_attr *attr) {
    const Config &c = static_cast<Iface *>(i)->domain->config;
    mpx_iface_attr a{};
    a.size = sizeof a;
    a.caps = MPX_CAP_AM_SHORT | MPX_CAP_AM_BCOPY | MPX_CAP_PUT_ZCOPY | MPX_CAP_GET_ZCOPY | MPX_CAP_CONNECT_EP | MPX_CAP_EVENT_FD |
             MPX_CAP_INTER_NODE | MPX_CAP_LINK_MAY_BREAK | MPX_CAP_NATIVE_PROGRESS | MPX_CAP_NEED_MEMH;
    if (c.atomics) a.caps |= MPX_CAP_ATOMIC64;
    a.iface_addr_len = sizeof(Address);
    a.ep_addr_len = sizeof(EpAddress);
    a.rkey_packed_len = sizeof(PackedKey);
    a.max_am_short = max_short(c);
    a.max_am_bcopy = c.slot_bytes;
    a.max_iov = std::min<size_t>(kMaxIov, c.max_sge);
    a.max_zcopy = c.max_message;
    // A message is copied once on each side; a get is not, and pays for its round trip and the registrations.
    constexpr double kCopyBandwidth = 10e9;
    a.latency_s = c.latency_ns * 1e-9;
    a.get_bandwidth_Bps = static_cast<double>(c.bandwidth);
    a.bandwidth_Bps = 1 / (1 / a.get_bandwidth_Bps + 2 / kCopyBandwidth);
    a.get_overhead_s = static_cast<double>(c.rendezvous_from) * 2 / kCopyBandwidth;
    a.overhead_s = a.latency_s / 4;
    a.reg_fixed_s = 17e-6;  // measured on soft-RoCE: pages that are touched
    a.reg_per_byte_s = 190e-9 / 4096;
    a.atomic_domain = c.atomics ? MPX_ATOMIC_DOMAIN_DEVICE : MPX_ATOMIC_DOMAIN_NONE;
    std::memcpy(attr, &a, std::min(attr->size, sizeof a));
    return MPX_OK;
}

mpx_status iface_address(mpx_iface *i, void *out) {
    std::memcpy(out, &static_cast<Iface *>(i)->address, sizeof(Address));
    return MPX_OK;
}

int iface_reachable(mpx_iface *i, const void *address, size_t len) {
    const Address &own = static_cast<Iface *>(i)->address;
    Address peer;
    if (len != sizeof peer) {
        set_why("verbs: an address of another form");
        return 0;
    }
    std::memcpy(&peer, address, sizeof peer);
    constexpr size_t kSubnet = 8;  // bytes of a GID that an InfiniBand subnet shares
    if (peer.form != kAddressForm || peer.mtu < IBV_MTU_256 || peer.mtu > IBV_MTU_4096) set_why("verbs: an address of another form");
    else if (!std::memcmp(peer.id, own.id, sizeof own.id)) set_why("verbs: this is the process itself");
    else if (peer.link_layer != own.link_layer) set_why("verbs: one card speaks InfiniBand, the other Ethernet");
    else if (own.link_layer == IBV_LINK_LAYER_INFINIBAND && std::memcmp(peer.gid, own.gid, kSubnet) != 0)
        set_why("verbs: the card is in another InfiniBand subnet");
    else return 1;
    return 0;
}

uint64_t iface_bytes(mpx_iface *i, int received) {
    const auto *iface = static_cast<Iface *>(i);
    return received ? iface->bytes_received : iface->bytes_sent;
}

void iface_forked(mpx_iface *i) {
    auto *iface = static_cast<Iface *>(i);
    const Config &c = iface->domain->config;
    iface->close_descriptors();
    for (const int fd : {c.channel->fd, c.context->async_fd, c.context->cmd_fd}) ::close(fd);
}

}  // namespace mpx::verbs
