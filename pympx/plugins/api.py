"""The plugin API: what a transport's control path (its plugin.py) implements. All that a transport may import of pympx."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Any

import pluggy

hookimpl = pluggy.HookimplMarker("pympx")


class TransportPlugin(abc.ABC):
    """Control path of one transport: says whether it can serve here, and hands over the table of its fast path.

    Return one from a module-level ``@hookimpl def pympx_transport()``.
    """

    #: what PYMPX_TRANSPORT calls it
    name: str
    #: one line for ``python -m pympx info``
    summary: str

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
        """Return what ``domain_open`` receives as JSON: results of discovery, settings from the environment."""
        return {}


def native_table(library: Path) -> Any:
    """Load a fast path's shared library and return its table as a capsule.

    Raises OSError when it cannot be loaded, ValueError when it speaks another ABI version.
    """
    from ..bindings.loader import load_table

    return load_table(str(library))


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
