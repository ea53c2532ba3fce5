"""Who am I, who are the others: finds the launcher that started this process and joins it.

`detect` names the way, `join` takes it. Signs of a launcher that cannot be joined raise BootstrapError, so that no rank ever believes to
be alone by mistake; PYMPX_BOOTSTRAP=single says that it is. Whose the signs are, a rank's or its child's, is told by signs.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping

from .base import Bootstrap, BootstrapError
from .environment import socket_inode
from .signs import MARK, is_descendant, mark, own_signs

__all__ = ["Bootstrap", "BootstrapError", "detect", "join", "join_or_exit"]

#: How a rank can join, and the signs that each way needs; mpi4py's launcher is MPI's own affair.
_WAYS: dict[str, tuple[str, ...]] = {
    "pmi1": ("pmi-fd", "pmi-port"),
    "pmix": ("pmix",),
    "env": ("env",),
    "slurm": ("srun",),
    "mpi4py": ("pmi-fd", "pmi-port", "pmix", "open-mpi", "srun"),
    "single": (),
}
#: Slurm numbers the steps that are not started by a user's srun (batch script, interactive shell) from here on.
_SLURM_SPECIAL_STEPS = 0xFFFFFFF0


def _positive(environ: Mapping[str, str], *keys: str) -> int:
    """Return the first of `keys` that is set, as an integer; 0 when none is, or when it is no number."""
    text = next((environ[key] for key in keys if key in environ), "")
    return int(text) if text.isascii() and text.isdecimal() else 0


def detect(environ: Mapping[str, str]) -> str:
    """Return how this process joins its job: "pmi1", "pmix", "env", "slurm", "mpi4py" or "single".

    Raises BootstrapError when a launcher left its signs but cannot be joined, or PYMPX_BOOTSTRAP names no way.
    """
    own = own_signs(environ)
    forced = environ.get("PYMPX_BOOTSTRAP", "") or ("mpi4py" if _over_mpi(environ) else "")
    if forced:
        return _forced(forced, own, environ)
    if "pmi-fd" in own and not environ["PMI_FD"].strip().isdecimal():
        raise BootstrapError(f"pympx: PMI_FD={environ['PMI_FD']!r} is not a descriptor's number: correct or unset it")
    if ("pmi-fd" in own and socket_inode(environ["PMI_FD"])) or "pmi-port" in own:
        return "pmi1"
    if "pmix" in own:
        return "pmix"
    if "env" in own:
        if "MASTER_ADDR" in environ or environ["WORLD_SIZE"].strip() == "1":
            return "env"
        raise BootstrapError(
            f"pympx: RANK={environ['RANK']} and WORLD_SIZE={environ['WORLD_SIZE']} are set without MASTER_ADDR, the host of rank 0: "
            "set it, or PYMPX_BOOTSTRAP=single"
        )
    if "open-mpi" in own and _positive(environ, "OMPI_COMM_WORLD_SIZE") > 1:
        raise BootstrapError(
            f"pympx: started by Open MPI (OMPI_COMM_WORLD_SIZE={environ['OMPI_COMM_WORLD_SIZE']}) without PMIx, so it cannot be joined: "
            "use python -m pympx run or another mpiexec, or set PYMPX_BOOTSTRAP=single"
        )
    if "srun" in own and _positive(environ, "SLURM_STEP_ID") < _SLURM_SPECIAL_STEPS:
        return "slurm" if _positive(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") > 1 else "single"
    return "single"


def _over_mpi(environ: Mapping[str, str]) -> bool:
    """Return whether the messages go over another MPI: it is then MPI that has to join the launcher, and nobody can twice."""
    transport = environ.get("PYMPX_TRANSPORT", "")
    return transport == "mpi" or (transport == "fault" and "over=mpi" in environ.get("PYMPX_FAULT", "").split(","))


def _forced(way: str, own: list[str], environ: Mapping[str, str]) -> str:
    """Return what PYMPX_BOOTSTRAP=`way` means here: it is inherited by children, which have no place of their own."""
    if way not in _WAYS:
        raise BootstrapError(f"pympx: PYMPX_BOOTSTRAP={way!r} is none of {', '.join(_WAYS)}: correct or unset it")
    if not is_descendant(environ) or any(kind in own for kind in _WAYS[way]):
        return way
    if own and way != "single":
        raise BootstrapError(
            f"pympx: PYMPX_BOOTSTRAP={way} is inherited from a rank, but the launcher inside it left other signs ({', '.join(own)}): "
            "unset it for that launcher"
        )
    return "single"


def join(environ: MutableMapping[str, str] | None = None) -> Bootstrap:
    """Join the job that this process was started in; `environ` (default: os.environ) gets the mark for its children.

    Waits for no other rank. Raises BootstrapError, one line, when it cannot join.
    """
    if environ is None:
        environ = os.environ
    way = detect(environ)
    left = mark(environ)
    joined = _join(way, environ)
    environ[MARK] = left
    return joined


def _join(way: str, environ: Mapping[str, str]) -> Bootstrap:
    if way == "pmi1":
        from .pmi1 import Pmi1

        if "pmi-fd" not in own_signs(environ):  # an outer launcher's
            environ = {name: value for name, value in environ.items() if name != "PMI_FD"}
        return Pmi1(environ)
    if way == "pmix":
        from .pmix import Pmix

        return Pmix(environ)
    if way == "env":
        from .env import Env

        return Env(environ)
    if way == "slurm":
        from .slurm import Slurm

        return Slurm(environ)
    if way == "mpi4py":
        from .mpi4py import Mpi4py

        return Mpi4py(environ)
    from .single import Single

    return Single()


def join_or_exit() -> Bootstrap:
    """Join, or end the program with exit code 1 and one line on stderr: what the runtime calls at its start."""
    try:
        return join()
    except BootstrapError as error:
        sys.exit(str(error))
