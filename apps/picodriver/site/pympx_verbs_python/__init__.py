"""RDMA verbs with nothing but pyverbs: what the transport verbs would be if its data path were not ported to C++. A third party's plugin.

The same device, the same kind of queue pair, the same registered memory. Each direction between two ranks has a reliable connection of its
own, made when its sender first sends: over a TCP connection the sender proves the job's key and both tell their queue pair. Messages are
copied through registered memory, behind their length; a message that finds no receive waits in the cards (rnr_retry 7). Work requests are
kept, one per slot and power of two, since pyverbs takes 100 us to make one, copies its lengths, and never frees what it makes for it.
"""

from __future__ import annotations

import ctypes
import hmac
import importlib.util
import mmap
import os
import select
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

from pympx.plugins import PeerLost, PythonTransport, TransportPlugin, hookimpl

_SYSTEM_PACKAGES = "/usr/lib/python3/dist-packages"  # where Debian's python3-pyverbs lies
_SLOTS = 16
_BYTES = 32 << 10  # of a slot
_LENGTH = struct.Struct("!I")  # in front of every message
_ADDRESS = struct.Struct("!4sH16s")  # IPv4 address, port, GID
_CARD = struct.Struct("!II32s22s")  # number and first packet of a queue pair, proof, address of who speaks
_RECEIVED = 1 << 32
_NAP_S = 0.5e-3
_POLLS_PER_CALL = 32  # polls between two looks at who calls


def _module(name: str) -> Any:
    if _SYSTEM_PACKAGES not in sys.path and importlib.util.find_spec("pyverbs") is None:
        sys.path.append(_SYSTEM_PACKAGES)
    return importlib.import_module(f"pyverbs.{name}")


