"""Ranks started by every supported launcher find each other, exchange blobs of all lengths and agree on a key that nobody else can read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from launchers import LAUNCHERS, MPI_LIBRARIES, Start
from support import RUN, environment, execute, execute_ranks, free_port, mpiexec

from pympx.bootstrap import join

PROGRAM = """
    import hashlib, os, random, sys
    from pympx.bootstrap import join

    def blob(rank, length):
        return random.Random(rank * 1000003 + length).randbytes(length)

    job = join()
    assert 0 <= job.rank < job.size
    for length in (1, 5 << 10, 100 << 10, 0):
        mine = blob(job.rank, length)
        assert job.allgather(mine) == [blob(rank, length) for rank in range(job.size)], length
    # lengths that differ by rank
    assert job.allgather(b"x" * (job.rank * 3000)) == [b"x" * (rank * 3000) for rank in range(job.size)]
    key = job.job_key()
    assert len(key) == 32 and key == job.job_key()
    import base64
    places = [open(f"/proc/self/{name}", "rb").read() for name in ("environ", "cmdline")]
    places += [open(f"/proc/{os.getppid()}/{name}", "rb").read() for name in ("environ", "cmdline")]
    places.append(repr(dict(os.environ)).encode())
    for place in places:
        for form in (key, key.hex().encode(), base64.b64encode(key)[:40], base64.urlsafe_b64encode(key)[:40]):
            assert form not in place
    job.barrier()
    job.finalize()
    job.finalize()
    sys.stdout.write(f"{job.name} {job.rank} {job.size} {hashlib.sha256(key).hexdigest()}\\n")
"""


def check(lines: list[str], way: str, size: int) -> None:
    words = sorted((line.split() for line in lines), key=lambda each: int(each[1]))
    assert [each[:3] for each in words] == [[way, str(rank), str(size)] for rank in range(size)]
    assert len({each[3] for each in words}) == 1


@pytest.mark.parametrize("size", range(1, 6))
@pytest.mark.parametrize("launcher", ["run", "hydra", "hydra-port", "gforker", "env", "env-key-file"])
def test_exchange(launcher: str, size: int, script: Callable[[str], str], tmp_path: Path) -> None:
    program = script(PROGRAM)
    if launcher.startswith("env"):
        port = str(free_port())
        key_file = tmp_path / "key"
        key_file.write_bytes(b"0123456789abcdef0123456789abcdef")
        key_file.chmod(0o600)
        more = {"PYMPX_JOB_KEY_FILE": str(key_file)} if launcher == "env-key-file" else {}
        settings = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | more
        results = execute_ranks([[sys.executable, program]] * size, [environment(RANK=str(rank), **settings) for rank in range(size)])
        assert [(code, err) for code, _, err in results] == [(0, "")] * size
        check([out for _, out, _ in results], "env", size)
        return
    commands = {"run": RUN, "hydra": [mpiexec()], "hydra-port": [mpiexec(), "-pmi-port"], "gforker": [mpiexec() + ".gforker"]}
    done = execute([*commands[launcher], "-n", str(size), sys.executable, program])
    assert (done.returncode, done.stderr) == (0, b"")
    check(done.stdout.decode().splitlines(), "pmi1", size)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("launcher", ["debian-mpich", "prrte", "debian-openmpi", "srun-pmi2", "srun-pmix", "srun-none"])
def test_exchange_under_other_launchers(launcher: str, size: int, start: Start, script: Callable[[str], str]) -> None:
    done = start(launcher, size, [sys.executable, script(PROGRAM)])
    assert (done.returncode, done.stderr) == (0, b"")
    way = LAUNCHERS[launcher].way
    check(done.stdout.decode().splitlines(), "single" if (way, size) == ("slurm", 1) else way, size)


def test_alone() -> None:
    environ: dict[str, str] = {}
    job = join(environ)
    assert (job.name, job.rank, job.size, job.allgather(b"x")) == ("single", 0, 1, [b"x"])
    assert len(job.job_key()) == 32 and job.job_key() == job.job_key() != join({}).job_key()


def test_rank_and_size_need_no_fence(script: Callable[[str], str]) -> None:
    """A rank knows its place while another has not even joined: rank 1 waits for rank 0's end."""
    program = script("""
        import os, sys, time
        from pympx.bootstrap import join
        if os.environ["PMI_RANK"] == "1":
            while not os.path.exists(sys.argv[1]):
                time.sleep(0.01)
        job = join()
        print(job.rank, job.size)
        open(sys.argv[1], "w").close()
        job.finalize()
    """)
    done = execute([*RUN, "-n", "2", program, program + ".joined"])
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0 2\n1 2\n", b"")


def test_more_ranks_than_cores(script: Callable[[str], str]) -> None:
    done = execute([*RUN, "-n", "24", script(PROGRAM)], limit=60)
    assert (done.returncode, done.stderr) == (0, b"")
    check(done.stdout.decode().splitlines(), "pmi1", 24)


def test_no_internet_socket(script: Callable[[str], str]) -> None:
    """Neither the ranks nor the launcher hold an internet socket after an exchange."""
    program = script("""
        import glob, os
        from pympx.bootstrap import join
        job = join()
        job.allgather(b"x" * 5000)
        job.job_key()
        inet = set()
        for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
            for line in list(open(f"/proc/self/net/{table}"))[1:]:
                inet.add(line.split()[9])
        held, sockets = [], 0
        for pid in ("self", os.getppid()):
            for fd in glob.glob(f"/proc/{pid}/fd/*"):
                try:
                    target = os.readlink(fd)
                except OSError:
                    continue
                if target.startswith("socket:"):
                    sockets += 1
                    if target[8:-1] in inet:
                        held.append((pid, fd))
        assert sockets >= 1 + job.size, sockets   # ours, and the launcher's to every rank: the search works
        assert not held, held
        job.barrier()
        job.finalize()
    """)
    done = execute([*RUN, "-n", "3", program])
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("launcher", "first"),
    [("run", "mpi4py"), ("run", "pympx"), ("hydra", "mpi4py"), ("hydra", "pympx"), ("prrte", "mpi4py"), ("debian-openmpi", "mpi4py")],
)
def test_beside_an_mpi_in_one_process(launcher: str, first: str, start: Start, script: Callable[[str], str]) -> None:
    pytest.importorskip("mpi4py")
    program = script("""
        import sys
        from pympx.bootstrap import join
        if sys.argv[1] == "pympx":
            job = join()
            job.barrier()
        from mpi4py import MPI
        job = job if sys.argv[1] == "pympx" else join()
        assert MPI.COMM_WORLD.allgather(job.rank) == [0, 1]
        assert job.allgather(b"%d" % job.rank) == [b"0", b"1"]
        job.finalize()
        assert MPI.COMM_WORLD.allreduce(1) == 2
    """)
    done = start(launcher, 2, [sys.executable, program, first], MPI4PY_LIBMPI=str(MPI_LIBRARIES[launcher]))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
