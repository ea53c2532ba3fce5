"""Every launcher of the table: hello, messages of all protocols and heat run, and how a job ends that does not end well."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from launchers import LAUNCHERS, ROOT, Launcher, Start

EVERY = pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)

HELLO = """
    import os
    from pympx import MPI, runtime
    comm = MPI.COMM_WORLD
    total = comm.allreduce(comm.Get_rank())
    # one write per line: some launchers tear what comes in pieces
    os.write(1, f"{runtime.bootstrap().name} {comm.Get_rank()} {comm.Get_size()} {total}\\n".encode())
"""


@EVERY
def test_hello(launcher: Launcher, start: Start, script: Callable[[str], str]) -> None:
    done = start(launcher, 4, [sys.executable, script(HELLO)])
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(done.stdout.decode().splitlines()) == [f"{launcher.way} {rank} 4 6" for rank in range(4)]


MESSAGES = """
    import sys
    import numpy as np
    from pympx import MPI
    comm = MPI.COMM_WORLD
    rank, size = comm.Get_rank(), comm.Get_size()
    after, before = (rank + 1) % size, (rank - 1) % size

    def content(sender, count):
        return np.random.default_rng(sender * 7919 + count).integers(0, 256, count, dtype=np.uint8)

    for count in (0, 1, 8, 4096, 65536, 3 << 20):      # short, eager, rendezvous
        mine, theirs = content(rank, count), np.empty(count, np.uint8)
        comm.Sendrecv(mine, after, 1, theirs, before, 1)
        assert np.array_equal(theirs, content(before, count)), count
        theirs[:] = 0
        request = comm.Irecv(theirs, before, 2)
        comm.Ssend(mine, after, 2)
        request.Wait()
        assert np.array_equal(theirs, content(before, count)), count
    requests = [comm.isend({"from": rank, "to": other}, other, 3) for other in range(size)]
    seen = set()
    for _ in range(size):
        status = MPI.Status()
        comm.Probe(MPI.ANY_SOURCE, 3, status)
        letter = comm.recv(source=status.Get_source(), tag=3)
        assert letter == {"from": status.Get_source(), "to": rank}
        seen.add(letter["from"])
    assert seen == set(range(size))
    MPI.Request.waitall(requests)
    everything = np.zeros(size, "i")
    comm.Allgather(np.array([rank], "i"), everything)
    assert list(everything) == list(range(size))
"""


@EVERY
def test_messages(launcher: Launcher, start: Start, script: Callable[[str], str]) -> None:
    done = start(launcher, 3, [sys.executable, script(MESSAGES)])
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@EVERY
def test_heat(launcher: Launcher, start: Start, tmp_path: Path) -> None:
    record = tmp_path / "heat.json"
    words = ["--size", "24", "--tolerance", "1e-6", "--json", str(record)]
    done = start(launcher, 4, [sys.executable, str(ROOT / "apps" / "heat" / "heat.py"), *words])
    assert (done.returncode, done.stderr) == (0, b"")
    said = json.loads(record.read_text())
    assert (said["verified"], said["ranks"]) == (True, 4)


BEGINNING = """
    import sys
    from pympx import MPI
    comm = MPI.COMM_WORLD
    rank = comm.Get_rank()
    comm.Barrier()
"""
#: What rank 1 of 3 does, and the exit code of the job; in all but the first the others wait for a message that never comes.
ENDINGS = {
    "sys.exit(3)": ("if rank == 1: sys.exit(3)", 3),
    "exception": ("if rank == 1: raise ValueError('planted')", 1),
    "Abort(7)": ("if rank == 1: comm.Abort(7)", 7),
}
#: Slurm's PMI-1 service kills the step at an abort and reports the killed tasks, whatever code came with it.
OTHERWISE = {("srun-pmi2", "exception"): 137, ("srun-pmi2", "Abort(7)"): 137}


@EVERY
@pytest.mark.parametrize("ending", ENDINGS)
def test_exit_code(launcher: Launcher, ending: str, start: Start, script: Callable[[str], str]) -> None:
    act, code = ENDINGS[ending]
    wait = "" if ending == "sys.exit(3)" else "    comm.recv(source=1)\n"
    done = start(launcher, 3, [sys.executable, script(f"{BEGINNING}    {act}\n{wait}")])
    assert done.returncode == OTHERWISE.get((launcher.name, ending), code), done
    assert done.stdout == b""
    assert (b"ValueError: planted" in done.stderr) == (ending == "exception")


@pytest.mark.parametrize("kind", ["pmi2", "pmix"])
def test_srun_over_two_nodes(kind: str, start: Start, script: Callable[[str], str]) -> None:
    row = LAUNCHERS[f"srun-{kind}"]
    wide = Launcher(row.name, row.way, row.program, ("-Q", "-N2", f"--mpi={kind}"))
    done = start(wide, 4, [sys.executable, script(HELLO)])
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(done.stdout.decode().splitlines()) == [f"{row.way} {rank} 4 6" for rank in range(4)]


def test_plain_srun_over_two_nodes_needs_a_key(start: Start, script: Callable[[str], str], tmp_path: Path) -> None:
    """Without a key file every task says what to add; with one they meet at the first node, here by MASTER_ADDR: n1 does not resolve."""
    row = LAUNCHERS["srun-none"]
    wide = Launcher(row.name, row.way, row.program, ("-Q", "-N2", "--mpi=none"))
    program = [sys.executable, script(HELLO)]
    done = start(wide, 2, program)
    lines = [line for line in done.stderr.decode().splitlines() if not line.startswith("srun: ")]
    assert (done.returncode, done.stdout, len(lines)) == (1, b"", 2)
    assert all("srun --mpi=pmi2" in line and "PYMPX_JOB_KEY_FILE" in line for line in lines)
    key = tmp_path / "key"
    key.write_bytes(b"0123456789abcdef0123456789abcdef")
    key.chmod(0o600)
    done = start(wide, 2, program, PYMPX_JOB_KEY_FILE=str(key), MASTER_ADDR="127.0.0.1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(done.stdout.decode().splitlines()) == ["slurm 0 2 1", "slurm 1 2 1"]
