// See harness.h.
#include "harness.h"

#include <dirent.h>
#include <dlfcn.h>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace mpx::conform {
namespace {

constexpr double kStallSeconds = 8;         // nothing happens for so long: it never will
constexpr int kWakeMilliseconds = 5000;     // an event that does not come in this time is lost
constexpr size_t kGraveBytes = 64u << 20;   // poisoned buffers that are watched, the newest of them
constexpr uint64_t kPrintedViolations = 8;  // per test
constexpr char kJobKey[] = "conformance suite: one job's key";

// Shared with forked children.
struct Ledger {
    std::atomic<uint64_t> violations;
    std::atomic<uint64_t> exercised[64];
};

Ledger *ledger() {
    static auto *page = [] {
        void *p = mmap(nullptr, sizeof(Ledger), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) throw std::runtime_error("mmap of the ledger failed");
        return new (p) Ledger{};
    }();
    return page;
}

// Where this process stands, for the rule that callbacks run only inside progress (completions also inside ep_destroy).
enum class Where { kOutside, kCall, kProgress, kDestroy };
Where where = Where::kOutside;
struct In {
    Where before = where;
    explicit In(Where now) { where = now; }
    ~In() { where = before; }
};

const char *running = "";
uint64_t violations_before = 0;
std::mt19937_64 generator;
std::vector<Node *> alive;

void on_alarm(int) {
    // Not async-signal-safe; the process is stuck, and what it can still say is worth the risk.
    std::fprintf(stderr, "watchdog: pid %d hangs in test '%s', where %d\n", getpid(), running, static_cast<int>(where));
    for (const Node *n : alive) std::fprintf(stderr, "  %s\n", n->state().c_str());
    std::abort();
}

}  // namespace

Options &options() {
    static Options o;
    return o;
}

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

namespace {
void *symbol_of(const std::string &path, const char *name) {
    void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) throw std::runtime_error(std::string("dlopen failed: ") + dlerror());
    void *symbol = dlsym(library, name);
    if (!symbol) throw std::runtime_error(path + " exports no " + name);
    return symbol;
}
}  // namespace

const mpx_transport &table() {
    static const mpx_transport *t = [] {
        const auto *bare = reinterpret_cast<const mpx_transport *(*)()>(symbol_of(options().library, MPX_TABLE_SYMBOL))();
        if (options().layer.empty()) return bare;
        using Wrap = const mpx_transport *(*)(const mpx_transport *, const char *, const char **);
        const char *why = "";
        const auto *wrapped = reinterpret_cast<Wrap>(symbol_of(options().layer, MPX_LAYER_SYMBOL))(bare, options().settings.c_str(), &why);
        if (!wrapped) throw std::runtime_error(why);
        return wrapped;
    }();
    return *t;
}

mpx_iface_attr query(mpx_iface *iface) {
    mpx_iface_attr a{};
    a.size = sizeof a;
    if (table().iface_query(iface, &a) != MPX_OK) throw std::runtime_error(std::string("iface_query failed: ") + table().why());
    return a;
}

const mpx_iface_attr &attributes() {
    static const mpx_iface_attr a = [] {
        const mpx_domain_params dp{sizeof dp, "", "{}", kJobKey, sizeof kJobKey};
        mpx_domain *d = nullptr;
        if (table().domain_open(&dp, &d) != MPX_OK) throw std::runtime_error(std::string("domain_open failed: ") + table().why());
        mpx_am_handler am[MPX_AM_ID_MAX];
        std::fill_n(
            am, int{MPX_AM_ID_MAX},
            mpx_am_handler{[](void *, void *, const void *, size_t, void *, size_t, unsigned) -> mpx_status { return MPX_OK; }, nullptr});
        const mpx_iface_params ip{sizeof ip,
                                  am,
                                  [](void *, const void *, size_t) -> mpx_ep * { return nullptr; },
                                  [](void *, mpx_ep *, mpx_status) {},
                                  nullptr,
                                  0,
                                  nullptr};
        mpx_iface *i = nullptr;
        if (table().iface_open(d, &ip, &i) != MPX_OK) throw std::runtime_error(std::string("iface_open failed: ") + table().why());
        const mpx_iface_attr got = query(i);
        table().iface_close(i);
        table().domain_close(d);
        return got;
    }();
    return a;
}

