"""Joins through mpi4py: whatever MPI it stands on has been joined already, and its communicator exchanges what ranks must know.

Chosen by PYMPX_BOOTSTRAP=mpi4py only, for clusters whose launcher nothing else can join; loading an MPI library costs a start 0.1 s
(MPICH) to 1 s (Open MPI). MPI must be the launcher's own: one that does not know its launcher starts as many worlds of one rank, which is
told from the launcher's variables and refused.

Exchanges go through a duplicate of COMM_WORLD, made at the first of them, so they never meet the program's own messages. When this object
initialized MPI it also finalizes it; a program that imported mpi4py.MPI before keeps its MPI. The job key is drawn by rank 0 and
broadcast: it is no more private than MPI's own messages.
"""

from __future__ import annotations

import importlib
import os
import secrets
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from .base import Bootstrap, BootstrapError
from .ending import exit_code, flush_output, leave, wait_until_read

#: Where launchers say how many ranks they started.
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")


class Mpi4py(Bootstrap):
    """A rank of an MPI job. The constructor initializes MPI unless the program has."""

    name = "mpi4py"

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._pid = os.getpid()
        before = "mpi4py.MPI" in sys.modules
        self._mpi: Any = _import()
        self._ours = not before and self._mpi.Is_initialized()
        if not self._mpi.Is_initialized() or self._mpi.Is_finalized():
            raise BootstrapError("pympx: PYMPX_BOOTSTRAP=mpi4py, but MPI is not initialized, or finalized already: leave both to mpi4py")
        world = self._mpi.COMM_WORLD
        self.rank, self.size = world.Get_rank(), world.Get_size()
        expected = next((environ[name] for name in _SIZES if name in environ), "1")
        if self.size == 1 and expected != "1":
            library = " ".join(self._mpi.Get_library_version().partition("\n")[0].strip("\0").split())
            raise BootstrapError(
                f"pympx: the launcher started {expected} ranks, but mpi4py's MPI ({library}) knows of one: "
                "use the mpiexec of that MPI, or unset PYMPX_BOOTSTRAP"
            )
        self._comm: Any = None
        self._key = b""
        self._left = False

    def _exchange(self) -> Any:
        if os.getpid() != self._pid:
            raise BootstrapError("pympx: a forked child has no place in its parent's job: start a new program instead")
        if self._left or self._mpi.Is_finalized():
            raise BootstrapError("pympx: this rank has already left its job: exchange before finalize")
        if self._comm is None:
            self._comm = self._mpi.COMM_WORLD.Dup()
        return self._comm

    def allgather(self, blob: bytes) -> list[bytes]:
        comm = self._exchange()
        lengths: list[int] = comm.allgather(len(blob))
        everything = bytearray(sum(lengths))
        comm.Allgatherv([blob, self._mpi.BYTE], [everything, lengths, self._mpi.BYTE])
        ends = [sum(lengths[: rank + 1]) for rank in range(self.size)]
        return [bytes(everything[end - length : end]) for end, length in zip(ends, lengths, strict=True)]

    def barrier(self) -> None:
        self._exchange().Barrier()

    def job_key(self) -> bytes:
        if not self._key:
            key = bytearray(secrets.token_bytes(32))
            self._exchange().Bcast([key, self._mpi.BYTE], 0)
            self._key = bytes(key)
        return self._key

    def abort(self, code: int, message: str = "") -> NoReturn:
        if os.getpid() == self._pid and not self._mpi.Is_finalized():
            flush_output(message)
            wait_until_read(0.5)
            message = ""
            self._mpi.COMM_WORLD.Abort(exit_code(code))
        leave(code, message, self._pid)

    def finalize(self) -> None:
        if self._left or os.getpid() != self._pid or self._mpi.Is_finalized():
            return
        self._left = True
        if self._comm is not None:
            self._comm.Free()
        if self._ours:
            self._mpi.Finalize()


def _import() -> Any:
    try:
        module = importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:
        text = str(error).strip().partition("\n")[0]
        raise BootstrapError(f"pympx: PYMPX_BOOTSTRAP=mpi4py, but mpi4py.MPI cannot be imported ({text}): install it, and an MPI") from None
    if module is sys.modules.get("pympx.MPI"):
        raise BootstrapError("pympx: PYMPX_BOOTSTRAP=mpi4py, but here mpi4py.MPI is pympx itself (pympx.as_mpi4py): unset PYMPX_BOOTSTRAP")
    return module
