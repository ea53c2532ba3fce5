// Which calls were begun here and which were withdrawn before: the native half of Call.cancel, which is answered whatever Python does.
//
// Threads: a mutex of its own, a leaf. on_withdraw runs inside progress, under the engine lock; begin() with Python's GIL held.
#pragma once
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "engine/engine.h"

namespace mpx::rpc {

constexpr uint32_t kActiveWithdraw = kActiveOwn;

class Book {
public:
    void open(Engine &engine, int32_t size) {
        outstanding_ = std::make_unique<Tally[]>(static_cast<size_t>(size));
        last_begun_.assign(static_cast<size_t>(size), UINT32_MAX);  // before the first id, 0
        engine.set_active_handler(kActiveWithdraw, on_withdraw, this);
    }
    // Calls of ours whose answer is to come, by rank.
    Tally *outstanding() { return outstanding_.get(); }
    // The call is about to be executed. False: it was withdrawn, and will never be.
    bool begin(int32_t source, uint32_t id) {
        const std::lock_guard lock(mutex_);
        uint32_t &last = last_begun_[static_cast<size_t>(source)];
        if (is_after(id, last)) last = id;  // never back: what was begun stays begun
        return withdrawn_.erase({source, id}) == 0;
    }

private:
    // Ids are 31 bits wide and come in order from each source (exchange.cc).
    static bool is_after(uint32_t id, uint32_t last) { return last == UINT32_MAX || ((id - last) & 0x7fffffff) - 1 < 0x3fffffff; }
    bool withdraw(int32_t source, uint32_t id) {
        const std::lock_guard lock(mutex_);
        if (!is_after(id, last_begun_[static_cast<size_t>(source)])) return false;
        withdrawn_.insert({source, id});
        return true;
    }
    static void on_withdraw(void *arg, Engine &engine, int32_t source, uint64_t answer, const void *payload, size_t length) {
        uint32_t id;
        if (length != sizeof id) return;
        std::memcpy(&id, payload, sizeof id);
        const char word = static_cast<Book *>(arg)->withdraw(source, id) ? 1 : 0;
        engine.answer(source, answer, &word, 1);
    }

    std::mutex mutex_;
    std::unique_ptr<Tally[]> outstanding_;
    std::vector<uint32_t> last_begun_;  // by rank
    std::set<std::pair<int32_t, uint32_t>> withdrawn_;
};

}  // namespace mpx::rpc
