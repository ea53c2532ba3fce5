/* The pympx transport ABI, version 1: what every fast path implements and all that it may know of the engine.
 *
 * Objects: transport (a table) -> domain (owns registrations) -> iface (open resource that is progressed) -> ep (one peer).
 * Plain C11, includable from C++20. Tables and attributes start with `size` and only grow; no entry is ever NULL (a stub
 * returns MPX_ERR_UNSUPPORTED). mpx_ep, mpx_iov and mpx_completion are frozen per ABI version.
 *
 * Threads: every call on a domain, its ifaces and its eps is made under the engine lock, one thread at a time, except
 * event_fd's poll(2) by the engine and the entries marked "any thread". A fast path never takes Python's GIL.
 * Ownership: what a call opens is closed by the matching close, in reverse order; a transport never frees caller memory. */
#ifndef PYMPX_TRANSPORT_H
#define PYMPX_TRANSPORT_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#define MPX_ABI_VERSION 1u
#define MPX_CAPSULE_NAME "pympx.transport.v1"
/* A native fast path is a shared library that exports `const mpx_transport *mpx_transport_table(void)`. */
#define MPX_TABLE_SYMBOL "mpx_transport_table"
/* A layer wraps any transport's table (transports/fault). Its library exports `const mpx_transport *mpx_layer_table(const mpx_transport *over,
 * const char *settings, const char **why)`: NULL, with a reason in one line, when it cannot. The table given stays the transport's. */
#define MPX_LAYER_SYMBOL "mpx_layer_table"

typedef int32_t mpx_status;
enum {
    MPX_OK = 0,
    MPX_INPROGRESS = 1,            /* accepted; exactly one completion follows, never inside the call */
    MPX_ERR_NO_RESOURCE = -1,      /* back-pressure: nothing happened; event_fd tells when to retry */
    MPX_ERR_UNSUPPORTED = -2,
    MPX_ERR_INVALID = -3,
    MPX_ERR_NO_MEMORY = -4,
    MPX_ERR_UNREACHABLE = -5,      /* nobody, or somebody else, is where the peer was: its process is gone */
    MPX_ERR_LINK_BROKEN = -6,      /* the link broke, or no answer came: the peer may live, a new ep may reach it */
    MPX_ERR_PEER_FAILED = -7,
    MPX_ERR_CANCELED = -8,         /* the ep was destroyed while the operation was outstanding */
    MPX_ERR_UNKNOWN_OUTCOME = -9   /* an atomic that was in flight when the link broke */
};

typedef struct mpx_domain mpx_domain;
typedef struct mpx_iface mpx_iface;
typedef struct mpx_ep mpx_ep;
typedef struct mpx_memh *mpx_mem_h;    /* local registration; NULL = unregistered */
typedef struct mpx_rkey *mpx_rkey_h;   /* unpacked remote key */
typedef struct mpx_iov { void *base; size_t len; mpx_mem_h memh; } mpx_iov;

/* Owned by the caller, embedded in its request, never allocated by a transport. Once `done` was called, whatever the
 * status, no side touches the operation's buffer again. `done` runs inside progress (or inside ep_destroy). */
typedef struct mpx_completion mpx_completion;
struct mpx_completion { void (*done)(mpx_completion *self, mpx_status st); };

enum {
    MPX_CAP_AM_SHORT = 1u << 0, MPX_CAP_AM_BCOPY = 1u << 1, MPX_CAP_AM_ZCOPY = 1u << 2,
    MPX_CAP_PUT_ZCOPY = 1u << 3, MPX_CAP_GET_ZCOPY = 1u << 4, MPX_CAP_ATOMIC64 = 1u << 5,
    MPX_CAP_RKEY_PTR = 1u << 6,         /* rkey_ptr gives a local load/store pointer for memory from mem_alloc */
    MPX_CAP_CONNECT_IFACE = 1u << 16,   /* an ep needs only the peer's iface address: may serve as control lane */
    MPX_CAP_CONNECT_EP = 1u << 17,      /* ep addresses are exchanged pairwise (RC queue pairs) */
    MPX_CAP_EVENT_FD = 1u << 18, MPX_CAP_INTER_NODE = 1u << 19,
    MPX_CAP_LINK_MAY_BREAK = 1u << 20,  /* the engine puts a session above it: after on_error(LINK_BROKEN) it fences the ep off, destroys
                                           it and creates another to the same peer, on both sides and at once. A connect of a peer
                                           that has lost the link which still lives here ends that link in the same way. */
    MPX_CAP_NATIVE_PROGRESS = 1u << 21, /* progress needs no Python */
    MPX_CAP_NEED_MEMH = 1u << 22        /* zcopy iovs must carry a memh */
};
enum { MPX_MEM_HOST = 0 };              /* other memory types: UNSUPPORTED */
enum { MPX_ACCESS_LOCAL = 1u, MPX_ACCESS_REMOTE_READ = 2u, MPX_ACCESS_REMOTE_WRITE = 4u, MPX_ACCESS_REMOTE_ATOMIC = 8u };
enum { MPX_ATOMIC_ADD, MPX_ATOMIC_AND, MPX_ATOMIC_OR, MPX_ATOMIC_XOR, MPX_ATOMIC_SWAP, MPX_ATOMIC_CSWAP };
enum { MPX_ATOMIC_DOMAIN_NONE, MPX_ATOMIC_DOMAIN_CPU, MPX_ATOMIC_DOMAIN_DEVICE };