std::string cap_names(uint64_t caps) {
    static constexpr struct {
        uint64_t bit;
        const char *name;
    } kNames[] = {{MPX_CAP_AM_SHORT, "AM_SHORT"},
                  {MPX_CAP_AM_BCOPY, "AM_BCOPY"},
                  {MPX_CAP_AM_ZCOPY, "AM_ZCOPY"},
                  {MPX_CAP_PUT_ZCOPY, "PUT_ZCOPY"},
                  {MPX_CAP_GET_ZCOPY, "GET_ZCOPY"},
                  {MPX_CAP_ATOMIC64, "ATOMIC64"},
                  {MPX_CAP_RKEY_PTR, "RKEY_PTR"},
                  {MPX_CAP_CONNECT_IFACE, "CONNECT_IFACE"},
                  {MPX_CAP_CONNECT_EP, "CONNECT_EP"},
                  {MPX_CAP_EVENT_FD, "EVENT_FD"},
                  {MPX_CAP_INTER_NODE, "INTER_NODE"},
                  {MPX_CAP_LINK_MAY_BREAK, "LINK_MAY_BREAK"},
                  {MPX_CAP_NATIVE_PROGRESS, "NATIVE_PROGRESS"},
                  {MPX_CAP_NEED_MEMH, "NEED_MEMH"}};
    std::string out;
    for (const auto &n : kNames)
        if (caps & n.bit) out += (out.empty() ? "" : " ") + std::string(n.name), caps &= ~n.bit;
    return caps ? out + " and unknown bits" : out;
}

void violation(const char *format, ...) {
    if (ledger()->violations++ - violations_before >= kPrintedViolations) return;
    char text[512];
    va_list args;
    va_start(args, format);
    std::vsnprintf(text, sizeof text, format, args);
    va_end(args);
    std::fprintf(stderr, "violation in '%s': %s\n", running, text);
}

uint64_t violations() { return ledger()->violations; }

void exercised(uint64_t caps, uint64_t times) {
    for (int bit = 0; bit < 64; ++bit)
        if (caps >> bit & 1) ledger()->exercised[bit] += times;
}

uint64_t times_exercised(uint64_t cap) { return ledger()->exercised[std::countr_zero(cap)]; }

void run_test(const char *name, void (*body)()) {
    running = name;
    violations_before = violations();
    generator.seed(options().seed ^ std::hash<std::string>{}(name));
    signal(SIGALRM, on_alarm);
    alarm(options().seconds);
    const double from = now_s();
    body();
    alarm(0);
    const uint64_t found = violations() - violations_before;
    std::printf("%-64s %s %.2f s\n", name, found ? "FAILED" : "ok", now_s() - from);
    std::fflush(stdout);
    INFO("seed " << options().seed << ": run again with --seed=" << options().seed);
    CHECK_MESSAGE(found == 0, "violations of the transport contract");
    running = "";
}

bool need(uint64_t caps) {
    if (has(caps)) return true;
    std::printf("  skipped: not advertised: %s\n", cap_names(caps & ~attributes().caps).c_str());
    return false;
}

bool need_two_parties() {
    if (!options().loopback) return true;
    std::printf("  skipped: needs two parties, this transport only reaches itself\n");
    return false;
}

// ---- content ----

std::mt19937_64 &rng() { return generator; }
uint64_t draw(uint64_t low, uint64_t high) { return std::uniform_int_distribution<uint64_t>(low, high)(generator); }

size_t draw_log(size_t high) {
    const double x = std::uniform_real_distribution<>(0, std::log2(static_cast<double>(high) + 1))(generator);
    return std::min(high, static_cast<size_t>(std::exp2(x) - 1));
}

namespace {
uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}
}  // namespace

