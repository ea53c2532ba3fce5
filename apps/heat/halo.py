"""Exchange of a block's rim with its four neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apps.common.audit import Audit
from apps.common.volume import Volume
from apps.heat.decomposition import Decomposition
from pympx import MPI

Array = NDArray[np.float64]


class Halo:
    """Fills the halo of a (rows + 2) x (columns + 2) field from the neighbours' rims.

    Rows are contiguous and travel from and to the field itself; columns are not and travel through contiguous copies.
    """

    def __init__(self, comm: MPI.Intracomm, blocks: Decomposition, audit: Audit, volume: Volume) -> None:
        self._comm = comm
        self._blocks = blocks
        self._audit = audit
        self._volume = volume
        rows = blocks.shape[0]
        self._from_left, self._from_right = np.zeros(rows), np.zeros(rows)

    def exchange(self, field: Array) -> None:
        """Send the rim of `field` to the neighbours and receive theirs into its halo."""
        blocks = self._blocks
        to_left, to_right = field[1:-1, 1].copy(), field[1:-1, -2].copy()
        incoming = [
            (blocks.below, field[0, 1:-1]),
            (blocks.above, field[-1, 1:-1]),
            (blocks.left, self._from_left),
            (blocks.right, self._from_right),
        ]
        outgoing = [(blocks.below, field[1, 1:-1]), (blocks.above, field[-2, 1:-1]), (blocks.left, to_left), (blocks.right, to_right)]
        incoming = [(peer, data) for peer, data in incoming if peer != MPI.PROC_NULL]
        outgoing = [(peer, data) for peer, data in outgoing if peer != MPI.PROC_NULL]
        requests = [self._comm.Irecv(data, source=peer) for peer, data in incoming]
        requests += [self._comm.Isend(data, dest=peer) for peer, data in outgoing]
        for peer, data in outgoing:
            self._audit.sent(peer, data)
            self._volume.point_to_point(peer, data.nbytes)
        for request in requests:
            request.Wait()
        for peer, data in incoming:
            self._audit.received(peer, data)
        if blocks.left != MPI.PROC_NULL:
            field[1:-1, 0] = self._from_left
        if blocks.right != MPI.PROC_NULL:
            field[1:-1, -1] = self._from_right
