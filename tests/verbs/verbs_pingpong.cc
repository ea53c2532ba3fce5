// What the fast path of verbs costs without an engine and without Python: two processes, one ep. Prints a line of JSON:
//
//     {"short_8_us": half a round trip of 8 bytes, median, "bcopy_4096_us": ..., "get_1MiB_MBps": gets of 1 MiB, 8 outstanding}
//
// verbs_pingpong PATH_OF_VERBS_OBJECTS [ROUNDS]; VERBS_LIBRARY and PYMPX_VERBS_DEVICE as verbs_objects.cc has them. What perftest's
// ib_send_lat and ib_read_bw say in the same run is its floor.
#include <pympx/transport.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "verbs_side.h"

namespace {

double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

std::string exchange(int fd, const std::string &mine) {
    std::string theirs(mine.size(), '\0');
    if (write(fd, mine.data(), mine.size()) != static_cast<ssize_t>(mine.size()) ||
        recv(fd, theirs.data(), theirs.size(), MSG_WAITALL) != static_cast<ssize_t>(theirs.size()))
        throw std::runtime_error("the other process is gone");
    return theirs;
}

struct Side : VerbsSide {
    int fd;

    Side(const mpx_transport *t, int socket) : VerbsSide(t), fd(socket) {
        connect(exchange(fd, link_to(exchange(fd, address()))));
        exchange(fd, "connected");
    }
    void await(uint64_t count) {
        while (received < count) progress();
    }
    template <class Send> void send(Send &&call) {
        for (mpx_status st; (st = call()) != MPX_OK; progress())
            if (st != MPX_ERR_NO_RESOURCE) need("send", st);
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
        need("mem_reg", table->mem_reg(domain, memory.data(), memory.size(), MPX_MEM_HOST, access, &memh));
        std::string ticket(attr.rkey_packed_len + sizeof(uint64_t), '\0');
        need("rkey_pack", table->rkey_pack(domain, memh, ticket.data(), attr.rkey_packed_len));
        const auto address = reinterpret_cast<uint64_t>(memory.data());
        std::memcpy(ticket.data() + attr.rkey_packed_len, &address, sizeof address);
        ticket = exchange(fd, ticket);
        double seconds = 0;
        if (rank == 0) {
            uint64_t remote;
            std::memcpy(&remote, ticket.data() + attr.rkey_packed_len, sizeof remote);
            mpx_rkey_h key = nullptr;
            need("rkey_unpack", table->rkey_unpack(domain, ticket.data(), attr.rkey_packed_len, &key));
            struct Done : mpx_completion {
                int *left;
            };
            int left = 0;
            Done done[kWindow];
            const double from = now();
            for (int i = 0; i < count; ++i) {
                const int slot = i % kWindow;
                while (left >= kWindow) progress();
                done[slot].left = &left;
                done[slot].done = [](mpx_completion *c, mpx_status) { --*static_cast<Done *>(c)->left; };
                const mpx_iov iov{memory.data() + static_cast<size_t>(slot) * length, length, memh};
                mpx_status st;
                while ((st = iface->ops->get_zcopy(ep, &iov, 1, remote, key, &done[slot])) == MPX_ERR_NO_RESOURCE) progress();
                if (st != MPX_INPROGRESS) need("get_zcopy", st);
                ++left;
            }
            while (left) progress();
            seconds = now() - from;
            if (memory[length - 1] != 1) throw std::runtime_error("wrong bytes were got");
            table->rkey_release(domain, key);
        }
        exchange(fd, "got");
        table->mem_dereg(domain, memh);
        return rank ? 0 : static_cast<double>(length) * count / seconds / 1e6;
    }
};

}  // namespace

int main(int argc, char **argv) try {
    const mpx_transport *table = load_table(argc > 1 ? argv[1] : nullptr);
    const int rounds = argc > 2 ? std::atoi(argv[2]) : 2000;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) throw std::runtime_error("no socketpair");
    const pid_t child = fork();
    const int rank = child ? 0 : 1;
    Side side(table, pair[rank]);
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
    exchange(side.fd, "over");
    side.close();
    if (rank) return 0;
    std::printf("{\"short_8_us\": %.2f, \"bcopy_4096_us\": %.2f, \"get_1MiB_MBps\": %.1f}\n", short_us, bcopy_us, rate);
    int status = 0;
    waitpid(child, &status, 0);
    return status ? 1 : 0;
} catch (const std::exception &error) {
    std::fprintf(stderr, "verbs_pingpong: %s\n", error.what());
    return 1;
}
