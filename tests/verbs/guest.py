"""Starts jobs over verbs in the virtual machine, whose processors are made of software: Hydra, no Python more than needed, ample time."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pympx.testing.hang import Result, format_stacks, run_ranks

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "build" / "plain" / "tests"
LONG = os.environ.get("PYMPX_TEST_LONG") == "1"
SEED = int(os.environ.get("PYMPX_TEST_SEED") or "1")
#: the devices of the guest, ends of one wire
DEVICES = ("rxe1", "rxe2")
#: every packet on the wire passes here
_COUNTER = Path("/sys/class/net/v0/statistics")


def run(
    n: int, *words: str, devices: int = 2, timeout: float = 150.0, cwd: Path | None = None, settings: Mapping[str, str] | None = None
) -> Result:
    """Run a Python program on `n` ranks, the first half on one device and the rest on the other, or all on the first; it must end well.

    It must end with 0, and be silent on stderr. Fails with the output, after `timeout` s with all stacks.
    """
    choose = f'export PYMPX_VERBS_DEVICE=rxe$((1 + PMI_RANK * {devices} / {n})); exec "$0" "$@"'
    environment = {**os.environ, "PYMPX_TRANSPORT": "verbs", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(ROOT / "tests" / "faults"), **(settings or {})}
    result = run_ranks(["sh", "-c", choose, sys.executable, "-P", *words], n, env=environment, timeout=timeout, cwd=cwd)
    what = f"{n} ranks on {devices} devices: {' '.join(words)[:100]}"
    assert not result.timed_out, f"{what}: not over after {timeout} s\n{result.stdout}\n{result.stderr}\n{format_stacks(result.stacks)}"
    assert result.returncode == 0, f"{what}: exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert result.stderr == "", f"{what}\n{result.stderr}"
    return result


def packets() -> int:
    """Return how many packets have crossed the wire between the devices."""
    return sum(int((_COUNTER / name).read_text()) for name in ("rx_packets", "tx_packets"))
