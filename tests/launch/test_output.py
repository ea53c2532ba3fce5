"""What the ranks write reaches the launcher's output whole, in order, unchanged and fast; stdin reaches rank 0."""

from __future__ import annotations

import collections
import hashlib
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import RUN, environment, execute

PYTHON = [sys.executable, "-c"]

WRITER = """
import os, random, sys
rank, seed = int(os.environ["PMI_RANK"]), int(sys.argv[1])
rng = random.Random(seed + rank)
for line in range(2000):
    text = b"%d %d %s\\n" % (rank, line, bytes([97 + rank]) * rng.randrange(300))
    fd = rng.choice((1, 2))
    while text:                      # in pieces, so that only the launcher can keep lines whole
        cut = rng.randrange(1, len(text) + 1)
        os.write(fd, text[:cut])
        text = text[cut:]
"""


def test_lines_are_whole_and_in_order() -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)
    # both streams into one pipe: the hardest case
    done = subprocess.run(
        [*RUN, "-n", "4", *PYTHON, WRITER, str(seed)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    seen: dict[bytes, set[int]] = collections.defaultdict(set)
    for line in done.stdout.splitlines():
        rank, number, *rest = line.split(b" ")
        assert len(rest) == 1 and set(rest[0]) <= {97 + int(rank)}, line
        seen[rank].add(int(number))
    assert seen == {b"%d" % rank: set(range(2000)) for rank in range(4)}


def test_order_within_one_stream() -> None:
    done = execute([*RUN, "-n", "3", *PYTHON, "import os\nfor i in range(3000): print(os.environ['PMI_RANK'], i)"])
    for rank in range(3):
        mine = [line for line in done.stdout.decode().splitlines() if line.startswith(f"{rank} ")]
        assert mine == [f"{rank} {i}" for i in range(3000)]


@pytest.mark.parametrize("tag", [[], ["--tag"]], ids=["plain", "tag"])
def test_forty_thousand_lines_are_fast(tag: list[str]) -> None:
    begin = time.monotonic()
    done = execute([*RUN, "-n", "4", *tag, *PYTHON, "for i in range(10000): print('line', i)"])
    took = time.monotonic() - begin
    assert (done.returncode, done.stdout.count(b"\n"), done.stderr) == (0, 40000, b"")
    assert took < 3.0, took


def test_tag_and_last_line_without_newline() -> None:
    program = "import os; os.write(1, b'one\\n\\ntwo'); os.write(2, b'err'); os.write(1, b' more')"
    done = execute([*RUN, "-n", "1", "--tag", *PYTHON, program])
    assert (done.stdout, done.stderr) == (b"[0] one\n[0] \n[0] two more", b"[0] err")
    done = execute([*RUN, "-n", "1", *PYTHON, program])
    assert (done.stdout, done.stderr) == (b"one\n\ntwo more", b"err")


def test_lines_come_when_they_are_printed(tmp_path: Path) -> None:
    """A line is passed on while its rank goes on: the rank waits for a file that this test makes after it has read the line."""
    go = tmp_path / "go"
    program = "import os, sys, time\nprint('ready')\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)"
    with subprocess.Popen([*RUN, "-n", "2", *PYTHON, program, str(go)], env=environment(), stdout=subprocess.PIPE) as job:
        assert job.stdout is not None
        assert select.select([job.stdout], [], [], 20)[0]
        assert job.stdout.readline() == b"ready\n"
        go.touch()
        assert job.stdout.read() == b"ready\n"
        assert job.wait(20) == 0


@pytest.mark.parametrize("to_file", [False, True])
def test_binary_is_unharmed(to_file: bool, tmp_path: Path) -> None:
    """8 MiB of random bytes from one rank, far more than one line's limit without a newline in places, through a pipe and into a file."""
    program = """
import os, random, sys
if os.environ["PMI_RANK"] == "1":
    data = random.Random(5).randbytes(4 << 20) + b"x" * (4 << 20) + b"\\r\\n\\0"
    sys.stdout.buffer.write(data)
else:
    print("log", file=sys.stderr)
"""
    import random

    expected = hashlib.sha256(random.Random(5).randbytes(4 << 20) + b"x" * (4 << 20) + b"\r\n\0").hexdigest()
    command = [*RUN, "-n", "2", *PYTHON, program]
    if to_file:
        with open(tmp_path / "out", "wb") as file:
            done = subprocess.run(command, env=environment(), stdout=file, stderr=subprocess.PIPE, timeout=30, check=False)
        data = (tmp_path / "out").read_bytes()
    else:
        done = execute(command)
        data = done.stdout
    assert (done.returncode, hashlib.sha256(data).hexdigest(), done.stderr) == (0, expected, b"log\n")


def test_slow_reader_loses_nothing_and_bounds_memory() -> None:
    """While nobody reads, the ranks stop: the launcher holds a few MiB of the 64 that they want to write; then everything arrives."""
    program = "import sys\nfor i in range(1024): sys.stdout.write('y' * 32767 + '\\n')"
    with subprocess.Popen([*RUN, "-n", "2", *PYTHON, program], env=environment(), stdout=subprocess.PIPE) as job:
        assert job.stdout is not None

        def resident() -> int:
            return int(Path(f"/proc/{job.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        assert select.select([job.stdout], [], [], 20)[0]
        largest, end = 0, time.monotonic() + 1.0
        while time.monotonic() < end:
            largest = max(largest, resident())
        count = sum(len(line) == 32768 for line in job.stdout)
        assert job.wait(20) == 0
    assert count == 2048
    assert largest < 48 << 20


def test_reader_that_goes_ends_the_job() -> None:
    """As in `program | head -1`: the ranks get EPIPE, the launcher ends."""
    with subprocess.Popen(
        [*RUN, "-n", "2", *PYTHON, "while True: print('again')"], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as job:
        assert job.stdout is not None and job.stderr is not None
        assert job.stdout.readline() == b"again\n"
        job.stdout.close()
        assert b"BrokenPipeError" in job.stderr.read()
        assert job.wait(20) == 1


def test_lost_output_is_reported() -> None:
    with open("/dev/full", "wb") as full:
        command = [*RUN, "-n", "1", "echo", "x"]
        done = subprocess.run(command, env=environment(), stdout=full, stderr=subprocess.PIPE, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (1, b"pympx run: output was lost: No space left on device\n")


def test_stdin_goes_to_rank_0() -> None:
    program = "import os, sys; print(os.environ['PMI_RANK'], len(sys.stdin.buffer.read()))"
    data = os.urandom(300_000)
    done = execute([*RUN, "-n", "3", *PYTHON, program], stdin=data)
    assert sorted(done.stdout.decode().splitlines()) == ["0 300000", "1 0", "2 0"]


def test_closed_standard_descriptors() -> None:
    done = execute(["sh", "-c", 'exec "$@" <&- 2>&-', "sh", *RUN, "-n", "2", *PYTHON, "import sys; print(repr(sys.stdin.read()))"])
    assert (done.returncode, done.stdout) == (0, b"''\n''\n")


def test_prompt_shows_on_a_terminal() -> None:
    """On a terminal an unfinished line is shown, and input typed there reaches rank 0; other ranks' lines begin on a line of their own."""
    program = """
import os, sys, time
if os.environ["PMI_RANK"] == "0":
    name = input("name? ")
    print("hello", name)
"""
    leader, follower = pty.openpty()
    job = subprocess.Popen([*RUN, "-n", "2", *PYTHON, program], env=environment(), stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)

    def read_until(mark: bytes) -> bytes:
        data, end = b"", time.monotonic() + 20
        while mark not in data:
            assert select.select([leader], [], [], max(0.0, end - time.monotonic()))[0], data
            data += os.read(leader, 1024)
        return data

    try:
        assert read_until(b"name? ").endswith(b"name? ")
        os.write(leader, b"world\n")
        assert b"hello world\r\n" in read_until(b"hello world\r\n")
        assert job.wait(20) == 0
    finally:
        job.kill()
        job.wait()
        os.close(leader)
