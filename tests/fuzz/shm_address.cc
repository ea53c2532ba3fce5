// Addresses that the bootstrap's store may hold, given to shm: refused with a reason, or usable. Descriptors named are this process's own:
// files as short, as shrinkable and as full of nonsense as the input says.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../transports/shm/shm.h"
#include "input.h"

using namespace mpx;
using namespace mpx::fuzz;

extern "C" const mpx_transport *mpx_transport_table(void);

namespace {

mpx_status receive(void *, void *, const void *, size_t, void *, size_t, unsigned) { return MPX_OK; }
mpx_ep *incoming(void *, const void *, size_t) { return nullptr; }
void error(void *, mpx_ep *, mpx_status st) { check(st < 0, "on_error without an error"); }

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input in(data, size);
    const mpx_transport &t = *mpx_transport_table();
    static mpx_domain *const domain = [&t] {
        const mpx_domain_params dp{sizeof dp, "", "{}", "k", 1};
        mpx_domain *d = nullptr;
        check(t.domain_open(&dp, &d) == MPX_OK, "no domain");
        return d;
    }();
    static mpx_iface *const iface = [&t] {
        static mpx_am_handler handlers[MPX_AM_ID_MAX];
        for (auto &h : handlers) h = {receive, nullptr};
        const mpx_iface_params ip{sizeof ip, handlers, incoming, error, nullptr, 0, nullptr};
        mpx_iface *i = nullptr;
        check(t.iface_open(domain, &ip, &i) == MPX_OK, "no iface");
        return i;
    }();
    shm::Address mine{};
    check(t.iface_address(iface, &mine) == MPX_OK, "no address");

    std::string address;
    int file = -1;
    if (in.byte() % 8) {
        shm::Address a = mine;
        if (in.byte() % 4) {  // a file that looks like a segment, more or less
            shm::SegmentHeader head{};
            head.magic = shm::kAddressMagic;
            head.nonce.fill(7);
            a.nonce.fill(7);
            file = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
            check(file >= 0, "no memfd");
            if (in.byte() % 2) std::memset(head.slots, 1, sizeof head.slots / 2);  // as if many rings were there
            in.spoil(&head, sizeof head);
            (void)!pwrite(file, &head, in.byte() % 2 ? sizeof head : in.below(sizeof head), 0);
            const uint8_t length = in.byte() % 4;
            if (length)
                (void)!ftruncate(file, length == 1   ? in.number<uint16_t>()
                                       : length == 2 ? off_t(shm::kHeaderBytes)
                                                     : off_t(shm::kSegmentBytes));
            if (in.byte() % 2) fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
            a.segment_fd = file;
        }
        in.spoil(&a, sizeof a);
        if (a.pid != mine.pid) a.pid = in.byte() % 2 ? mine.pid : in.byte() % 2 ? -in.byte() : 0x7fffffff;  // no other process's files
        if (a.segment_fd != file && a.segment_fd != mine.segment_fd) a.segment_fd = in.byte() % 2 ? file : -1;
        a.wake_fd = in.byte() % 2 ? mine.wake_fd : in.byte() % 2 ? file : -1;
        address = raw(a);
        if (in.byte() % 16 == 0) address.resize(in.below(200));
    } else {
        address = in.bytes(300);
        if (address.size() == sizeof(shm::Address)) address.pop_back();
    }
    const std::unique_ptr<char[]> exact(new char[address.size()]);
    std::memcpy(exact.get(), address.data(), address.size());
    const bool reachable = t.iface_reachable(iface, exact.get(), address.size()) == 1;
    check(reachable || *t.why(), "unreachable without a reason");
    mpx_ep *ep = nullptr;
    const mpx_status st = t.ep_create(iface, exact.get(), address.size(), &ep);
    if (st == MPX_OK) {
        ep->user = ep;
        for (int i = 0; i < 3; i++) {
            (void)iface->ops->am_short(ep, 1, 5, "hello", 5);
            iface->ops->progress(iface);
        }
        t.ep_destroy(ep);
        iface->ops->progress(iface);
    }
    if (file >= 0) ::close(file);
    return 0;
}
