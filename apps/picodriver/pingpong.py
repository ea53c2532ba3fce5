"""One of two ranks: latency and bandwidth of Send and Recv. Rank 0 prints JSON: microseconds of half a round trip, megabytes per second."""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np

from pympx import MPI

WARM_UP = 20


def half_round_trips(comm: MPI.Intracomm, length: int, rounds: int) -> list[float]:
    """Return half the time of each round trip of `length` bytes, in seconds."""
    out, back = np.zeros(length, np.uint8), np.zeros(length, np.uint8)
    peer = 1 - comm.rank
    halves = []
    comm.Barrier()
    for turn in range(rounds + WARM_UP):
        begun = time.perf_counter()
        if comm.rank == 0:
            comm.Send(out, peer)
            comm.Recv(back, peer)
        else:
            comm.Recv(back, peer)
            comm.Send(out, peer)
        if turn >= WARM_UP:
            halves.append((time.perf_counter() - begun) / 2)
    return halves


def bandwidth(comm: MPI.Intracomm, length: int, times: int) -> float:
    """Return bytes per second of `times` messages of `length` bytes, 8 at a time, from rank 1 to rank 0."""
    buffers = [np.zeros(length, np.uint8) for _ in range(8)]
    start = comm.Irecv if comm.rank == 0 else comm.Isend
    MPI.Request.Waitall([start(buffer, 1 - comm.rank) for buffer in buffers])
    comm.Barrier()
    begun = time.perf_counter()
    for _ in range(times // len(buffers)):
        MPI.Request.Waitall([start(buffer, 1 - comm.rank) for buffer in buffers])
    comm.Barrier()
    return length * (times // len(buffers) * len(buffers)) / (time.perf_counter() - begun)


def main(rounds: int, comm: MPI.Intracomm = MPI.COMM_WORLD) -> None:
    """Measure, and print what was measured."""
    short = half_round_trips(comm, 8, rounds)
    long = half_round_trips(comm, 64 << 10, rounds // 10)
    rate = bandwidth(comm, 1 << 20, max(8, rounds // 20))
    if comm.rank == 0:
        found = {"us_8": statistics.median(short) * 1e6, "us_64K": statistics.median(long) * 1e6, "MBps_1M": rate / 1e6}
        print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
