"""A port that a firewall closes: both ends and the port are named within 3 s, and the job ends; one open direction is enough."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hosts_support import LAUNCHERS, launch, program

from pympx.testing.hosts import Hosts

PORT = 8445
MESSAGE = (
    r"rank 1 \(b\) cannot reach rank 0 at 10\.77\.0\.1:8445: timed out after 1 s; "
    r"open the port or set PYMPX_TCP_PORTS / PYMPX_TCP_INTERFACES"
)

RANK_1_SPEAKS = """
    import time
    from pympx import MPI
    comm = MPI.COMM_WORLD
    rank = comm.rank
    if rank == 0:
        comm.recv(source=1)
    else:
        begin = time.monotonic()
        try:
            comm.send(b"x", 0)
        except MPI.Exception as error:
            assert error.Get_error_class() == MPI.ERR_PROC_FAILED
            print(f"after {time.monotonic() - begin:.2f} s: {error}")
            raise
"""


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_closed_port_is_named_with_both_ends(two: Hosts, launcher: str, tmp_path: Path) -> None:
    two.close_ports("a", PORT, PORT)
    begin = time.monotonic()
    done = launch(two, launcher, "a:1,b:1", 2, program(tmp_path, RANK_1_SPEAKS), folder=tmp_path, PYMPX_TCP_PORTS=str(PORT))
    assert time.monotonic() - begin < 6, "the other rank was left waiting"
    assert done.returncode != 0
    found = re.search(rf"after ([0-9.]+) s: .*{MESSAGE}", done.stdout)
    assert found, done.stdout + done.stderr
    assert 1.9 < float(found[1]) < 3
    told = [line for line in done.stderr.splitlines() if "cannot reach" in line]
    assert len(told) == 1, done.stderr
    assert re.search(MESSAGE, told[0])


def test_every_rank_that_tries_says_so(two: Hosts, tmp_path: Path) -> None:
    """Closed in both directions: a barrier raises on both ranks, each naming itself first."""
    for name in ("a", "b"):
        two.close_ports(name, PORT, PORT)
    text = """
    from pympx import MPI
    try:
        MPI.COMM_WORLD.Barrier()
    except MPI.Exception as error:
        print(error, flush=True)
    """
    done = launch(two, "run", "a,b", 2, program(tmp_path, text), folder=tmp_path, PYMPX_TCP_PORTS=str(PORT))
    assert re.search(r"rank 0 \(a\) cannot reach rank 1 at 10\.77\.0\.2:8445: timed out", done.stdout), done.stdout + done.stderr
    assert re.search(r"rank 1 \(b\) cannot reach rank 0 at 10\.77\.0\.1:8445: timed out", done.stdout), done.stdout + done.stderr


def test_one_open_direction_is_enough(two: Hosts, tmp_path: Path) -> None:
    """Both ranks begin; the one that can reach the other connects, and the other's vain tries do no harm."""
    two.close_ports("a", PORT, PORT)
    text = """
    import numpy as np
    from pympx import MPI
    comm = MPI.COMM_WORLD
    for turn in range(50):
        assert comm.allreduce(turn + comm.rank) == 2 * turn + 1
    total = comm.allreduce(np.full(300000, comm.rank + 1.0))
    assert (total == 3).all()
    """
    begin = time.monotonic()
    done = launch(two, "run", "a,b", 2, program(tmp_path, text), folder=tmp_path, PYMPX_TCP_PORTS=str(PORT))
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - begin < 3
