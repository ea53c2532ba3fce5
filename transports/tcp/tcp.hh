// The objects of the tcp transport and who owns what. All of it runs under the engine lock, one thread at a time.
//
// Domain owns the registrations. Iface owns its listening socket, epoll set, timer and every Link. Ep is the engine's handle on one peer,
// owned by the engine between ep_create and ep_destroy. Link is one TCP connection: in handshake, up (then it is its ep's only link), or
// lingering without an ep until the peer has all that we sent. A link that ends inside progress goes to the iface's graveyard and is freed
// when progress returns, so no loop over events meets a freed one. Completions and on_error run only from progress (or ep_destroy).
#pragma once
#include <pympx/transport.h>
#include <sys/uio.h>

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "auth.hh"
#include "config.hh"
#include "wire.hh"

namespace mpx::tcp {

inline constexpr size_t kOutCapacity = 256 * 1024;  // bytes accepted beyond what the kernel took, per link
inline constexpr size_t kInCapacity = 256 * 1024;
inline constexpr size_t kWriteBudget = 1024 * 1024;  // per link and progress, so that input is read in between
inline constexpr size_t kMaxHalfOpen = 128;          // accepted, not yet authenticated; one more costs another its place
inline constexpr int kAcceptBurst = 32;              // per listening socket and look at the event set
inline constexpr int64_t kStrangerMs = 5000;         // for an accepted connection to authenticate
inline constexpr int64_t kConnectMs = 1000;          // for the kernel to connect; then the session above tries again
inline constexpr int64_t kReconnectMs = 200;         // the same to a peer that was near before: a lost SYN is sent again only after 1 s
inline constexpr uint32_t kPatientConnect = 16;      // but one in so many waits longer: the peer may be farther away now
inline constexpr int64_t kStaggerMs = 20;            // then the peer's next address is tried beside the first
inline constexpr int64_t kBusyMs = 20000;            // a peer that says kBusy is asked again that long
inline constexpr int64_t kBusyRetryMs = 5;
inline constexpr int64_t kRetryMs = 20;
inline constexpr int64_t kLivenessMs = 250;
inline constexpr int64_t kLingerMs = 10000;  // a destroyed ep's connection waits that long for the peer's EOF
inline constexpr int64_t kCloseMs = 250;     // iface_close waits that long for acknowledgements
// That many connections in a row that ended inside the handshake, for that long: who listens there is not our peer.
inline constexpr int kMaxLateEof = 5;
inline constexpr int64_t kLateEofMs = 2000;

struct Iface;
struct Link;

void set_why(std::string text);
const char *why();
std::string describe(const Place &);    // "192.0.2.1:40000"
std::string describe(const Address &);  // all of them
int64_t now_ms();

}  // namespace mpx::tcp

// The ABI's opaque types are ours to define.
struct mpx_memh {
    uint8_t *addr;
    size_t len;
    unsigned access;
    bool live, owned;     // owned: from mem_alloc
    uint32_t generation;  // a stale id never matches the slot's next user
    uint64_t id;          // slot and generation
    unsigned serving;     // gets that read it now
};
struct mpx_rkey {
    mpx::tcp::PackedKey key;
};
struct mpx_domain {
    mpx_domain(const mpx::tcp::Config &config, const void *key, size_t key_len) : config(config), key(key, key_len) {}

    // The registration that `packed` names if [addr, addr + len) lies inside it and may be read remotely, else nullptr.
    mpx_memh *find(const mpx::tcp::PackedKey &packed, uint64_t addr, uint64_t len);

    mpx::tcp::Config config;
    mpx::tcp::JobKey key;
    mpx::tcp::KeySealer sealer;
    std::deque<mpx_memh> slots;
    std::vector<uint32_t> free_slots;
    std::vector<mpx::tcp::Iface *> ifaces;
};

