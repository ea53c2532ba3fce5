"""One job of ``python -m pympx run``: starts the ranks, serves them, ends them, and knows the exit code.

One thread, one selector: the ranks' pidfds, PMI sockets and output pipes, and a pipe on which signals arrive. Nothing is polled, so an
idle launcher uses no CPU. A rank that has ended is reaped only when the job is over: until then its pid, the name of its process group,
cannot be given to a stranger whom a late signal would hit.
"""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..bootstrap.environment import socket_inode
from .output import Stream, make_sinks
from .pmi1_server import Pmi1Server
from .process import start_keeper, start_rank

#: Seconds from SIGTERM to SIGKILL for the ranks that are left when one has failed.
FAILURE_GRACE = 0.5
#: Seconds that output may go on after the last rank's end, from children that the ranks left behind.
DRAIN_LIMIT = 1.0
#: Descriptors that one rank needs at most in the launcher, and those that the launcher itself needs.
_FILES_PER_RANK, _FILES_OWN = 8, 64

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)
#: An outer launcher's variables that would mislead our ranks.
_NOT_INHERITED = ("PYMPX_BOOT", "PMI_PORT", "PMI_ID", "PMI_SPAWNED")


@dataclass
class _Rank:
    number: int
    pid: int
    pidfd: int
    connection: socket.socket | None
    unsent: bytearray


