"""Finds transports: the tree's own from a tuple, others through the entry-point group ``pympx.transports``."""

from __future__ import annotations

import importlib
import importlib.metadata

import pluggy

from . import hookspecs
from .api import TransportPlugin

#: what ``auto`` tries, in this order
AUTO = ("shm", "verbs", "tcp")
IN_TREE = ("self", *AUTO, "mpi", "fault")


def names() -> dict[str, str]:
    """Return the names of all transports, with where each comes from: "pympx", or the distribution of its entry point."""
    found = dict.fromkeys(IN_TREE, "pympx")
    for entry_point in importlib.metadata.entry_points(group="pympx.transports"):
        found.setdefault(entry_point.name, entry_point.dist.name if entry_point.dist else entry_point.value)
    return found


def load(name: str) -> TransportPlugin:
    """Return the control path of the transport `name`. Raises LookupError with the reason in one line."""
    manager = pluggy.PluginManager("pympx")
    manager.add_hookspecs(hookspecs)
    if name in IN_TREE:
        try:
            manager.register(importlib.import_module(f"pympx.transports.{name}.plugin"))
        except ImportError as error:
            raise LookupError(f"transport {name} cannot be imported: {error}") from error
    else:
        entry_points = importlib.metadata.entry_points(group="pympx.transports", name=name)
        if not entry_points:
            known = ", ".join(n for n in IN_TREE if n != "self")
            raise LookupError(f"there is no transport {name}; known: auto, {known}, and plugins in the entry-point group pympx.transports")
        try:
            manager.register(next(iter(entry_points)).load())
        except Exception as error:
            raise LookupError(f"transport {name} cannot be loaded: {type(error).__name__}: {error}") from error
    found: list[TransportPlugin] = manager.hook.pympx_transport()
    if len(found) != 1:
        raise LookupError(f"plugin {name} offers {len(found)} transports, expected 1")
    return found[0]
