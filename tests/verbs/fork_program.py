"""One rank of two: children that write into what the parent transfers, before it, during it and after it, change nothing for the parent."""

from __future__ import annotations

import os

import numpy as np

from pympx import MPI

LENGTH = 1 << 20
comm = MPI.COMM_WORLD
peer = 1 - comm.rank
sent, got = np.empty(LENGTH, np.uint8), np.empty(LENGTH, np.uint8)
for turn in range(10):
    sent[:] = 10 * turn + comm.rank
    request = comm.Irecv(got, peer)
    child = os.fork()
    if not child:
        sent[:] = 255  # its own copies
        got[:] = 255
        os._exit(0 if (sent == 255).all() else 1)
    sent[: LENGTH // 2] += 100  # copied for the parent, if the kernel gave the child the pages that the card has
    comm.Send(sent, peer)
    request.Wait()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    right = np.full(LENGTH, 10 * turn + peer, np.uint8)
    right[: LENGTH // 2] += 100
    assert (got == right).all(), f"turn {turn}"
