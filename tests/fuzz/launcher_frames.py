"""Frames between the launcher and an agent, in both directions: what is taken is what was sent; nonsense ends the channel, nothing else."""

from __future__ import annotations

import json
import os
import selectors
import struct
import sys
from types import SimpleNamespace
from typing import Any

from fuzzing import Input, instrumented, run

with instrumented("pympx.launcher"):
    from pympx.launcher import agent, channel, remote
    from pympx.launcher.channel import Kind
    from pympx.launcher.output import Sink, Stream
    from pympx.launcher.place import Share

_KINDS = [int(kind) for kind in Kind]
_HEADER = struct.Struct("<IBi")


class _Ranks:
    """Instead of LocalRanks: an agent's ranks are not really started here, whatever the launcher orders."""

    def __init__(self, *_arguments: Any) -> None: ...
    def start(self, share: Share) -> None:
        assert len(share.key) == 32 or share.key is not None

    def send(self, rank: int, data: bytes) -> None: ...
    def hang_up(self, rank: int) -> None: ...
    def signal(self, number: int) -> None:
        assert 0 <= number < 256

    def finish(self) -> None: ...
    def close(self) -> None: ...


vars(agent).update(LocalRanks=_Ranks)
vars(os).update(chdir=lambda _folder: None)


class _Events:
    """The job, as far as a place sees it."""

    def __init__(self) -> None:
        self.gone = False

    def heard(self, rank: int, data: bytes) -> bool:
        assert rank in range(2, 5)
        return len(data) % 5 != 0

    def ended(self, rank: int, exited: bool, status: int) -> None:
        assert rank in range(2, 5) and 0 <= status < 256

    def lost(self, ranks: range, code: int, reason: str) -> None:
        assert ranks == range(2, 5) and 0 <= code < 256
        self.gone = True


class _Remote(remote.RemoteRanks):
    """A launcher's end whose agent is not a process."""

    def connect(self, read_fd: int, write_fd: int) -> None:
        self._share = Share(["prog"], 8, 2, 3, bytes(32))
        self._errors = SimpleNamespace(close=lambda: None)  # type: ignore[assignment]
        self._channel = channel.Channel(read_fd, write_fd, self._selector, self._receive, self._gone, self._greet)

    def _gone(self) -> None:
        self.finished = True
        self._end_streams()

    def _end_agent(self) -> None:
        pass

    def _ask_stdin(self) -> None:
        pass


def _frames(data: Input, greeting: bytes) -> bytes:
    said = greeting
    while data:
        kind = data.number() % 8
        if kind == 0:
            said += data.some(60)
            continue
        number = _KINDS[data.number() % len(_KINDS)]
        body = data.some(40)
        if number == Kind.START and data.number() % 4:
            order = {"arguments": ["x"], "size": 4, "first": 1, "count": 2, "key": "00" * 32, "folder": "/", "environ": {}}
            body = data.spoil(json.dumps(order).encode())
        frame = _HEADER.pack(len(body), number, data.number() % 6) + body
        said += data.spoil(frame) if kind == 1 else frame
    return said


def _drive(selector: selectors.BaseSelector) -> None:
    for _ in range(64):
        ready = selector.select(0)
        if not ready:
            return
        for key, events in ready:
            if selector.get_map().get(key.fd) is key:
                key.data(events)


def _plain(data: Input) -> None:
    """Frames against a second, simple parser."""
    said = _frames(data, b"noise\n" + channel.GREETING)
    selector = selectors.DefaultSelector()
    read_fd, far_write = os.pipe()
    far_read, write_fd = os.pipe()
    taken: list[tuple[int, int, bytes]] = []
    ended: list[bool] = []
    line = channel.Channel(
        read_fd, write_fd, selector, lambda kind, rank, body: taken.append((kind, rank, body)), lambda: ended.append(True), lambda: None
    )
    os.write(far_write, said[:60000])
    os.close(far_write)
    _drive(selector)
    line.close()
    os.close(far_read)
    assert ended == [True]
    expected = []
    rest = said[said.index(channel.GREETING) + len(channel.GREETING) :] if channel.GREETING in said else b""
    while len(rest) >= _HEADER.size:
        length, number, rank = _HEADER.unpack_from(rest)
        if length > channel.LONGEST or number not in _KINDS or len(rest) < _HEADER.size + length:
            break
        expected.append((number, rank, rest[_HEADER.size : _HEADER.size + length]))
        rest = rest[_HEADER.size + length :]
    assert taken == expected[: len(taken)], "frames that nobody sent"


def one_input(data: Input) -> None:
    mode = data.number() % 3
    if mode == 0:
        _plain(data)
        return
    selector = selectors.DefaultSelector()
    read_fd, far_write = os.pipe()
    far_read, write_fd = os.pipe()
    null = os.open(os.devnull, os.O_WRONLY)
    end: Any
    if mode == 1:
        end = agent.Agent(read_fd, write_fd)
        selector = end._selector
        said = _frames(data, b"")
    else:
        sink = Sink(null, selector)
        place = _Remote("there", ["ssh"], selector, _Events(), lambda _rank, _which: Stream(sink, b""), {"A": "b"}, lambda _note: None)
        place.connect(read_fd, write_fd)
        end = place
        said = _frames(data, channel.GREETING)
    os.write(far_write, said[:60000])
    os.close(far_write)
    _drive(selector)
    if mode == 1:
        assert end._over
        end._close_stdin()
    else:
        assert end.finished
        end.close()
    if end._channel is not None:
        end._channel.close()
    os.close(far_read)
    os.close(null)
    selector.close()


sys.stdin.close()
run(one_input)
