"""How a job of ``python -m pympx run`` ends: exit codes, signals, nobody left behind."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import RUN, environment, execute, mpiexec, running

from pympx.testing.jobs import eventually

JOINED = "import os, signal, sys, time; from pympx.bootstrap import join; job = join(); job.barrier(); "

#: what rank 1 of 3 does, the exit code of the job, what the launcher says
TABLE = [
    ("job.finalize()", 0, None),
    ("job.finalize(); sys.exit(5)", 5, "rank 1 exited with code 5"),
    ("sys.exit(3)", 3, "rank 1 exited with code 3"),
    ("os._exit(0)", 1, "rank 1 exited with code 0 but without finalizing"),
    ("raise ValueError('x')", 1, "rank 1 exited with code 1"),
    ("os.kill(os.getpid(), signal.SIGKILL)", 137, "rank 1 was killed by signal 9 (SIGKILL)"),
    ("os.kill(os.getpid(), signal.SIGSEGV)", 139, "rank 1 was killed by signal 11 (SIGSEGV)"),
    ("os.kill(os.getpid(), signal.SIGTERM)", 143, "rank 1 was killed by signal 15 (SIGTERM)"),
    ("job.abort(7, 'no more')", 7, "rank 1 aborted the job with exit code 7"),
    ("job.abort(256)", 1, "rank 1 aborted the job with exit code 1"),
    ("os.execvp('sh', ['sh', '-c', 'exit 9'])", 9, "rank 1 exited with code 9"),
]


@pytest.mark.parametrize(("act", "code", "said"), TABLE)
def test_exit_code(act: str, code: int, said: str | None) -> None:
    # the others would go on for a minute, and do not mind SIGTERM
    others = "job.finalize()" if code == 0 else "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    program = f"{JOINED}\nif job.rank == 1:\n    {act}\nelse:\n    {others}\n"
    begin = time.monotonic()
    done = execute([*RUN, "-n", "3", sys.executable, "-c", program])
    took = time.monotonic() - begin
    assert done.returncode == code
    last = done.stderr.decode().splitlines()[-1:]
    assert last == ([f"pympx run: {said}{_rest(said)}"] if said else [])
    assert took < 4.0  # 0.5 s of grace; the rest is the start of four interpreters on a shared machine


def _rest(said: str) -> str:
    return (": let the program end normally, not by os._exit" if "without" in said else "") + "; the other ranks were ended"


def test_failure_ends_the_others_within_a_second(tmp_path: Path) -> None:
    """From the failure to the launcher's end: SIGTERM first, SIGKILL for who ignores it, all within about a second."""
    program = f"""
{JOINED}
def terminated(*_):
    open(sys.argv[1] + str(job.rank), "w").close()
signal.signal(signal.SIGTERM, terminated)
job.barrier()
if job.rank == 0:
    open(sys.argv[1], "w").write(repr(time.monotonic()))
    os._exit(4)
while True:
    time.sleep(60)
"""
    done = execute([*RUN, "-n", "3", sys.executable, "-c", program, str(tmp_path / "at")])
    assert done.returncode == 4
    assert time.monotonic() - float((tmp_path / "at").read_text()) < 1.2
    assert (tmp_path / "at1").exists() and (tmp_path / "at2").exists()


def test_commands_that_never_join() -> None:
    assert execute([*RUN, "-n", "2", "true"]).returncode == 0
    done = execute([*RUN, "-n", "3", "sh", "-c", "test $PMI_RANK = 2 && exit 6; exec sleep 60"])
    assert (done.returncode, done.stdout) == (6, b"")


def test_rank_that_ends_early_is_no_failure() -> None:
    program = f"{JOINED}\nif job.rank == 1:\n    job.finalize()\nelse:\n    time.sleep(0.5); print('done'); job.finalize()\n"
    done = execute([*RUN, "-n", "2", sys.executable, "-c", program])
    assert (done.returncode, done.stdout, done.stderr) == (0, b"done\n", b"")


