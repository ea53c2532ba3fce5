"""pympx: a message-passing runtime for Python with mpi4py's API and pluggable transports.

Start with ``from pympx import MPI``. Importing this package alone loads nothing compiled, opens no socket and starts no thread.
"""

from __future__ import annotations

from .options import rc

__version__ = "0.1.0"
__all__ = ["counters", "rc"]


def counters() -> dict[str, dict[str, int]]:
    """Return what this rank moved so far, by transport: payload bytes and messages sent and received, bytes on the medium.

    ``self`` is traffic of the rank with itself. Empty before the first communication.
    """
    from . import runtime

    return runtime.counters()
