"""Say which ranks talk over what: mpiexec -n N python -m pympx report; PYMPX_REPORT=1 says it at the end of any program.

`install` is called by runtime.start when PYMPX_REPORT is set on any rank. At Finalize every rank sends rank 0 what it knows, as JSON over a
context of its own, and rank 0 prints it to stdout: it was asked for, and stderr stays empty when all is well. Only rank 0 waits, and
`PATIENCE_S` at most: a rank may have failed, or may itself wait for rank 0, and learns only by the farewell that it left.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .. import config, runtime
from ..bindings import runtime as engine
from ..plugins import manager

if TYPE_CHECKING:
    from ..api.comm import Comm

#: seconds that rank 0 waits at Finalize for what the others know
PATIENCE_S = 5.0
#: up to this many ranks the bytes between each two are printed
_MATRIX_RANKS = 8
#: what is summed up of a cache of registrations
_CACHE = ("hits", "misses", "uncacheable", "evictions", "invalidated", "bytes", "regions")
_started = 0.0


def install() -> None:
    """Let Finalize print the report; the engine runs."""
    global _started
    _started = time.monotonic()
    runtime.before_farewell(_at_finalize)


def _at_finalize() -> None:
    """Hand this rank's record to rank 0, which prints all."""
    from ..api.comm import REPORT_CONTEXT, Intracomm
    from ..api.errors import Exception as MpiError

    boot = runtime.bootstrap()
    seconds = time.monotonic() - _started
    record = _record(boot.size)  # before the records themselves are counted
    comm = Intracomm()
    comm._define(REPORT_CONTEXT, range(boot.size), boot.rank)
    if boot.rank != 0:
        try:
            comm.Isend(json.dumps(record).encode(), 0)  # Finalize goes on with it
        except MpiError:
            pass  # rank 0 has left or failed: nobody wants it
        return
    records, silent = _collect(comm, record)
    try:
        sys.stdout.write(render(boot.name, records, silent, seconds) + "\n")
        sys.stdout.flush()
    except (OSError, ValueError):
        pass  # stdout is closed


def _record(size: int) -> dict[str, Any]:
    """Return what this rank knows: by peer, the transport's number (-1: none) and the bytes and messages sent."""
    sent = [engine.peer_counters(peer) for peer in range(size)]
    return {
        "host": socket.gethostname(),
        "cores": len(os.sched_getaffinity(0)),
        "transports": list(runtime.transports),
        "over": [engine.peer_transport(peer) for peer in range(size)],
        "bytes": [counters["sent_bytes"] for counters in sent],
        "links": [engine.link_counters(peer) for peer in range(size)],
        "protocols": [engine.describe_protocols(number).split(", ") for number in range(len(runtime.transports))],
        "carried": [engine.transport_counters(number) for number in range(len(runtime.transports))],
        "caches": [engine.cache_counters(number) for number in range(len(runtime.transports))],
        "unused": dict(runtime.unused),
        "unreached": [[name, reason, peers] for (name, reason), peers in runtime.unreached.items()],
    }


def _collect(comm: Comm, own: dict[str, Any]) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """Return the records by rank, and why others are missing."""
    from ..api.errors import Exception as MpiError
    from ..bindings.status import Status

    late = f"was not through within {PATIENCE_S:g} s of rank 0"
    records, silent = {0: own}, {}
    deadline = time.monotonic() + PATIENCE_S
    status = Status()
    for rank in range(1, comm.size):
        try:
            left = deadline - time.monotonic()
            if left > 0:
                engine.set_timeout(left)
                comm.Probe(rank, 0, status)
            elif not comm.Iprobe(rank, 0, status):
                silent[rank] = late
                continue
            text = bytearray(status.count)
            comm.Recv(text, rank, 0)
            records[rank] = json.loads(text)
        except MpiError as error:
            silent[rank] = late if time.monotonic() >= deadline else f"sent no record: {error}"
    engine.set_timeout(config.get("PYMPX_TIMEOUT") or 0)
    return records, silent


