"""What the ranks of the soak do: random traffic in which a message that is lost, doubled, overtaken or damaged cannot go unnoticed.

    soak_ranks.py FOLDER SEED

Rounds of messages of 0 bytes to 1 MiB between all ranks, in both directions at once, sent and received in all ways, with collectives
after each round. A message carries its source, tag, number in the stream (source, tag), length, the seed and the checksum of its body.
The numbers must come without gap; at the end senders' and receivers' counts are compared. Rank 0 prints "ready" and the processes' ids
after the first round, and ends the job after the round in which it reads a line. Each rank leaves FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import zlib
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

import pympx
from pympx import MPI
from pympx.bindings import runtime

LARGEST = 1 << 20
HEAD = 48  # six words of 64 bits: source, tag, number, length, seed, checksum
TAGS = 16
MESSAGES = 40  # that a rank sends in a round
WINDOW = 12  # receives that are posted at once
RECEIVED, RELEASED = 0xEE, 0xAA  # what buffers hold before and after their use


class Watch(threading.Thread):
    """Notes each change of this rank's links: [peer, cuts, last cut, last time up], times of time.monotonic()."""

    def __init__(self, comm: Any) -> None:
        super().__init__(daemon=True)
        self._peers = [peer for peer in range(comm.size) if peer != comm.rank]
        self._over = threading.Event()
        self.seen: list[tuple[int, float, float, float]] = []

    def run(self) -> None:
        last: dict[int, tuple[float, float, float]] = {}
        while not self._over.wait(0.02):
            for peer in self._peers:
                c = runtime.link_counters(peer)
                now = c["cuts"], c["last_cut_s"], c["last_up_s"]
                if last.get(peer) != now:
                    last[peer] = now
                    self.seen.append((peer, *now))

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        self.join()


