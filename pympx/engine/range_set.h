// Disjoint ranges of addresses in ascending order, each in a state, in storage of a fixed size: nothing is allocated once it is made, so it
// may be changed under a leaf lock. Where the storage does not suffice, it errs to the safe side: what is armed is forgotten, what is
// tainted grows. Not thread-safe.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace mpx {

class RangeSet {
public:
    enum class State : uint8_t { kUnknown, kArming, kArmed, kTainted };

    explicit RangeSet(size_t capacity);

    // kArmed: all of it is. kTainted: some of it is. kUnknown: neither.
    State cover(uintptr_t from, uintptr_t to) const;
    // The end of the range that `at` lies in; `at` itself when nothing is known of it.
    uintptr_t known_until(uintptr_t at) const;
    // What is unknown in the range becomes kArming. False: no room, even with all that is armed forgotten.
    bool begin_arming(uintptr_t from, uintptr_t to);
    // What is kArming becomes kArmed inside the range, unknown outside.
    void end_arming(uintptr_t from, uintptr_t to);
    void taint(uintptr_t from, uintptr_t to);
    void erase(uintptr_t from, uintptr_t to);

    template <class Visit> void each(Visit visit) const {
        for (const Range &r : ranges_) visit(r.from, r.to, r.state);
    }

private:
    struct Range {
        uintptr_t from, to;
        State state;
    };
    template <class Change> bool rewrite(uintptr_t from, uintptr_t to, Change change);
    template <class Change> bool rewrite_or_forget(uintptr_t from, uintptr_t to, Change change);

    size_t capacity_;
    std::vector<Range> ranges_, spare_;
};

}  // namespace mpx
