// What the tcp transport adds to plain sockets: two processes over loopback, both spinning, floor and transport in alternating rounds of
// one run. Prints the best rounds (short ones, so that some escape what else the machine does) and their ratio. Usage: tcp_bench [rounds]
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pympx/transport.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
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

extern "C" const mpx_transport *mpx_transport_table(void);

namespace {

const mpx_transport &table() { return *mpx_transport_table(); }

void die(const char *what) {
    perror(what);
    exit(1);
}

double seconds() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// A connected pair over 127.0.0.1, non-blocking.
void socket_pair(int out[2]) {
    const int l = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t len = sizeof at;
    if (bind(l, reinterpret_cast<sockaddr *>(&at), sizeof at) || listen(l, 1) || getsockname(l, reinterpret_cast<sockaddr *>(&at), &len))
        die("listen");
    out[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(out[0], reinterpret_cast<sockaddr *>(&at), sizeof at)) die("connect");
    out[1] = accept(l, nullptr, nullptr);
    close(l);
    for (int i = 0; i < 2; ++i) {
        const int on = 1;
        setsockopt(out[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        fcntl(out[i], F_SETFL, O_NONBLOCK);
    }
}

void send_all(int fd, const char *p, size_t n) {
    while (n) {
        const ssize_t k = send(fd, p, n, MSG_NOSIGNAL);
        if (k < 0 && errno != EAGAIN) die("send");
        if (k > 0) p += k, n -= static_cast<size_t>(k);
    }
}

void recv_all(int fd, char *p, size_t n) {
    while (n) {
        const ssize_t k = recv(fd, p, n, 0);
        if (k == 0) exit(0);
        if (k < 0 && errno != EAGAIN) die("recv");
        if (k > 0) p += k, n -= static_cast<size_t>(k);
    }
}

struct Rank {
    mpx_domain *domain;
    mpx_iface *iface;
    mpx_ep *ep = nullptr;
    mpx_am_handler am[MPX_AM_ID_MAX]{};
    uint64_t seen = 0, remote = 0;
    mpx_rkey_h rkey = nullptr;
    std::vector<char> address;

    Rank() {
        mpx_domain_params dp{sizeof dp, "", "{}", "bench", 5};
        am[1] = {[](void *arg, void *, const void *, size_t, void *, size_t, unsigned) {
                     ++static_cast<Rank *>(arg)->seen;
                     return MPX_OK + 0;
                 },
                 this};
        am[2] = {[](void *arg, void *, const void *hdr, size_t, void *data, size_t len, unsigned) {
                     auto *r = static_cast<Rank *>(arg);
                     memcpy(&r->remote, hdr, 8);
                     return table().rkey_unpack(r->domain, data, len, &r->rkey);
                 },
                 this};
        mpx_iface_params ip{sizeof ip,
                            am,
                            [](void *arg, const void *addr, size_t len) {
                                auto *r = static_cast<Rank *>(arg);
                                table().ep_create(r->iface, addr, len, &r->ep);
                                return r->ep;
                            },
                            [](void *, mpx_ep *, mpx_status) { exit(0); },
                            this,
                            0,
                            nullptr};
        if (table().domain_open(&dp, &domain) || table().iface_open(domain, &ip, &iface)) die(table().why());
        mpx_iface_attr attr{};
        attr.size = sizeof attr;
        table().iface_query(iface, &attr);
        address.resize(attr.iface_addr_len);
        table().iface_address(iface, address.data());
    }
    void progress() { iface->ops->progress(iface); }
    void send(size_t len, const char *buf) {
        while (iface->ops->am_short(ep, 1, 0, buf, len) == MPX_ERR_NO_RESOURCE) progress();
    }
    void await(uint64_t n) {
        while (seen < n) progress();
    }
};

struct Got : mpx_completion {
    bool is = false;
    Got() {
        done = [](mpx_completion *c, mpx_status st) {
            if (st != MPX_OK) exit(2);
            static_cast<Got *>(c)->is = true;
        };
    }
};

constexpr size_t kMiB = 1 << 20;
struct Phase {
    const char *name;
    size_t len;
    int count;
};
// A get moves its bytes in one direction, so its floor is a request of 8 bytes and an answer of 1 MiB.
const Phase kPhases[] = {{"8 B one way", 8, 1000}, {"64 KiB one way", 65536, 200}, {"1 MiB fetched", kMiB, 20}};

double best(const std::vector<double> &v) { return *std::min_element(v.begin(), v.end()); }

}  // namespace

int main(int argc, char **argv) {
    const int rounds = argc > 1 ? atoi(argv[1]) : 40;
    alarm(120);
    int fds[2], pipes[2];
    socket_pair(fds);
    if (pipe(pipes)) die("pipe");
    std::vector<char> buf(kMiB, 'b'), to(kMiB);
    const pid_t child = fork();
    const int fd = fds[child == 0];
    close(fds[child != 0]);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        Rank r;
        if (write(pipes[1], r.address.data(), r.address.size()) < 0) die("write");
        while (!r.ep) r.progress();
        r.await(1);
        mpx_mem_h mem;
        char packed[64];
        mpx_iface_attr attr{};
        attr.size = sizeof attr;
        table().iface_query(r.iface, &attr);
        table().mem_reg(r.domain, buf.data(), kMiB, MPX_MEM_HOST, MPX_ACCESS_REMOTE_READ, &mem);
        table().rkey_pack(r.domain, mem, packed, sizeof packed);
        while (r.iface->ops->am_short(r.ep, 2, reinterpret_cast<uint64_t>(buf.data()), packed, attr.rkey_packed_len)) r.progress();
        uint64_t n = 1;
        for (;;)  // the peer leads; it ends the link when it is done
            for (const Phase &p : kPhases) {
                for (int i = 0; i < p.count; ++i) {
                    recv_all(fd, to.data(), p.len == kMiB ? 8 : p.len);
                    send_all(fd, buf.data(), p.len);
                }
                if (p.len == kMiB) {
                    r.await(++n);  // "all fetched"
                    continue;
                }
                for (int i = 0; i < p.count; ++i) {
                    r.await(++n);
                    r.send(p.len, buf.data());
                }
            }
    }
    Rank r;
    if (read(pipes[0], r.address.data(), r.address.size()) < 0) die("read");
    if (table().ep_create(r.iface, r.address.data(), r.address.size(), &r.ep)) die(table().why());
    r.send(8, buf.data());
    while (!r.rkey) r.progress();
    std::vector<double> floor[3], ours[3];
    uint64_t n = 0;
    for (int round = 0; round < rounds; ++round)
        for (int k = 0; k < 3; ++k) {
            const Phase &p = kPhases[k];
            const bool fetch = p.len == kMiB;
            double t = seconds();
            for (int i = 0; i < p.count; ++i) {
                send_all(fd, buf.data(), fetch ? 8 : p.len);
                recv_all(fd, to.data(), p.len);
            }
            floor[k].push_back((seconds() - t) / p.count / (fetch ? 1 : 2));
            t = seconds();
            for (int i = 0; i < p.count; ++i) {
                if (!fetch) {
                    r.send(p.len, buf.data());
                    r.await(++n);
                    continue;
                }
                Got got;
                const mpx_iov iov{to.data(), kMiB, nullptr};
                while (r.iface->ops->get_zcopy(r.ep, &iov, 1, r.remote, r.rkey, &got) == MPX_ERR_NO_RESOURCE) r.progress();
                while (!got.is) r.progress();
            }
            ours[k].push_back((seconds() - t) / p.count / (fetch ? 1 : 2));
            if (fetch) r.send(0, nullptr);
        }
    printf("%-16s %12s %12s %7s   (us, best of %d rounds)\n", "", "C sockets", "tcp", "ratio", rounds);
    for (int k = 0; k < 3; ++k)
        printf("%-16s %12.2f %12.2f %7.2f\n", kPhases[k].name, best(floor[k]) * 1e6, best(ours[k]) * 1e6, best(ours[k]) / best(floor[k]));
    fflush(stdout);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
}
