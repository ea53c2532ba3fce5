// See player.h.
#include "player.h"

#include <fcntl.h>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace {

const size_t kPage = static_cast<size_t>(sysconf(_SC_PAGESIZE));
constexpr size_t kPages = 24;         // of a mapping, at most
constexpr size_t kBytes = 384 << 10;  // of a block from malloc; most are mappings of their own
constexpr int kPrivate = MAP_PRIVATE | MAP_ANONYMOUS;

char *map(void *where, size_t length, int flags, int fd = -1, off_t offset = 0) {
    void *at = mmap(where, length, PROT_READ | PROT_WRITE, flags, fd, offset);
    return at == MAP_FAILED ? nullptr : static_cast<char *>(at);
}

}  // namespace

Undertaker::Undertaker() : thread_([this] { run(); }) {}

Undertaker::~Undertaker() {
    {
        const std::lock_guard hold(mutex_);
        over_ = true;
    }
    changed_.notify_all();
    thread_.join();
}

void Undertaker::unmap(char *at, size_t length) {
    {
        const std::lock_guard hold(mutex_);
        at_ = at;
        length_ = length;
    }
    changed_.notify_all();
}

bool Undertaker::idle() {
    const std::lock_guard hold(mutex_);
    return !at_;
}

void Undertaker::wait() {
    std::unique_lock hold(mutex_);
    changed_.wait(hold, [this] { return !at_; });
}

void Undertaker::run() {
    std::unique_lock hold(mutex_);
    for (;;) {
        changed_.wait(hold, [this] { return over_ || at_; });
        if (over_) return;
        hold.unlock();
        munmap(at_, length_);
        hold.lock();
        at_ = nullptr;
        changed_.notify_all();
    }
}

Player::Player(Board &board, int seat, uint64_t seed) : board_(board), seat_(seat), random_(seed) {
    file_ = memfd_create("player", MFD_CLOEXEC);
    if (file_ < 0 || ftruncate(file_, static_cast<off_t>(kPages * kPage))) throw std::runtime_error("memfd");
    for (int i = 0; i < 5; i++) buffers_.push_back(make(Kind::kMapped));
    buffers_.push_back(make(Kind::kAllocated));
    buffers_.push_back(make(Kind::kAllocated));
    buffers_.push_back(make(draw(2) ? Kind::kShared : Kind::kFile));
}

Player::~Player() {
    for (const Buffer &b : buffers_) drop(b);
    close(file_);
}

void Player::play(uint64_t rounds) {
    for (uint64_t i = 0; i < rounds; i++) {
        const uint64_t which = draw(40);  // mappings of others are rare, since they never hit
        Buffer &b = which == 0 ? buffers_.back() : buffers_[which % (buffers_.size() - 1)];
        if (draw(100) < 20) change(b);
        if (draw(2000) == 0) malloc_trim(0);
        transfer(b);
    }
}

void Player::transfer(const Buffer &b) {
    const bool whole = draw(4) != 0;
    const size_t from = whole ? 0 : draw(b.length), length = whole ? b.length : 1 + draw(b.length - from);
    const uint64_t seed = random_() | 1;
    if (draw(4)) board_.send(seat_, b.at + from, length, seed);
    else board_.receive(seat_, b.at + from, length, seed);
}

Player::Buffer Player::make(Kind kind) {
    const size_t length = (1 + draw(kPages)) * kPage;
    char *at = nullptr;
    switch (kind) {
        case Kind::kMapped: at = map(nullptr, length, kPrivate); break;
        case Kind::kShared: at = map(nullptr, length, MAP_SHARED | MAP_ANONYMOUS); break;
        case Kind::kFile: at = map(nullptr, length, MAP_SHARED, file_); break;
        case Kind::kAllocated: {
            const size_t wanted = 1 + draw(kBytes);
            at = static_cast<char *>(std::malloc(wanted));
            if (at) return {kind, at, wanted};
        }
    }
    if (!at) throw std::runtime_error("no memory");
    return {kind, at, length};
}

void Player::drop(const Buffer &b) {
    // malloc gives a large block a mapping of its own, and its header says so.
    const bool unmapped = b.kind != Kind::kAllocated || reinterpret_cast<const size_t *>(b.at)[-1] & 2;
    if (unmapped) board_.changing(b.at, b.length);
    if (b.kind == Kind::kAllocated) std::free(b.at);
    else munmap(b.at, b.length);
}

