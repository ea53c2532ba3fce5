"""Transport mpi: messages over another MPI by mpi4py, so that pympx runs wherever an MPI runs. All of it is Python (PythonTransport).

It implies that MPI joins the launcher (bootstrap mpi4py), which initializes and finalizes MPI unless the program does so itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any

from pympx.plugins import PeerLost, PythonTransport, TransportPlugin, hookimpl

_ADDRESS = struct.Struct("<I")  # rank in MPI's COMM_WORLD
_TAG = 0
_SENDS = 64  # that MPI holds of ours at a time; each keeps its bytes


class MpiTransport(PythonTransport):
    """Point-to-point messages on a duplicate of MPI's COMM_WORLD, so that they never meet the program's own."""

    name = "mpi"
    summary = "over another MPI, by mpi4py: under that MPI's own mpiexec"
    # Measured, see README.md.
    max_message = 64 << 10
    latency_s = 10e-6
    bandwidth_Bps = 1e9

    def __init__(self) -> None:
        self._mpi: Any = None
        self._comm: Any = None
        self._sends: deque[tuple[Any, bytes]] = deque()  # requests in their order, with the bytes that MPI still reads
        self._receives: deque[tuple[bytes, bytearray, Any]] = deque()  # matched, in the order of matching

    def probe(self) -> str | None:
        """Return why mpi cannot serve: there is no mpi4py. Whether its MPI can start shows when it is opened."""
        if importlib.util.find_spec("mpi4py") is None:
            return "mpi4py is not installed: pip install mpi4py, and an MPI"
        return None

    def open(self, job_key: bytes) -> bytes:
        """Duplicate COMM_WORLD: collective over the job. Raises RuntimeError when MPI cannot be used from several threads."""
        mpi = self._mpi = importlib.import_module("mpi4py.MPI")
        if not mpi.Is_initialized() or mpi.Is_finalized():
            raise RuntimeError("MPI is not initialized, or finalized already: leave both to mpi4py")
        if mpi.Query_thread() < mpi.THREAD_SERIALIZED:
            raise RuntimeError("MPI was initialized for one thread only: set mpi4py.rc.thread_level to 'serialized' or 'multiple'")
        self._comm = mpi.COMM_WORLD.Dup()
        self._comm.Set_errhandler(mpi.ERRORS_RETURN)
        return _ADDRESS.pack(self._comm.Get_rank())

    def send(self, peer: bytes, message: bytes) -> bool:
        self._reap()
        if len(self._sends) >= _SENDS:
            return False
        (rank,) = _ADDRESS.unpack(peer)
        try:
            self._sends.append((self._comm.Isend([message, self._mpi.BYTE], rank, _TAG), message))
        except self._mpi.Exception as error:
            raise PeerLost(peer, str(error)) from None
        return True

    def poll(self) -> Iterator[tuple[bytes, bytearray]]:
        self._reap()
        mpi, receives = self._mpi, self._receives
        status = mpi.Status()
        # MPI matches in the sender's order; what was matched may still be under way, so it is handed on in that order too.
        while len(receives) < _SENDS:
            found = self._comm.Improbe(mpi.ANY_SOURCE, _TAG, status)
            if found is None:
                break
            buffer = bytearray(status.Get_count(mpi.BYTE))
            receives.append((_ADDRESS.pack(status.Get_source()), buffer, found.Irecv([buffer, mpi.BYTE])))
        while receives and receives[0][2].Test():
            peer, buffer, _ = receives.popleft()
            yield peer, buffer

    def flushed(self) -> bool:
        self._reap()
        return not self._sends

    def close(self) -> None:
        """Forget the communicator: freeing it is collective, and the job's end may not be one."""
        self._comm = None

    def _reap(self) -> None:
        sends = self._sends
        while sends and sends[0][0].Test():
            sends.popleft()


@hookimpl
def pympx_transport() -> TransportPlugin:
    """Return the control path of transport mpi."""
    return MpiTransport()
