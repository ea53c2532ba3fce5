// Intrusive doubly linked list: no allocation, O(1) removal. The list never owns its members. Not thread-safe.
#pragma once
#include <cstddef>

namespace mpx {

template <class T> struct ListLink {
    T *prev = nullptr;
    T *next = nullptr;
};

template <class T, ListLink<T> T::*Link = &T::link> class List {
public:
    bool empty() const { return head_ == nullptr; }
    T *front() const { return head_; }
    static T *next(const T *node) { return (node->*Link).next; }

    void push_back(T *node) {
        (node->*Link) = {tail_, nullptr};
        (tail_ ? (tail_->*Link).next : head_) = node;
        tail_ = node;
    }
    void push_front(T *node) {
        (node->*Link) = {nullptr, head_};
        (head_ ? (head_->*Link).prev : tail_) = node;
        head_ = node;
    }
    void remove(T *node) {
        auto &link = node->*Link;
        (link.prev ? (link.prev->*Link).next : head_) = link.next;
        (link.next ? (link.next->*Link).prev : tail_) = link.prev;
        link = {};
    }
    T *pop_front() {
        T *node = head_;
        if (node) remove(node);
        return node;
    }

private:
    T *head_ = nullptr;
    T *tail_ = nullptr;
};

}  // namespace mpx
