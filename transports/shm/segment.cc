// Segments: creating, opening through /proc/PID/fd/N, mapping. Nothing here keeps state but the reason of a failure.
#include "shm.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

namespace mpx::shm {

namespace {
thread_local std::string reason;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
}  // namespace

Fd::~Fd() {
    if (fd_ >= 0) close(fd_);
}

Mapping::~Mapping() {
    if (base_) munmap(base_, len_);
}

mpx_status fail(mpx_status st, const std::string &what) {
    reason = "shm: " + what;
    return st;
}

mpx_status fail_errno(mpx_status st, const std::string &what) { return fail(st, what + ": " + strerror(errno)); }

const char *last_reason() { return reason.c_str(); }

Nonce random_nonce() {
    Nonce nonce;
    while (getrandom(nonce.data(), nonce.size(), 0) != ssize_t(nonce.size())) {
    }
    return nonce;
}

// The 32 hexadecimal digits of the kernel's boot id; all zero where it cannot be read (then nonces alone must do).
Nonce boot_id() {
    Nonce id{};
    const Fd file(open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
    char text[64];
    const ssize_t n = file ? read(file.get(), text, sizeof text) : 0;
    size_t digits = 0;
    for (ssize_t i = 0; i < n && digits < 32; ++i) {
        const char c = text[i];
        const int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (value < 0) continue;
        id[digits / 2] = static_cast<uint8_t>(id[digits / 2] << 4 | value);
        ++digits;
    }
    return id;
}

// The inode of this process's UTS namespace; 0 where /proc does not tell (then the nonce alone must do).
uint64_t uts_namespace() {
    struct stat info {};
    return stat("/proc/self/ns/uts", &info) == 0 ? info.st_ino : 0;
}

// A sparse memfd that cannot shrink, so that no peer's mapping of it ever raises SIGBUS.
Fd create_segment(const char *name, size_t len, mpx_status &st) {
    rlimit limit{};
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < len) {  // ftruncate would raise SIGXFSZ
        st = fail(MPX_ERR_NO_MEMORY, "RLIMIT_FSIZE (ulimit -f) is below the " + std::to_string(len) + " bytes of a segment");
        return Fd();
    }
    Fd fd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!fd || ftruncate(fd.get(), off_t(len)) != 0 || fcntl(fd.get(), F_ADD_SEALS, kSeals) != 0) {
        st = fail_errno(MPX_ERR_NO_MEMORY, "cannot create a memfd of " + std::to_string(len) + " bytes");
        return Fd();
    }
    st = MPX_OK;
    return fd;
}

Fd open_fd_of(int32_t pid, int fd, int flags) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
    return Fd(open(path, flags | O_CLOEXEC));
}

// Three things make one host. The boot id spares opening files of a stranger's pid. The UTS namespace: who gave processes a hostname of
// their own wants them to be a host of their own (other limits of memory, other address, perhaps moved or stopped alone), though they
// see each other's /proc. The proof is the nonce, read from the peer's own segment. Size and seals are looked at because a mapping of a
// file that is shorter, or may become so, raises SIGBUS.
mpx_status open_segment(const Address &address, Fd &out) {
    if (address.magic != kAddressMagic) return fail(MPX_ERR_INVALID, "the peer's address is not one of this version of shm");
    static const Nonce here = boot_id();
    static const uint64_t host = uts_namespace();
    if (address.boot != here) return fail(MPX_ERR_UNREACHABLE, "the peer is on another host");
    if (address.uts != host)
        return fail(MPX_ERR_UNREACHABLE, "the peer is on another host (this kernel's too, but with a hostname of its own: UTS namespace)");
    const std::string who = "process " + std::to_string(address.pid);
    Fd fd = open_fd_of(address.pid, address.segment_fd, O_RDWR | O_NONBLOCK);
    if (!fd) return fail_errno(MPX_ERR_UNREACHABLE, "cannot open the segment of " + who + " through /proc/PID/fd");
    SegmentHeader head{};
    const ssize_t n = pread(fd.get(), &head, offsetof(SegmentHeader, bell), 0);
    struct stat info {};
    const bool whole = fstat(fd.get(), &info) == 0 && size_t(info.st_size) == kSegmentBytes && fcntl(fd.get(), F_GET_SEALS) == kSeals;
    if (!whole || n != ssize_t(offsetof(SegmentHeader, bell)) || head.magic != kAddressMagic || head.nonce != address.nonce) {
        return fail(MPX_ERR_UNREACHABLE, who + " as seen from here is not the peer: it has ended, or lives in another pid namespace");
    }
    out = std::move(fd);
    return MPX_OK;
}

mpx_status map_shared(const Fd &fd, size_t len, size_t offset, Mapping &out) {
    void *base = mmap(nullptr, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), off_t(offset));
    if (base == MAP_FAILED) return fail_errno(MPX_ERR_NO_MEMORY, "cannot map " + std::to_string(len) + " bytes");
    out = Mapping(base, len);
    return MPX_OK;
}

mpx_status map_region(const Fd &segment, size_t slot, Mapping &out) {
    const off_t offset = off_t(kHeaderBytes + slot * kRegionBytes);
    const size_t len = kRegionBytes + kRingBytes;
    void *base = mmap(nullptr, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return fail_errno(MPX_ERR_NO_MEMORY, "no address space for a ring");
    Mapping mapping(base, len);
    auto place = [&](size_t at, size_t bytes, off_t from) {
        return mmap(mapping.base() + at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_POPULATE, segment.get(), from) !=
               MAP_FAILED;
    };
    if (!place(0, kRegionBytes, offset) || !place(kRegionBytes, kRingBytes, offset + off_t(kPage))) {
        return fail_errno(MPX_ERR_NO_MEMORY, "cannot map a ring");
    }
    madvise(mapping.base(), len, MADV_DONTFORK);
    out = std::move(mapping);
    return MPX_OK;
}

bool Peer::exited() const {
    pollfd p{pidfd.get(), POLLIN, 0};
    return poll(&p, 1, 0) == 1;
}

// A full pipe is a wake-up already; a peer that closed its end needs none.
void Peer::wake() {
    const char byte = 0;
    if (wake_pipe && write(wake_pipe.get(), &byte, 1) < 0) return;
}

}  // namespace mpx::shm
