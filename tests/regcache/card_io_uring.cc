// io_uring's fixed buffers as the card: what is written from one, or read into one, moves between the pages that were pinned and a file. A
// file in memory is the wire.
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "card.h"
#include "noise.h"

namespace {

[[noreturn]] void fail(const char *what) { throw std::runtime_error(std::string("io_uring: ") + what + ": " + std::strerror(errno)); }

int ring_register(int ring, unsigned what, const void *argument, unsigned count) {
    return static_cast<int>(syscall(SYS_io_uring_register, ring, what, argument, count));
}

mpx_mem_h handle(unsigned slot) { return reinterpret_cast<mpx_mem_h>(static_cast<uintptr_t>(slot) + 1); }
unsigned slot_of(mpx_mem_h memh) { return static_cast<unsigned>(reinterpret_cast<uintptr_t>(memh) - 1); }

class Ring : public Card {
public:
    Ring(unsigned slots, size_t longest);
    ~Ring() override;
    Ring(const Ring &) = delete;
    Ring &operator=(const Ring &) = delete;

    const mpx_transport *table() const override { return &table_; }
    mpx_domain *domain() override { return reinterpret_cast<mpx_domain *>(this); }
    uint64_t send(mpx_mem_h, const char *at, size_t length) override;
    uint64_t receive(mpx_mem_h, char *at, size_t length, uint64_t seed) override;

private:
    mpx_status add(void *at, size_t length, mpx_mem_h *out);
    mpx_status update(unsigned slot, void *at, size_t length);
    void carry_out(unsigned char operation, mpx_mem_h, const char *at, size_t length);

    mpx_transport table_{};
    int ring_ = -1, wire_fd_ = -1;
    size_t longest_;
    char *wire_ = nullptr;
    void *rings_ = nullptr;
    size_t rings_size_ = 0;
    io_uring_sqe *entries_ = nullptr;
    unsigned *sq_tail_ = nullptr, *sq_array_ = nullptr, *cq_head_ = nullptr, *cq_tail_ = nullptr;
    unsigned sq_mask_ = 0, cq_mask_ = 0;
    io_uring_cqe *completions_ = nullptr;
    size_t entries_size_ = 0;
    std::vector<unsigned> free_slots_;
};

Ring::Ring(unsigned slots, size_t longest) : longest_(longest) {
    io_uring_params params{};
    ring_ = static_cast<int>(syscall(SYS_io_uring_setup, 4, &params));
    if (ring_ < 0) fail("setup");
    rings_size_ = std::max<size_t>(params.sq_off.array + params.sq_entries * sizeof(unsigned),
                                   params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe));
    entries_size_ = params.sq_entries * sizeof(io_uring_sqe);
    const auto map = [this](size_t size, off_t what) {
        void *at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring_, what);
        if (at == MAP_FAILED) fail("mmap");
        return at;
    };
    rings_ = map(rings_size_, IORING_OFF_SQ_RING);
    entries_ = static_cast<io_uring_sqe *>(map(entries_size_, IORING_OFF_SQES));
    const auto at = [this](unsigned offset) { return reinterpret_cast<unsigned *>(static_cast<char *>(rings_) + offset); };
    sq_tail_ = at(params.sq_off.tail);
    sq_array_ = at(params.sq_off.array);
    sq_mask_ = *at(params.sq_off.ring_mask);
    cq_head_ = at(params.cq_off.head);
    cq_tail_ = at(params.cq_off.tail);
    cq_mask_ = *at(params.cq_off.ring_mask);
    completions_ = reinterpret_cast<io_uring_cqe *>(at(params.cq_off.cqes));
    io_uring_rsrc_register sparse{};
    sparse.nr = slots;
    sparse.flags = IORING_RSRC_REGISTER_SPARSE;
    if (ring_register(ring_, IORING_REGISTER_BUFFERS2, &sparse, sizeof sparse)) fail("an empty table of buffers");
    for (unsigned slot = slots; slot-- > 0;) free_slots_.push_back(slot);
    wire_fd_ = memfd_create("wire", MFD_CLOEXEC);
    if (wire_fd_ < 0 || ftruncate(wire_fd_, static_cast<off_t>(longest))) fail("memfd");
    wire_ = static_cast<char *>(mmap(nullptr, longest, PROT_READ | PROT_WRITE, MAP_SHARED, wire_fd_, 0));
    table_.name = "io_uring";
    table_.mem_reg = [](mpx_domain *d, void *start, size_t length, int, unsigned, mpx_mem_h *out) {
        return reinterpret_cast<Ring *>(d)->add(start, length, out);
    };
    table_.mem_dereg = [](mpx_domain *d, mpx_mem_h memh) {
        auto *card = reinterpret_cast<Ring *>(d);
        card->free_slots_.push_back(slot_of(memh));
        return card->update(slot_of(memh), nullptr, 0);
    };
}

