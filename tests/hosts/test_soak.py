"""Four ranks on two hosts exchange random messages while the network between the hosts is broken again and again: nothing is lost, doubled,
overtaken or damaged. Afterwards the report: how often it broke, how fast that was noticed where no kernel tells, how long it took to heal.

100 cuts, 5 of them black holes (PYMPX_TEST_LONG=1: 1000 and 50, within ten minutes).
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from breaking import Breaker, Hole, Plan
from hosts_support import LONG, ROOT, finish, first_line, running, seed

from pympx.testing.hosts import Hosts

RANKS = 4
ACROSS = [(0, 2), (0, 3), (1, 2), (1, 3)]
PLAN = {"holes": 52, "downs": 220, "resets": 760} if LONG else {"holes": 6, "downs": 14, "resets": 86}
LIMIT = 600.0 if LONG else 60.0
NOTICED = 3.0  # seconds within which a black hole is noticed by who hears nothing
TICK = 10.0


@dataclass
class Notice:
    """One end of a link that was up when it went dark. ways: which host heard nothing; seconds: until that was noticed (inf: never)."""

    rank: int
    peer: int
    links: int
    ways: str
    seconds: float

    @property
    def deaf(self) -> bool:
        """Whether this end heard nothing. One that still hears is told by a reset, or, if that is lost, hears nothing more from then on."""
        return self.ways == "both" or (self.ways == "first") == (self.rank < 2)


def notices(holes: list[Hole], left: list[dict[str, Any]]) -> list[Notice]:
    """Return what each end of each link that was up noticed of each hole.

    An end that still hears is told by the other one; where that one was not up it is left out, for its half may outlive the hole.
    """
    found = []
    for hole in holes:
        for pair in hole.pairs:
            ends = [end for end in (_notice(hole, *pair, left), _notice(hole, *pair[::-1], left)) if end]
            found += [end for end in ends if end.deaf or len(ends) == 2]
    return found


def _notice(hole: Hole, rank: int, peer: int, left: list[dict[str, Any]]) -> Notice | None:
    """Return what one end noticed; None where its link was just being made again."""
    changes = [(cut, up) for who, _, cut, up in left[rank]["seen"] if who == peer]
    before = [change for change in changes if max(change) < hole.begin]
    if not before or before[-1][0] > before[-1][1]:
        return None
    later = [cut - hole.begin for cut, _ in changes if cut > hole.begin]
    return Notice(rank, peer, len(hole.pairs), hole.ways, round(min(later, default=math.inf), 3))


def check_paths(left: list[dict[str, Any]]) -> dict[str, int]:
    """Assert that ranks of one host talked over shm, those of two over tcp; return the bytes of each."""
    total = {"shm": 0, "tcp": 0}
    for rank, record in enumerate(left):
        assert record["host"] == "ab"[rank // 2]
        for name, peers in (("shm", [rank ^ 1]), ("tcp", [peer for peer in range(RANKS) if peer // 2 != rank // 2])):
            payload = sum(record["bytes_to"][peer] for peer in peers)
            assert payload <= record["carried"][name] < 1.05 * payload, (rank, name, payload, record["carried"])
            total[name] += payload
        assert record["links"][rank ^ 1]["cuts"] == 0
    return total


def test_nothing_is_lost_between_two_hosts(
    two: Hosts, tmp_path: Path, record: Callable[[dict[str, Any]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    start_seed = seed()
    words = [sys.executable, "-P", str(ROOT / "tests/hosts/soak_ranks.py"), str(tmp_path), str(start_seed)]
    plan = Plan(**PLAN)
    start = time.monotonic()
    said_at = start

    def tell() -> None:
        nonlocal said_at
        assert job.poll() is None, (tmp_path / "stderr").read_text()
        assert time.monotonic() < start + LIMIT, f"{plan.cuts} cuts in {LIMIT:g} s: {plan.made}"
        if LONG and time.monotonic() > said_at + TICK:
            said_at = time.monotonic()
            with capsys.disabled():
                print(f"soak: {said_at - start:.0f} s, {plan.cuts} of {sum(PLAN.values())} cuts", flush=True)

    with running(two, words, tmp_path, PYMPX_TIMEOUT="60") as job:
        word, _, pids = first_line(job, tmp_path).partition(" ")
        assert word == "ready"
        ranks = {pid: rank for rank, pid in enumerate(json.loads(pids))}
        with Breaker(two, "a", "b", ranks, start_seed) as breaker:
            breaker.carry_out(plan, ACROSS, 0.25 if LONG else 0.2, tell)
        assert job.stdin
        job.stdin.write("end\n")
        job.stdin.flush()
        finish(job, tmp_path, 60)
    seconds = time.monotonic() - start
    left = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    links = [link for one in left for link in one["links"]]
    noticed = notices(breaker.holes, left)
    counts = {
        "seed": start_seed, "seconds": round(seconds, 1), "cuts_made": plan.cuts, **plan.made, "connections_reset": plan.connections_reset,
        **{key: sum(link[key] for link in links) for key in ("cuts", "reconnects", "replayed")},
        "longest_stall_s": round(max(link["longest_stall_s"] for link in links), 3),
        "ends_in_the_dark": len(noticed), "slowest_notice_s": max(notice.seconds for notice in noticed if notice.deaf),
        "slowest_notice_by_hearing_s": max((notice.seconds for notice in noticed if not notice.deaf), default=0),
        "messages": sum(sum(one["messages_to"]) for one in left), "rounds": left[0]["rounds"],
        "slowest_round_s": round(max(one["slowest_round_s"] for one in left), 2), "bytes": check_paths(left),
    }  # fmt: skip
    record(counts)
    assert plan.made == PLAN
    assert seconds < LIMIT
    assert not (late := [notice for notice in noticed if notice.seconds > NOTICED * (1 if notice.deaf else 2)]), late
    assert len(noticed) > plan.holes
    assert counts["reconnects"] > plan.cuts  # both ends of most cuts
