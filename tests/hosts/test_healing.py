"""Links between two hosts that are cut while an application works, while a rank computes, and for good."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from breaking import Breaker, Plan
from hosts_support import LONG, ROOT, finish, first_line, program, running, seed

from pympx.testing.hosts import Hosts

CUTS = 50
COMPUTING = 60.0 if LONG else 10.0  # seconds
DARK = 4.0  # PYMPX_LINK_TIMEOUT of the link that stays dark


def test_heat_is_right_after_50_cuts(two: Hosts, tmp_path: Path, record: Callable[[dict[str, Any]], None]) -> None:
    """heat verifies against its closed form, its messages against their checksums, though it loses its links 50 times on the way."""
    start_seed = seed()
    text = f"""
    import json, sys
    from pathlib import Path
    from pympx import MPI
    from pympx.bindings import runtime
    sys.path.append({str(ROOT)!r})
    from apps.heat.heat import main
    comm = MPI.COMM_WORLD
    comm.Barrier()
    if comm.rank == 0:
        print("ready", flush=True)
    code = main(["--size", "{200 if LONG else 120}", "--json", "heat.json"], comm)
    links = comm.gather([runtime.link_counters(peer) for peer in range(comm.size)])
    if comm.rank == 0:
        Path("links.json").write_text(json.dumps(links))
    sys.exit(code)
    """
    plan = Plan(holes=0, downs=0, resets=CUTS)
    begin = time.monotonic()
    with running(two, program(tmp_path, text), tmp_path, OMP_NUM_THREADS="1") as job:
        assert first_line(job, tmp_path) == "ready\n"
        with Breaker(two, "a", "b", {}, start_seed) as breaker:
            while plan.cuts < CUTS and job.poll() is None:
                breaker.sleep(0, 0.05)
                breaker.reset_some(plan)
        said = finish(job, tmp_path, 120)
    assert plan.cuts == CUTS, f"heat was over after {plan.cuts} cuts"
    found = json.loads((tmp_path / "heat.json").read_text())
    assert found["verified"] is True, said
    assert found["findings"] == []
    links = [link for rank in json.loads((tmp_path / "links.json").read_text()) for link in rank]
    total = {key: sum(link[key] for link in links) for key in ("cuts", "reconnects", "replayed")}
    assert total["reconnects"] > CUTS
    stall = max(link["longest_stall_s"] for link in links)
    record({"seed": start_seed, "cuts_made": plan.cuts, "connections_reset": plan.connections_reset, **total,
            "longest_stall_s": round(stall, 4), "seconds": round(time.monotonic() - begin, 1)})  # fmt: skip


def test_a_black_hole_is_noticed_soon_and_healed_soon(two: Hosts, tmp_path: Path, record: Callable[[dict[str, Any]], None]) -> None:
    """Packets vanish both ways, or one way only: both ends of every link notice it within 3 s. When the way is free again the links are
    back at once, not when the kernel next sends its lost packets again, a second later."""
    words = [sys.executable, "-P", str(ROOT / "tests/hosts/soak_ranks.py"), str(tmp_path), str(seed())]
    holes = []
    with running(two, words, tmp_path) as job:
        assert first_line(job, tmp_path).startswith("ready ")
        with Breaker(two, "a", "b", {}, 1) as breaker:
            for ways in ("both", "first", "second"):
                breaker.darken(None, ways)
                begin = time.monotonic()
                breaker.sleep(3.4, 3.7)
                holes.append((ways, begin, time.monotonic()))
                breaker.lighten()
                breaker.sleep(1.5, 1.5)
        assert job.stdin
        job.stdin.write("end\n")
        job.stdin.flush()
        finish(job, tmp_path, 30)
    seen = [json.loads((tmp_path / f"{rank}.json").read_text())["seen"] for rank in range(4)]
    for ways, begin, end in holes:
        notices, heals = [], []
        for rank in range(4):
            for peer in (2, 3) if rank < 2 else (0, 1):
                notices.append(min(cut for who, _, cut, _ in seen[rank] if who == peer and cut > begin) - begin)
                heals.append(min(up for who, _, _, up in seen[rank] if who == peer and up > end) - end)
        record({"ways": ways, "notices_s": [round(s, 3) for s in sorted(notices)], "heals_s": [round(s, 3) for s in sorted(heals)]})
        assert max(notices) < 3
        assert max(heals) < 0.7


@pytest.mark.parametrize("cut", [False, True], ids=["undisturbed", "cut"])
def test_a_rank_that_computes_is_not_dead(two: Hosts, tmp_path: Path, cut: bool) -> None:
    """Rank 3 computes and calls nothing, longer than any time-out; ranks of its host (shm) and of the other one (tcp) wait for it. Cut: the
    links break in the middle."""
    text = f"""
    import time
    from pympx import MPI
    from pympx.bindings import runtime
    comm = MPI.COMM_WORLD
    for peer in range(comm.size):  # everybody has met everybody
        if peer != comm.rank:
            comm.sendrecv(comm.rank, peer, 1, source=peer, recvtag=1)
    comm.Barrier()
    if comm.rank == 3:
        print("computes", flush=True)
        end, steps = time.monotonic() + {COMPUTING}, 0
        while time.monotonic() < end:
            steps += 1
        for peer in range(3):
            comm.send(steps, peer)
    else:
        begin = time.monotonic()
        assert comm.recv(source=3) > 0
        assert time.monotonic() - begin > {COMPUTING} - 1
    assert comm.allreduce(1) == 4
    links = comm.gather([(link["cuts"], link["reconnects"]) for link in map(runtime.link_counters, range(4))])
    if comm.rank == 0:
        print(links)
    """
    settings = {} if LONG else {"PYMPX_LINK_TIMEOUT": "5"}
    with running(two, program(tmp_path, text), tmp_path, **settings) as job:
        assert first_line(job, tmp_path) == "computes\n"
        if cut:
            with Breaker(two, "a", "b", {}, 1) as breaker:
                breaker.sleep(0.3 * COMPUTING, 0.3 * COMPUTING)
                assert breaker.reset() == 4
        links = json.loads(finish(job, tmp_path, COMPUTING + 20).replace("(", "[").replace(")", "]"))
    for rank in range(4):
        for peer in range(4):
            across = rank // 2 != peer // 2
            assert links[rank][peer] == [int(cut and across)] * 2


def test_a_link_that_stays_dark_is_a_failed_rank(two: Hosts, tmp_path: Path, record: Callable[[dict[str, Any]], None]) -> None:
    """Packets between the hosts vanish and do not come back: after the link's time-out the ranks of the other host have failed, those of
    the own have not."""
    text = """
    import json, time
    from pathlib import Path
    from pympx import MPI
    comm = MPI.COMM_WORLD
    comm.Barrier()
    for peer in range(comm.size):
        if peer != comm.rank:
            comm.sendrecv(comm.rank, peer, 1, source=peer, recvtag=1)
    comm.Barrier()
    if comm.rank == 0:
        print("ready", flush=True)
    try:
        comm.recv(source=(comm.rank + 2) % 4)
        found = None
    except MPI.Exception as error:
        found = [time.monotonic(), error.Get_error_class() == MPI.ERR_PROC_FAILED, str(error)]
    Path(f"{comm.rank}.json").write_text(json.dumps(found))
    assert comm.sendrecv(comm.rank, comm.rank ^ 1, 2, source=comm.rank ^ 1, recvtag=2) == comm.rank ^ 1
    """
    with running(two, program(tmp_path, text), tmp_path, PYMPX_LINK_TIMEOUT=f"{DARK:g}") as job:
        assert first_line(job, tmp_path) == "ready\n"
        with Breaker(two, "a", "b", {}, 1) as breaker:
            breaker.darken()
            begin = time.monotonic()
            finish(job, tmp_path, 30)
    took = []
    for rank in range(4):
        when, is_class, text = json.loads((tmp_path / f"{rank}.json").read_text())
        assert is_class
        peer = (rank + 2) % 4
        print(text)
        assert re.search(rf"rank {peer} \({'ab'[peer // 2]}\): no link for {DARK:.0f}(\.\d+)? s: ", text), text
        assert f"10.77.0.{peer // 2 + 1}:" in text
        took.append(when - begin)
    assert min(took) > DARK
    assert max(took) < DARK + 3 + 1  # noticed within 3 s, then without a sign for so long
    record({"link_timeout_s": DARK, "failed_after_s": [round(t, 2) for t in took]})
