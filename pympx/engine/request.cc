// See request.h.
#include "request.h"

namespace mpx {

void RequestPool::refill() {
    free_ = returned_.exchange(nullptr, std::memory_order_acquire);
    if (free_) return;
    chunks_.push_back(std::make_unique<Request[]>(kChunk));
    Request *chunk = chunks_.back().get();
    for (size_t i = kChunk; i-- > 0;) {
        chunk[i].index = static_cast<uint32_t>((chunks_.size() - 1) * kChunk + i);
        chunk[i].next_free = free_;
        free_ = &chunk[i];
    }
}

}  // namespace mpx
