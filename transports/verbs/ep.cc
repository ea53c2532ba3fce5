// Operations on an ep, and what becomes of them. Small messages are inline in their work request; larger ones are packed into a slot of
// registered memory; gets, puts and atomics go between the memory that the caller has registered. Every message carries the credits that
// its sender owes the peer: receives that it has posted anew. A peer without credits hears NO_RESOURCE, so no message ever finds no
// receive.
#include <arpa/inet.h>

#include <algorithm>
#include <cstring>

#include "verbs.hh"

namespace mpx::verbs {
namespace {

Ep *self(mpx_ep *ep) { return static_cast<Ep *>(ep); }

[[gnu::noinline]] mpx_status not_connected(const Ep *ep) { return ep->state == Ep::kBroken ? MPX_ERR_LINK_BROKEN : MPX_ERR_NO_RESOURCE; }

bool within(const PackedKey &key, uint64_t at, uint64_t len, unsigned access) {
    return (key.access & access) == access && at >= key.base && at - key.base <= key.len && len <= key.len - (at - key.base);
}

// The scatter list of a get or put; false when a piece is not registered for it.
bool gather(const mpx_iov *iov, size_t cnt, unsigned access, ibv_sge *out, int *pieces, uint64_t *total) {
    *pieces = 0;
    *total = 0;
    for (size_t i = 0; i < cnt; ++i) {
        if (!iov[i].len) continue;
        const mpx_memh *m = iov[i].memh;
        const auto at = reinterpret_cast<uintptr_t>(iov[i].base);
        if (!m || (m->access & access) != access) return false;
        const uintptr_t base = reinterpret_cast<uintptr_t>(m->addr);
        if (at < base || at - base > m->len || iov[i].len > m->len - (at - base)) return false;
        *total += iov[i].len;
        if (iov[i].len > UINT32_MAX || *total > UINT32_MAX) return false;
        out[(*pieces)++] = {at, static_cast<uint32_t>(iov[i].len), m->mr->lkey};
    }
    return true;
}

uint64_t next_value(const Atomic &a) {
    switch (a.operation) {
        case MPX_ATOMIC_AND: return a.expected & a.operand;
        case MPX_ATOMIC_OR: return a.expected | a.operand;
        case MPX_ATOMIC_XOR: return a.expected ^ a.operand;
        default: return a.operand;
    }
}

// What is asked for by anybody but Iface itself must leave room for credits and questions.
constexpr uint64_t kRoomKept = 2;
bool room_for_users(const Ep *ep) { return ep->posted - ep->retired + kRoomKept < ep->work.size(); }

mpx_status starve(Iface *iface) {
    iface->starved = true;
    return MPX_ERR_NO_RESOURCE;
}

}  // namespace

size_t max_short(const Config &c) {
    constexpr size_t kWithoutInline = 56;
    return c.inline_bytes > sizeof(uint64_t) + kWithoutInline ? c.inline_bytes - sizeof(uint64_t) : kWithoutInline;
}

// ---- posting ----

void Iface::post_receive(QueuePair &qp, uint32_t slot) {
    const uint64_t bytes = domain->config.slot_bytes;
    ibv_sge sge{reinterpret_cast<uintptr_t>(qp.receives.data() + slot * bytes), static_cast<uint32_t>(bytes), qp.receives.lkey()};
    ibv_recv_wr wr{};
    wr.wr_id = WorkId::receive(qp.index, qp.use, slot).value;
    wr.sg_list = &sge;
    wr.num_sge = 1;
    ibv_recv_wr *bad = nullptr;
    if (ibv_post_recv(qp.qp, &wr, &bad) != 0) break_ep(qp.ep, "a receive was refused");
}

mpx_status Iface::post(Ep *ep, ibv_send_wr &wr, const Work &work) {
    const bool signaled = work.kind != Work::kMessage || work.slot || ep->posted + 1 - ep->signaled >= ep->work.size() / 4;
    if (signaled) wr.send_flags |= IBV_SEND_SIGNALED;
    wr.wr_id = WorkId::send(ep->qp->index, ep->qp->use, ep->posted).value;
    ibv_send_wr *bad = nullptr;
    if (ibv_post_send(ep->qp->qp, &wr, &bad) != 0) {
        break_ep(ep, "a work request was refused");
        return MPX_ERR_NO_RESOURCE;
    }
    if (ep->signaled <= ep->retired) ep->last_tick = tick;  // nothing was due
    ep->at(ep->posted++) = work;
    if (signaled) ep->signaled = ep->posted;
    if (work.completion) ++operations;
    return MPX_OK;
}

mpx_status Iface::post_message(Ep *ep, ibv_sge *sge, int pieces, uint8_t *slot, Immediate immediate) {
    ibv_send_wr wr{};
    wr.sg_list = sge;
    wr.num_sge = pieces;
    wr.opcode = IBV_WR_SEND_WITH_IMM;
    wr.send_flags = slot || !domain->config.inline_bytes ? IBV_SEND_SOLICITED : IBV_SEND_SOLICITED | IBV_SEND_INLINE;
    wr.imm_data = htonl(immediate.value);
    uint64_t bytes = 0;
    for (int i = 0; i < pieces; ++i) bytes += sge[i].length;
    if (post(ep, wr, {.kind = Work::kMessage, .slot = slot}) != MPX_OK) return MPX_ERR_NO_RESOURCE;
    bytes_sent += bytes;
    ++ep->messages_sent;
    --ep->credits;
    ep->owed -= immediate.credits();
    return MPX_OK;
}

bool Iface::return_credits(Ep *ep) {
    if (!ep->credits || !ep->room()) return false;
    Immediate immediate = Immediate::of(0, false, ep->owed, ep->messages_sent);
    immediate.value |= Immediate::kCreditOnly;
    return post_message(ep, nullptr, 0, nullptr, immediate) == MPX_OK;
}

// An RDMA READ of nothing: the peer's card answers.
bool Iface::ask(Ep *ep, mpx_completion *completion) {
    if (!ep->room()) return false;
    ibv_send_wr wr{};
    wr.opcode = IBV_WR_RDMA_READ;
    if (post(ep, wr, {.kind = Work::kAsk, .completion = completion}) != MPX_OK) return false;
    ep->asking = true;
    return true;
}

mpx_status Iface::post_atomic(Ep *ep, uint32_t index) {
    const Atomic &a = atomics[index];
    ibv_sge sge{reinterpret_cast<uintptr_t>(results.data() + index * sizeof(uint64_t)), sizeof(uint64_t), results.lkey()};
    ibv_send_wr wr{};
    wr.sg_list = &sge;
    wr.num_sge = 1;
    wr.wr.atomic.remote_addr = a.remote;
    wr.wr.atomic.rkey = a.rkey;
    if (a.operation == MPX_ATOMIC_ADD) {
        wr.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD;
        wr.wr.atomic.compare_add = a.operand;
    } else {
        wr.opcode = IBV_WR_ATOMIC_CMP_AND_SWP;
        wr.wr.atomic.compare_add = a.expected;
        wr.wr.atomic.swap = next_value(a);
    }
    return post(ep, wr, {.kind = Work::kAtomic, .atomic = index});
}

// ---- completions ----

// Work ends in order: what came before a completion has succeeded, too.
void Iface::retire(Ep *ep, uint64_t position) {
    starved = false;
    while (ep->retired <= position && ep->retired < ep->posted) {
        const Work w = ep->at(ep->retired++);
        finish(ep, w);
    }
    while (!ep->flushes.empty() && ep->flushes.front().position <= ep->retired) {
        mpx_completion *completion = ep->flushes.front().completion;
        ep->flushes.pop_front();
        --operations;
        completion->done(completion, MPX_OK);
    }
}

void Iface::finish(Ep *ep, const Work &w) {
    if (w.slot) slots.push_back(w.slot);
    if (w.kind == Work::kGet || w.kind == Work::kAtomic) --ep->reads;
    if (w.kind == Work::kAtomic) return go_on(w.atomic);
    if (w.kind == Work::kAsk) ep->asking = false;
    bytes_received += w.bytes;
    if (!w.completion) return;
    --operations;
    w.completion->done(w.completion, MPX_OK);
}

// An atomic's step has ended, or found no room: the next one, or its completion.
void Iface::go_on(uint32_t index) {
    Atomic &a = atomics[index];
    if (a.posted) {
        a.posted = false;
        uint64_t old;
        std::memcpy(&old, results.data() + index * sizeof old, sizeof old);
        const bool in_one_step = a.operation == MPX_ATOMIC_ADD || a.operation == MPX_ATOMIC_CSWAP;
        if (in_one_step || old == a.expected) {
            *a.result = old;
            free_atomics.push_back(index);
            --operations;
            a.completion->done(a.completion, MPX_OK);
            return;
        }
        a.expected = old;
    }
    if (a.ep->state == Ep::kConnected && room_for_users(a.ep) && post_atomic(a.ep, index) == MPX_OK) {
        ++a.ep->reads;
        a.posted = true;
    } else {
        atomics_to_go_on.push_back(index);
    }
}

// ---- the table ----

namespace {

mpx_status am_short(mpx_ep *e, uint8_t id, uint64_t header, const void *buf, size_t len) noexcept {
    Ep *ep = self(e);
    Iface *iface = ep->owner;
    const Config &c = iface->domain->config;
    if (id >= MPX_AM_ID_MAX || len > max_short(c)) return MPX_ERR_INVALID;
    if (ep->state != Ep::kConnected) return not_connected(ep);
    if (ep->credits <= kReserve) return MPX_ERR_NO_RESOURCE;
    if (!room_for_users(ep)) return starve(iface);
    const Immediate immediate = Immediate::of(id, true, ep->owed, ep->messages_sent);
    if (sizeof header + len <= c.inline_bytes) {
        ibv_sge sge[2] = {{reinterpret_cast<uintptr_t>(&header), sizeof header, 0},
                          {reinterpret_cast<uintptr_t>(buf), static_cast<uint32_t>(len), 0}};
        return iface->post_message(ep, sge, len ? 2 : 1, nullptr, immediate);
    }
    uint8_t *slot = iface->take_slot();
    if (!slot) return starve(iface);
    std::memcpy(slot, &header, sizeof header);
    if (len) std::memcpy(slot + sizeof header, buf, len);
    return iface->post_slot(ep, slot, sizeof header + len, immediate);
}

mpx_status am_bcopy(mpx_ep *e, uint8_t id, size_t len, mpx_pack_fn pack, void *arg) noexcept {
    Ep *ep = self(e);
    Iface *iface = ep->owner;
    if (id >= MPX_AM_ID_MAX || len > iface->domain->config.slot_bytes) return MPX_ERR_INVALID;
    if (ep->state != Ep::kConnected) return not_connected(ep);
    if (ep->credits <= kReserve) return MPX_ERR_NO_RESOURCE;
    if (!room_for_users(ep)) return starve(iface);
    uint8_t *slot = iface->take_slot();
    if (!slot) return starve(iface);
    const size_t n = pack(slot, arg);
    return iface->post_slot(ep, slot, n, Immediate::of(id, false, ep->owed, ep->messages_sent));
}

mpx_status am_zcopy(mpx_ep *, uint8_t, const void *, size_t, const mpx_iov *, size_t, mpx_completion *) noexcept {
    return MPX_ERR_UNSUPPORTED;
}

// A get or a put of `kind`.
mpx_status move(Ep *ep, Work::Kind kind, const mpx_iov *iov, size_t cnt, uint64_t remote, mpx_rkey_h key, mpx_completion *completion) {
    Iface *iface = ep->owner;
    const Config &c = iface->domain->config;
    const bool is_get = kind == Work::kGet;
    ibv_sge sge[kMaxIov];
    ibv_send_wr wr{};
    uint64_t total = 0;
    if (cnt > std::min<size_t>(kMaxIov, c.max_sge) || !key ||
        !gather(iov, cnt, is_get ? unsigned{MPX_ACCESS_LOCAL} : 0u, sge, &wr.num_sge, &total) || total > c.max_message ||
        !within(key->key, remote, total, is_get ? MPX_ACCESS_REMOTE_READ : MPX_ACCESS_REMOTE_WRITE))
        return MPX_ERR_INVALID;
    if (ep->state != Ep::kConnected) return not_connected(ep);
    if (!room_for_users(ep) || (is_get && ep->reads >= c.max_reads)) return starve(iface);
    wr.sg_list = sge;
    wr.opcode = is_get ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE;
    wr.wr.rdma.remote_addr = remote;
    wr.wr.rdma.rkey = key->key.rkey;
    if (const mpx_status st = iface->post(ep, wr, {.kind = kind, .completion = completion, .bytes = is_get ? total : 0}); st != MPX_OK)
        return st;
    if (is_get) ++ep->reads;
    else iface->bytes_sent += total;
    return MPX_INPROGRESS;
}

mpx_status put_zcopy(mpx_ep *e, const mpx_iov *iov, size_t cnt, uint64_t raddr, mpx_rkey_h key, mpx_completion *completion) noexcept {
    return move(self(e), Work::kPut, iov, cnt, raddr, key, completion);
}

mpx_status get_zcopy(mpx_ep *e, const mpx_iov *iov, size_t cnt, uint64_t raddr, mpx_rkey_h key, mpx_completion *completion) noexcept {
    return move(self(e), Work::kGet, iov, cnt, raddr, key, completion);
}

mpx_status atomic64(mpx_ep *e, unsigned op, uint64_t operand, uint64_t compare, uint64_t *result, uint64_t raddr, mpx_rkey_h key,
                    mpx_completion *completion) noexcept {
    Ep *ep = self(e);
    Iface *iface = ep->owner;
    if (!iface->domain->config.atomics) return MPX_ERR_UNSUPPORTED;
    // A misaligned atomic is never completed by soft-RoCE, and ends the link elsewhere.
    if (op > MPX_ATOMIC_CSWAP || !key || raddr % sizeof(uint64_t) || !within(key->key, raddr, sizeof(uint64_t), MPX_ACCESS_REMOTE_ATOMIC))
        return MPX_ERR_INVALID;
    if (ep->state != Ep::kConnected) return not_connected(ep);
    if (!room_for_users(ep) || ep->reads >= iface->domain->config.max_reads || iface->free_atomics.empty()) return starve(iface);
    const uint32_t index = iface->free_atomics.back();
    iface->atomics[index] = {op, operand, op == MPX_ATOMIC_CSWAP ? compare : 0, raddr, key->key.rkey, result, completion, ep, true};
    if (const mpx_status st = iface->post_atomic(ep, index); st != MPX_OK) return st;
    iface->free_atomics.pop_back();
    ++iface->operations;
    ++ep->reads;
    return MPX_INPROGRESS;
}

// A queue pair does what it is given in order, and so does the card at the other end.
mpx_status ep_fence(mpx_ep *e) noexcept { return self(e)->state == Ep::kBroken ? MPX_ERR_LINK_BROKEN : MPX_OK; }

mpx_status ep_flush(mpx_ep *e, mpx_completion *completion) noexcept {
    Ep *ep = self(e);
    Iface *iface = ep->owner;
    if (ep->state == Ep::kBroken) return MPX_ERR_LINK_BROKEN;
    if (ep->posted == ep->retired) return MPX_OK;
    if (ep->state != Ep::kConnected) return MPX_ERR_NO_RESOURCE;
    if (ep->signaled < ep->posted && !iface->ask(ep, nullptr)) return starve(iface);
    ep->flushes.push_back({completion, ep->posted});
    ++iface->operations;
    return MPX_INPROGRESS;
}

unsigned progress(mpx_iface *iface) noexcept { return static_cast<Iface *>(iface)->progress(); }
void desc_release(mpx_iface *, void *) noexcept {}  // no descriptor is ever lent
mpx_status event_arm(mpx_iface *iface) noexcept { return static_cast<Iface *>(iface)->arm(); }
int event_fd(mpx_iface *iface) noexcept { return static_cast<Iface *>(iface)->epoll_fd; }

}  // namespace

mpx_status Iface::post_slot(Ep *ep, uint8_t *slot, size_t len, Immediate immediate) {
    ibv_sge sge{reinterpret_cast<uintptr_t>(slot), static_cast<uint32_t>(len), lkey_of(slot)};
    const mpx_status st = post_message(ep, &sge, len ? 1 : 0, slot, immediate);
    if (st != MPX_OK) slots.push_back(slot);
    return st;
}

const mpx_iface_ops kOps = {
    sizeof(mpx_iface_ops), am_short,  am_bcopy, am_zcopy, put_zcopy, get_zcopy, atomic64, ep_fence, ep_flush, progress,
    desc_release,          event_arm, event_fd};

mpx_status ep_check(mpx_ep *e, mpx_completion *completion) {
    Ep *ep = self(e);
    if (ep->state != Ep::kConnected) return not_connected(ep);
    return ep->owner->ask(ep, completion) ? MPX_INPROGRESS : MPX_ERR_NO_RESOURCE;
}

}  // namespace mpx::verbs
