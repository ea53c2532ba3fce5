"""Start and end of the runtime: join the job, open transports, choose one per peer, say goodbye.

Rank and size are known without communication; everything else starts with the first use of a communicator.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from . import config, uncaught
from .bindings import runtime as engine
from .bootstrap import detect, join_or_exit
from .bootstrap.base import Bootstrap, BootstrapError
from .plugins import TransportPlugin, manager

#: carries the control lanes of transports whose eps are connected pairwise
_CONTROL = "tcp"
_lock = threading.RLock()
_bootstrap: Bootstrap | None = None
#: names of the transports that were opened, by the engine's number
transports: list[str] = []
_plugins: list[TransportPlugin] = []
#: why a transport is not used, by name
unused: dict[str, str] = {}
#: ranks that an opened transport does not reach from here, by (transport, reason)
unreached: dict[tuple[str, str], list[int]] = {}
_connected = False
_finalized = False
_on_ready: list[Callable[[], None]] = []
_announced: list[str] = []
#: what all ranks announced before the start
common: set[str] = set()
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
        return _bootstrap


def when_ready(call: Callable[[], None]) -> None:
    """Call `call` once the engine runs; at once if it does."""
    with _lock:
        if _connected:
            call()
        else:
            _on_ready.append(call)


def announce(word: str) -> None:
    """Tell all ranks at the start that this one has `word`, for whose sake the runtime starts at the end of the program at the latest."""
    _announced.append(word)
    if _bootstrap is None:
        atexit.register(_finalize_at_exit)


def before_farewell(call: Callable[[], None]) -> None:
    """Call `call` at Finalize while messages can still be sent; on every rank, so collectives are allowed."""
    _before_farewell.append(call)


def start() -> None:
    """Open transports and know all peers. Collective over the job; ends it, with one line that says why, when that fails."""
    global _connected
    with _lock:
        if engine.is_running():
            return
        boot = bootstrap()
        try:
            _start(boot)
        except (RuntimeError, LookupError, OSError, ValueError) as error:
            _end(f"the runtime could not start: {error}")
            if boot.size == 1:
                raise
            _give_up(boot, f"pympx: {error}")
        _connected = True
        for call in _on_ready:
            call()


def _start(boot: Bootstrap) -> None:
    wanted: str = config.get("PYMPX_TRANSPORT")
    spin = config.get("PYMPX_SPIN")
    window = config.get("PYMPX_EAGER_WINDOW")
    timeout = config.get("PYMPX_TIMEOUT") or 0
    kernel = host_identity().decode()
    mine = [kernel, socket.gethostname(), bool(config.get("PYMPX_REPORT")), _announced]
    kernels, hosts, reports, words = zip(*map(json.loads, boot.allgather(json.dumps(mine).encode())), strict=True)
    common.update(set(words[0]).intersection(*words[1:]))
    crowded = kernels.count(kernel) > len(os.sched_getaffinity(0))
    regcache = config.get("PYMPX_REGCACHE") == "auto"
    engine.create(boot.rank, list(hosts), boot.job_key(), window, spin, crowded, config.get("PYMPX_LINK_TIMEOUT"), regcache)
    engine.set_timeout(timeout)
    _connect(boot, wanted)
    if any(reports):
        from .tools import report

        when_ready(report.install)


def _connect(boot: Bootstrap, wanted: str) -> None:
    """Give every peer a transport: itself `self`; others the named one, or with ``auto`` the first that reaches them."""
    number = _open("self")
    engine.set_peer(boot.rank, number, engine.address(number))
    left = [rank for rank in range(boot.size) if rank != boot.rank]
    if boot.size == 1:
        return
    names = list(manager.AUTO) if wanted == "auto" else [wanted]
    reasons: list[str] = []
    for name in names:
        try:
            number, control = _open_with_control(name)
            blob = engine.address(number)
            blob = struct.pack("<I", len(blob)) + blob + (engine.address(control) if control >= 0 else b"")
        except (RuntimeError, LookupError, OSError, ValueError) as error:
            number, control, blob = -1, -1, b""
            unused[name] = str(error)
        # One exchange each, so that a transport that nobody needs is never opened.
        for rank, said in enumerate(boot.allgather(b"+" + blob if number >= 0 else b"-" + unused[name].encode())):
            if rank not in left:
                continue
            address = lane = b""
            if said.startswith(b"+"):
                length = struct.unpack_from("<I", said, 1)[0]
                address, lane = said[5 : 5 + length], said[5 + length :]
            if number < 0:
                reason = unused[name]
            elif not address:
                reason = f"rank {rank} has no {name}: {said[1:].decode(errors='replace')}"
            else:
                reason = engine.unreachable_reason(number, address)
                if not reason and control >= 0:
                    reason = engine.unreachable_reason(control, lane)
            if not reason:
                engine.set_peer(rank, number, address)
                if control >= 0:
                    engine.set_control_lane(rank, control, lane)
                left.remove(rank)
                continue
            if number >= 0:
                unreached.setdefault((name, reason), []).append(rank)
            if reason not in reasons:
                reasons.append(reason)
        missing = boot.allgather(struct.pack("<I", len(left)))
        if not any(any(count) for count in missing):
            for other in names[names.index(name) + 1 :]:
                unused[other] = f"{name} reaches every rank"
            return
    raise TransportError(f"PYMPX_TRANSPORT={wanted} cannot serve {len(left)} of {boot.size - 1} peers of rank {boot.rank}: "
                         + ("; ".join(reasons[:3]) or "another rank has no transport to a peer"))


def _probed(name: str) -> TransportPlugin:
    plugin = manager.load(name)
    reason = plugin.probe()
    if reason is not None:
        raise TransportError(reason)
    return plugin


def _open(name: str, plugin: TransportPlugin | None = None) -> int:
    """Open a transport, if it is not open yet; return its number."""
    if name in transports:
        return transports.index(name)
    plugin = plugin or _probed(name)
    plugin.prepare(bootstrap().job_key())
    try:
        number: int = engine.add_transport(plugin.table(), plugin.device(), json.dumps(plugin.config()))
    except BaseException:
        plugin.close()
        raise
    _plugins.append(plugin)
    transports.append(name)
    pump = plugin.pump()
    if pump is not None:
        engine.add_pump(pump)
    return number


def _open_with_control(name: str) -> tuple[int, int]:
    """Open a transport, and before it the one that it needs for control lanes; return their numbers, -1 where none is needed."""
    plugin = _probed(name)
    control = _open(_CONTROL) if plugin.pairwise else -1
    return _open(name, plugin), control


def supply(number: int) -> str:
    """Return, as JSON, what the fast path of transport `number` asked its control path for."""
    return json.dumps(_plugins[number].supply())


def _end(reason: str) -> None:
    """Close the engine, then the transports' control paths; later communication raises `reason`."""
    engine.end(reason)
    while _plugins:
        _plugins.pop().close()


