// The operations of an ep: refused during a burst, at an end once its link broke, else the wrapped transport's.
#include "ep.h"

#include "fault.h"

namespace mpx::fault {
namespace {

Ep *of(mpx_ep *ep) { return static_cast<Ep *>(ep); }
const mpx_iface_ops &ops(const Ep *ep) { return *ep->inner->iface->ops; }

// An operation that may be refused; `call` is told the completion to use.
template <class F> mpx_status start(mpx_ep *abi, mpx_completion *outer, bool flush, F &&call) {
    Ep *ep = of(abi);
    if (const mpx_status st = ep->admit(); st != MPX_OK) return st;
    return ep->owner()->start(
        ep, outer, flush, [](Ep *e, mpx_completion *c, void *arg) { return (*static_cast<F *>(arg))(e, c); }, &call);
}

}  // namespace

Ep::Ep(Iface *iface, int64_t number) : mpx_ep{iface, nullptr, {}}, index(number) {}

Iface *Ep::owner() const { return static_cast<Iface *>(iface); }

mpx_status Ep::admit() {
    if (broken != MPX_OK) return broken;
    const Settings &s = settings();
    if (burst_end && now() < burst_end) return MPX_ERR_NO_RESOURCE;  // progress ends it, for its end is an event
    if (!burst_end && owner()->strikes(s.no_resource)) {
        burst_end = owner()->until(s.burst_s);
        return MPX_ERR_NO_RESOURCE;
    }
    if (s.break_at && operations + 1 == s.break_at && (s.break_ep < 0 || s.break_ep == index)) {
        mpx_iface_attr a{};
        a.size = sizeof a;
        wrapped().iface_query(inner->iface, &a);
        break_link(a.caps & MPX_CAP_LINK_MAY_BREAK ? MPX_ERR_LINK_BROKEN : MPX_ERR_PEER_FAILED);
        return broken;
    }
    return MPX_OK;
}

void Ep::break_link(mpx_status st) {
    if (broken == MPX_OK) broken = st;
}

void Ep::repaired() {
    broken = MPX_OK;
    told = false;
    operations = 0;
    burst_end = 0;
}

mpx_status am_short(mpx_ep *ep, uint8_t id, uint64_t header, const void *buffer, size_t length) {
    if (const mpx_status st = of(ep)->admit(); st != MPX_OK) return st;
    return of(ep)->accepted(ops(of(ep)).am_short(of(ep)->inner, id, header, buffer, length));
}

mpx_status am_bcopy(mpx_ep *ep, uint8_t id, size_t length, mpx_pack_fn pack, void *arg) {
    if (const mpx_status st = of(ep)->admit(); st != MPX_OK) return st;
    return of(ep)->accepted(ops(of(ep)).am_bcopy(of(ep)->inner, id, length, pack, arg));
}

mpx_status am_zcopy(mpx_ep *ep, uint8_t id, const void *header, size_t header_length, const mpx_iov *iov, size_t n, mpx_completion *c) {
    return start(ep, c, false,
                 [=](Ep *e, mpx_completion *mine) { return ops(e).am_zcopy(e->inner, id, header, header_length, iov, n, mine); });
}

mpx_status put_zcopy(mpx_ep *ep, const mpx_iov *iov, size_t n, uint64_t raddr, mpx_rkey_h key, mpx_completion *c) {
    return start(ep, c, false, [=](Ep *e, mpx_completion *mine) { return ops(e).put_zcopy(e->inner, iov, n, raddr, key, mine); });
}

mpx_status get_zcopy(mpx_ep *ep, const mpx_iov *iov, size_t n, uint64_t raddr, mpx_rkey_h key, mpx_completion *c) {
    return start(ep, c, false, [=](Ep *e, mpx_completion *mine) { return ops(e).get_zcopy(e->inner, iov, n, raddr, key, mine); });
}

mpx_status atomic64(mpx_ep *ep, unsigned what, uint64_t operand, uint64_t compare, uint64_t *result, uint64_t raddr, mpx_rkey_h key,
                    mpx_completion *c) {
    return start(ep, c, false,
                 [=](Ep *e, mpx_completion *mine) { return ops(e).atomic64(e->inner, what, operand, compare, result, raddr, key, mine); });
}

mpx_status ep_fence(mpx_ep *ep) { return of(ep)->broken != MPX_OK ? of(ep)->broken : ops(of(ep)).ep_fence(of(ep)->inner); }

mpx_status ep_flush(mpx_ep *ep, mpx_completion *c) {
    return start(ep, c, true, [](Ep *e, mpx_completion *mine) { return ops(e).ep_flush(e->inner, mine); });
}

mpx_status ep_check(mpx_ep *ep, mpx_completion *c) {
    if (of(ep)->broken != MPX_OK) return of(ep)->broken;
    return of(ep)->owner()->start(
        of(ep), c, false, [](Ep *e, mpx_completion *mine, void *) { return wrapped().ep_check(e->inner, mine); }, nullptr);
}

}  // namespace mpx::fault
