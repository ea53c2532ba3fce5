"""The launcher's end of an agent on another host (agent.py): starts it by ssh or its like, and is a Place (place.py) for the job.

The agent is started as ``RSH HOST 'COMMAND LINE'``. It holds nothing secret; program, arguments, environment and the job's key
follow by its standard input once it has greeted. Its death, the connection's and the launcher's show as end-of-file.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from .channel import Channel, ChannelError, Kind
from .local import NOT_INHERITED
from .output import Pipe, Stream
from .place import Events, Share

#: Seconds that an agent has to greet: a login on a busy host, and the start of Python there.
START_LIMIT = 30.0
#: Seconds that an agent has to give the rest of the output when the job is over, since it last gave some.
FINISH_LIMIT = 5.0
#: Variables that belong to a login on one host; all others go with the ranks.
_STAYS = ("HOME", "LOGNAME", "USER", "MAIL", "SHELL", "PWD", "OLDPWD", "SHLVL", "_", "HOSTNAME", "HOST", "DISPLAY", "XAUTHORITY")
_STAYS_PREFIXES = ("SSH_", "XDG_", "DBUS_", "SUDO_")
_STDIN_PIECE = 1 << 16
_FATAL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL)
_OUTPUT = {Kind.OUT: 1, Kind.ERR: 2, Kind.OUT_END: 1, Kind.ERR_END: 2}


def agent_command(host: str, rsh: Sequence[str]) -> list[str]:
    """Return what starts an agent on `host`: without `rsh` where that is this very host."""
    words = [sys.executable, "-P", "-m", "pympx.launcher.agent"]
    if host in ("localhost", socket.gethostname()):
        return words
    if os.environ.get("PYTHONPATH"):
        words = ["env", f"PYTHONPATH={os.environ['PYTHONPATH']}", *words]
    return [*rsh, host, "exec " + shlex.join(words)]


class _RemoteSource:
    """One rank's stdout or stderr over there. The agent pauses and resumes a kind of output for all its ranks at once."""

    def __init__(self, ask: Callable[[int, Kind], None], which: int) -> None:
        self._ask, self._which = ask, which

    def pause(self) -> None:
        self._ask(self._which, Kind.PAUSE)

    def resume(self) -> None:
        self._ask(self._which, Kind.RESUME)

    def close(self) -> None:
        self._ask(self._which, Kind.CLOSE)


