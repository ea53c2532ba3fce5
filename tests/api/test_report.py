"""PYMPX_REPORT=1: what rank 0 prints at the end, that it is true, and that nobody hangs for it when ranks fail."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pympx.testing.jobs import Job, launcher_command

LIMIT_S = 60.0
RING = """
import sys
import numpy
from pympx import MPI
comm = MPI.COMM_WORLD
mine, theirs = numpy.ones(int(sys.argv[1]), "u1"), numpy.empty(int(sys.argv[1]), "u1")
comm.Sendrecv(mine, (comm.rank + 1) % comm.size, 3, theirs, (comm.rank - 1) % comm.size, 3)
"""


@dataclass(frozen=True)
class Ended:
    """A job that has ended within its time."""

    code: int
    out: str
    err: str
    seconds: float


def _run(tmp_path: Path, ranks: int, program: str, *arguments: str, launcher: str = "mpiexec", **variables: str) -> Ended:
    (tmp_path / "program.py").write_text(program)
    return _run_command(tmp_path, ranks, ["python", str(tmp_path / "program.py"), *arguments], launcher, variables)


def _run_command(tmp_path: Path, ranks: int, command: list[str], launcher: str, variables: dict[str, str]) -> Ended:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYMPX_", "PMI_", "PMIX_"))}
    out, err = tmp_path / "out", tmp_path / "err"
    began = time.monotonic()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        words = launcher_command(command, ranks, launcher)
        with Job(words, env={**environment, **variables}, cwd=tmp_path, stdout=stdout, stderr=stderr) as job:
            code = job.wait(LIMIT_S)
            assert code is not None, f"not over after {LIMIT_S:g} s: {out.read_text()}"
    return Ended(code, out.read_text(), err.read_text(), time.monotonic() - began)


def _numbers(report: str, transport: str) -> tuple[int, int, int]:
    """Return (payload bytes, messages, bytes on the medium) of a transport."""
    match = re.search(rf"^    {transport} +(\d+) bytes in (\d+) messages; (\d+) bytes on the medium$", report, re.MULTILINE)
    assert match, report
    return int(match[1]), int(match[2]), int(match[3])


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("launcher", ["mpiexec", "run"])
def test_says_who_talks_over_what_and_how_much(tmp_path: Path, transport: str, launcher: str) -> None:
    ended = _run(tmp_path, 3, RING, "100000", launcher=launcher, PYMPX_REPORT="1", PYMPX_TRANSPORT=transport)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.count("pympx report: 3 ranks, joined by pmi1") == 1
    assert f"    0-2 <-> 0-2: {transport}\n" in ended.out
    payload, messages, medium = _numbers(ended.out, transport)
    assert (payload, messages) == (300000, 3)
    assert payload < medium < 1.05 * payload
    for row in (r"0 +0 +100000 +0", r"1 +0 +0 +100000", r"2 +100000 +0 +0"):
        assert re.search(rf"^ +{row}$", ended.out, re.MULTILINE), ended.out
    assert re.search(rf"^    {transport} +0\.\.\d+ short$", ended.out, re.MULTILINE)
    other = {"shm": "tcp", "tcp": "shm"}[transport]
    assert f"    {other}: PYMPX_TRANSPORT={transport} asks for {transport} alone\n" in ended.out
    assert "no record from" not in ended.out


def test_auto_says_why_nothing_else(tmp_path: Path) -> None:
    ended = _run(tmp_path, 2, RING, "8", PYMPX_REPORT="1")
    assert (ended.code, ended.err) == (0, "")
    assert "    0-1 <-> 0-1: shm\n" in ended.out
    assert "    tcp: shm reaches every rank\n" in ended.out


def test_without_the_variable_nothing_is_printed(tmp_path: Path) -> None:
    ended = _run(tmp_path, 2, RING, "8")
    assert (ended.code, ended.out, ended.err) == (0, "", "")


def test_a_variable_on_one_rank_is_enough_and_hangs_nobody(tmp_path: Path) -> None:
    program = 'import os\nif os.environ["PMI_RANK"] == "1":\n    os.environ["PYMPX_REPORT"] = "1"\n' + RING
    ended = _run(tmp_path, 2, program, "8")
    assert (ended.code, ended.err) == (0, "")
    assert "pympx report: 2 ranks" in ended.out


def test_of_a_single_process(tmp_path: Path) -> None:
    ended = _run(tmp_path, 1, RING, "1000", PYMPX_REPORT="1")
    assert (ended.code, ended.err) == (0, "")
    assert "    no other rank\n" in ended.out
    assert _numbers(ended.out, "self")[:2] == (1000, 1)


def test_users_wildcards_do_not_meet_the_records(tmp_path: Path) -> None:
    program = """
from pympx import MPI
comm = MPI.COMM_WORLD
comm.barrier()
if comm.rank == 0:
    pending = [comm.irecv() for _ in range(4)]
