"""Start and end of the runtime: join the job, open transports, choose one per peer, say goodbye.

Rank and size are known without communication; everything else starts with the first use of a communicator.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from . import config
from .bindings import runtime as engine
from .bootstrap import join_or_exit
from .bootstrap.base import Bootstrap, BootstrapError
from .plugins import manager

_lock = threading.RLock()
_bootstrap: Bootstrap | None = None
#: names of the transports that were opened, by the engine's number
transports: list[str] = []
#: why a transport is not used, by name
unused: dict[str, str] = {}
#: ranks that an opened transport does not reach from here, by (transport, reason)
unreached: dict[tuple[str, str], list[int]] = {}
_finalized = False
_on_ready: list[Callable[[], None]] = []
_before_farewell: list[Callable[[], None]] = []


class TransportError(RuntimeError):
    """The named transport cannot serve. The message is one line."""


def bootstrap() -> Bootstrap:
    """Return this rank's tie to its launcher; joined at the first call, without communication."""
    global _bootstrap
    with _lock:
        if _bootstrap is None:
            _bootstrap = join_or_exit()
            atexit.register(_finalize_at_exit)
            _end_job_on_exception()
            os.register_at_fork(after_in_child=_forked)
        return _bootstrap


def when_ready(call: Callable[[], None]) -> None:
    """Call `call` once the engine runs."""
    _on_ready.append(call)


def before_farewell(call: Callable[[], None]) -> None:
    """Call `call` at Finalize while messages can still be sent; on every rank, so collectives are allowed."""
    _before_farewell.append(call)


def start() -> None:
    """Open transports and know all peers. Collective over the job; ends it, with one line that says why, when that fails."""
    with _lock:
        if engine.is_running():
            return
        boot = bootstrap()
        try:
            _start(boot)
        except (RuntimeError, LookupError, OSError, ValueError) as error:
            engine.end(f"the runtime could not start: {error}")
            if boot.size == 1:
                raise
            _give_up(boot, f"pympx: {error}")
        for call in _on_ready:
            call()


def _start(boot: Bootstrap) -> None:
    wanted: str = config.get("PYMPX_TRANSPORT")
    spin = config.get("PYMPX_SPIN")
    window = config.get("PYMPX_EAGER_WINDOW")
    timeout = config.get("PYMPX_TIMEOUT") or 0
    host = host_identity()
    said = boot.allgather(host + (b"R" if config.get("PYMPX_REPORT") else b"-"))
    crowded = [text[:-1] for text in said].count(host) > len(os.sched_getaffinity(0))
    spin = (2e-6 if crowded else 50e-6) if spin is None else spin
    engine.create(boot.rank, boot.size, boot.job_key(), window, spin, 2 if crowded else 400)
    engine.set_timeout(timeout)
    _connect(boot, wanted)
    if any(text.endswith(b"R") for text in said):
        from .tools import report

        when_ready(report.install)


def _connect(boot: Bootstrap, wanted: str) -> None:
    """Give every peer a transport: itself `self`; others the named one, or with ``auto`` the first that reaches them."""
    number = _open("self")
    engine.set_peer(boot.rank, number, engine.address(number))
    left = [rank for rank in range(boot.size) if rank != boot.rank]
    if boot.size == 1:
        return
    names = [name for name in manager.IN_TREE if name != "self"] if wanted == "auto" else [wanted]
    reasons: list[str] = []
    for name in names:
        try:
            number = _open(name)
            blob = engine.address(number)
        except (RuntimeError, LookupError, OSError, ValueError) as error:
            number, blob = -1, b""
            unused[name] = str(error)
        # One exchange each, so that a transport that nobody needs is never opened.
        for rank, address in enumerate(boot.allgather(blob)):
            if rank not in left:
                continue
            if number < 0:
                reason = unused[name]
            elif not address:
                reason = f"rank {rank} has no {name}"
            else:
                reason = engine.unreachable_reason(number, address)
            if not reason:
                engine.set_peer(rank, number, address)
                left.remove(rank)
                continue
            if number >= 0:
                unreached.setdefault((name, reason), []).append(rank)
            if reason not in reasons:
                reasons.append(reason)
        if not any(boot.allgather(struct.pack("<I", len(left)))[r] != b"\0\0\0\0" for r in range(boot.size)):
            for other in names[names.index(name) + 1 :]:
                unused[other] = f"{name} reaches every rank"
            return
    raise TransportError(f"PYMPX_TRANSPORT={wanted} cannot serve {len(left)} of {boot.size - 1} peers of rank {boot.rank}: "
                         + ("; ".join(reasons[:3]) or "another rank has no transport to a peer"))


def _open(name: str) -> int:
    plugin = manager.load(name)
    reason = plugin.probe()
    if reason is not None:
        raise TransportError(reason)
    number: int = engine.add_transport(plugin.table(), plugin.device(), json.dumps(plugin.config()))
    transports.append(name)
    return number


def host_identity() -> bytes:
    """What ranks on one running kernel have in common."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().strip()


def _give_up(boot: Bootstrap, message: str) -> NoReturn:
    """End the job with exit code 1. All ranks tend to fail alike: rank 0 says why, the others only if it does not."""
    if boot.rank != 0:
        time.sleep(0.5)
    boot.abort(1, message)


def _end_job_on_exception() -> None:
    """Let an exception that nobody catches end the whole job: the other ranks would wait for this one for ever."""
    show = sys.excepthook

    def hook(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        show(kind, value, trace)
        if _bootstrap is not None and _bootstrap.size > 1 and not _finalized:
            abort(130 if issubclass(kind, KeyboardInterrupt) else 1)

    sys.excepthook = hook


def counters() -> dict[str, dict[str, int]]:
    """See pympx.counters."""
    if not engine.is_running():
        return {}
    return {name: engine.transport_counters(number) for number, name in enumerate(transports)}


def finalize() -> None:
    """Say goodbye to all peers and leave the launcher. Collective over the job; idempotent; also runs at exit."""
    global _finalized
    with _lock:
        if _finalized:
            return
        if engine.is_running():
            for call in _before_farewell:
                call()
            engine.farewell()
        _finalized = True
        engine.end("pympx was finalized")
        if _bootstrap is not None:
            _bootstrap.finalize()


def _finalize_at_exit() -> None:
    # At exit nobody can handle a peer or launcher that is gone, and the launcher reports it.
    with contextlib.suppress(BootstrapError, KeyboardInterrupt):
        finalize()


def is_finalized() -> bool:
    """Return whether finalize() was called."""
    return _finalized


def abort(code: int, message: str = "") -> NoReturn:
    """End the whole job with exit code `code`."""
    sys.stdout.flush()
    sys.stderr.flush()
    bootstrap().abort(code, message)


def _forked() -> None:
    """A child of a rank is no rank: its calls raise, and its exit leaves the parent's connections alone."""
    global _finalized
    _finalized = True
    engine.end("this process is a forked child of a rank; only the rank itself can communicate", forked=True)
    atexit.unregister(_finalize_at_exit)
