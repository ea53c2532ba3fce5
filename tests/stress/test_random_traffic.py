"""10^5 messages (PYMPX_TEST_LONG=1: 10^6) between 4 ranks, complete and in order by content.

Everything follows from one seed: the plan lists, per rank, whom it sends what and how, and how it receives. Each message carries
source, communicator, tag, its number in the stream (source, destination, communicator, tag) and its length; what follows is a
piece of a random block that both sides made from the seed, at a place that depends on all of these. The receiver compares all
bytes, and the number with the one that is due in that stream: nothing is lost, doubled, overtaken or damaged unnoticed.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from typing import Any

import numpy as np
import pytest

from pympx import MPI

RANKS = 4
LARGEST = 1 << 20
HEAD = 24  # source, communicator, tag, number, length: 2 + 2 + 4 + 8 + 8 bytes
BLOCK = LARGEST + 65536
TAGS = 5
WINDOW = 48  # operations that a rank has open at most
TOTAL = 1_000_000 if os.environ.get("PYMPX_TEST_LONG") == "1" else 100_000


class Plan:
    """What all ranks agree on: per rank the messages that it sends (arrays by field), and random choices for receiving."""

    def __init__(self, seed: int, total: int) -> None:
        rng = np.random.default_rng(seed)
        self.block = np.frombuffer(rng.bytes(BLOCK), np.uint8)
        self.source = rng.integers(0, RANKS, total).astype(np.int16)
        self.dest = ((self.source + rng.integers(1, RANKS, total)) % RANKS).astype(np.int16)
        self.comm = rng.integers(0, 2, total).astype(np.int16)
        self.tag = rng.integers(0, TAGS, total).astype(np.int32)
        # log-uniform from 0 to LARGEST: 2^u - 1 with u in [0, 20]
        self.length = np.minimum(LARGEST, (2.0 ** rng.uniform(0, 20.0001, total) - 1)).astype(np.int64)
        self.mode = rng.choice(["Send", "Isend", "Issend"], total, p=[0.35, 0.55, 0.10])
        self.number = np.zeros(total, np.int64)
        for source in range(RANKS):
            for dest in range(RANKS):
                for comm in range(2):
                    for tag in range(TAGS):
                        stream = (self.source == source) & (self.dest == dest) & (self.comm == comm) & (self.tag == tag)
                        self.number[stream] = np.arange(np.count_nonzero(stream))

    def place(self, source: int, comm: int, tag: int, number: int) -> int:
        return (source * 7919 + comm * 104729 + tag * 1299709 + number * 15485863) % (BLOCK - LARGEST)


class Rank:
    """One rank's part: sends and receives in random order, up to WINDOW of them open."""

    def __init__(self, comms: list[Any], plan: Plan, seed: int) -> None:
        self.comms, self.plan, self.rank = comms, plan, comms[0].rank
        self.rng = np.random.default_rng([seed, self.rank])
        self.sends = deque(np.flatnonzero(plan.source == self.rank).tolist())
        mine = plan.dest == self.rank
        self.expected = [int(np.count_nonzero(mine & (plan.comm == c))) for c in range(2)]
        self.posted = [0, 0]
        self.due: dict[tuple[int, int, int], int] = {}
        self.lengths = {
            (int(s), int(c), int(t), int(n)): int(k)
            for s, c, t, n, k in zip(
                plan.source[mine], plan.comm[mine], plan.tag[mine], plan.number[mine], plan.length[mine], strict=True
            )
        }
        self.open_sends: list[Any] = []
        self.open_receives: list[tuple[Any, Any, int]] = []  # request, buffer, communicator: with wildcards, in the order of posting
        self.buffers = [np.empty(LARGEST + HEAD, np.uint8) for _ in range(WINDOW)]
        self.counts = {"sent": 0, "received": 0, "received_bytes": 0, "probed": 0, "posted": 0}

    def message(self, i: int) -> Any:
        plan = self.plan
        source, comm, tag, number, length = self.rank, int(plan.comm[i]), int(plan.tag[i]), int(plan.number[i]), int(plan.length[i])
        data = np.empty(HEAD + length, np.uint8)
        data[:2].view(np.int16)[0] = source
        data[2:4].view(np.int16)[0] = comm
        data[4:8].view(np.int32)[0] = tag
        data[8:24].view(np.int64)[:] = (number, length)
        at = plan.place(source, comm, tag, number)
        data[HEAD:] = plan.block[at : at + length]
        return data

    def check(self, data: Any, status: Any, comm: int) -> None:
        n = status.count
        assert n >= HEAD, f"rank {self.rank}: a message of {n} bytes"
        source, number, length = int(data[:2].view(np.int16)[0]), int(data[8:16].view(np.int64)[0]), int(data[16:24].view(np.int64)[0])
        tag = int(data[4:8].view(np.int32)[0])
        what = f"rank {self.rank}: number {number} from {source}, communicator {comm}, tag {tag}, {length} bytes"
        assert (source, tag, HEAD + length) == (status.source, status.tag, n), f"{what}: status {status.source} {status.tag} {n}"
        assert int(data[2:4].view(np.int16)[0]) == comm, what
        stream = source, comm, tag
        assert number == self.due.get(stream, 0), f"{what}: number {self.due.get(stream, 0)} was due"
        self.due[stream] = number + 1
        assert self.lengths.pop((source, comm, tag, number)) == length, what
        at = self.plan.place(source, comm, tag, number)
        assert memoryview(data[HEAD:n]) == self.plan.block[at : at + length].data, f"{what}: damaged"
        self.counts["received"] += 1
        self.counts["received_bytes"] += length

    def send(self) -> None:
        i = self.sends.popleft()
        mode, dest, tag = str(self.plan.mode[i]), int(self.plan.dest[i]), int(self.plan.tag[i])
        comm = self.comms[self.plan.comm[i]]
        data = self.message(i)
        # a blocking send may wait for its receiver, who may wait for us: only what is surely buffered is sent that way
        if mode == "Send" and len(data) < 2048 and self.surely_received():
            comm.Send(data, dest, tag)
        else:
            self.open_sends.append(comm.Isend(data, dest, tag) if mode != "Issend" else comm.Issend(data, dest, tag))
        self.counts["sent"] += 1

    def surely_received(self) -> bool:
        """Small messages wait at the receiver within its credit of 4 MiB; every rank keeps receiving between its own operations."""
        return self.rng.random() < 0.9

    def left(self, comm: int) -> int:
        return self.expected[comm] - self.posted[comm]

    def receive(self) -> None:
        """Receive one message in one of the ways, only where it cannot take what another open receive must get first."""
        comm = int(self.rng.integers(2))
        if not self.left(comm):
            comm = 1 - comm
        if not self.left(comm):
            return
        if self.rng.random() < 0.4:  # look, then receive just that
            if any(c == comm for _, _, c in self.open_receives):
                return  # a wildcard is open: what we see might be its
            status = MPI.Status()
            tag = int(self.rng.integers(-1, TAGS))
            source = int(self.rng.choice([MPI.ANY_SOURCE, *(r for r in range(RANKS) if r != self.rank)]))
            if not self.comms[comm].Iprobe(source, MPI.ANY_TAG if tag < 0 else tag, status):
                return
            self.posted[comm] += 1
            self.counts["probed"] += 1
            data = np.empty(status.count, np.uint8)
            found = MPI.Status()
            self.comms[comm].Recv(data, status.source, status.tag, found)
            assert (found.source, found.tag, found.count) == (status.source, status.tag, status.count)
            self.check(data, found, comm)
        elif self.buffers:
            buffer = self.buffers.pop()
            request = self.comms[comm].Irecv(buffer, MPI.ANY_SOURCE, MPI.ANY_TAG)
            self.posted[comm] += 1
            self.counts["posted"] += 1
            self.open_receives.append((request, buffer, comm))

    def complete(self, wait: bool) -> None:
        """Complete what is done; receives in the order of posting per communicator, so that streams are checked in order."""
        blocked = set()
        still = []
        for number, (request, buffer, comm) in enumerate(self.open_receives):
            status = MPI.Status()
            if comm in blocked:
                still.append((request, buffer, comm))
            elif wait and number == 0:
                request.Wait(status)
                self.check(buffer, status, comm)
                self.buffers.append(buffer)
            elif request.Test(status):
                self.check(buffer, status, comm)
                self.buffers.append(buffer)
            else:
                blocked.add(comm)
                still.append((request, buffer, comm))
        self.open_receives = still
        if self.open_sends:
            if wait and not self.open_receives:
                MPI.Request.Waitsome(self.open_sends)
            else:
                MPI.Request.Testsome(self.open_sends)
            self.open_sends = [r for r in self.open_sends if r]

    def run(self) -> None:
        turn = 0
        while self.sends or self.left(0) or self.left(1) or self.open_sends or self.open_receives:
            turn += 1
            if self.sends and len(self.open_sends) < WINDOW and self.rng.random() < 0.5:
                self.send()
            else:
                self.receive()
            if turn % 8 == 0 or not self.sends:
                # waiting is safe only when all that we owe is on its way
                self.complete(wait=not self.sends and not self.left(0) and not self.left(1))
            elif len(self.open_sends) >= WINDOW or not self.buffers:
                self.complete(wait=False)
        assert not self.lengths, f"rank {self.rank}: {len(self.lengths)} messages never came"


@pytest.mark.ranks(RANKS, timeout=7200 if TOTAL > 100_000 else 400)
def test_every_message_arrives_in_order(comm: Any, record: Any) -> None:
    seed = comm.bcast(int(os.environ.get("PYMPX_TEST_SEED", secrets.randbits(48))))
    print(f"seed: PYMPX_TEST_SEED={seed}")
    comms = [comm, comm.Dup()]
    plan = Plan(seed, TOTAL)
    assert plan.length.max() <= LARGEST and plan.length.sum() <= 20e9 * TOTAL / 100_000
    mine = Rank(comms, plan, seed)
    comm.Barrier()
    start = time.perf_counter()
    mine.run()
    comm.Barrier()
    seconds = time.perf_counter() - start
    counts = {key: comm.allreduce(value) for key, value in mine.counts.items()}
    assert counts["sent"] == counts["received"] == TOTAL
    assert counts["received_bytes"] == int(plan.length.sum())
    assert counts["probed"] and counts["posted"]
    for c in comms:
        assert not c.Iprobe()
    record({"seed": seed, "transport": os.environ.get("PYMPX_TRANSPORT", "auto"), "seconds": round(seconds, 1), **counts})
