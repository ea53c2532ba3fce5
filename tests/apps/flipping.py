"""Runs a mini-app on a communicator that flips one bit of one received message.

    flipping.py APP CALL OCCURRENCE RANK BIT [the app's own arguments]

CALL is the call whose result is damaged on RANK at its OCCURRENCE-th use (1 is the first, 0 never). "Contribution" damages what
RANK gives to an Allreduce instead, as when a message is damaged before its content is added up, so that every rank gets the same
wrong sum.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from pympx import MPI

sys.path.append(str(Path(__file__).resolve().parents[2]))

from apps.heat import heat
from apps.npb import npb


class FlippingRequest:
    """A receive whose data is damaged when it completes."""

    def __init__(self, comm: FlippingComm, request: Any, data: Any) -> None:
        self._comm, self._request, self._data = comm, request, data

    def Wait(self) -> None:  # noqa: N802  (mpi4py's name)
        self._request.Wait()
        self._comm.flip(self._data)


class FlippingComm:
    """Everything of a communicator, with one flipped bit."""

    def __init__(self, comm: MPI.Intracomm, call: str, occurrence: int, rank: int, bit: int) -> None:
        self._comm, self._call, self._left, self._bit = comm, call, occurrence, bit
        self._here = comm.Get_rank() == rank

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    def _is_due(self, call: str) -> bool:
        if not self._here or call != self._call:
            return False
        self._left -= 1
        return self._left == 0

    def flip(self, data: Any, element: int = 0) -> None:
        """Flip the bit in `element` of `data`."""
        octets = data[element : element + 1].view(np.uint8)
        octets[self._bit // 8] ^= np.uint8(1 << (self._bit % 8))
        print(f"flipped bit {self._bit}", flush=True)

    def Irecv(self, data: Any, source: int) -> Any:  # noqa: N802
        request = self._comm.Irecv(data, source=source)
        return FlippingRequest(self, request, data) if self._is_due("Irecv") else request

    def Allreduce(self, data: Any, result: Any, op: MPI.Op) -> None:  # noqa: N802
        if self._is_due("Contribution"):
            data = data.copy()
            self.flip(data)
        self._comm.Allreduce(data, result, op=op)
        if self._is_due("Allreduce"):
            self.flip(result)

    def Allgatherv(self, data: Any, result: list[Any]) -> None:  # noqa: N802
        self._comm.Allgatherv(data, result)
        if self._is_due("Allgatherv"):
            self.flip(result[0], result[2][(self._comm.Get_rank() + 1) % self._comm.Get_size()])

    def Alltoall(self, data: Any, result: Any) -> None:  # noqa: N802
        self._comm.Alltoall(data, result)
        if self._is_due("Alltoall"):
            self.flip(result[(self._comm.Get_rank() + 1) % self._comm.Get_size()])

    def Alltoallv(self, data: list[Any], result: list[Any]) -> None:  # noqa: N802
        self._comm.Alltoallv(data, result)
        if self._is_due("Alltoallv"):
            self.flip(result[0], result[2][(self._comm.Get_rank() + 1) % self._comm.Get_size()])


def main() -> int:
    """Run the app named on the command line."""
    app, call, occurrence, rank, bit, *rest = sys.argv[1:]
    comm: Any = FlippingComm(MPI.COMM_WORLD, call, int(occurrence), int(rank), int(bit))
    return heat.main(rest, comm) if app == "heat" else npb.main(rest, comm)


if __name__ == "__main__":
    sys.exit(main())
