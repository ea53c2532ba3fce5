// A card of RDMA verbs, through the fast path of the transport: the program's end of a link registers, the other end reads by RDMA from it
// into the wire, memory that stays registered; and the program's end reads from there. VERBS_OBJECTS is the library that verbs_objects.cc
// became; see there for more.
#include <sys/mman.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../verbs/verbs_side.h"
#include "card.h"
#include "noise.h"

namespace {

struct Done : mpx_completion {
    mpx_status status = MPX_INPROGRESS;
};

class VerbsCard : public Card {
public:
    explicit VerbsCard(size_t longest)
        : longest_(longest),
          table_(load_table(std::getenv("VERBS_OBJECTS"))),
          here_(table_),
          there_(table_) {
        const std::string here = here_.link_to(there_.address()), there = there_.link_to(here_.address());
        here_.connect(there);
        there_.connect(here);
        wire_ = static_cast<char *>(mmap(nullptr, longest, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
        constexpr unsigned kBothWays = MPX_ACCESS_LOCAL | MPX_ACCESS_REMOTE_READ;
        there_.need("mem_reg", table_->mem_reg(there_.domain, wire_, longest, MPX_MEM_HOST, kBothWays, &wire_memh_));
    }
    ~VerbsCard() override {
        table_->mem_dereg(there_.domain, wire_memh_);
        here_.close();
        there_.close();
        munmap(wire_, longest_);
    }
    VerbsCard(const VerbsCard &) = delete;
    VerbsCard &operator=(const VerbsCard &) = delete;

    const mpx_transport *table() const override { return table_; }
    mpx_domain *domain() override { return here_.domain; }
    uint64_t send(mpx_mem_h memh, const char *at, size_t length) override {
        read(there_, wire_, wire_memh_, here_, at, memh, length);
        return count_differences(wire_, at, length);
    }
    uint64_t receive(mpx_mem_h memh, char *at, size_t length, uint64_t seed) override {
        fill(wire_, length, seed);
        read(here_, at, memh, there_, wire_, wire_memh_, length);
        return count_differences(wire_, at, length);
    }

private:
    void read(VerbsSide &reader, char *to, mpx_mem_h to_memh, VerbsSide &owner, const char *from, mpx_mem_h from_memh, size_t length) {
        std::string packed(owner.attr.rkey_packed_len, '\0');
        mpx_rkey_h key = nullptr;
        owner.need("rkey_pack", table_->rkey_pack(owner.domain, from_memh, packed.data(), packed.size()));
        reader.need("rkey_unpack", table_->rkey_unpack(reader.domain, packed.data(), packed.size(), &key));
        const mpx_iov piece{to, length, to_memh};
        Done done;
        done.done = [](mpx_completion *c, mpx_status st) { static_cast<Done *>(c)->status = st; };
        mpx_status st;
        const auto raddr = reinterpret_cast<uint64_t>(from);
        while ((st = reader.iface->ops->get_zcopy(reader.ep, &piece, 1, raddr, key, &done)) == MPX_ERR_NO_RESOURCE) progress();
        if (st != MPX_INPROGRESS) reader.need("get_zcopy", st);
        while (st == MPX_INPROGRESS && done.status == MPX_INPROGRESS) progress();
        if (st == MPX_INPROGRESS) reader.need("get_zcopy", done.status);
        table_->rkey_release(reader.domain, key);
    }
    void progress() {
        here_.progress();
        there_.progress();
    }

    size_t longest_;
    const mpx_transport *table_;
    VerbsSide here_, there_;
    char *wire_ = nullptr;
    mpx_mem_h wire_memh_ = nullptr;
};

}  // namespace

std::unique_ptr<Card> open_card(unsigned, size_t longest) { return std::make_unique<VerbsCard>(longest); }
