// What the conformance tests stand on: a transport's table loaded from its library, nodes (domain, iface, eps) that watch the contract at
// every call and callback, and teams of forked processes that exchange a few bytes before and after they talk over the transport.
//
// A rule of the contract that is broken becomes a `violation`: printed, counted in memory shared with forked children, and reported by the
// test case that was running. Callbacks never throw. Everything here runs on one thread per process; a Node is closed by its destructor.
#pragma once
#include <pympx/transport.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "wireup.h"

namespace mpx::conform {

struct Options {
    std::string library;    // the fast path to load
    std::string layer;      // the library of a layer around it, if any
    std::string settings;   // of the layer
    bool loopback = false;  // an iface reaches only itself
    uint64_t rounds = 1;    // multiplies the rounds of random tests
    uint64_t seed = 0;
    unsigned seconds = 60;  // watchdog per test
};
Options &options();

const mpx_transport &table();
mpx_iface_attr query(mpx_iface *iface);
const mpx_iface_attr &attributes();  // as a fresh iface answered at the start
inline bool has(uint64_t caps) { return (attributes().caps & caps) == caps; }
std::string cap_names(uint64_t caps);

// ---- what went wrong, what was exercised ----

[[gnu::format(printf, 1, 2)]] void violation(const char *format, ...);
#define EXPECT(condition, ...) ((condition) ? true : (::mpx::conform::violation(__VA_ARGS__), false))
uint64_t violations();
void exercised(uint64_t caps, uint64_t times = 1);
uint64_t times_exercised(uint64_t cap);

// Runs `body` under the watchdog, prints the seed of a failure, fails the doctest case on violations.
void run_test(const char *name, void (*body)());
// False, with the reason printed, when the transport does not advertise `caps`.
bool need(uint64_t caps);
bool need_two_parties();
#define CONFORMANCE(id, name)                               \
    static void id();                                       \
    TEST_CASE(name) { ::mpx::conform::run_test(name, id); } \
    static void id()

// ---- content ----

std::mt19937_64 &rng();  // seeded anew for each test, from the seed and the test's name
uint64_t draw(uint64_t low, uint64_t high);
size_t draw_log(size_t high);  // 0..high, log-uniform
void fill(void *at, size_t len, uint64_t key);
bool filled(const void *at, size_t len, uint64_t key);
constexpr uint8_t kPoison = 0xdd;
bool poisoned(const void *at, size_t len);

// ---- nodes ----

class Node;

struct Peer {
    Node *node = nullptr;
    int index = -1;
    mpx_ep *ep = nullptr;
    bool linked = true;  // its ep needs no wireup, or has had it
    int errors = 0;
    mpx_status error = MPX_OK;
};

// One operation with a completion. It is kept until its Node closes, so that a second completion is seen, not a crash.
struct Op : mpx_completion {
    Node *node = nullptr;
    const char *what = "";
    bool started = false;
    int completions = 0;
    mpx_status status = MPX_INPROGRESS;
    Bytes buffer;                     // poisoned at the completion: neither side may touch it any more
    size_t margin = 0;                // bytes at both ends of the buffer that are not part of the operation
    std::function<void(Op &)> check;  // run at the completion, before the poison
    std::vector<mpx_iov> iov;
    std::vector<mpx_mem_h> memh;

    bool finished() const { return completions > 0; }
};

struct Incoming {
    Node &node;
    Peer *from;
    const void *header;
    size_t header_len;
    void *data;
    size_t len;
    unsigned flags;
};
using Handler = std::function<mpx_status(Incoming &)>;

class Node {
public:
    explicit Node(size_t headroom = 0);
    ~Node();
    Node(const Node &) = delete;
    Node &operator=(const Node &) = delete;

    mpx_domain *domain() { return domain_; }
    mpx_iface *iface() { return iface_; }
    const Bytes &address() const { return address_; }  // the iface's, and where its wireup is heard
    Bytes iface_address() const { return {address_.begin(), address_.begin() + static_cast<ptrdiff_t>(attributes().iface_addr_len)}; }
    void know(int index, const Bytes &address);  // this peer may connect, and be connected to
    Peer &peer(int index);                       // its ep is created when there is none
    void forked();                               // in a child: as the table's iface_forked
    bool has_ep(int index) { return peers_.count(index) && peers_[index].ep; }
    void destroy_ep(int index);
    void on(uint8_t id, Handler handler) { handlers_[id] = std::move(handler); }

