"""The launcher's side of PMI-1: one key-value store, one barrier, and who has joined and left. Does no input or output itself.

What it is told (`feed`, `left`) it answers through the `send` function given to it. It says that it is of PMI 1.2, so clients may send
several requests at once. MPICH's own client is served too (mpi4py's programs start under ``pympx run``); spawn and name publishing are
refused.
"""

from __future__ import annotations

from collections.abc import Callable

from ..bootstrap import pmi1_wire as wire
from ..bootstrap.base import BootstrapError

_KEY_MAX = 64
_VALUE_MAX = 1024


class Pmi1Server:
    """Serves the ranks of one job. `send(rank, data)` must take the data at once (it may buffer). `mapping`: which ranks share a node."""

    def __init__(self, size: int, space: str, send: Callable[[int, bytes], None], mapping: str) -> None:
        self._size = size
        self._space = space
        self._send = send
        self._store = {"PMI_process_mapping": mapping}
        self._readers = [wire.LineReader() for _ in range(size)]
        self._waiting: set[int] = set()
        self._left: set[int] = set()
        self._joined: set[int] = set()
        #: whether the ranks have exchanged what they need to find each other
        self.all_met = size == 1
        #: (rank, exit code) of the first rank that asked for the job's end
        self.aborted: tuple[int, int] | None = None

    def owes_finalize(self, rank: int) -> bool:
        """Tell whether `rank` joined and has not left in order."""
        return rank in self._joined and rank not in self._left

    def feed(self, rank: int, data: bytes) -> bool:
        """Take bytes from `rank`; return False when they are no PMI-1, and the connection should be closed."""
        reader = self._readers[rank]
        reader.feed(data)
        try:
            while (line := reader.next_line()) is not None:
                self._answer(rank, wire.parse(line))
        except BootstrapError:
            return False
        return True

    def left(self, rank: int) -> None:
        """Note that `rank` will not speak again: it has ended, closed its connection or finalized."""
        self._left.add(rank)
        self._waiting.discard(rank)
        self._check_barrier()

    def _check_barrier(self) -> None:
        if not self._waiting:
            return
        if self._left:
            gone = ",".join(map(str, sorted(self._left)[:8]))
            reply = f"cmd=barrier_out rc=-1 msg=rank_{gone}_left_the_job\n"
        elif len(self._waiting) == self._size:
            reply = "cmd=barrier_out rc=0\n"
            self.all_met = True
        else:
            return
        waiting, self._waiting = self._waiting, set()
        for rank in sorted(waiting):
            self._send(rank, reply.encode())

    def _answer(self, rank: int, words: dict[str, str]) -> None:
        command = words["cmd"]
        if command == "init":
            self._joined.add(rank)
            reply = "cmd=response_to_init rc=0 pmi_version=1 pmi_subversion=2"
        elif command == "get_maxes":
            reply = f"cmd=maxes rc=0 kvsname_max=256 keylen_max={_KEY_MAX} vallen_max={_VALUE_MAX}"
        elif command == "get_appnum":
            reply = "cmd=appnum rc=0 appnum=0"
        elif command == "get_my_kvsname":
            reply = f"cmd=my_kvsname rc=0 kvsname={self._space}"
        elif command == "get_universe_size":
            reply = f"cmd=universe_size rc=0 size={self._size}"
        elif command == "put":
            reply = self._put(words)
        elif command == "get":
            value = self._store.get(words.get("key", "")) if words.get("kvsname") == self._space else None
            reply = "cmd=get_result rc=-1 msg=key_not_found" if value is None else f"cmd=get_result rc=0 value={value}"
        elif command == "barrier_in":
            self._waiting.add(rank)
            self._check_barrier()
            return
        elif command == "finalize":
            self._send(rank, b"cmd=finalize_ack rc=0\n")
            self.left(rank)
            return
        elif command == "abort":
            if self.aborted is None:
                self.aborted = (rank, wire.number(words, "exitcode"))
            return
        else:
            reply = f"cmd={command}_result rc=-1 msg=not_supported"
        self._send(rank, f"{reply}\n".encode())

    def _put(self, words: dict[str, str]) -> str:
        key, value = words.get("key", ""), words.get("value", "")
        if words.get("kvsname") != self._space:
            return "cmd=put_result rc=-1 msg=no_such_store"
        if not key or len(key) >= _KEY_MAX or not value or len(value) >= _VALUE_MAX:
            return "cmd=put_result rc=-1 msg=key_or_value_has_a_wrong_length"
        if key in self._store:
            return "cmd=put_result rc=-1 msg=key_exists"
        self._store[key] = value
        return "cmd=put_result rc=0"
