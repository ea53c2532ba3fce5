// The functions of libibverbs that are not inline in its header. pyverbs has loaded the library; it is not linked, so that pympx can be
// installed where there is none.
#pragma once
#include <infiniband/verbs.h>

#include <string>

namespace mpx::verbs {

struct Library {
    int (*modify_qp)(ibv_qp *, ibv_qp_attr *, int);
    ibv_mr *(*reg_mr)(ibv_pd *, void *, size_t, int);
    int (*dereg_mr)(ibv_mr *);
    int (*get_cq_event)(ibv_comp_channel *, ibv_cq **, void **);
    void (*ack_cq_events)(ibv_cq *, unsigned);
    int (*get_async_event)(ibv_context *, ibv_async_event *);
    void (*ack_async_event)(ibv_async_event *);
    const char *(*wc_status_str)(ibv_wc_status);

    bool load(std::string &why);  // false with a one-line reason
};

}  // namespace mpx::verbs
