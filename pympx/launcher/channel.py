"""Frames between the launcher and its agent on another host, over the two ends of the agent's standard input and output.

A frame is its length, a kind, a rank, and bytes. The agent first writes GREETING; what a login shell said before is skipped. Both ends are
non-blocking members of a selector. What cannot be written at once waits here; `congested` says when that is much.
"""

from __future__ import annotations

import enum
import os
import selectors
import struct
from collections.abc import Callable

GREETING = b"\npympx agent 1\n"
_HEADER = struct.Struct("<IBi")
#: bytes of one frame that are believed: an environment and arguments fit
LONGEST = 16 << 20
#: bytes of what other programs may say before the greeting
_NOISE_LIMIT = 1 << 16
_MUCH, _READ_SIZE = 1 << 20, 1 << 16


class Kind(enum.IntEnum):
    """To the agent: START (JSON) .. FINISH; from it: OUT .. FAILED; PMI goes both ways."""

    PMI = 1
    START = 2
    SIGNAL = 3  #: one byte, to all ranks
    STDIN = 4  #: for rank 0; empty: end-of-file
    PAUSE = 5  #: stop reading `rank` = 1: stdout, 2: stderr, of all ranks
    RESUME = 6
    CLOSE = 7  #: nobody will read that output any more
    HANG_UP = 8  #: the rank does not speak PMI
    FINISH = 9  #: the job is over
    OUT = 20
    ERR = 21
    OUT_END = 22
    ERR_END = 23
    STDIN_TAKEN = 24
    ENDED = 25  #: two bytes: 1 and the exit code, or 0 and the signal
    FAILED = 26  #: one byte, the job's exit code, and why the ranks could not be started


_KINDS = frozenset(Kind)


class ChannelError(ValueError):
    """What came is no frame."""


class Channel:
    """Owns both descriptors. `receive(kind, rank, data)` gets each frame, `closed()` is called once, at the peer's end or at nonsense."""

    def __init__(
        self,
        read_fd: int,
        write_fd: int,
        selector: selectors.BaseSelector,
        receive: Callable[[Kind, int, bytes], None],
        closed: Callable[[], None],
        greeted: Callable[[], None] | None = None,
        relieved: Callable[[], None] = lambda: None,
    ) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._selector = selector
        self._receive, self._closed, self._greeted, self._relieved = receive, closed, greeted, relieved
        self._incoming, self._outgoing = bytearray(), bytearray()
        self._open = True
        self._writing = False
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)
        selector.register(read_fd, selectors.EVENT_READ, self._read)

    @property
    def congested(self) -> bool:
        return len(self._outgoing) > _MUCH

    @property
    def idle(self) -> bool:
        """True when everything sent has been taken by the kernel, or never will be."""
        return not self._outgoing

    def send(self, kind: Kind, rank: int = 0, data: bytes = b"") -> None:
        if self._open:
            self._outgoing += _HEADER.pack(len(data), kind, rank) + data
            self._write(0)

    def greet(self) -> None:
        """Say that an agent is here: what the launcher's end waits for."""
        self._outgoing += GREETING
        self._write(0)

    def close(self) -> None:
        """Give the descriptors back. Idempotent."""
        if not self._open:
            return
        self._open = False
        self._selector.unregister(self._read_fd)
        self._stop_writing()
        os.close(self._read_fd)
        os.close(self._write_fd)

    def _stop_writing(self) -> None:
        self._outgoing.clear()
        if self._writing:
            self._selector.unregister(self._write_fd)
            self._writing = False

    def _write(self, _events: int) -> None:
        was_congested = self.congested
        try:
            while self._outgoing:
                with memoryview(self._outgoing) as view:
                    written = os.write(self._write_fd, view[:_READ_SIZE])
                del self._outgoing[:written]
        except BlockingIOError:
            if not self._writing:
                self._selector.register(self._write_fd, selectors.EVENT_WRITE, self._write)
                self._writing = True
        except OSError:  # the reader has gone; the reading side says so
            self._stop_writing()
        if not self._outgoing and self._writing:
            self._stop_writing()
        if was_congested and not self.congested:
            self._relieved()

    def _read(self, _events: int) -> None:
        try:
            data = os.read(self._read_fd, _READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._incoming += data
        try:
            if not data:
                raise ChannelError("end-of-file")
            if self._greeted is not None:
                self._skip_noise()
            if self._greeted is None:
                self._take_frames()
        except ChannelError:
            if self._open:
                self.close()
                self._closed()

    def _skip_noise(self) -> None:
        at = (b"\n" + self._incoming).find(GREETING)
        if at < 0 and len(self._incoming) > _NOISE_LIMIT:
            raise ChannelError("no greeting")
        if at >= 0:
            del self._incoming[: at + len(GREETING) - 1]
            greeted, self._greeted = self._greeted, None
            assert greeted is not None
            greeted()

    def _take_frames(self) -> None:
        while self._open and len(self._incoming) >= _HEADER.size:
            length, number, rank = _HEADER.unpack_from(self._incoming)
            if length > LONGEST or number not in _KINDS:
                raise ChannelError(f"frame of kind {number}, {length} bytes")
            if len(self._incoming) < _HEADER.size + length:
                return
            data = bytes(self._incoming[_HEADER.size : _HEADER.size + length])
            del self._incoming[: _HEADER.size + length]
            self._receive(Kind(number), rank, data)
