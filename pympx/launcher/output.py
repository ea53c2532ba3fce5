"""Forwards the ranks' stdout and stderr to the launcher's as whole lines.

A line is passed on when its newline has come, so lines of different ranks never mix; an unfinished one is passed on at end-of-file, or in
pieces once it exceeds LINE_LIMIT. Bytes are not changed. On a terminal an unfinished line is shown after SHOW_AFTER seconds, so that
prompts and progress bars live; should another rank then write, a newline is shown first.

The launcher never blocks on its output: a pipe that says it is writable takes PIPE_PIECE bytes at once. While more than BACKLOG_LIMIT
bytes wait, the ranks' pipes are not read, so a slow reader slows the ranks down. When the reader has gone, their pipes are closed and
they get EPIPE as they would without a launcher.
"""

from __future__ import annotations

import errno
import os
import selectors
import time
from collections.abc import Callable
from typing import Protocol

LINE_LIMIT = 1 << 20
BACKLOG_LIMIT = 1 << 20
PIPE_PIECE = 4096
SHOW_AFTER = 0.1
_READ_SIZE = 1 << 16
_PIPE_READS = 17  # empty the largest pipe (1 MiB) that nobody writes to any more


class Sink:
    """One output of the launcher: a pipe, a terminal or a file. Its streams are the ranks' pipes that lead into it."""

    def __init__(self, fd: int, selector: selectors.BaseSelector) -> None:
        self.terminal = os.isatty(fd)
        self.streams: list[Stream] = []
        #: the stream whose unfinished line stands on the terminal
        self.unfinished: Stream | None = None
        #: why output was lost
        self.error: OSError | None = None
        #: nobody reads it any more
        self.closed = False
        self._fd = fd
        self._selector = selector
        self._pending = bytearray()
        self._waiting = False

    @property
    def idle(self) -> bool:
        """True when nothing waits to be written."""
        return not self._pending

    def write(self, data: bytes) -> None:
        if self.closed:
            return
        self._pending += data
        if not self._waiting:
            try:
                self._selector.register(self._fd, selectors.EVENT_WRITE, self._drain)
                self._waiting = True
            except PermissionError:  # a regular file: always ready
                while self._pending:
                    self._write_out(len(self._pending))
        if len(self._pending) > BACKLOG_LIMIT:
            for stream in list(self.streams):
                stream.pause()

    def _drain(self, _events: int) -> None:
        self._write_out(PIPE_PIECE)
        if self._waiting and not self._pending:
            self._selector.unregister(self._fd)
            self._waiting = False
        if len(self._pending) <= BACKLOG_LIMIT // 2:
            for stream in list(self.streams):
                stream.resume()

    def _write_out(self, most: int) -> None:
        try:
            with memoryview(self._pending) as view:
                written = os.write(self._fd, view[:most])
            del self._pending[:written]
        except BlockingIOError:  # somebody made the launcher's output non-blocking
            return
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        if error.errno != errno.EPIPE:  # a reader that has gone wants no more; anything else loses output
            self.error = error
        self.closed = True
        self._pending.clear()
        if self._waiting:
            self._selector.unregister(self._fd)
            self._waiting = False
        for stream in list(self.streams):
            stream.close()


class Source(Protocol):
    """Where a stream's bytes come from. It may bring a few more after `pause`, none after `close`."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...


class Pipe:
    """The reading end of a pipe, in the selector unless paused: gives `take` what comes, calls `ended` at end-of-file, then is closed."""

    def __init__(self, fd: int, selector: selectors.BaseSelector, take: Callable[[bytes], None], ended: Callable[[], None]) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._selector = selector
        self._take = take
        self._ended = ended
        self._reading = False
        self.resume()

    def resume(self) -> None:
        if not self._reading and self._fd >= 0:
            self._selector.register(self._fd, selectors.EVENT_READ, self._read)
            self._reading = True

    def pause(self) -> None:
        if self._reading:
            self._selector.unregister(self._fd)
            self._reading = False

    def close(self) -> None:
        if self._fd >= 0:
            self.pause()
            os.close(self._fd)
            self._fd = -1

    def take_rest(self) -> None:
        """Read what the pipe holds now, without waiting; then close it."""
        for _ in range(_PIPE_READS):
            if self._fd < 0 or not self._read_once():
                break
        if self._fd >= 0:
            self.close()
            self._ended()

    def _read(self, _events: int) -> None:
        self._read_once()

    def _read_once(self) -> bool:
        """Read one piece; return False when there is nothing to read now, or ever."""
        try:
            data = os.read(self._fd, _READ_SIZE)
        except BlockingIOError:
            return False
        if data:
            self._take(data)
        else:
            self.close()
            self._ended()
        return bool(data)


class Stream:
    """One rank's stdout or stderr: makes lines of what `source`, which is set by its maker, brings by `take`, until `end`."""

    source: Source

    def __init__(self, sink: Sink, prefix: bytes) -> None:
        self.show_at: float | None = None
        self._sink = sink
        self._prefix = prefix
        self._partial = bytearray()
        self._starts_line = True
        sink.streams.append(self)

    def resume(self) -> None:
        self.source.resume()

    def pause(self) -> None:
        self.source.pause()

    @property
    def unwanted(self) -> bool:
        """True when nobody reads what it brings."""
        return self._sink.closed

    def close(self) -> None:
        """Pass on what is left; nothing more is wanted from the source."""
        if self in self._sink.streams:
            self.source.close()
            self.end()

    def end(self) -> None:
        """The source brings nothing more: pass on what is left. Idempotent."""
        if self in self._sink.streams:
            self._sink.streams.remove(self)
            self._flush(len(self._partial))

    def show_unfinished(self) -> None:
        self._flush(len(self._partial))

    def take(self, data: bytes) -> None:
        end = data.rfind(b"\n") + 1
        if end:
            end += len(self._partial)
        self._partial += data
        if len(self._partial) - end > LINE_LIMIT:
            end = len(self._partial)
        self._flush(end)
        if self._sink.terminal:
            self.show_at = time.monotonic() + SHOW_AFTER if self._partial else None

    def _flush(self, length: int) -> None:
        """Pass on the first `length` bytes of what has come."""
        self.show_at = None
        if not length:
            return
        data = bytes(self._partial[:length])
        del self._partial[:length]
        whole = data.endswith(b"\n")
        if self._prefix:
            inner = data[:-1].replace(b"\n", b"\n" + self._prefix) + data[-1:]
            data = self._prefix + inner if self._starts_line else inner
        self._starts_line = whole
        other = self._sink.unfinished
        if self._sink.terminal:
            if other is not None and other is not self:
                data = b"\n" + data
                other.interrupted()
            self._sink.unfinished = None if whole else self
        self._sink.write(data)

    def interrupted(self) -> None:
        """Another rank's line was shown after this one's unfinished line."""
        self._starts_line = True


def same_file(one: int, other: int) -> bool:
    """Tell whether two descriptors lead to the same pipe, terminal or file."""
    first, second = os.fstat(one), os.fstat(other)
    return (first.st_dev, first.st_ino, first.st_rdev) == (second.st_dev, second.st_ino, second.st_rdev)


def make_sinks(selector: selectors.BaseSelector) -> tuple[Sink, Sink]:
    """Return the sinks of the launcher's stdout and stderr: one and the same when both lead to one place (2>&1)."""
    out = Sink(1, selector)
    return out, out if same_file(1, 2) else Sink(2, selector)
