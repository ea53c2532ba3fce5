"""What the tests on several hosts share: starting programs over namespace hosts by Hydra and by our launcher, with a time limit."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pympx.testing.hosts import HEAD, Hosts

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 40.0
LONG = os.environ.get("PYMPX_TEST_LONG") == "1"
LAUNCHERS = ("hydra", "run")
_SIGNS = ("PMI", "PMIX_", "OMPI_", "SLURM_", "PYMPX_", "MPI_LOCAL", "TORCHELASTIC", "MASTER_", "HYD")


def environment(**settings: str) -> dict[str, str]:
    """This process's environment without any launcher's signs."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_SIGNS) and k not in ("RANK", "WORLD_SIZE")} | settings


def mpiexec() -> str:
    """MPICH's mpiexec beside this interpreter."""
    path = Path(sys.executable).with_name("mpiexec")
    if not path.exists():
        pytest.fail(f"no mpiexec beside {sys.executable}: pip install mpich==5.0.2")
    return str(path)


def launcher_command(hosts: Hosts, launcher: str, placement: str, size: int, words: Sequence[str]) -> list[str]:
    """Return what starts `size` ranks of `words` on hosts placed as ``a:2,b:2``. Hydra runs in `head`, where its proxies find it."""
    if launcher == "hydra":
        spread = ["-launcher", "ssh", "-launcher-exec", hosts.rsh, "-hosts", placement, "-n", str(size)]
        return hosts.inside(HEAD, [mpiexec(), *spread, *words])
    return [sys.executable, "-P", "-m", "pympx", "run", "-n", str(size), "--hosts", placement, "--rsh", hosts.rsh, *words]


def launch(
    hosts: Hosts, launcher: str, placement: str, size: int, words: Sequence[str], *, folder: Path, stdin: str = "", **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run `words` to its end, from `folder`."""
    os.chdir(folder)  # a host is entered in the current directory
    return subprocess.run(
        launcher_command(hosts, launcher, placement, size, words),
        env=environment(**settings), input=stdin, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip


def program(folder: Path, text: str) -> list[str]:
    """Write a program; return the command that runs it."""
    path = folder / f"program{len(list(folder.iterdir()))}.py"
    path.write_text(textwrap.dedent(text))
    return [sys.executable, "-P", str(path)]


def seed() -> int:
    """PYMPX_TEST_SEED, or a random one; printed."""
    value = int(os.environ.get("PYMPX_TEST_SEED") or secrets.randbits(31))
    print(f"PYMPX_TEST_SEED={value}")
    return value


@contextlib.contextmanager
def running(hosts: Hosts, words: list[str], folder: Path, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """Four ranks of `words` on hosts a and b while the block runs; what is left of them then is killed. stderr goes to FOLDER/stderr."""
    os.chdir(folder)
    with (folder / "stderr").open("w") as stderr:
        job = subprocess.Popen(
            launcher_command(hosts, "run", "a:2,b:2", 4, words), env=environment(**settings),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
        try:
            yield job
        finally:
            job.kill()
            job.communicate()


def first_line(job: subprocess.Popen[str], folder: Path) -> str:
    """Return what a job says first, within 30 s; fail with its stderr when it does not."""
    assert job.stdout
    assert select.select([job.stdout], [], [], 30)[0], (folder / "stderr").read_text()
    line = job.stdout.readline()
    assert line, (folder / "stderr").read_text()
    return line


def finish(job: subprocess.Popen[str], folder: Path, limit: float) -> str:
    """Wait for the job's end, which must be a good one without a word on stderr; return what it said."""
    try:
        said, _ = job.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"not over after {limit:g} s: {(folder / 'stderr').read_text()}") from None
    assert (job.returncode, (folder / "stderr").read_text()) == (0, ""), said
    return said