void fill(void *at, size_t len, uint64_t key) {
    auto *p = static_cast<uint8_t *>(at);
    uint64_t x = mix(key + 1);
    for (size_t i = 0; i < len; i += 8, x += 0x9e3779b97f4a7c15u) {
        const uint64_t word = x ^ x >> 29;
        std::memcpy(p + i, &word, std::min<size_t>(8, len - i));
    }
}

bool filled(const void *at, size_t len, uint64_t key) {
    const auto *p = static_cast<const uint8_t *>(at);
    uint64_t x = mix(key + 1);
    for (size_t i = 0; i < len; i += 8, x += 0x9e3779b97f4a7c15u) {
        const uint64_t word = x ^ x >> 29;
        if (std::memcmp(p + i, &word, std::min<size_t>(8, len - i)) != 0) return false;
    }
    return true;
}

bool poisoned(const void *at, size_t len) {
    const auto *p = static_cast<const uint8_t *>(at);
    return len == 0 || (p[0] == kPoison && std::memcmp(p, p + 1, len - 1) == 0);
}

// ---- nodes ----

struct Callbacks {
    static mpx_status am(void *arg, void *user, const void *header, size_t header_len, void *data, size_t len, unsigned flags) {
        const auto *slot = static_cast<Node::Slot *>(arg);
        Node &n = *slot->node;
        EXPECT(where == Where::kProgress, "a handler ran outside progress (am id %d, where %d)", slot->id, static_cast<int>(where));
        ++n.messages_;
        exercised(has(MPX_CAP_CONNECT_IFACE) ? MPX_CAP_CONNECT_IFACE : MPX_CAP_CONNECT_EP);
        auto *from = static_cast<Peer *>(user);
        bool mine = false;
        for (auto &[index, peer] : n.peers_) mine |= &peer == from && peer.ep;
        if (!EXPECT(mine, "a message (am id %d, %zu bytes) is attributed to no ep that lives", slot->id, len)) return MPX_OK;
        if (!n.handlers_[slot->id]) {
            violation("a message arrived on am id %d, where none was sent", slot->id);
            return MPX_OK;
        }
        Incoming in{n, from, header, header_len, data, len, flags};
        return n.handlers_[slot->id](in);
    }

    static mpx_ep *incoming(void *arg, const void *addr, size_t len) {
        auto &n = *static_cast<Node *>(arg);
        EXPECT(where == Where::kProgress, "on_incoming ran outside progress");
        const Bytes address(static_cast<const uint8_t *>(addr), static_cast<const uint8_t *>(addr) + len);
        for (const auto &[index, known] : n.known_) {
            if (known != address) continue;
            EXPECT(!n.has_ep(index), "on_incoming for a peer that has an ep");
            return n.peer(index).ep;
        }
        return nullptr;
    }

    static void error(void *arg, mpx_ep *ep, mpx_status st) {
        auto &n = *static_cast<Node *>(arg);
        EXPECT(where == Where::kProgress, "on_error ran outside progress");
        EXPECT(st < 0, "on_error with status %d", st);
        for (auto &[index, peer] : n.peers_) {
            if (peer.ep != ep) continue;
            peer.error = st;
            EXPECT(++peer.errors == 1, "on_error a second time for one ep");
            return;
        }
        violation("on_error for an unknown ep");
    }

    static void done(mpx_completion *self, mpx_status st) {
        Op &op = *static_cast<Op *>(self);
        EXPECT(where != Where::kCall, "the completion of %s ran inside the call", op.what);
        EXPECT(where == Where::kProgress || where == Where::kDestroy, "the completion of %s ran outside progress", op.what);
        EXPECT(op.started, "a completion of %s, which did not start", op.what);
        EXPECT(st <= MPX_OK, "the completion of %s with status %d", op.what, st);
        if (EXPECT(++op.completions == 1, "completion ran %d times for one %s", op.completions, op.what)) op.node->finish(op, st);
    }
};

