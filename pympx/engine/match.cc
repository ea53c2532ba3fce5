// See match.h.
#include "match.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace mpx {

Message *Message::create(size_t payload) {
    void *memory = std::malloc(sizeof(Message) + payload);
    if (!memory) throw std::bad_alloc();
    return new (memory) Message{};
}

void Message::destroy(Message *m) { std::free(m); }

MatchQueue::~MatchQueue() {
    for (auto &list : unexpected_)
        while (Message *m = list.pop_front()) Message::destroy(m);
}

bool MatchQueue::idle() const {
    return posted_any_.empty() && std::all_of(posted_.begin(), posted_.end(), [](const auto &list) { return list.empty(); }) &&
           std::all_of(unexpected_.begin(), unexpected_.end(), [](const auto &list) { return list.empty(); });
}

Request *MatchQueue::take_posted(int32_t source, int32_t tag) {
    PostedList &exact = posted_[source];
    Request *first = exact.front();
    while (first && !fits(first->tag, tag)) first = PostedList::next(first);
    PostedList *from = &exact;
    if (!posted_any_.empty()) {
        Request *wild = posted_any_.front();
        while (wild && !fits(wild->tag, tag)) wild = PostedList::next(wild);
        if (wild && (!first || wild->order < first->order)) first = wild, from = &posted_any_;
    }
    if (first) from->remove(first);
    return first;
}

void MatchQueue::post(Request *r) {
    r->order = post_order_++;
    (r->source == kAnySource ? posted_any_ : posted_[r->source]).push_back(r);
}

void MatchQueue::withdraw(Request *r) { (r->source == kAnySource ? posted_any_ : posted_[r->source]).remove(r); }

Message *MatchQueue::find_unexpected(int32_t source, int32_t tag) const {
    const auto first_fitting = [tag](const List<Message> &list) {
        Message *m = list.front();
        while (m && !fits(tag, m->tag)) m = List<Message>::next(m);
        return m;
    };
    if (source != kAnySource) return first_fitting(unexpected_[source]);
    Message *first = nullptr;
    for (const auto &list : unexpected_)
        if (Message *m = first_fitting(list); m && (!first || m->order < first->order)) first = m;
    return first;
}

void MatchQueue::add_unexpected(Message *m) {
    m->order = arrival_order_++;
    unexpected_[m->source].push_back(m);
}

void MatchQueue::remove_unexpected(Message *m) { unexpected_[m->source].remove(m); }

}  // namespace mpx
