"""Where ranks go on several hosts, and the frames between launcher and agent."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pympx.launcher.channel import GREETING, LONGEST, Channel, Kind
from pympx.launcher.place import distribute, parse_hosts, process_mapping


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", [("a", None)]),
        ("a,b.example.org", [("a", None), ("b.example.org", None)]),
        ("a:2, b:1", [("a", 2), ("b", 1)]),
        ("user@a,b", [("user@a", None), ("b", None)]),
    ],
)
def test_hosts(text: str, expected: list[tuple[str, int | None]]) -> None:
    assert parse_hosts(text) == expected


@pytest.mark.parametrize("text", ["", ",", "a,", "a:0", "a:x", "a:-1", "a:", "a:1,b", "-oProxyCommand=x", "a b", "a:5000", ":2", "a:٣"])
def test_what_names_no_hosts(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        parse_hosts(text)


@given(st.lists(st.none(), min_size=1, max_size=9) | st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 40))
def test_every_rank_has_its_place(counts: list[int | None], size: int) -> None:
    hosts = [(f"h{n}", count) for n, count in enumerate(counts)]
    room = sum(count for count in counts if count is not None)
    if counts[0] is not None and room < size:
        with pytest.raises(ValueError, match=f"take {room} ranks"):
            distribute(hosts, size)
        return
    shares = distribute(hosts, size)
    assert sum(count for _, count in shares) == size
    assert [name for name, _ in shares] == [name for name, _ in hosts][: len(shares)]
    assert all(count >= 1 for _, count in shares)
    if counts[0] is None:
        assert max(c for _, c in shares) - min(c for _, c in shares) <= 1
    else:
        assert all(count <= (dict(hosts)[name] or 0) for name, count in shares)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([3], "(vector,(0,1,3))"), ([2, 2, 2], "(vector,(0,3,2))"), ([2, 1], "(vector,(0,1,2),(1,1,1))")],
)
def test_process_mapping(counts: list[int], expected: str) -> None:
    assert process_mapping(counts) == expected


class End:
    """One end of a channel over pipes, with what it heard."""

    def __init__(self, read_fd: int, write_fd: int, selector: selectors.BaseSelector, *, waits_for_greeting: bool = False) -> None:
        self.frames: list[tuple[Kind, int, bytes]] = []
        self.closed = 0
        self.greeted = 0
        self.channel = Channel(
            read_fd, write_fd, selector, lambda *frame: self.frames.append(frame), self._close, self._greet if waits_for_greeting else None
        )

    def _close(self) -> None:
        self.closed += 1

    def _greet(self) -> None:
        self.greeted += 1


def turn_until(selector: selectors.BaseSelector, condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        for key, events in selector.select(0.1):
            if selector.get_map().get(key.fd) is key:
                key.data(events)


def test_frames_of_every_size_arrive_in_order_after_noise() -> None:
    selector = selectors.DefaultSelector()
    (down_read, down_write), (up_read, up_write) = os.pipe(), os.pipe()
    launcher = End(up_read, down_write, selector, waits_for_greeting=True)
    agent = End(down_read, up_write, selector)
    os.write(up_write, b"Welcome to this host\npympx agent\nno newline")
    agent.channel.greet()
    turn_until(selector, lambda: launcher.greeted == 1)
    sizes = [0, 1, 8, 9, 4095, 4096, 70000, 3 << 20]
    for number, size in enumerate(sizes):
        agent.channel.send(Kind.OUT, number, bytes([number]) * size)
        launcher.channel.send(Kind.PMI, number, bytes([number]) * size)
    assert agent.channel.congested
    turn_until(selector, lambda: len(launcher.frames) == len(agent.frames) == len(sizes))
    assert launcher.frames == [(Kind.OUT, number, bytes([number]) * size) for number, size in enumerate(sizes)]
    assert agent.frames == [(Kind.PMI, number, bytes([number]) * size) for number, size in enumerate(sizes)]
    assert agent.channel.idle
    agent.channel.close()
    turn_until(selector, lambda: launcher.closed == 1)


@given(st.binary(max_size=200), st.booleans())
def test_nonsense_closes_the_channel_at_most_once(data: bytes, greeted: bool) -> None:
    selector = selectors.DefaultSelector()
    read_fd, feed = os.pipe()
    drain, write_fd = os.pipe()
    end = End(read_fd, write_fd, selector, waits_for_greeting=True)
    os.write(feed, (GREETING if greeted else b"") + data)
    os.close(feed)
    turn_until(selector, lambda: end.closed > 0)
    assert end.closed == 1
    assert all(len(body) <= len(data) for _, _, body in end.frames)
    os.close(drain)
    end.channel.close()


def test_a_length_is_believed_only_up_to_a_limit() -> None:
    selector = selectors.DefaultSelector()
    read_fd, feed = os.pipe()
    drain, write_fd = os.pipe()
    end = End(read_fd, write_fd, selector)
    os.write(feed, (LONGEST + 1).to_bytes(4, "little") + bytes([Kind.OUT]) + bytes(4))
    turn_until(selector, lambda: end.closed == 1)
    for fd in (feed, drain):
        os.close(fd)