Node::Node(size_t headroom) {
    const mpx_domain_params dp{sizeof dp, "", "{}", kJobKey, sizeof kJobKey};
    if (table().domain_open(&dp, &domain_) != MPX_OK) throw std::runtime_error(std::string("domain_open failed: ") + table().why());
    for (int id = 0; id < MPX_AM_ID_MAX; ++id) {
        slots_[id] = {this, static_cast<uint8_t>(id)};
        am_[id] = {Callbacks::am, &slots_[id]};
    }
    const mpx_iface_params ip{sizeof ip, am_, Callbacks::incoming, Callbacks::error, this, headroom, nullptr};
    if (table().iface_open(domain_, &ip, &iface_) != MPX_OK) throw std::runtime_error(std::string("iface_open failed: ") + table().why());
    address_.resize(attributes().iface_addr_len);
    EXPECT(table().iface_address(iface_, address_.data()) == MPX_OK, "iface_address failed: %s", table().why());
    if (!has(MPX_CAP_CONNECT_IFACE)) wireup_.open(address_);
    alive.push_back(this);
}

Node::~Node() {
    check_graves();
    for (auto &[index, peer] : peers_)
        if (peer.ep) destroy_ep(index);
    EXPECT(outstanding_ == 0, "%zu completions never came, not even by ep_destroy", outstanding_);
    for (auto &op : ops_)
        for (mpx_mem_h m : op->memh) table().mem_dereg(domain_, m);
    table().iface_close(iface_);
    table().domain_close(domain_);
    std::erase(alive, this);
}

void Node::know(int index, const Bytes &address) { known_[index] = address; }

Peer &Node::peer(int index) {
    Peer &p = peers_[index];
    if (p.ep) return p;
    const Bytes &address = known_.at(index);
    p = {this, index, nullptr, wireup_.fd() < 0, 0, MPX_OK};
    In in(Where::kCall);
    if (table().ep_create(iface_, address.data(), attributes().iface_addr_len, &p.ep) != MPX_OK)
        throw std::runtime_error(std::string("ep_create failed: ") + table().why());
    p.ep->user = &p;
    if (!p.linked) begin_wireup(p);
    return p;
}

void Node::destroy_ep(int index) {
    Peer &p = peers_.at(index);
    mpx_ep *ep = p.ep;
    p.ep = nullptr;
    In in(Where::kDestroy);
    table().ep_destroy(ep);
}

void Node::forked() {
    table().iface_forked(iface_);
    wireup_.close();
}

int Node::event_fd() { return wireup_.watch(iface_->ops->event_fd(iface_)); }

unsigned Node::progress() {
    unsigned n = 0;
    {
        In in(Where::kProgress);
        n = iface_->ops->progress(iface_);
    }
    if (wireup_.fd() >= 0) n += wire();
    events_ += n;
    exercised(MPX_CAP_NATIVE_PROGRESS);  // there is no Python in this process
    return n;
}

mpx_status Node::am_short(Peer &p, uint8_t id, uint64_t header, const void *buf, size_t len) {
    if (!p.linked) return MPX_ERR_NO_RESOURCE;
    In in(Where::kCall);
    const mpx_status st = iface_->ops->am_short(p.ep, id, header, buf, len);
    EXPECT(st <= MPX_OK, "am_short returned %d", st);
    if (st == MPX_OK) exercised(MPX_CAP_AM_SHORT);
    return st;
}

mpx_status Node::am_bcopy(Peer &p, uint8_t id, const Bytes &payload, size_t reserve) {
    if (!p.linked) return MPX_ERR_NO_RESOURCE;
    In in(Where::kCall);
    struct Pack {
        const Bytes &payload;
        int calls;
    } pack{payload, 0};
    const mpx_status st = iface_->ops->am_bcopy(
        p.ep, id, std::max(reserve, payload.size()),
        [](void *to, void *arg) {
            auto *pk = static_cast<Pack *>(arg);
            ++pk->calls;
            if (!pk->payload.empty()) std::memcpy(to, pk->payload.data(), pk->payload.size());
            return pk->payload.size();
        },
        &pack);
    EXPECT(st <= MPX_OK, "am_bcopy returned %d", st);
    EXPECT(pack.calls == (st == MPX_OK), "am_bcopy returned %d and packed %d times", st, pack.calls);
    if (st == MPX_OK) exercised(MPX_CAP_AM_BCOPY);
    return st;
}

