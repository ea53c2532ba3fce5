"""The report's compression: ranges of ranks, classes of ranks, reasons; on records that no single host can give."""

from __future__ import annotations

import random
from typing import Any

from pympx.tools.report import classes, ranges, render


def test_ranges() -> None:
    assert ranges([]) == ""
    assert ranges([3]) == "3"
    assert ranges([7, 0, 1, 2, 9, 8]) == "0-2,7-9"


def test_classes_say_exactly_what_the_matrix_says() -> None:
    seed = 20061
    print(f"seed {seed}")
    numbers = random.Random(seed)
    for _ in range(200):
        size = numbers.randrange(1, 12)
        home = [numbers.randrange(3) for _ in range(size)]
        odd = frozenset(numbers.sample(range(size), 2)) if size > 2 and numbers.random() < 0.5 else frozenset()

        def between(a: int, b: int, home: list[int] = home, odd: frozenset[int] = odd) -> str:
            return "odd" if odd == {a, b} else "shm" if home[a] == home[b] else "tcp"

        found = classes(size, between)
        assert sorted(rank for twins in found for rank in twins) == list(range(size))
        for group in found:
            for other in found:
                assert len({between(a, b) for a in group for b in other if a != b}) <= 1


def _link(cuts: int = 0, reconnects: int = 0, replayed: int = 0, longest_stall_s: float = 0.0) -> dict[str, float]:
    return {"cuts": cuts, "reconnects": reconnects, "replayed": replayed, "longest_stall_s": longest_stall_s}


def _cache(**more: Any) -> dict[str, Any]:
    counted = dict.fromkeys(("hits", "misses", "uncacheable", "evictions", "invalidated", "bytes", "regions"), 0)
    return {"pays": False, "reason": "", **counted, **more}


def _record(host: str, over: list[int], **more: Any) -> dict[str, Any]:
    counters = {"sent_bytes": 10, "messages": 1, "medium_sent_bytes": 11, "medium_received_bytes": 12}
    return {
        "host": host,
        "cores": 2,
        "transports": ["self", "shm", "tcp"],
        "over": over,
        "bytes": [0] * len(over),
        "links": [_link()] * len(over),
        "protocols": [["0.. short"], ["0..9 short", "10.. rendezvous by get"], ["0.. short"]],
        "carried": [dict.fromkeys(counters, 0), counters, counters],
        "caches": [_cache()] * 3,
        "unused": {},
        "unreached": [],
        **more,
    }


def test_two_hosts() -> None:
    far = [["shm", "on another host", [2, 3]]]
    near = [["shm", "on another host", [0, 1]]]
    records = {
        0: _record("a", [0, 1, 2, 2], unreached=far),
        1: _record("a", [1, 0, 2, 2], unreached=far),
        2: _record("b", [2, 2, 0, 1], unreached=near),
        3: _record("b", [2, 2, 1, 0], unreached=near),
    }
    text = render("env", records, {}, 1.0)
    assert "    a: rank 0-1, on 2 cores\n    b: rank 2-3, on 2 cores\n" in text
    assert "    0-1 <-> 0-1: shm\n    0-1 <-> 2-3: tcp\n    2-3 <-> 2-3: shm\n" in text
    assert "    shm   40 bytes in 4 messages; 48 bytes on the medium\n" in text
    assert "    shm to rank 2-3: on another host (rank 0-1)\n    shm to rank 0-1: on another host (rank 2-3)" in text
    assert "    shm   0..9 short\n          10.. rendezvous by get\n" in text


def test_one_way_differs_from_the_other_and_silent_ranks_are_named() -> None:
    records = {0: _record("a", [0, 1, 2]), 1: _record("a", [2, 0, 2])}
    text = render("pmi1", records, {2: "sent no record: it failed"}, 1.0)
    assert "    0-1 <-> 0-1: shm one way, tcp back\n    0-1 <-> 2: tcp\n" in text
    assert "    rank 2: it sent no record: it failed" in text
    assert "pympx report: 3 ranks" in text


def test_links_that_healed() -> None:
    records = {
        0: _record("a", [0, 2, 2], links=[_link(), _link(3, 3, 7, 0.004), _link()]),
        1: _record("b", [2, 0, 2], links=[_link(2, 2, 1, 0.0125), _link(), _link()]),
        2: _record("c", [2, 2, 0]),
    }
    text = render("env", records, {}, 1.0)
    assert "  links that were cut and healed\n    0 <-> 1: 3 cuts, 3 reconnects, longest stall 12.5 ms, 8 messages sent again" in text
    assert "<-> 2: 0 cuts" not in text
    assert "healed" not in render("env", {0: _record("a", [0, 2]), 1: _record("b", [2, 0])}, {}, 1.0)


def test_caches_of_registrations() -> None:
    kept = _cache(pays=True, hits=90, misses=10, uncacheable=3, evictions=2, invalidated=4, bytes=8192, regions=2)
    once = _cache(pays=True, reason="userfaultfd: Operation not permitted", uncacheable=7, bytes=0)
    cheap = _cache(reason="registering costs no more than looking it up", uncacheable=5)
    records = {
        0: _record("a", [0, 2], caches=[cheap, cheap, kept]),
        1: _record("b", [2, 0], caches=[cheap, cheap, once]),
    }
    text = render("env", records, {}, 1.0)
    assert (
        "  registrations of memory, all ranks together\n"
        "    tcp   90 hits, 10 misses, 10 for one use, 2 evictions, 4 invalidated; 8192 bytes in 2 regions now\n"
        "    tcp: nothing is kept: userfaultfd: Operation not permitted (rank 1)"
    ) in text
    assert "no more than looking" not in text
    assert "registrations" not in render("env", {0: _record("a", [0, 2])}, {}, 1.0)