    unsigned progress();
    mpx_status am_short(Peer &, uint8_t id, uint64_t header, const void *buf, size_t len);
    mpx_status am_bcopy(Peer &, uint8_t id, const Bytes &payload, size_t reserve = 0);  // reserve: the len announced, if more
    // The op's buffer is the payload, cut into `pieces`.
    mpx_status am_zcopy(Peer &, uint8_t id, const Bytes &header, Op &, size_t pieces = 1);
    mpx_status put(Peer &, Op &, uint64_t raddr, mpx_rkey_h, size_t pieces = 1);
    mpx_status get(Peer &, Op &, uint64_t raddr, mpx_rkey_h, size_t pieces = 1);
    mpx_status atomic(Peer &, Op &, unsigned op, uint64_t operand, uint64_t compare, uint64_t *result, uint64_t raddr, mpx_rkey_h);
    mpx_status flush(Peer &, Op &);
    mpx_status check(Peer &, Op &);

    Op &op(const char *what, Bytes buffer = {});
    size_t outstanding() const { return outstanding_; }
    int completions(mpx_status st) const { return statuses_.count(st) ? statuses_.at(st) : 0; }
    int completions() const;
    void check_graves();  // buffers of completed operations still hold the poison

    int event_fd();
    // Arms and sleeps until the event or `extra_fd` is readable. False when the time limit passed first.
    bool sleep(int extra_fd = -1);
    mpx_status arm();
    uint64_t bytes(bool received) { return table().iface_bytes(iface_, received); }
    std::string state() const;

private:
    friend struct Callbacks;
    struct Slot {
        Node *node;
        uint8_t id;
    };
    template <class F> mpx_status start(const Peer &peer, Op &op, uint64_t cap, F &&call);
    bool leads(int index) const { return address_ < known_.at(index); }
    void begin_wireup(const Peer &);
    unsigned wire();
    void hear(const WireupMessage &);
    const std::vector<mpx_iov> &pieces(Op &op, size_t n, unsigned access);
    void finish(Op &op, mpx_status st);

    mpx_domain *domain_ = nullptr;
    mpx_iface *iface_ = nullptr;
    Bytes address_;
    WireupSocket wireup_;
    std::map<int, WireupState> wireups_;
    Slot slots_[MPX_AM_ID_MAX];
    mpx_am_handler am_[MPX_AM_ID_MAX];
    Handler handlers_[MPX_AM_ID_MAX];
    std::map<int, Bytes> known_;
    std::map<int, Peer> peers_;
    std::list<std::unique_ptr<Op>> ops_;
    std::deque<Bytes> graves_;
    size_t outstanding_ = 0, grave_bytes_ = 0;
    std::map<mpx_status, int> statuses_;
    uint64_t messages_ = 0, events_ = 0;
};

// n nodes in this process that know each other; over a loopback transport all are the one node.
class World {
public:
    explicit World(int n, size_t headroom = 0);
    Node &node(int i) { return *nodes_[nodes_.size() == 1 ? 0 : static_cast<size_t>(i)]; }
    Peer &peer(int from, int to) { return node(from).peer(nodes_.size() == 1 ? 0 : to); }
    size_t size() const { return nodes_.size(); }
    unsigned progress();
    // Progresses all nodes until `done`; a violation naming `what` when nothing has happened for seconds.
    bool until(const char *what, const std::function<bool()> &done);
    void settle();  // until nothing moves any more

private:
    std::vector<std::unique_ptr<Node>> nodes_;
};

// Progresses `node` until `done`, asleep on its event between; a violation when nothing happens for seconds.
bool wait_until(Node &node, const char *what, const std::function<bool()> &done);

// ---- teams of processes ----

class Party {
public:
    Party(int rank, int size, int fd);
    int rank() const { return rank_; }
    int size() const { return size_; }
    Node &node() { return *node_; }
    Peer &peer(int rank) { return node_->peer(rank); }
    // All parties' blobs by rank, the node progressed meanwhile; empty from one that is gone.
    std::vector<Bytes> exchange(const Bytes &mine = {}, bool progress = true);
    void barrier() { exchange(); }
    void leave();  // the node closes, after a last barrier

private:
    int rank_, size_, fd_;
    std::unique_ptr<Node> node_;
};

// Forks `size` processes (one over a loopback transport) that run `body`; returns when all have ended. `killed`: the rank that is
// to die by its own SIGKILL.
void team(int size, const std::function<void(Party &)> &body, int killed = -1);

double now_s();
int open_descriptors();

}  // namespace mpx::conform
