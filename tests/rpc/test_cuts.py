"""Calls over links that are cut again and again: executed exactly once each, by counters at the server."""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cutting import Cutter

from pympx import rpc
from pympx.bindings import runtime

LONG = os.environ.get("PYMPX_TEST_LONG") == "1"
CALLS, CUTS = (100_000, 1000) if LONG else (10_000, 100)
EXECUTED: Counter[tuple[int, int]] = Counter()


def execute(source: int, number: int, data: bytes) -> tuple[int, bytes]:
    EXECUTED[source, number] += 1
    return number, data


@pytest.mark.ranks(3, transport="tcp", timeout=900 if LONG else 170)
def test_exactly_once(comm: Any, record: Callable[[dict[str, Any]], None]) -> None:
    seed = comm.bcast(int(os.environ.get("PYMPX_TEST_SEED", secrets.randbits(48))))
    print(f"seed: PYMPX_TEST_SEED={seed}")
    random = np.random.default_rng([seed, comm.rank])
    others = [rank for rank in range(comm.size) if rank != comm.rank]
    for rank in others:
        rpc.call(rank, execute, comm.rank, -1, b"").result()
    comm.Barrier()
    EXECUTED.clear()
    comm.Barrier()
    cutter = Cutter(comm, "shutdown", 0.02, seed + comm.rank)
    cutter.start()
    begun = time.monotonic()
    made = calls = 0
    sent: Counter[int] = Counter()
    while made < CUTS or comm.allreduce(calls) < CALLS:
        outstanding = []
        for _ in range(200):
            to, length = int(random.choice(others)), int(2.0 ** random.uniform(0, 16))
            data = random.bytes(length)
            outstanding.append((calls, data, rpc.call(to, execute, comm.rank, calls, data)))
            sent[to] += 1
            calls += 1
        for number, data, call in outstanding:
            assert call.result() == (number, data)
        made = comm.allreduce(cutter.cuts)
    cutter.stop()
    comm.Barrier()
    assert set(EXECUTED.values()) == {1}
    arrived = Counter(source for source, _ in EXECUTED)
    assert all(arrived[rank] == n for rank, n in enumerate(comm.alltoall([sent[rank] for rank in range(comm.size)])))
    total = {key: comm.allreduce(sum(runtime.link_counters(rank)[key] for rank in others)) for key in ("reconnects", "replayed")}
    assert total["reconnects"] > CUTS / 2, total
    record({"seed": seed, "calls": comm.allreduce(calls), "cuts_made": made, "seconds": round(time.monotonic() - begun, 1), **total})