class _Link:
    """One direction to or from one peer: a queue pair, and the slots of registered memory that it sends from or receives into."""

    def __init__(self, transport: VerbsPythonTransport, sends: bool) -> None:
        e, qp, wr = _module("enums"), _module("qp"), _module("wr")
        cap = qp.QPCap(max_send_wr=_SLOTS, max_recv_wr=_SLOTS, max_send_sge=1, max_recv_sge=1, max_inline_data=0)
        self.cq = _module("cq").CQ(transport.context, 2 * _SLOTS, None, transport.channel, 0)
        self.qp = qp.QP(transport.pd, qp.QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=cap, sq_sig_all=1))
        self.memory = mmap.mmap(-1, _SLOTS * _BYTES)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.mr = _module("mr").MR(transport.pd, _SLOTS * _BYTES, e.IBV_ACCESS_LOCAL_WRITE, address=address)
        self.view = memoryview(self.memory)
        self.free = deque(range(_SLOTS))
        self.ready = False
        attr = qp.QPAttr(qp_state=e.IBV_QPS_INIT, port_num=1)
        attr.pkey_index = 0
        attr.qp_access_flags = e.IBV_ACCESS_LOCAL_WRITE
        self.qp.modify(attr, e.IBV_QP_STATE | e.IBV_QP_PKEY_INDEX | e.IBV_QP_PORT | e.IBV_QP_ACCESS_FLAGS)
        self._address = address
        self._sends: dict[tuple[int, int], Any] = {}
        if not sends:
            pieces = [wr.SGE(address + slot * _BYTES, _BYTES, self.mr.lkey) for slot in range(_SLOTS)]
            self._receives = [wr.RecvWR(wr_id=_RECEIVED | slot, num_sge=1, sg=[piece]) for slot, piece in enumerate(pieces)]
            for slot in range(_SLOTS):
                self.receive(slot)

    def send(self, message: bytes) -> None:
        """Send from a slot that is free."""
        slot = self.free.popleft()
        at, end = slot * _BYTES, slot * _BYTES + _LENGTH.size
        self.view[at:end] = _LENGTH.pack(len(message))
        self.view[end : end + len(message)] = message
        size = 1 << max(6, (_LENGTH.size + len(message) - 1).bit_length())
        request = self._sends.get((slot, size))
        if request is None:
            wr = _module("wr")
            piece = wr.SGE(self._address + at, size, self.mr.lkey)
            request = self._sends[slot, size] = wr.SendWR(wr_id=slot, num_sge=1, sg=[piece], opcode=_module("enums").IBV_WR_SEND)
        self.qp.post_send(request)

    def receive(self, slot: int) -> None:
        """Let the next message come into a slot."""
        self.qp.post_recv(self._receives[slot])

    def message(self, slot: int) -> bytes:
        """Return the message that has come into a slot."""
        at = slot * _BYTES + _LENGTH.size
        return bytes(self.view[at : at + _LENGTH.unpack_from(self.view, slot * _BYTES)[0]])

    def connect(self, transport: VerbsPythonTransport, number: int, gid: bytes) -> None:
        e, qp, addr = _module("enums"), _module("qp"), _module("addr")
        route = addr.GlobalRoute(dgid=addr.GID(gid.hex(":", 2)), sgid_index=transport.gid_index, hop_limit=64)
        attr = qp.QPAttr(qp_state=e.IBV_QPS_RTR, path_mtu=transport.mtu)
        attr.dest_qp_num, attr.rq_psn, attr.max_dest_rd_atomic, attr.min_rnr_timer = number, 0, 1, 12
        attr.ah_attr = addr.AHAttr(port_num=1, is_global=1, gr=route)
        self.qp.modify(attr, e.IBV_QP_STATE | e.IBV_QP_AV | e.IBV_QP_PATH_MTU | e.IBV_QP_DEST_QPN | e.IBV_QP_RQ_PSN
                       | e.IBV_QP_MAX_DEST_RD_ATOMIC | e.IBV_QP_MIN_RNR_TIMER)  # fmt: skip
        attr = qp.QPAttr(qp_state=e.IBV_QPS_RTS)
        attr.timeout, attr.retry_cnt, attr.rnr_retry, attr.sq_psn, attr.max_rd_atomic = 14, 6, 7, 0, 1
        self.qp.modify(attr, e.IBV_QP_STATE | e.IBV_QP_TIMEOUT | e.IBV_QP_RETRY_CNT | e.IBV_QP_RNR_RETRY | e.IBV_QP_SQ_PSN
                       | e.IBV_QP_MAX_QP_RD_ATOMIC)  # fmt: skip
        self.ready = True

    def completions(self, peer: bytes) -> list[Any]:
        number, found = self.cq.poll(_SLOTS)
        if any(each.status for each in found[:number]):
            raise PeerLost(peer, "a queue pair has failed")
        return list(found[:number])

    def close(self) -> None:
        for each in (self.qp, self.mr, self.cq):
            each.close()


