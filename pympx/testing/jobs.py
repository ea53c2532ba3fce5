"""A multi-rank command as one thing that can be watched, looked into and ended: its launcher and all its descendants.

Membership is decided twice: by parenthood (read from /proc) and by a tag in the environment, so that processes which called
setsid or lost their parent are found as well. Signals go through pidfds, checked after opening: a recycled pid is never hit.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

#: what marks every process of a job: the random tags of the jobs that it belongs to
TAG_VARIABLE = "PYMPX_TESTING_JOB"
#: where a launcher writes the rank of a process
RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "PMI_ID", "PYMPX_RANK", "RANK")
_LAUNCHERS = ("mpiexec", "mpirun", "hydra_pmi_proxy", "prterun", "prted", "srun", "sh", "bash")


class LauncherError(RuntimeError):
    """The launcher that was asked for is not there. The message is one line and says what to do."""


@dataclass(frozen=True)
class Process:
    """One process as /proc showed it; `started` (clock ticks since boot) tells it from a later user of the same pid."""

    pid: int
    parent: int
    started: int
    state: str
    environment: Mapping[str, str]
    command: str

    @property
    def rank(self) -> int | None:
        """The rank that a launcher wrote into the environment, or None."""
        for name in RANK_VARIABLES:
            value = self.environment.get(name, "")
            if value.isdigit():
                return int(value)
        return None

    @property
    def is_launcher(self) -> bool:
        words = [Path(word).name.partition(".")[0] for word in self.command.split("\0")[:2]]
        return any(word in _LAUNCHERS for word in words) or "\0-m\0pympx\0run\0" in self.command


def _stat(pid: int) -> tuple[int, int, str]:
    """Return (parent, start time, state) of a process. Raises OSError when it is gone."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return int(fields[1]), int(fields[19]), fields[0]


def _look(pid: int) -> Process | None:
    try:
        parent, started, state = _stat(pid)
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        raw = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except (OSError, IndexError):
        return None  # gone, or another user's
    environment = dict(entry.split("=", 1) for entry in raw.split("\0") if "=" in entry)
    return Process(pid, parent, started, state, environment, command)


def mpiexec_path() -> str:
    """Return the mpiexec beside the interpreter. Raises LauncherError when there is none: no other MPI's is taken instead."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists():
        raise LauncherError(f"no mpiexec beside {sys.executable}: install the wheel 'mpich' into this environment")
    return str(mpiexec)


def launcher_command(argv: Sequence[str], n: int, launcher: str = "mpiexec") -> list[str]:
    """Return the command that starts `argv` on `n` ranks with the launcher `mpiexec` (beside the interpreter) or `run` (ours).

    Raises LauncherError when that mpiexec does not exist, ValueError for another name of a launcher.
    """
    if launcher == "run":
        # -P: never a source tree that happens to be the current directory
        return [sys.executable, "-P", "-m", "pympx", "run", "-n", str(n), *argv]
    if launcher != "mpiexec":
        raise ValueError(f"launcher must be 'mpiexec' or 'run', not {launcher!r}")
    return [mpiexec_path(), "-n", str(n), *argv]


def eventually(condition: Callable[[], bool], limit: float) -> bool:
    """Return True as soon as `condition` holds, False after `limit` seconds: for what gives no sign when it happens."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


class Job:
    """A started command and its descendants. Use as a context manager: what is left at the end is killed."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
    ) -> None:
        """Start `command` in a process group of its own. Raises OSError when it cannot be started."""
        self.tag = secrets.token_hex(8)
        environment = dict(os.environ if env is None else env)
        environment[TAG_VARIABLE] = " ".join([*environment.get(TAG_VARIABLE, "").split(), self.tag])  # a job inside a job is in both
        self.process = subprocess.Popen(
            command, env=environment, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, process_group=0
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait(self, timeout: float) -> int | None:
        """Wait at most `timeout` seconds for the launcher; return its exit code, None while it runs."""
        if self.process.returncode is None:
            fd = os.pidfd_open(self.process.pid)  # readable at the end: unlike Popen.wait this wakes at once
            try:
                poller = select.poll()
                poller.register(fd, select.POLLIN)
                poller.poll(max(0.0, timeout) * 1000)
            finally:
                os.close(fd)
        return self.process.poll()

    def members(self) -> list[Process]:
        """Return the job's live processes, the launcher first."""
        found = (_look(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
        alive = {process.pid: process for process in found if process and process.state not in "ZX"}
        inside = {pid for pid, process in alive.items() if self.tag in process.environment.get(TAG_VARIABLE, "").split()}
        if self.process.returncode is None and self.process.pid in alive:
            inside.add(self.process.pid)
        grew = True
        while grew:  # children whose environment was cleared
            more = {pid for pid, process in alive.items() if process.parent in inside and pid not in inside}
            inside |= more
            grew = bool(more)
        return [alive[pid] for pid in sorted(inside, key=lambda pid: (pid != self.process.pid, pid))]

    def ranks(self) -> list[Process]:
        """Return the live processes that are ranks, by rank.

        A rank has a launcher's rank variable that its parent does not have. Where there is none (a program started without a
        launcher), every member that is no known launcher counts.
        """
        members = self.members()
        by_pid = {process.pid: process for process in members}
        signed = [process for process in members if process.rank is not None]
        ranks = [p for p in signed if p.parent not in by_pid or by_pid[p.parent].rank is None or by_pid[p.parent].is_launcher]
        if not ranks:
            ranks = [process for process in members if not process.is_launcher]
        return sorted(ranks, key=lambda process: (process.rank is None, process.rank or 0, process.pid))

    def kill(self) -> None:
        """SIGKILL every member, nothing else, and reap the launcher. Returns when none is left (or after 10 s)."""
        deadline = time.monotonic() + 10
        while True:
            members = self.members()
            _kill(members)
            if self.process.returncode is None:
                self.wait(0.05)
            if not members or time.monotonic() > deadline:
                return
            for process in members:
                _await_end(process, deadline)


def _kill(processes: Iterable[Process]) -> None:
    for process in processes:
        with contextlib.suppress(OSError):
            fd = os.pidfd_open(process.pid)
            try:
                if _stat(process.pid)[1] == process.started:  # still the one that was looked at
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            finally:
                os.close(fd)


def _await_end(process: Process, deadline: float) -> None:
    """Wait until a killed process has ended (as a zombie it has)."""
    while time.monotonic() < deadline:
        try:
            _, started, state = _stat(process.pid)
        except (OSError, IndexError):
            return
        if started != process.started or state in "ZX":
            return
        time.sleep(0.005)
