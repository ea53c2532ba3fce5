// Addresses that the bootstrap's store may hold, given to tcp: refused with a reason, or usable.
#include "tcp_side.h"

using namespace mpx;
using namespace mpx::fuzz;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in(data, size);
    static Side *const side = new Side;  // its socket is opened once
    const mpx_transport &t = *mpx_transport_table();
    std::string address;
    if (in.byte() % 4) {
        tcp::Address a = address_of(in.byte(), in.number<uint16_t>());
        a.count = in.byte() % 4 ? in.byte() % 10 : in.number<uint16_t>();
        for (auto &place : a.at)
            place = {in.byte() % 2 ? in.number<uint32_t>() : htonl(INADDR_LOOPBACK + in.byte()), in.number<uint16_t>(), 0};
        in.spoil(&a, sizeof a);
        address = raw(a);
        if (in.byte() % 8 == 0) address.resize(in.below(200));
    } else {
        address = in.bytes(300);
    }
    const std::unique_ptr<char[]> exact(new char[address.size()]);
    std::memcpy(exact.get(), address.data(), address.size());
    const bool reachable = t.iface_reachable(side->iface, exact.get(), address.size()) == 1;
    check(reachable || *t.why(), "unreachable without a reason");
    check(std::strchr(t.why(), '\n') == nullptr, "a reason of more than one line");
    mpx_ep *ep = nullptr;
    const mpx_status st = t.ep_create(side->iface, exact.get(), address.size(), &ep);
    check((st == MPX_OK) == reachable, "ep_create and iface_reachable do not agree");
    if (st == MPX_OK) t.ep_destroy(ep);
    return 0;
}
