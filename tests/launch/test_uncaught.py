"""How a job of several ranks ends, launcher by launcher: what the program did, the exit code, who ran its `finally`, what the others'
calls raised, what stands on stderr, and how long it took from the act to the launcher's return.

The tables under "Launchers" and "The end" in ARCHITECTURE.md say what these tests find.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from launchers import LAUNCHERS, Start, need
from support import RUN, check_soon, environment, execute

from pympx.testing.jobs import Job, eventually

#: What `act` does on rank 1 of 3 (`all`: on every rank), between a Barrier and its own `finally`, in which every rank leaves a file.
PROGRAM = """
import os, sys, threading, time
folder, act = sys.argv[1:]
def note(name, text):
    with open(f"{folder}/{name}.draft", "w") as file:
        file.write(text)
    os.replace(f"{folder}/{name}.draft", f"{folder}/{name}")
from pympx import MPI
comm = MPI.COMM_WORLD
if act == "early":
    note(f"finally{comm.rank}", "")
    note(f"acted{comm.rank}", repr(time.time()))
    raise ValueError("bad input")
try:
    comm.Barrier()
    note(f"through{comm.rank}", "")
    while not all(os.path.exists(f"{folder}/through{rank}") for rank in range(comm.size)):
        time.sleep(0.001)  # none is told while it is still in the Barrier
    if comm.rank == 1 or act == "all":
        note(f"acted{comm.rank}", repr(time.time()))
        if act == "thread":
            threading.Thread(target=lambda: 1 / 0).start()
        elif act in ("one", "all"):
            raise ValueError("bad input")
        elif act == "exit":
            sys.exit(3)
        elif act == "_exit":
            os._exit(3)
        elif act == "abort":
            comm.Abort(7)
    if act == "thread" or (comm.rank != 1 and act not in ("normal", "exit")):
        comm.recv(source=1 if comm.rank != 1 else 2)
finally:
    note(f"finally{comm.rank}", str(sys.exc_info()[1] or ""))
"""


@dataclass(frozen=True)
class Row:
    """What shall happen. `finally_`: ranks that run it; `heard`: what the others' exception says; `tracebacks`: on stderr."""

    code: int
    finally_: str = "012"
    heard: str = ""
    tracebacks: int = 1
    header: str = ""


HEARD = r"^MPI_ERR_PROC_FAILED: \w+: rank 1 raised {}; the job ends$"
ROWS = {
    "normal": Row(0, tracebacks=0),
    "leaves": Row(1, heard=r"^MPI_ERR_PROC_FAILED: \w+: .*rank 1 failed or left"),  # seen by oneself, or told by who saw it first
    "exit": Row(3, tracebacks=0),
    "_exit": Row(3, finally_="", tracebacks=0),
    "one": Row(1, heard=HEARD.format("ValueError: bad input"), header="rank 1:"),
    "thread": Row(1, heard=HEARD.format("ZeroDivisionError: division by zero"), header="rank 1:"),
    "all": Row(1, heard="^bad input$", header="ranks 0-2:"),
    "early": Row(1, finally_="0", header="rank 0:"),
    "abort": Row(7, finally_="", tracebacks=0),
}
#: Codes that differ: Slurm's PMI-2 server kills the step when a rank aborts.
CODES = {("srun-pmi2", row): {137} for row in ("leaves", "one", "thread", "all", "early", "abort")}
#: srun lets the others go on when a rank ends with a code, so that they raise, as when it leaves.
CODES["srun-pmix", "_exit"] = {1}
#: Hydra may see those that it killed before the one that it killed them for.
CODES["hydra", "_exit"] = {3, 9}
#: Where a rank has nobody to end the others, each shows what it raised before they could meet.
EARLY = {"variables": 3, "srun-none": 3}
#: seconds that it may take beyond the one: what launchers need to end a job by Abort, what they are given when a rank has gone
SLOW = {"prrte": 0.5, "srun-pmix": 1.0, "srun-pmi2": 1.0, "srun-none": 1.0, "leaves": 0.5, "_exit": 0.5}
COLUMNS = [
    *((name, act, "shm") for name in ("run", "hydra") for act in ROWS),
    *((name, act, "tcp") for name in ("run", "hydra") for act in ("one", "thread", "all", "leaves")),
    *((name, act, "auto") for name in ("prrte", "srun-pmix") for act in ROWS),
    *(("srun-pmi2", act, "auto") for act in ("one", "all", "abort", "exit")),
    *((name, act, "auto") for name in ("variables", "srun-none") for act in ("one", "all", "early", "exit")),
]


