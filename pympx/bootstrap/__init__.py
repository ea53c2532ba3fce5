"""Who am I, who are the others: finds the launcher that started this process and joins it.

`detect` names the way, `join` takes it. Signs of a launcher that cannot be joined raise BootstrapError, so that no rank ever believes to
be alone by mistake; PYMPX_BOOTSTRAP=single says that it is. A child process inherits its parent's variables but not its place: `join`
leaves a mark in the environment, ``PYMPX_BOOT=pid:signature``, by which a child recognizes that the variables were meant for its parent.
A launcher started by a rank sets variables of its own, so that its ranks have another signature and join that launcher.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, MutableMapping

from .base import Bootstrap, BootstrapError
from .environment import socket_inode

__all__ = ["Bootstrap", "BootstrapError", "detect", "join", "join_or_exit"]

_WAYS = ("pmi1", "env", "single")
_MARK = "PYMPX_BOOT"
_SIGNATURE = (
    "PYMPX_BOOTSTRAP",
    "PMI_FD", "PMI_RANK", "PMI_SIZE", "PMI_PORT", "PMI_ID",
    "PMIX_NAMESPACE", "PMIX_RANK", "OMPI_COMM_WORLD_SIZE",
    "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT",
    "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID",
)  # fmt: skip
#: Slurm numbers the steps that are not started by a user's srun (batch script, interactive shell) from here on.
_SLURM_SPECIAL_STEPS = 0xFFFFFFF0


def _signature(environ: Mapping[str, str]) -> str:
    words = "\0".join(environ.get(key, "") for key in _SIGNATURE)
    return hashlib.sha256(words.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _mark(environ: Mapping[str, str]) -> str:
    return f"{os.getpid()}:{_signature(environ)}:{socket_inode(environ.get('PMI_FD'))}"


def _is_child_of_rank(environ: Mapping[str, str]) -> bool:
    pid, _, rest = environ.get(_MARK, "").partition(":")
    signature, _, inode = rest.partition(":")
    if not signature or pid == str(os.getpid()) or signature != _signature(environ):
        return False
    # Two Hydras can set equal variables; the sockets behind PMI_FD still differ.
    own = str(socket_inode(environ.get("PMI_FD")))
    return own in ("0", inode)


def _positive(environ: Mapping[str, str], *keys: str) -> int:
    """Return the first of `keys` that is set, as an integer; 0 when none is, or when it is no number."""
    text = next((environ[key] for key in keys if key in environ), "")
    return int(text) if text.isascii() and text.isdecimal() else 0


def detect(environ: Mapping[str, str]) -> str:
    """Return how this process joins its job: "pmi1", "env" or "single".

    Raises BootstrapError when a launcher left its signs but cannot be joined, or PYMPX_BOOTSTRAP names no way.
    """
    if _is_child_of_rank(environ):
        return "single"
    forced = environ.get("PYMPX_BOOTSTRAP", "")
    if forced:
        if forced not in _WAYS:
            raise BootstrapError(f"pympx: PYMPX_BOOTSTRAP={forced!r} is none of {', '.join(_WAYS)}: correct or unset it")
        return forced
    if socket_inode(environ.get("PMI_FD")) or ("PMI_PORT" in environ and "PMI_ID" in environ):
        return "pmi1"
    if "PMI_FD" in environ and not environ["PMI_FD"].strip().isdecimal():
        raise BootstrapError(f"pympx: PMI_FD={environ['PMI_FD']!r} is not a descriptor's number: correct or unset it")
    if "PMIX_NAMESPACE" in environ and "PMIX_RANK" in environ:
        raise BootstrapError(
            f"pympx: started by a PMIx launcher (PMIX_RANK={environ['PMIX_RANK']}: Open MPI, PRRTE or srun --mpi=pmix), "
            "which cannot be joined yet: use python -m pympx run, MPICH's mpiexec or srun --mpi=pmi2"
        )
    if "RANK" in environ and "WORLD_SIZE" in environ:
        if "MASTER_ADDR" in environ or environ["WORLD_SIZE"].strip() == "1":
            return "env"
        raise BootstrapError(
            f"pympx: RANK={environ['RANK']} and WORLD_SIZE={environ['WORLD_SIZE']} are set without MASTER_ADDR, the host of rank 0: "
            "set it, or PYMPX_BOOTSTRAP=single"
        )
    if _positive(environ, "OMPI_COMM_WORLD_SIZE") > 1:
        raise BootstrapError(
            f"pympx: started by Open MPI (OMPI_COMM_WORLD_SIZE={environ['OMPI_COMM_WORLD_SIZE']}), which cannot be joined: "
            "use python -m pympx run or MPICH's mpiexec, or set PYMPX_BOOTSTRAP=single"
        )
    tasks = _positive(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    in_step = "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ and _positive(environ, "SLURM_STEP_ID") < _SLURM_SPECIAL_STEPS
    if in_step and tasks > 1:
        raise BootstrapError(
            f"pympx: started by srun as task {environ['SLURM_PROCID']} of {tasks} without PMI, so it cannot be joined: "
            "use srun --mpi=pmi2, or set PYMPX_BOOTSTRAP=single"
        )
    return "single"


def join(environ: MutableMapping[str, str] | None = None) -> Bootstrap:
    """Join the job that this process was started in; `environ` (default: os.environ) gets the mark for its children.

    Waits for no other rank. Raises BootstrapError, one line, when it cannot join.
    """
    if environ is None:
        environ = os.environ
    way = detect(environ)
    mark = _mark(environ)
    joined: Bootstrap
    if way == "pmi1":
        from .pmi1 import Pmi1

        joined = Pmi1(environ)
    elif way == "env":
        from .env import Env

        joined = Env(environ)
    else:
        from .single import Single

        joined = Single()
    environ[_MARK] = mark
    return joined


def join_or_exit() -> Bootstrap:
    """Join, or end the program with exit code 1 and one line on stderr: what the runtime calls at its start."""
    try:
        return join()
    except BootstrapError as error:
        sys.exit(str(error))
