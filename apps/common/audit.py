"""Proof that every message arrived as it was sent, bit by bit.

Iterative methods forgive: a wrong halo or a wrong search direction is worked off by later iterations, and the answer still
verifies. So the apps also audit their messages. Point-to-point and personalised data: sender and receiver each keep a running
CRC-32 per peer and compare at the end (a CRC-32 finds every single flipped bit, and position matters). Replicated data: all
ranks must hold the same CRC. Sums: each vector is reduced together with its negative; rounding is symmetric, so the two results
are exact opposites unless something changed on the way, whatever rank it happened on.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.common.volume import Volume
from pympx import MPI


class Audit:
    """One rank's books about its messages on one communicator."""

    def __init__(self, comm: MPI.Intracomm, volume: Volume) -> None:
        self._comm = comm
        self._volume = volume
        self._sent: dict[int, int] = {}
        self._received: dict[int, int] = {}
        self._replicated = 0
        self._faults: list[str] = []

    def sent(self, peer: int, data: NDArray[Any]) -> None:
        """Book contiguous `data` as sent to `peer`, in the order of sending."""
        self._sent[peer] = zlib.crc32(data.data, self._sent.get(peer, 0))

    def received(self, peer: int, data: NDArray[Any]) -> None:
        """Book contiguous `data` as received from `peer`, in the order of receiving."""
        self._received[peer] = zlib.crc32(data.data, self._received.get(peer, 0))

    def replicated(self, data: NDArray[Any]) -> None:
        """Book contiguous `data` that every rank must hold with the same bits."""
        self._replicated = zlib.crc32(data.data, self._replicated)

    def fault(self, text: str) -> None:
        """Book something that this rank saw and that cannot be true."""
        self._faults.append(text)

    def allreduce_sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sum a one-dimensional array of signed numbers over all ranks, together with its negative; a mismatch is a fault."""
        both = np.concatenate((values, -values))
        total = np.empty_like(both)
        self._comm.Allreduce(both, total, op=MPI.SUM)
        self._volume.allreduce(both.nbytes)
        result = total[: values.size]
        if not np.array_equal(result, -total[values.size :]):
            self.fault("an Allreduce gave sums whose negatives do not match")
        return result

    def findings(self) -> list[str]:
        """Collective: compare the books of all ranks; return what is wrong, the same list everywhere, empty when all is well."""
        books = self._comm.allgather((self._sent, self._received, self._replicated, self._faults))
        found: list[str] = []
        for rank, (sent, _, replicated, faults) in enumerate(books):
            found += [f"rank {rank}: {fault}" for fault in faults]
            if replicated != books[0][2]:
                found.append(f"rank {rank} holds other bits than rank 0 in data that all ranks share")
            for peer, (_, received, _, _) in enumerate(books):
                if sent.get(peer) != received.get(rank):
                    found.append(f"rank {peer} received other bits from rank {rank} than were sent")
        return found