void Player::renew(Buffer &b) {
    drop(b);
    b = make(b.kind);
}

void Player::change(Buffer &b) {
    const size_t pages = b.length / kPage;
    if (b.kind == Kind::kAllocated) {
        if (draw(2)) return renew(b);
        const size_t wanted = 1 + draw(kBytes);
        char *at = static_cast<char *>(std::realloc(b.at, wanted));
        if (!at) throw std::runtime_error("no memory");
        b = {b.kind, at, wanted};
    } else if (b.kind == Kind::kMapped) {
        change_mapping(b);
    } else {  // holes that nobody is told of
        const size_t first = draw(pages), n = 1 + draw(pages - first);
        board_.changing(b.at + first * kPage, n * kPage);
        if (b.kind == Kind::kShared) madvise(b.at + first * kPage, n * kPage, MADV_REMOVE);
        else if (draw(2))
            fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(first * kPage), static_cast<off_t>(n * kPage));
        else if (ftruncate(file_, static_cast<off_t>(first * kPage)) || ftruncate(file_, static_cast<off_t>(kPages * kPage)))
            throw std::runtime_error("ftruncate");
    }
}

void Player::change_mapping(Buffer &b) {
    const size_t pages = b.length / kPage, first = draw(pages), n = 1 + draw(pages - first);
    char *const part = b.at + first * kPage;
    const auto changing = [&](size_t from, size_t length) { board_.changing(b.at + from, length); };
    switch (draw(15)) {
        case 0:
        case 1:  // somewhere
            return renew(b);
        case 2:
        case 3:  // at the same place, unless somebody else takes it
            changing(0, b.length);
            munmap(b.at, b.length);
            if (!map(b.at, b.length, kPrivate | MAP_FIXED_NOREPLACE)) b = make(b.kind);
            return;
        case 4:
        case 5:
            changing(first * kPage, n * kPage);
            map(part, n * kPage, kPrivate | MAP_FIXED);
            return;
        case 6: {  // moves away, and goes on there, or at the old place with new memory
            char *const elsewhere = map(nullptr, b.length, kPrivate);
            changing(0, b.length);
            if (!elsewhere) throw std::runtime_error("no memory");
            // Refused where there are several mappings by now; what was elsewhere may be gone all the same, so it is left alone.
            if (mremap(b.at, b.length, b.length, MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere) != elsewhere) return renew(b);
            char *const back = map(b.at, b.length, kPrivate | MAP_FIXED_NOREPLACE);
            if (back && draw(2)) {
                munmap(elsewhere, b.length);
            } else {
                if (back) munmap(back, b.length);
                b.at = elsewhere;
            }
            return;
        }
        case 7: {  // gives its end away, and grows again if there still is room
            const size_t less = (pages + 1) / 2 * kPage;
            changing(less, b.length - less);
            mremap(b.at, b.length, less, 0);
            void *const at = mremap(b.at, less, b.length, MREMAP_MAYMOVE);
            if (at == MAP_FAILED) {  // what remains is several mappings
                b.length = less;
                return renew(b);
            }
            b.at = static_cast<char *>(at);
            return;
        }
        case 8:
            changing(first * kPage, n * kPage);
            madvise(part, n * kPage, draw(2) ? MADV_DONTNEED : MADV_FREE);
            return;
        default: return hand_over(b);
    }
}

// Takes the place of what another thread is just unmapping, before that thread has come back from the kernel.
void Player::hand_over(Buffer &b) {
    const size_t length = std::min<size_t>(b.length, 2 * kPage);  // soon filled
    board_.changing(b.at, b.length);
    if (length < b.length) munmap(b.at + length, b.length - length);
    b.length = length;
    board_.send(seat_, b.at, length, random_() | 1);
    board_.changing(b.at, length);
    const bool first = board_.send_at_once(seat_, b.at, length, random_() | 1, [&] {
        undertaker_.unmap(b.at, length);
        for (int tries = 1; !map(b.at, length, kPrivate | MAP_FIXED_NOREPLACE); tries++) {
            if (undertaker_.idle()) return map(b.at, length, kPrivate | MAP_FIXED_NOREPLACE) != nullptr;
            if (tries % 1000 == 0) std::this_thread::yield();  // a turn given away might be the monitor's
        }
        return true;
    });
    undertaker_.wait();
    if (!first) b = make(b.kind);  // somebody else was
}
