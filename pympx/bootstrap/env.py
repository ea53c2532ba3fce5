"""Joins ranks that share only variables: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT (torchrun, Kubernetes, shell loops).

Rank 0 listens on MASTER_ADDR's own address, the others connect to it (star.py). The port is PYMPX_PORT, else MASTER_PORT (default 29500),
plus one under torchrun, whose agent holds MASTER_PORT itself.

With PYMPX_JOB_KEY_FILE (a file of at least 16 bytes, the same for all ranks, not readable by others) the job's secret is its content.
Without it the secret is made of what tells runs apart (the port, torchrun's run id and restart count): that keeps two jobs from mixing by
mistake, but everybody who can guess these values can join and read the job key. So without it all ranks must be on one host, and only
processes of that host, of whichever user, are spoken to. Across hosts set PYMPX_JOB_KEY_FILE.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from .base import BootstrapError
from .environment import number, place
from .star import HostPort, Star, join_timeout, shared_secret


class Env(Star):
    """A rank placed by RANK and WORLD_SIZE."""

    name = "env"

    def __init__(self, environ: Mapping[str, str]) -> None:
        rank, size = place(environ, "RANK", "WORLD_SIZE")
        host = environ.get("MASTER_ADDR", "")
        if not host and size > 1:
            raise BootstrapError("pympx: MASTER_ADDR, the host of rank 0, is not set: set it, or PYMPX_BOOTSTRAP=single")
        port = _port(environ)
        secret = shared_secret(environ)
        run = [str(port), *(environ.get(f"TORCHELASTIC_{key}", "") for key in ("RUN_ID", "RESTART_COUNT"))]
        known = hashlib.sha256("\0".join(["pympx", *run]).encode("utf-8", "surrogateescape")).digest()
        meeting = HostPort(host, port, "MASTER_ADDR", private=bool(secret))
        super().__init__(rank, size, meeting, secret or known, private=bool(secret), timeout=join_timeout(environ))


def _port(environ: Mapping[str, str]) -> int:
    if "PYMPX_PORT" in environ:
        return number(environ, "PYMPX_PORT", 1, 65535)
    port = number(environ, "MASTER_PORT", 1, 65534) if "MASTER_PORT" in environ else 29500
    return port + (environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True")