def host_identity() -> bytes:
    """What ranks on one running kernel have in common."""
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().strip()


def _give_up(boot: Bootstrap, message: str) -> NoReturn:
    """End the job with exit code 1. All ranks tend to fail alike: rank 0 says why, the others only if it does not."""
    if boot.rank != 0:
        time.sleep(0.5)
    boot.abort(1, message)


def _job_with_others() -> Bootstrap | None:
    """Return this rank's tie to a job of several, None when there is none, or when it has been left."""
    if _finalized:
        return None
    try:
        if _bootstrap is None and detect(os.environ) == "single":
            return None
        boot = bootstrap()
    except (BootstrapError, SystemExit):
        return None  # what is to be said is the exception
    return boot if boot.size > 1 else None


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
        if _announced and not _connected and _job_with_others():
            start()
        calls = list(_before_farewell) if engine.is_running() else []
        _before_farewell.clear()
    for call in calls:  # without the lock: they may wait for other threads
        call()
    with _lock:
        if _finalized:
            return
        if engine.is_running():
            engine.farewell()
        _finalized = True
        _end("pympx was finalized")
        if _bootstrap is not None:
            _bootstrap.finalize()


def _finalize_at_exit() -> None:
    if uncaught.hold():
        return
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
    """A child of a rank is no rank: its calls raise, its end is its own, and it keeps nothing open that would hide the rank's end."""
    global _finalized, _lock
    _finalized = True
    _lock = threading.RLock()  # another thread of the parent may have held it
    engine.after_fork_in_child("this process is a forked child of a rank; only the rank itself can communicate")
    atexit.unregister(_finalize_at_exit)
    if _bootstrap is not None:
        _bootstrap.forked()


os.register_at_fork(after_in_child=_forked)
uncaught.install(_job_with_others, lambda: _connected and engine.is_running())
