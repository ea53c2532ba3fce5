"""How ranks with calls begin and end: workers without a main program, exceptions, a rank that is killed, transports that cannot serve."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pympx.testing.hang import Result, format_stacks, run_ranks

SITE = Path(__file__).resolve().parents[1] / "plugins" / "site"


def run(folder: Path, ranks: int, text: str, *words: str, transport: str = "shm", keep_going: bool = False) -> Result:
    program = folder / "program.py"
    program.write_text(text)
    environment = {**os.environ, "PYMPX_TRANSPORT": transport, "PYTHONPATH": str(SITE)}
    command = [sys.executable, "-P", str(program), *words]
    if keep_going:
        result = run_ranks(["--keep-going", *command], ranks, launcher="run", env=environment, timeout=60)
    else:
        result = run_ranks(command, ranks, env=environment, timeout=60)
    assert not result.timed_out, f"{result.stdout}\n{result.stderr}\n{format_stacks(result.stacks)}"
    return result


WORKERS = """
import time
from pympx import rpc
def square(x):
    return x * x
if {manager}:
    from pympx import MPI
    size = MPI.COMM_WORLD.size
    time.sleep(0.3)  # the workers' main programs have ended
    calls = [rpc.call(rank, square, i) for rank in range(size) for i in range(100)]
    assert sum(call.result() for call in calls) == size * sum(i * i for i in range(100))
    print("done")
"""


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("manager", [0, 2])
def test_workers_serve_although_their_main_program_is_empty(tmp_path: Path, transport: str, manager: int) -> None:
    text = WORKERS.replace("{manager}", f"__import__('os').environ['PMI_RANK'] == '{manager}'")
    result = run(tmp_path, 3, text, transport=transport)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


def test_imported_and_not_used(tmp_path: Path) -> None:
    result = run(tmp_path, 3, "from pympx import rpc\n")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_an_exception_on_the_rank_that_is_called(tmp_path: Path, transport: str) -> None:
    result = run(tmp_path, 2, """
import threading
from pympx import MPI, rpc
comm = MPI.COMM_WORLD
begun = threading.Event()
def never():
    begun.set()
    threading.Event().wait()
comm.Barrier()
if comm.rank == 1:
    begun.wait()
    raise ValueError("bad input")
try:
    rpc.call(1, never).result()
except MPI.Exception as error:
    print(error.Get_error_class() == MPI.ERR_PROC_FAILED, error, flush=True)
    raise
""", transport=transport)  # fmt: skip
    assert result.returncode == 1
    assert "True MPI_ERR_PROC_FAILED: call of never on rank 1: rank 1 raised ValueError: bad input; the job ends" in result.stdout
    assert result.stderr.count("Traceback") == 1 and "ValueError: bad input" in result.stderr


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_killed_rank_ends_its_calls_and_no_others(tmp_path: Path, transport: str) -> None:
    result = run(tmp_path, 3, """
import os, signal, time
from pympx import MPI, rpc
comm = MPI.COMM_WORLD
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def rank():
    return comm.rank
comm.Barrier()
if comm.rank == 0:
    assert rpc.call(1, rank).result() == 1
    calls = [rpc.call(1, die)] + [rpc.call(1, rank) for _ in range(50)]
    others = [rpc.call(2, rank) for _ in range(50)]
    begun = time.monotonic()
    for call in calls:
        assert call.exception().Get_error_class() == MPI.ERR_PROC_FAILED
    assert time.monotonic() - begun < 5
    assert [call.result() for call in others] == [2] * 50
    late = rpc.call(1, rank)
    assert not late.cancel() and late.exception().Get_error_class() == MPI.ERR_PROC_FAILED
    try:
        rpc.ping(1)
    except MPI.Exception as error:
        print(error.Get_error_class() == MPI.ERR_PROC_FAILED)
