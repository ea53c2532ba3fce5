"""Transports in Python, by the one in site/, which is found through its entry point: traffic, progress, rest, errors."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pympx
from pympx import MPI
from pympx.plugins import PeerLost

pympx_unix: Any = importlib.import_module("pympx_unix")  # installed by conftest.py, where no type checker looks
SEED = int(os.environ.get("PYMPX_TEST_SEED", "20061"))


def cpu() -> float:
    """CPU time of this process so far, seconds."""
    return time.process_time()


@pytest.mark.ranks([1, 2, 3, 4], transport="unix")
def test_everybody_to_everybody(comm: Any) -> None:
    """Messages of all protocols' sizes, in both directions at once, by content; and the counters say what carried them."""
    random = np.random.default_rng(SEED)
    sizes = [0, 1, 8, 1000, 32000, 33000, 200_000, 3_000_000, *(int(n) for n in random.integers(0, 100_000, 20))]
    print(f"seed: PYMPX_TEST_SEED={SEED}")
    total = 0
    for number, size in enumerate(sizes):
        total += size
        payload = np.random.default_rng(SEED + number).integers(0, 256, size, dtype=np.uint8)
        requests = [comm.Isend(payload + np.uint8(comm.rank), rank, number) for rank in range(comm.size)]
        for rank in range(comm.size):
            got = np.empty(size, np.uint8)
            comm.Recv(got, rank, number)
            assert np.array_equal(got, payload + np.uint8(rank))
        MPI.Request.Waitall(requests)
    assert comm.allreduce(comm.rank) == sum(range(comm.size))
    if comm.size > 1:
        assert pympx.counters()["unix"]["sent_bytes"] >= total * (comm.size - 1)


@pytest.mark.ranks(2, transport="unix")
@pytest.mark.parametrize("by", ["Send", "Wait"])
def test_what_was_sent_leaves_before_the_call_returns(comm: Any, by: str) -> None:
    """The sender then computes, that is, does not call us: what it sent must be with the receiver long before it does."""
    sizes = [8, 1000, 30_000, 500_000]
    for size in sizes:
        comm.Barrier()
        began = time.monotonic()
        if comm.rank == 0:
            if by == "Send":
                comm.Send(np.full(size, 7, np.uint8), 1)
            else:
                comm.Isend(np.full(size, 7, np.uint8), 1).Wait()
            while time.monotonic() < began + 1.5:  # the scenario: no call of ours
                pass
        else:
            got = np.zeros(size, np.uint8)
            comm.Recv(got, 0)
            took = time.monotonic() - began
            assert (got == 7).all()
            assert took < 1, f"{size} bytes arrived after {took:.2f} s, when their sender called us again"


@pytest.mark.ranks(2, transport="unix")
def test_two_threads_on_each_rank(comm: Any) -> None:
    failures: list[BaseException] = []

    def talk(tag: int) -> None:
        try:
            for k in range(100):
                got = np.zeros(1 + 400 * k, np.int64)
                comm.Sendrecv(np.full(1 + 400 * k, k + tag), 1 - comm.rank, tag, got, 1 - comm.rank, tag)
                assert (got == k + tag).all()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=talk, args=(tag,)) for tag in (1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.ranks(2, transport=["unix", "mpi"], timeout=40)
def test_a_blocked_rank_rests(comm: Any) -> None:
    """CPU while blocked: less than 2 %, or what the same sleeps alone cost where a sleep costs much (virtual machines)."""
    comm.Barrier()
    if comm.rank == 0:
        time.sleep(4)  # the scenario: the peer makes the other wait
        comm.Send(np.zeros(1), 1)
        return
    began, used = time.perf_counter(), cpu()
    comm.Recv(np.zeros(1), 0)
    share = (cpu() - used) / (time.perf_counter() - began)
    began, used = time.perf_counter(), cpu()
    while time.perf_counter() < began + 1:
        time.sleep(1e-3)
    bare = (cpu() - used) / (time.perf_counter() - began)
    print(f"CPU while blocked {100 * share:.2f} %, of bare sleeps of 1 ms {100 * bare:.2f} %")
    assert share < max(0.02, 1.5 * bare)


@pytest.mark.ranks(2, transport="unix", fresh=True)
def test_an_error_of_the_transport_is_raised_by_the_call_that_waits(comm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    comm.Barrier()
    poll = pympx_unix.UnixTransport.poll

    def fail(self: Any) -> Iterator[tuple[bytes, memoryview]]:
        raise ZeroDivisionError("planted")
        yield from poll(self)

    with monkeypatch.context() as patch:
        patch.setattr(pympx_unix.UnixTransport, "poll", fail)
        with pytest.raises(ZeroDivisionError, match="planted"):
            comm.Recv(np.zeros(1), 1 - comm.rank)
    comm.Barrier()  # and all is well again


@pytest.mark.ranks(2, transport="unix", fresh=True)
def test_a_lost_peer_fails_its_operations(comm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    comm.Barrier()
    pending = comm.Irecv(np.zeros(1), 1 - comm.rank, 5)

    def lost(self: Any, peer: bytes, message: bytes) -> bool:
        raise PeerLost(peer, "planted")

    monkeypatch.setattr(pympx_unix.UnixTransport, "send", lost)
    comm.Isend(np.zeros(1), 1 - comm.rank, 6).Free()
    with pytest.raises(MPI.Exception) as caught:
        pending.Wait()
    assert caught.value.Get_error_class() == MPI.ERR_PROC_FAILED
    with pytest.raises(MPI.Exception) as caught:
        comm.Send(np.zeros(1), 1 - comm.rank, 7)
    assert caught.value.Get_error_class() == MPI.ERR_PROC_FAILED
    with pytest.raises(MPI.Exception):
        comm.Recv(np.zeros(1), 1 - comm.rank, 8)


@pytest.mark.ranks(2, transport="unix")
def test_strangers_are_not_heard(comm: Any) -> None:
    """Anybody on the host may write to the socket; who does not know the job's key is as if he had not."""
    import socket

    comm.Barrier()
    mine = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if line.split()[-1].startswith("@")]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.setblocking(False)
        stranger.bind("")
        for name in mine:
            for junk in (b"", b"x", bytes(16), os.urandom(1000)):
                try:
                    stranger.sendto(junk, b"\0" + name[1:].encode())
                except OSError:  # another's socket, of another kind
                    pass
    assert comm.allreduce(1) == 2


def test_it_is_known_by_its_entry_point(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pympx", "info", "--json"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    fact = next(fact for fact in json.loads(run.stdout)["transports"] if fact["name"] == "unix")
    assert (fact["usable"], fact["origin"]) == (True, "pympx-unix")
