// Explores the shm ring (transports/shm/ring.h, the very code) on small instances: every interleaving, and every value that C++
// lets an atomic operation read, by a view-based operational semantics.
//
// Memory keeps for each location all its writes in modification order; a thread has a view, the oldest write of each location
// that it may still read. A relaxed load reads any write not older; an acquire load joins the view that a release write
// carries; a store goes anywhere behind the thread's view, but not between an RMW and the write that the RMW read; an RMW reads
// a write that no other RMW has read and stands right behind it. Payload is plain memory: two accesses, one a write, that
// happens-before (vector clocks) does not order are a data race. A pipe transports a token and, to assume less, no view.
// Not modelled: load buffering (a load that sees a write which depends on a later store of its own thread; RC11 forbids it), and
// spurious failure (the ring uses strong CAS). There are no fences and no seq_cst in the ring.
//
// Search: depth first over a stack of choices, each run replayed from the start in coroutines; a state seen before is not entered
// again. A state is memory as far as any thread can still see it, views, clocks and each thread's local state.
//
// It also weakens each order of RingOrders in turn and demands that a violation is found: an order that nobody needs fails it.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "../../transports/shm/ring.h"

namespace {

using mpx::shm::Bell;
using mpx::shm::kCell;
using mpx::shm::kWord;
using mpx::shm::Message;
using mpx::shm::RingControl;
using mpx::shm::RingOrders;
using mpx::shm::RingReceiver;
using mpx::shm::RingSender;

constexpr int kThreads = 3, kLocations = 24;
constexpr size_t kStack = 64 * 1024;
constexpr int kMaxSteps = 5000;

uint64_t mix(uint64_t h, uint64_t v) {
    h ^= v + 0x9e3779b97f4a7c15u + (h << 6) + (h >> 2);
    h *= 0xff51afd7ed558ccdu;
    return h ^ h >> 32;
}

using View = std::array<uint16_t, kLocations>;  // id of a write, by location
using Clock = std::array<uint16_t, kThreads>;

struct Write {
    uint16_t id;    // 0: the initial one, else the writer and its count
    bool attached;  // an RMW: nothing may come between it and the write before
    bool carries;   // a release, or an RMW that continues one
    uint64_t value;
    View view;
    Clock clock;
};

struct Location {
    std::vector<Write> writes;                                 // modification order
    Clock plain_read, plain_write, atomic_read, atomic_write;  // the threads' clocks at their last access
    int at(uint16_t id) const {
        for (size_t i = writes.size(); i-- > 0;) {
            if (writes[i].id == id) return int(i);
        }
        abort();
    }
};

struct Thread {
    ucontext_t start;
    jmp_buf resume;
    std::vector<char> stack = std::vector<char>(kStack);
    bool started, finished, waiting;
    int pipe;  // what it waits on
    View view;
    Clock clock;
    uint16_t writes;
    uint64_t local;  // hash of its local state: the last checkpoint and all that it read since
};

enum class Outcome { kRunning, kEnded, kPruned, kViolation };

class Explorer {
public:
    using Body = void (*)(int self);
    std::string violation;
    size_t states = 0, runs = 0;

    // True: all was explored and every property holds. Memory starts as 0.
    bool explore(int threads, Body body) {
        body_ = body;
        thread_count_ = threads;
        stack_.clear();
        table_.assign(1 << 16, 0);
        states = runs = 0;
        violation.clear();
        do {
            ++runs;
            run();
            if (outcome_ == Outcome::kViolation) return false;
            while (!stack_.empty() && stack_.back().taken + 1 == stack_.back().of) stack_.pop_back();
            if (!stack_.empty()) ++stack_.back().taken;
        } while (!stack_.empty());
        return true;
    }

    // ---- what threads call
    void fail(const std::string &what) {
        violation = what;
        outcome_ = Outcome::kViolation;
        _longjmp(scheduler_, 1);
    }
    void step() {
        remember(1);  // two steps that see and change nothing new are still two
        if (_setjmp(threads_[current_].resume) == 0) _longjmp(scheduler_, 1);
    }
    void checkpoint(uint64_t hash) { threads_[current_].local = hash; }
    void remember(uint64_t value) { threads_[current_].local = mix(threads_[current_].local, value); }

