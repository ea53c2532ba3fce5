// What the fast path of verbs costs without an engine and without Python: two processes, one ep. Prints a line of JSON:
//
//     {"short_8_us": half a round trip of 8 bytes, median, "bcopy_4096_us": ..., "get_1MiB_MBps": gets of 1 MiB, 8 outstanding}
//
// verbs_pingpong PATH_OF_VERBS_OBJECTS [ROUNDS]; VERBS_LIBRARY and PYMPX_VERBS_DEVICE as verbs_objects.cc has them. What perftest's
// ib_send_lat and ib_read_bw say in the same run is its floor.
#include <dlfcn.h>
#include <pympx/transport.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

const mpx_transport *table;

[[noreturn]] void die(const char *step) {
    std::fprintf(stderr, "verbs_pingpong: %s: %s\n", step, table ? table->why() : dlerror());
    std::exit(1);
}

double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

std::string exchange(int fd, const std::string &mine) {
    std::string theirs(mine.size(), '\0');
    if (write(fd, mine.data(), mine.size()) != static_cast<ssize_t>(mine.size()) ||
        recv(fd, theirs.data(), theirs.size(), MSG_WAITALL) != static_cast<ssize_t>(theirs.size()))
        die("exchange");
    return theirs;
}

struct Side {
    mpx_domain *domain = nullptr;
    mpx_iface *iface = nullptr;
    mpx_ep *ep = nullptr;
    mpx_iface_attr attr{};
    mpx_am_handler am[MPX_AM_ID_MAX];
    uint64_t received = 0;
    int fd;

