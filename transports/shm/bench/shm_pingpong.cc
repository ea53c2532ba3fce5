// Prints what the transport costs between two processes of one host, in C: the floor (one flag each way), am_short, pieces by
// am_bcopy as a rendezvous by fragments sends them, get from memory of both kinds. One way; the best of
// many runs of a millisecond or so, because a busy machine seldom leaves two cores alone for longer.
//
// Usage: shm_pingpong [CPU CPU]   pins the two processes, default 0 1
#include <pympx/transport.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

extern "C" const mpx_transport *mpx_transport_table(void);

namespace {

constexpr int kRuns = 60;

const mpx_transport *t = mpx_transport_table();
size_t received_bytes, received_messages;
std::vector<char> landing(4 << 20, 1), source(4 << 20, 2);

mpx_status handle(void *, void *, const void *, size_t, void *data, size_t len, unsigned) {
    memcpy(landing.data() + received_bytes, data, len);
    received_bytes += len;
    ++received_messages;
    return MPX_OK;
}

struct Piece {
    const char *from;
    size_t len;
};
size_t pack(void *to, void *arg) {
    const Piece *p = static_cast<const Piece *>(arg);
    memcpy(to, p->from, p->len);
    return p->len;
}

void need(bool ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "shm_pingpong: %s failed: %s\n", what, t->why());
    exit(1);
}

template <class F> double best_ns(bool first, int rounds, int per_round, F &&round) {
    double best = 1e18;
    for (int run = 0; run < kRuns; ++run) {
        const auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < rounds; ++i) round(first);
        best =
            std::min(best, std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count() / rounds / per_round);
    }
    return best;
}

}  // namespace

