// What happens to this process's memory, for caches of registrations: the kernel tells when memory that is armed here is unmapped, moved or
// emptied, and every listener hears of it. One monitor per process, since memory can be watched by one userfaultfd only; it lives as long
// as somebody holds it, and has one thread.
//
// The lock is a leaf: under it nothing is allocated, freed, registered or deregistered, because any of these may unmap armed memory, and
// then waits for the thread, which needs the lock. The thread does nothing else that could wait. What is looked up under the lock after
// settle() is as if every change that was complete, or whose memory could already be mapped anew, had been heard of:
//   - a change is read and told under one hold of the lock, and the call that made it returns later;
//   - another thread may map the same addresses before it has been read; then the kernel is not quiet, and settle() waits.
//
// Only private anonymous memory is armed: what lies behind a file, a memfd or a shared mapping others change without notice. Whole mappings
// are armed, so that none is split. A range that was emptied is tainted until it is unmapped, because the kernel tells of that *before* it
// happens, and what is registered in between would be stale.
//
// Threads: any, except forked(), the only call in a forked child.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "list.h"
#include "mappings.h"
#include "range_set.h"
#include "userfault.h"

namespace mpx {

class MemMonitor {
public:
    class Listener {
    public:
        // What lay in [from, to) may lie there no more. The lock is held.
        virtual void changed(uintptr_t from, uintptr_t to) noexcept = 0;

    protected:
        ~Listener() = default;

    private:
        friend class MemMonitor;
        ListLink<Listener> link_;
    };

    // The process's monitor, started if there is none. nullptr: there cannot be, and *why_not says why in one line.
    static std::shared_ptr<MemMonitor> of_process(std::string *why_not);
    ~MemMonitor();
    MemMonitor(const MemMonitor &) = delete;
    MemMonitor &operator=(const MemMonitor &) = delete;

    std::mutex &lock() { return lock_; }
    void add(Listener *);
    void remove(Listener *);
    // False: changes are still under way after a while. The lock is not held.
    bool settle();
    // The lock is held. kArmed: listeners will hear of each change.
    RangeSet::State cover(uintptr_t from, uintptr_t to) const { return ranges_.cover(from, to); }
    // Arms the mappings that [from, to) lies in, which must stay mapped meanwhile. nullptr, or why not. The lock is not held.
    const char *arm(uintptr_t from, uintptr_t to);
    void forked();

private:
    MemMonitor();
    const char *arm_mapping(uintptr_t at, uintptr_t *end);
    void drain();
    void tell(uintptr_t from, uintptr_t to);
    void run();

    Userfault kernel_;
    std::mutex arming_;  // taken before lock_
    Mappings mappings_;  // under arming_
    std::mutex lock_;
    RangeSet ranges_;  // under lock_, as are the listeners
    List<Listener, &Listener::link_> listeners_;
    int stop_fd_ = -1;
    unsigned long thread_ = 0;
};

}  // namespace mpx
