"""Joins the tasks of a plain ``srun`` step (``--mpi=none``): Slurm gives each its place (SLURM_PROCID, SLURM_STEP_NUM_TASKS), but no store.

On one node the tasks meet at an abstract Unix socket named after user, job and step. Each side asks the kernel for the other's user id
(SO_PEERCRED) before it says a word, so the job key, drawn by rank 0, goes to processes of this user only.

Across nodes Slurm's variables hold no secret, and what all tasks of a step know, others can guess. So PYMPX_JOB_KEY_FILE must name a file
that every node sees; then rank 0 listens on the first host of SLURM_STEP_NODELIST (MASTER_ADDR overrides it where node names do not
resolve), at PYMPX_PORT, else at a port from 20000 to 31999 chosen by job and step, and star.py does the rest. Without a key file the
rank ends with one line that names the alternative, ``srun --mpi=pmi2``.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import struct
from collections.abc import Mapping
from typing import Any

from .base import BootstrapError
from .environment import number, place
from .star import HostPort, Meeting, Star, join_timeout, shared_secret

_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_PORTS = range(20000, 32000)


class Slurm(Star):
    """A task of a plain srun step."""

    name = "slurm"

    def __init__(self, environ: Mapping[str, str]) -> None:
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
        rank, size = place(environ, "SLURM_PROCID", tasks)
        job, step = number(environ, "SLURM_JOB_ID", high=2**32 - 1), number(environ, "SLURM_STEP_ID", high=2**32 - 1)
        secret = shared_secret(environ)
        meeting: Meeting
        if environ.get("SLURM_STEP_NUM_NODES", "").strip() == "1":
            meeting = OneNode(f"pympx-{os.getuid()}-{job}-{step}")
        elif secret:
            host = environ.get("MASTER_ADDR") or first_host(environ.get("SLURM_STEP_NODELIST", ""))
            port = number(environ, "PYMPX_PORT", 1, 65535) if "PYMPX_PORT" in environ else _PORTS[(job * 64 + step) % len(_PORTS)]
            meeting = HostPort(host, port, "MASTER_ADDR", private=True)
        else:
            raise BootstrapError(
                f"pympx: started by srun as task {rank} of {size} on several nodes without PMI, where no secret is shared: use "
                "srun --mpi=pmi2 (or pmix), or set PYMPX_JOB_KEY_FILE to a file that all nodes see, or PYMPX_BOOTSTRAP=single"
            )
        known = hashlib.sha256(f"pympx {job} {step}".encode()).digest()
        super().__init__(rank, size, meeting, secret or known, private=bool(secret), timeout=join_timeout(environ))


class OneNode(Meeting):
    """An abstract Unix socket; only processes of this user are spoken to."""

    advice_listen = "is this a second program of the same task? One program of a step can be a rank at a time"
    advice_missing = "do all tasks of the step run this program?"
    advice_reach = "is rank 0 started, and in the same network namespace?"

    def __init__(self, name: str) -> None:
        self.where = f"the local socket @{name}"
        self._address = b"\0" + name.encode()

    def addresses(self) -> list[tuple[int, Any]]:
        return [(socket.AF_UNIX, self._address)]

    def distrust(self, connection: socket.socket) -> str:
        _pid, uid, _gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return "" if uid == os.geteuid() else "another user's process listens there"


def first_host(hosts: str) -> str:
    """Return the first name of a Slurm host list, such as n03 of ``n[03-05,9],m1``. Raises BootstrapError when there is none."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[\]])+", hosts.strip())
    if first is None:
        raise BootstrapError(f"pympx: SLURM_STEP_NODELIST={hosts!r} names no host: set MASTER_ADDR to the host of rank 0")
    return re.sub(r"\[([^\]\-,]*)[^\]]*\]", r"\1", first[0])
