"""heat, EP, CG and IS verify over transport mpi, each MPI under its own mpiexec, and MPI carried what they say."""

from __future__ import annotations

from pathlib import Path

import mpi_launchers
import pytest
from apps_harness import Launcher, check_traffic, check_verified

pytest.importorskip("mpi4py")

PROGRAMS = {
    "heat": ("apps/heat/heat.py", "--size", "31"),
    "ep": ("apps/npb/npb.py", "ep", "--class", "S"),
    "cg": ("apps/npb/npb.py", "cg", "--class", "S"),
    "is": ("apps/npb/npb.py", "is", "--class", "S"),
}


@pytest.mark.parametrize("mpi", mpi_launchers.LAUNCHERS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("program", PROGRAMS)
def test_verifies_over_mpi(launch: Launcher, program: str, ranks: int, mpi: str) -> None:
    run = launch(ranks, *PROGRAMS[program], transport="mpi", mpi=mpi)
    check_verified(run, ranks)
    check_traffic(run, ranks, "mpi")


OTHERS = """
import numpy as np
from mpi4py import MPI as other
from pympx import MPI
comm = MPI.COMM_WORLD
theirs = other.COMM_WORLD
assert comm.Get_size() == theirs.Get_size() == 3
right, left = (comm.Get_rank() + 1) % 3, (comm.Get_rank() - 1) % 3
request = theirs.irecv(source=left)              # both at once, on the same ranks and tags
mine = comm.irecv(source=left)
theirs.send("theirs", right)
comm.send("ours", right)
assert (request.wait(), mine.wait()) == ("theirs", "ours")
big = np.arange(300_000.0)
got = np.empty_like(big)
comm.Sendrecv(big, right, 0, got, left, 0)
assert (got == big).all()
MPI.Finalize()
assert not other.Is_finalized()                  # it was here before us
assert theirs.allreduce(1) == 3
"""


@pytest.mark.parametrize("mpi", mpi_launchers.LAUNCHERS)
def test_the_programs_own_mpi_is_not_disturbed(launch: Launcher, mpi: str, tmp_path: Path) -> None:
    program = tmp_path / "others.py"
    program.write_text(OTHERS)
    run = launch(3, str(program), transport="mpi", mpi=mpi)
    assert (run.code, run.err) == (0, ""), run.err


@pytest.mark.parametrize("mpi", mpi_launchers.LAUNCHERS)
def test_an_exception_ends_the_job(launch: Launcher, mpi: str, tmp_path: Path) -> None:
    program = tmp_path / "fails.py"
    program.write_text(
        "from pympx import MPI\ncomm = MPI.COMM_WORLD\ncomm.Barrier()\n"
        "if comm.rank == 1: raise ValueError('planted')\ncomm.recv(source=1)\n"
    )
    run = launch(2, str(program), transport="mpi", mpi=mpi)
    assert run.code != 0
    assert "ValueError: planted" in run.err