def test_barrier_that_cannot_complete_raises() -> None:
    """A rank that waits for one that has left hears of it instead of hanging."""
    program = """
from pympx.bootstrap import BootstrapError, join
import sys
job = join()
if job.rank == 1:
    job.finalize()
    sys.exit(0)
try:
    job.barrier()
except BootstrapError as error:
    print(error)
job.finalize()
"""
    done = execute([*RUN, "-n", "3", sys.executable, "-c", program])
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 2 and all(re.search(r"rank [0-2,]*1[0-2,]* left the job$", line) for line in lines), lines


@pytest.mark.parametrize(
    "command", [["/nonexistent/program"], ["nonexistent_program.py"], ["-m", "nonexistent_module"], ["/etc/passwd"], ["/"]], ids=str
)
def test_program_that_cannot_start(command: list[str]) -> None:
    done = execute([*RUN, "-n", "3", *command])
    assert done.returncode == 127 and done.stdout == b""
    assert len(done.stderr.splitlines()) == 1 and command[-1].encode() in done.stderr


def test_file_that_the_kernel_refuses(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"\x7fELF garbage")
    bad.chmod(0o755)
    done = execute([*RUN, "-n", "2", str(bad)])
    assert (done.returncode, len(done.stderr.splitlines())) == (127, 1)


@pytest.mark.parametrize(
    "arguments", [[], ["-n", "0", "true"], ["-n", "x", "true"], ["-n", "2"], ["true"], ["-n", "2", "--what", "true"]], ids=str
)
def test_wrong_command_line(arguments: list[str]) -> None:
    assert execute([*RUN, *arguments]).returncode == 2


def test_tools() -> None:
    python = [sys.executable, "-m", "pympx"]
    shown = execute([*python, "--help"])
    assert shown.returncode == 0 and b"  run " in shown.stdout and shown.stderr == b""
    unknown = execute([*python, "dance"])
    assert unknown.returncode == 2 and len(unknown.stderr.splitlines()) == 1 and b"dance" in unknown.stderr
    shown = execute([*RUN, "--help"])
    assert shown.returncode == 0 and b"exit code" in shown.stdout


@contextlib.contextmanager
def started(command: list[str], ready: Path, count: int) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """Start a job whose processes write their pids, one per line, into `ready`; yield it and the `count` pids; leave nothing behind."""
    ready.touch()
    job = subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    pids: list[int] = []

    def all_there() -> bool:
        pids[:] = [int(line) for line in ready.read_text().splitlines()]
        return len(pids) == count

    try:
        assert eventually(all_there, 20.0)
        yield job, pids
    finally:
        job.kill()
        job.communicate(timeout=20)
        for pid in pids:
            if running(pid):
                os.kill(pid, signal.SIGKILL)


SLEEPER = """
import os, signal, subprocess, sys, time
def show(pid):
    with open(sys.argv[1], "a") as file:
        file.write(f"{pid}\\n")
if "deaf" in sys.argv:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
if "join" in sys.argv:
    from pympx.bootstrap import join
    join()
if "child" in sys.argv:
    show(subprocess.Popen(["sleep", "60"]).pid)
show(os.getpid())
time.sleep(60)
"""


@pytest.mark.parametrize("how", [[], ["deaf"], ["join"], ["child"], ["deaf", "child", "join"]], ids="+".join)
def test_no_orphan_after_kill_9(how: list[str], script: Callable[[str], str], tmp_path: Path) -> None:
    count = 3 * (2 if "child" in how else 1)
    with started([*RUN, "-n", "3", script(SLEEPER), str(tmp_path / "pids"), *how], tmp_path / "pids", count) as (job, pids):
        assert all(map(running, pids))
        job.kill()
        job.wait()
        assert eventually(lambda: not any(map(running, pids)), 2.0)


def test_no_orphan_of_a_nested_launcher(script: Callable[[str], str], tmp_path: Path) -> None:
    command = [*RUN, "-n", "2", *RUN, "-n", "2", script(SLEEPER), str(tmp_path / "pids"), "deaf", "child"]
    with started(command, tmp_path / "pids", 8) as (job, pids):
        job.kill()
        job.wait()
        assert eventually(lambda: not any(map(running, pids)), 2.0)