namespace mpx::tcp {

struct Get {  // ours, at the requester; answered in order
    uint64_t id;
    mpx_completion *comp;
    size_t iovcnt, at;  // at: the first iov that is not full
    uint64_t left;
    iovec iov[kMaxIov];
};
struct Serve {  // a peer's get, at the owner of the memory; served in order
    uint64_t id;
    mpx_memh *mem;  // nullptr: to be refused
    uint8_t *addr;
    uint64_t left;
};
struct Flush {
    mpx_completion *comp;
    uint64_t position;  // of the output stream, to be acknowledged
    uint64_t gets;      // requests up to this number are to be completed
};

struct Ep : mpx_ep {
    Iface *owner = nullptr;
    Address peer{};
    std::vector<Link *> tries;     // ours, to several of the peer's places at once; none has shown that it is the peer
    std::vector<Place> untried;    // places still to come, each kStaggerMs after the other
    int64_t next_try = 0;          // when, if any
    int64_t patience_ms = 0;       // with each of them
    std::vector<std::string> why;  // what became of the tries that ended
    bool timed_out = false;        // one of them
    bool may_pass = false;         // one of them ended by what may be otherwise next time
    bool late_eof = false;         // one of them ended after the kernel had connected
    bool trying() const { return link || retry_at || !tries.empty() || !untried.empty(); }

    Link *link = nullptr;  // ours, to the peer itself, awaiting its verdict; or up
    Link *live = nullptr;  // == link once it is up
    mpx_status failed = MPX_OK;
    std::string reason;
    int64_t retry_at = 0;  // when to connect again; 0: not waiting
    int64_t busy_since = 0;
    int64_t eof_since = 0;  // of late_eofs
    int late_eofs = 0;
};

// What outlives the eps to a peer: it tells whether a connect is newer than the link that we hold.
struct Meetings {
    uint32_t attempts = 0;             // connects that we began
    uint32_t accepted = 0;             // the last of its connects that we accepted
    uint32_t connects = 0;             // since it was up
    int64_t patience_ms = kConnectMs;  // by the round trips of the last link
};

struct Link {
    enum State { kConnecting, kAwaitHello, kAwaitChallenge, kAwaitProof, kAwaitVerdict, kUp, kLinger, kDead };

    Link(Iface *iface, int fd, State state) : iface(iface), fd(fd), state(state) {}
    ~Link();
    void hang_up();
    Link(const Link &) = delete;
    Link &operator=(const Link &) = delete;

    Iface *iface;
    Ep *ep = nullptr;
    int fd;
    State state;
    Place to{};            // the other end
    uint32_t armed = 0;    // epoll events asked for
    int64_t deadline = 0;  // handshake or linger

    // handshake.cc
    uint8_t hs[kMaxHandshake];
    size_t hs_have = 0;
    Hello hello{};      // the connector's
    bool ours = false;  // we are the connector
    Nonce nonce{};      // the acceptor's
    void handshake();   // as far as it goes without blocking
    bool read_exactly(size_t n);
    bool send_all(const void *p, size_t n);
    void go_up(Ep *ep);

    // link.cc, input: [in_begin, in_end) is received and not dispatched
    std::unique_ptr<uint8_t[]> in;
    size_t in_begin = 0, in_end = 0;
    size_t skip = 0;           // padding still to come
    uint64_t direct_left = 0;  // bytes of the current kGetData frame that belong into gets.front()
    size_t direct_pad = 0;
    std::deque<Get> gets;
    uint64_t gets_posted = 0, gets_done = 0;
    unsigned read_in();
    bool parse();  // false: the peer violates the protocol
    bool dispatch(const Frame &f, uint8_t *body);
    void end_piece();
    void accept_request(const Frame &f, const uint8_t *body);
    static void fill(Get &g, const uint8_t *from, size_t n);

    // link.cc, output: the head (zero-copy, in progress), then the buffer, then the next piece of a get
    std::unique_ptr<uint8_t[]> out;
    size_t out_begin = 0, out_end = 0;
    iovec head[kMaxIov + 3];
    size_t head_at = 0, head_cnt = 0;
    Frame head_frame{};
    uint8_t head_hdr[kMaxHdr];
    mpx_completion *head_comp = nullptr;
    mpx_memh *head_mem = nullptr;
    std::vector<uint8_t> spill;  // what a withdrawn buffer still owed to the frame that was begun
    std::deque<Serve> serves;
    uint64_t sent = 0;
    bool yield = false;  // an operation was refused: let it in before the next piece
    bool tx_broken = false;
    bool fenced = false;             // nothing more is read
    bool shut = false, eof = false;  // lingering: we said, the peer said all
    std::deque<Flush> flushes;
    bool idle_out() const { return head_at == head_cnt && out_begin == out_end; }
    size_t pending_out() const;
    bool room(size_t n);  // in the buffer for n more bytes, compacting it
    void append(const void *p, size_t n);
    mpx_status send_frame(const Frame &f, const void *a, size_t a_len, const void *b, size_t b_len);
    mpx_status send_zcopy(const Frame &f, const void *hdr, size_t hdr_len, const mpx_iov *iov, size_t cnt, mpx_completion *comp);
    unsigned write_out();
    bool start_piece();
    void spill_head();
    void withdraw(mpx_memh *mem);                    // mem is deregistered: stop reading it
    ssize_t send_iov(const iovec *iov, size_t cnt);  // what the kernel took; 0 when full; -1 broken
    void arm(uint32_t events);
    unsigned check_flush();
    bool acknowledged(uint64_t position) const;
    void cancel(mpx_status st);  // every outstanding completion
};

struct Iface : mpx_iface {
    Iface(mpx_domain *domain, const mpx_iface_params &params) : domain(domain), params(params) {}
    ~Iface();

