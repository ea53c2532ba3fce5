"""Starting one rank, and the keeper that ends all ranks should the launcher be killed.

Every rank leads a session, hence a process group, of its own: signals to the group reach its children too, and a Ctrl-C at the terminal
reaches the launcher only, which forwards it once. Against `kill -9` of the launcher stand two guards. The kernel kills each rank
(PR_SET_PDEATHSIG). The keeper, a forked child that sleeps on a pipe, then sees end-of-file and kills the ranks' groups. A process that
leaves its rank's group (setsid) is on its own.

The launcher has one thread, so the Python that runs between fork and exec finds no lock held, and the thread to whose death the kernel
ties the signal lives as long as the launcher.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_PID = struct.Struct("=q")
_ERRNO = struct.Struct("=i")

_prctl = ctypes.CDLL(None, use_errno=True).prctl


@dataclass(frozen=True)
class Keeper:
    """The process that outlives a killed launcher for a moment; `pipe` takes the ranks' pids."""

    pid: int
    pipe: int

    def dismiss(self) -> None:
        """End the keeper without harm to anybody; called when no rank is left."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.pipe)


def start_keeper() -> Keeper:
    """Fork the keeper. It holds no descriptor of the launcher but the pipe's end, and no terminal."""
    read_end, write_end = os.pipe()
    with _signals_blocked():
        pid = os.fork()
        if pid == 0:
            _keep(read_end)
    os.close(read_end)
    return Keeper(pid, write_end)


def _keep(read_end: int) -> NoReturn:
    try:
        os.setsid()
        os.dup2(read_end, 0)
        os.closerange(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        groups = b""
        while data := os.read(0, 4096):
            groups += data
        for (pid,) in _PID.iter_unpack(groups):
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
    finally:
        os._exit(0)


class _signals_blocked:  # noqa: N801 - reads as a statement
    """Keeps signals away while a forked child still shares the launcher's handlers."""

    def __enter__(self) -> None:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


def start_rank(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    stdio: tuple[int, int, int],
    inherited: Sequence[int],
    keeper: Keeper,
    files: tuple[int, int],
) -> int:
    """Start `arguments` with the given stdin, stdout, stderr and further descriptors; return its pid, which is also its process group.

    `files` is the RLIMIT_NOFILE (soft, hard) that the rank shall have. Raises OSError when the program cannot be executed.
    """
    launcher = os.getpid()
    report_read, report_write = os.pipe()
    try:
        with _signals_blocked():
            pid = os.fork()
            if pid == 0:
                try:
                    _become(launcher, arguments, environ, stdio, inherited, keeper, files)
                except OSError as error:
                    os.write(report_write, _ERRNO.pack(error.errno or 0))
                finally:
                    os._exit(127)
        os.close(report_write)
        report_write = -1
        report = os.read(report_read, _ERRNO.size)
    finally:
        os.close(report_read)
        if report_write >= 0:
            os.close(report_write)
    if report:
        os.waitpid(pid, 0)
        (code,) = _ERRNO.unpack(report)
        raise OSError(code, os.strerror(code), arguments[0])
    return pid


def _become(
    launcher: int,
    arguments: Sequence[str],
    environ: Mapping[str, str],
    stdio: tuple[int, int, int],
    inherited: Sequence[int],
    keeper: Keeper,
    files: tuple[int, int],
) -> None:
    os.setsid()
    os.write(keeper.pipe, _PID.pack(os.getpid()))
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != launcher:  # it died before the line above
        os._exit(127)
    for target, fd in enumerate(stdio):
        os.dup2(fd, target) if fd != target else os.set_inheritable(fd, True)
    for fd in inherited:
        os.set_inheritable(fd, True)
    resource.setrlimit(resource.RLIMIT_NOFILE, files)
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):  # what Python or a background shell made us ignore
        signal.signal(number, signal.SIG_DFL)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execvpe(arguments[0], list(arguments), environ)