class Job:
    """`size` ranks of `arguments`. `signal_grace`: seconds from a forwarded signal to SIGKILL. `tag`: begin lines with the rank."""

    def __init__(self, arguments: Sequence[str], size: int, *, tag: bool, signal_grace: float) -> None:
        self._arguments = list(arguments)
        self._size = size
        self._tag = tag
        self._signal_grace = signal_grace
        self._selector = selectors.DefaultSelector()
        self._ranks: list[_Rank] = []
        self._alive: set[int] = set()
        self._streams: list[Stream] = []
        self._code = 0
        self._ending = False
        self._interrupted = False
        self._kill_at: float | None = None
        self._message = ""
        self._server = Pmi1Server(size, f"kvs_{os.getpid()}_{secrets.token_hex(4)}", self._send)

    def run(self) -> int:
        """Run the job to its end; return its exit code. Raises OSError when the program cannot be executed."""
        _drop_own_place(os.environ)
        self._files = _allow_files(_FILES_PER_RANK * self._size + _FILES_OWN)
        self._catch_signals()
        self._sinks = make_sinks(self._selector)
        self._keeper = start_keeper()
        try:
            self._start()
            while self._alive:
                self._turn(self._kill_at)
                if self._kill_at is not None and time.monotonic() >= self._kill_at:
                    self._kill_at = None
                    self._signal_ranks(signal.SIGKILL)
            self._drain()
        finally:
            self._signal_ranks(signal.SIGKILL)
            for rank in self._ranks:
                os.waitpid(rank.pid, 0)
            self._keeper.dismiss()
        for sink in set(self._sinks):
            if sink.error is not None and self._code == 0:
                self._code, self._message = 1, f"output was lost: {sink.error.strerror}"
        if self._message:
            with contextlib.suppress(OSError):  # nobody may be left to read it
                os.write(2, f"pympx run: {self._message}\n".encode())
        return self._code

    # ---- start ----

    def _start(self) -> None:
        key = secrets.token_bytes(32)
        null = os.open(os.devnull, os.O_RDONLY)
        for number in range(self._size):
            self._start_one(number, key, 0 if number == 0 else null)
        os.close(null)

    def _start_one(self, number: int, key: bytes, stdin: int) -> None:
        ours, theirs = socket.socketpair()
        key_read, key_write = os.pipe()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        os.write(key_write, key)
        os.close(key_write)
        environ = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        environ.setdefault("PYTHONUNBUFFERED", "1")
        environ |= {
            "PMI_FD": str(theirs.fileno()),
            "PMI_RANK": str(number),
            "PMI_SIZE": str(self._size),
            "MPI_LOCALRANKID": str(number),
            "MPI_LOCALNRANKS": str(self._size),
            "PYMPX_JOB_KEY_FD": f"{key_read}:{os.fstat(theirs.fileno()).st_ino}",
        }
        try:
            stdio, inherited = (stdin, out_write, err_write), (theirs.fileno(), key_read)
            pid = start_rank(self._arguments, environ, stdio, inherited, self._keeper, self._files)
        finally:
            theirs.close()
            for fd in (key_read, out_write, err_write):
                os.close(fd)
        ours.setblocking(False)
        rank = _Rank(number, pid, os.pidfd_open(pid), ours, bytearray())
        self._ranks.append(rank)
        self._alive.add(number)
        self._selector.register(rank.pidfd, selectors.EVENT_READ, lambda _events: self._ended(rank))
        self._selector.register(ours, selectors.EVENT_READ, lambda events: self._serve(rank, events))
        prefix = f"[{number}] ".encode() if self._tag else b""
        for fd, sink in zip((out_read, err_read), self._sinks, strict=True):
            self._streams.append(Stream(fd, sink, prefix, self._selector))

    def _catch_signals(self) -> None:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in (*_ENDING, *_PASSED_ON, signal.SIGTSTP):
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda _number, _frame: None)
        self._selector.register(read_end, selectors.EVENT_READ, lambda _events: self._signalled(os.read(read_end, 64)))

    # ---- the loop ----

    def _turn(self, until: float | None) -> None:
        """Wait for one event, at most until the clock shows `until`, and serve what has happened."""
        moments = [stream.show_at for stream in self._streams if stream.show_at is not None]
        if until is not None:
            moments.append(until)
        wait = max(0.0, min(moments) - time.monotonic()) if moments else None
        for key, events in self._selector.select(wait):
            if self._selector.get_map().get(key.fd) is key:  # not closed by an earlier event of this turn
                serve: Callable[[int], None] = key.data
                serve(events)
        now = time.monotonic()
        for stream in self._streams:
            if stream.show_at is not None and stream.show_at <= now:
                stream.show_unfinished()

    def _drain(self) -> None:
        """Pass on the output that is left: until the ranks' children have closed it, or time is up, or at once when the job has failed.

        What is read by then waits for a slow reader as long as no signal arrives.
        """
        if self._ending:
            self._signal_ranks(signal.SIGKILL)
        limit = time.monotonic() + DRAIN_LIMIT
        while any(sink.streams for sink in self._sinks) and time.monotonic() < limit:
            self._turn(limit)
        self._signal_ranks(signal.SIGKILL)
        for stream in self._streams:
            stream.take_rest()
            stream.close()
        while not all(sink.idle for sink in self._sinks) and not self._interrupted:
            self._turn(None)

    # ---- events ----

    def _serve(self, rank: _Rank, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._push(rank)
        if events & selectors.EVENT_READ:
            self._hear(rank)

    def _hear(self, rank: _Rank) -> bool:
        """Take what a rank sent; return False when there is nothing more now, or ever."""
        if rank.connection is None:
            return False
        try:
            data = rank.connection.recv(65536)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data or not self._server.feed(rank.number, data):
            self._hang_up(rank)
            return False
        if self._server.aborted is not None and not self._ending:
            aborting, code = self._server.aborted
            self._end(code & 0xFF or 1, f"rank {aborting} aborted the job with exit code {code & 0xFF or 1}")
        return True

    def _hang_up(self, rank: _Rank) -> None:
        if rank.connection is not None:
            self._selector.unregister(rank.connection)
            rank.connection.close()
            rank.connection = None

    def _send(self, number: int, data: bytes) -> None:
        rank = self._ranks[number]
        rank.unsent += data
        self._push(rank)

    def _push(self, rank: _Rank) -> None:
        if rank.connection is None:
            return
        try:
            while rank.unsent:
                del rank.unsent[: rank.connection.send(rank.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            rank.unsent.clear()  # the reader has gone; its end is noticed elsewhere
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if rank.unsent else 0)
        if self._selector.get_key(rank.connection).events != wanted:
            self._selector.modify(rank.connection, wanted, self._selector.get_key(rank.connection).data)

    def _ended(self, rank: _Rank) -> None:
        self._selector.unregister(rank.pidfd)
        os.close(rank.pidfd)
        self._alive.discard(rank.number)
        while self._hear(rank):  # an abort or a finalize may still lie in its socket
            pass
        result = os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOWAIT)
        if result is None or self._ending:
            self._server.left(rank.number)
            return
        if result.si_code != os.CLD_EXITED:
            name = signal.Signals(result.si_status).name if result.si_status in signal.valid_signals() else "unknown"
            self._end(128 + result.si_status, f"rank {rank.number} was killed by signal {result.si_status} ({name})")
        elif result.si_status != 0:
            self._end(result.si_status, f"rank {rank.number} exited with code {result.si_status}")
        elif self._server.owes_finalize(rank.number):
            self._end(1, f"rank {rank.number} exited with code 0 but without finalizing: let the program end normally, not by os._exit")
        self._server.left(rank.number)

    def _signalled(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGTSTP:
                self._signal_ranks(signal.SIGSTOP)
                os.kill(os.getpid(), signal.SIGSTOP)
                self._signal_ranks(signal.SIGCONT)
            elif number in _PASSED_ON:
                self._signal_ranks(number)
            elif number in _ENDING:
                self._end_by_signal(number)

    # ---- ending ----

    def _end_by_signal(self, number: int) -> None:
        self._interrupted = True
        if self._code == 128 + number:  # asked again: now
            self._signal_ranks(signal.SIGKILL)
            return
        self._code = 128 + number
        self._message = ""
        self._ending = True
        self._signal_ranks(number)
        self._kill_at = time.monotonic() + self._signal_grace

    def _end(self, code: int, reason: str) -> None:
        """End the ranks that are left because of a failure."""
        self._ending = True
        self._code = code
        others = self._alive and self._size > 1
        self._message = f"{reason}; the other ranks were ended" if others else reason
        self._signal_ranks(signal.SIGTERM)
        self._kill_at = time.monotonic() + FAILURE_GRACE

    def _signal_ranks(self, number: int) -> None:
        for rank in self._ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.pid, number)


def _drop_own_place(environ: Mapping[str, str]) -> None:
    """Keep our ranks from inheriting what an outer launcher gave to this process, if it did."""
    if socket_inode(environ.get("PMI_FD")):
        os.set_inheritable(int(environ["PMI_FD"]), False)
        key = environ.get("PYMPX_JOB_KEY_FD", "").partition(":")[0]
        if key.isdecimal():
            os.set_inheritable(int(key), False)


def _allow_files(needed: int) -> tuple[int, int]:
    """Raise the launcher's soft limit of open files to what many ranks need; return the limits before, which the ranks get back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed if hard == resource.RLIM_INFINITY else min(needed, hard), hard))
    return soft, hard
