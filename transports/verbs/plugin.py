"""Control path of verbs: finds the device, and makes its objects with pyverbs; the fast path posts and polls on the same objects.

PYMPX_VERBS_DEVICE         device, or device:port (``mlx5_0``, ``rxe0:1``). Default: the best port that is active.
PYMPX_VERBS_GID            index of the port's GID. Default: on Ethernet RoCE v2 over IPv4, on InfiniBand 0.
PYMPX_VERBS_MTU            bytes in a packet: 256, 512, 1024, 2048, 4096. Default: the port's.
PYMPX_VERBS_SEND_DEPTH     work requests that a queue pair holds.
PYMPX_VERBS_RECEIVE_DEPTH  messages that a peer may send ahead.
PYMPX_VERBS_SLOT           bytes of a message that is copied through registered memory.
PYMPX_VERBS_INLINE         bytes that go inside a work request.
PYMPX_VERBS_RENDEZVOUS     from this size on messages go by RDMA READ, without a copy.
PYMPX_VERBS_TIMEOUT, PYMPX_VERBS_RETRIES  of a packet: 4.096 us * 2^TIMEOUT, so often again; then the link is broken.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
from pathlib import Path
from typing import Any

from pympx.plugins.api import NativeTransport, hookimpl, setting

from . import devices
from .devices import pyverbs

_LIBRARY = Path(__file__).with_name("_fastpath.so")
_MTUS = {256: 1, 512: 2, 1024: 3, 2048: 4, 4096: 5}
#: queue pairs that are made at the start, and the most that are made at once later
_FIRST_BATCH, _LARGEST_BATCH = 8, 256
_WIDTHS = {1: 1, 2: 4, 4: 8, 8: 12, 16: 2}
_LANE_GBITS = {1: 2.5, 2: 5, 4: 10, 8: 10, 16: 14, 32: 25, 64: 50, 128: 100}
_OBJECTS = ("context", "protection_domain", "channel", "completion_queue", "queue_pairs")
_MAX_SGE = 8
_MAX_READS = 16
#: locked memory without which nothing useful can be registered
_LEAST_LOCKED = 4 << 20


class VerbsTransport(NativeTransport):
    """RDMA verbs: reliable connections, messages through registered memory, large ones by RDMA READ between users' buffers."""

    pairwise = True
    advice = (
        "run on soft-RoCE only so far. On a site with cards first look at ibv_devinfo (is the port ACTIVE?) and ulimit -l (unlimited?), "
        "let ib_send_lat and ib_read_bw run between two hosts on the device, GID and MTU that pympx takes (settings), and compare with "
        "apps/picodriver; then run a program whose result you know with PYMPX_TRANSPORT=verbs PYMPX_REPORT=1, which shows who talked over "
        "what and how many registrations were kept"
    )

    def __init__(self) -> None:
        super().__init__("verbs", "RDMA verbs (InfiniBand, RoCE), between hosts or on one", _LIBRARY)
        self._made = 0
        self._held: list[Any] = []  # pyverbs' objects, in the order in which they were made
        self._config: dict[str, Any] = {}
        self._depths = (0, 0)
        self._inline = self._sge = 0
        self._max_cqe = 0
        self._context: Any = None
        self._pd: Any = None
        self._channel: Any = None

    def probe(self) -> str | None:
        """Return why verbs cannot serve: not built, no pyverbs, no device, a port that is down, a limit of locked memory."""
        if super().probe() is not None:
            return "pympx was built without libibverbs-dev"
        try:
            port = devices.choose(setting("PYMPX_VERBS_DEVICE"))
            devices.gid_index(port)
            pyverbs("device")
            importlib.import_module("pympx.transports.verbs.bridge")
        except (LookupError, ImportError) as error:
            return str(error)
        locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        if locked not in (resource.RLIM_INFINITY, -1) and locked < _LEAST_LOCKED and os.geteuid() != 0:
            return f"a process may lock {locked >> 10} KiB of memory here, verbs needs {_LEAST_LOCKED >> 10} at least: ulimit -l unlimited"
        return None

    def prepare(self, job_key: bytes) -> None:
        """Open the device. Raises OSError with its reason."""
        fork = pyverbs("fork")
        # where the kernel gives children copies of pinned pages (Linux 5.12), fork_init would only take the pages from them
        if fork.is_fork_initialized() != pyverbs("enums").IBV_FORK_UNNEEDED:
            fork.fork_init()
        port = devices.choose(setting("PYMPX_VERBS_DEVICE"))
        try:
            self._open(port)
        except pyverbs("pyverbs_error").PyverbsError as error:
            self.close()
            raise OSError(f"{port.name}: {error}") from error
        os.register_at_fork(after_in_child=self._leak)

    def _open(self, port: devices.Port) -> None:
        from . import bridge

        self._context = self._hold(pyverbs("device").Context(name=port.device))
        self._pd = self._hold(pyverbs("pd").PD(self._context))
        self._channel = self._hold(pyverbs("cq").CompChannel(self._context))
        device, found = self._context.query_device(), self._context.query_port(port.number)
        self._max_cqe, self._sge = device.max_cqe, min(_MAX_SGE, device.max_sge)
        self._depths = (
            min(setting("PYMPX_VERBS_SEND_DEPTH"), device.max_qp_wr),
            min(setting("PYMPX_VERBS_RECEIVE_DEPTH"), device.max_qp_wr),
        )
        index = setting("PYMPX_VERBS_GID")
        index = devices.gid_index(port) if index is None else index
        gid = self._context.query_gid(port.number, index).gid
        mtu = setting("PYMPX_VERBS_MTU")
        lane = _LANE_GBITS.get(found.active_speed, 2.5) * _WIDTHS.get(found.active_width, 1)
        batch = self._make_batch(_FIRST_BATCH)  # also tells how much may be inline
        self._config = {
            "context": bridge.context_address(self._context),
            "protection_domain": bridge.pd_address(self._pd, self._context),
            "channel": bridge.channel_address(self._channel, self._context),
            **batch,
            "device": f"{port.device}:{port.number}",
            "port": port.number,
            "gid_index": index,
            "gid": list(bytes.fromhex(gid.replace(":", ""))),
            "lid": found.lid,
            "link_layer": found.link_layer,
            "mtu": min(_MTUS[mtu], found.active_mtu) if mtu else found.active_mtu,
            "send_depth": self._depths[0],
            "receive_depth": self._depths[1],
            "slot_bytes": setting("PYMPX_VERBS_SLOT"),
            "inline_bytes": self._inline,
            "max_sge": self._sge,
            "max_reads": max(1, min(_MAX_READS, device.max_qp_rd_atom, device.max_qp_init_rd_atom)),
            "max_message": min(found.max_msg_sz, 1 << 30),
            "atomics": int(device.atomic_caps != 0),
            "timeout": setting("PYMPX_VERBS_TIMEOUT"),
            "retries": setting("PYMPX_VERBS_RETRIES"),
            "bandwidth": int(lane * 1e9 / 8),
            "rendezvous_from": setting("PYMPX_VERBS_RENDEZVOUS"),
            "latency_ns": 10_000 if port.software else 1_500,
        }

    def _hold(self, made: Any) -> Any:
        self._held.append(made)
        return made

    def _make_batch(self, wanted: int) -> dict[str, Any]:
        """Make a completion queue and up to `wanted` queue pairs that it has room for; return their addresses. Raises PyverbsError."""
        from . import bridge

        count = max(1, min(wanted, self._max_cqe // sum(self._depths)))
        cq = self._hold(pyverbs("cq").CQ(self._context, min(count * sum(self._depths), self._max_cqe), None, self._channel, 0))
        queue_pairs = [self._hold(self._make_queue_pair(cq)) for _ in range(count)]
        self._made += count
        return {"completion_queue": bridge.cq_address(cq), "queue_pairs": [bridge.qp_address(qp) for qp in queue_pairs]}

    def _make_queue_pair(self, cq: Any) -> Any:
        qp = pyverbs("qp")
        wanted = self._inline if self._made else setting("PYMPX_VERBS_INLINE")
        for inline in [wanted, *(less for less in (64, 0) if less < wanted)]:
            cap = qp.QPCap(
                max_send_wr=self._depths[0], max_recv_wr=self._depths[1], max_send_sge=self._sge, max_recv_sge=1, max_inline_data=inline
            )
            try:
                made = qp.QP(self._pd, qp.QPInitAttr(qp_type=pyverbs("enums").IBV_QPT_RC, scq=cq, rcq=cq, cap=cap, sq_sig_all=0))
            except pyverbs("pyverbs_error").PyverbsRDMAError:
                if not inline:
                    raise
                continue
            self._inline = inline
            return made
        raise AssertionError("not reached")

    def config(self) -> dict[str, Any]:
        return self._config

    def settings(self) -> dict[str, Any]:
        return {key: value for key, value in self._config.items() if key not in _OBJECTS and key != "gid"}

    def supply(self) -> dict[str, Any]:
        """Make more queue pairs, twice as many as before, up to a limit; or say why there are none."""
        try:
            return self._make_batch(min(max(_FIRST_BATCH, self._made), _LARGEST_BATCH))
        except pyverbs("pyverbs_error").PyverbsError as error:
            return {"failed": f"verbs: {self._config['device']}: no more queue pairs: {error}".replace('"', "'").replace("\\", "/")}

    def close(self) -> None:
        """Close pyverbs' objects, the last one first."""
        while self._held:
            self._held.pop().close()

    def _leak(self) -> None:
        """In a forked child: the objects are the parent's. Their descriptors are closed here, so nothing may ever be done with them."""
        for made in self._held:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
        self._held = []


@hookimpl
def pympx_transport() -> VerbsTransport:
    """Return the control path of verbs."""
    return VerbsTransport()
