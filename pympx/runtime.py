"""Start and end of the runtime: join the job, open transports, choose one per peer, say goodbye.

Rank and size are known without communication; everything else starts with the first use of a communicator.
"""

from __future__ import annotations

import atexit
import json
import os
import struct
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

from . import config
from .bindings import runtime as engine
from .bootstrap import join
from .bootstrap.base import Bootstrap, BootstrapError
from .plugins import manager

_lock = threading.RLock()
_bootstrap: Bootstrap | None = None
#: names of the transports that were opened, by the engine's number
transports: list[str] = []
#: why a transport is not used, by name
unused: dict[str, str] = {}
_finalized = False
_hooked = False
_on_ready: list[Callable[[], None]] = []
_before_farewell: list[Callable[[], None]] = []


class TransportError(RuntimeError):
    """The named transport cannot serve. The message is one line."""


def bootstrap() -> Bootstrap:
    """Return this rank's tie to its launcher; joined at the first call, without communication."""
    global _bootstrap, _hooked
    with _lock:
        if _bootstrap is None:
            try:
                _bootstrap = join()
            finally:
                if not _hooked:
                    _hooked = True
                    sys.excepthook = _show_in_one_line(sys.excepthook)
            atexit.register(finalize)
            os.register_at_fork(after_in_child=_forked)
        return _bootstrap


def when_ready(call: Callable[[], None]) -> None:
    """Call `call` once the engine runs."""
    _on_ready.append(call)


def before_farewell(call: Callable[[], None]) -> None:
    """Call `call` at Finalize while messages can still be sent; on every rank, so collectives are allowed."""
    _before_farewell.append(call)


def start() -> None:
    """Open transports and know all peers. Collective over the job. Raises TransportError or BootstrapError."""
    with _lock:
        if engine.is_running():
            return
        boot = bootstrap()
        wanted: str = config.get("PYMPX_TRANSPORT")
        host = _host_identity()
        hosts = boot.allgather(host)
        here = hosts.count(host)
        cores = len(os.sched_getaffinity(0))
        crowded = here > cores
        spin = config.get("PYMPX_SPIN")
        engine.create(
            boot.rank,
            boot.size,
            boot.job_key(),
            config.get("PYMPX_EAGER_WINDOW"),
            (2e-6 if crowded else 50e-6) if spin is None else spin,
            2 if crowded else 400,
        )
        engine.set_timeout(config.get("PYMPX_TIMEOUT") or 0)
        try:
            _connect(boot, wanted, len(set(hosts)) == 1)
        except BaseException as error:
            engine.end(f"the runtime could not start: {error}")
            raise
        for call in _on_ready:
            call()


def _show_in_one_line(previous: Callable[..., object]) -> Callable[..., None]:
    """Return an excepthook that says why a rank cannot join in one line: where in the program it happened helps nobody."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, (TransportError, BootstrapError, config.ConfigError)):
            text = str(error).replace("\n", " ")
            sys.stderr.write(f"{text if text.startswith('pympx: ') else 'pympx: ' + text}\n")
        else:
            previous(kind, error, trace)

    return show


def _connect(boot: Bootstrap, wanted: str, one_host: bool) -> None:
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
        except (TransportError, RuntimeError, LookupError, OSError, ValueError) as error:
            number, blob = -1, b""
            unused[name] = str(error)
        # One exchange each, so that a transport that nobody needs is never opened.
        for rank, address in enumerate(boot.allgather(blob)):
            if rank not in left:
                continue
            reason = unused.get(name) if number < 0 else None
            if reason is None:
                reason = engine.unreachable_reason(number, address) if address else f"rank {rank} has no {name}"
            if not reason:
                engine.set_peer(rank, number, address)
                left.remove(rank)
            elif len(reasons) < 3:
                reasons.append(f"{name} to rank {rank}: {reason}")
        if not any(boot.allgather(struct.pack("<I", len(left)))[r] != b"\0\0\0\0" for r in range(boot.size)):
            for other in names[names.index(name) + 1 :]:
                unused[other] = f"{name} reaches every rank"
            return
    raise TransportError(f"PYMPX_TRANSPORT={wanted} cannot serve {len(left)} of {boot.size - 1} peers of rank {boot.rank}: "
                         + ("; ".join(reasons) or "another rank has no transport to a peer"))


def _open(name: str) -> int:
    plugin = manager.load(name)
    reason = plugin.probe()
    if reason is not None:
        raise TransportError(reason)
    number: int = engine.add_transport(plugin.table(), plugin.device(), json.dumps(plugin.config()))
    transports.append(name)
    return number


def _host_identity() -> bytes:
    """What ranks on one running kernel have in common."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().strip()


def counters() -> dict[str, dict[str, int]]:
    """Return what this rank moved so far, by transport: payload bytes and messages sent and received, bytes on the medium.

    ``self`` is traffic of the rank with itself. Empty before the first communication.
    """
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
    atexit.unregister(finalize)
