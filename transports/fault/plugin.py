"""Control path of transport fault: wraps another transport's table and makes trouble that the contract allows. Never part of ``auto``.

PYMPX_FAULT  ``over=NAME`` and what is to be suffered, see README.md: ``over=tcp,no_resource=0.1,hold=0.05,seed=7``
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pympx.plugins import Pump, TransportPlugin, hookimpl, layer_table, load

_LIBRARY = Path(__file__).with_name("_fastpath.so")


def split(text: str) -> tuple[str, str]:
    """Return (name of the wrapped transport, the rest, which the fast path reads). Raises ValueError when there is no such name."""
    words = [word for word in text.split(",") if word]
    over = [word.partition("=")[2] for word in words if word.startswith("over=")]
    if len(over) != 1 or over[0] in ("", "auto", "fault"):
        raise ValueError(f"PYMPX_FAULT={text!r}: expecting over=NAME once, the transport to wrap, and what it suffers: over=tcp,hold=0.1")
    return over[0], ",".join(word for word in words if not word.startswith("over="))


class FaultTransport(TransportPlugin):
    """The wrapped transport's control path, and the layer's table around its own."""

    name = "fault"
    summary = "wraps another transport and makes trouble, for tests (PYMPX_FAULT)"

    def __init__(self) -> None:
        self._wrapped: TransportPlugin | None = None
        self._settings = ""

    def _over(self) -> TransportPlugin:
        if self._wrapped is None:
            name, self._settings = split(os.environ.get("PYMPX_FAULT", ""))
            self._wrapped = load(name)
        return self._wrapped

    def probe(self) -> str | None:
        """Return why fault cannot serve: PYMPX_FAULT names no transport, or that one cannot serve."""
        if "PYMPX_FAULT" not in os.environ:
            return "PYMPX_FAULT is not set: say over=NAME, the transport to wrap, and what it suffers"
        try:
            self.pairwise = self._over().pairwise
            return self._over().probe()
        except (LookupError, ValueError) as error:
            return str(error)

    def prepare(self, job_key: bytes) -> None:
        self._over().prepare(job_key)

    def table(self) -> Any:
        table = self._over().table()
        try:
            return layer_table(_LIBRARY, table, self._settings)
        except ValueError as error:
            raise ValueError(f"PYMPX_FAULT={os.environ['PYMPX_FAULT']!r}: {error}") from None

    def device(self) -> str:
        return self._over().device()

    def config(self) -> dict[str, Any]:
        return self._over().config()

    def pump(self) -> Pump | None:
        return self._over().pump()

    def supply(self) -> dict[str, Any]:
        return self._over().supply()

    def close(self) -> None:
        self._over().close()


@hookimpl
def pympx_transport() -> TransportPlugin:
    """Return the control path of transport fault."""
    return FaultTransport()
