"""Four ranks over tcp whose links are cut again and again: nothing is lost, doubled, damaged or overtaken, collectives are right.

100 cuts and more (PYMPX_TEST_LONG=1: 1000). Everything random follows from one seed, except when the cuts come.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cutting import WAYS, Cutter, why_not

from pympx import MPI
from pympx.bindings import runtime

RANKS = 4
LONG = os.environ.get("PYMPX_TEST_LONG") == "1"
CUTS = 1000 if LONG else 100
PERIOD = 0.1  # seconds between two cuts by one rank
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
            source, tag = int(rng.integers(RANKS)), int(rng.integers(TAGS))
            dest = (source + int(rng.integers(1, RANKS))) % RANKS
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
    for n in (1, 1000, 70000):
        total = np.empty(n)
        comm.Allreduce(np.arange(n, dtype=float) * (comm.rank + turn), total)
        assert (total == np.arange(n) * (6 + 4 * turn)).all()
    assert comm.alltoall([(comm.rank, peer, turn) for peer in range(RANKS)]) == [(peer, comm.rank, turn) for peer in range(RANKS)]
    assert comm.bcast(("word", turn) if comm.rank == turn % RANKS else None, turn % RANKS) == ("word", turn)
    comm.Barrier()


@pytest.mark.ranks(RANKS, transport="tcp", timeout=900 if LONG else 170)
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_lost(comm: Any, record: Callable[[dict[str, Any]], None], way: str) -> None:
    reason = why_not(way)
    if comm.allreduce(bool(reason)):
        pytest.skip(reason or "not possible on another rank")
    seed = comm.bcast(int(os.environ.get("PYMPX_TEST_SEED", secrets.randbits(48))))
    print(f"seed: PYMPX_TEST_SEED={seed}")
    before = counters(comm)
    cutter = Cutter(comm, way, PERIOD, seed + comm.rank)
    cutter.start()
    start = time.monotonic()
    made = turn = 0
    while made < CUTS:
        Round(comm, [seed, turn]).run()
        collectives(comm, turn)
        turn += 1
        made = comm.allreduce(cutter.cuts)
    cutter.stop()
    Round(comm, [seed, turn]).run()
    assert not comm.Iprobe()
    seconds = time.monotonic() - start
    after = counters(comm)
    counts = {key: after[key] - before[key] for key in ("cuts", "reconnects", "replayed")}
    # a cut hits a link that is not up yet now and then
    assert counts["reconnects"] > CUTS / 2, counts
    record({"seed": seed, "way": way, "cuts_made": made, "rounds": turn, "messages": turn * MESSAGES, "seconds": round(seconds, 1),
            **counts, "longest_stall_s": round(after["longest_stall_s"], 4)})  # fmt: skip


@pytest.mark.ranks(RANKS, transport="tcp", timeout=170)
def test_heat_is_right_after_50_cuts(comm: Any, record: Callable[[dict[str, Any]], None]) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from apps.heat.heat import main

    cutter = Cutter(comm, "shutdown", 0.05, 1000 + comm.rank, limit=15)
    cutter.start()
    made = runs = 0
    while made < 50:
        assert main(["--size", "64"], comm) == 0
        runs += 1
        made = comm.allreduce(cutter.cuts)
    cutter.stop()
    total = counters(comm)
    assert total["reconnects"] > 25, total
    record({"cuts_made": made, "runs": runs, **total})