def test_failure_takes_the_children_along(script: Callable[[str], str], tmp_path: Path) -> None:
    program = script(SLEEPER)
    with started([*RUN, "-n", "2", program, str(tmp_path / "pids"), "child"], tmp_path / "pids", 4) as (job, pids):
        rank = next(pid for pid in pids if program in Path(f"/proc/{pid}/cmdline").read_text())
        os.kill(rank, signal.SIGKILL)
        assert job.wait(10) == 137
        assert not any(map(running, pids))


def test_what_ranks_left_running_is_ended(script: Callable[[str], str], tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    begin = time.monotonic()
    done = execute([*RUN, "-n", "2", "sh", "-c", f"sleep 60 & echo $! >> {pids}"])
    assert (done.returncode, done.stderr) == (0, b"") and time.monotonic() - begin < 6
    left = [int(line) for line in pids.read_text().split()]
    assert len(left) == 2 and not any(map(running, left))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGQUIT, 131)], ids=str
)
def test_signal_is_forwarded(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """Every rank gets the very signal, once, and may take its time to clean up."""
    program = f"""
import os, signal, sys, time
count = 0
def handler(number, frame):
    global count
    assert number == {int(number)}
    count += 1
signal.signal({int(number)}, handler)
with open(sys.argv[1], "a") as file:
    file.write(f"{{os.getpid()}}\\n")
while not count:
    time.sleep(0.01)
time.sleep(0.7)     # longer than the grace after a failure
print("cleaned up", count)
sys.exit(11)
"""
    with started([*RUN, "-n", "3", sys.executable, "-c", program, str(tmp_path / "pids")], tmp_path / "pids", 3) as (job, _pids):
        job.send_signal(number)
        out, err = job.communicate(timeout=15)
        assert (job.returncode, out, err) == (code, b"cleaned up 1\n" * 3, b"")


def test_ctrl_c_at_the_default(script: Callable[[str], str], tmp_path: Path) -> None:
    """KeyboardInterrupt in every rank, its children die of it too, and the exit code is 130."""
    with started([*RUN, "-n", "2", script(SLEEPER), str(tmp_path / "pids"), "child"], tmp_path / "pids", 4) as (job, pids):
        begin = time.monotonic()
        job.send_signal(signal.SIGINT)
        _out, err = job.communicate(timeout=15)
        assert job.returncode == 130 and time.monotonic() - begin < 2.0
        assert err.count(b"KeyboardInterrupt") == 2
        assert not any(map(running, pids))


def test_deaf_ranks_are_killed(script: Callable[[str], str], tmp_path: Path) -> None:
    command = [*RUN, "-n", "2", "--grace", "0.3", script(SLEEPER), str(tmp_path / "pids"), "deaf"]
    with started(command, tmp_path / "pids", 2) as (job, pids):
        job.send_signal(signal.SIGTERM)
        assert job.wait(5) == 143
        assert not any(map(running, pids))


def test_second_ctrl_c_kills_at_once(script: Callable[[str], str], tmp_path: Path) -> None:
    command = [*RUN, "-n", "2", "--grace", "50", script(SLEEPER), str(tmp_path / "pids"), "deaf"]
    with started(command, tmp_path / "pids", 2) as (job, pids):
        job.send_signal(signal.SIGINT)
        # the second one must not merge with the first while that is pending
        assert eventually(lambda: not _pending(job.pid, signal.SIGINT), 5)
        job.send_signal(signal.SIGINT)
        assert job.wait(10) == 130
        assert not any(map(running, pids))


def _pending(pid: int, number: int) -> bool:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool((int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)) >> (number - 1) & 1)