@pytest.mark.parametrize(("name", "act", "transport"), COLUMNS, ids=["-".join(column) for column in COLUMNS])
def test_ending(name: str, act: str, transport: str, start: Start, script: Callable[[str], str], tmp_path: Path) -> None:
    limit = 1.0 + SLOW.get(name, 0.0) + SLOW.get(act, 0.0)
    check_soon(limit, lambda folder: ending(start, name, [script(PROGRAM), str(folder), act], transport, folder), tmp_path)


def ending(start: Start, name: str, program: list[str], transport: str, folder: Path) -> float:
    """Check one job but for the time; return the seconds from the act to the launcher's return."""
    act = program[-1]
    row = ROWS[act]
    done = start(name, 3, [sys.executable, *program], PYMPX_TRANSPORT=transport)
    returned = time.time()
    err = done.stderr.decode()
    print(name, act, transport, done.returncode, err)
    took = returned - min(float(path.read_text()) for path in folder.glob("acted?"))
    print(f"{took:.3f} s")
    found = {path.name[-1]: path.read_text() for path in folder.glob("finally?")}
    assert done.returncode in CODES.get((name, act), {row.code})
    assert set(found) >= set(row.finally_)
    if row.heard:
        others = [text for rank, text in found.items() if rank != "1" or act in ("thread", "all")]
        assert others and all(re.search(row.heard, text) for text in others), found
    shown = EARLY.get(name, row.tracebacks) if act == "early" else row.tracebacks
    if (name, act) == ("srun-pmix", "_exit"):
        shown = 1
    assert err.count("Traceback (most recent call last)") == shown
    if row.header:
        assert row.header in err.splitlines()
    if act == "normal":
        assert err == ""
    return took


INTERRUPTED = """
import os, sys
from pympx import MPI
comm = MPI.COMM_WORLD
comm.Barrier()
with open(f"{sys.argv[1]}/up{comm.rank}", "w") as file:
    file.write(str(os.getpid()))
try:
    comm.recv(source=(comm.rank + 1) % comm.size)
finally:
    with open(f"{sys.argv[1]}/finally{comm.rank}", "w") as file:
        file.write(repr(sys.exc_info()[1]))
"""
#: launcher, who gets the SIGINT, exit code, ranks that get a KeyboardInterrupt; the others' calls raise. None: the launcher ends the
#: ranks by other signals, at once or right after.
SIGNALS = [
    ("run", "launcher", 130, "012"),
    ("run", "rank 1", 130, "1"),
    ("run", "ranks", 130, "012"),
    ("hydra", "launcher", 130, "012"),
    ("hydra", "rank 1", 130, "1"),
    ("prrte", "launcher", 1, None),
    ("prrte", "rank 1", 130, "1"),
    ("srun-pmix", "launcher", 137, None),
    ("srun-pmix", "rank 1", 130, "1"),
    ("srun-pmi2", "rank 1", 137, "1"),
]


@pytest.mark.parametrize(("name", "who", "code", "interrupted"), SIGNALS, ids=["-".join(row[:2]).replace(" ", "") for row in SIGNALS])
def test_ctrl_c_inside_a_blocking_call(
    name: str, who: str, code: int, interrupted: str | None, request: pytest.FixtureRequest, script: Callable[[str], str], tmp_path: Path
) -> None:
    """A KeyboardInterrupt on every rank that was signalled; where that is one only, the others' calls raise. Shown once."""
    launcher = LAUNCHERS[name]
    need(launcher)
    settings = launcher.settings() | (request.getfixturevalue("slurm") if name.startswith("srun") else {})
    program = script(INTERRUPTED)

    def attempt(folder: Path) -> float:
        command = launcher.command(3, [sys.executable, program, str(folder)])
        return interruption(command, environment(**settings), (name, who, code, interrupted), folder)

    check_soon(1.0 + SLOW.get(name, 0.0), attempt, tmp_path)


def interruption(command: list[str], env: dict[str, str], row: tuple[str, str, int, str | None], folder: Path) -> float:
    """Check one job but for the time; return the seconds from the signal to the launcher's return."""
    name, who, code, interrupted = row
    with Job(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/") as job:
        assert eventually(lambda: len([path for path in folder.glob("up?") if path.read_text()]) == 3, 30)
        pids = [int((folder / f"up{rank}").read_text()) for rank in range(3)]
        assert eventually(lambda: all("S" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3] for pid in pids), 10)
        signalled = {"launcher": [job.process.pid], "rank 1": pids[1:2], "ranks": pids}[who]
        began = time.monotonic()
        for pid in signalled:
            os.kill(pid, signal.SIGINT)
        if name.startswith("srun") and who == "launcher":  # the first one only makes it say what runs
            assert job.wait(0.3) is None
            os.kill(job.process.pid, signal.SIGINT)
        assert job.wait(20) is not None
        took = time.monotonic() - began
        _, err = job.process.communicate()
    print(job.process.returncode, f"{took:.3f} s", err.decode())
    found = {path.name[-1]: path.read_text() for path in folder.glob("finally?")}
    assert job.process.returncode == code
    assert err.count(b"Traceback (most recent call last)") <= 1
    if interrupted:
        assert b"Traceback (most recent call last)" in err
        assert set(found) == {"0", "1", "2"}
        assert "".join(rank for rank in sorted(found) if found[rank] == "KeyboardInterrupt()") == interrupted
        assert ("rank 1:" if interrupted == "1" else "ranks 0-2:") in err.decode().splitlines()
    return took


