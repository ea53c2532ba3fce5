// One connection that is up: frames out, frames in, gets in both directions. Order on the wire: a frame once begun is finished (the head),
// then the output buffer in the order of the calls, then the next piece of a peer's get. Handlers and completions may call operations on
// this link again, so state is settled before each such call and read anew after it.
#include <linux/sockios.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "tcp.hh"

namespace mpx::tcp {
namespace {
const uint8_t kZeros[8] = {};

void complete(mpx_completion *comp, mpx_status st) {
    if (comp) comp->done(comp, st);
}

iovec vec(const void *p, size_t n) { return {const_cast<void *>(p), n}; }
}  // namespace

Link::~Link() { hang_up(); }

// A copy of the descriptor may live on, in a forked child: closing ours would leave the socket in the epoll set.
void Link::hang_up() {
    if (fd < 0) return;
    if (armed) epoll_ctl(iface->epoll_fd, EPOLL_CTL_DEL, fd, nullptr);
    ::close(fd);
    fd = -1;
    armed = 0;
}

void Link::arm(uint32_t events) {
    if (events == armed || fd < 0) return;
    epoll_event ev{};
    ev.events = events;
    ev.data.ptr = this;
    if (epoll_ctl(iface->epoll_fd, armed ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &ev) < 0) tx_broken = true;
    if (state == kUp) iface->writers += ((events & EPOLLOUT) != 0) - ((armed & EPOLLOUT) != 0);
    armed = events;
}

// ---- output

size_t Link::pending_out() const {
    size_t n = out_end - out_begin;
    for (size_t i = head_at; i < head_cnt; ++i) n += head[i].iov_len;
    return n;
}

bool Link::room(size_t n) {
    if (out_end - out_begin + n > kOutCapacity) return false;
    if (out_begin == out_end) {
        out_begin = out_end = 0;
    } else if (out_end + n > kOutCapacity) {
        memmove(out.get(), out.get() + out_begin, out_end - out_begin);
        out_end -= out_begin;
        out_begin = 0;
    }
    return true;
}

void Link::append(const void *p, size_t n) {
    if (n) memcpy(out.get() + out_end, p, n);
    out_end += n;
}

ssize_t Link::send_iov(const iovec *iov, size_t cnt) {
    msghdr msg{};
    msg.msg_iov = const_cast<iovec *>(iov);
    msg.msg_iovlen = cnt;
    for (;;) {
        const ssize_t n =
            cnt == 1 ? send(fd, iov->iov_base, iov->iov_len, MSG_NOSIGNAL | MSG_DONTWAIT) : sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) {
            sent += static_cast<size_t>(n);
            iface->bytes_sent += static_cast<size_t>(n);
            return n;
        }
        if (errno == EAGAIN || errno == ENOBUFS) return 0;
        if (errno == EINTR) continue;
        // What the peer sent before it went is still to be read: progress does that, then reports.
        if (!tx_broken && ep) iface->fail(ep, MPX_ERR_LINK_BROKEN, "the connection to " + describe(to) + " broke: " + strerror(errno));
        tx_broken = true;
        return -1;
    }
}

mpx_status Link::send_frame(const Frame &f, const void *a, size_t a_len, const void *b, size_t b_len) {
    const size_t body = a_len + b_len, total = sizeof f + body + padding(body);
    if (!idle_out()) {
        if (!room(total)) {
            yield = true;
            return MPX_ERR_NO_RESOURCE;
        }
        append(&f, sizeof f);
        append(a, a_len);
        append(b, b_len);
        append(kZeros, padding(body));
        return MPX_OK;
    }
    room(total);  // starts the empty buffer at its front
    const iovec parts[4] = {vec(&f, sizeof f), vec(a, a_len), vec(b, b_len), vec(kZeros, padding(body))};
    ssize_t n;
    if (total <= 256) {  // one small copy is cheaper than a scattered send
        for (const iovec &part : parts) append(part.iov_base, part.iov_len);
        const iovec all = vec(out.get(), total);
        n = send_iov(&all, 1);
        out_begin = n > 0 ? static_cast<size_t>(n) : 0;
    } else {
        n = send_iov(parts, 4);
        size_t done = n > 0 ? static_cast<size_t>(n) : 0;
        if (n >= 0 && done < total)
            for (const iovec &part : parts) {
                const size_t cut = std::min(done, part.iov_len);
                append(static_cast<uint8_t *>(part.iov_base) + cut, part.iov_len - cut);
                done -= cut;
            }
    }
    if (n < 0) {
        out_begin = out_end = 0;
        return MPX_ERR_LINK_BROKEN;
    }
    if (out_begin != out_end) arm(EPOLLIN | EPOLLOUT);
    return MPX_OK;
}