/* Limits and costs are data: the engine's protocol choice is a pure function of them. Lengths in bytes, times in seconds. */
typedef struct mpx_iface_attr {
    size_t size;
    uint64_t caps;
    size_t iface_addr_len, ep_addr_len, rkey_packed_len;
    size_t max_am_short;                /* payload beside the 8-byte header */
    size_t max_am_bcopy;                /* all that pack writes */
    size_t max_am_zcopy;                /* payload beside the header */
    size_t max_am_hdr;                  /* header of am_zcopy */
    size_t max_iov, min_zcopy, max_zcopy;
    double latency_s, bandwidth_Bps;    /* of one AM through the transport */
    double get_overhead_s, get_bandwidth_Bps; /* of get_zcopy from ordinary memory */
    double overhead_s, reg_fixed_s, reg_per_byte_s;
    int atomic_domain;
} mpx_iface_attr;

/* An AM handler. ep_user is ep->user of the ep that the message came through. hdr: 8 bytes for am_short, the given header
 * for am_zcopy, empty for am_bcopy. data stays valid until return; with MPX_AM_F_DESC the handler may return
 * MPX_INPROGRESS to keep it, and gives it back later by desc_release. */
enum { MPX_AM_F_DESC = 1u << 0 };
typedef mpx_status (*mpx_am_fn)(void *arg, void *ep_user, const void *hdr, size_t hdr_len, void *data, size_t len, unsigned flags);
typedef struct mpx_am_handler { mpx_am_fn fn; void *arg; } mpx_am_handler;
enum { MPX_AM_ID_MAX = 32 };

typedef struct mpx_iface_params {
    size_t size;
    const mpx_am_handler *am;           /* MPX_AM_ID_MAX entries, outlive the iface; read when a message arrives, never earlier */
    /* A peer without an ep speaks: return the ep to attribute it to (created by ep_create inside the call, its user set),
     * or NULL to refuse. addr is the peer's iface address, authenticated as far as the transport authenticates. */
    mpx_ep *(*on_incoming)(void *arg, const void *addr, size_t len);
    /* Marks only, once per ep, inside progress; nothing arrives through the ep afterwards. why() tells the reason meanwhile. */
    void (*on_error)(void *arg, mpx_ep *ep, mpx_status st);
    void *arg;                          /* for on_incoming, on_error and need_control */
    size_t rx_headroom;                 /* bytes free in front of every kept descriptor */
    /* The fast path lacks something that only its control path can make: whoever waits with the GIL next asks plugin.py for it, and hands
     * it over by domain_supply. Marks only. May be NULL, when nobody will. */
    void (*need_control)(void *arg);
} mpx_iface_params;

typedef struct mpx_domain_params {
    size_t size;
    const char *device;                 /* "" = the transport's choice */
    const char *config_json;            /* what plugin.py found out, transport-specific; "{}" allowed */
    const void *job_key;                /* secret of this job, shared by its ranks */
    size_t job_key_len;
} mpx_domain_params;

/* Writes at most `len` (as passed to am_bcopy) bytes to dest, returns how many. */
typedef size_t (*mpx_pack_fn)(void *dest, void *arg);