Ring::~Ring() {
    munmap(wire_, longest_);
    munmap(rings_, rings_size_);
    munmap(entries_, entries_size_);
    close(wire_fd_);
    close(ring_);
}

mpx_status Ring::add(void *at, size_t length, mpx_mem_h *out) {
    if (free_slots_.empty()) return MPX_ERR_NO_MEMORY;
    const unsigned slot = free_slots_.back();
    if (const mpx_status st = update(slot, at, length)) return st;
    free_slots_.pop_back();
    *out = handle(slot);
    return MPX_OK;
}

mpx_status Ring::update(unsigned slot, void *at, size_t length) {
    const iovec buffer{at, length};
    io_uring_rsrc_update2 change{};
    change.offset = slot;
    change.data = reinterpret_cast<uintptr_t>(&buffer);
    change.nr = 1;
    if (ring_register(ring_, IORING_REGISTER_BUFFERS_UPDATE, &change, sizeof change) == 1) return MPX_OK;
    return errno == ENOMEM ? MPX_ERR_NO_MEMORY : MPX_ERR_INVALID;
}

void Ring::carry_out(unsigned char operation, mpx_mem_h memh, const char *at, size_t length) {
    const unsigned tail = *sq_tail_, index = tail & sq_mask_;
    io_uring_sqe &e = entries_[index];
    std::memset(&e, 0, sizeof e);
    e.opcode = operation;
    e.fd = wire_fd_;
    e.addr = reinterpret_cast<uintptr_t>(at);
    e.len = static_cast<uint32_t>(length);
    e.buf_index = static_cast<uint16_t>(slot_of(memh));
    sq_array_[index] = index;
    std::atomic_ref(*sq_tail_).store(tail + 1, std::memory_order_release);
    for (unsigned submit = 1; std::atomic_ref(*cq_tail_).load(std::memory_order_acquire) == *cq_head_; submit = 0)
        if (syscall(SYS_io_uring_enter, ring_, submit, 1, IORING_ENTER_GETEVENTS, nullptr, 0) < 0 && errno != EINTR) fail("enter");
    const io_uring_cqe done = completions_[*cq_head_ & cq_mask_];
    std::atomic_ref(*cq_head_).store(*cq_head_ + 1, std::memory_order_release);
    if (done.res == static_cast<int>(length)) return;
    errno = done.res < 0 ? -done.res : EIO;
    fail("a transfer");
}

uint64_t Ring::send(mpx_mem_h memh, const char *at, size_t length) {
    carry_out(IORING_OP_WRITE_FIXED, memh, at, length);
    return count_differences(wire_, at, length);
}

uint64_t Ring::receive(mpx_mem_h memh, char *at, size_t length, uint64_t seed) {
    fill(wire_, length, seed);
    carry_out(IORING_OP_READ_FIXED, memh, at, length);
    return count_differences(wire_, at, length);
}

}  // namespace

std::unique_ptr<Card> open_card(unsigned slots, size_t longest) { return std::make_unique<Ring>(slots, longest); }
