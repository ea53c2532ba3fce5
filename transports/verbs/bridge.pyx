"""Addresses of the C objects inside pyverbs' objects.

pyverbs installs no .pxd files, so only the head of each object is declared here. It has been the same from rdma-core 44 to 64; that it still
is, is checked against what the Python object says of itself. Importing this module imports pyverbs.
"""
from libc.stdint cimport uint32_t, uintptr_t

cdef extern from "infiniband/verbs.h" nogil:
    struct ibv_context:
        int cmd_fd
        int async_fd
    struct ibv_pd:
        ibv_context *context
    struct ibv_comp_channel:
        ibv_context *context
    struct ibv_cq:
        ibv_context *context
        int cqe
    struct ibv_qp:
        ibv_context *context
        uint32_t qp_num

cdef extern from *:
    """
    #define MPX_PYVERBS_HEAD(name, type) typedef struct { PyObject_HEAD void *vtab; PyObject *weak, *logger; struct type *object; } name
    MPX_PYVERBS_HEAD(mpx_pyverbs_context, ibv_context);
    MPX_PYVERBS_HEAD(mpx_pyverbs_pd, ibv_pd);
    MPX_PYVERBS_HEAD(mpx_pyverbs_channel, ibv_comp_channel);
    MPX_PYVERBS_HEAD(mpx_pyverbs_cq, ibv_cq);
    MPX_PYVERBS_HEAD(mpx_pyverbs_qp, ibv_qp);
    """
    ctypedef class pyverbs.device.Context [object mpx_pyverbs_context, check_size ignore]:
        cdef ibv_context *object
    ctypedef class pyverbs.pd.PD [object mpx_pyverbs_pd, check_size ignore]:
        cdef ibv_pd *object
    ctypedef class pyverbs.cq.CompChannel [object mpx_pyverbs_channel, check_size ignore]:
        cdef ibv_comp_channel *object
    ctypedef class pyverbs.cq.CQ [object mpx_pyverbs_cq, check_size ignore]:
        cdef ibv_cq *object
    ctypedef class pyverbs.qp.QP [object mpx_pyverbs_qp, check_size ignore]:
        cdef ibv_qp *object


cdef uintptr_t checked(void *object, bint right) except 0:
    if object == NULL or not right:
        raise RuntimeError("this pyverbs lays out its objects in another way than those from rdma-core 44 to 64")
    return <uintptr_t>object


def context_address(Context context not None):
    """Return the address of a pyverbs Context's ibv_context."""
    return checked(context.object, context.object.cmd_fd == (<object>context).cmd_fd)


def pd_address(PD pd not None, Context context not None):
    """Return the address of the ibv_pd of `pd`, which was made of `context`."""
    return checked(pd.object, pd.object.context == context.object)


def channel_address(CompChannel channel not None, Context context not None):
    """Return the address of the ibv_comp_channel of `channel`, which was made of `context`."""
    return checked(channel.object, channel.object.context == context.object)


def cq_address(CQ cq not None):
    """Return the address of a pyverbs CQ's ibv_cq."""
    return checked(cq.object, cq.object.cqe == (<object>cq).cqe)


def qp_address(QP qp not None):
    """Return the address of a pyverbs QP's ibv_qp."""
    return checked(qp.object, qp.object.qp_num == (<object>qp).qp_num)