    uint64_t load(int l, std::memory_order o) {
        step();
        Location &loc = locations_[l];
        const int first = loc.at(me().view[l]);
        const int i = first + choose(int(loc.writes.size()) - first);
        return read(l, i, o);
    }
    void store(int l, uint64_t value, std::memory_order o) {
        step();
        Location &loc = locations_[l];
        std::array<int, 64> places;
        int n = 0;
        for (int p = int(loc.writes.size()); p > loc.at(me().view[l]); --p) {
            if (p == int(loc.writes.size()) || !loc.writes[p].attached) places[n++] = p;
        }
        write(l, places[choose(n)], value, o, nullptr);
    }
    template <class F> uint64_t rmw(int l, F &&f, std::memory_order o) {
        step();
        std::array<int, 64> from;
        const int n = readable_by_rmw(l, from);
        const int i = from[choose(n)];
        const uint64_t old = read(l, i, o);
        const Write source = locations_[l].writes[i];
        write(l, i + 1, f(old), o, &source);
        return old;
    }
    bool cas(int l, uint64_t expected, uint64_t desired, std::memory_order o) {
        step();
        Location &loc = locations_[l];
        std::array<int, 64> from;
        int n = 0;
        for (int i = loc.at(me().view[l]); i < int(loc.writes.size()); ++i) {
            if (loc.writes[i].value != expected || free_behind(loc, i)) from[n++] = i;
        }
        const int i = from[choose(n)];
        if (loc.writes[i].value != expected) {
            read(l, i, std::memory_order_relaxed);
            return false;
        }
        read(l, i, o);
        const Write source = loc.writes[i];
        write(l, i + 1, desired, o, &source);
        return true;
    }
    void plain_write(int l, uint64_t value) {
        Location &loc = locations_[l];
        for (int u = 0; u < thread_count_; ++u) {
            if (u == current_) continue;
            const uint16_t last = std::max({loc.plain_read[u], loc.plain_write[u], loc.atomic_read[u], loc.atomic_write[u]});
            if (last > me().clock[u]) fail("data race: a plain write meets an access of another thread");
        }
        loc.plain_write[current_] = me().clock[current_];
        loc.writes.push_back(Write{next_id(), false, false, value, {}, {}});
        me().view[l] = loc.writes.back().id;
    }
    uint64_t plain_read(int l) {
        Location &loc = locations_[l];
        for (int u = 0; u < thread_count_; ++u) {
            if (u != current_ && std::max(loc.plain_write[u], loc.atomic_write[u]) > me().clock[u]) {
                fail("data race: a plain read meets a write of another thread");
            }
        }
        loc.plain_read[current_] = me().clock[current_];
        me().view[l] = loc.writes.back().id;
        return loc.writes.back().value;
    }
    void wake(int pipe) {
        step();
        tokens_[pipe] = true;
    }
    void wait(int pipe) {
        me().waiting = true;
        me().pipe = pipe;
        step();
        me().waiting = false;
        tokens_[pipe] = false;
    }

private:
    struct Choice {
        int taken, of;
    };
    Body body_ = nullptr;
    int thread_count_ = 0, current_ = 0;
    std::array<Thread, kThreads> threads_;
    std::array<Location, kLocations> locations_;
    std::array<bool, kThreads> tokens_;
    std::vector<Choice> stack_;
    size_t depth_ = 0;
    Outcome outcome_ = Outcome::kRunning;
    jmp_buf scheduler_;
    std::vector<uint64_t> table_;  // hashes of states seen, open addressing

    Thread &me() { return threads_[current_]; }

    int choose(int of) {
        if (of == 1) return 0;
        if (of < 1) abort();
        if (depth_ == stack_.size()) stack_.push_back({0, of});
        return stack_[depth_++].taken;
    }
    uint16_t next_id() { return uint16_t((current_ + 1) << 12 | ++me().writes); }

