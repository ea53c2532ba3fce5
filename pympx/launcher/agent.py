"""The launcher's agent on another host: ``python -m pympx.launcher.agent``, started through ssh or its like.

Its standard input and output are the channel (channel.py), so no port is opened, and who can start it needs no other right. The job's key
comes by that channel. It starts its share of the ranks as the launcher itself would (local.py), passes on their PMI and output, and their
ends, and takes signals for them. When the launcher has gone, which shows as end-of-file, it kills them and ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import sys

from .channel import Channel, ChannelError, Kind
from .local import LocalRanks
from .output import Pipe
from .place import Share

_OUTPUT = {1: (Kind.OUT, Kind.OUT_END), 2: (Kind.ERR, Kind.ERR_END)}
_ABOUT_OUTPUT = (Kind.PAUSE, Kind.RESUME, Kind.CLOSE)


def _parse_order(data: bytes) -> tuple[Share, str, dict[str, str]]:
    """Return what START orders: the share, the folder, the environment. Raises ChannelError when it is none of the launcher's."""
    try:
        order = json.loads(data)
        arguments, environ, folder = order["arguments"], order["environ"], order["folder"]
        size, first, count = (int(order[name]) for name in ("size", "first", "count"))
        share = Share([str(word) for word in arguments], size, first, count, bytes.fromhex(order["key"]))
        good = arguments and 0 <= first < first + count <= size and len(share.key) == 32 and isinstance(folder, str)
        if good and all(isinstance(value, str) for value in environ.values()):
            return share, folder, environ
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    raise ChannelError("START without an order")


class Agent:
    """One job's ranks on this host."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._channel = Channel(read_fd, write_fd, self._selector, self._receive, self._launcher_gone, relieved=self._settle)
        self._ranks: LocalRanks | None = None
        self._pipes: dict[int, list[Pipe]] = {1: [], 2: []}
        self._paused: set[int] = set()
        self._stdin_write = -1
        self._stdin = bytearray()
        self._stdin_waits = False
        self._over = False

    def run(self) -> None:
        """Serve until the job is over or the launcher has gone."""
        self._channel.greet()
        try:
            while not (self._over and self._channel.idle):
                for key, events in self._selector.select():
                    if self._selector.get_map().get(key.fd) is key:  # not closed by an earlier event of this turn
                        key.data(events)
                if self._channel.congested:
                    self._settle()
        finally:
            if self._ranks is not None:
                self._ranks.close()
            self._channel.close()

    def _launcher_gone(self) -> None:
        self._over = True

    # ---- from the launcher ----

    def _receive(self, kind: Kind, rank: int, data: bytes) -> None:
        if kind in _ABOUT_OUTPUT and rank not in _OUTPUT or kind is Kind.SIGNAL and len(data) != 1:
            raise ChannelError(f"{kind.name} for {rank} with {len(data)} bytes")
        if kind is Kind.START:
            self._start(data)
        elif kind is Kind.PAUSE or kind is Kind.RESUME:
            (self._paused.add if kind is Kind.PAUSE else self._paused.discard)(rank)
            self._settle()
        elif kind is Kind.CLOSE:
            for pipe in self._pipes[rank]:
                pipe.close()
        elif kind is Kind.FINISH:
            if self._ranks is not None:
                self._ranks.finish()
            self._over = True
        elif self._ranks is None:
            pass  # they could not be started; the launcher will know soon
        elif kind is Kind.PMI:
            self._ranks.send(rank, data)
        elif kind is Kind.HANG_UP:
            self._ranks.hang_up(rank)
        elif kind is Kind.SIGNAL:
            self._ranks.signal(data[0])
        elif kind is Kind.STDIN:
            self._feed(data)

    def _start(self, data: bytes) -> None:
        share, folder, environ = _parse_order(data)
        if self._ranks is not None:
            raise ChannelError("a second START")
        stdin = -1
        try:
            os.chdir(folder)
            if share.first == 0:
                stdin, self._stdin_write = os.pipe()
                os.set_blocking(self._stdin_write, False)
            self._ranks = LocalRanks(self._selector, self, self._take_output, {**os.environ, **environ}, stdin)
            self._ranks.start(share)
        except OSError as error:
            self._channel.send(Kind.FAILED, 0, bytes([127]) + f"{error.filename!r}: {error.strerror}".encode())
        finally:
            if stdin >= 0:
                os.close(stdin)

    def _feed(self, data: bytes) -> None:
        if not data:
            self._close_stdin()
            return
        self._stdin += data
        self._write_stdin(0)

    def _write_stdin(self, _events: int) -> None:
        if self._stdin_write < 0:
            return
        try:
            while self._stdin:
                del self._stdin[: os.write(self._stdin_write, self._stdin[:4096])]
        except BlockingIOError:
            if not self._stdin_waits:
                self._selector.register(self._stdin_write, selectors.EVENT_WRITE, self._write_stdin)
                self._stdin_waits = True
            return
        except OSError:  # rank 0 does not read: leave the rest to others
            self._close_stdin()
            return
        self._stop_waiting()
        self._channel.send(Kind.STDIN_TAKEN)

    def _stop_waiting(self) -> None:
        if self._stdin_waits:
            self._selector.unregister(self._stdin_write)
            self._stdin_waits = False

    def _close_stdin(self) -> None:
        if self._stdin_write >= 0:
            self._stop_waiting()
            os.close(self._stdin_write)
            self._stdin_write = -1

    # ---- from the ranks ----

    def heard(self, rank: int, data: bytes) -> bool:
        self._channel.send(Kind.PMI, rank, data)
        return True

    def ended(self, rank: int, exited: bool, status: int) -> None:
        self._channel.send(Kind.ENDED, rank, bytes([exited, status]))

    def lost(self, ranks: range, code: int, reason: str) -> None:
        raise AssertionError("local ranks are not lost")

    def _take_output(self, rank: int, which: int, fd: int) -> Pipe:
        take, end = _OUTPUT[which]
        pipe = Pipe(fd, self._selector, lambda data: self._channel.send(take, rank, data), lambda: self._channel.send(end, rank))
        self._pipes[which].append(pipe)
        self._settle()
        return pipe

    def _settle(self) -> None:
        """Read the ranks' output only while the launcher takes it."""
        for which, pipes in self._pipes.items():
            for pipe in pipes:
                pipe.pause() if which in self._paused or self._channel.congested else pipe.resume()


def main() -> None:
    """Take standard input and output as the channel; what else might write to them meets stderr and /dev/null."""
    read_fd, write_fd = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    with contextlib.suppress(KeyboardInterrupt):
        Agent(read_fd, write_fd).run()


if __name__ == "__main__":
    main()
    sys.exit(0)