mpx_status Link::send_zcopy(const Frame &f, const void *hdr, size_t hdr_len, const mpx_iov *iov, size_t cnt, mpx_completion *comp) {
    if (!idle_out()) {
        yield = true;
        return MPX_ERR_NO_RESOURCE;
    }
    if (hdr_len) memcpy(head_hdr, hdr, hdr_len);
    head_frame = f;
    head_at = head_cnt = 0;
    head[head_cnt++] = vec(&head_frame, sizeof f);
    if (hdr_len) head[head_cnt++] = vec(head_hdr, hdr_len);
    for (size_t i = 0; i < cnt; ++i)
        if (iov[i].len) head[head_cnt++] = vec(iov[i].base, iov[i].len);
    if (padding(f.length)) head[head_cnt++] = vec(kZeros, padding(f.length));
    ssize_t n = send_iov(head, head_cnt);
    if (n < 0) {
        head_at = head_cnt = 0;
        return MPX_ERR_LINK_BROKEN;
    }
    for (size_t left = static_cast<size_t>(n); head_at < head_cnt; ++head_at) {
        iovec &v = head[head_at];
        if (left < v.iov_len) {
            v = vec(static_cast<uint8_t *>(v.iov_base) + left, v.iov_len - left);
            break;
        }
        left -= v.iov_len;
    }
    if (head_at == head_cnt) return MPX_OK;
    head_comp = comp;
    arm(EPOLLIN | EPOLLOUT);
    return MPX_INPROGRESS;
}

bool Link::start_piece() {
    if (serves.empty()) return false;
    if (yield) {  // whoever was refused goes first; EPOLLOUT stays armed, so the next progress goes on
        yield = false;
        return false;
    }
    Serve &s = serves.front();
    head_at = head_cnt = 0;
    head[head_cnt++] = vec(&head_frame, sizeof head_frame);
    if (!s.mem) {
        head_frame = {0, kGetFail, 0, 0, s.id};
        serves.pop_front();
        return true;
    }
    const size_t n = static_cast<size_t>(std::min<uint64_t>(s.left, kPiece));
    head_frame = {static_cast<uint32_t>(n), kGetData, 0, 0, s.id};
    if (n) head[head_cnt++] = vec(s.addr, n);
    if (padding(n)) head[head_cnt++] = vec(kZeros, padding(n));
    head_mem = s.mem;
    s.addr += n;
    s.left -= n;
    if (s.left == 0) serves.pop_front();  // its count in mem->serving passes to the head
    else ++s.mem->serving;
    return true;
}

unsigned Link::write_out() {
    unsigned events = 0;
    for (size_t budget = kWriteBudget; state == kUp || state == kLinger;) {
        if (tx_broken) return events;
        if (idle_out() && !start_piece()) break;
        if (budget == 0) {
            arm(EPOLLIN | EPOLLOUT);
            return events;
        }
        iovec iov[kMaxIov + 4];
        size_t cnt = 0;
        for (size_t i = head_at; i < head_cnt; ++i) iov[cnt++] = head[i];
        if (out_begin != out_end) iov[cnt++] = vec(out.get() + out_begin, out_end - out_begin);
        const ssize_t n = send_iov(iov, cnt);
        if (n < 0) return events + 1;
        if (n == 0) {
            arm(EPOLLIN | EPOLLOUT);
            return events;
        }
        ++events;
        budget -= std::min(budget, static_cast<size_t>(n));
        size_t left = static_cast<size_t>(n);
        for (; head_at < head_cnt; ++head_at) {
            iovec &v = head[head_at];
            if (left < v.iov_len) {
                v = vec(static_cast<uint8_t *>(v.iov_base) + left, v.iov_len - left);
                left = 0;
                break;
            }
            left -= v.iov_len;
        }
        if (head_at < head_cnt) continue;
        out_begin += left;
        if (head_mem) --head_mem->serving;
        head_mem = nullptr;
        if (mpx_completion *comp = std::exchange(head_comp, nullptr)) complete(comp, MPX_OK);
    }
    if (idle_out() && serves.empty()) arm(EPOLLIN);
    else arm(EPOLLIN | EPOLLOUT);
    return events;
}