class Traffic:
    """One rank's part, over all rounds."""

    def __init__(self, comm: Any, seed: int) -> None:
        self.comm, self.seed = comm, seed
        self.random = np.random.default_rng([seed, comm.rank])
        self.block = np.frombuffer(self.random.bytes(LARGEST + 65536), np.uint8)
        self.next_number: dict[tuple[int, int], int] = {}  # by destination, tag
        self.due: dict[tuple[int, int], int] = {}  # by source, tag
        self.bytes_to = [0] * comm.size
        self.messages_to = [0] * comm.size
        self.slowest = 0.0

    # ---- messages

    def message(self, dest: int) -> tuple[Any, int]:
        """Return the next message for `dest`, and its tag."""
        rng = self.random
        tag = int(rng.integers(TAGS))
        length = int(rng.choice([0, 1, LARGEST, int(2.0 ** rng.uniform(0, 20))], p=[0.03, 0.03, 0.02, 0.92]))
        number = self.next_number.get((dest, tag), 0)
        self.next_number[dest, tag] = number + 1
        data = np.empty(HEAD + length, np.uint8)
        at = int(rng.integers(65536))
        data[HEAD:] = self.block[at : at + length]
        data[:HEAD].view(np.int64)[:] = self.comm.rank, tag, number, length, self.seed, zlib.crc32(data[HEAD:].data)
        self.bytes_to[dest] += len(data)
        self.messages_to[dest] += 1
        return data, tag

    def check(self, data: Any, status: Any) -> None:
        assert status.count >= HEAD, f"a message of {status.count} bytes"
        source, tag, number, length, seed, checksum = (int(word) for word in data[:HEAD].view(np.int64))
        what = f"rank {self.comm.rank}: number {number} from {source}, tag {tag}, {length} bytes"
        envelope = status.source, status.tag, status.count, self.seed
        assert (source, tag, HEAD + length, seed) == envelope, f"{what}: {envelope}"
        assert number == self.due.get((source, tag), 0), f"{what}: number {self.due.get((source, tag), 0)} was due"
        assert zlib.crc32(data[HEAD : HEAD + length]) == checksum, f"{what}: damaged"
        assert (data[HEAD + length :] == RECEIVED).all(), f"{what}: more was written"
        self.due[source, tag] = number + 1

    # ---- a round

    def round(self) -> None:
        """Send MESSAGES messages and receive what the others send here."""
        comm, rng = self.comm, self.random
        start = time.monotonic()
        to = [(comm.rank + int(rng.integers(1, comm.size))) % comm.size for _ in range(MESSAGES)]
        counts = comm.alltoall([to.count(peer) for peer in range(comm.size)])
        coming = sum(counts)
        sends: list[tuple[Any, Any]] = []
        posted: deque[tuple[Any, Any]] = deque()  # wildcards: they match in the order in which they were posted
        while to or coming or sends:
            kind = int(rng.integers(6))
            if to and kind < 3:
                self.send(to.pop(), sends)
            elif kind == 3 and coming > len(posted) and len(posted) < WINDOW:
                for _ in range(int(rng.integers(1, min(WINDOW, coming - len(posted)) + 1))):
                    buffer = np.full(HEAD + LARGEST, RECEIVED, np.uint8)
                    posted.append((comm.Irecv(buffer, MPI.ANY_SOURCE, MPI.ANY_TAG), buffer))
            elif kind == 4 and coming > len(posted) and not posted:
                coming -= self.probe(wait=not to and not sends and rng.random() < 0.5)
            elif posted and not to and not sends and rng.random() < 0.3:
                status = MPI.Status()
                posted[0][0].Wait(status)
                self.check(posted.popleft()[1], status)
                coming -= 1
            coming -= self.collect(posted)
            sends = self.release(sends)
        self.slowest = max(self.slowest, time.monotonic() - start)

    def send(self, dest: int, sends: list[tuple[Any, Any]]) -> None:
        data, tag = self.message(dest)
        how = self.random.integers(4)
        if how == 0 and len(data) < 2048:  # surely buffered: it cannot wait for somebody who waits for us
            self.comm.Send(data, dest, tag)
            data[:] = RELEASED
        else:
            sends.append((self.comm.Issend(data, dest, tag) if how == 1 else self.comm.Isend(data, dest, tag), data))

    def release(self, sends: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        """Overwrite the buffers of sends that are over: what is sent again from there would be damaged."""
        left = []
        for request, data in sends:
            if request.Test():
                data[:] = RELEASED
            else:
                left.append((request, data))
        return left

    def collect(self, posted: deque[tuple[Any, Any]]) -> int:
        """Check receives that are over, in the order in which they were posted; return how many."""
        done = 0
        status = MPI.Status()
        while posted and posted[0][0].Test(status):
            self.check(posted.popleft()[1], status)
            done += 1
        return done

    def probe(self, wait: bool) -> int:
        """Receive a message by its envelope, if there is one, or wait for one; return how many."""
        status = MPI.Status()
        if wait:
            self.comm.Probe(status=status)
        elif not self.comm.Iprobe(status=status):
            return 0
        buffer = np.full(status.count, RECEIVED, np.uint8)
        self.comm.Recv(buffer, status.source, status.tag, status)
        self.check(buffer, status)
        return 1

    def collectives(self, turn: int) -> None:
        """Some collectives with known results, and large messages both ways at once."""
        comm, rank, size = self.comm, self.comm.rank, self.comm.size
        for n in (1, 1000, 70000):
            total = np.empty(n)
            comm.Allreduce(np.arange(n, dtype=float) * (rank + turn), total)
            assert (total == np.arange(n) * (size * (size - 1) // 2 + size * turn)).all()
        assert comm.bcast(("word", turn) if rank == turn % size else None, turn % size) == ("word", turn)
        shift = 1 + turn % (size - 1)
        got = np.empty(LARGEST // 8, np.int64)
        comm.Sendrecv(np.full(LARGEST // 8, turn * size + rank), (rank + shift) % size, TAGS, got, (rank - shift) % size, TAGS)
        assert (got == turn * size + (rank - shift) % size).all()
        comm.Barrier()

    def compare_counts(self) -> None:
        """All that was sent has been received, and nothing else."""
        comm = self.comm
        assert not comm.Iprobe()
        sent = comm.alltoall([[self.next_number.get((peer, tag), 0) for tag in range(TAGS)] for peer in range(comm.size)])
        received = [[self.due.get((peer, tag), 0) for tag in range(TAGS)] for peer in range(comm.size)]
        assert sent == received, (sent, received)


def sent_bytes() -> dict[str, int]:
    """Return the bytes that each transport carried away from here."""
    return {name: counted["sent_bytes"] for name, counted in pympx.counters().items()}


def main(folder: Path, seed: int) -> None:
    """Run until rank 0 is told to end."""
    comm = MPI.COMM_WORLD
    comm.Barrier()  # from now on there is an engine to ask
    watch = Watch(comm)
    watch.start()
    traffic = Traffic(comm, seed)
    over = threading.Event()

    def listen() -> None:
        sys.stdin.readline()
        over.set()

    carried: dict[str, int] = {}
    start = time.monotonic()
    turn, ends = 0, False
    while not ends:
        before = sent_bytes()
        traffic.round()
        for name, total in sent_bytes().items():
            carried[name] = carried.get(name, 0) + total - before.get(name, 0)
        traffic.collectives(turn)
        if turn == 0:
            pids = comm.gather(os.getpid())
            if comm.rank == 0:
                print("ready", json.dumps(pids), flush=True)
                threading.Thread(target=listen, daemon=True).start()
        turn += 1
        ends = comm.bcast(over.is_set())
    traffic.compare_counts()
    watch.stop()
    links = [runtime.link_counters(peer) for peer in range(comm.size)]
    left = {
        "host": MPI.Get_processor_name(), "rounds": turn, "seconds": time.monotonic() - start, "messages_to": traffic.messages_to,
        "bytes_to": traffic.bytes_to, "carried": carried, "slowest_round_s": traffic.slowest, "links": links, "seen": watch.seen,
    }  # fmt: skip
    (folder / f"{comm.rank}.json").write_text(json.dumps(left))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
