// See mem_monitor.h.
#include "mem_monitor.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace mpx {
namespace {

constexpr size_t kRanges = 1024;
constexpr size_t kBatch = 16;
constexpr int kPatience = 50;  // looks at the kernel before settle() gives up; a registration costs no more than these
constexpr int kTries = 4;      // to arm a mapping that changes meanwhile

}  // namespace

std::shared_ptr<MemMonitor> MemMonitor::of_process(std::string *why_not) {
    static std::mutex mutex;
    static std::weak_ptr<MemMonitor> current;
    const std::lock_guard hold(mutex);
    std::shared_ptr<MemMonitor> monitor = current.lock();
    if (monitor) return monitor;
    try {
        monitor.reset(new MemMonitor);
        current = monitor;
    } catch (const std::runtime_error &error) {
        *why_not = error.what();
    }
    return monitor;
}

MemMonitor::MemMonitor() : ranges_(kRanges) {
    stop_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (stop_fd_ < 0) throw std::runtime_error(std::string("eventfd: ") + std::strerror(errno));
    const auto main = [](void *self) -> void * {
        static_cast<MemMonitor *>(self)->run();
        return nullptr;
    };
    if (start_thread(&thread_, main, this)) return;
    close(stop_fd_);
    throw std::runtime_error("no thread to watch memory with");
}

// While a child of this process still holds the descriptor, closing it here ends nothing: what is armed is disarmed first.
MemMonitor::~MemMonitor() {
    if (thread_) {
        for (;;) {
            uintptr_t from = 0, to = 0;
            {
                const std::lock_guard hold(lock_);
                ranges_.each([&](uintptr_t a, uintptr_t b, RangeSet::State) { from = a, to = b; });
                ranges_.erase(from, to);
            }
            if (from == to) break;
            kernel_.unwatch(from, to);
        }
        eventfd_write(stop_fd_, 1);
        pthread_join(thread_, nullptr);
    }
    if (stop_fd_ >= 0) close(stop_fd_);
}

void MemMonitor::forked() {
    kernel_.close();
    mappings_.close();
    close(std::exchange(stop_fd_, -1));
    thread_ = 0;
}

void MemMonitor::add(Listener *listener) {
    const std::lock_guard hold(lock_);
    listeners_.push_back(listener);
}

void MemMonitor::remove(Listener *listener) {
    const std::lock_guard hold(lock_);
    listeners_.remove(listener);
}

void MemMonitor::run() {
    pollfd fds[] = {{kernel_.fd(), POLLIN, 0}, {stop_fd_, POLLIN, 0}};
    while (!fds[1].revents) {
        if (poll(fds, 2, -1) > 0) drain();
    }
}

void MemMonitor::drain() {
    const std::lock_guard hold(lock_);
    Userfault::Change changes[kBatch];
    const size_t n = kernel_.read(changes, kBatch);
    for (size_t i = 0; i < n; i++) {
        const Userfault::Change &c = changes[i];
        if (c.kind == Userfault::Change::Kind::kEmptied) ranges_.taint(c.from, c.to);
        else ranges_.erase(c.from, c.to);
        tell(c.from, c.to);
        if (c.kind != Userfault::Change::Kind::kMoved) continue;
        // What was there before was told as unmapped, if it was armed; that need not be relied on.
        ranges_.erase(c.moved_to, c.moved_to + (c.to - c.from));
        tell(c.moved_to, c.moved_to + (c.to - c.from));
    }
}

void MemMonitor::tell(uintptr_t from, uintptr_t to) {
    for (Listener *l = listeners_.front(); l; l = decltype(listeners_)::next(l)) l->changed(from, to);
}

bool MemMonitor::settle() {
    for (int i = 0; i < kPatience; i++) {
        if (kernel_.quiet()) return true;
        drain();  // nobody need wait for the thread's turn
        sched_yield();
    }
    return false;
}

const char *MemMonitor::arm(uintptr_t from, uintptr_t to) {
    const std::lock_guard serial(arming_);
    for (uintptr_t at = from; at < to;) {
        {
            const std::lock_guard hold(lock_);
            const uintptr_t known = ranges_.known_until(at);
            if (known > at) {
                at = known;
                continue;
            }
        }
        if (const char *problem = arm_mapping(at, &at)) return problem;
    }
    return nullptr;
}

// Arms the mapping of `at`, and sets *end to its end. Other threads may change other parts of the mapping meanwhile: what changes once it
// is armed is heard of, and is known no more. What changed just before may now be anything, also unarmed; but of a mapping, as the kernel
// counts them, all is armed or nothing, and what was at `at` is. So what still is one mapping with `at` afterwards is armed.
const char *MemMonitor::arm_mapping(uintptr_t at, uintptr_t *end) {
    for (int tries = 0; tries < kTries; tries++) {
        Mapping before, after;
        if (!mappings_.at(at, &before)) return "nothing is mapped there";
        if (!before.ordinary) return "it is not private anonymous memory";
        {
            const std::lock_guard hold(lock_);
            if (!ranges_.begin_arming(before.start, before.end)) return "too many ranges have to be remembered";
        }
        const int error = kernel_.watch(before.start, before.end);
        const bool ordinary = mappings_.at(at, &after) && after.ordinary;
        const bool armed = !error && ordinary;
        {
            const std::lock_guard hold(lock_);
            if (armed) ranges_.end_arming(std::max(before.start, after.start), std::min(before.end, after.end));
            else ranges_.end_arming(at, at);
        }
        if (armed) {
            *end = std::min(before.end, after.end);
            return nullptr;
        }
        if (error == EBUSY) return "another userfaultfd watches it";
        if (ordinary && after.start == before.start && after.end == before.end) return "the kernel cannot watch it";
    }
    return "it changes all the time";
}

}  // namespace mpx
