// Sessions: links that heal. A layer between the engine's protocols and a transport with MPX_CAP_LINK_MAY_BREAK; over other transports
// there is none. It offers the same mpx_iface_ops on eps of its own, so whoever sends never sees a broken link, only NO_RESOURCE for a
// while.
//
// A link is FIFO and exactly-once while it lives, so messages carry no numbers: both ends count. What was sent is kept in a bounded replay
// buffer (zcopy: the user's buffer is kept) until the peer says how much it has: by itself every quarter of the buffer, when asked, and
// in RESUME. When a link breaks it is fenced off and destroyed, outside the transport's progress; both sides reconnect at once, then
// with delays of 5 to 250 ms. The first message both ways on a new link is RESUME {epoch, messages received so far}; each side drops what
// the peer has, posts gets and puts again, sends the rest again in order, and only then is the session open for what is new.
//
// Death and cut: what the transport reports as LINK_BROKEN is retried while the peer's process or host gives a sign (ep_check), and for the
// link's time-out beyond that; anything else it reports means that the process is gone, and is on_error to the engine, once.
//
// BYE belongs to both layers: it is acknowledged at once, and after it the end of a link is no failure.
//
// Ownership: Sessions owns nothing of the transport; its sessions are destroyed before the transport's iface is closed. Engine lock held.
#pragma once
#include <pympx/transport.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "list.h"
#include "replay.h"

namespace mpx {

struct LinkCounters {
    uint64_t cuts = 0;         // links that broke while they were in use
    uint64_t reconnects = 0;   // sessions that went on afterwards
    uint64_t replayed = 0;     // messages sent again
    double longest_stall = 0;  // seconds from the notice of a cut until the session went on
    double last_cut = 0;       // when it was noticed, and when the session last went up: seconds of the monotonic clock, 0: never
    double last_up = 0;
};

struct Session;

// What leads to a peer's session where eps are connected pairwise (wireup.h): the engine's, over another transport.
struct ControlLane {
    // OK: the peer will hear() it. NO_RESOURCE: not now. Anything else: the peer is lost, and the session will be condemned.
    mpx_status (*say)(void *arg, mpx_ep *session, const void *message, size_t length);
    bool (*lives)(void *arg, const mpx_ep *session);  // nothing speaks against the peer's process
    void *arg;
};

class Sessions : public mpx_iface {
public:
    using OnError = void (*)(void *arg, mpx_ep *, mpx_status);

    // handlers: the engine's, MPX_AM_ID_MAX of them. on_error: as in mpx_iface_params.
    Sessions(const mpx_transport *table, mpx_iface *base, const mpx_am_handler *handlers, OnError on_error, void *arg, double link_timeout);
    Sessions(const Sessions &) = delete;
    Sessions &operator=(const Sessions &) = delete;

    // What the transport is given: its handlers, and what its on_incoming and on_error lead to.
    const mpx_am_handler *handlers() const { return outer_; }
    mpx_ep *incoming(mpx_ep *session);  // the transport's ep, or nullptr to refuse
    void link_error(mpx_ep *link, mpx_status);

    // Before the first session of a transport with MPX_CAP_CONNECT_EP.
    void connect_over(const ControlLane &lane, size_t ep_address_length);
    // What the peer's session has said over the control lane; false: that cannot be.
    bool hear(mpx_ep *session, const void *data, size_t length);
    // The peer is lost, as is known elsewhere: ends the session once what has arrived is delivered.
    void condemn(mpx_ep *session, mpx_status, const std::string &reason);

    // As the transport's table offers them, on a session. leads: see wireup.h; exactly one of the two ends does.
    mpx_status create(const void *address, size_t length, bool leads, mpx_ep **out);
    void destroy(mpx_ep *session);

    bool has_failed(const mpx_ep *session) const;
    // Both have said BYE, and the peer has ours; or the session has failed.
    bool settled(const mpx_ep *session) const;
    const LinkCounters &counters(const mpx_ep *session) const;
    const std::string &reason(const mpx_ep *session) const;  // of its failure
    // Whether a link is being made, or something else is to be done soon.
    bool busy() const { return !cared_for_.empty(); }
    // Milliseconds until progress has something to do that no descriptor announces, `limit` at most.
    int timeout_ms(int limit) const;

private:
    friend struct Session;
    struct Slot {
        Sessions *sessions;
        mpx_am_handler inner;
        uint8_t id;
    };
    static const mpx_iface_ops kOps;
    static mpx_status on_message(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_status on_resume(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_status on_acknowledge(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static mpx_status on_ask(void *, void *, const void *, size_t, void *, size_t, unsigned);
    static unsigned progress(mpx_iface *);
    unsigned maintain(bool quiet);
    void take_care(Session &);  // maintain() looks at it until it needs none
    double jitter(double seconds);

    const mpx_transport *table_;
    mpx_iface *base_;
    const mpx_iface_ops *ops_;
    OnError on_error_;
    void *arg_;
    double link_timeout_;
    ControlLane lane_{};
    size_t ep_address_length_ = 0;
    Slot slots_[MPX_AM_ID_MAX];
    mpx_am_handler outer_[MPX_AM_ID_MAX];
    std::vector<Session *> cared_for_;
    std::minstd_rand random_;
};

}  // namespace mpx
