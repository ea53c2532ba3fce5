"""The hang runner: real ranks that block in C are found, dumped with both kinds of frames, and ended; nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pympx.testing import hang, jobs

HANGING = """
    import os, select, socket, sys

    def poll_for_ever():
        ends = socket.socketpair()
        poller = select.poll()
        poller.register(ends[0], select.POLLIN)
        poller.poll()

    def receive_for_ever():
        ends = socket.socketpair()
        ends[0].recv(1)

    (poll_for_ever if os.environ["PMI_RANK"] == "0" else receive_for_ever)()
"""


def program(tmp_path: Path, text: str) -> str:
    path = tmp_path / "prog.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


def processes_with(word: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                alive = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
                if alive and word in (entry / "cmdline").read_bytes().decode(errors="replace"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_a_hang_shows_c_and_python_frames_of_every_rank(tmp_path: Path) -> None:
    prog = program(tmp_path, HANGING)
    result = hang.run_ranks([sys.executable, prog], 2, timeout=3)
    assert result.timed_out
    assert sorted(result.stacks) == ["rank 0", "rank 1"]
    assert "poll_for_ever" in result.stacks["rank 0"]
    assert "receive_for_ever" in result.stacks["rank 1"]
    assert "poll" in result.stacks["rank 0"].replace("poll_for_ever", "").replace("select_poll", "")
    assert "recv" in result.stacks["rank 1"]
    assert processes_with(prog) == []


def test_gdb_shows_c_frames_where_py_spy_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prog = program(tmp_path, HANGING)
    find = hang._tool
    monkeypatch.setattr(hang, "_tool", lambda name: None if name == "py-spy" else find(name))
    result = hang.run_ranks([sys.executable, prog], 1, timeout=2)
    assert "poll" in result.stacks["rank 0"]
    assert "_PyEval_EvalFrameDefault" in result.stacks["rank 0"]


@pytest.mark.parametrize("launcher", ["mpiexec", "run"])
def test_a_run_in_time_gives_output_and_code(tmp_path: Path, launcher: str) -> None:
    prog = program(tmp_path, "import os, sys; print('I am', os.environ['PMI_RANK']); print('note', file=sys.stderr)")
    result = hang.run_ranks([sys.executable, prog], 3, launcher=launcher, timeout=60)
    assert (result.returncode, result.timed_out, result.stacks) == (0, False, {})
    assert sorted(result.stdout.split("\n")) == ["", "I am 0", "I am 1", "I am 2"]
    assert result.stderr == "note\n" * 3


def test_the_exit_code_of_a_failing_rank_comes_through(tmp_path: Path) -> None:
    prog = program(tmp_path, "import os, sys; sys.exit(7 if os.environ['PMI_RANK'] == '1' else 0)")
    assert hang.run_ranks([sys.executable, prog], 2, timeout=60).returncode == 7


def test_descendants_that_fled_are_ended_and_strangers_are_not(tmp_path: Path) -> None:
    child = "import signal; signal.pause()"
    prog = program(
        tmp_path,
        f"""
        import signal, subprocess, sys
        mark = sys.argv[1]
        # setsid, and an orphan at once: its parent ends
        spawn = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}, {{mark!r}}], start_new_session=True)"
        subprocess.run([sys.executable, "-c", spawn], check=True)
        subprocess.Popen([sys.executable, "-c", {child!r}, mark], start_new_session=True, env={{}})
        print("ready", flush=True)
        signal.pause()  # while it lives, the child without the environment's tag is known by its parent
        """,
    )
    mark = f"fled-{os.getpid()}"
    with subprocess.Popen([sys.executable, "-c", child, f"stranger-{mark}"]) as stranger:
        try:
            with jobs.Job([sys.executable, prog, mark], stdout=subprocess.PIPE) as job:
                assert job.process.stdout is not None
                assert job.process.stdout.readline() == b"ready\n"
                assert len([p for p in job.members() if mark in p.command]) == 3
                job.process.stdout.close()
            assert [pid for pid in processes_with(mark) if pid != stranger.pid] == []
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_children_of_a_rank_are_no_ranks(tmp_path: Path) -> None:
    prog = program(
        tmp_path,
        """
        import signal, subprocess, sys
        def parent_waits():
            subprocess.run([sys.executable, "-c", "import signal; signal.pause()"])
        parent_waits()
        """,
    )
    result = hang.run_ranks([sys.executable, prog], 2, timeout=2)
    assert sorted(result.stacks) == ["rank 0", "rank 1"]
    assert all("parent_waits" in text for text in result.stacks.values())


def test_command_line(tmp_path: Path) -> None:
    prog = program(tmp_path, HANGING)
    command = [sys.executable, "-m", "pympx.testing.hang", "--timeout", "3", "--", "mpiexec", "-n", "2", sys.executable, prog]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == hang.TIMED_OUT
    assert "stack of rank 0" in done.stderr
    assert "receive_for_ever" in done.stderr
    assert processes_with(prog) == []


def test_command_line_passes_the_code_on() -> None:
    command = [sys.executable, "-m", "pympx.testing.hang", "--", sys.executable, "-c", "raise SystemExit(5)"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (5, "", "")


def test_a_missing_mpiexec_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    with pytest.raises(jobs.LauncherError, match="no mpiexec beside .*install the wheel 'mpich'"):
        hang.run_ranks(["x"], 2)
