"""`python -m pympx run --hosts`: placement, output, input, exit codes, signals, no survivors, no secrets in sight, reasons in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pytest
from hosts_support import LIMIT, environment, launch, launcher_command, program

from pympx.testing.hosts import Hosts
from pympx.testing.jobs import eventually


def ranks_left(hosts: Hosts) -> list[str]:
    return [command for name in hosts.names for command in hosts.processes(name).values()]


def start(hosts: Hosts, placement: str, size: int, words: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    os.chdir(folder)
    return subprocess.Popen(
        launcher_command(hosts, "run", placement, size, words),
        env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def asleep(hosts: Hosts, name: str) -> bool:
    """Whether the rank on host b that runs `name` sleeps, each time of many that one looks."""
    pid = max(pid for pid, command in hosts.processes("b").items() if name in command)
    for _ in range(40):
        time.sleep(0.005)
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            return False
    return True


def read_lines(stream: IO[bytes] | None, count: int) -> list[str]:
    assert stream
    return [stream.readline().decode().strip() for _ in range(count)]


@pytest.mark.parametrize(
    ("placement", "size", "where"),
    [("a,b", 4, "aabb"), ("a,b", 3, "aab"), ("a,b", 1, "a"), ("a:1,b:3", 4, "abbb"), ("a:3,b:3", 4, "aaab"), ("b,a", 2, "ba")],
)
def test_placement(two: Hosts, tmp_path: Path, placement: str, size: int, where: str) -> None:
    words = ["sh", "-c", "echo $PMI_RANK $PMI_SIZE $(hostname) $MPI_LOCALRANKID $MPI_LOCALNRANKS"]
    done = launch(two, "run", placement, size, words, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    expected = [f"{n} {size} {host} {where[:n].count(host)} {where.count(host)}" for n, host in enumerate(where)]
    assert sorted(done.stdout.splitlines()) == expected


def test_mpi4py_on_mpich_runs_too(two: Hosts, tmp_path: Path) -> None:
    """Our PMI-1, its process mapping included, as MPICH's own library reads it."""
    text = """
    import mpi4py
    from mpi4py import MPI
    comm = MPI.COMM_WORLD
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    print(comm.rank, comm.size, node.size, comm.allreduce(comm.rank))
    """
    done = launch(two, "run", "a:2,b:1", 3, program(tmp_path, text), folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["0 3 2 3", "1 3 2 3", "2 3 1 3"]


def test_whole_lines_in_order_of_each_rank_and_tags(two: Hosts, tmp_path: Path) -> None:
    text = """
    import os, sys
    rank = os.environ["PMI_RANK"]
    for number in range(3000):
        os.write(1, f"{rank} {number} ".encode()), os.write(1, b"x" * 60 + b"\\n")
    os.write(2, f"error of {rank}\\n".encode())
    """
    done = launch(two, "run", "a,b", 4, program(tmp_path, text), folder=tmp_path)
    assert done.returncode == 0
    assert sorted(done.stderr.splitlines()) == [f"error of {rank}" for rank in range(4)]
    for rank in range(4):
        lines = [line for line in done.stdout.splitlines() if line.startswith(f"{rank} ")]
        assert lines == [f"{rank} {number} {'x' * 60}" for number in range(3000)]
    unfinished = launch(two, "run", "b", 1, ["printf", "no newline"], folder=tmp_path)
    assert (unfinished.returncode, unfinished.stdout, unfinished.stderr) == (0, "no newline", "")
    tagged = launcher_command(two, "run", "a,b", 2, ["--tag", "sh", "-c", "echo one; echo two >&2"])
    seen = subprocess.run(tagged, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False)
    assert sorted(seen.stdout.splitlines()) == ["[0] one", "[1] one"]
    assert sorted(seen.stderr.splitlines()) == ["[0] two", "[1] two"]


def test_a_slow_reader_slows_the_ranks_down(two: Hosts, tmp_path: Path) -> None:
    """What is on its way is bounded, not what the ranks write; nothing is lost."""
    size = 30 << 20
    text = f"""
    import os
    piece = b"y" * 99 + b"\\n"
    for _ in range({size} // 100):
        os.write(1, piece)
    os.write(2, b"done\\n")
    """
    process = start(two, "b", 1, program(tmp_path, text), tmp_path)
    try:
        assert process.stderr and process.stdout
        assert eventually(lambda: any("program" in command for command in two.processes("b").values()), 10)
        assert eventually(lambda: asleep(two, "program"), 20), "the rank is not held back"
        resident = max(int(line.split()[1]) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmHWM" in line)
        assert resident < 60 * 1024, f"the launcher holds {resident} KiB"
        out, err = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.wait()
    assert err == b"done\n"
    assert len(out) == size // 100 * 100
    assert out.count(b"y" * 99 + b"\n") == size // 100


def test_a_reader_that_leaves_ends_the_writers(two: Hosts, tmp_path: Path) -> None:
    """As without a launcher: `... | head -1`."""
    command = launcher_command(two, "run", "a,b", 2, ["sh", "-c", "yes; echo $? >&2"])
    os.chdir(tmp_path)
    shell = subprocess.run(
        ["bash", "-c", '"$@" | head -1', "-", *command], env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert shell.stdout == "y\n"
    assert eventually(lambda: not ranks_left(two), 5)


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_stdin_goes_to_rank_0(two: Hosts, tmp_path: Path, kind: str) -> None:
    text = """
    import hashlib, os, sys
    data = sys.stdin.buffer.read()
    print(os.environ["PMI_RANK"], len(data), hashlib.sha256(data).hexdigest()[:8] if data else "-")
    """
    import hashlib

    data = os.urandom(3_000_000)
    expected = sorted([f"0 {len(data)} {hashlib.sha256(data).hexdigest()[:8]}", "1 0 -", "2 0 -"])
    words = launcher_command(two, "run", "a,b", 3, program(tmp_path, text))
    os.chdir(tmp_path)
    if kind == "pipe":
        done = subprocess.run(words, env=environment(), input=data, capture_output=True, timeout=LIMIT, check=False)
    else:
        Path("data").write_bytes(data)
        with open("data", "rb") as file:
            done = subprocess.run(words, env=environment(), stdin=file, capture_output=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted(done.stdout.decode().splitlines()) == expected


def test_a_rank_that_does_not_read_does_not_hold_up_the_job(two: Hosts, tmp_path: Path) -> None:
    done = launch(two, "run", "a,b", 2, ["true"], folder=tmp_path, stdin="x" * 1_000_000)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("import os, sys; sys.exit(3 if os.environ['PMI_RANK'] == '2' else 0)", 3, "rank 2 on b exited with code 3"),
        ("import os; os.environ['PMI_RANK'] == '3' and os.kill(os.getpid(), 9)\nimport time; time.sleep(100)", 137,
         "rank 3 on b was killed by signal 9 (SIGKILL); the other ranks were ended"),
        ("from pympx import MPI\nif MPI.COMM_WORLD.rank == 1: MPI.COMM_WORLD.Abort(7)\nMPI.COMM_WORLD.recv()", 7,
         "rank 1 on a aborted the job with exit code 7; the other ranks were ended"),
        ("from pympx import MPI\nimport os, time\ncomm = MPI.COMM_WORLD\n"
         "if comm.rank == 2:\n    for rank in (0, 1, 3): comm.recv(source=rank)\n    os._exit(0)\n"
         "comm.send(None, 2)\ntime.sleep(100)", 1, "rank 2 on b exited with code 0 but without finalizing"),
    ],
    ids=["exit", "killed", "abort", "_exit"],
)  # fmt: skip
def test_exit_codes(two: Hosts, tmp_path: Path, text: str, code: int, message: str) -> None:
    done = launch(two, "run", "a,b", 4, program(tmp_path, text), folder=tmp_path)
    assert done.returncode == code
    assert f"pympx run: {message}" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert eventually(lambda: not ranks_left(two), 2)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_reach_every_host(two: Hosts, tmp_path: Path, number: int, code: int) -> None:
    text = f"""
    import os, signal, time
    def told(number, frame):
        print(os.environ["PMI_RANK"], "heard", number, flush=True)
        os._exit(0)
    signal.signal({int(number)}, told)
    print("ready", flush=True)
    time.sleep(100)
    """
    process = start(two, "a,b", 4, program(tmp_path, text), tmp_path)
    try:
        assert read_lines(process.stdout, 4) == ["ready"] * 4
        process.send_signal(number)
        out, err = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    assert sorted(out.decode().splitlines()) == [f"{rank} heard {int(number)}" for rank in range(4)]
    assert err == b""
    assert eventually(lambda: not ranks_left(two), 2)


def test_ctrl_c_in_a_blocking_call(two: Hosts, tmp_path: Path) -> None:
    text = """
    from pympx import MPI
    comm = MPI.COMM_WORLD
    comm.Barrier()
    try:
        print("ready", flush=True)
        comm.recv(source=comm.rank)  # of nobody else, whose end would be heard of
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    """
    process = start(two, "a,b", 4, program(tmp_path, text), tmp_path)
    try:
        assert read_lines(process.stdout, 4) == ["ready"] * 4
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert out.decode().splitlines() == ["interrupted"] * 4


@pytest.mark.parametrize("pids", [False, True])
def test_no_rank_outlives_a_killed_launcher(tmp_path: Path, pids: bool) -> None:
    """kill -9: nothing on any host 2 s later, children of ranks and ranks that ignore signals included."""
    text = """
    import signal, subprocess, time
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    subprocess.Popen(["sleep", "1000"])
    print("ready", flush=True)
    time.sleep(1000)
    """
    with Hosts("a", "b", pids=pids) as hosts:
        process = start(hosts, "a,b", 4, program(tmp_path, text), tmp_path)
        try:
            assert read_lines(process.stdout, 4) == ["ready"] * 4
            assert eventually(lambda: sum("sleep 1000" in command for command in ranks_left(hosts)) == 4, 2), ranks_left(hosts)
        finally:
            process.kill()
            process.wait()
        assert eventually(lambda: not ranks_left(hosts), 2), ranks_left(hosts)


def test_a_lost_host_ends_the_job(two: Hosts, tmp_path: Path) -> None:
    """Its agent is killed, as a host that is switched off would: the other host's ranks are ended, the exit code is not zero."""
    text = """
    import time
    print("ready", flush=True)
    time.sleep(1000)
    """
    process = start(two, "a,b", 4, program(tmp_path, text), tmp_path)
    try:
        assert read_lines(process.stdout, 4) == ["ready"] * 4
        agents = [pid for pid, command in two.processes("b").items() if "pympx.launcher.agent" in command]
        assert len(agents) == 2
        os.kill(min(agents), signal.SIGKILL)  # the other is its keeper
        _, err = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert err.decode().startswith("pympx run: connection lost to the ranks on b: ")
    assert len(err.splitlines()) == 1
    assert eventually(lambda: not ranks_left(two), 2), ranks_left(two)


def test_the_key_and_the_environment_are_not_in_sight(two: Hosts, tmp_path: Path) -> None:
    """No command line names the key, and only the ranks' own environment has the launcher's; both came by stdin."""
    text = """
    import os, sys, time
    from pympx.bootstrap import join
    from pathlib import Path
    assert os.environ["COLOUR"] == "blue and 'green'\\n"
    job = join()
    key = job.job_key().hex()
    seen = b""
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                seen += Path(f"/proc/{entry}/cmdline").read_bytes() + b"\\n" + Path(f"/proc/{entry}/environ").read_bytes() + b"\\n"
            except OSError:
                pass
    print(key, key.encode() in seen, b"pympx.launcher.agent" in seen)
    job.finalize()
    """
    done = launch(two, "run", "a,b", 4, program(tmp_path, text), folder=tmp_path, COLOUR="blue and 'green'\n")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 4
    assert len({key for key, _, _ in lines}) == 1
    assert len(lines[0][0]) == 64
    assert all(rest == ["False", "True"] for _, *rest in lines)


def test_what_a_login_shell_says_is_skipped(two: Hosts, tmp_path: Path) -> None:
    chatty = tmp_path / "chatty"
    chatty.write_text(f"#!/bin/sh\necho 'Welcome! pympx agent 1'\nprintf 'no newline'\necho 'motd' >&2\nexec {two.rsh} \"$@\"\n")
    chatty.chmod(0o755)
    command = [sys.executable, "-P", "-m", "pympx", "run", "-n", "2", "--hosts", "a,b", "--rsh", str(chatty), "hostname"]
    os.chdir(tmp_path)
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, sorted(done.stdout.splitlines()), done.stderr) == (0, ["a", "b"], "")


@pytest.mark.parametrize(
    ("rsh", "words", "code", "message"),
    [
        ("{rsh}", ["--hosts", "a,nobody", "true"], 1,
         "cannot start ranks on nobody: {rsh} ended with exit code 255: rsh: no host is called nobody; the other ranks were ended"),
        ("sh -c 'exit 4' -", ["--hosts", "a,b", "true"], 1, "cannot start ranks on "),
        ("no-such-rsh", ["--hosts", "a,b", "true"], 127,
         "cannot start 'no-such-rsh': No such file or directory (it starts the ranks on a: see --rsh)"),
        ("{rsh}", ["--hosts", "a,b", "no-such-program"], 127, "cannot start 'no-such-program': No such file or directory on "),
        ("echo hello", ["--hosts", "a,b", "true"], 1, "cannot start ranks on "),
    ],
    ids=["host", "rsh-fails", "no-rsh", "no-program", "no-agent"],
)  # fmt: skip
def test_what_cannot_start_is_one_line(two: Hosts, tmp_path: Path, rsh: str, words: list[str], code: int, message: str) -> None:
    command = [sys.executable, "-P", "-m", "pympx", "run", "-n", "2", "--rsh", rsh.format(rsh=two.rsh), *words]
    os.chdir(tmp_path)
    done = subprocess.run(command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == code
    assert done.stderr.startswith(f"pympx run: {message.format(rsh=two.rsh)}"), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert not ranks_left(two)


def test_this_host_needs_no_rsh(tmp_path: Path) -> None:
    os.chdir(tmp_path)
    command = [sys.executable, "-P", "-m", "pympx", "run", "-n", "2", "--hosts", "localhost", "--rsh", "no-such-rsh", "sh", "-c"]
    done = subprocess.run([*command, "echo $PMI_RANK"], env=environment(), capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, sorted(done.stdout.split()), done.stderr) == (0, ["0", "1"], "")


def test_real_ssh_arguments(tmp_path: Path) -> None:
    """The default command is called as ssh must be: options, host, one word that a shell understands."""
    fake = tmp_path / "ssh"
    fake.write_text(
        textwrap.dedent("""\
        #!/bin/sh
        printf '%s\\n' "$@" > "$RECORD"
        for last; do :; done
        exec sh -c "$last"
        """)
    )
    fake.chmod(0o755)
    env = environment(PATH=f"{tmp_path}:{os.environ['PATH']}", RECORD=str(tmp_path / "record"), PYTHONPATH="/a b")
    os.chdir(tmp_path)
    command = [sys.executable, "-P", "-m", "pympx", "run", "-n", "1", "--hosts", "node7", "sh", "-c", "echo $PYTHONPATH"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "/a b\n", "")
    words = (tmp_path / "record").read_text().splitlines()
    assert words[:-1] == ["-x", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "node7"]
    assert words[-1] == f"exec env 'PYTHONPATH=/a b' {sys.executable} -P -m pympx.launcher.agent"
