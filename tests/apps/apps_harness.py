"""Starts the mini-apps under mpiexec, with a time limit, and hands back what they said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpi_launchers
import pytest

ROOT = Path(__file__).resolve().parents[2]
TIME_LIMIT = 120.0


@dataclass(frozen=True)
class Finished:
    """A program that has ended."""

    code: int
    out: str
    err: str
    record: dict[str, Any]


def _mpiexec() -> str:
    beside = Path(sys.executable).with_name("mpiexec")
    if not beside.exists():
        pytest.fail(f"no mpiexec beside {sys.executable}; pip install 'pympx[launcher]'")
    return str(beside)


class Launcher:
    """Runs each program once: the same call again gives the same result."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done: dict[tuple[int, tuple[str, ...], str, str], Finished] = {}

    def __call__(self, ranks: int, program: str, *arguments: str, transport: str = "shm", mpi: str = "") -> Finished:
        """Run `program` (a path from the repository's root) on `ranks` ranks over `transport`; `mpi`: under that MPI's mpiexec."""
        key = (ranks, (program, *arguments), transport, mpi)
        if key not in self._done:
            self._done[key] = self._start(*key)
        return self._done[key]

    def _start(self, ranks: int, words: tuple[str, ...], transport: str, mpi: str) -> Finished:
        record = self._folder / f"{len(self._done)}.json"
        start = mpi_launchers.command(mpi, ranks) if mpi else [_mpiexec(), "-n", str(ranks)]
        command = [*start, sys.executable, str(ROOT / words[0]), *words[1:], "--json", str(record)]
        environment = {**os.environ, "PYMPX_TRANSPORT": transport, "OMP_NUM_THREADS": "1"}
        environment.update(mpi_launchers.settings(mpi) if mpi else {})
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._folder,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=TIME_LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)  # Hydra takes its ranks with it
            out, err = process.communicate(timeout=10)
            pytest.fail(f"not finished after {TIME_LIMIT} s: {' '.join(command)}\n{out}\n{err}")
        return Finished(process.returncode, out, err, json.loads(record.read_text()) if record.exists() else {})


def check_verified(run: Finished, ranks: int) -> None:
    """Assert that `run` verified, and was silent on stderr."""
    assert run.code == 0, run.out + run.err
    assert run.err == ""
    assert run.record["verified"] is True
    assert run.record["ranks"] == ranks
    assert run.record["findings"] == []


def check_traffic(run: Finished, ranks: int, transport: str) -> None:
    """Assert that the bytes between ranks went over `transport` and are within 10 % of the analytic volume."""
    counters = run.record["counters"]
    carried = {name: counts["sent_bytes"] for name, counts in counters.items() if name != "self"}
    expected = run.record["payload_expected"]
    if ranks == 1:
        assert expected == 0
        assert sum(carried.values()) == 0
        return
    assert expected > 0
    assert carried.get(transport, 0) > 0.99 * sum(carried.values())
    assert carried.get(transport, 0) == pytest.approx(expected, rel=0.1)
    assert f"transport {transport}: {carried[transport]} bytes" in run.out