int main(int argc, char **argv) {
    const int cpus[2] = {argc > 2 ? atoi(argv[1]) : 0, argc > 2 ? atoi(argv[2]) : 1};
    struct Flags {
        alignas(128) std::atomic<uint64_t> ping, pong;
        alignas(128) std::atomic<uint64_t> back;
    };
    void *page = mmap(nullptr, sizeof(Flags), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    need(page != MAP_FAILED, "mmap");
    Flags *flags = new (page) Flags{};
    int ends[2];
    need(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
    const pid_t child = fork();
    const bool first = child != 0;
    const int fd = ends[first];
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpus[first ? 0 : 1], &set);
    sched_setaffinity(0, sizeof set, &set);

    mpx_am_handler handlers[MPX_AM_ID_MAX];
    for (auto &h : handlers) h = {handle, nullptr};
    mpx_domain_params dp{sizeof dp, "", "{}", "", 0};
    mpx_iface_params ip{};
    ip.size = sizeof ip;
    ip.am = handlers;
    mpx_domain *domain;
    mpx_iface *iface;
    mpx_ep *ep;
    need(t->domain_open(&dp, &domain) == MPX_OK && t->iface_open(domain, &ip, &iface) == MPX_OK, "open");
    const mpx_iface_ops *ops = iface->ops;
    mpx_iface_attr attr{};
    attr.size = sizeof attr;
    t->iface_query(iface, &attr);
    std::vector<char> mine(attr.iface_addr_len), theirs(attr.iface_addr_len);
    t->iface_address(iface, mine.data());
    auto swap = [&](const void *out, void *in, size_t len) {
        need(write(fd, out, len) == ssize_t(len) && read(fd, in, len) == ssize_t(len), "exchange");
    };
    swap(mine.data(), theirs.data(), mine.size());
    need(t->ep_create(iface, theirs.data(), theirs.size(), &ep) == MPX_OK, "ep_create");
    auto send_short = [&] {
        while (ops->am_short(ep, 1, 7, source.data(), 8) == MPX_ERR_NO_RESOURCE) ops->progress(iface);
    };
    auto wait_messages = [&](size_t n) {
        while (received_messages < n) ops->progress(iface);
        received_messages = received_bytes = 0;
    };
    auto send_pieces = [&](size_t total, size_t piece) {
        for (size_t at = 0; at < total; at += piece) {
            Piece p{source.data() + at, std::min(piece, total - at)};
            while (ops->am_bcopy(ep, 1, p.len, pack, &p) == MPX_ERR_NO_RESOURCE) ops->progress(iface);
        }
    };

    uint64_t turn = 0;
    auto floor_round = [&](bool starts) {
        ++turn;
        if (starts) flags->ping.store(turn, std::memory_order_release);
        while ((starts ? flags->back : flags->ping).load(std::memory_order_acquire) != turn) {
        }
        if (!starts) flags->back.store(turn, std::memory_order_release);
    };
    const double floor_before = best_ns(first, 2000, 2, floor_round);
    const double small = best_ns(first, 2000, 2, [&](bool starts) {
        if (starts) send_short();
        wait_messages(1);
        if (!starts) send_short();
    });
    const double floor_ns = std::min(floor_before, best_ns(first, 2000, 2, floor_round));
    if (first)
        printf("%-44s %8.0f ns\n%-44s %8.0f ns  %.2f x floor\n", "flag, one way (the floor)", floor_ns, "am_short 8 B", small,
               small / floor_ns);

    const double window = best_ns(first, 200, 64, [&](bool starts) {
        if (!starts) wait_messages(64);
        else
            for (int i = 0; i < 64; ++i) send_short();
        if (starts) wait_messages(1);
        else send_short();
    });
    if (first) printf("%-44s %8.0f ns\n", "am_short 8 B, 64 and one back, per message", window);

    for (const size_t total : {size_t{64} << 10, size_t{1} << 20}) {
        for (const size_t piece : {size_t{8} << 10, size_t{16} << 10, size_t{32} << 10}) {
            const double ns = best_ns(first, int((4u << 20) / total), 2, [&](bool starts) {
                if (starts) send_pieces(total, piece);
                wait_messages(total / piece);
                if (!starts) send_pieces(total, piece);
            });
            if (first)
                printf("%4zu KiB by am_bcopy, pieces of %2zu KiB %*s %8.1f us  %.1f GB/s\n", total >> 10, piece >> 10, 6, "", ns / 1e3,
                       double(total) / ns);
        }
    }

    struct Count : mpx_completion {
        bool over = false;
    };
    for (const bool mapped : {true, false}) {
        void *memory = source.data();
        mpx_mem_h allocated = nullptr, memh;
        if (mapped) need(t->mem_alloc(domain, source.size(), &memory, &allocated) == MPX_OK, "mem_alloc");
        memset(memory, 3, source.size());
        t->mem_reg(domain, memory, source.size(), MPX_MEM_HOST, MPX_ACCESS_REMOTE_READ, &memh);
        struct Key {
            char packed[64];
            uint64_t at;
        } out{{}, reinterpret_cast<uint64_t>(memory)}, in;
        t->rkey_pack(domain, memh, out.packed, sizeof out.packed);
        swap(&out, &in, sizeof in);
        mpx_rkey_h rkey;
        need(t->rkey_unpack(domain, in.packed, attr.rkey_packed_len, &rkey) == MPX_OK, "rkey_unpack");
        for (const size_t len : {size_t{8}, size_t{64} << 10, size_t{256} << 10, size_t{1} << 20, size_t{4} << 20}) {
            bool refused = false;
            double ns = 1e18;
            for (int run = 0; run < kRuns; ++run) {  // the owner writes the memory before each get, as programs do
                if (!first) {
                    memset(memory, run, len);
                    send_short();
                    wait_messages(1);
                    continue;
                }
                wait_messages(1);
                Count c;
                c.done = [](mpx_completion *self, mpx_status) { static_cast<Count *>(self)->over = true; };
                mpx_iov iov{landing.data(), len, nullptr};
                const auto start = std::chrono::steady_clock::now();
                refused = ops->get_zcopy(ep, &iov, 1, in.at, rkey, &c) != MPX_INPROGRESS;
                while (!refused && !c.over) ops->progress(iface);
                ns = std::min(ns, std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count());
                send_short();
            }
            char what[64];
            snprintf(what, sizeof what, "get %zu B, %s", len, mapped ? "mem_alloc" : "process_vm_readv");
            if (first && !refused) printf("%-44s %8.2f us  %.1f GB/s\n", what, ns / 1e3, double(len) / ns);
        }
        char token = 0;
        swap(&token, &token, 1);
        t->rkey_release(domain, rkey);
        t->mem_dereg(domain, memh);
        if (mapped) t->mem_free(domain, memory, allocated);
    }
    t->ep_destroy(ep);
    t->iface_close(iface);
    t->domain_close(domain);
    if (first) waitpid(child, nullptr, 0);
    return 0;
}
