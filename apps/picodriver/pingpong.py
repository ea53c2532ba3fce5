"""One of two ranks: latency and bandwidth of Send and Recv. Rank 0 prints JSON: microseconds of half a round trip, megabytes per second."""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from pympx import MPI

BATCHES = 8


def half_round_trip(comm: MPI.Intracomm, length: int, rounds: int) -> float:
    """Return half the time of a round trip of `length` bytes, in seconds: the mean of the best of some batches."""
    out, back = np.zeros(length, np.uint8), np.zeros(length, np.uint8)
    peer = 1 - comm.rank
    times = []
    for _ in range(BATCHES):
        comm.Barrier()
        begun = time.perf_counter()
        for _ in range(rounds // BATCHES):
            if comm.rank == 0:
                comm.Send(out, peer)
                comm.Recv(back, peer)
            else:
                comm.Recv(back, peer)
                comm.Send(out, peer)
        times.append((time.perf_counter() - begun) / (2 * (rounds // BATCHES)))
    return min(times)


def bandwidth(comm: MPI.Intracomm, length: int, times: int) -> float:
    """Return bytes per second of `times` messages of `length` bytes, 8 at a time, from rank 1 to rank 0: the best of some batches."""
    buffers = [np.zeros(length, np.uint8) for _ in range(8)]
    start = comm.Irecv if comm.rank == 0 else comm.Isend
    rates = []
    for _ in range(max(2, times // (2 * len(buffers)))):
        comm.Barrier()
        begun = time.perf_counter()
        for _ in range(2):
            MPI.Request.Waitall([start(buffer, 1 - comm.rank) for buffer in buffers])
        rates.append(2 * len(buffers) * length / (time.perf_counter() - begun))
    return max(rates)


def main(rounds: int, comm: MPI.Intracomm = MPI.COMM_WORLD) -> None:
    """Measure, and print what was measured."""
    short = half_round_trip(comm, 8, rounds)
    long = half_round_trip(comm, 64 << 10, max(BATCHES, rounds // 10))
    rate = bandwidth(comm, 1 << 20, rounds // 20)
    if comm.rank == 0:
        print(json.dumps({"us_8": short * 1e6, "us_64K": long * 1e6, "MBps_1M": rate / 1e6}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
