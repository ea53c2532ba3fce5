"""A place is where some ranks of a job run: this host (local.py), or another by an agent (remote.py). What a job asks of it, and hears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Share:
    """What one place has to start: ranks `first` to `first + count - 1` of `size`, each running `arguments`."""

    arguments: Sequence[str]
    size: int
    first: int
    count: int
    #: the job's secret
    key: bytes

    @property
    def ranks(self) -> range:
        return range(self.first, self.first + self.count)


class Events(Protocol):
    """What a place tells the job, from within the job's event loop."""

    def heard(self, rank: int, data: bytes) -> bool:
        """`rank` sent PMI; return False when it should be hung up on."""

    def ended(self, rank: int, exited: bool, status: int) -> None:
        """`rank` has ended, by itself with exit code `status`, or by signal `status`."""

    def lost(self, ranks: range, code: int, reason: str) -> None:
        """A place has failed, and `ranks` with it, as far as they had not ended. `code` is the job's exit code."""


class Place(Protocol):
    """Ranks that run somewhere. No call blocks for longer than it takes to start processes."""

    #: what messages add to a rank of this place
    suffix: str
    #: all output was given to its streams; nothing more comes
    finished: bool
    #: when `expire` is to be called (time.monotonic()), if ever
    deadline: float | None

    def start(self, share: Share) -> None:
        """Start the ranks. Raises OSError when that is known to be impossible at once."""

    def send(self, rank: int, data: bytes) -> None:
        """Pass PMI on to `rank`."""

    def signal(self, number: int) -> None:
        """Send a signal to the ranks that are left, and their children."""

    def finish(self) -> None:
        """The job is over: kill what is left, give the rest of the output to its streams."""

    def expire(self) -> None:
        """`deadline` has passed."""

    def close(self) -> None:
        """Kill and reap what is left, give everything back. Idempotent."""


def parse_hosts(text: str) -> list[tuple[str, int | None]]:
    """Return the hosts of ``a,b`` or ``a:2,b:1`` with their numbers of ranks. Raises ValueError for anything else."""
    hosts: list[tuple[str, int | None]] = []
    for item in text.split(","):
        name, colon, count = item.strip().partition(":")
        if not name or name.startswith("-") or any(character.isspace() for character in name):
            raise ValueError(f"{item!r} is no host's name")
        if colon and not (count.isascii() and count.isdecimal() and 1 <= int(count) <= 4096):
            raise ValueError(f"{item!r}: {count!r} is no number of ranks from 1 to 4096")
        hosts.append((name, int(count) if colon else None))
    if len({count is None for _, count in hosts}) > 1:
        raise ValueError("give numbers of ranks for all hosts, or for none")
    return hosts


def distribute(hosts: Sequence[tuple[str, int | None]], size: int) -> list[tuple[str, int]]:
    """Return (host, number of ranks) for `size` ranks in blocks; hosts without ranks are left out.

    Without numbers the blocks differ by at most one. Raises ValueError when the numbers do not suffice.
    """
    if all(count is None for _, count in hosts):
        each, more = divmod(size, len(hosts))
        shares = [(name, each + (index < more)) for index, (name, _) in enumerate(hosts)]
    else:
        shares, left = [], size
        for name, count in hosts:
            shares.append((name, min(count or 0, left)))
            left -= shares[-1][1]
        if left:
            raise ValueError(f"the hosts take {size - left} ranks, -n asks for {size}")
    return [(name, count) for name, count in shares if count]


def process_mapping(counts: Sequence[int]) -> str:
    """Return PMI-1's description of `counts[i]` ranks on node i, in blocks."""
    if len(set(counts)) == 1:
        return f"(vector,(0,{len(counts)},{counts[0]}))"
    return "(vector," + ",".join(f"({node},1,{count})" for node, count in enumerate(counts)) + ")"
