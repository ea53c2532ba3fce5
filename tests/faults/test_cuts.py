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

import pytest
from cutting import WAYS, Cutter, why_not
from rounds import MESSAGES, Round, collectives, counters

RANKS = 4
LONG = os.environ.get("PYMPX_TEST_LONG") == "1"
CUTS = 1000 if LONG else 100
PERIOD = 0.1  # seconds between two cuts by one rank


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
