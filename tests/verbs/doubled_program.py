"""One rank of two: in the midst of traffic rank 0's card sends a message once more, without its bytes, as soft-RoCE may by mistake."""

from __future__ import annotations

import json
import socket
from typing import Any

import numpy as np
from pympx.transports.verbs.devices import pyverbs
from rounds import counters

from pympx import MPI, runtime

RESUME = 12  # the immediate data of each link's first message begins with it
TURNS = 5


def send_once_more() -> None:
    """Post it to the queue pair that is connected."""
    enums, wr = pyverbs("enums"), pyverbs("wr")
    plugin: Any = next(plugin for plugin in runtime._plugins if plugin.name == "verbs")
    connected = [made for made in plugin._held if getattr(made, "qp_state", None) == enums.IBV_QPS_RTS]
    assert len(connected) == 1
    nothing = [wr.SGE(0, 0, 0)]
    request = wr.SendWR(opcode=enums.IBV_WR_SEND_WITH_IMM, num_sge=1, imm_data=socket.htonl(RESUME), send_flags=0, sg=nothing)
    connected[0].post_send(request)


def main() -> None:
    """Run; an assertion ends the job."""
    comm = MPI.COMM_WORLD
    peer = 1 - comm.rank
    for turn in range(TURNS):
        for size in (1, 500, 3000, 100_000):
            got = np.zeros(size, np.uint8)
            comm.Sendrecv(np.full(size, turn + comm.rank, np.uint8), peer, turn, got, peer, turn)
            assert (got == turn + peer).all()
        if comm.rank == 0:
            send_once_more()
    comm.Barrier()
    assert not comm.Iprobe()
    total = counters(comm)
    if comm.rank == 0:
        print(json.dumps(total))


main()