/* Fast path. am_*: OK = buffer reusable. Zero-length payloads are legal. Nothing here blocks. */
typedef struct mpx_iface_ops {
    size_t size;
    mpx_status (*am_short)(mpx_ep *, uint8_t id, uint64_t hdr, const void *buf, size_t len);
    mpx_status (*am_bcopy)(mpx_ep *, uint8_t id, size_t len, mpx_pack_fn pack, void *arg);
    mpx_status (*am_zcopy)(mpx_ep *, uint8_t id, const void *hdr, size_t hdr_len, const mpx_iov *, size_t iovcnt, mpx_completion *);
    mpx_status (*put_zcopy)(mpx_ep *, const mpx_iov *, size_t iovcnt, uint64_t raddr, mpx_rkey_h, mpx_completion *); /* done: local reuse;
                                                             over links that may break also: it has arrived, since it is not put again */
    mpx_status (*get_zcopy)(mpx_ep *, const mpx_iov *, size_t iovcnt, uint64_t raddr, mpx_rkey_h, mpx_completion *);
    mpx_status (*atomic64)(mpx_ep *, unsigned op, uint64_t operand, uint64_t compare, uint64_t *result, uint64_t raddr, mpx_rkey_h,
                           mpx_completion *);
    mpx_status (*ep_fence)(mpx_ep *);                     /* earlier puts are visible before later AMs are handled */
    mpx_status (*ep_flush)(mpx_ep *, mpx_completion *);   /* done: earlier operations arrived, they need this process no more */
    unsigned (*progress)(mpx_iface *);                    /* events handled; runs handlers and completions */
    void (*desc_release)(mpx_iface *, void *data);
    mpx_status (*event_arm)(mpx_iface *);                 /* before a sleep. NO_RESOURCE: work arrived meanwhile, progress again */
    int (*event_fd)(mpx_iface *);                         /* after event_arm: readable whenever progress would do something,
                                                             also when an ep that said NO_RESOURCE can accept again */
} mpx_iface_ops;

/* Every iface and ep starts with these, so the engine calls without a lookup. */
struct mpx_iface { const mpx_iface_ops *ops; };
struct mpx_ep { mpx_iface *iface; void *user; uint64_t reserved[2]; };

typedef struct mpx_transport {
    uint32_t abi_version, size;
    const char *name;
    const char *(*why)(void);           /* reason of this thread's last failed control call, one line, "" if none; any thread */
    mpx_status (*domain_open)(const mpx_domain_params *, mpx_domain **);
    void (*domain_close)(mpx_domain *);
    mpx_status (*mem_alloc)(mpx_domain *, size_t len, void **addr, mpx_mem_h *); /* memory that peers can map or reach */
    void (*mem_free)(mpx_domain *, void *addr, mpx_mem_h);
    mpx_status (*mem_reg)(mpx_domain *, void *addr, size_t len, int mem_type, unsigned access, mpx_mem_h *);
    mpx_status (*mem_dereg)(mpx_domain *, mpx_mem_h);
    mpx_status (*rkey_pack)(mpx_domain *, mpx_mem_h, void *out, size_t out_len);
    mpx_status (*rkey_unpack)(mpx_domain *, const void *in, size_t in_len, mpx_rkey_h *);
    void *(*rkey_ptr)(mpx_domain *, mpx_rkey_h, uint64_t raddr);
    void (*rkey_release)(mpx_domain *, mpx_rkey_h);
    mpx_status (*iface_open)(mpx_domain *, const mpx_iface_params *, mpx_iface **);
    void (*iface_close)(mpx_iface *);
    mpx_status (*iface_query)(mpx_iface *, mpx_iface_attr *);   /* fills at most attr->size bytes as set by the caller */
    mpx_status (*iface_address)(mpx_iface *, void *out);        /* iface_addr_len bytes */
    int (*iface_reachable)(mpx_iface *, const void *addr, size_t len); /* 1, or 0 with why() */
    mpx_status (*ep_create)(mpx_iface *, const void *peer_iface_addr, size_t len, mpx_ep **); /* connects lazily, queues nothing */
    mpx_status (*ep_address)(mpx_ep *, void *out);              /* CONNECT_EP: ep_addr_len bytes. NO_RESOURCE: not yet, see need_control */
    mpx_status (*ep_connect)(mpx_ep *, const void *peer_ep_addr, size_t len); /* likewise */
    mpx_status (*ep_fence_off)(mpx_ep *);                       /* after this no late byte of the old link lands anywhere; ep_destroy
                                                                   of a fenced ep sends nothing more */
    mpx_status (*ep_repair)(mpx_ep *, const void *peer_ep_addr, size_t len);
    mpx_status (*ep_check)(mpx_ep *, mpx_completion *);         /* liveness, answered by kernel or card: OK also while a link is being
                                                                   made and the peer's kernel has answered; NO_RESOURCE: no answer yet */
    /* Outside progress. Outstanding completions run, with MPX_ERR_CANCELED if not done, before it returns. */
    void (*ep_destroy)(mpx_ep *);
    uint64_t (*iface_bytes)(mpx_iface *, int received);         /* bytes moved over the medium so far, framing included */
    /* The last call, in a child that fork made while no other call ran: close the child's copies of descriptors, so that it does not
       keep alive what ends with the parent. Nothing is sent, nothing that parent and child share is changed, no completion runs. */
    void (*iface_forked)(mpx_iface *);
    /* What the control path made since domain_open, or why it could not; transport-specific, in the form of config_json. */
    mpx_status (*domain_supply)(mpx_domain *, const char *json);
} mpx_transport;

#ifdef __cplusplus
}
#endif
#endif
