// Which registrations cover a range of addresses: an array in order of their starts, each slot with the farthest end so far, so that a
// search knows when to stop. Ranges may overlap. Of a fixed size, so that it may be changed under a leaf lock. Not thread-safe, owns
// nothing.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace mpx {

struct Pages {
    uintptr_t from, to;

    uint64_t bytes() const { return to - from; }
    bool covers(const Pages &other) const { return from <= other.from && other.to <= to; }
};

// Entry has a member `pages`.
template <class Entry> class MrIndex {
public:
    void reserve(size_t capacity) { slots_.reserve(capacity); }

    // Some entry that covers `pages` and is `good`.
    template <class Good> Entry *find(const Pages &pages, Good good) const {
        for (size_t i = first_from(pages.from + 1); i-- > 0 && slots_[i].reach >= pages.to;)
            if (slots_[i].pages.covers(pages) && good(*slots_[i].entry)) return slots_[i].entry;
        return nullptr;
    }
    // There is room.
    void insert(Entry *entry) {
        const size_t i = first_from(entry->pages.from);
        slots_.insert(slots_.begin() + static_cast<ptrdiff_t>(i), {entry->pages, 0, entry});
        measure(i);
    }
    // Takes out those that overlap `pages` and are to `leave`.
    template <class Leave> void remove(const Pages &pages, Leave leave) {
        const size_t end = first_from(pages.to);
        size_t begin = end;
        while (begin > 0 && slots_[begin - 1].reach > pages.from) begin--;
        size_t kept = begin;
        for (size_t i = begin; i < end; i++)
            if (slots_[i].pages.to <= pages.from || !leave(*slots_[i].entry)) slots_[kept++] = slots_[i];
        if (kept == end) return;
        slots_.erase(slots_.begin() + static_cast<ptrdiff_t>(kept), slots_.begin() + static_cast<ptrdiff_t>(end));
        measure(begin);
    }

private:
    struct Slot {
        Pages pages;
        uintptr_t reach;  // the farthest end of this slot and all before it
        Entry *entry;
    };
    size_t first_from(uintptr_t from) const {  // the first slot that starts at `from` or later
        const auto it = std::lower_bound(slots_.begin(), slots_.end(), from, [](const Slot &s, uintptr_t at) { return s.pages.from < at; });
        return static_cast<size_t>(it - slots_.begin());
    }
    void measure(size_t i) {
        for (; i < slots_.size(); i++) slots_[i].reach = std::max(slots_[i].pages.to, i ? slots_[i - 1].reach : 0);
    }

    std::vector<Slot> slots_;
};

}  // namespace mpx
