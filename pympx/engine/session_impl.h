// One session: what session.cc and wireup.cc share. See session.h for what it is, who owns it and the thread rules.
#pragma once
#include <pympx/transport.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "list.h"
#include "replay.h"
#include "session.h"
#include "wireup.h"

namespace mpx {

constexpr size_t kMaxIov = 16;

double monotonic_s();

// An operation whose completion the session passes on: zcopy when acknowledged, the others when a link carried them out.
struct Op {
    enum Kind : uint8_t { kAm, kGet, kPut, kAtomic };
    struct Inner : mpx_completion {
        Op *op;
    } inner;
    ListLink<Op> link;
    Session *session;
    mpx_completion *user;
    uint64_t number;
    Kind kind;
    bool held;          // a link has it: its completion is to come
    bool acknowledged;  // kAm
    size_t iovcnt;
    mpx_iov iov[kMaxIov];
    uint64_t remote;
    mpx_rkey_h rkey;
};

struct Session : mpx_ep {
    enum State : uint8_t {
        kIdle,         // nobody needs a link yet; the transport's ep is there, if it connects by itself
        kConnecting,   // our RESUME waits for the link
        kAwaitResume,  // and the peer's
        kReplaying,    // both have come
        kUp,
        kBroken,   // the link's end was reported; maintain() clears away
        kDown,     // no ep; the next attempt comes at retry_at
        kResting,  // as kFailed, but the peer may come back to hear that we have its BYE
        kFailed,
    };

    State state = kIdle;
    bool cared_for = false;
    bool peer_resumed = false;  // on this link
    bool fence_due = false;     // puts were posted again, messages not yet
    bool ack_due = false, ask_due = false;
    bool was_up = false, peer_left = false, closing = false;
    unsigned attempts = 0;
    mpx_ep *ep = nullptr;  // the transport's
    Sessions *owner;
    std::string address;

    ReplayBuffer replay;
    uint64_t cursor = 0;                                 // of the replay: position of the next record
    uint64_t sent = 0, link_sent = 0, acknowledged = 0;  // messages: accepted, by this link, the peer has
    uint64_t bye = 0;                                    // number of our BYE
    uint64_t received = 0, unacknowledged_bytes = 0;
    uint64_t epoch = 0, peer_epoch = 0;  // links that we tried, that the peer tried

    List<Op> ops;  // in the order of their numbers
    Op *free_ops = nullptr;
    std::vector<std::unique_ptr<Op>> all_ops;
    uint64_t op_number = 0;
    struct Flush {
        mpx_completion *user;
        uint64_t position, number;
    };
    std::deque<Flush> flushes;

    Wireup wireup;
    mpx_status condemned = MPX_OK;  // the session is to end so, once all that has arrived is delivered
    mpx_status verdict = MPX_OK;    // why the link, or the session, ended
    std::string why;
    double retry_at = 0, cut_at = 0, last_sign = 0, next_question = 0;
    struct Question : mpx_completion {
        Session *session;
        bool asked;
    } question{};
    LinkCounters counters;

    explicit Session(Sessions *sessions) : owner(sessions) {
        iface = sessions;
        user = nullptr;
        question.session = this;
        question.asked = false;
        question.done = [](mpx_completion *c, mpx_status st) {
            auto *q = static_cast<Question *>(c);
            q->asked = false;
            if (st == MPX_OK) q->session->last_sign = monotonic_s();
        };
    }

    const mpx_iface_ops &base() const { return *owner->ops_; }
    bool ended() const { return state == kResting || state == kFailed; }
    bool settled() const { return peer_left && bye && acknowledged >= bye; }  // both have said BYE, and the peer has ours
    bool open() const { return state == kUp || state == kReplaying; }
    bool over() const { return state == kBroken || ended(); }  // of the link: what it still says does not count

    // --- the life of a link
    mpx_status create_ep();
    mpx_status create_link() { return wireup.used ? begin_wireup() : create_ep(); }
    mpx_status not_up();
    void break_link(mpx_status st, std::string reason);
    mpx_status violate(std::string what);
    void destroy_link();
    void tear_down();
    void fail(mpx_status st);
    void end(State how, mpx_status st);
    unsigned step(bool quiet);
    bool needs_care() const;
    bool linked() const { return !wireup.used || (wireup.connected && (wireup.leads || peer_resumed)); }
    bool greet();
    unsigned resume();
    mpx_status send_again(Record *r);
    bool out_of_patience(double time) const;
    void look_for_signs(double time);

    // --- wireup (wireup.cc)
    mpx_status begin_wireup();
    unsigned take_offer();
    unsigned wire();
    void await_program(double time);
    bool hear(const void *data, size_t length);
    void link_wanted();

    // --- acknowledgements
    void acknowledge();
    void ask();
    bool peer_has(uint64_t count);  // false: it cannot have that many

    // --- operations
    Op *take(Op::Kind kind, const mpx_iov *iov, size_t cnt, mpx_completion *user_completion);
    mpx_status post(Op *op);
    void give_back(Op *op);
    void finish(Op *op, mpx_status st);
    void finish_all(mpx_status st);
    void check_flushes();
    static void on_inner_done(mpx_completion *, mpx_status);
};

}  // namespace mpx
