"""Calls: functions at other ranks, beside send and receive, over the same links (Birrell and Nelson, Remote Procedure Calls, 1984).

    from pympx import MPI, rpc

    def add(a, b): return a + b

    future = rpc.call(1, add, 2, 3)     # executed by rank 1, whatever its main thread does
    future.result()                     # 5; or await future

**Who serves.** A rank that has imported this module serves calls from the start of its runtime to Finalize, on one Python thread, one
after another in the order in which they came. The thread shares the GIL with the program: while the program runs Python, a call waits for
up to sys.getswitchinterval() (5 ms) and a little; while it runs C code that has released the GIL (NumPy on large arrays, pympx's own
waits), hardly at all. Where all ranks had imported the module at the start, each serves until all have come to Finalize.

**How often.** Exactly once while both ranks live: links that break are made anew, what they lost is sent again, and recognised. When the
rank failed, the call raises MPI.Exception of the class ERR_PROC_FAILED; whether it was executed before is not known.

**What travels.** Functions by reference: module and name (both ranks must be able to import it; the main program counts), or the name
under which @export made it known. Arguments and results are pickled (protocol 5, large buffers out-of-band); bytes alone are not. Methods,
partials and classes travel in the pickle. What the function raises, the call raises, with the remote traceback as its cause.

**Nesting.** A function that is being served may call others, also of the rank that called it: while it waits, its rank serves on.
"""

from __future__ import annotations

from . import service
from .calls import Call, call, notify, ping
from .peer import Peer, to
from .remote import DeadlineExceeded, RemoteError, RemoteTraceback, export

__all__ = ["Call", "DeadlineExceeded", "Peer", "RemoteError", "RemoteTraceback", "call", "export", "notify", "ping", "to"]

service.install()
