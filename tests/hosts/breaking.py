"""Breaks the network between two namespace hosts in which ranks run: connections reset, packets swallowed, interfaces set down.

All of it from outside of the ranks, as a bad network or its administrator would; what is done, and when (time.monotonic, which the hosts
of one machine share), is remembered for the comparison with what the ranks noticed.
"""

from __future__ import annotations

import os
import random
import re
import select
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from pympx.testing.hosts import Hosts

#: seconds for which packets are swallowed: longer than it may take to notice
DARK = (3.2, 4.0)
#: seconds for which an interface is down
DOWN = (0.01, 1.0)
_LIMIT = 20.0


class Console:
    """A shell in a host that runs one command after the other: faster than entering the host for each. A context manager."""

    def __init__(self, hosts: Hosts, name: str) -> None:
        self._name = name
        self._shell = subprocess.Popen(hosts.inside(name, ["sh"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._heard = b""

    def __enter__(self) -> Console:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._shell.kill()
        self._shell.communicate()

    def run(self, command: str) -> list[str]:
        """Return the lines that a command prints. Raises RuntimeError when it fails or takes longer than 20 s."""
        assert self._shell.stdin
        assert self._shell.stdout
        self._shell.stdin.write(f"{command} </dev/null; echo =$?\n".encode())
        self._shell.stdin.flush()
        end = time.monotonic() + _LIMIT
        while not (found := re.search(rb"^=(\d+)\n", self._heard, re.MULTILINE)):
            if not select.select([self._shell.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise RuntimeError(f"host {self._name}: {command}: not over after {_LIMIT:g} s")
            data = os.read(self._shell.stdout.fileno(), 65536)
            if not data:
                raise RuntimeError(f"host {self._name}: the shell ended")
            self._heard += data
        said = self._heard[: found.start()].decode(errors="replace").splitlines()
        self._heard = self._heard[found.end() :]
        if int(found[1]):
            raise RuntimeError(f"host {self._name}: {command}: {' '.join(said)}")
        return said


@dataclass
class Hole:
    """A time in which packets vanished. `pairs`: whose connections went dark, as (rank on the first host, rank on the second)."""

    begin: float
    end: float
    pairs: list[tuple[int, int]]
    ways: str


@dataclass
class Plan:
    """How many cuts of which kind are still to be made."""

    holes: int
    downs: int
    resets: int
    made: dict[str, int] = field(init=False, default_factory=lambda: {"holes": 0, "downs": 0, "resets": 0})
    connections_reset: int = field(init=False, default=0)

    @property
    def cuts(self) -> int:
        return sum(self.made.values())


class Breaker:
    """Breaks what is between the hosts `first` and `second`, where `ranks` tells the rank of each process. A context manager."""

    def __init__(self, hosts: Hosts, first: str, second: str, ranks: dict[int, int], seed: int) -> None:
        self._names = first, second
        self._addresses = hosts.address(first), hosts.address(second)
        self._consoles = Console(hosts, first), Console(hosts, second)
        self._ranks = ranks
        self._random = random.Random(seed)
        self.holes: list[Hole] = []

    def __enter__(self) -> Breaker:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for console in self._consoles:
            console.__exit__(kind, value, trace)

    def sleep(self, low: float, high: float) -> None:
        """Let the ranks work for a random time."""
        time.sleep(self._random.uniform(low, high))

    # ---- resets

    def reset(self, ports: tuple[int, int] | None = None) -> int:
        """Let the kernel of one host reset its connections to the other one, or that between two ports; return how many there were."""
        side = self._random.randrange(2) if ports is None else 0
        words = "ss -K -t -n -H state established state syn-sent state syn-recv"
        words += f" src {self._addresses[side]} dst {self._addresses[1 - side]}"
        if ports:
            words += f" sport = :{ports[0]} dport = :{ports[1]}"
        return sum(self._addresses[1 - side] in line for line in self._consoles[side].run(words))

    def connections(self) -> list[tuple[int, int]]:
        """Return (port on the first host, port on the second) of what is connected between them."""
        words = f"ss -t -n -H state established src {self._addresses[0]} dst {self._addresses[1]}"
        fields = [line.split() for line in self._consoles[0].run(words)]
        return [(int(f[2].rpartition(":")[2]), int(f[3].rpartition(":")[2])) for f in fields]

    def reset_some(self, plan: Plan, allowed: Callable[[tuple[int, int]], bool] | None = None) -> None:
        """Reset one connection, or all at once, or several times within milliseconds, so that handshakes and resumes are hit too."""
        how = self._random.choice(("one", "one", "all", "burst"))
        for _ in range(self._random.randint(2, 4) if how == "burst" else 1):
            if plan.made["resets"] >= plan.resets:
                return
            if how == "all" and allowed is None:
                destroyed = self.reset()
            else:
                there = [ports for ports in self.connections() if allowed is None or allowed(ports)]
                destroyed = self.reset(self._random.choice(there)) if there else 0
            plan.made["resets"] += destroyed > 0
            plan.connections_reset += destroyed
            if how == "burst":
                self.sleep(0, 0.01)

    # ---- interfaces

    def down(self, low: float = DOWN[0], high: float = DOWN[1]) -> None:
        """Set the interface of one host down for a random time."""
        console = self._random.choice(self._consoles)
        console.run("ip link set dev eth0 down")
        self.sleep(low, high)
        console.run("ip link set dev eth0 up")

    # ---- holes

    def _swallow(self, side: int, match: str) -> None:
        rules = "add table ip dark; add chain ip dark input { type filter hook input priority 0; }; "
        self._consoles[side].run(f"nft '{rules}add rule ip dark input ip saddr {self._addresses[1 - side]} {match} counter drop'")

    def darken(self, ports: tuple[int, int] | None = None, ways: str = "both") -> None:
        """Swallow what arrives from the other host, on both or on one of them ("first", "second"); no kernel is told."""
        for side, name in enumerate(("first", "second")):
            if ways in ("both", name):
                self._swallow(side, f"tcp dport {ports[side]} tcp sport {ports[1 - side]}" if ports else "")

    def lighten(self) -> None:
        """Let all packets through again."""
        for console in self._consoles:
            console.run("nft delete table ip dark 2>/dev/null || true")

    def _owners(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Return the ranks at the ends of each connection."""
        ends: list[dict[tuple[int, int], int]] = []
        for side in range(2):
            found = {}
            words = f"ss -t -n -p -H state established src {self._addresses[side]} dst {self._addresses[1 - side]}"
            for line in self._consoles[side].run(words):
                fields, pid = line.split(), re.search(r"pid=(\d+)", line)
                if pid and int(pid[1]) in self._ranks:
                    ports = int(fields[2].rpartition(":")[2]), int(fields[3].rpartition(":")[2])
                    found[ports if side == 0 else ports[::-1]] = self._ranks[int(pid[1])]
            ends.append(found)
        return {ports: (rank, ends[1][ports]) for ports, rank in ends[0].items() if ports in ends[1]}

    def hole(self, plan: Plan, pairs: list[tuple[int, int]]) -> None:
        """Everything between the hosts, or one connection, goes dark for longer than it takes to notice. Others are reset meanwhile."""
        ways = self._random.choice(("both", "both", "both", "first", "second"))
        owners = self._owners()
        one = self._random.choice(sorted(owners)) if owners and self._random.random() < 0.5 else None
        self.darken(one, ways)
        begin = time.monotonic()
        end = begin + self._random.uniform(*DARK)
        while one and time.monotonic() < end - 0.5 and plan.made["resets"] < plan.resets:
            self.sleep(0.05, 0.4)
            now = self._owners()
            self.reset_some(plan, lambda ports, now=now: ports in now and now[ports] != owners[one])  # type: ignore[misc]
        time.sleep(max(0.0, end - time.monotonic()))
        self.holes.append(Hole(begin, time.monotonic(), [owners[one]] if one else pairs, ways))
        self.lighten()
        plan.made["holes"] += 1

    # ---- all of it

    def carry_out(self, plan: Plan, pairs: list[tuple[int, int]], pause: float, tell: Callable[[], None]) -> None:
        """Make all cuts of `plan` in random order, with up to `pause` seconds in between. `pairs`: all that talk across."""
        steps = ["hole"] * plan.holes + ["down"] * plan.downs
        self._random.shuffle(steps)
        resets_per_step = plan.resets / len(steps)
        for number, step in enumerate(steps, 1):
            while plan.made["resets"] < min(plan.resets, number * resets_per_step):
                self.sleep(0, pause)
                self.reset_some(plan)
                tell()
            self.sleep(0, pause)
            if step == "hole":
                self.sleep(0.05, 0.1)  # most links are up again
                self.hole(plan, pairs)
            else:
                self.down()
                plan.made["downs"] += 1
            tell()
