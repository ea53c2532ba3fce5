// The match queues of all contexts, by number. Two levels: a peer may name any of 2^24 contexts before it is known here, and what that
// costs must not depend on the number. Engine lock held.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "match.h"
#include "wire.h"

namespace mpx {

class Contexts {
public:
    // nullptr when the context is not known here.
    MatchQueue *find(uint32_t context) const {
        const size_t page = context / kPage;
        return page < pages_.size() && pages_[page] ? (*pages_[page])[context % kPage].get() : nullptr;
    }
    // Makes it known, if it is not.
    MatchQueue &at(uint32_t context, size_t world_size) {
        if (MatchQueue *known = find(context)) [[likely]]
            return *known;
        const size_t page = context / kPage;
        if (page >= pages_.size()) pages_.resize(page + 1);
        if (!pages_[page]) pages_[page] = std::make_unique<Page>();
        auto &queue = (*pages_[page])[context % kPage];
        queue = std::make_unique<MatchQueue>(world_size);
        return *queue;
    }
    void remove(uint32_t context) { (*pages_[context / kPage])[context % kPage].reset(); }
    void clear() { pages_.clear(); }
    // The first context from `from` on whose page is there; no known one lies between. kMaxContext + 1: there is none.
    uint32_t skip(uint32_t from) const {
        size_t page = from / kPage;
        if (page < pages_.size() && pages_[page]) return from;
        while (page < pages_.size() && !pages_[page]) page++;
        return page < pages_.size() ? static_cast<uint32_t>(page * kPage) : kMaxContext + 1;
    }

private:
    static constexpr uint32_t kPage = 128;
    using Page = std::array<std::unique_ptr<MatchQueue>, kPage>;
    std::vector<std::unique_ptr<Page>> pages_;
};

}  // namespace mpx
