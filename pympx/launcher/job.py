"""One job of ``python -m pympx run``: has ranks started where they belong, serves them, ends them, and knows the exit code.

One thread, one selector: what the places of the job (place.py) watch there, and a pipe on which signals arrive. Nothing is polled, so an
idle launcher uses no CPU.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import signal
import time
from collections.abc import Callable, Sequence

from .local import LocalRanks
from .output import Pipe, Stream, make_sinks
from .place import Place, Share, process_mapping
from .pmi1_server import Pmi1Server
from .remote import RemoteRanks

#: Seconds from SIGTERM to SIGKILL for the ranks that are left when one has failed.
FAILURE_GRACE = 0.5
#: Seconds that output may go on after the last rank's end, from children that the ranks left behind.
DRAIN_LIMIT = 1.0

#: Tells the ranks that an exception on one of them does not end the others.
KEEP_GOING = "PYMPX_KEEP_GOING"

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)


class Job:
    """`size` ranks of `arguments`. `signal_grace`: seconds from a forwarded signal to SIGKILL. `tag`: begin lines with the rank.

    `hosts`: (host, number of ranks) in order of the ranks, reached by the command `rsh`; none: all ranks run here.
    `keep_going`: a rank that fails does not end the others.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        size: int,
        *,
        tag: bool,
        signal_grace: float,
        hosts: Sequence[tuple[str, int]] = (),
        rsh: Sequence[str] = (),
        keep_going: bool = False,
    ) -> None:
        self._arguments = list(arguments)
        self._size = size
        self._tag = tag
        self._signal_grace = signal_grace
        self._hosts = list(hosts)
        self._rsh = list(rsh)
        self._keep_going = keep_going
        self._environ = {**os.environ, KEEP_GOING: str(int(keep_going))}
        self._survived = False
        self._first_failure = 0
        self._selector = selectors.DefaultSelector()
        self._places: list[Place] = []
        self._place_of: dict[int, Place] = {}
        self._alive = set(range(size))
        self._streams: list[Stream] = []
        self._code = 0
        self._ending = False
        self._interrupted = False
        self._aborted = False
        self._kill_at: float | None = None
        self._message = ""
        mapping = process_mapping([count for _, count in self._hosts] or [size])
        self._server = Pmi1Server(size, f"kvs_{os.getpid()}_{secrets.token_hex(4)}", self._send, mapping)

    def run(self) -> int:
        """Run the job to its end; return its exit code. Raises OSError when the program cannot be executed."""
        self._catch_signals()
        self._sinks = make_sinks(self._selector)
        try:
            self._start()
            while self._alive:
                self._turn(self._kill_at)
                if self._kill_at is not None and time.monotonic() >= self._kill_at:
                    self._kill_at = None
                    self._signal_ranks(signal.SIGKILL)
            self._drain()
            if not self._ending and not self._survived:
                self._code = self._first_failure
        finally:
            for place in self._places:
                place.close()
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
        if not self._hosts:
            here = LocalRanks(self._selector, self, self._pipe, self._environ, 0)
            self._start_place(here, Share(self._arguments, self._size, 0, self._size, key))
            return
        signal.signal(signal.SIGTTIN, signal.SIG_IGN)  # we read for rank 0; in the background it shall see end-of-file
        first = 0
        for host, count in self._hosts:
            place = RemoteRanks(host, self._rsh, self._selector, self, self._stream, self._environ, self._sinks[1].write)
            self._start_place(place, Share(self._arguments, self._size, first, count, key))
            first += count

    def _start_place(self, place: Place, share: Share) -> None:
        self._places.append(place)
        for rank in share.ranks:
            self._place_of[rank] = place
        place.start(share)

    def _stream(self, rank: int, which: int) -> Stream:
        stream = Stream(self._sinks[which - 1], f"[{rank}] ".encode() if self._tag else b"")
        self._streams.append(stream)
        return stream

    def _pipe(self, rank: int, which: int, fd: int) -> Pipe:
        stream = self._stream(rank, which)
        pipe = Pipe(fd, self._selector, stream.take, stream.end)
        stream.source = pipe
        return pipe

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
        moments += [place.deadline for place in self._places if place.deadline is not None]
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
        for place in self._places:
            if place.deadline is not None and place.deadline <= now:
                place.expire()

    def _drain(self) -> None:
        """Pass on the output that is left: until the ranks' children have closed it, or time is up, or at once when the job has failed.

        What is read by then waits for a slow reader as long as no signal arrives.
        """
        if self._ending:
            self._signal_ranks(signal.SIGKILL)
        limit = time.monotonic() + DRAIN_LIMIT
        while any(sink.streams for sink in self._sinks) and time.monotonic() < limit:
            self._turn(limit)
        for place in self._places:
            if not place.finished:
                place.finish()
        while not all(place.finished for place in self._places):
            self._turn(None)
        for stream in self._streams:
            stream.close()
        while not all(sink.idle for sink in self._sinks) and not self._interrupted:
            self._turn(None)

    # ---- events ----

    def _send(self, number: int, data: bytes) -> None:
        self._place_of[number].send(number, data)

    def heard(self, rank: int, data: bytes) -> bool:
        """See place.Events."""
        if not self._server.feed(rank, data):
            return False
        if self._server.aborted is not None and self._interrupted and not self._aborted:
            self._aborted = True
            self._end_soon()  # the ranks have had their time
        elif self._server.aborted is not None and not self._ending:
            aborting, code = self._server.aborted
            self._end(code & 0xFF or 1, f"{self._name(aborting)} aborted the job with exit code {code & 0xFF or 1}")
        return True

    def ended(self, rank: int, exited: bool, status: int) -> None:
        """See place.Events."""
        self._alive.discard(rank)
        if self._ending:
            pass
        elif not exited:
            name = signal.Signals(status).name if status in signal.valid_signals() else "unknown"
            self._failed(128 + status, f"{self._name(rank)} was killed by signal {status} ({name})")
        elif status != 0:
            self._failed(status, f"{self._name(rank)} exited with code {status}")
        elif self._server.owes_finalize(rank):
            self._failed(1, f"{self._name(rank)} exited with code 0 but without finalizing: let the program end normally, not by os._exit")
        else:
            self._survived = True
        self._server.left(rank)

    def lost(self, ranks: range, code: int, reason: str) -> None:
        """See place.Events."""
        for rank in ranks:
            if rank in self._alive:
                self._alive.discard(rank)
                self._server.left(rank)
        if not self._ending:
            self._failed(code, reason)

    def _name(self, rank: int) -> str:
        return f"rank {rank}{self._place_of[rank].suffix}"

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

    def _failed(self, code: int, reason: str) -> None:
        """Ranks have failed. Before all have met that is the end in any case: they would wait for them."""
        if not self._keep_going or not self._server.all_met:
            self._end(code, reason)
            return
        self._first_failure = self._first_failure or code
        self._sinks[1].write(f"pympx run: {reason}; the others go on\n".encode())

    def _end(self, code: int, reason: str) -> None:
        """End the ranks that are left because of a failure."""
        self._ending = True
        self._code = code
        others = self._alive and self._size > 1
        self._message = f"{reason}; the other ranks were ended" if others else reason
        self._end_soon()

    def _end_soon(self) -> None:
        self._signal_ranks(signal.SIGTERM)
        limit = time.monotonic() + FAILURE_GRACE
        self._kill_at = limit if self._kill_at is None else min(self._kill_at, limit)

    def _signal_ranks(self, number: int) -> None:
        for place in self._places:
            place.signal(number)
