"""The plugin API: what a transport's control path (its plugin.py) implements. All that a transport may import of pympx."""

from __future__ import annotations

import abc
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import pluggy

hookimpl = pluggy.HookimplMarker("pympx")


def setting(name: str) -> Any:
    """Return the parsed value of a PYMPX_* variable that pympx knows. Raises ValueError naming variable, value and reason."""
    from .. import config

    return config.get(name)


class Pump(Protocol):
    """Moves the messages of a transport without native progress; called with the GIL by whoever waits, never by two threads at once."""

    def pending(self) -> bool:
        """Return whether messages wait to be sent."""

    def move(self) -> bool:
        """Move what can be moved without waiting; return whether anything was."""

    def idle(self, seconds: float) -> None:
        """Sleep at most `seconds`, less when something arrives."""

    def flushed(self) -> bool:
        """Return whether everything that was sent has left this process, as far as the transport can know."""


class TransportPlugin(abc.ABC):
    """Control path of one transport: says whether it can serve here, and hands over the table of its fast path.

    Return one from a module-level ``@hookimpl def pympx_transport()``.
    """

    #: what PYMPX_TRANSPORT calls it
    name: str
    #: one line for ``python -m pympx info``
    summary: str
    #: its eps are connected pairwise (MPX_CAP_CONNECT_EP): the runtime opens tcp as well, for the control lane
    pairwise: bool = False
    #: what people should know before they rely on it, for ``python -m pympx info``
    advice: str = ""

    @abc.abstractmethod
    def probe(self) -> str | None:
        """Return None when the transport can serve on this machine, else the reason in one line. Opens nothing lasting."""

    @abc.abstractmethod
    def table(self) -> Any:
        """Return a PyCapsule named ``pympx.transport.v1`` around the ``mpx_transport`` of the fast path (transport.h)."""

    def device(self) -> str:
        """Name the device that ``domain_open`` opens; empty: the transport's choice."""
        return ""

    def config(self) -> dict[str, Any]:
        """Return what ``domain_open`` receives as JSON: results of discovery, settings from the environment. Asked for after `prepare`."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Return what people may want to see of `config`."""
        return self.config()

    def prepare(self, job_key: bytes) -> None:
        """Called once, after `probe` and before the others: open what Python opens. `job_key` is the secret of this job's ranks."""
        return

    def pump(self) -> Pump | None:
        """Return what moves this transport's messages; None: it has native progress."""
        return None

    def supply(self) -> dict[str, Any]:
        """Return what `domain_supply` receives as JSON: what the fast path asked for by `need_control` (transport.h), or why there is none.

        Called with the GIL by whoever waits in a call of pympx. Must not raise.
        """
        return {}

    def close(self) -> None:  # noqa: B027 - optional
        """Called once, after the engine has let go of the transport: close what `prepare` and `supply` opened."""


def native_table(library: Path) -> Any:
    """Load a fast path's shared library and return its table as a capsule.

    Raises OSError when it cannot be loaded, ValueError when it speaks another ABI version.
    """
    from .loader import load_table

    return load_table(str(library))


def layer_table(library: Path, over: Any, settings: str) -> Any:
    """Load a layer's shared library, let it wrap the table in the capsule `over`, and return the layer's table as a capsule.

    Raises OSError when it cannot be loaded, ValueError with the layer's reason when it refuses.
    """
    from .loader import load_layer

    return load_layer(str(library), over, settings)


class NativeTransport(TransportPlugin):
    """A transport whose fast path is a shared library beside its plugin.py, always usable on Linux."""

    def __init__(self, name: str, summary: str, library: Path) -> None:
        self.name = name
        self.summary = summary
        self._library = library

    def probe(self) -> str | None:
        return None if self._library.exists() else f"{self._library.name} is not installed"

    def table(self) -> Any:
        return native_table(self._library)


class PeerLost(ConnectionError):
    """Raised by a PythonTransport's methods: the rank at address `peer` cannot be reached any more. Its pending operations fail."""

    def __init__(self, peer: bytes, reason: str = "") -> None:
        super().__init__(reason or "the peer is lost")
        self.peer = peer


class PythonTransport(TransportPlugin):
    """A transport written only in Python: subclass it, return it from the hook, name its module in the entry-point group pympx.transports.

    pympx moves messages of at most `max_message` bytes through `send` and `poll` and does the rest: matching, large messages in fragments,
    flow control. What it expects: what `send` accepted arrives once, whole, and from one rank to another in the order of sending.
    Ranks are named by addresses: the bytes that `open` returned there, at most 126.

    The methods are called with the GIL, by one thread at a time, by whoever waits in a call of pympx or leaves one; never while the program
    computes. None of them may wait (but `idle`), nor call pympx. An exception other than PeerLost is raised by the call that was waiting.
    """

    #: bytes that one `send` takes, 1024 or more
    max_message: int = 64 << 10
    #: of one message, seconds and bytes per second: what the choice of protocols goes by
    latency_s: float = 20e-6
    bandwidth_Bps: float = 1e9
    #: whether it reaches other hosts
    inter_node: bool = True

    _trampoline: Any = None

    @abc.abstractmethod
    def open(self, job_key: bytes) -> bytes:
        """Open the transport and return this rank's address. `job_key` is known to the job's ranks alone: by it they know each other."""

    @abc.abstractmethod
    def send(self, peer: bytes, message: bytes) -> bool:
        """Begin to send `message` to the rank at address `peer`; return False when there is no room now (it will be offered again).

        The bytes never change, and may be kept until they have left. Raise PeerLost when the peer is gone.
        """

    @abc.abstractmethod
    def poll(self) -> Iterable[tuple[bytes, bytes | bytearray | memoryview]]:
        """Return what has arrived as pairs (address of the sender, message). Raise PeerLost when a peer is gone.

        Called often: also the place to go on with what `send` began.
        """

    def idle(self, seconds: float) -> None:
        """Sleep at most `seconds`; return early when something arrives, if that can be had."""
        time.sleep(seconds)

    def flushed(self) -> bool:
        """Return whether all that `send` accepted has left this process. Asked for at Finalize, before `close`."""
        return True

    def probe(self) -> str | None:
        """Return None when the transport can serve here, else the reason in one line."""
        return None

    def prepare(self, job_key: bytes) -> None:
        from ..trampoline.pump import TrampolinePump

        self._trampoline = TrampolinePump(self, self.open(job_key))

    def table(self) -> Any:
        return self._trampoline.table

    def device(self) -> str:
        return str(self._trampoline.device)

    def pump(self) -> Pump:
        pump: Pump = self._trampoline
        return pump
