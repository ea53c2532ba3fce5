"""PYMPX_BOOTSTRAP=mpi4py: ranks that join through another MPI, each MPI under its own mpiexec."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from launchers import MPI_LIBRARIES, Start
from support import environment, execute

pytest.importorskip("mpi4py")

PROGRAM = """
    import os, subprocess, sys
    from pympx import MPI, runtime
    comm = MPI.COMM_WORLD
    assert comm.allreduce(comm.Get_rank()) == sum(range(comm.Get_size()))
    boot = runtime.bootstrap()
    for length in (0, 1, 5000):
        assert boot.allgather(b"x" * (length + boot.rank)) == [b"x" * (length + rank) for rank in range(boot.size)]
    other = sys.modules["mpi4py.MPI"]
    assert other is not MPI and other.COMM_WORLD.Get_size() == comm.Get_size()
    program = "from pympx import MPI; print(MPI.COMM_WORLD.Get_size())"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (child.returncode, child.stdout, child.stderr) == (0, "1\\n", ""), child
    MPI.Finalize()
    assert other.Is_finalized()
    os.write(1, f"{boot.name} {comm_rank}\\n".encode())
""".replace("{comm_rank}", "{boot.rank}")


@pytest.mark.parametrize("launcher", MPI_LIBRARIES)
def test_each_mpi_under_its_launcher(launcher: str, start: Start, script: Callable[[str], str]) -> None:
    settings = {"PYMPX_BOOTSTRAP": "mpi4py", "MPI4PY_LIBMPI": str(MPI_LIBRARIES[launcher])}
    done = start(launcher, 3, [sys.executable, script(PROGRAM)], **settings)
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(done.stdout.decode().splitlines()) == [f"mpi4py {rank}" for rank in range(3)]


@pytest.mark.parametrize("launcher", ["hydra", "prrte"])
@pytest.mark.parametrize(("act", "code"), [("comm.Abort(7)", 7), ("raise ValueError('planted')", 1), ("sys.exit(3)", 3)], ids=str)
def test_exit_code(launcher: str, act: str, code: int, start: Start) -> None:
    wait = "" if code == 3 else "comm.recv(source=1)"
    program = f"import sys\nfrom pympx import MPI\ncomm = MPI.COMM_WORLD\ncomm.Barrier()\nif comm.Get_rank() == 1: {act}\n{wait}"
    settings = {"PYMPX_BOOTSTRAP": "mpi4py", "MPI4PY_LIBMPI": str(MPI_LIBRARIES[launcher])}
    assert start(launcher, 3, [sys.executable, "-c", program], **settings).returncode == code


def test_mpi_of_the_program_is_left_alone(start: Start, script: Callable[[str], str]) -> None:
    program = script("""
        from mpi4py import MPI as other
        from pympx import MPI
        assert MPI.COMM_WORLD.allreduce(1) == other.COMM_WORLD.allreduce(1) == 2
        MPI.Finalize()
        assert other.COMM_WORLD.allreduce(1) == 2
    """)
    done = start("hydra", 2, [sys.executable, program], PYMPX_BOOTSTRAP="mpi4py")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


JOIN = [sys.executable, "-c", "from pympx.bootstrap import join_or_exit; print(join_or_exit().name)"]


def test_mpi_that_does_not_know_the_launcher() -> None:
    """MPICH without its launcher is a world of one; what started three ranks says otherwise."""
    done = execute(JOIN, env=environment(PYMPX_BOOTSTRAP="mpi4py", SLURM_NTASKS="3"))
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (1, b"", 1)
    assert "the launcher started 3 ranks" in lines[0] and "MPICH" in lines[0]


def test_alone() -> None:
    done = execute(JOIN, env=environment(PYMPX_BOOTSTRAP="mpi4py"))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"mpi4py\n", b"")


def test_mpi4py_that_is_pympx_itself(script: Callable[[str], str]) -> None:
    program = script("from mpi4py import MPI; MPI.COMM_WORLD.Get_size()")
    done = execute([sys.executable, "-m", "pympx.as_mpi4py", program], env=environment(PYMPX_BOOTSTRAP="mpi4py"))
    assert done.returncode == 1 and b"is pympx itself" in done.stderr.splitlines()[-1]
