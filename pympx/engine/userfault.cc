// See userfault.h.
#include "userfault.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace mpx {
namespace {

constexpr uint64_t kEvents = UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE;
constexpr int kPatienceMs = 1000;  // for an event that must come
constexpr int kTurns = 1'000'000;  // for a thread that must get its turn
constexpr size_t kBatch = 16;
static_assert(std::is_same_v<pthread_t, unsigned long>);

// A page that a thread of its own replaces by an empty one, which unmaps it. Other threads never find a hole there that they might fill.
struct Replacing {
    char *page;
    size_t size;
    pthread_t thread = 0;

    bool start() {
        *page = 1;
        return start_thread(
            &thread,
            [](void *self) -> void * {
                const auto &[page, size, thread] = *static_cast<Replacing *>(self);
                syscall(SYS_mmap, page, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                        0L);  // raw: sanitizers know no such race
                return nullptr;
            },
            this);
    }
    bool replaced() const { return *static_cast<volatile char *>(page) == 0; }  // its caller still waits
};

}  // namespace

bool start_thread(unsigned long *thread, void *(*function)(void *), void *argument) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(thread, nullptr, function, argument);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return error == 0;
}

Userfault::Userfault() {
    fd_ = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
    if (fd_ < 0) throw std::runtime_error(std::string("userfaultfd: ") + std::strerror(errno));
    uffdio_api api{UFFD_API, kEvents, 0};
    const char *problem = ioctl(fd_, UFFDIO_API, &api) ? "this kernel does not tell of memory that is unmapped, moved or emptied" : check();
    if (!problem) return;
    close();
    throw std::runtime_error(std::string("userfaultfd: ") + problem);
}

void Userfault::close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

int Userfault::watch(uintptr_t from, uintptr_t to) const {
    uffdio_register range{{from, to - from}, UFFDIO_REGISTER_MODE_WP, 0};
    return ioctl(fd_, UFFDIO_REGISTER, &range) ? errno : 0;
}

void Userfault::unwatch(uintptr_t from, uintptr_t to) const {
    uffdio_range range{from, to - from};
    ioctl(fd_, UFFDIO_UNREGISTER, &range);  // fails where something else is mapped by now
}

// The kernel refuses to fill pages while a change is under way, by EAGAIN; it looks at that before it finds that an empty range is invalid.
// Measured, this is the cheapest of such questions, and no lock of the address space is taken for it.
bool Userfault::quiet() const {
    uffdio_zeropage nothing{};
    return ioctl(fd_, UFFDIO_ZEROPAGE, &nothing) && errno == EINVAL;
}

size_t Userfault::read(Change *changes, size_t max) const {
    uffd_msg messages[kBatch];
    const ssize_t n = ::read(fd_, messages, std::min(max, kBatch) * sizeof(uffd_msg));
    size_t count = 0;
    for (ssize_t i = 0; i < n / static_cast<ssize_t>(sizeof(uffd_msg)); i++) {
        const uffd_msg &m = messages[i];
        if (m.event == UFFD_EVENT_UNMAP) changes[count++] = {Change::Kind::kUnmapped, m.arg.remove.start, m.arg.remove.end, 0};
        else if (m.event == UFFD_EVENT_REMOVE) changes[count++] = {Change::Kind::kEmptied, m.arg.remove.start, m.arg.remove.end, 0};
        else if (m.event == UFFD_EVENT_REMAP)
            changes[count++] = {Change::Kind::kMoved, m.arg.remap.from, m.arg.remap.from + m.arg.remap.len, m.arg.remap.to};
    }
    return count;
}

// Two threads unmap watched memory at once. All that is built on this rests on what the kernel must now do: tell of both, keep both
// waiting until they are read, and not be quiet before the second is (kernels before 5.15 forget it when the first is over).
const char *Userfault::check() const {
    const auto size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void *memory = mmap(nullptr, 4 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return "no memory to try it on";
    auto *const area = static_cast<char *>(memory);
    const auto begin = reinterpret_cast<uintptr_t>(area);
    Replacing jobs[] = {{area, size}, {area + 2 * size, size}};
    const auto next = [this](int patience_ms) -> uintptr_t {  // where the next change was, 0: none came
        pollfd p{fd_, POLLIN, 0};
        Change change;
        return poll(&p, 1, patience_ms) == 1 && read(&change, 1) == 1 && change.kind == Change::Kind::kUnmapped ? change.from : 0;
    };
    const char *problem = nullptr;
    if (watch(begin, begin + 4 * size)) problem = "this kernel cannot watch ordinary memory";
    else if (!quiet()) problem = "this kernel does not answer as expected while nothing changes";
    for (Replacing &job : jobs)
        if (!problem && !job.start()) problem = "no thread to try it with";
    for (int turns = 0; !problem && !(jobs[0].replaced() && jobs[1].replaced()); turns++) {
        if (turns == kTurns) problem = "watched memory cannot be replaced";
        sched_yield();
    }
    for (size_t told = 0; !problem && told < std::size(jobs); told++) {
        if (quiet()) {
            problem = "this kernel does not say that a change is under way";
            break;
        }
        const uintptr_t where = next(kPatienceMs);
        Replacing *job =
            std::find_if(std::begin(jobs), std::end(jobs), [=](auto &j) { return reinterpret_cast<uintptr_t>(j.page) == where; });
        if (job == std::end(jobs) || !job->thread) problem = "this kernel does not tell of memory that was unmapped";
        else pthread_join(std::exchange(job->thread, 0), nullptr);
    }
    if (!problem && !quiet()) problem = "this kernel does not say when a change is over";
    unwatch(begin, begin + 4 * size);  // else munmap here would wait for a reader
    for (const Replacing &job : jobs)  // after a problem they may still wait to be read
        while (job.thread && pthread_tryjoin_np(job.thread, nullptr) == EBUSY) next(1);
    munmap(area, 4 * size);
    return problem;
}

}  // namespace mpx