""", transport=transport, keep_going=True)  # fmt: skip
    assert result.stdout == "True\n", result.stderr


def test_a_rank_without_calls_is_no_enemy(tmp_path: Path) -> None:
    """Its caller is told that nobody knows, and when it has calls it serves what has come."""
    result = run(tmp_path, 2, """
from pympx import MPI
comm = MPI.COMM_WORLD
comm.Barrier()
if comm.rank == 0:
    from pympx import rpc
    early = rpc.call(1, abs, -1)
    late = rpc.to(1, deadline=0.05).call(abs, -2)
    assert not early.cancel()
    try:
        late.result()
    except rpc.DeadlineExceeded as error:
        print(error, flush=True)
comm.Barrier()
if comm.rank == 1:
    from pympx import rpc
    print("now", flush=True)
comm.Barrier()
if comm.rank == 0:
    assert early.result() == 1 and rpc.call(1, abs, -3).result() == 3
comm.Barrier()
""")  # fmt: skip
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert "call of abs on rank 1: whether it was begun is not known: its rank serves no calls yet" in result.stdout


def test_a_transport_that_cannot_serve_says_so(tmp_path: Path) -> None:
    result = run(tmp_path, 2, """
from pympx import MPI, rpc
comm = MPI.COMM_WORLD
comm.Barrier()
for call in (lambda: rpc.call(0, len, "x"), lambda: rpc.notify(0, len, "x"), lambda: rpc.ping(0)):
    try:
        call()
    except MPI.Exception as error:
        assert error.Get_error_class() == MPI.ERR_UNSUPPORTED_OPERATION
        if comm.rank == 0:
            print(error, flush=True)
comm.Barrier()
""", transport="unix")  # fmt: skip
    assert result.returncode == 0 and result.stderr == ""
    assert result.stdout.count("transport unix has no native progress: nothing can be served over it while the rank computes") == 3


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_full_backlog_holds_the_caller(tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With four calls outstanding a fifth is not sent until an answer has come; calls to others, and of a call that is served, go on."""
    monkeypatch.setenv("PYMPX_RPC_BACKLOG", "4")
    result = run(tmp_path, 3, """
import threading
from pympx import MPI, rpc
comm = MPI.COMM_WORLD
gate = threading.Event()
def wait():
    gate.wait()
    return True
def chain(n):
    return 0 if n == 0 else 1 + sum(call.result() for call in [rpc.call((comm.rank + 1) % 3, chain, n - 1)])
comm.Barrier()
if comm.rank == 0:
    calls = [rpc.call(1, wait) for _ in range(4)]
    made = []
    fifth = threading.Thread(target=lambda: made.append(rpc.call(1, wait)))
    fifth.start()
    fifth.join(0.3)
    assert fifth.is_alive() and not made
    assert rpc.call(2, abs, -2).result() == 2
    comm.send(None, 1)
    fifth.join()
    assert all(call.result() for call in calls + made)
    calls = [rpc.call(1, abs, -i) for i in range(1000)]
    assert [call.result() for call in calls] == list(range(1000))
if comm.rank == 1:
    comm.recv(source=0)
    gate.set()
comm.Barrier()
assert rpc.call((comm.rank + 1) % 3, chain, 12).result() == 12
comm.Barrier()
""", transport=transport)  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_children_are_no_ranks(tmp_path: Path) -> None:
    result = run(tmp_path, 2, """
import os
from pympx import MPI, rpc
comm = MPI.COMM_WORLD
comm.Barrier()
assert rpc.call(1 - comm.rank, abs, -1).result() == 1
child = os.fork()
if child == 0:
    try:
        rpc.call(0, abs, -1)
    except MPI.Exception as error:
        os._exit(0 if "forked child" in str(error) else 1)
    os._exit(2)
assert os.waitpid(child, 0)[1] == 0
assert rpc.call(1 - comm.rank, abs, -2).result() == 2
comm.Barrier()
""", transport="tcp")  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
