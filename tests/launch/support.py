"""What the launch tests share: where the launchers are, a clean environment, running with a time limit, watching processes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
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
    """Run `command` to its end within `limit` seconds, outside of the source tree, which ``python -c`` would import from."""
    folder = tempfile.gettempdir()
    return subprocess.run(command, env=env or environment(), input=stdin, capture_output=True, timeout=limit, check=False, cwd=folder)


def check_soon(limit: float, attempt: Callable[[Path], float], folder: Path) -> None:
    """Check that what `attempt` does in a new folder takes less than `limit` seconds, as it returns them.

    It may try three times: other work on the machine can hold it up once, a wait that is not meant to be there does so each time.
    """
    took = []
    for number in range(3):
        (folder / f"try{number}").mkdir()
        took.append(attempt(folder / f"try{number}"))
        if took[-1] < limit:
            return
    raise AssertionError(f"it took {took} s, not less than {limit} s")


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


def running(pid: int) -> bool:
    """Tell whether process `pid` runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")
