// See talk.h.
#include "talk.h"

#include <poll.h>

#include <algorithm>
#include <cstring>

namespace mpx::conform {
namespace {

constexpr size_t kMaxHeader = 64;

uint64_t direction(uint64_t seed, int from, int to) {
    return seed * 1000003 + static_cast<uint64_t>(from) * 1009 + static_cast<uint64_t>(to);
}

Bytes content(size_t len, uint64_t sequence, uint64_t key) {
    Bytes b(len);
    fill(b.data(), len, key);
    if (len >= sizeof sequence) std::memcpy(b.data(), &sequence, sizeof sequence);
    return b;
}

}  // namespace

Plan::Plan(uint64_t seed, uint64_t kinds, size_t max_len) : random_(seed), max_len_(max_len) {
    kinds &= attributes().caps;
    if (kinds & MPX_CAP_AM_SHORT) kinds_.push_back(kShort);
    if (kinds & MPX_CAP_AM_BCOPY) kinds_.push_back(kBcopy);
    if (kinds & MPX_CAP_AM_ZCOPY) kinds_.push_back(kZcopy);
}

const Message &Plan::next() {
    const mpx_iface_attr &a = attributes();
    Message &m = current_;
    m.kind = kinds_[random_() % kinds_.size()];
    size_t limit = m.kind == kShort ? a.max_am_short : m.kind == kBcopy ? a.max_am_bcopy : a.max_am_zcopy;
    limit = std::min(limit, max_len_);
    // Log-uniform: a random number of significant bits.
    const unsigned bits = static_cast<unsigned>(random_() % 64);
    m.len = bits ? std::min<size_t>(limit, random_() & ((uint64_t{1} << (bits % 27)) - 1)) : 0;
    m.header_len = m.kind == kZcopy ? random_() % (std::min(a.max_am_hdr, kMaxHeader) + 1) : m.kind == kShort ? 8 : 0;
    m.pieces = m.kind == kZcopy ? 1 + random_() % std::max<size_t>(1, a.max_iov) : 1;
    m.pieces = std::max<size_t>(1, std::min(m.pieces, m.len));
    m.sequence = sequence_++;
    m.key = random_();
    return m;
}

Talk::Talk(Node &node, int me, TalkShape shape) : node_(node), shape_(std::move(shape)), expected_(shape_.count) {
    if (options().loopback) {
        if (!shape_.to.empty()) shape_.to = {0};
        if (!shape_.from.empty()) shape_.from = {0};
        me = 0;
    }
    for (int to : shape_.to) out_[to].plan = Plan(direction(shape_.seed, me, to), shape_.kinds, shape_.max_len);
    for (int from : shape_.from) in_[from].plan = Plan(direction(shape_.seed, from, me), shape_.kinds, shape_.max_len);
    for (MessageKind kind : {kShort, kBcopy, kZcopy})
        node_.on(kind, [this, kind](Incoming &in) {
            check(in, kind);
            return mpx_status{MPX_OK};
        });
}

mpx_status Talk::send_one(Peer &peer, Out &out) {
    if (!out.next) {
        const Message &m = *(out.next = &out.plan.next());
        out.payload = content(m.len, m.kind == kShort ? m.key : m.sequence, m.key);
        out.header = m.kind == kZcopy ? content(m.header_len, m.sequence, m.key + 1) : Bytes{};
        if (m.kind == kZcopy) out.op = &node_.op("am_zcopy", std::move(out.payload));
    }
    const Message &m = *out.next;
    mpx_status st;
    if (m.kind == kShort) {
        st = node_.am_short(peer, kShort, m.sequence, out.payload.data(), m.len);
        if (st == MPX_OK) std::fill(out.payload.begin(), out.payload.end(), kPoison);  // OK: the buffer is ours again
    } else if (m.kind == kBcopy) {
        st = node_.am_bcopy(peer, kBcopy, out.payload);
    } else {
        st = node_.am_zcopy(peer, kZcopy, out.header, *out.op, m.pieces);
    }
    if (st < 0) return st;
    ++out.sent;
    payload_sent_ += m.len;
    out.next = nullptr;
    return st;
}

bool Talk::send() {
    bool any = false;
    for (auto &[index, out] : out_) {
        while (out.sent < shape_.count && node_.outstanding() < shape_.window) {
            Peer &peer = node_.peer(index);
            const mpx_status st = send_one(peer, out);
            if (st < 0) {
                const bool died = shape_.peer_may_die && (st == MPX_ERR_LINK_BROKEN || st == MPX_ERR_PEER_FAILED);
                EXPECT(st == MPX_ERR_NO_RESOURCE || died, "sending message %llu (kind %d, %zu bytes) returned %d",
                       static_cast<unsigned long long>(out.sent), out.next->kind, out.next->len, st);
                if (st != MPX_ERR_NO_RESOURCE) return any;
                break;
            }
            any = true;
        }
    }
    return any;
}

void Talk::check(Incoming &in, MessageKind kind) {
    const auto it = in_.find(in.from->index);
    if (it == in_.end()) return violation("a message from peer %d, who was to send none", in.from->index);
    In &from = it->second;
    ++from.received;
    payload_received_ += in.len;
    if (from.broken) return;
    const Message &m = from.plan.next();
    const void *numbered = kind == kBcopy ? in.data : in.header;
    const size_t numbered_len = kind == kBcopy ? in.len : in.header_len;
    uint64_t sequence = m.sequence;
    if (numbered_len >= sizeof sequence) std::memcpy(&sequence, numbered, sizeof sequence);
    const auto n = static_cast<unsigned long long>(m.sequence);
    from.broken = true;
    if (sequence < m.sequence + 100000 && sequence != m.sequence)
        return violation("order: message %llu arrived where %llu was due", static_cast<unsigned long long>(sequence), n);
    if (m.kind != kind) return violation("order: message %llu was to be of kind %d, but kind %d arrived", n, m.kind, kind);
    if (in.header_len != m.header_len) return violation("header: %zu bytes instead of %zu in message %llu", in.header_len, m.header_len, n);
    if (in.len != m.len) return violation("length: %zu bytes instead of %zu in message %llu (kind %d)", in.len, m.len, n, kind);
    if (sequence != m.sequence) return violation("header: wrong bytes in message %llu (kind %d)", n, kind);
    if (kind == kZcopy) {
        const Bytes header = content(m.header_len, m.sequence, m.key + 1);
        if (m.header_len && std::memcmp(header.data(), in.header, m.header_len) != 0)
            return violation("header: wrong bytes in message %llu", n);
    }
    const Bytes payload = content(m.len, kind == kShort ? m.key : m.sequence, m.key);
    if (m.len && std::memcmp(payload.data(), in.data, m.len) != 0)
        return violation("content: wrong bytes in message %llu (kind %d, %zu bytes)%s", n, kind, m.len,
                         poisoned(in.data, m.len) ? ": the poison put into the buffer after its completion" : "");
    from.broken = false;
}

bool Talk::sent() const {
    return std::all_of(out_.begin(), out_.end(), [&](const auto &o) { return o.second.sent >= shape_.count; });
}

bool Talk::received() const {
    return std::all_of(in_.begin(), in_.end(), [&](const auto &i) { return i.second.received >= expected_; });
}

uint64_t Talk::messages_sent() const {
    uint64_t n = 0;
    for (const auto &[index, out] : out_) n += out.sent;
    return n;
}

uint64_t Talk::messages_received() const {
    uint64_t n = 0;
    for (const auto &[index, in] : in_) n += in.received;
    return n;
}

bool drive_by_events(const std::vector<std::pair<Node *, Talk *>> &parties) {
    std::vector<bool> awake(parties.size(), true);
    for (;;) {
        for (size_t i = 0; i < parties.size(); ++i) {
            auto [node, talk] = parties[i];
            while (awake[i]) {
                while (node->progress() || talk->send()) {
                }
                awake[i] = node->arm() == MPX_ERR_NO_RESOURCE;
            }
        }
        if (std::all_of(parties.begin(), parties.end(), [](const auto &p) { return p.second->done(); })) return true;
        std::vector<pollfd> fds;
        for (auto [node, talk] : parties) fds.push_back({node->event_fd(), POLLIN, 0});
        if (poll(fds.data(), fds.size(), 5000) <= 0) {
            bool woke = false;
            for (auto [node, talk] : parties) woke |= node->progress() || talk->send();
            violation(woke ? "lost wake-up: all slept for 5 s, and progress then did something"
                           : "stalled: all sleep, and something was not delivered");
            return false;
        }
        for (size_t i = 0; i < fds.size(); ++i)
            if ((awake[i] = fds[i].revents & POLLIN)) exercised(MPX_CAP_EVENT_FD);
    }
}

}  // namespace mpx::conform
