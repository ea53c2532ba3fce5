// Two processes' sessions with each other over the scripted transport, without an engine above them: for what engines do not use yet.
#pragma once
#include <doctest/doctest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/session.h"
#include "scripted_transport.h"

namespace mpx::test {

constexpr uint8_t kWord = 20;  // the id of the messages that sides exchange

class SessionPair {
public:
    script::Fabric fabric;

    class Side {
    public:
        std::function<void(uint64_t)> on_word;
        int failures = 0;

        const mpx_iface_ops &ops() const { return *sessions_->ops; }
        mpx_ep *ep() const { return ep_; }
        unsigned progress() { return ops().progress(sessions_.get()); }
        const LinkCounters &counters() const { return sessions_->counters(ep_); }

    private:
        friend class SessionPair;
        mpx_iface *base_ = nullptr;
        mpx_ep *ep_ = nullptr;
        mpx_am_handler inner_[MPX_AM_ID_MAX]{}, outer_[MPX_AM_ID_MAX]{};
        std::unique_ptr<Sessions> sessions_;
    };

    SessionPair() {
        fabric.attr.caps |= MPX_CAP_PUT_ZCOPY | MPX_CAP_ATOMIC64 | MPX_CAP_LINK_MAY_BREAK;
        for (Side &side : sides_) open(side);
        for (Side &side : sides_) {
            uint64_t address;
            kTable.iface_address(sides_[&side == sides_].base_, &address);
            REQUIRE(side.sessions_->create(&address, sizeof address, false, &side.ep_) == MPX_OK);
            side.ep_->user = &side;
        }
    }
    ~SessionPair() {
        for (Side &side : sides_) side.sessions_->destroy(side.ep_);
        for (Side &side : sides_) kTable.iface_close(side.base_);
    }
    SessionPair(const SessionPair &) = delete;
    SessionPair &operator=(const SessionPair &) = delete;

    Side &operator[](int i) { return sides_[i]; }
    void pump(int rounds = 20) {
        while (rounds-- > 0)
            for (Side &side : sides_) side.progress();
    }
    // A key for memory of either side.
    mpx_rkey_h key_to(void *at, size_t length) {
        keys_.push_back({reinterpret_cast<uint64_t>(at), length});
        return reinterpret_cast<mpx_rkey_h>(&keys_.back());
    }

private:
    static constexpr const mpx_transport &kTable = script::detail::kTable;

    void open(Side &side) {
        const mpx_domain_params domain{sizeof domain, "", "{}", "", 0};
        mpx_domain *opened = nullptr;
        REQUIRE(kTable.domain_open(&domain, &opened) == MPX_OK);
        const auto on_incoming = [](void *arg, const void *, size_t) {
            auto *s = static_cast<Side *>(arg);
            return s->sessions_->incoming(s->ep_);
        };
        const auto on_error = [](void *arg, mpx_ep *ep, mpx_status st) { static_cast<Side *>(arg)->sessions_->link_error(ep, st); };
        const mpx_iface_params params{sizeof params, side.outer_, on_incoming, on_error, &side, 0, nullptr};
        REQUIRE(kTable.iface_open(opened, &params, &side.base_) == MPX_OK);
        side.inner_[kWord].arg = &side;
        side.inner_[kWord].fn = [](void *arg, void *, const void *header, size_t length, void *, size_t, unsigned) -> mpx_status {
            uint64_t word;
            REQUIRE(length == sizeof word);
            std::memcpy(&word, header, sizeof word);
            static_cast<Side *>(arg)->on_word(word);
            return MPX_OK;
        };
        const auto failed = [](void *arg, mpx_ep *, mpx_status) { ++static_cast<Side *>(arg)->failures; };
        side.sessions_ = std::make_unique<Sessions>(&kTable, side.base_, side.inner_, failed, &side, 10.0);
        std::copy(side.sessions_->handlers(), side.sessions_->handlers() + MPX_AM_ID_MAX, side.outer_);
    }

    Side sides_[2];
    std::deque<script::detail::Region> keys_;
};

// A completion that counts how often it was called.
struct Counted : mpx_completion {
    int times = 0;
    mpx_status status = MPX_INPROGRESS;
    Counted() {
        done = [](mpx_completion *self, mpx_status st) {
            auto *c = static_cast<Counted *>(self);
            c->times++;
            c->status = st;
        };
    }
};

}  // namespace mpx::test