MPI.Finalize()
print("finalized", flush=True)
"""
    ended = _run(tmp_path, 3, program, PYMPX_REPORT="1")
    assert (ended.code, ended.err) == (0, "")
    assert "0-2 <-> 0-2" in ended.out
    assert "no record from" not in ended.out
    assert ended.out.count("finalized") == 3


@pytest.mark.parametrize("leaver", [0, 1])
def test_a_rank_that_others_wait_for_leaves(tmp_path: Path, leaver: int) -> None:
    """Those who wait learn that it left, as without the report."""
    program = f"""
import sys
from pympx import MPI
comm = MPI.COMM_WORLD
comm.barrier()
if comm.rank == {leaver}:
    sys.exit(0)
try:
    comm.recv(source={leaver})
except MPI.Exception as error:
    assert "ERR_PROC_FAILED" in str(error)
    print("told", flush=True)
"""
    ended = _run(tmp_path, 3, program, PYMPX_REPORT="1", PYMPX_TRANSPORT="shm")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.count("told") == 2
    assert "pympx report: 3 ranks" in ended.out
    if leaver:
        assert "0-2 <-> 0-2: shm" in ended.out
    else:
        assert "    rank 1: it was not through within 5 s of rank 0\n" in ended.out
        assert "    0 <-> 1-2: shm\n" in ended.out
    assert ended.seconds < 20.0


@pytest.mark.parametrize("raiser", [0, 1])
def test_an_exception_ends_the_job_at_once(tmp_path: Path, raiser: int) -> None:
    program = f"""
from pympx import MPI
comm = MPI.COMM_WORLD
comm.barrier()
if comm.rank == {raiser}:
    raise ValueError("on purpose")
comm.recv(source={raiser})
"""
    ended = _run(tmp_path, 3, program, launcher="run", PYMPX_REPORT="1", PYMPX_TRANSPORT="tcp")
    assert ended.code == 1
    assert "on purpose" in ended.err
    assert ended.seconds < 15.0


def test_a_killed_rank_is_waited_for_by_nobody(tmp_path: Path) -> None:
    program = """
import os, signal
from pympx import MPI
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, so that rank 0 comes to its end
comm = MPI.COMM_WORLD
comm.barrier()
if comm.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    comm.recv(source=1)
except MPI.Exception:
    pass
"""
    ended = _run(tmp_path, 2, program, launcher="run", PYMPX_REPORT="1", PYMPX_TRANSPORT="shm")
    assert ended.code == 137
    assert "    rank 1: it sent no record: " in ended.out
    assert ended.seconds < 15.0


def test_the_tool_shows_all_pairs_of_a_job_without_a_program(tmp_path: Path) -> None:
    ended = _run_command(tmp_path, 3, ["python", "-m", "pympx", "report"], "mpiexec", {"PYMPX_TRANSPORT": "tcp"})
    assert (ended.code, ended.err) == (0, "")
    assert "    0-2 <-> 0-2: tcp\n" in ended.out
    assert _numbers(ended.out, "tcp")[0] > 0


@pytest.mark.ranks(3, transport="shm")
def test_counters_are_at_the_top_of_the_package() -> None:
    import numpy

    import pympx
    from pympx import MPI

    comm = MPI.COMM_WORLD
    comm.Barrier()
    before = pympx.counters()["shm"]["sent_bytes"]
    comm.Sendrecv(numpy.zeros(1000), (comm.Get_rank() + 1) % 3, 0, numpy.zeros(1000), (comm.Get_rank() - 1) % 3, 0)
    assert pympx.counters()["shm"]["sent_bytes"] - before == 8000


@pytest.mark.ranks(2, transport="tcp")
def test_registrations_are_counted() -> None:
    import numpy

    from pympx import MPI
    from pympx.bindings import runtime as engine

    comm = MPI.COMM_WORLD
    comm.Barrier()
    number = engine.peer_transport(1 - comm.rank)
    before = engine.cache_counters(number)
    large = numpy.ones(4 << 20, "u1")
    if comm.rank == 0:
        comm.Ssend(large, 1)
    else:
        comm.Recv(large, 0)
    after = engine.cache_counters(number)
    # Over tcp the sender's memory alone is registered, which costs nothing and is not kept.
    assert after["uncacheable"] - before["uncacheable"] == (1 if comm.rank == 0 else 0)
    assert (after["pays"], after["hits"], after["regions"], after["bytes"]) == (False, 0, 0, 0)
    assert after["reason"] == "registering costs no more than looking it up"


def test_the_switch_of_the_cache_is_checked(tmp_path: Path) -> None:
    assert _run(tmp_path, 1, RING, "1000", PYMPX_REGCACHE="off").code == 0
    ended = _run(tmp_path, 1, RING, "1000", PYMPX_REGCACHE="perhaps")
    assert ended.code != 0
    assert "PYMPX_REGCACHE='perhaps': expecting auto or off" in ended.err