SURVIVOR = """
import sys
from pympx import MPI
comm = MPI.COMM_WORLD
if comm.rank == 1:
    for other in (0, 2, 3):  # whoever is inside a collective would not get out of it
        comm.recv(source=other)
    raise ValueError("bad input")
comm.send(None, 1)
try:
    comm.recv(source=1)
except MPI.Exception as error:
    said = str(error)
rest = comm.Shrink()
print(said, rest.allreduce(1))
"""


def test_with_keep_going_the_others_go_on(script: Callable[[str], str]) -> None:
    done = execute([*RUN, "-n", "4", "--keep-going", script(SURVIVOR)])
    line = "MPI_ERR_PROC_FAILED: recv: rank 1 raised ValueError: bad input 3\n"
    assert (done.returncode, done.stdout.decode()) == (0, line * 3)
    err = done.stderr.decode().splitlines()
    assert (err[0], err[-2:]) == ("rank 1:", ["ValueError: bad input", "pympx run: rank 1 exited with code 1; the others go on"])
    assert err.count("Traceback (most recent call last):") == 1


MANY = """
import os, sys
from pympx import MPI
comm = MPI.COMM_WORLD
try:
    comm.Barrier()
    if sys.argv[2] == "all" or comm.rank == 1:
        raise ValueError("bad input")
    comm.recv(source=(comm.rank + 1) % comm.size)
finally:
    open(f"{sys.argv[1]}/finally{comm.rank}", "w").close()
"""


@pytest.mark.parametrize("who", ["one", "all"])
@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_many_ranks(transport: str, who: str, script: Callable[[str], str], tmp_path: Path) -> None:
    """Ranks are told while others are still in the Barrier, whose messages some will never send: still there is one reason only."""
    size = 24
    done = execute([*RUN, "-n", str(size), script(MANY), str(tmp_path), who], env=environment(PYMPX_TRANSPORT=transport), limit=60)
    print(done.stderr.decode())
    assert done.returncode == 1
    assert len(list(tmp_path.glob("finally*"))) == size
    assert done.stderr.count(b"Traceback (most recent call last)") == 1 and b"\nValueError: bad input\n" in done.stderr


UNWINDING = """
import os, sys
from pympx import MPI
comm = MPI.COMM_WORLD
if comm.rank == 0:
    comm.Barrier()
    raise ValueError("bad input")
try:
    comm.Barrier()  # in which it may hear of the exception already
    comm.recv(source=0)
except MPI.Exception as error:
    if comm.rank == 1:
        raise RuntimeError("the solver has stopped") from error
    raise
finally:
    if comm.rank == 2:
        {}["x"]
"""


def test_what_is_raised_on_the_way_out_is_one_line(script: Callable[[str], str]) -> None:
    done = execute([*RUN, "-n", "4", script(UNWINDING)])
    err = done.stderr.decode().splitlines()
    assert done.returncode == 1 and err.count("Traceback (most recent call last):") == 1
    assert err[0] == "rank 0:" and "ValueError: bad input" in err
    assert "rank 1, while it ended: RuntimeError: the solver has stopped" in err
    assert "rank 2, while it ended: KeyError: 'x'" in err
    assert not any(line.startswith("rank 3") for line in err)


@pytest.mark.parametrize("raises", [True, False])
def test_files_and_exit_functions_as_in_any_program(raises: bool, script: Callable[[str], str], tmp_path: Path) -> None:
    """What the program registered with atexit runs at the end of a job too, on all ranks."""
    program = script(f"""
        import atexit, sys
        from pympx import MPI
        comm = MPI.COMM_WORLD
        atexit.register(lambda: open(f"{{sys.argv[1]}}/exit{{comm.rank}}", "w").close())
        comm.Barrier()
        if {raises}:
            if comm.rank == 1:
                raise ValueError("bad input")
            comm.recv(source=1)
    """)
    done = execute([*RUN, "-n", "3", program, str(tmp_path)])
    assert done.returncode == int(raises)
    assert sorted(path.name for path in tmp_path.glob("exit?")) == ["exit0", "exit1", "exit2"]