void Link::spill_head() {
    std::vector<uint8_t> rest;
    for (size_t i = head_at; i < head_cnt; ++i) {
        const auto *p = static_cast<const uint8_t *>(head[i].iov_base);
        rest.insert(rest.end(), p, p + head[i].iov_len);
    }
    spill = std::move(rest);
    head_at = head_cnt = 0;
    if (!spill.empty()) head[head_cnt++] = vec(spill.data(), spill.size());
    if (head_mem) --head_mem->serving;
    head_mem = nullptr;
}

void Link::withdraw(mpx_memh *mem) {
    if (head_mem == mem) spill_head();
    for (Serve &s : serves)
        if (s.mem == mem) {
            s.mem = nullptr;
            --mem->serving;
        }
}

bool Link::acknowledged(uint64_t position) const {
    int queued = 0;
    if (ioctl(fd, SIOCOUTQ, &queued) < 0) return false;
    if (shut && queued > 0) --queued;  // our FIN counts as one byte, and may be acknowledged late
    return sent >= position && sent - static_cast<uint64_t>(queued) >= position;
}

unsigned Link::check_flush() {
    unsigned events = 0;
    while (!flushes.empty() && gets_done >= flushes.front().gets && acknowledged(flushes.front().position)) {
        mpx_completion *comp = flushes.front().comp;
        flushes.pop_front();
        ++events;
        complete(comp, MPX_OK);
    }
    return events;
}

void Link::cancel(mpx_status st) {
    for (Serve &s : serves)
        if (s.mem) --s.mem->serving;
    serves.clear();
    if (head_mem) --head_mem->serving;
    head_mem = nullptr;
    direct_left = 0;
    std::vector<mpx_completion *> done;
    if (head_comp) done.push_back(std::exchange(head_comp, nullptr));
    for (Get &g : gets) done.push_back(g.comp);
    for (Flush &f : flushes) done.push_back(f.comp);
    gets.clear();
    flushes.clear();
    std::erase(iface->flushing, this);
    for (mpx_completion *comp : done) complete(comp, st);
}

// ---- input

void Link::fill(Get &g, const uint8_t *from, size_t n) {
    g.left -= n;
    while (n) {
        iovec &v = g.iov[g.at];
        const size_t take = std::min(n, v.iov_len);
        if (from) {
            memcpy(v.iov_base, from, take);
            from += take;
        }
        v = vec(static_cast<uint8_t *>(v.iov_base) + take, v.iov_len - take);
        n -= take;
        if (v.iov_len == 0) ++g.at;
    }
}

// One receive, then all complete frames in it. A get's bytes go straight to their destination.
unsigned Link::read_in() {
    if (fenced) return 0;
    iovec iov[kMaxIov + 1];
    size_t cnt = 0;
    if (in_begin == in_end) in_begin = in_end = direct_left ? padding(direct_pad) : padding(skip);
    if (direct_left) {
        Get &g = gets.front();
        uint64_t left = direct_left;
        for (size_t i = g.at; left; ++i) {
            const size_t n = static_cast<size_t>(std::min<uint64_t>(left, g.iov[i].iov_len));
            if (n) iov[cnt++] = vec(g.iov[i].iov_base, n);
            left -= n;
        }
    } else if (in_begin && kInCapacity - in_end < kMaxFrame) {
        memmove(in.get(), in.get() + in_begin, in_end - in_begin);  // a frame starts here: stays aligned
        in_end -= in_begin;
        in_begin = 0;
    }
    iov[cnt++] = vec(in.get() + in_end, kInCapacity - in_end);
    const ssize_t n = cnt == 1 ? recv(fd, iov[0].iov_base, iov[0].iov_len, MSG_DONTWAIT) : readv(fd, iov, static_cast<int>(cnt));
    if (n <= 0) {
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
        iface->link_failed(this, n == 0 ? "it closed the connection" : strerror(errno));
        return 1;
    }
    size_t got = static_cast<size_t>(n);
    iface->bytes_received += got;
    if (direct_left) {
        const size_t direct = static_cast<size_t>(std::min<uint64_t>(got, direct_left));
        fill(gets.front(), nullptr, direct);
        direct_left -= direct;
        got -= direct;
        in_end += got;
        if (direct_left == 0) end_piece();
    } else {
        in_end += got;
    }
    if (!parse()) iface->link_failed(this, "it sent what is no frame");
    return 1;
}

