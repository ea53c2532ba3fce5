// See range_set.h.
#include "range_set.h"

#include <algorithm>

namespace mpx {

RangeSet::RangeSet(size_t capacity) : capacity_(capacity) {
    ranges_.reserve(capacity);
    spare_.reserve(capacity);
}

RangeSet::State RangeSet::cover(uintptr_t from, uintptr_t to) const {
    auto it = std::upper_bound(ranges_.begin(), ranges_.end(), from, [](uintptr_t at, const Range &r) { return at < r.to; });
    bool whole = true;
    uintptr_t at = from;
    for (; it != ranges_.end() && it->from < to; ++it) {
        if (it->state == State::kTainted) return State::kTainted;
        whole &= it->state == State::kArmed && it->from <= at;
        at = it->to;
    }
    return whole && at >= to ? State::kArmed : State::kUnknown;
}

uintptr_t RangeSet::known_until(uintptr_t at) const {
    const auto it = std::upper_bound(ranges_.begin(), ranges_.end(), at, [](uintptr_t a, const Range &r) { return a < r.to; });
    return it != ranges_.end() && it->from <= at ? it->to : at;
}

// Gives every part of [from, to), gaps included, the state that `change` makes of its state. False: no room, nothing has changed.
template <class Change> bool RangeSet::rewrite(uintptr_t from, uintptr_t to, Change change) {
    spare_.clear();
    bool fits = true;
    const auto add = [&](uintptr_t a, uintptr_t b, State state) {
        if (a >= b || state == State::kUnknown) return;
        if (!spare_.empty() && spare_.back().to == a && spare_.back().state == state) spare_.back().to = b;
        else if (spare_.size() < capacity_) spare_.push_back({a, b, state});
        else fits = false;
    };
    uintptr_t at = from;  // how far [from, to) has been rewritten
    for (const Range &r : ranges_) {
        if (r.to > from && at < to) {
            const uintptr_t overlap = std::clamp(r.from, at, to), end = std::min(r.to, to);
            add(r.from, std::min(r.to, from), r.state);
            add(at, overlap, change(State::kUnknown));
            add(overlap, end, change(r.state));
            at = std::max(overlap, end);
            add(std::max(r.from, to), r.to, r.state);
        } else {
            add(r.from, r.to, r.state);
        }
    }
    add(at, to, change(State::kUnknown));
    if (fits) ranges_.swap(spare_);
    return fits;
}

template <class Change> bool RangeSet::rewrite_or_forget(uintptr_t from, uintptr_t to, Change change) {
    if (rewrite(from, to, change)) return true;
    std::erase_if(ranges_, [](const Range &r) { return r.state == State::kArmed; });
    return rewrite(from, to, change);
}

bool RangeSet::begin_arming(uintptr_t from, uintptr_t to) {
    return rewrite_or_forget(from, to, [](State s) { return s == State::kUnknown ? State::kArming : s; });
}

void RangeSet::end_arming(uintptr_t from, uintptr_t to) {
    // None of this splits a range, so there is room.
    const auto undo = [](State s) { return s == State::kArming ? State::kUnknown : s; };
    rewrite(0, from, undo);
    rewrite(to, UINTPTR_MAX, undo);
    rewrite(from, to, [](State s) { return s == State::kArming ? State::kArmed : s; });
}

void RangeSet::taint(uintptr_t from, uintptr_t to) {
    if (rewrite_or_forget(from, to, [](State) { return State::kTainted; })) return;
    // The storage is full of tainted ranges, far apart: one of them grows.
    auto it = std::upper_bound(ranges_.begin(), ranges_.end(), from, [](uintptr_t at, const Range &r) { return at < r.from; });
    if (it != ranges_.begin()) --it;
    it->from = std::min(it->from, from);
    it->to = std::max(it->to, to);
    it->state = State::kTainted;
    auto next = it + 1;
    while (next != ranges_.end() && next->from <= it->to) it->to = std::max(it->to, (next++)->to);
    ranges_.erase(it + 1, next);
}

void RangeSet::erase(uintptr_t from, uintptr_t to) {
    if (rewrite_or_forget(from, to, [](State) { return State::kUnknown; })) return;
    // Only the middle of a range needs room: a tainted one, or one that is being armed. It stays whole, and what is there now uncached.
    taint(from, to);
}

}  // namespace mpx
