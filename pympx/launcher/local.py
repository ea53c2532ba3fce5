"""Ranks on this host: started, served with PMI-1 over socket pairs, watched by pidfds, killed.

Part of the event loop of a job, or of an agent. A rank that has ended is reaped only when all is over: until then its pid, the name of its
process group, cannot be given to a stranger whom a late signal would hit.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..bootstrap.environment import socket_inode
from .output import Pipe
from .place import Events, Share
from .process import Keeper, start_keeper, start_rank

#: Descriptors that one rank needs at most in the launcher, and those that the launcher itself needs.
_FILES_PER_RANK, _FILES_OWN = 8, 64
#: An outer launcher's variables that would mislead our ranks.
NOT_INHERITED = ("PYMPX_BOOT", "PYMPX_HOSTS", "PYMPX_RSH", "PMI_PORT", "PMI_ID", "PMI_SPAWNED")


@dataclass
class _Rank:
    number: int
    pid: int
    pidfd: int
    connection: socket.socket | None
    unsent: bytearray


class LocalRanks:
    """A Place (place.py). `stdin`: for rank 0. `output(rank, which, fd)` takes over the reading end of stdout (1) or stderr (2)."""

    suffix = ""
    deadline: float | None = None

    def __init__(
        self,
        selector: selectors.BaseSelector,
        events: Events,
        output: Callable[[int, int, int], Pipe],
        environ: Mapping[str, str],
        stdin: int,
    ) -> None:
        self.finished = False
        self._selector = selector
        self._events = events
        self._output = output
        self._environ = environ
        self._stdin = stdin
        self._pipes: list[Pipe] = []
        self._ranks: dict[int, _Rank] = {}
        self._keeper: Keeper | None = None

    def start(self, share: Share) -> None:
        """Start the ranks one after the other. Raises OSError when the program cannot be executed."""
        _drop_own_place(os.environ)
        files = _allow_files(_FILES_PER_RANK * share.count + _FILES_OWN)
        self._keeper = start_keeper()
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            for number in share.ranks:
                self._start_one(share, number, self._stdin if number == 0 else null, files)
        finally:
            os.close(null)

    def _start_one(self, share: Share, number: int, stdin: int, files: tuple[int, int]) -> None:
        assert self._keeper is not None
        ours, theirs = socket.socketpair()
        key_read, key_write = os.pipe()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        os.write(key_write, share.key)
        os.close(key_write)
        environ = {name: value for name, value in self._environ.items() if name not in NOT_INHERITED}
        environ.setdefault("PYTHONUNBUFFERED", "1")
        environ |= {
            "PMI_FD": str(theirs.fileno()),
            "PMI_RANK": str(number),
            "PMI_SIZE": str(share.size),
            "MPI_LOCALRANKID": str(number - share.first),
            "MPI_LOCALNRANKS": str(share.count),
            "PYMPX_JOB_KEY_FD": f"{key_read}:{os.fstat(theirs.fileno()).st_ino}",
        }
        try:
            stdio, inherited = (stdin, out_write, err_write), (theirs.fileno(), key_read)
            pid = start_rank(share.arguments, environ, stdio, inherited, self._keeper, files)
        finally:
            theirs.close()
            for fd in (key_read, out_write, err_write):
                os.close(fd)
        ours.setblocking(False)
        rank = _Rank(number, pid, os.pidfd_open(pid), ours, bytearray())
        self._ranks[number] = rank
        self._selector.register(rank.pidfd, selectors.EVENT_READ, lambda _events: self._ended(rank))
        self._selector.register(ours, selectors.EVENT_READ, lambda events: self._serve(rank, events))
        for which, fd in ((1, out_read), (2, err_read)):
            self._pipes.append(self._output(number, which, fd))

    def send(self, rank: int, data: bytes) -> None:
        if rank in self._ranks:  # else it could not be started
            self._ranks[rank].unsent += data
            self._push(self._ranks[rank])

    def hang_up(self, rank: int) -> None:
        """Close the PMI connection of a rank that does not speak PMI."""
        if rank in self._ranks:
            self._hang_up(self._ranks[rank])

    def signal(self, number: int) -> None:
        for rank in self._ranks.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.pid, number)

    def finish(self) -> None:
        self.signal(signal.SIGKILL)
        for pipe in self._pipes:
            pipe.take_rest()
        self.finished = True

    def expire(self) -> None:
        raise AssertionError("local ranks have no deadline")

    def close(self) -> None:
        self.signal(signal.SIGKILL)
        for rank in self._ranks.values():
            os.waitpid(rank.pid, 0)
        self._ranks.clear()
        if self._keeper is not None:
            self._keeper.dismiss()
            self._keeper = None

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
        if not data or not self._events.heard(rank.number, data):
            self._hang_up(rank)
            return False
        return True

    def _hang_up(self, rank: _Rank) -> None:
        if rank.connection is not None:
            self._selector.unregister(rank.connection)
            rank.connection.close()
            rank.connection = None

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
        while self._hear(rank):  # an abort or a finalize may still lie in its socket
            pass
        result = os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOWAIT)
        exited, status = (result.si_code == os.CLD_EXITED, result.si_status) if result is not None else (True, 0)
        self._events.ended(rank.number, exited, status)


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
