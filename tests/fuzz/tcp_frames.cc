// tcp's frames from an authenticated peer. What is delivered is what a second, simple parser finds in the bytes sent; gets land in their
// buffers only; what is served is registered memory and nothing else; then another peer still gets in.
#include <sys/mman.h>

#include <map>

#include "tcp_side.h"

using namespace mpx;
using namespace mpx::fuzz;

namespace {

struct Posted : mpx_completion {
    int calls = 0;
    std::string buffer;
};

// The messages in a stream, up to the first frame that cannot be. Whether a get's answer fits is not known here: it is skipped.
std::vector<Message> messages_in(const std::string &stream, bool *certain) {
    std::vector<Message> found;
    *certain = true;
    for (size_t at = 0; stream.size() - at >= sizeof(tcp::Frame);) {
        tcp::Frame f;
        std::memcpy(&f, stream.data() + at, sizeof f);
        at += sizeof f;
        const uint64_t padded = (uint64_t{f.length} + 7) / 8 * 8;
        if (padded > stream.size() - at && f.kind != tcp::kGetData) break;
        if (f.kind == tcp::kAmShort || f.kind == tcp::kAm) {
            if (f.am_id >= MPX_AM_ID_MAX || f.am_id == kNoHandler || f.hdr_len > f.length || f.hdr_len > tcp::kMaxHdr ||
                f.length - f.hdr_len > tcp::kMaxAm)
                break;
            const std::string body = stream.substr(at, f.length);
            if (f.kind == tcp::kAmShort) found.push_back({f.am_id, raw(f.word), body});
            else found.push_back({f.am_id, body.substr(0, f.hdr_len), body.substr(f.hdr_len)});
        } else {
            *certain = false;
            if (f.kind == tcp::kGetData && padded > stream.size() - at) break;
        }
        at += padded;
    }
    return found;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in(data, size);
    Side side;
    const mpx_transport &t = *mpx_transport_table();
    tcp::Ep *ep = side.ep_to(address_of(1, 9));
    check(ep != nullptr, "no ep");
    tcp::Link *link = nullptr;
    const int fd = side.plug(tcp::Link::kAwaitVerdict, &link);
    link->ep = ep;
    ep->link = link;
    link->go_up(ep);

    // what the peer may read, between pages that it may not
    constexpr size_t kRegion = 8192;
    static std::vector<uint8_t> memory(3 * kRegion, 0xee);
    uint8_t *region = memory.data() + kRegion;
    for (size_t i = 0; i < kRegion; i++) region[i] = static_cast<uint8_t>(i * 7 + i / 256);
    mpx_mem_h memh = nullptr, own = nullptr;
    check(t.mem_reg(side.domain, region, kRegion, MPX_MEM_HOST, MPX_ACCESS_REMOTE_READ, &memh) == MPX_OK, "mem_reg");
    check(t.mem_reg(side.domain, memory.data(), kRegion, MPX_MEM_HOST, MPX_ACCESS_LOCAL, &own) == MPX_OK, "mem_reg");
    tcp::PackedKey key{}, own_key{};
    t.rkey_pack(side.domain, memh, &key, sizeof key);
    t.rkey_pack(side.domain, own, &own_key, sizeof own_key);
    mpx_rkey_h rkey = nullptr;
    check(t.rkey_unpack(side.domain, &key, sizeof key, &rkey) == MPX_OK, "rkey_unpack");

    std::vector<std::unique_ptr<Posted>> gets;
    std::string stream, answers;
    std::map<uint64_t, std::pair<uint64_t, uint64_t>> asked;  // by request: offset and bytes of those that may be served
    bool twice = false, registered = true, whole = true;
    uint64_t answered = 0;
    const auto say = [&](const std::string &text) {
        const ssize_t n = send(fd, text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) stream.append(text, 0, static_cast<size_t>(n));
        if (n != static_cast<ssize_t>(text.size())) whole = false;  // full, or closed: what follows would have no beginning
    };
    while (!in.empty() && whole) {
        switch (in.byte() % 10) {
            case 0: say(in.bytes(300)); break;
            case 1:
            case 2: {  // a message, right or nearly
                const std::string body = in.bytes(200);
                tcp::Frame f{static_cast<uint32_t>(body.size()), static_cast<uint8_t>(in.byte() % 2 + tcp::kAmShort), in.byte(), 0,
                             in.number<uint64_t>()};
                if (f.kind == tcp::kAm) f.hdr_len = in.byte();
                in.spoil(&f, sizeof f);
                say(raw(f) + body + std::string(tcp::padding(body.size()), '\0'));
                break;
            }
            case 3: {  // the longest messages, and beyond
                const size_t length = tcp::kMaxAm - 8 + in.byte() % 24;
                say(raw(tcp::Frame{static_cast<uint32_t>(length), tcp::kAmShort, 2, 0, 1}) +
                    std::string(length + tcp::padding(length), 'x'));
                side.progress();
                break;
            }
            case 4: {  // asks for memory
                const uint64_t number = in.byte(), offset = in.number<uint16_t>(), length = in.number<uint16_t>();
                tcp::GetRequest r{in.byte() % 4 ? key : own_key, reinterpret_cast<uint64_t>(region) + offset, length};
                const tcp::GetRequest before = r;
                in.spoil(&r, sizeof r);
                const bool fits = registered && std::memcmp(&r.key, &key, sizeof key) == 0 && r.raddr >= before.raddr - offset &&
                                  r.raddr - reinterpret_cast<uint64_t>(region) <= kRegion &&
                                  r.length <= kRegion - (r.raddr - reinterpret_cast<uint64_t>(region));
                twice |= asked.count(number) > 0;
                if (fits) asked[number] = {r.raddr - reinterpret_cast<uint64_t>(region), r.length};
                say(raw(tcp::Frame{sizeof r, tcp::kGetReq, 0, 0, number}) + raw(r));
                break;
            }
            case 5: {  // answers a get
                const std::string body = in.bytes(600);
                const uint64_t number = in.byte() % 4 ? answered + 1 : in.byte();
                answered += in.byte() % 2;
                say(raw(tcp::Frame{static_cast<uint32_t>(body.size()), in.byte() % 8 ? tcp::kGetData : tcp::kGetFail, 0, 0, number}) +
                    body + std::string(tcp::padding(body.size()), '\0'));
                break;
            }
            case 6: {  // fetches
                gets.push_back(std::make_unique<Posted>());
                Posted *g = gets.back().get();
                g->done = [](mpx_completion *c, mpx_status) { static_cast<Posted *>(c)->calls++; };
                g->buffer.assign(in.below(900), '\0');
                g->buffer.shrink_to_fit();
                const size_t cut = g->buffer.empty() ? 0 : in.byte() % g->buffer.size();
                const mpx_iov iov[2] = {{g->buffer.data(), cut, nullptr}, {g->buffer.data() + cut, g->buffer.size() - cut, nullptr}};
                if (side.iface->ops->get_zcopy(ep, iov, 2, 0, rkey, g) != MPX_INPROGRESS) gets.pop_back();
                break;
            }
            case 7: side.progress(in.byte() % 3 + 1); break;
            case 8: {  // speaks itself
                const std::string text(in.below(3000), 'm');
                side.iface->ops->am_short(ep, 1, 5, text.data(), text.size());
                break;
            }
            case 9:
                answers += drain(fd);
                if (registered && in.byte() % 8 == 0) {
                    t.mem_dereg(side.domain, memh);
                    registered = false;
                }
                break;
        }
    }
    shutdown(fd, SHUT_WR);
    for (int i = 0; i < 40; i++) {
        side.progress();
        answers += drain(fd);
    }
    check(side.errors == 1, "the end of the stream is not reported once");
    for (const auto &g : gets) check(g->calls == 1, "a get without exactly one completion");

    bool certain = false;
    const std::vector<Message> sent = messages_in(stream, &certain);
    check(side.inbox.size() <= sent.size() && std::equal(side.inbox.begin(), side.inbox.end(), sent.begin()),
          "delivered what was not sent");
    check(!certain || side.inbox.size() == sent.size(), "a message was lost");

    std::map<uint64_t, uint64_t> given;
    for (size_t at = 0; answers.size() - at >= sizeof(tcp::Frame);) {
        tcp::Frame f;
        std::memcpy(&f, answers.data() + at, sizeof f);
        at += sizeof f;
        check(f.kind == tcp::kAmShort || f.kind == tcp::kGetReq || f.kind == tcp::kGetData || f.kind == tcp::kGetFail,
              "speaks nonsense itself");
        const size_t there = std::min<size_t>(f.length, answers.size() - at);
        if (f.kind == tcp::kGetData && there && !twice) {
            check(asked.count(f.word) > 0, "memory was served that nobody may read");
            const auto [offset, bytes] = asked[f.word];
            const uint64_t from = given[f.word];
            check(from + there <= bytes, "more was served than was asked for");
            check(std::memcmp(answers.data() + at, region + offset + from, there) == 0, "the wrong memory was served");
            given[f.word] += there;
        }
        const size_t total = f.length + tcp::padding(f.length);
        if (total > answers.size() - at) break;
        at += total;
    }
    ::close(fd);
    t.rkey_release(side.domain, rkey);
    good_peer_gets_in(side, 9);
    return 0;
}
