// A userfaultfd that is used for its events alone: which parts of the memory it watches were unmapped, moved or emptied. Nothing is ever
// write-protected, so no fault is ever reported, and watching needs no privilege. The call that changes the memory (munmap, mremap,
// madvise ...) returns only when somebody has read its event: whoever watches must go on reading, and must not hold while it reads
// what a thread inside such a call may hold.
//
// Threads: all methods may be called at once, except close(). Ownership: the descriptor; a forked child closes its copy by close().
#pragma once
#include <cstddef>
#include <cstdint>

namespace mpx {

class Userfault {
public:
    struct Change {
        enum class Kind : uint8_t { kUnmapped, kMoved, kEmptied };
        Kind kind;
        uintptr_t from, to;  // what changed
        uintptr_t moved_to;  // kMoved
    };

    // Throws std::runtime_error with a reason when this kernel, or who confines us, lacks any part of what is needed.
    Userfault();
    ~Userfault() { close(); }
    Userfault(const Userfault &) = delete;
    Userfault &operator=(const Userfault &) = delete;

    int fd() const { return fd_; }  // poll it for reading; -1 once closed
    // Watches, or no longer, all that is mapped in the range now: 0 or an errno. EBUSY: another userfaultfd watches some of it.
    int watch(uintptr_t from, uintptr_t to) const;
    void unwatch(uintptr_t from, uintptr_t to) const;
    // True when every change that began before this call has been read, and its caller released.
    bool quiet() const;
    // Reads what is there, up to `max` changes, without blocking.
    size_t read(Change *changes, size_t max) const;
    // Ends all watching; callers that wait for a reader go on.
    void close();

private:
    const char *check() const;
    int fd_ = -1;
};

// Runs `function` on a thread that no signal is delivered to; false: there is none.
bool start_thread(unsigned long *thread, void *(*function)(void *), void *argument);

}  // namespace mpx
