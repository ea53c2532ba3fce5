"""One rank of random traffic over verbs: ``rounds_program.py SEED [--cut] TIMES``; rank 0 prints counts as JSON.

TIMES is how many rounds; with --cut how often rank 0 takes the wire between the devices down and up while messages are on their way.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from rounds import MESSAGES, Round, collectives, counters

import pympx
from pympx import MPI

LINK = Path(__file__).resolve().parents[2] / "ci" / "verbs" / "link"


class Breaker(threading.Thread):
    """Takes the wire down for up to 0.4 s, again and again; `cuts` is how often it was down and is up again."""

    def __init__(self, times: int, seed: int) -> None:
        super().__init__(daemon=True)
        self._times, self._random = times, random.Random(seed)
        self.cuts = 0

    def run(self) -> None:
        while self.cuts < self._times:
            time.sleep(self._random.uniform(0, 0.5))
            subprocess.run([LINK, "down", "v1"], check=True)
            time.sleep(self._random.uniform(0, 0.4))
            subprocess.run([LINK, "up", "v1"], check=True)
            self.cuts += 1


def main() -> None:
    """Run; an assertion ends the job."""
    comm = MPI.COMM_WORLD
    seed, cutting, times = int(sys.argv[1]), sys.argv[2] == "--cut", int(sys.argv[-1])
    breaker = Breaker(times, seed) if cutting and comm.rank == 0 else None
    start, turn, made = time.monotonic(), 0, 0
    Round(comm, [seed, turn]).run()  # everybody has met everybody
    if breaker:
        breaker.start()
    while made < times:
        turn += 1
        Round(comm, [seed, turn]).run()
        collectives(comm, turn)
        made = turn if not cutting else comm.allreduce(breaker.cuts if breaker else 0)
    Round(comm, [seed, turn + 1]).run()
    assert not comm.Iprobe()
    total = counters(comm)
    if comm.rank == 0:
        counts: dict[str, float] = {"seed": seed, "cuts_made": made if cutting else 0, "messages": (turn + 2) * MESSAGES}
        counts |= {"seconds": round(time.monotonic() - start, 1), "verbs_bytes": pympx.counters()["verbs"]["sent_bytes"]}
        print(json.dumps(counts | total))


main()