def test_a_hook_of_the_program_shows_its_own_text_once(script: Callable[[str], str]) -> None:
    program = script("""
        import sys
        sys.excepthook = lambda kind, value, trace: print(f"my own words: {value}", file=sys.stderr)
        from pympx import MPI
        MPI.COMM_WORLD.Barrier()
        raise ValueError("bad input")
    """)
    done = execute([*RUN, "-n", "3", program])
    err = done.stderr.decode().splitlines()
    # a rank that the others' exception met in the Barrier has none of its own to show
    assert done.returncode == 1 and len(err) == 3
    assert err[0].startswith("rank") and err[1] == "my own words: bad input"


def test_a_rank_that_computes_does_not_hold_up_the_end(script: Callable[[str], str], tmp_path: Path) -> None:
    program = script("""
        import sys, time
        from pympx import MPI
        comm = MPI.COMM_WORLD
        comm.Barrier()
        if comm.rank == 1:
            open(sys.argv[1], "w").write(repr(time.time()))
            raise ValueError("bad input")
        while True:
            sum(range(1000))
    """)

    def attempt(folder: Path) -> float:
        done = execute([*RUN, "-n", "3", program, str(folder / "acted")])
        took = time.time() - float((folder / "acted").read_text())
        assert done.returncode == 1 and done.stderr.count(b"Traceback") == 1
        return took

    check_soon(1.2, attempt, tmp_path)  # 0.8 s of patience, and the launcher's own end


TRANSFER = """
import sys, time
import numpy as np
from pympx import MPI
comm = MPI.COMM_WORLD
data = np.ones(20_000_000)
comm.Barrier()
if comm.rank == 2:
    comm.recv(source=0)
    raise ValueError("bad input")
if comm.rank == 1:
    request = comm.Isend(data, 0)
    comm.send(None, 0, 1)
    time.sleep(20)
comm.recv(source=1, tag=1)
request = comm.Irecv(data, 1)
request.Test()  # what it waits for has begun, and rank 1 does not go on with it
comm.send(None, 2)
try:
    request.Wait()
finally:
    open(sys.argv[1], "w").write(str(sys.exc_info()[1]))
"""


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_transfer_between_others_ends(transport: str, script: Callable[[str], str], tmp_path: Path) -> None:
    """Also where the transport holds the buffer and the other side computes."""
    done = execute([*RUN, "-n", "3", script(TRANSFER), str(tmp_path / "said")], env=environment(PYMPX_TRANSPORT=transport))
    assert (tmp_path / "said").read_text() == "MPI_ERR_PROC_FAILED: Irecv: rank 2 raised ValueError: bad input; the job ends"
    assert done.returncode == 1 and done.stderr.count(b"Traceback") == 1


TESTS = """
import os
import pytest
from pympx import MPI
comm = MPI.COMM_WORLD
folder = os.environ["FOLDER"]
@pytest.fixture(scope="module")
def held():
    yield
    open(f"{folder}/finally{comm.rank}", "w").close()
def test_fine(held):
    comm.Barrier()
def test_bad(held):
    if os.environ["WHO"] == "all" or comm.rank == 1:
        open(f"{folder}/acted{comm.rank}", "w").close()
        assert comm.size == 99
    comm.recv(source=1)
def test_never(held):
    open(f"{folder}/went on", "w").close()
"""


@pytest.mark.parametrize(("name", "who"), [("run", "one"), ("run", "all"), ("hydra", "all"), ("srun-pmix", "one")])
def test_a_failing_test_of_sessions_that_are_ranks(name: str, who: str, start: Start, tmp_path: Path) -> None:
    """`mpiexec -n 3 pytest`: every session stops after the test, its finalizers run, one traceback is shown."""
    (tmp_path / "test_it.py").write_text(TESTS)
    load = [] if entry_points(group="pytest11", name="pympx") else ["-p", "pympx.testing.plugin"]  # installed, the entry point loads it
    command = [str(Path(sys.executable).parent / "pytest"), *load, "-p", "no:cacheprovider", "-q", f"--rootdir={tmp_path}", str(tmp_path)]
    began = time.monotonic()
    done = start(name, 3, command, FOLDER=str(tmp_path), WHO=who)
    print(done.stdout.decode(), done.stderr.decode(), time.monotonic() - began)
    out = done.stdout.decode()
    assert done.returncode == 1
    assert sorted(path.name for path in tmp_path.glob("finally?")) == ["finally0", "finally1", "finally2"]
    assert not (tmp_path / "went on").exists()
    assert out.count(":16: AssertionError") == 1  # pytest writes the path before it by itself: another session may come between
    assert out.count("!! a test failed on rank") == 3
    if who == "all":
        assert "ranks 0-2 failed alike" in out and all(f"rank {rank}: as rank 0: AssertionError" in out for rank in (1, 2))
    else:
        told = "MPI.Exception: MPI_ERR_PROC_FAILED: recv: rank 1 raised AssertionError: assert 3 == 99; the job ends"
        assert all(f"rank {rank}: {told}" in out for rank in (0, 2))
