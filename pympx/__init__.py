"""pympx: a message-passing runtime for Python with mpi4py's API and pluggable transports.

Start with ``from pympx import MPI``. Importing this package alone loads nothing compiled, opens no socket and starts no thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .options import rc

if TYPE_CHECKING:
    from .runtime import counters

__version__ = "0.1.0"
__all__ = ["counters", "rc"]


def __getattr__(name: str) -> Any:
    """Load what is compiled when it is first asked for."""
    if name == "counters":
        from .runtime import counters

        return counters
    raise AttributeError(f"module 'pympx' has no attribute {name!r}")