void Link::end_piece() {
    skip = std::exchange(direct_pad, 0);
    if (gets.front().left) return;
    mpx_completion *comp = gets.front().comp;
    gets.pop_front();
    ++gets_done;
    complete(comp, MPX_OK);
}

bool Link::parse() {
    while (state == kUp) {
        const size_t avail = in_end - in_begin;
        if (skip) {
            const size_t n = std::min(skip, avail);
            in_begin += n;
            skip -= n;
            if (skip) return true;
        } else if (direct_left) {
            const size_t n = static_cast<size_t>(std::min<uint64_t>(direct_left, avail));
            if (n == 0) return true;
            fill(gets.front(), in.get() + in_begin, n);
            in_begin += n;
            direct_left -= n;
            if (direct_left == 0) end_piece();
        } else {
            if (avail < sizeof(Frame)) return true;
            Frame f;
            memcpy(&f, in.get() + in_begin, sizeof f);
            if (f.kind == kGetData) {
                if (gets.empty() || f.word != gets.front().id || f.length > gets.front().left || f.length > kPiece ||
                    (f.length == 0 && gets.front().left))
                    return false;
                in_begin += sizeof f;
                direct_left = f.length;
                direct_pad = padding(f.length);
                if (direct_left == 0) end_piece();
                continue;
            }
            if (f.length > kMaxAm + kMaxHdr) return false;
            const size_t total = sizeof f + f.length + padding(f.length);
            if (avail < total) return true;
            uint8_t *at = in.get() + in_begin;
            in_begin += total;
            if (!dispatch(f, at)) return false;
        }
    }
    return true;
}

// `at` is the whole frame, header included, in the input buffer.
bool Link::dispatch(const Frame &f, uint8_t *at) {
    uint8_t *body = at + sizeof f;
    switch (f.kind) {
        case kAmShort:
        case kAm: {
            if (f.am_id >= MPX_AM_ID_MAX || f.hdr_len > kMaxHdr || f.hdr_len > f.length || f.length - f.hdr_len > kMaxAm) return false;
            const mpx_am_handler &h = iface->params.am[f.am_id];
            if (!h.fn) return false;
            if (f.kind == kAmShort) h.fn(h.arg, ep->user, at + offsetof(Frame, word), sizeof f.word, body, f.length, 0);
            else h.fn(h.arg, ep->user, body, f.hdr_len, body + f.hdr_len, f.length - f.hdr_len, 0);
            return true;
        }
        case kGetReq:
            if (f.length != sizeof(GetRequest) || serves.size() >= kMaxGets) return false;
            accept_request(f, body);
            return true;
        case kGetFail: {
            if (f.length || gets.empty() || gets.front().id != f.word) return false;
            mpx_completion *comp = gets.front().comp;
            gets.pop_front();
            ++gets_done;
            complete(comp, MPX_ERR_INVALID);
            return true;
        }
        default: return false;
    }
}

void Link::accept_request(const Frame &f, const uint8_t *body) {
    GetRequest r;
    memcpy(&r, body, sizeof r);
    Serve s{f.word, iface->domain->find(r.key, r.raddr, r.length), reinterpret_cast<uint8_t *>(r.raddr), r.length};
    if (s.mem) ++s.mem->serving;
    serves.push_back(s);
    if (idle_out()) write_out();  // else the output in progress comes to it
}

}  // namespace mpx::tcp