    static bool free_behind(const Location &loc, int i) { return i + 1 == int(loc.writes.size()) || !loc.writes[i + 1].attached; }
    int readable_by_rmw(int l, std::array<int, 64> &from) {
        const Location &loc = locations_[l];
        int n = 0;
        for (int i = loc.at(me().view[l]); i < int(loc.writes.size()); ++i) {
            if (free_behind(loc, i)) from[n++] = i;
        }
        return n;
    }
    void join(View &into, const View &from) {
        for (int l = 0; l < kLocations; ++l) {
            if (from[l] != into[l] && locations_[l].at(from[l]) > locations_[l].at(into[l])) into[l] = from[l];
        }
    }
    static void join(Clock &into, const Clock &from) {
        for (int u = 0; u < kThreads; ++u) into[u] = std::max(into[u], from[u]);
    }
    uint64_t read(int l, int i, std::memory_order o) {
        Location &loc = locations_[l];
        Thread &t = me();
        for (int u = 0; u < thread_count_; ++u) {
            if (u != current_ && loc.plain_write[u] > t.clock[u]) fail("data race: an atomic read meets a plain write");
        }
        loc.atomic_read[current_] = t.clock[current_];
        const Write &w = loc.writes[i];
        t.view[l] = w.id;
        const bool acquire = o == std::memory_order_acquire || o == std::memory_order_acq_rel;
        if (acquire && w.carries) {
            join(t.view, w.view);
            join(t.clock, w.clock);
        }
        remember(w.value);
        return w.value;
    }
    void write(int l, int place, uint64_t value, std::memory_order o, const Write *continues) {
        Location &loc = locations_[l];
        Thread &t = me();
        for (int u = 0; u < thread_count_; ++u) {
            if (u != current_ && std::max(loc.plain_read[u], loc.plain_write[u]) > t.clock[u]) {
                fail("data race: an atomic write meets a plain access");
            }
        }
        loc.atomic_write[current_] = t.clock[current_];
        const bool release = o == std::memory_order_release || o == std::memory_order_acq_rel;
        Write w{next_id(), continues != nullptr, release || (continues && continues->carries), value, {}, {}};
        loc.writes.insert(loc.writes.begin() + place, w);
        t.view[l] = w.id;
        if (continues && continues->carries) {
            w.view = continues->view;
            w.clock = continues->clock;
        }
        if (release) {
            join(w.view, t.view);
            join(w.clock, t.clock);
            ++t.clock[current_];
        }
        loc.writes[place] = w;
    }

    uint64_t state() const {
        uint64_t h = 1;
        for (int u = 0; u < thread_count_; ++u) {
            const Thread &t = threads_[u];
            h = mix(h, t.local);
            h = mix(h, t.finished | t.waiting << 1 | tokens_[u] << 2);
            for (const uint16_t c : t.clock) h = mix(h, c);
        }
        for (int l = 0; l < kLocations; ++l) {
            const Location &loc = locations_[l];
            int oldest = int(loc.writes.size());
            for (int u = 0; u < thread_count_; ++u) {
                h = mix(h, threads_[u].view[l]);
                oldest = std::min(oldest, loc.at(threads_[u].view[l]));
                h = mix(h, uint64_t(loc.plain_read[u]) << 48 | uint64_t(loc.plain_write[u]) << 32 | uint64_t(loc.atomic_read[u]) << 16 |
                               loc.atomic_write[u]);
            }
            for (size_t i = size_t(oldest); i < loc.writes.size(); ++i) {
                const Write &w = loc.writes[i];
                h = mix(h, uint64_t(w.id) << 2 | w.attached << 1 | w.carries);
                h = mix(h, w.value);
                if (!w.carries) continue;
                for (const uint16_t id : w.view) h = mix(h, id);
                for (const uint16_t c : w.clock) h = mix(h, c);
            }
            h = mix(h, 77);
        }
        return h ? h : 1;
    }
    bool seen(uint64_t h) {
        if (states * 2 > table_.size()) {
            std::vector<uint64_t> old(table_.size() * 4, 0);
            old.swap(table_);
            for (const uint64_t x : old) {
                if (x) slot(x) = x;
            }
        }
        uint64_t &s = slot(h);
        if (s == h) return true;
        s = h;
        ++states;
        return false;
    }
    uint64_t &slot(uint64_t h) {
        size_t i = h & (table_.size() - 1);
        while (table_[i] && table_[i] != h) i = (i + 1) & (table_.size() - 1);
        return table_[i];
    }

