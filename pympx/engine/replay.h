// What was sent and not yet acknowledged, in order, in one bounded ring of records. A record never wraps; what is left at the ring's end is
// skipped. The memory comes with the first record, and is reused from its start whenever nothing is left, so that it stays in the cache.
// Owned by a Session; engine lock held.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

namespace mpx {

struct Record {
    enum Form : uint8_t { kShort, kBcopy, kZcopy, kSkip };

    uint32_t size;  // of the whole record
    uint8_t id;
    Form form;
    uint16_t header_length;  // kZcopy: the header is what payload() holds
    uint64_t word;           // kShort: the header; kZcopy: the operation
    uint64_t length;         // of what payload() holds

    char *payload() { return reinterpret_cast<char *>(this + 1); }
};
static_assert(sizeof(Record) == 24);

class ReplayBuffer {
public:
    static constexpr uint64_t kCapacity = 1u << 20;

    // Room for a record with `length` bytes, nullptr when there is none. Nothing has changed until commit().
    Record *reserve(size_t length) {
        if (!memory_) memory_.reset(new char[kCapacity]);
        const uint64_t need = (sizeof(Record) + length + 7) & ~uint64_t{7}, to_end = kCapacity - (tail_ & kMask);
        skip_ = need > to_end ? to_end : 0;
        if (need > kCapacity || tail_ - head_ + skip_ + need > kCapacity) return nullptr;
        if (skip_) {
            Record *rest = at(tail_);  // at least 8 bytes: size, id and form fit
            rest->size = static_cast<uint32_t>(skip_);
            rest->form = Record::kSkip;
        }
        Record *r = at(tail_ + skip_);
        r->size = static_cast<uint32_t>(need);
        return r;
    }
    void commit() {
        tail_ += skip_;
        tail_ += at(tail_)->size;
    }
    bool empty() const { return head_ == tail_; }
    // The positions of records: of the oldest, of the one after `position`; end() when there is none.
    uint64_t begin() const { return past_skip(head_); }
    uint64_t end() const { return tail_; }
    uint64_t next(uint64_t position) const { return past_skip(position + at(position)->size); }
    Record *at(uint64_t position) const { return reinterpret_cast<Record *>(memory_.get() + (position & kMask)); }
    void pop() {
        head_ = next(begin());
        if (empty()) head_ = tail_ = 0;
    }
    void release() {
        memory_.reset();
        head_ = tail_ = 0;
    }

private:
    static constexpr uint64_t kMask = kCapacity - 1;
    uint64_t past_skip(uint64_t position) const {
        return position != tail_ && at(position)->form == Record::kSkip ? position + at(position)->size : position;
    }

    std::unique_ptr<char[]> memory_;
    uint64_t head_ = 0, tail_ = 0, skip_ = 0;
};

}  // namespace mpx
