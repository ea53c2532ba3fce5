// tcp as connector: what somebody may answer who listens where a peer should be. Nothing of ours but the hello goes to who has not proved
// himself, nobody else's message is delivered, and then a genuine peer at the same port is reached.
#include <netinet/in.h>

#include <utility>

#include "tcp_side.h"

using namespace mpx;
using namespace mpx::fuzz;

namespace {

struct Conversation {
    int fd;
    std::string heard;
    bool proved = false, accepted = false;
};

// One for all inputs; its connections are reset at their end, so that none waits in the kernel.
int listener(uint16_t *port) {
    static const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    static const uint16_t number = [] {
        sockaddr_in at{};
        at.sin_family = AF_INET;
        at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        socklen_t length = sizeof at;
        check(bind(fd, reinterpret_cast<sockaddr *>(&at), length) == 0 && listen(fd, 64) == 0, "cannot listen");
        getsockname(fd, reinterpret_cast<sockaddr *>(&at), &length);
        return ntohs(at.sin_port);
    }();
    *port = number;
    return fd;
}

void reset(int fd) {
    const linger hard{1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    ::close(fd);
}

std::string challenge(const std::string &heard, tcp::Challenge *out, uint8_t who, uint16_t port) {
    tcp::Hello hello;
    std::memcpy(&hello, heard.data(), sizeof hello);
    *out = {tcp::kChallengeMagic, address_of(who, port), {}, {}};
    out->nonce.fill(who);
    out->mac = tcp::JobKey(kKey, sizeof kKey).prove(tcp::Role::kAcceptor, hello, out->from, out->nonce);
    return raw(*out);
}

int take(int listening) {
    const int fd = accept4(listening, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    return fd;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in(data, size);
    uint16_t port = 0;
    const int listening = listener(&port);
    std::vector<Conversation> all;
    {
        Side side;
        tcp::Ep *ep = side.ep_to(address_of(1, port, in.byte() % 3 + 1));
        check(ep != nullptr, "no ep");
        side.iface->ops->am_short(ep, 1, 0, "x", 1);
        while (!in.empty()) {
            const uint8_t op = in.byte() % 9;
            if (op == 0 || all.empty()) {
                side.progress();
                if (const int fd = take(listening); fd >= 0) all.push_back({fd, ""});
                continue;
            }
            Conversation &c = all[in.byte() % all.size()];
            side.progress();
            c.heard += drain(c.fd);
            check(c.proved || c.heard.size() <= sizeof(tcp::Hello), "more than a hello to who has not proved himself");
            switch (op) {
                case 1: put(c.fd, in.bytes(300)); break;
                case 2:
                case 3: {
                    if (c.heard.size() < sizeof(tcp::Hello)) break;
                    tcp::Challenge right, said;
                    challenge(c.heard, &right, 1, port);
                    said = right;
                    in.spoil(&said, sizeof said);
                    c.proved |= raw(said) == raw(right);
                    put(c.fd, raw(said));
                    break;
                }
                case 4: {
                    const uint64_t verdicts[] = {tcp::kAccepted, tcp::kBusy, in.number<uint64_t>()};
                    const uint64_t verdict = verdicts[in.byte() % 3];
                    c.accepted |= verdict == tcp::kAccepted;
                    put(c.fd, raw(tcp::Verdict{verdict}));
                    break;
                }
                case 5: put(c.fd, raw(tcp::Frame{in.byte(), in.byte(), in.byte(), in.byte(), 1}) + in.bytes(64)); break;
                case 6: shutdown(c.fd, SHUT_WR); break;
                case 7: reset(std::exchange(c.fd, -1)); break;
                case 8: side.iface->ops->am_short(ep, 1, 0, "y", 1); break;
            }
            if (c.fd < 0) {
                c = all.back();
                all.pop_back();
            }
        }
        side.progress(3);
        bool proved = false;
        for (Conversation &c : all) {
            c.heard += drain(c.fd);
            check(c.proved || c.heard.size() <= sizeof(tcp::Hello), "more than a hello to who has not proved himself");
            proved |= c.proved;
            reset(c.fd);
        }
        for (int fd; (fd = take(listening)) >= 0;) reset(fd);
        check(proved || !ep->live, "a link to who has not proved himself");
        check(proved || side.inbox.empty() || side.errors, "delivered without a proof");

        // the genuine one
        tcp::Ep *good = side.ep_to(address_of(2, port));
        check(good != nullptr, "no second ep");
        side.iface->ops->am_short(good, 1, 0, "x", 1);
        int fd = -1;
        std::string heard;
        for (int i = 0; i < 1000 && heard.size() < sizeof(tcp::Hello); i++) {
            side.progress();
            if (fd < 0) fd = take(listening);
            if (fd >= 0) heard += drain(fd);
            tcp::Hello hello;
            if (heard.size() < sizeof hello) continue;
        }
        check(heard.size() == sizeof(tcp::Hello), "a genuine peer is not asked");
        tcp::Challenge c;
        put(fd, challenge(heard, &c, 2, port));
        heard.clear();
        for (int i = 0; i < 1000 && heard.size() < sizeof(tcp::Proof); i++) {
            side.progress();
            heard += drain(fd);
        }
        check(heard.size() == sizeof(tcp::Proof), "a genuine peer gets no proof");
        put(fd, raw(tcp::Verdict{tcp::kAccepted}));
        side.progress(3);
        check(good->live && side.iface->ops->am_short(good, 1, 0, "good", 4) == MPX_OK, "a genuine peer is not reached");
        reset(fd);
    }
    return 0;
}
