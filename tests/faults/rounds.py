"""Random traffic with content checks, in rounds, and a few collectives: what must arrive, complete and in order, come what may."""

from __future__ import annotations

from typing import Any

import numpy as np

from pympx import MPI
from pympx.bindings import runtime

LARGEST = 1 << 20
MESSAGES = 150  # per round
TAGS = 4


def counters(comm: Any) -> dict[str, float]:
    """Return what all ranks' sessions went through."""
    mine = [runtime.link_counters(peer) for peer in range(comm.size)]
    total = {key: comm.allreduce(sum(c[key] for c in mine)) for key in ("cuts", "reconnects", "replayed")}
    return {**total, "longest_stall_s": comm.allreduce(max(c["longest_stall_s"] for c in mine), MPI.MAX)}


class Round:
    """A round of messages that all ranks know from its seed. A message carries its number in the stream (source, tag), then its pattern."""

    def __init__(self, comm: Any, seed: list[int]) -> None:
        self.comm, self.rank = comm, comm.rank
        rng = np.random.default_rng(seed)
        self.block = np.frombuffer(rng.bytes(LARGEST + 65536), np.uint8)
        self.plan: list[tuple[int, int, int, int, int, str]] = []
        numbers: dict[tuple[int, int, int], int] = {}
        for _ in range(MESSAGES):
            source, tag = int(rng.integers(comm.size)), int(rng.integers(TAGS))
            dest = (source + int(rng.integers(1, comm.size))) % comm.size
            length = min(LARGEST, int(2.0 ** rng.uniform(0, 20.001)) - 1)
            number = numbers.get((source, dest, tag), 0)
            numbers[source, dest, tag] = number + 1
            self.plan.append((source, dest, tag, number, length, str(rng.choice(["Send", "Isend", "Issend", "Ssend"]))))
        self.expected = {(s, t, n): length for s, d, t, n, length, _ in self.plan if d == self.rank}
        self.due: dict[tuple[int, int], int] = {}
        self.choose = np.random.default_rng([*seed, self.rank])

    def message(self, source: int, tag: int, number: int, length: int) -> Any:
        at = (source * 7919 + tag * 104729 + number * 1299709 + length) % 65536
        head = np.array([source, tag, number, length], np.int64).view(np.uint8)
        return np.concatenate([head, self.block[at : at + length]])

    def receive(self, wait: bool) -> None:
        """Receive one message if there is one, or wait for one, in one of several ways."""
        status = MPI.Status()
        if not wait:
            if not self.comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
                return
        elif self.choose.random() < 0.5:
            self.comm.Probe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)
        else:
            buffer = np.empty(LARGEST + 32, np.uint8)
            self.comm.Recv(buffer, MPI.ANY_SOURCE, MPI.ANY_TAG, status)
            self.check(buffer[: status.count], status)
            return
        buffer = np.empty(status.count, np.uint8)
        self.comm.Recv(buffer, status.source, status.tag, status)
        self.check(buffer, status)

    def check(self, data: Any, status: Any) -> None:
        source, tag, number, length = (int(v) for v in data[:32].view(np.int64))
        what = f"rank {self.rank}: number {number} from {source}, tag {tag}, {length} bytes"
        assert (source, tag, length + 32) == (status.source, status.tag, len(data)), f"{what}: {status.source} {status.tag} {len(data)}"
        assert self.due.get((source, tag), 0) == number, f"{what}: number {self.due.get((source, tag), 0)} was due"
        self.due[source, tag] = number + 1
        assert self.expected.pop((source, tag, number)) == length, what
        assert (data == self.message(source, tag, number, length)).all(), f"{what}: damaged"

    def run(self) -> None:
        requests = []
        for source, dest, tag, number, length, how in self.plan:
            if source != self.rank:
                continue
            data = self.message(source, tag, number, length)
            if how == "Send" and length < 2048:  # surely buffered: it cannot wait for somebody who waits for us
                self.comm.Send(data, dest, tag)
            elif how == "Issend":
                requests.append(self.comm.Issend(data, dest, tag))
            elif how == "Ssend":
                request = self.comm.Issend(data, dest, tag)
                while not request.Test():
                    self.receive(wait=False)
            else:
                requests.append(self.comm.Isend(data, dest, tag))
            self.receive(wait=False)
        while self.expected:
            self.receive(wait=True)
        MPI.Request.Waitall(requests)


def collectives(comm: Any, turn: int) -> None:
    """A few collectives whose results are known."""
    size = comm.size
    for n in (1, 1000, 70000):
        total = np.empty(n)
        comm.Allreduce(np.arange(n, dtype=float) * (comm.rank + turn), total)
        assert (total == np.arange(n) * (size * (size - 1) // 2 + size * turn)).all()
    assert comm.alltoall([(comm.rank, peer, turn) for peer in range(size)]) == [(peer, comm.rank, turn) for peer in range(size)]
    assert comm.bcast(("word", turn) if comm.rank == turn % size else None, turn % size) == ("word", turn)
    comm.Barrier()
