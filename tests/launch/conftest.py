"""Fixtures of the launch tests."""

from __future__ import annotations

import signal
import subprocess
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import slurm_cluster
from launchers import LAUNCHERS, Launcher, Start, need
from support import environment, execute


@pytest.fixture(autouse=True, scope="session")
def _nothing_is_ignored() -> None:
    """Undo what a shell does to its background jobs: the launcher leaves alone what it was started to ignore."""
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that writes a program's text into a file and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / f"prog{len(list(tmp_path.iterdir()))}.py"
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Slurm cluster of two nodes, both this machine, for the session; the variables that srun needs to find it."""
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as settings:
        yield settings


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Start:
    """Return a function that runs arguments under a launcher, to the end: start(launcher, size, arguments, limit=60.0, **variables)."""

    def run(
        launcher: Launcher | str, size: int, arguments: Sequence[str], limit: float = 60.0, **variables: str
    ) -> subprocess.CompletedProcess[bytes]:
        row = LAUNCHERS[launcher] if isinstance(launcher, str) else launcher
        need(row)
        settings = row.settings() | variables
        if row.name.startswith("srun"):
            settings |= request.getfixturevalue("slurm")
        return execute(row.command(size, arguments), env=environment(**settings), limit=limit)

    return run