const std::vector<mpx_iov> &Node::pieces(Op &op, size_t n, unsigned access) {
    op.iov.clear();
    const bool memh = has(MPX_CAP_NEED_MEMH);
    const size_t len = op.buffer.size() - 2 * op.margin;
    for (size_t k = 0; k < n; ++k) {
        const size_t from = len * k / n, to = len * (k + 1) / n;
        op.iov.push_back({op.buffer.data() + op.margin + from, to - from, nullptr});
    }
    if (memh && len && op.memh.empty()) {
        mpx_mem_h m = nullptr;
        EXPECT(table().mem_reg(domain_, op.buffer.data(), op.buffer.size(), MPX_MEM_HOST, access, &m) == MPX_OK, "mem_reg failed: %s",
               table().why());
        op.memh.push_back(m);
    }
    if (memh && len)
        for (mpx_iov &v : op.iov) v.memh = op.memh.front();
    return op.iov;
}

template <class F> mpx_status Node::start(const Peer &peer, Op &op, uint64_t cap, F &&call) {
    if (!peer.linked) return MPX_ERR_NO_RESOURCE;
    EXPECT(!op.started, "the suite started one op twice");
    op.started = true;
    ++outstanding_;
    mpx_status st;
    {
        In in(Where::kCall);
        st = call();
        std::fill(op.iov.begin(), op.iov.end(),
                  mpx_iov{nullptr, ~size_t{0}, nullptr});  // the array is the caller's again, only the bytes are not
    }
    if (st == MPX_INPROGRESS) {
        exercised(cap);
        return st;
    }
    op.started = false;
    if (!op.completions) --outstanding_;
    EXPECT(!op.completions, "%s returned %d and completed", op.what, st);
    if (st != MPX_OK) return st;
    exercised(cap);
    op.completions = 1;
    ++outstanding_;
    finish(op, MPX_OK);
    return st;
}

void Node::finish(Op &op, mpx_status st) {
    op.status = st;
    --outstanding_;
    ++statuses_[st];
    if (op.check) op.check(op);
    std::fill(op.buffer.begin(), op.buffer.end(), kPoison);
    grave_bytes_ += op.buffer.size();
    for (mpx_mem_h m : op.memh) table().mem_dereg(domain_, m);
    op.memh.clear();
    graves_.push_back(std::move(op.buffer));
    op.buffer.clear();
    for (; grave_bytes_ > kGraveBytes; graves_.pop_front()) {
        EXPECT(poisoned(graves_.front().data(), graves_.front().size()), "a buffer was touched after its completion");
        grave_bytes_ -= graves_.front().size();
    }
}

void Node::check_graves() {
    for (const Bytes &b : graves_) EXPECT(poisoned(b.data(), b.size()), "a buffer of %zu bytes was touched after its completion", b.size());
}

mpx_status Node::am_zcopy(Peer &p, uint8_t id, const Bytes &header, Op &op, size_t n) {
    const auto &iov = pieces(op, n, MPX_ACCESS_LOCAL);
    Bytes passing = header;  // gone when the call returns, as the array of iovs is
    return start(p, op, MPX_CAP_AM_ZCOPY,
                 [&] { return iface_->ops->am_zcopy(p.ep, id, passing.data(), passing.size(), iov.data(), iov.size(), &op); });
}

mpx_status Node::put(Peer &p, Op &op, uint64_t raddr, mpx_rkey_h key, size_t n) {
    const auto &iov = pieces(op, n, MPX_ACCESS_LOCAL);
    return start(p, op, MPX_CAP_PUT_ZCOPY, [&] { return iface_->ops->put_zcopy(p.ep, iov.data(), iov.size(), raddr, key, &op); });
}

mpx_status Node::get(Peer &p, Op &op, uint64_t raddr, mpx_rkey_h key, size_t n) {
    const auto &iov = pieces(op, n, MPX_ACCESS_LOCAL);
    return start(p, op, MPX_CAP_GET_ZCOPY, [&] { return iface_->ops->get_zcopy(p.ep, iov.data(), iov.size(), raddr, key, &op); });
}

