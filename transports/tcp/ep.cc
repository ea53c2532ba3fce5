// Eps and the operations on them. An ep is owned by the engine from ep_create to ep_destroy; its connection is opened by the first
// operation of either side. Until it is up operations say NO_RESOURCE, after its end they return the error that on_error reported.
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "tcp.hh"

namespace mpx::tcp {
namespace {

Ep *self(mpx_ep *ep) { return static_cast<Ep *>(ep); }

[[gnu::noinline]] mpx_status not_up(Ep *ep) {
    if (ep->failed) return ep->failed;
    if (!ep->trying()) ep->owner->connect(ep);  // what fails at once is told by on_error too
    return MPX_ERR_NO_RESOURCE;
}

// The link that operations may use, else nullptr.
Link *usable(Ep *ep) { return ep->failed ? nullptr : ep->live; }

mpx_status am_short(mpx_ep *e, uint8_t id, uint64_t hdr, const void *buf, size_t len) noexcept {
    if (len > kMaxAm || id >= MPX_AM_ID_MAX) return MPX_ERR_INVALID;
    Link *link = usable(self(e));
    if (!link) return not_up(self(e));
    return link->send_frame({static_cast<uint32_t>(len), kAmShort, id, 0, hdr}, buf, len, nullptr, 0);
}

mpx_status am_bcopy(mpx_ep *e, uint8_t id, size_t len, mpx_pack_fn pack, void *arg) noexcept {
    if (len > kMaxAm || id >= MPX_AM_ID_MAX) return MPX_ERR_INVALID;
    Link *link = usable(self(e));
    if (!link) return not_up(self(e));
    const bool was_idle = link->idle_out();
    if (!link->room(sizeof(Frame) + len + padding(len))) {
        link->yield = true;
        return MPX_ERR_NO_RESOURCE;
    }
    uint8_t *at = link->out.get() + link->out_end;
    const size_t n = pack(at + sizeof(Frame), arg);
    const Frame f{static_cast<uint32_t>(n), kAm, id, 0, 0};
    memcpy(at, &f, sizeof f);
    memset(at + sizeof f + n, 0, padding(n));
    link->out_end += sizeof f + n + padding(n);
    if (!was_idle) return MPX_OK;
    const iovec all{link->out.get() + link->out_begin, link->out_end - link->out_begin};
    const ssize_t sent = link->send_iov(&all, 1);
    if (sent < 0) {
        link->out_begin = link->out_end = 0;
        return MPX_ERR_LINK_BROKEN;
    }
    link->out_begin += static_cast<size_t>(sent);
    if (!link->idle_out()) link->arm(EPOLLIN | EPOLLOUT);
    return MPX_OK;
}

mpx_status am_zcopy(mpx_ep *e, uint8_t id, const void *hdr, size_t hdr_len, const mpx_iov *iov, size_t cnt, mpx_completion *comp) noexcept {
    if (hdr_len > kMaxHdr || cnt > kMaxIov || id >= MPX_AM_ID_MAX) return MPX_ERR_INVALID;
    size_t len = 0;
    for (size_t i = 0; i < cnt; ++i) {
        if (iov[i].len > kMaxAm - len) return MPX_ERR_INVALID;
        len += iov[i].len;
    }
    Link *link = usable(self(e));
    if (!link) return not_up(self(e));
    return link->send_zcopy({static_cast<uint32_t>(hdr_len + len), kAm, id, static_cast<uint16_t>(hdr_len), 0}, hdr, hdr_len, iov, cnt,
                            comp);
}

mpx_status put_zcopy(mpx_ep *, const mpx_iov *, size_t, uint64_t, mpx_rkey_h, mpx_completion *) noexcept { return MPX_ERR_UNSUPPORTED; }

mpx_status get_zcopy(mpx_ep *e, const mpx_iov *iov, size_t cnt, uint64_t raddr, mpx_rkey_h rkey, mpx_completion *comp) noexcept {
    if (cnt > kMaxIov || !rkey) return MPX_ERR_INVALID;
    Link *link = usable(self(e));
    if (!link) return not_up(self(e));
    if (link->gets.size() >= kMaxGets) return MPX_ERR_NO_RESOURCE;
    Get g{link->gets_posted + 1, comp, 0, 0, 0, {}};
    for (size_t i = 0; i < cnt; ++i)
        if (iov[i].len) {
            if (iov[i].len > SIZE_MAX - g.left) return MPX_ERR_INVALID;
            g.iov[g.iovcnt++] = {iov[i].base, iov[i].len};
            g.left += iov[i].len;
        }
    const GetRequest request{rkey->key, raddr, g.left};
    const mpx_status st = link->send_frame({sizeof request, kGetReq, 0, 0, g.id}, &request, sizeof request, nullptr, 0);
    if (st != MPX_OK) return st;
    ++link->gets_posted;
    link->gets.push_back(g);
    return MPX_INPROGRESS;
}

mpx_status atomic64(mpx_ep *, unsigned, uint64_t, uint64_t, uint64_t *, uint64_t, mpx_rkey_h, mpx_completion *) noexcept {
    return MPX_ERR_UNSUPPORTED;
}

mpx_status ep_fence(mpx_ep *e) noexcept { return self(e)->failed ? self(e)->failed : MPX_OK; }  // there are no puts

mpx_status ep_flush(mpx_ep *e, mpx_completion *comp) noexcept {
    Ep *ep = self(e);
    if (ep->failed) return ep->failed;
    Link *link = ep->live;
    if (!link) return MPX_OK;  // nothing was ever accepted
    const Flush f{comp, link->sent + link->pending_out(), link->gets_posted};
    if (link->flushes.empty() && link->gets_done == f.gets && link->acknowledged(f.position)) return MPX_OK;
    if (link->flushes.empty()) ep->owner->flushing.push_back(link);
    link->flushes.push_back(f);
    ep->owner->want_tick(1);
    return MPX_INPROGRESS;
}

unsigned progress(mpx_iface *iface) noexcept { return static_cast<Iface *>(iface)->progress(); }

void desc_release(mpx_iface *, void *) noexcept {}  // no descriptor is ever lent

mpx_status event_arm(mpx_iface *i) noexcept {
    auto *iface = static_cast<Iface *>(i);
    iface->force_poll = true;  // the first progress after the sleep asks epoll
    return iface->broken.empty() ? MPX_OK : MPX_ERR_NO_RESOURCE;
}

int event_fd(mpx_iface *iface) noexcept { return static_cast<Iface *>(iface)->epoll_fd; }

}  // namespace

const mpx_iface_ops kOps = {
    sizeof(mpx_iface_ops), am_short,  am_bcopy, am_zcopy, put_zcopy, get_zcopy, atomic64, ep_fence, ep_flush, progress,
    desc_release,          event_arm, event_fd};

mpx_status ep_create(mpx_iface *i, const void *addr, size_t len, mpx_ep **out) {
    auto *iface = static_cast<Iface *>(i);
    if (!iface_reachable(iface, addr, len)) return MPX_ERR_UNREACHABLE;
    Address peer;
    memcpy(&peer, addr, sizeof peer);
    if (iface->eps.contains(peer.id)) {
        set_why("tcp: there is an ep to " + describe(peer) + " already");
        return MPX_ERR_INVALID;
    }
    auto *ep = new Ep;
    ep->iface = iface;
    ep->owner = iface;
    ep->peer = peer;
    iface->eps.emplace(peer.id, ep);
    *out = ep;
    return MPX_OK;
}

// Only progress reads, and the next one closes a fenced link before it reads anything. A broken link is closed already.
mpx_status ep_fence_off(mpx_ep *e) {
    Ep *ep = self(e);
    if (!ep->live) return MPX_OK;
    ep->live->fenced = true;
    ep->owner->fail(ep, MPX_ERR_LINK_BROKEN, "the connection to " + describe(ep->live->to) + " was fenced off");
    return MPX_OK;
}

// Liveness is the kernel's: keepalive and check_liveness end a dead connection by themselves, so one that is there is alive.
mpx_status ep_check(mpx_ep *e, mpx_completion *) {
    Ep *ep = self(e);
    const bool answered = ep->busy_since != 0 || ep->link ||
                          std::any_of(ep->tries.begin(), ep->tries.end(), [](const Link *l) { return l->state != Link::kConnecting; });
    return !ep->failed && answered ? MPX_OK : not_up(ep);
}

void ep_destroy(mpx_ep *e) {
    Ep *ep = self(e);
    Iface *iface = ep->owner;
    iface->eps.erase(ep->peer.id);
    std::erase(iface->broken, ep);
    if (Link *link = ep->live; link && link->fenced) {
        iface->bury(link);
        link->cancel(MPX_ERR_CANCELED);
    } else if (link) {
        iface->linger(link);
    } else if (ep->link) {
        iface->bury(ep->link);
    }
    iface->drop_tries(ep);
    iface->graveyard.clear();  // we are outside progress
    delete ep;
}

}  // namespace mpx::tcp
