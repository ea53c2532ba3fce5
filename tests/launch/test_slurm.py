"""Plain srun without Slurm: the local socket at which tasks of one node meet believes processes of this user only."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys

import pytest
from support import environment, execute, execute_ranks

from pympx.bootstrap.base import BootstrapError
from pympx.bootstrap.slurm import first_host

GATHER = """
import sys
from pympx.bootstrap import BootstrapError, join
try:
    job = join()
    print(job.name, job.allgather(b"%d" % job.rank))
except BootstrapError as error:
    sys.exit(str(error))
job.finalize()
"""
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")


def task(rank: int, size: int, **more: str) -> dict[str, str]:
    """The variables of a task of a step that no real Slurm will ever number so."""
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "4000000000", "SLURM_STEP_NUM_NODES": "1", "PYMPX_JOIN_TIMEOUT": "20"}
    return environment(SLURM_PROCID=str(rank), SLURM_STEP_NUM_TASKS=str(size), **(step | more))


def place() -> bytes:
    return b"\0" + f"pympx-{os.getuid()}-{os.getpid()}-4000000000".encode()


def test_tasks_meet() -> None:
    results = execute_ranks([[sys.executable, "-c", GATHER]] * 3, [task(rank, 3) for rank in range(3)])
    assert results == [(0, "slurm [b'0', b'1', b'2']\n", "")] * 3


@needs_root
def test_listener_of_another_user_is_not_believed() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place())
        heard = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setuid(NOBODY)
            server.listen(8)  # the kernel notes who listens
            while True:
                connection, _ = server.accept()
                os.write(heard[1], b"heard" if connection.recv(64) else b".")
        try:
            done = execute([sys.executable, "-c", GATHER], env=task(1, 2, PYMPX_JOIN_TIMEOUT="1"))
            assert select.select([heard[0]], [], [], 10)[0]
            assert set(os.read(heard[0], 4096)) == {ord(".")}  # not a byte was said to it
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (1, b"", 1)
    assert "another user's process listens there" in lines[0]


@needs_root
def test_guest_of_another_user_is_turned_away() -> None:
    stranger = f"""
import os, socket
os.setuid({NOBODY})
with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(20)
    while True:
        try:
            connection.connect({place()!r})
            break
        except ConnectionRefusedError:
            pass
    print(connection.recv(1))
"""
    with subprocess.Popen([sys.executable, "-c", GATHER], env=task(0, 2), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as root:
        try:
            done = execute([sys.executable, "-c", stranger])
            assert (done.returncode, done.stdout, done.stderr) == (0, b"b''\n", b"")
            assert root.poll() is None
            done = execute([sys.executable, "-c", GATHER], env=task(1, 2))
            assert (done.returncode, done.stdout, done.stderr) == (0, b"slurm [b'0', b'1']\n", b"")
            assert root.communicate(timeout=20) == (b"slurm [b'0', b'1']\n", b"")
        finally:
            root.kill()


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[03-05,9],m1", "n03"),
        ("a[2,4]-b[07-08]c,x", "a2-b07c"),
        ("gpu-1.cluster.org", "gpu-1.cluster.org"),
    ],
)
def test_first_host_of_a_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


@pytest.mark.parametrize("hosts", ["", " ", ",n1", "]"])
def test_list_without_a_host(hosts: str) -> None:
    with pytest.raises(BootstrapError, match="SLURM_STEP_NODELIST"):
        first_host(hosts)
