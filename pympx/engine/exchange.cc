// A message and its answer as one operation, for calls: under one lock the message gets its number, the receive of its answer is posted,
// and the message leaves. So the numbers of messages to one rank rise in the order in which they arrive, whichever threads sent them.
#include <cstdlib>
#include <cstring>

#include "engine.h"

namespace mpx {

Exchange Engine::exchange_locked(int32_t rank, uint32_t context, uint32_t answers, void *message, uint64_t length, uint64_t number_at,
                                 Tally *tally) {
    Exchange x;
    x.number = numbers_++ & kMaxNumber;
    std::memcpy(static_cast<char *>(message) + number_at, &x.number, sizeof x.number);
    x.answer = irecv_locked(answers, rank, static_cast<int32_t>(x.number), nullptr, 0, true);
    if (x.answer->done.load(std::memory_order_relaxed)) return x;
    tally->fetch_add(1, std::memory_order_relaxed);
    x.answer->tally = tally;
    if (!send_now(peers_[rank], match_word(context, 0), message, length))
        x.message = isend_locked(context, rank, 0, message, length, SendMode::kStandard);
    return x;
}

Exchange Engine::try_exchange(int32_t rank, uint32_t context, uint32_t answers, void *message, uint64_t length, uint64_t number_at,
                              Tally *tally) {
    std::unique_lock lock(mutex_, std::try_to_lock);
    return lock ? exchange_locked(rank, context, answers, message, length, number_at, tally) : Exchange{};
}

Exchange Engine::exchange(int32_t rank, uint32_t context, uint32_t answers, void *message, uint64_t length, uint64_t number_at,
                          Tally *tally) {
    Locked locked(*this);
    return exchange_locked(rank, context, answers, message, length, number_at, tally);
}

// Nobody wants the answer: it is freed when it comes.
void Engine::abandon(Request *r) {
    Locked locked(*this);
    free_when_done(r);
}

void Engine::free_when_done(Request *r) {
    const auto free_it = [](Request *done) {
        std::free(done->buffer);
        done->engine->requests_.give_back(done);
    };
    if (r->done.load(std::memory_order_relaxed)) free_it(r);
    else r->on_done = free_it;
}

}  // namespace mpx