def ranges(numbers: Iterable[int]) -> str:
    """Return sorted numbers for people: 0-3,7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def classes(size: int, between: Callable[[int, int], str]) -> list[list[int]]:
    """Return the ranks in classes of twins: what is between two ranks depends on their classes alone. `between` is symmetric."""
    found: list[list[int]] = []
    for rank in range(size):
        for twins in found:
            other = twins[0]
            if all(between(rank, third) == between(other, third) for third in range(size) if third not in (rank, other)):
                twins.append(rank)
                break
        else:
            found.append([rank])
    return found


def _pairs(size: int, records: dict[int, dict[str, Any]]) -> list[str]:
    def one_way(rank: int, peer: int) -> str | None:
        record = records.get(rank)
        if record is None:
            return None
        number = record["over"][peer]
        return record["transports"][number] if number >= 0 else "nothing"

    def between(a: int, b: int) -> str:
        there, back = one_way(min(a, b), max(a, b)), one_way(max(a, b), min(a, b))
        if there is None or back is None or there == back:
            return there or back or "not known"
        return f"{there} one way, {back} back"

    groups = classes(size, between)
    lines = []
    for index, group in enumerate(groups):
        if len(group) > 1:
            lines.append(f"{ranges(group)} <-> {ranges(group)}: {between(group[0], group[1])}")
        lines += [f"{ranges(group)} <-> {ranges(other)}: {between(group[0], other[0])}" for other in groups[index + 1 :]]
    return lines or ["no other rank"]


def _grouped(texts: Iterable[tuple[int, str]], size: int) -> list[str]:
    """Return each text once, with the ranks that say it if not all do."""
    said: dict[str, list[int]] = {}
    for rank, text in texts:
        said.setdefault(text, []).append(rank)
    return [text if len(who) == size else f"{text} (rank {ranges(who)})" for text, who in said.items()]


def _protocols(records: dict[int, dict[str, Any]]) -> list[str]:
    """Return size ranges and protocols of each transport between ranks; a transport with other limits on other ranks comes twice."""
    said: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for rank, record in records.items():
        for number, name in enumerate(record["transports"]):
            if number in record["over"][:rank] + record["over"][rank + 1 :]:
                said.setdefault((name, tuple(record["protocols"][number])), []).append(rank)
    lines = []
    for (name, table), who in said.items():
        several = sum(other == name for other, _ in said) > 1
        head = f"{name} (rank {ranges(who)})" if several else name
        lines += [f"{head if not index else '':<5} {text}" for index, text in enumerate(table)]
    return lines


def _carried(records: dict[int, dict[str, Any]]) -> list[str]:
    total: dict[str, list[int]] = {}
    for record in records.values():
        for name, counters in zip(record["transports"], record["carried"], strict=True):
            sums = total.setdefault(name, [0, 0, 0, 0])
            for index, key in enumerate(("sent_bytes", "messages", "medium_sent_bytes", "medium_received_bytes")):
                sums[index] += counters[key]
    return [
        f"{name:<5} {payload} bytes in {messages} messages; {max(mediums)} bytes on the medium"  # a card is read from without a word
        for name, (payload, messages, *mediums) in total.items()
        if name != "self" or messages
    ]


def _healed(size: int, records: dict[int, dict[str, Any]]) -> list[str]:
    """Return what links between two ranks went through, where they were cut; each side notices cuts by itself and replays its own."""
    lines = []
    for rank in range(size):
        for peer in range(rank + 1, size):
            sides = [records[here]["links"][there] for here, there in ((rank, peer), (peer, rank)) if here in records]
            cuts = max((side["cuts"] for side in sides), default=0)
            if cuts:
                reconnects, stall = max(side["reconnects"] for side in sides), max(side["longest_stall_s"] for side in sides)
                lines.append(
                    f"{rank} <-> {peer}: {cuts} cuts, {reconnects} reconnects, longest stall {stall * 1e3:.3g} ms, "
                    f"{sum(side['replayed'] for side in sides)} messages sent again"
                )
    return lines


def _caches(records: dict[int, dict[str, Any]]) -> list[str]:
    """Return what became of registrations over each transport where keeping them pays; why a rank keeps none."""
    total: dict[str, dict[str, int]] = {}
    reasons: list[tuple[int, str]] = []
    for rank, record in records.items():
        for name, cache in zip(record["transports"], record["caches"], strict=True):
            if cache["pays"]:
                sums = total.setdefault(name, dict.fromkeys(_CACHE, 0))
                for key in _CACHE:
                    sums[key] += cache[key]
                reasons += [(rank, f"{name}: nothing is kept: {cache['reason']}")] if cache["reason"] else []
    lines = [
        f"{name:<5} {c['hits']} hits, {c['misses']} misses, {c['uncacheable']} for one use, {c['evictions']} evictions, "
        f"{c['invalidated']} invalidated; {c['bytes']} bytes in {c['regions']} regions now"
        for name, c in total.items()
    ]
    return lines + _grouped(reasons, len(records))


def _why_not(records: dict[int, dict[str, Any]]) -> list[str]:
    wanted: str = config.get("PYMPX_TRANSPORT")
    texts: list[tuple[int, str]] = []
    for rank, record in records.items():
        texts += [(rank, f"{name}: {reason}") for name, reason in record["unused"].items()]
        texts += [(rank, f"{name} to rank {ranges(peers)}: {reason}") for name, reason, peers in record["unreached"]]
    lines = _grouped(texts, len(records))
    if wanted != "auto":
        lines += [f"{name}: PYMPX_TRANSPORT={wanted} asks for {wanted} alone" for name in manager.AUTO if name != wanted]
    return lines


def _matrix(size: int, records: dict[int, dict[str, Any]]) -> list[str]:
    rows = [[str(value) for value in records[rank]["bytes"]] if rank in records else ["?"] * size for rank in range(size)]
    width = max(len("to 0"), *(len(text) for row in rows for text in row)) + 2
    head = "from" + "".join(f"{'to ' + str(rank):>{width}}" for rank in range(size))
    return [head, *(f"{rank:>4}" + "".join(f"{text:>{width}}" for text in row) for rank, row in enumerate(rows))]


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"  {title}", *(f"    {line}".rstrip() for line in lines)] if lines else []


def render(launcher: str, records: dict[int, dict[str, Any]], silent: dict[int, str], seconds: float) -> str:
    """Return the report: `records` by rank, why other ranks have none, the seconds since the runtime's start."""
    size = len(records) + len(silent)
    hosts: dict[tuple[str, int], list[int]] = {}
    for rank, record in records.items():
        hosts.setdefault((record["host"], record["cores"]), []).append(rank)
    lines = [f"pympx report: {size} rank{'s' * (size > 1)}, joined by {launcher}, {seconds:.3g} s"]
    lines += _section("hosts", [f"{host}: rank {ranges(who)}, on {cores} cores" for (host, cores), who in hosts.items()])
    lines += _section("who talks over what", _pairs(size, records))
    lines += _section("protocol by message size, bytes", _protocols(records))
    lines += _section("carried, all ranks together", _carried(records))
    if 1 < size <= _MATRIX_RANKS:
        lines += _section("payload between ranks, bytes", _matrix(size, records))
    lines += _section("links that were cut and healed", _healed(size, records))
    lines += _section("registrations of memory, all ranks together", _caches(records))
    lines += _section("why nothing else", _why_not(records))
    lines += _section("no record from", [f"rank {rank}: it {reason}" for rank, reason in silent.items()])
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Exchange one message between each two ranks, so that the report shows them all; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pympx report", allow_abbrev=False,
        description="Say which ranks talk over what. Start it as your program: mpiexec -n N python -m pympx report. Each rank sends one "
        "message to each other rank; then rank 0 prints what PYMPX_REPORT=1 prints at the end of any program.",
    )  # fmt: skip
    parser.parse_args(argv)
    os.environ["PYMPX_REPORT"] = "1"
    from .. import MPI

    MPI.COMM_WORLD.alltoall(range(MPI.COMM_WORLD.Get_size()))
    MPI.Finalize()
    return 0
