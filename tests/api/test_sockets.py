"""Which transport really carries the bytes: no internet socket over shm and auto, counters, strict naming, C methods."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from pympx import MPI
from pympx.testing.jobs import launcher_command

PROGRAM = """
import json, os, socket, sys
import numpy as np
from pympx import MPI, runtime

def internet():
    inodes = {}
    for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "sctp/eps"):
        try:
            with open(f"/proc/self/net/{kind}") as file:
                next(file)
                for line in file:
                    inodes[line.split()[9]] = kind + " " + line.strip()
        except OSError:
            pass
    found = {}  # by inode: of a line of the kernel's tables the rest changes
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if not target.startswith("socket:["):
            continue
        try:  # also sockets that are bound to nothing yet
            s = socket.socket(fileno=os.dup(int(entry)))
            family = s.family
            s.close()
        except OSError:
            continue
        if family in (socket.AF_INET, socket.AF_INET6):
            found[target[8:-1]] = inodes.get(target[8:-1], target)
    return found

inherited = internet()  # the launcher's: Hydra gives ranks a socket
comm = MPI.COMM_WORLD
seen = {}
payload = 0
for turn in range(30):
    for n in (1, 1000, 100000):
        got = np.zeros(n)
        comm.Sendrecv(np.full(n, float(turn)), (comm.rank + 1) % comm.size, 1, got, (comm.rank - 1) % comm.size, 1)
        assert (got == turn).all()
        payload += got.nbytes
    seen |= internet()
comm.Barrier()
counters = runtime.counters()
everybody = comm.gather(([text for inode, text in seen.items() if inode not in inherited], counters, payload))
if comm.rank == 0:
    print(json.dumps(everybody))
"""


def run(tmp_path: Path, launcher: str, transport: str | None, n: int = 3) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYMPX_")}
    if transport is not None:
        env["PYMPX_TRANSPORT"] = transport
    return subprocess.run(
        launcher_command([sys.executable, "-P", str(program)], n, launcher),
        env=env, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("launcher", ["mpiexec", "run"])
@pytest.mark.parametrize("transport", [None, "auto", "shm", "tcp"])
def test_sockets_and_bytes(tmp_path: Path, launcher: str, transport: str | None) -> None:
    """On one host shm and auto open no internet socket of ours; the named transport carries > 99 % of what ranks exchange."""
    done = run(tmp_path, launcher, transport)
    assert (done.returncode, done.stderr) == (0, "")
    named = transport if transport in ("shm", "tcp") else "shm"
    for opened, counters, payload in json.loads(done.stdout):
        assert bool(opened) == (named == "tcp"), opened
        between = {name: c["sent_bytes"] + c["received_bytes"] for name, c in counters.items() if name != "self"}
        assert between[named] >= 2 * payload
        assert between[named] > 0.99 * sum(between.values())
        assert counters[named]["medium_sent_bytes"] + counters[named]["medium_received_bytes"] > 0


@pytest.mark.parametrize("launcher", ["mpiexec", "run"])
@pytest.mark.parametrize("transport", ["nonsense", "verbs", "self"])
def test_a_transport_that_cannot_serve_ends_the_run(tmp_path: Path, launcher: str, transport: str) -> None:
    """Non-zero, and every line on stderr names the transport; no traceback, no other transport instead."""
    done = run(tmp_path, launcher, transport)
    assert done.returncode != 0 and done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    ours = [line for line in lines if "PYMPX_TRANSPORT" in line]
    assert ours and all(transport in line for line in ours), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert len(ours) <= 3 and all(line.startswith("pympx: ") for line in ours), done.stderr  # one line per rank


HOT = [
    "Send", "Recv", "Isend", "Irecv", "Ssend", "Issend", "Rsend", "Irsend", "Bsend", "Sendrecv", "Sendrecv_replace", "Probe",
    "Iprobe", "send", "recv", "isend", "irecv", "sendrecv", "Barrier", "Bcast", "Reduce", "Allreduce", "Gather", "Gatherv",
    "Scatter", "Scatterv", "Allgather", "Allgatherv", "Alltoall", "Alltoallv", "Alltoallw", "Get_rank", "Get_size",
]  # fmt: skip
HOT_REQUEST = ["Wait", "Test", "wait", "test", "Cancel"]


@pytest.mark.parametrize(("cls", "name"), [*((MPI.Intracomm, n) for n in HOT), *((MPI.Request, n) for n in HOT_REQUEST)])
def test_hot_methods_are_c_methods(cls: Any, name: str) -> None:
    """A Python frame would cost 50 to 100 ns of a message's 280."""
    found = getattr(cls, name)
    assert not isinstance(found, types.FunctionType), f"{cls.__name__}.{name} is a Python function"
    assert type(found).__name__ in ("method_descriptor", "cython_function_or_method"), type(found)
