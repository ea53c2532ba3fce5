"""Children of ranks, by fork, subprocess and multiprocessing, while the ranks communicate: safe, silent, and no ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from launchers import Start

FORKS = """
    import os, sys, time
    import numpy as np
    before = len(os.listdir("/proc/self/fd"))
    from pympx import MPI

    comm = MPI.COMM_WORLD
    neighbour, other = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    pending = comm.Irecv(buffer := np.zeros(400_000), other, 7)
    for peer in range(comm.size):
        if peer != comm.rank:
            comm.Sendrecv(np.zeros(1), peer, 3, np.zeros(1), peer, 3)
    pid = os.fork()
    if pid == 0:
        assert len(os.listdir("/proc/self/fd")) <= before, os.listdir("/proc/self/fd")
        assert MPI.Is_finalized() and comm.size > 1
        for call in (comm.Barrier, pending.Wait, lambda: comm.send(1, neighbour), lambda: comm.Irecv(np.zeros(1))):
            try:
                call()
            except MPI.Exception as error:
                assert "forked child" in str(error), error
            else:
                raise AssertionError(f"{call} did not raise")
        del pending  # nor does forgetting it touch anything
        if how == "exit":
            sys.exit(5)
        if how == "exception":
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            raise ValueError("of the child")
        if how == "_exit":
            os._exit(5)
        while True:  # killed by its parent
            time.sleep(10)
    if how == "killed":
        os.kill(pid, 9)
    comm.Barrier()
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert ended == {"exit": 5, "exception": 1, "_exit": 5, "killed": -9}[how], ended
    comm.Send(np.full(400_000, float(comm.rank)), neighbour, 7)
    pending.Wait()
    assert (buffer == other).all()
    comm.Barrier()
"""

POOLS = """
    import multiprocessing, sys
    from pympx import MPI

    def square(x):
        return x * x

    def place(_):
        return MPI.COMM_WORLD.size  # a program of its own: alone

    if __name__ == "__main__":
        how = sys.argv[1]
        comm = MPI.COMM_WORLD
        comm.Barrier()
        with multiprocessing.get_context(how).Pool(2) as pool:
            squares = pool.map_async(square, range(200), 10)
            while comm.allreduce(int(squares.ready())) < comm.size:
                pass
            assert squares.get() == [x * x for x in range(200)]
            if how != "fork":
                assert pool.map(place, range(2)) == [1, 1]
        comm.Barrier()
"""


@pytest.mark.parametrize(("launcher", "transport"), [("run", "shm"), ("run", "tcp"), ("hydra", "tcp")])
@pytest.mark.parametrize("how", ["exit", "exception", "_exit", "killed"])
def test_a_forked_child_is_no_rank(launcher: str, transport: str, how: str, start: Start, script: Callable[[str], str]) -> None:
    """It has none of the rank's descriptors, its calls raise, and its end, however it comes, is its own affair."""
    done = start(launcher, 3, [sys.executable, script(f"    how = {how!r}" + FORKS)], PYMPX_TRANSPORT=transport)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("launcher", ["run", "hydra", "prrte"])
@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_pools_work_while_ranks_communicate(launcher: str, how: str, start: Start, script: Callable[[str], str]) -> None:
    done = start(launcher, 2, [sys.executable, script(POOLS), how])
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("launcher", ["run", "hydra"])
def test_a_fork_before_the_first_use(launcher: str, start: Start, script: Callable[[str], str]) -> None:
    """The child of a process that has not joined yet does not take the rank's place."""
    text = """
    import os, sys
    from pympx import MPI
    pid = os.fork()
    if pid == 0:
        try:
            MPI.COMM_WORLD.Barrier()
        except MPI.Exception as error:
            os._exit(0 if "forked child" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert MPI.COMM_WORLD.allreduce(1) == 2
    """
    done = start(launcher, 2, [sys.executable, script(text)])
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_forks_of_one_thread_while_others_communicate(transport: str, start: Start, script: Callable[[str], str]) -> None:
    """A fork waits until no thread is inside the engine: the child can always end, and close what it must."""
    text = """
    import os, threading
    import numpy as np
    from pympx import MPI

    comm = MPI.COMM_WORLD
    comms = [comm.Dup() for _ in range(2)]
    over = threading.Event()

    def talk(mine):
        rounds = 0
        while mine.allreduce(int(over.is_set())) == 0:
            mine.Sendrecv(np.zeros(1000), 1 - mine.rank, 1, np.zeros(1000), 1 - mine.rank, 1)
            mine.Dup().Free()  # these take the engine's lock without giving up the interpreter's
            rounds += 1
        assert rounds > 0

    threads = [threading.Thread(target=talk, args=(each,)) for each in comms]
    for thread in threads:
        thread.start()
    for _ in range(40):
        pid = os.fork()
        if pid == 0:
            try:
                comm.Barrier()
            except MPI.Exception:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    over.set()
    for thread in threads:
        thread.join()
    comm.Barrier()
    """
    done = start("run", 2, [sys.executable, script(text)], PYMPX_TRANSPORT=transport)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_subprocess_gets_no_descriptor(start: Start, script: Callable[[str], str]) -> None:
    text = f"""
    import os, subprocess, sys
    from pympx import MPI
    comm = MPI.COMM_WORLD
    comm.Barrier()
    listing = "import os; print(*os.listdir('/proc/self/fd'))"
    said = subprocess.run([{sys.executable!r}, "-c", listing], close_fds=False, capture_output=True)
    open(os.path.join({os.fspath(Path(script("")).parent)!r}, f"said.{{comm.rank}}"), "wb").write(said.stdout)
    comm.Barrier()
    """
    path = script(text)
    done = start("run", 2, [sys.executable, path], PYMPX_TRANSPORT="auto")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    for rank in range(2):
        fds = {int(fd) for fd in Path(path).with_name(f"said.{rank}").read_text().split()}
        assert len(fds - {0, 1, 2}) <= 1, fds  # the directory that is being listed
