"""Which transport carried how many bytes, beside what should have been carried; as a line and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pympx
from apps.common.volume import Volume
from pympx import MPI

Counters = dict[str, dict[str, int]]


def _difference(after: Counters, before: Counters) -> Counters:
    return {name: {key: value - before.get(name, {}).get(key, 0) for key, value in counts.items()} for name, counts in after.items()}


def _total(parts: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total.get(key, 0) + value
    return total


class Traffic:
    """What the transports carried between `start` and `stop`: this rank's share, in bytes and messages."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._before: Counters = {}
        self.carried: Counters = {}
        self.seconds = 0.0

    def start(self) -> None:
        """Collective: synchronise, take the first snapshot, start the clock."""
        self._comm.Barrier()
        self._before = pympx.counters()
        self.seconds = -MPI.Wtime()

    def stop(self) -> None:
        """Take the second snapshot when this rank is done; wait for the others outside it."""
        self.seconds += MPI.Wtime()
        self.carried = _difference(pympx.counters(), self._before)


def report(
    comm: MPI.Intracomm, app: str, verified: bool, traffic: Traffic, volume: Volume, details: dict[str, Any], path: Path | None
) -> None:
    """Collective: print the lines about transports on rank 0; write everything to `path` as JSON if one is given.

    The time is the slowest rank's, in seconds; the payload expected is the analytic volume in bytes, summed over ranks.
    """
    gathered = comm.gather((traffic.carried, traffic.seconds, volume.sent), root=0)
    if gathered is None:
        return
    names = sorted({name for carried, _, _ in gathered for name in carried})
    carried = {name: _total([part.get(name, {}) for part, _, _ in gathered]) for name in names}
    payload = _total([sent for _, _, sent in gathered])
    expected = sum(payload.values())
    between = {name: counts for name, counts in carried.items() if name != "self" and counts["sent_bytes"]}
    everything = sum(counts["sent_bytes"] for counts in between.values())
    for name, counts in between.items():
        share = 100.0 * counts["sent_bytes"] / everything
        print(
            f"transport {name}: {counts['sent_bytes']} bytes in {counts['messages']} messages ({share:.1f} % of inter-rank bytes); "
            f"payload expected {expected}",
            flush=True,
        )
    if not between:
        print(f"transport: no inter-rank bytes counted; payload expected {expected}", flush=True)
    if path is not None:
        record = {
            "app": app,
            "ranks": comm.Get_size(),
            "verified": verified,
            "seconds": max(seconds for _, seconds, _ in gathered),
            "counters": carried,
            "payload_bytes": payload,
            "payload_expected": expected,
            **details,
        }
        path.write_text(json.dumps(record, indent=2) + "\n")
