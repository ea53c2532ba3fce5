"""64 ranks come together in time, whatever the number of cores: what a start costs beyond starting interpreters."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from launchers import Start

RANKS = 64
LIMIT_S = 5.0

PROGRAM = """
    import time
    begun = time.monotonic()
    import os
    from pympx import MPI
    imported = time.monotonic()
    MPI.COMM_WORLD.Barrier()
    os.write(1, f"{begun} {imported} {time.monotonic()}\\n".encode())
"""


@pytest.mark.parametrize("launcher", ["run", "hydra"])
def test_64_ranks(launcher: str, start: Start, script: Callable[[str], str], record: Callable[[dict[str, Any]], None]) -> None:
    """From the moment that the last interpreter runs its program to the moment that the last rank has left the first Barrier."""
    done = start(launcher, RANKS, [sys.executable, script(PROGRAM)], limit=120)
    assert (done.returncode, done.stderr) == (0, b"")
    rows = [tuple(map(float, line.split())) for line in done.stdout.decode().splitlines()]
    assert len(rows) == RANKS
    begun, imported, met = (max(column) for column in zip(*rows, strict=True))
    figures = {
        "launcher": launcher,
        "ranks": RANKS,
        "wired_up_s": round(met - begun, 2),
        "after_import_s": round(met - imported, 2),
    }
    record(figures)
    assert met - begun < LIMIT_S, figures