    static Explorer *running_;
    static void entry() {
        Explorer &e = *running_;
        e.body_(e.current_);
        e.me().finished = true;
        _longjmp(e.scheduler_, 1);
    }

    void run() {
        running_ = this;
        depth_ = 0;
        outcome_ = Outcome::kRunning;
        for (Location &loc : locations_) {
            loc.writes.assign(1, Write{0, false, false, 0, {}, {}});
            loc.plain_read = loc.plain_write = loc.atomic_read = loc.atomic_write = {};
        }
        for (int u = 0; u < kThreads; ++u) {
            Thread &t = threads_[u];
            t.started = t.finished = t.waiting = false;
            t.view = {};
            t.clock = {};
            t.clock[u] = 1;
            t.writes = 0;
            t.local = uint64_t(u);
            tokens_[u] = false;
        }
        volatile int steps = 0;
        while (outcome_ == Outcome::kRunning) {
            if (depth_ == stack_.size() && steps > 0 && seen(state())) {
                outcome_ = Outcome::kPruned;
                break;
            }
            int ready[kThreads], n = 0;
            bool all_finished = true;
            for (int u = 0; u < thread_count_; ++u) {
                const Thread &t = threads_[u];
                all_finished = all_finished && t.finished;
                if (!t.finished && (!t.waiting || tokens_[t.pipe])) ready[n++] = u;
            }
            if (all_finished) {
                outcome_ = Outcome::kEnded;
                break;
            }
            if (n == 0) {
                violation = "lost wake-up: all that are left sleep";
                outcome_ = Outcome::kViolation;
                break;
            }
            steps = steps + 1;
            if (steps > kMaxSteps) {
                violation = "no end in sight";
                outcome_ = Outcome::kViolation;
                break;
            }
            current_ = ready[choose(n)];
            Thread &t = threads_[current_];
            if (_setjmp(scheduler_) == 0) {
                if (t.started) _longjmp(t.resume, 1);
                t.started = true;
                getcontext(&t.start);
                t.start.uc_stack.ss_sp = t.stack.data();
                t.start.uc_stack.ss_size = t.stack.size();
                makecontext(&t.start, entry, 0);
                setcontext(&t.start);
            }
        }
    }
};

Explorer *Explorer::running_;
Explorer explorer;

// ---- the ring over the model: each word in memory holds its location's number

struct ModelAtomics {
    static uint64_t load(uint64_t *p, std::memory_order o) { return explorer.load(int(*p), o); }
    static void store(uint64_t *p, uint64_t v, std::memory_order o) { explorer.store(int(*p), v, o); }
    static uint64_t exchange(uint64_t *p, uint64_t v, std::memory_order o) {
        return explorer.rmw(
            int(*p), [v](uint64_t) { return v; }, o);
    }
    static uint64_t fetch_or(uint64_t *p, uint64_t v, std::memory_order o) {
        return explorer.rmw(
            int(*p), [v](uint64_t old) { return old | v; }, o);
    }
    static bool cas(uint64_t *p, uint64_t expected, uint64_t desired, std::memory_order o) {
        return explorer.cas(int(*p), expected, desired, o);
    }
};

struct MutableOrders {
    static inline auto kPublish = RingOrders::kPublish, kPoll = RingOrders::kPoll, kFree = RingOrders::kFree, kSpace = RingOrders::kSpace,
                       kMark = RingOrders::kMark, kCollect = RingOrders::kCollect, kRing = RingOrders::kRing, kAnswer = RingOrders::kAnswer,
                       kLeave = RingOrders::kLeave, kLook = RingOrders::kLook;
};

using Sender = RingSender<ModelAtomics, MutableOrders>;
using Receiver = RingReceiver<ModelAtomics, MutableOrders>;
using ModelBell = Bell<ModelAtomics, MutableOrders>;

// An instance: thread 0 receives from `senders` rings; each sender opens its ring, sends messages of these numbers of cells, and
// closes the ring by its slot word, which the receiver looks at when the ring's bit is set.
struct Scenario {
    const char *name;
    int senders;
    uint64_t cells;
    std::vector<unsigned> messages;
};
const Scenario *scenario;

constexpr uint64_t kMaxCells = 8;
enum Slot : uint64_t { kFree, kReady, kClosed };
struct ModelRing {
    RingControl control;
    uint64_t slot;
    alignas(kCell) std::byte data[kMaxCells * kCell];
    int state(uint64_t position) const { return int(*reinterpret_cast<const uint64_t *>(data + (position % scenario->cells) * kCell)); }
    int payload(uint64_t position) const { return state(position) + 1; }
};
ModelRing rings[kThreads - 1];
uint64_t bell, pending;

void lay_out() {
    uint64_t next = 0;
    bell = next++;
    pending = next++;
    for (int r = 0; r < scenario->senders; ++r) {
        rings[r].control.head = next++;
        rings[r].slot = next++;
        for (uint64_t c = 0; c < scenario->cells; ++c, next += 2) memcpy(rings[r].data + c * kCell, &next, sizeof next);
    }
    if (next > kLocations) abort();
}

size_t length(unsigned cells) { return cells * kCell - kWord; }
uint64_t content(int ring, size_t message, unsigned cell) { return 1000 * uint64_t(ring + 1) + 10 * message + cell + 4; }

// The state words of a message's later cells are payload.
template <class F> void each_word(const ModelRing &ring, uint64_t position, unsigned cells, F &&f) {
    for (unsigned c = 0; c < cells; ++c) {
        f(ring.payload(position + c), c);
        if (c) f(ring.state(position + c), c);
    }
}

void send(int self) {
    const int r = self - 1;
    ModelRing &ring = rings[r];
    Sender out(&ring.control, ring.data, scenario->cells);
    out.init();
    ModelAtomics::store(&ring.slot, kReady, std::memory_order_relaxed);
    auto ring_bell = [&] {
        if (ModelBell::ring(&bell, &pending, uint64_t{1} << r)) explorer.wake(0);
    };
    uint64_t tail = 0;
    for (size_t m = 0; m < scenario->messages.size(); ++m) {
        const unsigned cells = scenario->messages[m];
        while (!out.reserve(length(cells))) {
            if (out.want_space(length(cells))) explorer.wait(self);
        }
        each_word(ring, tail, cells, [&](int location, unsigned c) { explorer.plain_write(location, content(r, m, c)); });
        tail += cells;
        if (out.publish(length(cells), uint16_t(m))) ring_bell();
    }
    ModelAtomics::store(&ring.slot, kClosed, MutableOrders::kLeave);
    ring_bell();
}

// One ring as the receiver knows it; the loop below does what Iface::progress and Iface::arm do.
struct Incoming {
    Receiver in;
    bool parked = true, closed = false, ended = false;
    size_t got = 0;
    uint64_t head = 0;
};

// True: a message was there.
bool hear(Incoming &from, int r) {
    const uint64_t word = from.in.poll();
    if (!word) return false;
    const size_t m = from.got++;
    if (m >= scenario->messages.size() || word != Message::pack(length(scenario->messages[m]), uint16_t(m))) {
        explorer.fail("a state word that is not the next message's");
    }
    const unsigned cells = scenario->messages[m];
    each_word(rings[r], from.head, cells, [&](int location, unsigned c) {
        if (explorer.plain_read(location) != content(r, m, c)) explorer.fail("payload of another message");
    });
    from.head += cells;
    if (from.in.consume(word)) explorer.wake(r + 1);
    return true;
}

void receive() {
    const int n = scenario->senders;
    std::array<Incoming, 2> from{Incoming{Receiver(&rings[0].control, rings[0].data, scenario->cells)},
                                 Incoming{Receiver(&rings[1].control, rings[1].data, scenario->cells)}};
    int open = n;
    while (open) {
        uint64_t local = 3;
        for (const Incoming &f : from) local = mix(local, f.got << 3 | f.parked << 2 | f.closed << 1 | f.ended);
        explorer.checkpoint(local);
        bool busy = false;
        for (int r = 0; r < n; ++r) {
            Incoming &f = from[r];
            if (f.parked) continue;
            const bool heard = hear(f, r);
            if (!heard && f.closed && !f.ended) {
                f.parked = f.ended = true;
                --open;
                if (f.got != scenario->messages.size()) explorer.fail("a message lost before the ring was closed");
            }
            busy = busy || heard || f.ended;
        }
        if (ModelBell::answer(&bell)) {
            busy = true;
            const uint64_t bits = ModelBell::collect(&pending);
            for (int r = 0; r < n; ++r) {
                if (!(bits >> r & 1)) continue;
                const uint64_t slot = ModelAtomics::load(&rings[r].slot, MutableOrders::kLook);
                if (slot == kFree) continue;
                from[r].parked = false;
                from[r].closed = slot == kClosed;
            }
        }
        for (int r = 0; r < n && !busy; ++r) {
            Incoming &f = from[r];
            if (!f.parked) busy = f.closed || !(f.parked = f.in.park());
        }
        if (!busy && ModelBell::arm(&bell)) explorer.wait(0);
    }
}

void thread_body(int self) {
    if (self == 0) receive();
    else send(self);
}

bool explore(const Scenario &s) {
    scenario = &s;
    lay_out();
    return explorer.explore(s.senders + 1, thread_body);
}

const Scenario kScenarios[] = {
    {"4 cells, 4 messages of 1 and 2 cells", 1, 4, {2, 1, 2, 1}},
    {"8 cells, head told late, 5 messages of up to 5 cells", 1, 8, {5, 1, 3, 5, 1}},
    {"two senders, one bell, a message of 2 cells each", 2, 4, {2}},
};

struct Mutation {
    const char *name;
    std::memory_order *order;
};
const Mutation kMutations[] = {
    {"kPublish", &MutableOrders::kPublish}, {"kPoll", &MutableOrders::kPoll},     {"kFree", &MutableOrders::kFree},
    {"kSpace", &MutableOrders::kSpace},     {"kMark", &MutableOrders::kMark},     {"kCollect", &MutableOrders::kCollect},
    {"kRing", &MutableOrders::kRing},       {"kAnswer", &MutableOrders::kAnswer}, {"kLeave", &MutableOrders::kLeave},
    {"kLook", &MutableOrders::kLook},
};

}  // namespace

int main() {
    bool good = true;
    const auto start = std::chrono::steady_clock::now();
    for (const Scenario &s : kScenarios) {
        const bool holds = explore(s);
        printf("%-58s %9zu states, %9zu runs: %s\n", s.name, explorer.states, explorer.runs,
               holds ? "all hold" : explorer.violation.c_str());
        fflush(stdout);
        good = good && holds;
    }
    for (const Mutation &m : kMutations) {
        const std::memory_order strong = std::exchange(*m.order, std::memory_order_relaxed);
        bool found = false;
        for (const Scenario &s : kScenarios) {
            if (explore(s)) continue;
            printf("%-8s relaxed: %s (%s, %zu states)\n", m.name, explorer.violation.c_str(), s.name, explorer.states);
            found = true;
            break;
        }
        if (!found) printf("%-8s relaxed: nobody notices, so ring.h must not ask for it\n", m.name);
        fflush(stdout);
        good = good && found;
        *m.order = strong;
    }
    printf("%.1f s\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    return good ? 0 : 1;
}
