// tcp as acceptor: what strangers, and peers of the job that misbehave in the handshake, may send. Nobody is accepted, and nothing
// delivered, but for proofs that hold; when all have gone no connection is left; a genuine peer still gets in.
#include "tcp_side.h"

using namespace mpx;
using namespace mpx::fuzz;

namespace {

struct Stranger {
    int fd;
    tcp::Hello hello{};
    std::string heard;
    std::string sent;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in(data, size);
    Side side;
    const tcp::JobKey key(kKey, sizeof kKey);
    std::vector<Stranger> strangers;
    std::string recorded;  // a genuine conversation, to be replayed
    int genuine = 0;
    while (!in.empty()) {
        const uint8_t op = in.byte() % 11;
        if (op == 0 || strangers.empty()) {
            if (strangers.size() < 6) strangers.push_back({side.plug(tcp::Link::kAwaitHello), {}, "", ""});
            continue;
        }
        Stranger &s = strangers[in.byte() % strangers.size()];
        const auto say = [&s](const std::string &text) {
            put(s.fd, text);
            s.sent += text;
        };
        switch (op) {
            case 1: say(in.bytes(400)); break;
            case 2:
            case 3:  // a hello, right or nearly
                s.hello = {tcp::kHelloMagic, address_of(in.byte() % 4 + 1, 9), {}, in.number<uint16_t>(), in.number<uint16_t>()};
                in.spoil(&s.hello, sizeof s.hello);
                say(raw(s.hello));
                break;
            case 4:
            case 5: {  // a proof, right or nearly, of the conversation so far
                s.heard += drain(s.fd);
                tcp::Challenge c{};
                if (s.heard.size() < sizeof c) break;
                std::memcpy(&c, s.heard.data(), sizeof c);
                tcp::Proof right{key.prove(tcp::Role::kConnector, s.hello, c.from, c.nonce)}, said = right;
                in.spoil(&said, sizeof said);
                if (tcp::same(right.mac, said.mac)) genuine++;
                say(raw(said));
                if (recorded.empty()) recorded = s.sent;
                break;
            }
            case 6: say(recorded); break;
            case 7: say(raw(tcp::Frame{in.byte(), in.byte(), in.byte(), in.byte(), 1}) + in.bytes(64)); break;
            case 8: side.progress(); break;
            case 9: shutdown(s.fd, SHUT_WR); break;
            case 10:
                ::close(s.fd);
                s = strangers.back();
                strangers.pop_back();
                break;
        }
    }
    side.progress(4);
    check(side.accepted <= genuine, "accepted without a proof");
    check(genuine || side.inbox.empty(), "delivered without a proof");
    for (const Stranger &s : strangers) ::close(s.fd);
    side.progress(4);
    check(side.iface->half_open == 0, "half-open connections are left");
    for (const auto &link : side.iface->links) check(link->ep != nullptr, "a stranger's connection is left");
    good_peer_gets_in(side, 9);
    return 0;
}
