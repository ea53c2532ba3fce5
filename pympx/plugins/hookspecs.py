"""The one hook of pympx, for pluggy."""

from __future__ import annotations

import pluggy

from .api import TransportPlugin

hookspec = pluggy.HookspecMarker("pympx")


@hookspec
def pympx_transport() -> TransportPlugin:  # type: ignore[empty-body]
    """Return the control path of one transport."""
