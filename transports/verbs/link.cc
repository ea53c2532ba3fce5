// Eps come and go: lending a queue pair, connecting it, ending what it was doing. A queue pair goes RESET -> INIT (receives posted, its
// number may be told) -> RTR -> RTS when the peer's address is known, and back to RESET when the link breaks or ends, ready for the next.
#include <sys/random.h>

#include <algorithm>
#include <cstring>

#include "verbs.hh"

namespace mpx::verbs {
namespace {

constexpr int kInit = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
constexpr int kReadyToReceive =
    IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
constexpr int kReadyToSend = IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC;
constexpr uint8_t kRnrTimer = 12;  // 0.64 ms; credits keep it from mattering
constexpr uint8_t kRnrRetries = 6;

mpx_status failed(const Iface &iface, const char *step, int error) {
    set_why("verbs: " + iface.domain->config.device + ": " + step + ": " + describe_errno(error));
    return error == ENOMEM ? MPX_ERR_NO_MEMORY : MPX_ERR_LINK_BROKEN;
}

}  // namespace

// NO_RESOURCE: the control path is asked to make more.
mpx_status Iface::lend(Ep *ep) {
    if (ep->qp) return MPX_OK;
    if (spare.empty()) {
        if (!no_supply.empty()) {
            set_why(std::exchange(no_supply, {}));
            return MPX_ERR_NO_MEMORY;
        }
        if (!asked_supply && params.need_control) params.need_control(params.arg);
        asked_supply = true;
        return MPX_ERR_NO_RESOURCE;
    }
    QueuePair *qp = spare.back();
    const Config &c = domain->config;
    if (!qp->receives && !qp->receives.allocate(domain, c.receive_depth * c.slot_bytes)) return MPX_ERR_NO_MEMORY;
    spare.pop_back();
    ++qp->use;
    qp->ep = ep;
    ep->qp = qp;
    ibv_qp_attr a{};
    a.qp_state = IBV_QPS_INIT;
    a.pkey_index = static_cast<uint16_t>(c.pkey_index);
    a.port_num = static_cast<uint8_t>(c.port);
    a.qp_access_flags =
        IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE | (c.atomics ? unsigned{IBV_ACCESS_REMOTE_ATOMIC} : 0u);
    if (const int error = domain->library.modify_qp(qp->qp, &a, kInit)) {
        take_back(ep);
        return failed(*this, "a queue pair cannot be made ready (is the port up?)", error);
    }
    for (uint32_t slot = 0; slot < c.receive_depth; ++slot) post_receive(*qp, slot);
    if (getrandom(&ep->psn, sizeof ep->psn, GRND_NONBLOCK) != sizeof ep->psn) ep->psn = qp->use * 7919u;
    ep->psn &= 0xffffff;
    ep->state = Ep::kReady;
    return MPX_OK;
}

mpx_status Iface::connect(Ep *ep, const EpAddress &to) {
    if (const mpx_status st = lend(ep); st != MPX_OK) return st;
    const Config &c = domain->config;
    ibv_qp_attr a{};
    a.qp_state = IBV_QPS_RTR;
    a.path_mtu = static_cast<ibv_mtu>(std::min<unsigned>(c.mtu, ep->peer.mtu));
    a.dest_qp_num = to.number;
    a.rq_psn = to.psn;
    a.max_dest_rd_atomic = static_cast<uint8_t>(c.max_reads);
    a.min_rnr_timer = kRnrTimer;
    a.ah_attr.port_num = static_cast<uint8_t>(c.port);
    a.ah_attr.dlid = ep->peer.lid;
    if (c.link_layer == IBV_LINK_LAYER_ETHERNET) {
        a.ah_attr.is_global = 1;
        std::memcpy(a.ah_attr.grh.dgid.raw, ep->peer.gid, sizeof ep->peer.gid);
        a.ah_attr.grh.sgid_index = static_cast<uint8_t>(c.gid_index);
        a.ah_attr.grh.hop_limit = 64;
    }
    if (const int error = domain->library.modify_qp(ep->qp->qp, &a, kReadyToReceive))
        return failed(*this, "the peer's card cannot be reached", error);
    a = {};
    a.qp_state = IBV_QPS_RTS;
    a.timeout = static_cast<uint8_t>(c.timeout);
    a.retry_cnt = static_cast<uint8_t>(c.retries);
    a.rnr_retry = kRnrRetries;
    a.sq_psn = ep->psn;
    a.max_rd_atomic = static_cast<uint8_t>(c.max_reads);
    if (const int error = domain->library.modify_qp(ep->qp->qp, &a, kReadyToSend))
        return failed(*this, "a queue pair cannot be made ready to send", error);
    ep->state = Ep::kConnected;
    ep->credits = to.receives;
    ep->last_tick = tick;
    ep->timed = true;
    if (connected++ == 0) set_timer(true);
    return MPX_OK;
}

// After this no byte that is late lands anywhere, and completions that are late belong to a use that is over.
void Iface::take_back(Ep *ep) {
    QueuePair *qp = std::exchange(ep->qp, nullptr);
    if (!qp) return;
    if (std::exchange(ep->timed, false) && --connected == 0) set_timer(false);
    ibv_qp_attr a{};
    a.qp_state = IBV_QPS_RESET;
    // Twice: soft-RoCE first notes where its send queue begins, then empties it, and would send what lies between in the next use.
    const int error = domain->library.modify_qp(qp->qp, &a, IBV_QP_STATE) || domain->library.modify_qp(qp->qp, &a, IBV_QP_STATE);
    qp->ep = nullptr;
    ++qp->use;
    if (!error) spare.push_back(qp);  // else the device is gone
    ep->state = Ep::kBroken;
}

// Only marks: what has arrived is delivered first.
void Iface::break_ep(Ep *ep, std::string reason) {
    if (ep->state != Ep::kConnected && ep->state != Ep::kReady) return;
    ep->state = Ep::kBreaking;
    ep->reason = "verbs: " + domain->config.device + ": " + std::move(reason);
    breaking.push_back(ep);
}

void Iface::end_work(Ep *ep, mpx_status st) {
    while (ep->retired < ep->posted) {
        const Work w = ep->at(ep->retired++);
        if (w.slot) slots.push_back(w.slot);
        if (w.kind == Work::kAtomic) {
            const Atomic &a = atomics[w.atomic];
            free_atomics.push_back(w.atomic);
            --operations;
            a.completion->done(a.completion, st == MPX_ERR_CANCELED ? st : MPX_ERR_UNKNOWN_OUTCOME);
        } else if (w.completion) {
            --operations;
            w.completion->done(w.completion, st);
        }
    }
    for (auto it = atomics_to_go_on.begin(); it != atomics_to_go_on.end();) {
        if (atomics[*it].ep != ep) {
            ++it;
            continue;
        }
        mpx_completion *completion = atomics[*it].completion;
        free_atomics.push_back(*it);
        it = atomics_to_go_on.erase(it);
        --operations;
        completion->done(completion, st == MPX_ERR_CANCELED ? st : MPX_ERR_UNKNOWN_OUTCOME);
    }
    ep->reads = 0;
    while (!ep->flushes.empty()) {
        mpx_completion *completion = ep->flushes.front().completion;
        ep->flushes.pop_front();
        --operations;
        completion->done(completion, st);
    }
}

// ---- what the control path hands over ----

void Iface::adopt(const Batch &batch) {
    completion_queues.push_back(batch.completion_queue);
    for (ibv_qp *qp : batch.queue_pairs) {
        auto owned = std::make_unique<QueuePair>();
        owned->qp = qp;
        owned->index = static_cast<uint32_t>(queue_pairs.size());
        spare.push_back(owned.get());
        queue_pairs.push_back(std::move(owned));
    }
}

mpx_status Iface::supply(const char *json) {
    Batch batch;
    std::string reason;
    asked_supply = false;
    if (!parse_supply(json, batch, reason)) {
        set_why(std::move(reason));
        return MPX_ERR_INVALID;
    }
    if (batch.completion_queue) adopt(batch);
    else no_supply = std::move(reason);
    return MPX_OK;
}

mpx_status domain_supply(mpx_domain *domain, const char *json) { return domain->iface ? domain->iface->supply(json) : MPX_ERR_INVALID; }

// ---- eps, for the table ----

mpx_status ep_create(mpx_iface *i, const void *address, size_t len, mpx_ep **out) {
    auto *iface = static_cast<Iface *>(i);
    if (!iface_reachable(iface, address, len)) return MPX_ERR_UNREACHABLE;
    auto ep = std::make_unique<Ep>();
    ep->iface = iface;
    ep->owner = iface;
    std::memcpy(&ep->peer, address, sizeof ep->peer);
    ep->work.resize(iface->domain->config.send_depth);
    iface->eps.push_back(ep.get());
    *out = ep.release();
    return MPX_OK;
}

mpx_status ep_address(mpx_ep *e, void *out) {
    auto *ep = static_cast<Ep *>(e);
    if (const mpx_status st = ep->owner->lend(ep); st != MPX_OK) return st;
    const EpAddress address{ep->qp->qp->qp_num, ep->psn, ep->owner->domain->config.receive_depth};
    std::memcpy(out, &address, sizeof address);
    return MPX_OK;
}

mpx_status ep_connect(mpx_ep *e, const void *address, size_t len) {
    auto *ep = static_cast<Ep *>(e);
    EpAddress to;
    if (len != sizeof to || ep->state > Ep::kReady) return MPX_ERR_INVALID;
    std::memcpy(&to, address, sizeof to);
    if (to.number > 0xffffff || to.psn > 0xffffff || to.receives < 2 || to.receives > kMaxDepth) {
        set_why("verbs: the peer's queue pair has an impossible address");
        return MPX_ERR_INVALID;
    }
    return ep->owner->connect(ep, to);
}

mpx_status ep_fence_off(mpx_ep *e) {
    auto *ep = static_cast<Ep *>(e);
    std::erase(ep->owner->breaking, ep);
    ep->owner->take_back(ep);
    ep->state = Ep::kBroken;
    return MPX_OK;
}

// Sessions destroy a broken ep and create another, which borrows a queue pair again: nothing would be gained.
mpx_status ep_repair(mpx_ep *, const void *, size_t) { return MPX_ERR_UNSUPPORTED; }

void ep_destroy(mpx_ep *e) {
    auto *ep = static_cast<Ep *>(e);
    Iface *iface = ep->owner;
    ep_fence_off(ep);
    iface->end_work(ep, MPX_ERR_CANCELED);
    std::erase(iface->eps, ep);
    std::erase(iface->crediting, ep);
    delete ep;
}

}  // namespace mpx::verbs
