// One ring: single producer, single consumer, in memory that two processes map; and the bell by which a sender wakes a receiver.
//
// The data are 64-byte cells, mapped twice back to back by both sides, so every message is contiguous. A message takes whole
// cells; the first 8 bytes are its state word: kEmpty, kParked (empty, and the receiver has stopped polling), or length and tag.
// Before it publishes, the sender empties the state word of the position that follows (a little ahead, while there is space); so
// the receiver polls one word, which lies in the line that brings a small payload.
//
// Every sleeping decision is made by an RMW on the very word whose change would end the sleep, so coherence alone excludes a
// lost wake-up and no fence is needed: the receiver parks by CAS on the state word that it polls (publishing is an exchange, it
// returns kParked), a sender without space marks by CAS the head that it found too low (the receiver publishes its head by
// exchange), and a receiver falls asleep by CAS on its bell (ringing is an exchange).
//
// Each class belongs to one thread of one side. A supplies the atomics, so that a model can stand in for memory; O names the
// memory orders: all others are relaxed, and tests/engine/ring_explore.cc shows that each named one is needed.
#ifndef PYMPX_TRANSPORTS_SHM_RING_H
#define PYMPX_TRANSPORTS_SHM_RING_H
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace mpx::shm {

inline constexpr size_t kCell = 64, kWord = sizeof(uint64_t);

struct NativeAtomics {
    using Word = std::atomic_ref<uint64_t>;
    static uint64_t load(uint64_t *p, std::memory_order o) { return Word(*p).load(o); }
    static void store(uint64_t *p, uint64_t v, std::memory_order o) { Word(*p).store(v, o); }
    static uint64_t exchange(uint64_t *p, uint64_t v, std::memory_order o) { return Word(*p).exchange(v, o); }
    static uint64_t fetch_or(uint64_t *p, uint64_t v, std::memory_order o) { return Word(*p).fetch_or(v, o); }
    static bool cas(uint64_t *p, uint64_t expected, uint64_t desired, std::memory_order o) {
        return Word(*p).compare_exchange_strong(expected, desired, o, std::memory_order_relaxed);
    }
};

struct RingOrders {
    static constexpr auto kPublish = std::memory_order_release;  // payload and the next empty word come before the state word
    static constexpr auto kPoll = std::memory_order_acquire;     // ... and are seen after it
    static constexpr auto kFree = std::memory_order_release;     // the receiver's reads come before the head that frees the cells
    static constexpr auto kSpace = std::memory_order_acquire;    // ... and the sender's writes after it
    static constexpr auto kMark = std::memory_order_release;     // the message comes before its pending bit
    static constexpr auto kCollect = std::memory_order_acquire;  // ... and is seen after it
    static constexpr auto kRing = std::memory_order_release;     // the pending bit comes before the bell
    static constexpr auto kAnswer = std::memory_order_acquire;   // ... and is seen after it
    static constexpr auto kLeave = std::memory_order_release;    // all messages come before the slot word that closes a ring
    static constexpr auto kLook = std::memory_order_acquire;     // ... and are seen after it
};

// Head of the receiver, in cells, shifted left by one; bit 0: the sender waits for space.
struct alignas(kCell) RingControl {
    uint64_t head;
};

struct Message {  // the state word: length << 32 | tag << 8 | kFull
    static constexpr uint64_t kEmpty = 0, kParked = 1, kFull = 2;
    static uint64_t pack(size_t len, uint16_t tag) { return uint64_t{len} << 32 | uint64_t{tag} << 8 | kFull; }
    static size_t length(uint64_t word) { return word >> 32; }
    static uint16_t tag(uint64_t word) { return static_cast<uint16_t>(word >> 8); }
    static uint64_t cells(size_t len) { return (kWord + len + kCell - 1) / kCell; }
};

// What both sides know. The receiver tells its head a quarter of the ring late, so a message must fit into three quarters.
template <class A> class RingSide {
public:
    size_t max_length() const { return (size_ / 4 * 3 - 1) * kCell - kWord; }

protected:
    RingSide(RingControl *control, std::byte *data, uint64_t cells) : control_(control), data_(data), size_(cells) {}
    uint64_t *state(uint64_t position) const { return reinterpret_cast<uint64_t *>(data_ + (position & (size_ - 1)) * kCell); }
    std::byte *payload(uint64_t position) const { return data_ + (position & (size_ - 1)) * kCell + kWord; }

    RingControl *control_;
    std::byte *data_;
    uint64_t size_;  // in cells, a power of two
};

template <class A = NativeAtomics, class O = RingOrders> class RingSender : public RingSide<A> {
public:
    RingSender(RingControl *control, std::byte *data, uint64_t cells) : RingSide<A>(control, data, cells) {}

    // Before the receiver knows of the ring: empty and parked, so that the first message rings its bell.
    void init() {
        A::store(&this->control_->head, 0, std::memory_order_relaxed);
        A::store(this->state(0), Message::kParked, std::memory_order_relaxed);
    }

    // Where to write a message of at most `len` bytes; nullptr: no space now.
    std::byte *reserve(size_t len) {
        const uint64_t end = tail_ + Message::cells(len) + 1;
        if (end - (head_ >> 1) > this->size_) {
            head_ = A::load(&this->control_->head, O::kSpace);
            if (end - (head_ >> 1) > this->size_) return nullptr;
        }
        return this->payload(tail_);
    }

    // Sends the `len` bytes written; `len` may be less than reserved. True: the receiver is parked, ring its bell.
    bool publish(size_t len, uint16_t tag) {
        const uint64_t next = tail_ + Message::cells(len);
        if (emptied_ <= next) {
            emptied_ = next;
            empty_one();
        }
        const uint64_t old = A::exchange(this->state(tail_), Message::pack(len, tag), O::kPublish);
        tail_ = next;
        while (emptied_ <= next + kAhead && emptied_ - (head_ >> 1) < this->size_) empty_one();
        return old == Message::kParked;
    }

    // False: there is space for `len` bytes now. True: the receiver will tell when it has freed more.
    bool want_space(size_t len) { return !reserve(len) && A::cas(&this->control_->head, head_, head_ | 1, std::memory_order_relaxed); }

private:
    static constexpr uint64_t kAhead = 2;
    void empty_one() { A::store(this->state(emptied_++), Message::kEmpty, std::memory_order_relaxed); }

    uint64_t tail_ = 0;
    uint64_t emptied_ = 1;  // state words of [tail_ + 1, emptied_) are empty already: taking a line from the receiver costs
                            // a transfer, which is better spent after a message than before the next
    uint64_t head_ = 0;     // the control's word as last read
};

template <class A = NativeAtomics, class O = RingOrders> class RingReceiver : public RingSide<A> {
public:
    RingReceiver(RingControl *control, std::byte *data, uint64_t cells) : RingSide<A>(control, data, cells) {}

    // The next message's state word, or 0. It is the sender's word: check kFull, and its length against max_length().
    uint64_t poll() const {
        const uint64_t word = A::load(this->state(head_), O::kPoll);
        return word > Message::kParked ? word : 0;
    }
    std::byte *front() const { return this->payload(head_); }

    // Done with the message `word`. True: the sender sleeps for want of space, wake it.
    bool consume(uint64_t word) {
        head_ += Message::cells(Message::length(word));
        if (head_ - published_ < this->size_ / 4) return false;
        published_ = head_;
        return A::exchange(&this->control_->head, head_ << 1, O::kFree) & 1;
    }

    // Stop polling: the next message will ring the bell. False: it is already there.
    bool park() { return A::cas(this->state(head_), Message::kEmpty, Message::kParked, std::memory_order_relaxed); }

private:
    uint64_t head_ = 0;
    uint64_t published_ = 0;
};

// A receiver's bell and the bitmap of the rings that were parked when a message came. `ring` is the senders' side.
template <class A = NativeAtomics, class O = RingOrders> struct Bell {
    static constexpr uint64_t kQuiet = 0, kRung = 1, kAsleep = 2;

    // After publish() said so. True: the receiver sleeps, wake it.
    static bool ring(uint64_t *bell, uint64_t *pending, uint64_t bit) {
        A::fetch_or(pending, bit, O::kMark);
        return A::exchange(bell, kRung, O::kRing) == kAsleep;
    }
    // Before a sleep, with all rings parked. False: somebody rang, answer first. Asleep already: only an exchange knows that nobody rang.
    static bool arm(uint64_t *bell) {
        return A::cas(bell, kQuiet, kAsleep, std::memory_order_relaxed) || A::cas(bell, kAsleep, kAsleep, std::memory_order_relaxed);
    }
    // True: somebody rang since the last answer, collect the bits. Leaves a receiver asleep that is: another of its threads may.
    static bool answer(uint64_t *bell) {
        return A::load(bell, std::memory_order_relaxed) == kRung && A::exchange(bell, kQuiet, O::kAnswer) == kRung;
    }
    static uint64_t collect(uint64_t *pending) {
        return A::load(pending, std::memory_order_relaxed) ? A::exchange(pending, 0, O::kCollect) : 0;
    }
};

}  // namespace mpx::shm
#endif
