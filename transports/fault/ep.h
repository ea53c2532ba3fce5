// The ops of ep.cc, for the table.
#pragma once
#include <pympx/transport.h>

namespace mpx::fault {

mpx_status am_short(mpx_ep *, uint8_t id, uint64_t header, const void *, size_t);
mpx_status am_bcopy(mpx_ep *, uint8_t id, size_t, mpx_pack_fn, void *);
mpx_status am_zcopy(mpx_ep *, uint8_t id, const void *header, size_t, const mpx_iov *, size_t, mpx_completion *);
mpx_status put_zcopy(mpx_ep *, const mpx_iov *, size_t, uint64_t raddr, mpx_rkey_h, mpx_completion *);
mpx_status get_zcopy(mpx_ep *, const mpx_iov *, size_t, uint64_t raddr, mpx_rkey_h, mpx_completion *);
mpx_status atomic64(mpx_ep *, unsigned, uint64_t, uint64_t, uint64_t *, uint64_t raddr, mpx_rkey_h, mpx_completion *);
mpx_status ep_fence(mpx_ep *);
mpx_status ep_flush(mpx_ep *, mpx_completion *);
mpx_status ep_check(mpx_ep *, mpx_completion *);

}  // namespace mpx::fault
