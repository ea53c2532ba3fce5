"""What every bootstrap offers: who am I, who are the others, one exchange at start, an orderly or a hard end."""

from __future__ import annotations

import abc
from typing import NoReturn


class BootstrapError(RuntimeError):
    """A launcher left its signs but cannot be joined. The message is one line: what happened, why, what to do."""


class Bootstrap(abc.ABC):
    """One rank's tie to whatever started it. Created without any exchange: rank and size need no fence."""

    #: pmi1, pmix, env, slurm, mpi4py, single
    name: str
    rank: int
    size: int
    #: whether abort() ends the other ranks too; else only this one, and they have to see to it themselves
    ends_others = True

    @abc.abstractmethod
    def allgather(self, blob: bytes) -> list[bytes]:
        """Collective: return the blobs of all ranks, by rank. Raises BootstrapError when a peer or the launcher is gone."""

    @abc.abstractmethod
    def barrier(self) -> None:
        """Collective: return when every rank has called it."""

    @abc.abstractmethod
    def job_key(self) -> bytes:
        """Collective at its first call: return the job's 32-byte secret (no stronger than the launcher's channel)."""

    @abc.abstractmethod
    def abort(self, code: int, message: str = "") -> NoReturn:
        """End the whole job with exit code `code` (1..255) through the launcher; does not return."""

    @abc.abstractmethod
    def finalize(self) -> None:
        """Leave in order, so that this rank's exit is no failure. Idempotent."""

    def forked(self) -> None:
        """Called in a forked child, which is no rank: close its copies of descriptors, saying nothing to the launcher."""
        return
