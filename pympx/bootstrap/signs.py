"""The signs that launchers leave in the environment, and whether they were meant for this very process.

A child inherits the variables of a rank but not its place. So a rank that joins leaves a mark, ``PYMPX_BOOT=pid:kind=print,...``, with
a fingerprint of every kind of signs that it saw. A descendant takes only those signs for its own that the mark does not show: a plain
child has none and is alone; the ranks of a launcher that a rank started find that launcher's signs beside the stale ones.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping

from .environment import ancestors, environment_of, made_by_ancestor, socket_inode

MARK = "PYMPX_BOOT"

#: Kinds of signs, in the order in which they are believed; a kind is there when all of its first variables are set.
_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pmi-fd": (("PMI_FD",), ("PMI_RANK", "PMI_SIZE")),
    "pmi-port": (("PMI_PORT", "PMI_ID"), ()),
    "pmix": (("PMIX_NAMESPACE", "PMIX_RANK"), ()),
    "env": (("RANK", "WORLD_SIZE"), ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")),
    "open-mpi": (("OMPI_COMM_WORLD_SIZE",), ("OMPI_COMM_WORLD_RANK", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_hnp_uri")),
    "srun": (("SLURM_STEP_ID", "SLURM_PROCID"), ("SLURM_JOB_ID",)),
}
#: Kinds that an mpiexec leaves. Of several, only the innermost one's are for this process.
_MPIEXEC = ("pmi-fd", "pmi-port", "pmix")


def _prints(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the fingerprint of each kind of signs that is there."""
    found = {}
    for kind, (needed, more) in _KINDS.items():
        if all(name in environ for name in needed):
            words = [environ.get(name, "") for name in needed + more]
            if kind == "pmi-fd":
                # Two Hydras can set equal variables; the sockets behind them still differ.
                words.append(str(socket_inode(environ["PMI_FD"])))
            found[kind] = hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return found


def mark(environ: Mapping[str, str]) -> str:
    """Return the value of PYMPX_BOOT that tells this process's children whose the signs are."""
    return f"{os.getpid()}:" + ",".join(f"{kind}={text}" for kind, text in _prints(environ).items())


def is_descendant(environ: Mapping[str, str]) -> bool:
    """Tell whether an ancestor of this process has joined a job."""
    pid, colon, _ = environ.get(MARK, "").partition(":")
    return bool(colon) and pid != str(os.getpid())


def own_signs(environ: Mapping[str, str]) -> list[str]:
    """Return the kinds of signs that were meant for this process, in the order in which they are believed."""
    seen = environ.get(MARK, "").partition(":")[2].split(",") if is_descendant(environ) else []
    own = [kind for kind, text in _prints(environ).items() if f"{kind}={text}" not in seen]
    if "pmi-fd" in own and is_descendant(environ) and not _has_launcher(environ["PMI_FD"]):
        own.remove("pmi-fd")
    for first, second in itertools.combinations(_MPIEXEC, 2):
        if first in own and second in own:
            own.remove(_older(environ, first, second))
    return own


def _older(environ: Mapping[str, str], first: str, second: str) -> str:
    """Return which of two kinds of signs was there before the other: the one that the nearest ancestor without both already had.

    Two launchers are nested and no rank of the outer one has joined, such as a shell script that calls mpiexec. Where the ancestors do
    not tell, `first` is believed.
    """
    ours = _prints(environ)
    for pid in ancestors():
        above = environment_of(pid)
        if above is None:
            break
        theirs = _prints(above)
        if theirs.get(first) != ours[first]:
            return second
        if theirs.get(second) != ours[second]:
            return first
    return second


def _has_launcher(descriptor: str) -> bool:
    """Tell a descendant whether PMI_FD, which has another fingerprint than the rank's, is more than closed, or opened anew by itself."""
    return bool(socket_inode(descriptor)) and made_by_ancestor(int(descriptor))
