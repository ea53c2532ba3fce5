"""When a rank serves calls: from the start of its runtime, or the import of pympx.rpc if that is later, to Finalize."""

from __future__ import annotations

import threading

from .. import config, runtime
from ..MPI import COMM_WORLD
from ..MPI import Exception as MPIException
from . import calls

_WORD = "rpc"
_thread: threading.Thread | None = None


def _ready() -> None:
    global _thread
    boot = runtime.bootstrap()
    try:
        calls.open_calls(boot.rank, boot.size, config.get("PYMPX_RPC_BACKLOG"))
    except RuntimeError as error:
        calls.refuse(str(error))
        return
    _thread = threading.Thread(target=calls.serve, name="pympx-rpc", daemon=True)
    _thread.start()
    runtime.before_farewell(_leave)


def _leave() -> None:
    """Serve until everybody is here, if everybody has calls; then end."""
    if _WORD in runtime.common and runtime.bootstrap().size > 1:
        flag = bytearray(4)
        try:
            COMM_WORLD.Iagree(flag).Wait()
        except MPIException:
            pass  # somebody failed: those who live have agreed all the same
    calls.stop_serving()
    if _thread is not None:
        _thread.join()


def install() -> None:
    """Serve from the runtime's start on; at once if it runs."""
    runtime.announce(_WORD)
    runtime.when_ready(_ready)