class VerbsPythonTransport(PythonTransport):
    """Reliable connections on the first port of one device, all of it by pyverbs."""

    name = "verbs-python"
    summary = "RDMA verbs, all of it by pyverbs: what PicoDriver's experiment compares with"
    max_message = _BYTES - _LENGTH.size
    latency_s = 60e-6
    bandwidth_Bps = 100e6

    def open(self, job_key: bytes) -> bytes:
        device = _module("device")
        self._key = job_key
        name = os.environ.get("PYMPX_VERBS_DEVICE") or device.get_device_list()[0].name.decode()
        self.context = device.Context(name=name.partition(":")[0])
        self.pd = _module("pd").PD(self.context)
        self.channel = _module("cq").CompChannel(self.context)
        self.mtu = self.context.query_port(1).active_mtu
        roce = [entry.gid_index for entry in self.context.query_gid_table(16) if entry.gid_type == _module("enums").IBV_GID_TYPE_ROCE_V2]
        gids = ((index, socket.inet_pton(socket.AF_INET6, self.context.query_gid(1, index).gid)) for index in roce)
        self.gid_index, raw = next((index, gid) for index, gid in gids if gid.startswith(b"\0" * 10))  # made of an IPv4 address
        self._listener = socket.create_server((socket.inet_ntoa(raw[12:]), 0))
        self._listener.setblocking(False)
        self._out: dict[bytes, _Link] = {}
        self._into: dict[bytes, _Link] = {}
        self._dialling: dict[bytes, socket.socket] = {}
        self._callers: list[socket.socket] = []
        self._polls = 0
        self._address = _ADDRESS.pack(raw[12:], self._listener.getsockname()[1], raw)
        return self._address

    def _proof(self, number: int, speaker: bytes) -> bytes:
        return hmac.digest(self._key, struct.pack("!I", number) + speaker, "sha256")

    def _card(self, link: _Link) -> bytes:
        return _CARD.pack(link.qp.qp_num, 0, self._proof(link.qp.qp_num, self._address), self._address)

    def _read_card(self, sock: socket.socket) -> tuple[int, bytes] | None:
        """Return the number of the queue pair on the card that has come, and who sent it; None: not yet. Raises ConnectionError."""
        try:
            card = sock.recv(_CARD.size, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        if card and len(card) < _CARD.size:
            return None
        if not card:
            raise ConnectionError("the peer has hung up")
        number, _, proof, speaker = _CARD.unpack(card)
        if not hmac.compare_digest(proof, self._proof(number, speaker)):
            raise ConnectionError("a stranger")
        return number, speaker

    def send(self, peer: bytes, message: bytes) -> bool:
        link = self._out.get(peer)
        if link is None:
            link = self._out[peer] = _Link(self, sends=True)
            host, port, _ = _ADDRESS.unpack(peer)
            try:
                sock = socket.create_connection((socket.inet_ntoa(host), port), timeout=5)
                sock.sendall(self._card(link))
            except OSError as error:
                raise PeerLost(peer, str(error)) from None
            sock.setblocking(False)
            self._dialling[peer] = sock
        if not link.ready or not link.free:
            self._reap(peer, link)
            if not link.ready or not link.free:
                return False
        link.send(message)
        return True

    def _reap(self, peer: bytes, link: _Link) -> None:
        if not link.ready:
            return
        for done in link.completions(peer):
            link.free.append(done.wr_id)

    def poll(self) -> Iterator[tuple[bytes, bytes]]:
        self._polls += 1
        if self._dialling or self._callers or self._polls % _POLLS_PER_CALL == 0:
            self._wire_up()
        for peer, link in self._into.items():
            for done in link.completions(peer):
                slot = done.wr_id & ~_RECEIVED
                yield peer, link.message(slot)
                link.receive(slot)

    def _wire_up(self) -> None:
        for peer, sock in list(self._dialling.items()):
            try:
                card = self._read_card(sock)
            except ConnectionError as error:
                raise PeerLost(peer, str(error)) from None
            if card:
                self._out[peer].connect(self, card[0], _ADDRESS.unpack(peer)[2])
                self._dialling.pop(peer).close()
        try:
            self._callers.append(self._listener.accept()[0])
            self._callers[-1].setblocking(False)
        except BlockingIOError:
            pass
        for sock in list(self._callers):
            try:
                card = self._read_card(sock)
            except ConnectionError:
                card = 0, b""
            if card is None:
                continue
            self._callers.remove(sock)
            number, peer = card
            if peer:
                link = self._into[peer] = _Link(self, sends=False)
                link.connect(self, number, _ADDRESS.unpack(peer)[2])
                sock.sendall(self._card(link))
            sock.close()

    def idle(self, seconds: float) -> None:
        if seconds < _NAP_S:  # what sleeping costs is not what is to be compared
            os.sched_yield()
            return
        select.select([self._listener, *self._callers, *self._dialling.values()], [], [], seconds)

    def flushed(self) -> bool:
        for peer, link in self._out.items():
            self._reap(peer, link)
        return all(len(link.free) == _SLOTS for link in self._out.values())

    def close(self) -> None:
        for link in (*self._out.values(), *self._into.values()):
            link.close()
        self._listener.close()
        for each in (self.channel, self.pd, self.context):
            each.close()


@hookimpl
def pympx_transport() -> TransportPlugin:
    return VerbsPythonTransport()
