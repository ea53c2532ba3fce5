// The choice of protocol is a pure function of the transport's data.
#include <limits>
#include <stdexcept>

#include "engine_world.h"

using namespace mpx;
using namespace mpx::test;

namespace {

mpx_iface_attr attributes() { return script::Fabric().attr; }

std::string reason(const mpx_iface_attr &attr) {
    try {
        choose_protocols(attr);
    } catch (const std::invalid_argument &e) {
        return e.what();
    }
    return "";
}

// Each range's ends and one byte beyond.
void check_table(const ProtocolTable &t, const std::vector<std::pair<uint64_t, Protocol>> &upper_ends, Protocol rest) {
    uint64_t from = 0;
    for (const auto &[to, protocol] : upper_ends) {
        CAPTURE(to);
        CHECK(t.choose(from) == protocol);
        CHECK(t.choose(to) == protocol);
        CHECK(t.choose(to + 1) != protocol);
        from = to + 1;
    }
    CHECK(t.choose(from) == rest);
    CHECK(t.choose(UINT64_MAX - 1) == rest);
}

}  // namespace

TEST_CASE("each protocol has its range") {
    const ProtocolTable t = choose_protocols(attributes());
    check_table(t, {{64, Protocol::kShort}, {255, Protocol::kEagerBcopy}, {2000, Protocol::kEagerZcopy}}, Protocol::kRndvGet);
    CHECK(t.describe() == "0..64 short, 65..255 eager bcopy, 256..2000 eager zcopy, 2001.. rendezvous by get");
}

TEST_CASE("without zcopy, bcopy goes to its limit, then fragments until a get pays") {
    auto attr = attributes();
    attr.caps &= ~uint64_t{MPX_CAP_AM_ZCOPY};
    const ProtocolTable t = choose_protocols(attr);
    check_table(t, {{64, Protocol::kShort}, {504, Protocol::kEagerBcopy}, {1999, Protocol::kRndvFragments}}, Protocol::kRndvGet);
    CHECK(t.fragment == 512 - sizeof(DataHeader));
    CHECK(t.describe() == "0..64 short, 65..504 eager bcopy, 505..1999 rendezvous by fragments, 2000.. rendezvous by get");
}

TEST_CASE("without get, eager goes to the transport's limit, then fragments") {
    auto attr = attributes();
    attr.caps &= ~uint64_t{MPX_CAP_GET_ZCOPY};
    check_table(choose_protocols(attr), {{64, Protocol::kShort}, {255, Protocol::kEagerBcopy}, {4096, Protocol::kEagerZcopy}},
                Protocol::kRndvFragments);
    attr.caps &= ~uint64_t{MPX_CAP_AM_ZCOPY};
    check_table(choose_protocols(attr), {{64, Protocol::kShort}, {504, Protocol::kEagerBcopy}}, Protocol::kRndvFragments);
}

TEST_CASE("a get slower than the transport's messages is not used") {
    auto attr = attributes();
    attr.get_bandwidth_Bps = attr.bandwidth_Bps / 2;
    CHECK(choose_protocols(attr).choose(UINT64_MAX - 1) == Protocol::kRndvFragments);
}

TEST_CASE("a header that zcopy cannot carry rules zcopy out") {
    auto attr = attributes();
    attr.max_am_hdr = 7;
    CHECK(choose_protocols(attr).max_zcopy == 0);
}

TEST_CASE("eager zcopy is not offered where buffers must be registered") {
    auto attr = attributes();
    attr.caps |= MPX_CAP_NEED_MEMH;
    const ProtocolTable t = choose_protocols(attr);
    CHECK(t.max_zcopy == 0);
    CHECK(t.choose(300) == Protocol::kEagerBcopy);
}

TEST_CASE("transports that cannot carry the engine's messages are refused with a reason") {
    auto attr = attributes();
    attr.caps &= ~uint64_t{MPX_CAP_AM_SHORT};
    CHECK(reason(attr).find("am_short") != std::string::npos);
    attr = attributes();
    attr.caps &= ~uint64_t{MPX_CAP_AM_BCOPY};
    CHECK(reason(attr).find("am_bcopy") != std::string::npos);
    attr = attributes();
    attr.max_am_bcopy = sizeof(RtsHeader) + kMaxRkey - 1;
    CHECK(reason(attr).find("am_bcopy is too small") != std::string::npos);
    attr.max_am_bcopy++;
    CHECK(reason(attr).empty());
    attr = attributes();
    attr.rkey_packed_len = kMaxRkey + 1;
    CHECK(reason(attr).find("remote key") != std::string::npos);
    attr.rkey_packed_len--;
    CHECK(reason(attr).empty());
}

TEST_CASE("absurd costs neither overflow nor leave a size without protocol") {
    const double values[] = {0, 1e-300, 1, 1e300, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN(), -1};
    for (const double latency : values)
        for (const double bandwidth : values)
            for (const double overhead : values)
                for (const double get : values) {
                    auto attr = attributes();
                    attr.latency_s = latency;
                    attr.bandwidth_Bps = bandwidth;
                    attr.get_overhead_s = overhead;
                    attr.get_bandwidth_Bps = get;
                    const ProtocolTable t = choose_protocols(attr);
                    CHECK(t.max_short == 64);
                    CHECK(t.max_bcopy <= 504);
                    CHECK(t.max_zcopy <= 4096);
                    CHECK(t.choose(5000) >= Protocol::kRndvGet);
                    CHECK(!t.describe().empty());
                }
}