class RemoteRanks:
    """The ranks of one host. `output(rank, which)` makes the stream of a rank's stdout (1) or stderr (2); `note` takes rsh's own stderr."""

    def __init__(
        self,
        host: str,
        rsh: Sequence[str],
        selector: selectors.BaseSelector,
        events: Events,
        output: Callable[[int, int], Stream],
        environ: Mapping[str, str],
        note: Callable[[bytes], None],
    ) -> None:
        self.suffix = f" on {host}"
        self.finished = False
        self.deadline: float | None = None
        self._host = host
        self._rsh = rsh
        self._selector = selector
        self._events = events
        self._output = output
        self._environ = environ
        self._note = note
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._share: Share | None = None
        self._streams: dict[tuple[int, int], Stream] = {}
        self._wish = {1: Kind.RESUME, 2: Kind.RESUME}
        self._said = b""
        self._greeted = False
        self._finishing = False
        self._reads_stdin = False

    def start(self, share: Share) -> None:
        """Start the agent; what becomes of it is told later. Raises OSError when rsh cannot be executed."""
        self._share = share
        command = agent_command(self._host, self._rsh)
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, start_new_session=True
            )
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror} (it starts the ranks on {self._host}: see --rsh)", command[0]) from None
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin and stdout and stderr
        fds = [os.dup(stdout.fileno()), os.dup(stdin.fileno()), os.dup(stderr.fileno())]
        for file in (stdin, stdout, stderr):
            file.close()
        self._channel = Channel(fds[0], fds[1], self._selector, self._receive, self._gone, self._greet)
        self._errors = Pipe(fds[2], self._selector, self._complain, lambda: None)
        self.deadline = time.monotonic() + START_LIMIT

    def send(self, rank: int, data: bytes) -> None:
        self._tell(Kind.PMI, rank, data)

    def hang_up(self, rank: int) -> None:
        self._tell(Kind.HANG_UP, rank)

    def signal(self, number: int) -> None:
        self._tell(Kind.SIGNAL, 0, bytes([number]))
        if not self._greeted and number in _FATAL:
            self._end_agent()

    def finish(self) -> None:
        self._finishing = True
        self._stop_stdin()
        self.deadline = time.monotonic() + FINISH_LIMIT
        self._tell(Kind.FINISH)

    def expire(self) -> None:
        self.deadline = None
        if not self._finishing and not self._greeted:
            self._said = b"no answer in %d s" % START_LIMIT
        self._end_agent()
        self._gone()

    def close(self) -> None:
        self.finished = True
        self.deadline = None
        self._stop_stdin()
        if self._channel is not None:
            self._channel.close()  # the agent reads end-of-file, kills what is left, and ends
            self._errors.close()
        if self._process is not None:
            try:
                self._process.wait(FINISH_LIMIT)
            except subprocess.TimeoutExpired:
                self._end_agent()
                self._process.wait()
            self._process = None
        for stream in list(self._streams.values()):
            stream.close()
        self._streams.clear()

    def _tell(self, kind: Kind, rank: int = 0, data: bytes = b"") -> None:
        if self._channel is not None and self._greeted:
            self._channel.send(kind, rank, data)

    def _ask_for_output(self, which: int, wish: Kind) -> None:
        if self._wish[which] not in (wish, Kind.CLOSE):
            self._wish[which] = wish
            self._tell(wish, which)

    def _end_agent(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    # ---- events ----

    def _greet(self) -> None:
        assert self._channel is not None and self._share is not None
        self._greeted = True
        self.deadline = None
        self._said = b""
        share = self._share
        for rank in share.ranks:
            for which in (1, 2):
                stream = self._output(rank, which)
                stream.source = _RemoteSource(self._ask_for_output, which)
                self._streams[rank, which] = stream
        leave = (*NOT_INHERITED, *_STAYS)
        environ = {k: v for k, v in self._environ.items() if k not in leave and not k.startswith(_STAYS_PREFIXES)}
        order = {
            "arguments": list(share.arguments), "size": share.size, "first": share.first, "count": share.count, "key": share.key.hex(),
            "folder": os.getcwd(), "environ": environ,
        }  # fmt: skip
        self._channel.send(Kind.START, 0, json.dumps(order).encode())
        for stream in self._streams.values():
            if stream.unwanted:
                stream.close()
        if share.first == 0:
            self._ask_stdin()

    def _receive(self, kind: Kind, rank: int, data: bytes) -> None:
        assert self._share is not None
        if self._finishing:
            self.deadline = time.monotonic() + FINISH_LIMIT
        if kind is Kind.ENDED and len(data) != 2 or kind is Kind.FAILED and not data:
            self._end_agent()  # it is not what we started
            raise ChannelError(f"{kind.name} with {len(data)} bytes")
        if kind in (Kind.OUT, Kind.ERR):
            stream = self._streams.get((rank, _OUTPUT[kind]))
            if stream is not None:
                stream.take(data)
        elif kind in (Kind.OUT_END, Kind.ERR_END):
            stream = self._streams.pop((rank, _OUTPUT[kind]), None)
            if stream is not None:
                stream.end()
        elif kind is Kind.STDIN_TAKEN:
            self._ask_stdin()
        elif kind is Kind.FAILED:
            self._end_streams()
            self._events.lost(self._share.ranks, data[0], f"cannot start {data[1:].decode(errors='replace')}{self.suffix}")
        elif rank not in self._share.ranks:
            self._end_agent()  # it is not what we started
        elif kind is Kind.PMI:
            if not self._events.heard(rank, data):
                self.hang_up(rank)
        elif kind is Kind.ENDED:
            self._events.ended(rank, bool(data[0]), data[1])

    def _end_streams(self) -> None:
        for stream in self._streams.values():
            stream.end()
        self._streams.clear()

    def _complain(self, data: bytes) -> None:
        """Take what ssh or the agent writes to stderr: the reason, if the start fails, else noise; later it is passed on."""
        if self._greeted:
            self._note(data)
        else:
            self._said = (self._said + data)[-4096:]

    def _gone(self) -> None:
        """The channel has ended, in order or not."""
        assert self._share is not None and self._process is not None
        if self.finished:
            return
        self.finished = True
        self.deadline = None
        self._stop_stdin()
        self._errors.take_rest()
        self._end_streams()
        if not self._finishing:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            code = self._process.returncode
            ended = "" if code is None else f" ended with {f'exit code {code}' if code >= 0 else f'signal {-code}'}"
            last = self._said.decode(errors="replace").strip().splitlines()
            what = "connection lost to the ranks" if self._greeted else "cannot start ranks"
            why = f"{self._rsh[0] if self._rsh else 'agent'}{ended}" + (f": {last[-1].strip()}" if last else "")
            self._events.lost(self._share.ranks, 1, f"{what}{self.suffix}: {why}")

    # ---- rank 0's standard input: one piece at a time, the next when rank 0 has taken it ----

    def _ask_stdin(self) -> None:
        if self._reads_stdin:
            return
        try:
            self._selector.register(0, selectors.EVENT_READ, self._read_stdin)
            self._reads_stdin = True
        except PermissionError:  # a regular file or /dev/null: always ready
            self._read_stdin(0)

    def _read_stdin(self, _events: int) -> None:
        try:
            data = os.read(0, _STDIN_PIECE)
        except BlockingIOError:
            return
        except OSError:  # a terminal that is not ours now
            data = b""
        self._stop_stdin()
        self._tell(Kind.STDIN, 0, data)

    def _stop_stdin(self) -> None:
        if self._reads_stdin:
            self._selector.unregister(0)
            self._reads_stdin = False