def test_launcher_killed_at_any_moment_of_the_start(tmp_path: Path) -> None:
    """SIGKILL at random moments while 8 ranks start: nothing that carries this run's mark is left 2 s later."""
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)
    rng = random.Random(seed)
    mark = f"PYMPX_TEST_RUN={seed}"
    command = [*RUN, "-n", "8", "sh", "-c", "sleep 60 & sleep 60"]
    seen = 0

    def marked() -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return [pid for pid in found if running(pid)]

    for _ in range(10):
        job = subprocess.Popen(command, env=environment(PYMPX_TEST_RUN=str(seed)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert eventually(lambda: len(marked()) > 1, 20)  # the launcher has begun to start others
            time.sleep(rng.random() * 0.05)
            seen = max(seen, len(marked()))
        finally:
            job.kill()
            job.wait()
        assert eventually(lambda: not marked(), 2.0)
    assert seen > 2  # some rank had been started


def test_stop_and_continue(script: Callable[[str], str], tmp_path: Path) -> None:
    """Ctrl-Z stops the launcher and all ranks, SIGCONT wakes them."""
    with started([*RUN, "-n", "2", script(SLEEPER), str(tmp_path / "pids")], tmp_path / "pids", 2) as (job, pids):

        def states() -> set[str]:
            return {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in [job.pid, *pids]}

        job.send_signal(signal.SIGTSTP)
        assert eventually(lambda: states() == {"T"}, 5)
        job.send_signal(signal.SIGCONT)
        assert eventually(lambda: states() == {"S"}, 5)


def test_user_signal_is_forwarded(tmp_path: Path) -> None:
    program = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
print(signal.sigwait({signal.SIGUSR1}) == signal.SIGUSR1)
"""
    with started([*RUN, "-n", "2", sys.executable, "-c", program, str(tmp_path / "pids")], tmp_path / "pids", 2) as (job, _pids):
        job.send_signal(signal.SIGUSR1)
        assert job.communicate(timeout=15) == (b"True\nTrue\n", b"")
        assert job.returncode == 0


def test_idle_launcher_uses_no_cpu(script: Callable[[str], str], tmp_path: Path) -> None:
    with started([*RUN, "-n", "2", script(SLEEPER), str(tmp_path / "pids")], tmp_path / "pids", 2) as (job, _pids):

        def ticks() -> int:
            fields = Path(f"/proc/{job.pid}/stat").read_text().rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])

        before = ticks()
        with pytest.raises(subprocess.TimeoutExpired):
            job.wait(2.0)
        assert ticks() - before <= 1  # hundredths of a second in two seconds


def test_ranks_do_not_inherit_more_than_their_descriptors() -> None:
    """stdin, stdout, stderr, the PMI socket, the key's pipe; and the limits and signal dispositions that the launcher was started with."""
    program = """
import os, resource, signal
held = set(os.listdir("/proc/self/fd"))
expected = {"0", "1", "2", os.environ["PMI_FD"], os.environ["PYMPX_JOB_KEY_FD"].partition(":")[0]}
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(len(held - expected), resource.getrlimit(resource.RLIMIT_NOFILE), int(status["SigBlk"], 16), os.getpgid(0) == os.getpid())
"""
    import resource

    done = execute([*RUN, "-n", "2", sys.executable, "-c", program])
    line = f"1 {resource.getrlimit(resource.RLIMIT_NOFILE)} 0 True\n"  # 1: the listing itself
    assert (done.stdout.decode(), done.stderr) == (line * 2, b"")


def test_hydra_hears_of_an_abort() -> None:
    done = execute([mpiexec(), "-n", "2", sys.executable, "-c", f"{JOINED}job.rank == 1 and job.abort(7, 'no more'); time.sleep(60)"])
    assert done.returncode == 7 and b"no more\n" in done.stderr


def test_ctrl_c_during_an_exchange_ends_quietly(tmp_path: Path) -> None:
    """Interrupted while it waits for others, a rank can still leave in order."""
    program = """
import os, sys, time
from pympx.bootstrap import join
job = join()
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
try:
    if job.rank == 0:
        time.sleep(60)
    job.barrier()
except KeyboardInterrupt:
    pass
job.finalize()
print("left")
"""
    with started([*RUN, "-n", "2", sys.executable, "-c", program, str(tmp_path / "pids")], tmp_path / "pids", 2) as (job, pids):
        assert eventually(lambda: all("S" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3] for pid in pids), 10)
        job.send_signal(signal.SIGINT)
        assert job.communicate(timeout=15) == (b"left\n" * 2, b"")
        assert job.returncode == 130
