"""Requests outstanding at RESET: what soft-RoCE makes of them in the next use; after a second RESET nothing, on which link.cc relies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import guest
import pytest
from pympx.transports.verbs.devices import pyverbs

OUTSTANDING = 5
NOBODY = 0xFFF  # a queue pair that is not there
PSN = 5000
GID = 1
LIMIT_S = 20.0


class End:
    """A queue pair on a device, with a completion queue and memory, closed by `stack`."""

    def __init__(self, stack: ExitStack, device: str) -> None:
        self.e = e = pyverbs("enums")
        qp = pyverbs("qp")
        hold: Callable[[Any], Any] = stack.enter_context
        self.context = hold(pyverbs("device").Context(name=device))
        pd = hold(pyverbs("pd").PD(self.context))
        self.cq = hold(pyverbs("cq").CQ(self.context, 64, None, None, 0))
        cap = qp.QPCap(max_send_wr=16, max_recv_wr=16, max_send_sge=1, max_recv_sge=1)
        self.qp = hold(qp.QP(pd, qp.QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=cap, sq_sig_all=0)))
        self.memory = hold(pyverbs("mr").MR(pd, 4096, e.IBV_ACCESS_LOCAL_WRITE))
        self.piece = pyverbs("wr").SGE(self.memory.buf, 64, self.memory.lkey)

    def reset(self) -> None:
        self._move(self.e.IBV_QPS_RESET, self.e.IBV_QP_STATE)

    def ready(self) -> None:
        e = self.e
        mask = e.IBV_QP_STATE | e.IBV_QP_PKEY_INDEX | e.IBV_QP_PORT | e.IBV_QP_ACCESS_FLAGS
        self._move(e.IBV_QPS_INIT, mask, port_num=1, qp_access_flags=e.IBV_ACCESS_REMOTE_WRITE)  # what remains is sent as empty writes

    def connect(self, peer: End, number: int) -> None:
        e, addr = self.e, pyverbs("addr")
        route = addr.GlobalRoute(dgid=peer.context.query_gid(1, GID), sgid_index=GID)
        to = {"ah_attr": addr.AHAttr(gr=route, is_global=1, port_num=1), "dest_qp_num": number, "rq_psn": PSN}
        mask = e.IBV_QP_STATE | e.IBV_QP_AV | e.IBV_QP_PATH_MTU | e.IBV_QP_DEST_QPN | e.IBV_QP_RQ_PSN
        mask |= e.IBV_QP_MAX_DEST_RD_ATOMIC | e.IBV_QP_MIN_RNR_TIMER
        self._move(e.IBV_QPS_RTR, mask, path_mtu=e.IBV_MTU_1024, max_dest_rd_atomic=1, min_rnr_timer=12, **to)
        mask = e.IBV_QP_STATE | e.IBV_QP_TIMEOUT | e.IBV_QP_RETRY_CNT | e.IBV_QP_RNR_RETRY | e.IBV_QP_SQ_PSN | e.IBV_QP_MAX_QP_RD_ATOMIC
        self._move(e.IBV_QPS_RTS, mask, timeout=14, retry_cnt=6, rnr_retry=6, sq_psn=PSN, max_rd_atomic=1)

    def send(self, flags: int = 0) -> None:
        self.qp.post_send(pyverbs("wr").SendWR(num_sge=1, sg=[self.piece], send_flags=flags))

    def receive(self) -> None:
        self.qp.post_recv(pyverbs("wr").RecvWR(num_sge=1, sg=[self.piece]))

    def expected(self) -> int:
        """Return the packet number that the device expects next."""
        return int(self.qp.query(self.e.IBV_QP_RQ_PSN)[0].rq_psn)

    def completion(self) -> Any:
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            count, found = self.cq.poll(1)
            if count:
                return found[0]
        raise AssertionError(f"no completion within {LIMIT_S} s")

    def _move(self, state: int, mask: int, **values: Any) -> None:
        attributes = pyverbs("qp").QPAttr()
        for name, value in {"qp_state": state, **values}.items():
            setattr(attributes, name, value)
        self.qp.modify(attributes, mask)


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    with ExitStack() as stack:
        yield End(stack, guest.DEVICES[0]), End(stack, guest.DEVICES[1])


@pytest.mark.parametrize("resets", [1, 2])
def test_packets_of_the_next_use(ends: tuple[End, End], resets: int, record: Any) -> None:
    sender, receiver = ends
    began = time.monotonic()
    sender.ready()
    sender.connect(receiver, NOBODY)
    before = guest.packets()
    for _ in range(OUTSTANDING):
        sender.send()
    while guest.packets() < before + OUTSTANDING:  # they are on their way
        assert time.monotonic() < began + LIMIT_S
    for _ in range(resets):
        sender.reset()
    for end in ends:
        end.ready()
    receiver.receive()
    receiver.connect(sender, sender.qp.qp_num)
    sender.connect(receiver, receiver.qp.qp_num)
    sender.send(sender.e.IBV_SEND_SIGNALED)
    arrived, sent = receiver.completion(), sender.completion()
    assert (arrived.status, arrived.byte_len, sent.status) == (0, 64, 0)
    packets = receiver.expected() - PSN
    record({"resets": resets, "outstanding": OUTSTANDING, "packets": packets})
    assert 1 <= packets <= (1 if resets == 2 else 1 + OUTSTANDING)
