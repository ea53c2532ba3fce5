// A message and its answer as one operation, for calls: the receive of the answer is posted before the message leaves, under one lock.
#include <cstdlib>

#include "engine.h"

namespace mpx {

Exchange Engine::exchange_locked(int32_t rank, uint32_t context, uint32_t answers, int32_t tag, const void *message, uint64_t length,
                                 Tally *tally) {
    Exchange x;
    x.answer = irecv_locked(answers, rank, tag, nullptr, 0, true);
    if (x.answer->done.load(std::memory_order_relaxed)) return x;
    tally->fetch_add(1, std::memory_order_relaxed);
    x.answer->tally = tally;
    if (!send_now(peers_[rank], match_word(context, 0), message, length))
        x.message = isend_locked(context, rank, 0, message, length, SendMode::kStandard);
    return x;
}

Exchange Engine::try_exchange(int32_t rank, uint32_t context, uint32_t answers, int32_t tag, const void *message, uint64_t length,
                              Tally *tally) {
    std::unique_lock lock(mutex_, std::try_to_lock);
    return lock ? exchange_locked(rank, context, answers, tag, message, length, tally) : Exchange{};
}

Exchange Engine::exchange(int32_t rank, uint32_t context, uint32_t answers, int32_t tag, const void *message, uint64_t length,
                          Tally *tally) {
    Locked locked(*this);
    return exchange_locked(rank, context, answers, tag, message, length, tally);
}

// Nobody wants the answer: it is freed when it comes.
void Engine::abandon(Request *r) {
    Locked locked(*this);
    const auto free_answer = [](Request *done) {
        std::free(done->buffer);
        done->engine->requests_.give_back(done);
    };
    if (r->done.load(std::memory_order_relaxed)) free_answer(r);
    else r->on_done = free_answer;
}

}  // namespace mpx
