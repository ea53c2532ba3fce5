"""One rank of two: transfers of 1 MiB and of 8000 bytes, and how many copies of more than 4 KiB each kind took on this rank, as JSON.

Needs copies.so preloaded.
"""

from __future__ import annotations

import ctypes
import json

import numpy as np

from pympx import MPI

TIMES = 50
counter = ctypes.CDLL(None)
counter.copies_end.restype = ctypes.c_ulong
comm = MPI.COMM_WORLD


def copies(length: int) -> int:
    """Send `length` bytes there and back so often; return the copies of more than 4 KiB meanwhile."""
    sent, got = np.full(length, comm.rank, np.uint8), np.empty(length, np.uint8)

    def there_and_back() -> None:
        if comm.rank == 0:
            comm.Send(sent, 1)
            comm.Recv(got, 1)
        else:
            comm.Recv(got, 0)
            comm.Send(sent, 0)

    there_and_back()
    comm.Barrier()
    counter.copies_begin()
    for _ in range(TIMES):
        there_and_back()
    found = int(counter.copies_end())
    assert (got == 1 - comm.rank).all()
    return found


counts = comm.gather({"rank": comm.rank, "1 MiB": copies(1 << 20), "8000 bytes": copies(8000)})
if comm.rank == 0:
    print(json.dumps({"times": TIMES, "ranks": counts}))