mpx_status Node::atomic(Peer &p, Op &op, unsigned what, uint64_t operand, uint64_t compare, uint64_t *result, uint64_t raddr,
                        mpx_rkey_h key) {
    return start(p, op, MPX_CAP_ATOMIC64, [&] { return iface_->ops->atomic64(p.ep, what, operand, compare, result, raddr, key, &op); });
}

mpx_status Node::flush(Peer &p, Op &op) {
    return start(p, op, 0, [&] { return iface_->ops->ep_flush(p.ep, &op); });
}

mpx_status Node::check(Peer &p, Op &op) {
    return start(p, op, 0, [&] { return table().ep_check(p.ep, &op); });
}

Op &Node::op(const char *what, Bytes buffer) {
    ops_.push_back(std::make_unique<Op>());
    Op &op = *ops_.back();
    op.done = Callbacks::done;
    op.node = this;
    op.what = what;
    op.buffer = std::move(buffer);
    return op;
}

int Node::completions() const {
    int n = 0;
    for (const auto &[st, times] : statuses_) n += times;
    return n;
}

mpx_status Node::arm() {
    In in(Where::kCall);
    const mpx_status st = iface_->ops->event_arm(iface_);
    EXPECT(st == MPX_OK || st == MPX_ERR_NO_RESOURCE, "event_arm returned %d", st);
    return st;
}

bool Node::sleep(int extra_fd) {
    if (!has(MPX_CAP_EVENT_FD)) {
        if (extra_fd < 0) return true;
        pollfd p{extra_fd, POLLIN, 0};
        poll(&p, 1, 0);
        return true;
    }
    if (arm() != MPX_OK) return true;
    pollfd fds[2] = {{event_fd(), POLLIN, 0}, {extra_fd, POLLIN, 0}};
    const int n = poll(fds, extra_fd < 0 ? 1 : 2, kWakeMilliseconds);
    if (n > 0 && fds[0].revents & POLLIN) exercised(MPX_CAP_EVENT_FD);
    return n != 0;
}

std::string Node::state() const {
    char text[160];
    std::snprintf(text, sizeof text, "node: %llu messages in, %llu events, %zu completions outstanding, %zu eps",
                  static_cast<unsigned long long>(messages_), static_cast<unsigned long long>(events_), outstanding_, peers_.size());
    return text;
}

// ---- worlds ----

World::World(int n, size_t headroom) {
    const int nodes = options().loopback ? 1 : n;
    for (int i = 0; i < nodes; ++i) nodes_.push_back(std::make_unique<Node>(headroom));
    for (auto &a : nodes_)
        for (int j = 0; j < nodes; ++j) a->know(j, nodes_[static_cast<size_t>(j)]->address());
}

unsigned World::progress() {
    unsigned n = 0;
    for (auto &node : nodes_)
        if (node) n += node->progress();
    return n;
}

bool World::until(const char *what, const std::function<bool()> &done) {
    for (double last = now_s(); !done();) {
        if (progress()) last = now_s();
        else if (now_s() - last > kStallSeconds) {
            violation("stalled while waiting for %s", what);
            return false;
        }
    }
    return true;
}

void World::settle() {
    // A transport over sockets needs the kernel's time to carry bytes from one node to the other: idle means idle for a while.
    for (double last = now_s(); now_s() - last < 0.02;)
        if (progress()) last = now_s();
}

bool wait_until(Node &node, const char *what, const std::function<bool()> &done) {
    for (double last = now_s(); !done();) {
        if (node.progress()) {
            last = now_s();
            continue;
        }
        if (now_s() - last > kStallSeconds) {
            violation("stalled while waiting for %s", what);
            return false;
        }
        if (!node.sleep() && node.progress()) {
            violation("lost wake-up: the event came not in %d ms, and progress then did something", kWakeMilliseconds);
            return done();
        }
    }
    return true;
}

// ---- teams ----

