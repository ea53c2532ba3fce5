"""Transport fault as a user asks for it: by PYMPX_TRANSPORT and PYMPX_FAULT, around transports of both kinds; what breaks is raised."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pympx.testing.jobs import launcher_command

TROUBLE = "no_resource=0.05,burst=0.0003,late=0.3,hold=0.1,delay=0.0005,seed=11"

TRAFFIC = """
import sys
import numpy as np
import pympx
from pympx import MPI
comm = MPI.COMM_WORLD
right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
for number, size in enumerate([0, 1, 100, 5000, 70_000, 1_000_000] * 5):
    sent = np.random.default_rng([number, comm.rank]).integers(0, 256, size, dtype=np.uint8)
    got = np.empty(size, np.uint8)
    comm.Sendrecv(sent, right, number, got, left, number)
    assert (got == np.random.default_rng([number, left]).integers(0, 256, size, dtype=np.uint8)).all()
assert comm.allreduce(comm.rank) == sum(range(comm.size))
sys.stdout.write(" ".join(sorted(name for name in pympx.counters() if name != "self")) + chr(10))
"""

BREAKS = """
import sys
import numpy as np
from pympx import MPI
comm = MPI.COMM_WORLD
word = np.zeros(1)
try:
    for number in range(1000):
        if comm.rank == 0:
            comm.Send(word, 1)
            comm.Recv(word, 1)
        else:
            comm.Recv(word, 0)
            comm.Send(word, 0)
except MPI.Exception as error:
    assert error.Get_error_class() == MPI.ERR_PROC_FAILED
    assert 30 < number <= 50, number
    sys.stdout.write(f"rank {comm.rank} heard of it" + chr(10))
"""


def run(tmp_path: Path, program: str, ranks: int, **environment: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "program.py"
    path.write_text(program)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYMPX_")}
    command = launcher_command([sys.executable, "-P", str(path)], ranks, "mpiexec")
    return subprocess.run(command, env={**clean, **environment}, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("over", ["shm", "tcp", "unix", "mpi"])
def test_traffic_survives(tmp_path: Path, over: str) -> None:
    done = run(tmp_path, TRAFFIC, 3, PYMPX_TRANSPORT="fault", PYMPX_FAULT=f"over={over},{TROUBLE}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "fault\n" * 3, "")


def test_it_is_absent_unless_named(tmp_path: Path) -> None:
    done = run(tmp_path, TRAFFIC, 2, PYMPX_FAULT=f"over=tcp,{TROUBLE}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "shm\n" * 2, "")


def test_a_broken_ep_is_raised_on_both_sides(tmp_path: Path) -> None:
    """The 50th operation of each ep finds it broken; who is there first leaves, which the other hears."""
    done = run(tmp_path, BREAKS, 2, PYMPX_TRANSPORT="fault", PYMPX_FAULT="over=shm,break_at=50")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["rank 0 heard of it", "rank 1 heard of it"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("over=shm,hold=2", "'hold=2': expecting a chance from 0 to 1"),
        ("over=shm,nonsense=1", "'nonsense=1': expecting no_resource="),
        ("hold=0.1", "expecting over=NAME once"),
        ("over=fault", "expecting over=NAME once"),
    ],
)
def test_wrong_settings_end_the_run_with_a_line(tmp_path: Path, settings: str, said: str) -> None:
    done = run(tmp_path, TRAFFIC, 2, PYMPX_TRANSPORT="fault", PYMPX_FAULT=settings)
    assert done.returncode != 0 and done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("pympx: ")]
    assert lines and all("PYMPX_FAULT" in line and said in line for line in lines), done.stderr
    assert "Traceback" not in done.stderr