    mpx_domain *domain;
    mpx_iface_params params;
    Address address{};
    int epoll_fd = -1, timer_fd = -1;
    std::vector<int> listen_fds;  // one per place of `address`
    bool accepting = true;
    std::map<Id, Ep *> eps;
    std::map<Id, Meetings> meetings;
    std::vector<std::unique_ptr<Link>> links, graveyard;
    std::vector<Link *> flushing;
    std::vector<Ep *> broken;  // on_error is due
    size_t half_open = 0, writers = 0;
    Link *hot = nullptr;  // read without asking epoll
    unsigned idle_spins = 0, busy_spins = 0;
    bool force_poll = false;
    int64_t period_ms = 0;  // of the timer; 0: off
    uint64_t bytes_sent = 0, bytes_received = 0;

    bool open();
    bool listen_on(const Config &config);
    int listen_at(uint32_t ipv4, const Config &config, uint16_t preferred, Place &at);
    bool watch_listeners(int op);
    unsigned progress();
    unsigned poll();
    void tick();
    void want_tick(int64_t ms);
    void close();

    // handshake.cc
    void accept_new(int listen_fd);
    Link *stranger_to_drop() const;
    std::vector<Place> places_of(const Address &peer) const;  // those that may lead to it from here, best first
    void connect(Ep *ep);
    void try_next(Ep *ep);
    void try_failed(Link *link, const std::string &reason, bool may_pass);
    void all_failed(Ep *ep);
    void drop_tries(Ep *ep);
    void verdict(Link *link);
    void lost_handshake(Link *link, const char *reason);  // of ours: try again or give up
    void retry(Ep *ep, int64_t ms = kRetryMs);

    void bury(Link *link);    // close the socket; freed when progress returns
    void linger(Link *link);  // of a destroyed ep
    void linger_step(Link *link);
    void link_failed(Link *link, const std::string &reason);  // inside progress: the end of an up link
    void fail(Ep *ep, mpx_status st, std::string reason);     // marks; on_error follows in progress
    unsigned report_broken();
    void check_liveness(Link *link);
};

extern const mpx_iface_ops kOps;

// The control path, one function per entry of the table.
mpx_status domain_open(const mpx_domain_params *, mpx_domain **);
void domain_close(mpx_domain *);
mpx_status mem_alloc(mpx_domain *, size_t, void **, mpx_mem_h *);
void mem_free(mpx_domain *, void *, mpx_mem_h);
mpx_status mem_reg(mpx_domain *, void *, size_t, int, unsigned, mpx_mem_h *);
mpx_status mem_dereg(mpx_domain *, mpx_mem_h);
mpx_status rkey_pack(mpx_domain *, mpx_mem_h, void *, size_t);
mpx_status rkey_unpack(mpx_domain *, const void *, size_t, mpx_rkey_h *);
void *rkey_ptr(mpx_domain *, mpx_rkey_h, uint64_t);
void rkey_release(mpx_domain *, mpx_rkey_h);
mpx_status iface_open(mpx_domain *, const mpx_iface_params *, mpx_iface **);
void iface_close(mpx_iface *);
mpx_status iface_query(mpx_iface *, mpx_iface_attr *);
mpx_status iface_address(mpx_iface *, void *);
int iface_reachable(mpx_iface *, const void *, size_t);
mpx_status ep_create(mpx_iface *, const void *, size_t, mpx_ep **);
mpx_status ep_fence_off(mpx_ep *);
mpx_status ep_check(mpx_ep *, mpx_completion *);
void ep_destroy(mpx_ep *);
uint64_t iface_bytes(mpx_iface *, int);
void iface_forked(mpx_iface *);

}  // namespace mpx::tcp