namespace {

bool write_all(int fd, const void *data, size_t len) {
    for (const auto *p = static_cast<const char *>(data); len;) {
        const ssize_t n = send(fd, p, len, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        p += n, len -= static_cast<size_t>(n);
    }
    return true;
}

bool read_all(int fd, void *data, size_t len) {
    for (auto *p = static_cast<char *>(data); len;) {
        const ssize_t n = read(fd, p, len);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        p += n, len -= static_cast<size_t>(n);
    }
    return true;
}

bool write_blob(int fd, const Bytes &b) {
    const uint64_t len = b.size();
    return write_all(fd, &len, sizeof len) && write_all(fd, b.data(), b.size());
}

bool read_blob(int fd, Bytes &b) {
    uint64_t len = 0;
    if (!read_all(fd, &len, sizeof len)) return false;
    b.resize(len);
    return read_all(fd, b.data(), len);
}

}  // namespace

Party::Party(int rank, int size, int fd) : rank_(rank), size_(size), fd_(fd), node_(std::make_unique<Node>()) {
    const auto addresses = exchange(node_->address(), false);
    for (int j = 0; j < size_; ++j) node_->know(j, addresses[static_cast<size_t>(j)]);
}

std::vector<Bytes> Party::exchange(const Bytes &mine, bool progress) {
    write_blob(fd_, mine);
    for (; progress && node_;) {
        while (node_->progress()) {
        }
        pollfd p{fd_, POLLIN, 0};
        if (poll(&p, 1, 0) > 0) break;
        node_->sleep(fd_);
    }
    std::vector<Bytes> all(static_cast<size_t>(size_));
    for (Bytes &b : all)
        if (!EXPECT(read_blob(fd_, b), "rank %d: the coordinator is gone", rank_)) break;
    return all;
}

void Party::leave() {
    exchange();
    node_.reset();
}

void team(int size, const std::function<void(Party &)> &body, int killed) {
    if (options().loopback) size = 1;
    std::fflush(stdout);
    std::vector<int> fds;
    std::vector<pid_t> pids;
    for (int r = 0; r < size; ++r) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) throw std::runtime_error("socketpair failed");
        const pid_t pid = fork();
        if (pid < 0) throw std::runtime_error("fork failed");
        if (pid == 0) {
            for (int fd : fds) close(fd);
            close(pair[0]);
            alarm(options().seconds > 5 ? options().seconds - 5 : 1);  // before the parent's, so that each says where it stands
            generator.seed(options().seed ^ std::hash<std::string>{}(running) ^ static_cast<uint64_t>(r + 1) << 40);
            try {
                Party party(r, size, pair[1]);
                body(party);
                party.leave();
            } catch (const std::exception &e) {
                violation("rank %d: %s", r, e.what());
            }
            std::fflush(nullptr);
            // Without the check for leaks: its tracer crashes in a forked child of a process with libraries from dlopen. The tests with
            // several parties in one process look for leaks.
            _exit(0);
        }
        close(pair[1]);
        fds.push_back(pair[0]);
        pids.push_back(pid);
    }
    // The coordinator: rounds of "a blob of each that is still there, to each that is still there".
    std::vector<bool> gone(static_cast<size_t>(size));
    for (bool any = true; any;) {
        any = false;
        std::vector<Bytes> blobs(static_cast<size_t>(size));
        for (size_t r = 0; r < fds.size(); ++r) {
            if (gone[r]) continue;
            if (read_blob(fds[r], blobs[r])) any = true;
            else gone[r] = true, blobs[r].clear();
        }
        for (size_t r = 0; any && r < fds.size(); ++r)
            for (const Bytes &b : blobs)
                if (!gone[r]) write_blob(fds[r], b);
    }
    for (size_t r = 0; r < pids.size(); ++r) {
        int status = 0;
        waitpid(pids[r], &status, 0);
        close(fds[r]);
        if (static_cast<int>(r) == killed) EXPECT(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "rank %zu was to be killed", r);
        else
            EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0, "rank %zu ended with wait status 0x%x", r, static_cast<unsigned>(status));
    }
}

int open_descriptors() {
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d)) ++n;
    if (d) closedir(d);
    return n;
}

}  // namespace mpx::conform