    explicit Side(int socket) : fd(socket) {
        for (auto &handler : am)
            handler = {[](void *arg, void *, const void *, size_t, void *, size_t, unsigned) {
                           ++static_cast<Side *>(arg)->received;
                           return mpx_status{MPX_OK};
                       },
                       this};
        const mpx_domain_params dp{sizeof dp, "", "{}", "key", 3};
        const mpx_iface_params ip{sizeof ip, am, nullptr, [](void *, mpx_ep *, mpx_status) { die("the link broke"); }, this, 0, nullptr};
        if (table->domain_open(&dp, &domain) != MPX_OK || table->iface_open(domain, &ip, &iface) != MPX_OK) die("open");
        attr.size = sizeof attr;
        table->iface_query(iface, &attr);
        std::string own(attr.iface_addr_len, '\0'), link(attr.ep_addr_len, '\0');
        table->iface_address(iface, own.data());
        const std::string peer = exchange(fd, own);
        if (table->ep_create(iface, peer.data(), peer.size(), &ep) != MPX_OK || table->ep_address(ep, link.data()) != MPX_OK) die("ep");
        const std::string to = exchange(fd, link);
        if (table->ep_connect(ep, to.data(), to.size()) != MPX_OK) die("connect");
        exchange(fd, "connected");
    }
    void await(uint64_t count) {
        while (received < count) iface->ops->progress(iface);
    }
    template <class Send> void send(Send &&call) {
        for (mpx_status st; (st = call()) != MPX_OK;) {
            if (st != MPX_ERR_NO_RESOURCE) die("send");
            iface->ops->progress(iface);
        }
    }
    // Half a round trip in microseconds, median.
    template <class Send> double pingpong(int rank, int rounds, Send &&call) {
        std::vector<double> halves;
        for (int i = 0; i < rounds; ++i) {
            const double from = now();
            const uint64_t next = received + 1;
            if (rank == 0) send(call);
            await(next);
            if (rank == 1) send(call);
            halves.push_back((now() - from) / 2 * 1e6);
        }
        std::nth_element(halves.begin(), halves.begin() + rounds / 2, halves.end());
        return halves[static_cast<size_t>(rounds) / 2];
    }
    // Megabytes per second of `count` gets of `length` bytes, 8 outstanding.
    double gets(int rank, size_t length, int count) {
        constexpr int kWindow = 8;
        std::vector<char> memory(kWindow * length, static_cast<char>(rank));
        mpx_mem_h memh = nullptr;
        const unsigned access = rank ? MPX_ACCESS_REMOTE_READ : MPX_ACCESS_LOCAL;
        if (table->mem_reg(domain, memory.data(), memory.size(), MPX_MEM_HOST, access, &memh) != MPX_OK) die("mem_reg");
        std::string ticket(attr.rkey_packed_len + sizeof(uint64_t), '\0');
        if (table->rkey_pack(domain, memh, ticket.data(), attr.rkey_packed_len) != MPX_OK) die("rkey_pack");
        const auto address = reinterpret_cast<uint64_t>(memory.data());
        std::memcpy(ticket.data() + attr.rkey_packed_len, &address, sizeof address);
        ticket = exchange(fd, ticket);
        double seconds = 0;
        if (rank == 0) {
            uint64_t remote;
            std::memcpy(&remote, ticket.data() + attr.rkey_packed_len, sizeof remote);
            mpx_rkey_h key = nullptr;
            if (table->rkey_unpack(domain, ticket.data(), attr.rkey_packed_len, &key) != MPX_OK) die("rkey_unpack");
            struct Done : mpx_completion {
                int *left;
            };
            int left = 0;
            Done done[kWindow];
            const double from = now();
            for (int i = 0; i < count; ++i) {
                const int slot = i % kWindow;
                while (left >= kWindow) iface->ops->progress(iface);
                done[slot].left = &left;
                done[slot].done = [](mpx_completion *c, mpx_status) { --*static_cast<Done *>(c)->left; };
                const mpx_iov iov{memory.data() + static_cast<size_t>(slot) * length, length, memh};
                mpx_status st;
                while ((st = iface->ops->get_zcopy(ep, &iov, 1, remote, key, &done[slot])) == MPX_ERR_NO_RESOURCE)
                    iface->ops->progress(iface);
                if (st != MPX_INPROGRESS) die("get");
                ++left;
            }
            while (left) iface->ops->progress(iface);
            seconds = now() - from;
            if (memory[length - 1] != 1) die("what was got");
            table->rkey_release(domain, key);
        }
        exchange(fd, "got");
        table->mem_dereg(domain, memh);
        return rank ? 0 : static_cast<double>(length) * count / seconds / 1e6;
    }
    void close() {
        exchange(fd, "over");
        table->ep_destroy(ep);
        table->iface_close(iface);
        table->domain_close(domain);
    }
};

}  // namespace

int main(int argc, char **argv) {
    void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!library) die("usage: verbs_pingpong VERBS_OBJECTS [ROUNDS]");
    table = reinterpret_cast<const mpx_transport *(*)()>(dlsym(library, MPX_TABLE_SYMBOL))();
    const int rounds = argc > 2 ? std::atoi(argv[2]) : 2000;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) die("socketpair");
    const pid_t child = fork();
    const int rank = child ? 0 : 1;
    Side side(pair[rank]);
    const char text[4096] = {};
    const auto by_short = [&] { return side.iface->ops->am_short(side.ep, 1, 7, text, 8); };
    const auto by_bcopy = [&] {
        return side.iface->ops->am_bcopy(
            side.ep, 2, sizeof text,
            [](void *to, void *from) {
                std::memcpy(to, from, sizeof text);
                return sizeof text;
            },
            const_cast<char *>(text));
    };
    side.pingpong(rank, rounds / 10 + 1, by_short);
    const double short_us = side.pingpong(rank, rounds, by_short), bcopy_us = side.pingpong(rank, rounds, by_bcopy);
    side.gets(rank, 1u << 20, 8);
    const double rate = side.gets(rank, 1u << 20, rounds / 20 + 8);
    side.close();
    if (rank) return 0;
    std::printf("{\"short_8_us\": %.2f, \"bcopy_4096_us\": %.2f, \"get_1MiB_MBps\": %.1f}\n", short_us, bcopy_us, rate);
    int status = 0;
    waitpid(child, &status, 0);
    return status ? 1 : 0;
}
