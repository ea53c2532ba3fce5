"""What the launch tests share: where the launchers are, a clean environment, running with a time limit, watching processes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pympx

RUN = (sys.executable, "-m", "pympx", "run")
_SOURCE = Path(pympx.__file__).resolve().parents[1]
_LAUNCHER_SIGNS = ("PMI", "PMIX_", "OMPI_", "SLURM_", "PYMPX_", "MPI_LOCAL", "TORCHELASTIC", "MASTER_", "HYD")


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without any launcher's signs, with pympx importable and `settings` on top."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHER_SIGNS) and k not in ("RANK", "WORLD_SIZE")}
    if "site-packages" not in _SOURCE.parts:
        clean["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_SOURCE), clean.get("PYTHONPATH", "")]))
    return clean | settings


def mpiexec() -> str:
    """MPICH's mpiexec from the environment of this interpreter."""
    path = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    assert path is not None, "these tests need Hydra: pip install mpich==5.0.2"
    return path


def execute(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: bytes = b"", limit: float = 30.0
) -> subprocess.CompletedProcess[bytes]:
    """Run `command` to its end within `limit` seconds."""
    return subprocess.run(command, env=env or environment(), input=stdin, capture_output=True, timeout=limit, check=False)


def execute_ranks(programs: Sequence[Sequence[str]], envs: Sequence[Mapping[str, str]], limit: float = 30.0) -> list[tuple[int, str, str]]:
    """Run several commands at once; return (exit code, stdout, stderr) of each."""
    running = [
        subprocess.Popen(program, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for program, env in zip(programs, envs, strict=True)
    ]
    end = time.monotonic() + limit
    results = []
    try:
        for process in running:
            out, err = process.communicate(timeout=max(0.1, end - time.monotonic()))
            results.append((process.returncode, out, err))
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait()
    return results


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def eventually(condition: Callable[[], bool], limit: float) -> bool:
    """Return True as soon as `condition` holds, False after `limit` seconds."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def running(pid: int) -> bool:
    """Tell whether process `pid` runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")
