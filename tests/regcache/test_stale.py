"""Nothing stale is ever sent or received through kept registrations, whatever becomes of the memory; the same games find planted faults.

``ci/native plain --suite regcache`` builds what is played with. 10^4 rounds, in the long form 10^5.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
#: above which card: io_uring, or verbs (in the virtual machine; tests/verbs says how)
CARD = os.environ.get("REGCACHE_CARD", "io_uring")
NATIVE = HERE.parents[1] / "build" / "plain"
LONG = os.environ.get("PYMPX_TEST_LONG") == "1"
ROUNDS = 100_000 if LONG else 10_000
#: rounds in which a planted fault must show
ROUNDS_WITH_FAULT = {"no_probe": 20_000, "naive": 2_000}
#: what is planted: to leave the probe out shows rarely, and the virtual machine is slow
FAULTS = [fault for fault in ROUNDS_WITH_FAULT if LONG or CARD == "io_uring" or fault == "naive"]


@pytest.fixture(scope="module")
def seed() -> int:
    value = int(os.environ.get("PYMPX_TEST_SEED") or secrets.randbits(31))
    print(f"PYMPX_TEST_SEED={value}")
    return value


def play(fault: str, rounds: int, seed: int) -> dict[str, Any]:
    """Return the score of games with a planted fault, or ``none``."""
    words = [sys.executable, str(HERE / "games.py"), str(NATIVE / "tests" / "regcache" / f"{CARD}_{fault}.so"), str(rounds), str(seed)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # its threads would be ended and begun at each fork
    environment["VERBS_OBJECTS"] = str(NATIVE / "tests" / "verbs" / "verbs_objects.so")
    environment["VERBS_LIBRARY"] = str(NATIVE / "transports" / "verbs" / "_fastpath.so")
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60 + rounds / 30, check=False)
    assert done.returncode == 0, f"seed {seed}: exit code {done.returncode}\n{done.stderr[-3000:]}"
    assert done.stderr == ""
    score: dict[str, Any] = json.loads(done.stdout)
    return score


def test_no_byte_is_stale(seed: int, record: Callable[[dict[str, Any]], None]) -> None:
    score = play("none", ROUNDS, seed)
    record(score)
    assert score["reason"] == ""
    assert score["rounds"] >= ROUNDS
    assert (score["stale_bytes"], score["stale_rounds"]) == (0, 0)
    assert (score["refused"], score["bad_children"]) == (0, 0)
    assert score["hits"] >= 0.5 * score["rounds"]
    assert score["reused"] >= 0.1 * score["rounds"]
    assert score["hits"] + score["misses"] + score["uncacheable"] == score["rounds"]
    assert min(score["uncacheable"], score["invalidated"], score["forks"]) > 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, seed: int, record: Callable[[dict[str, Any]], None]) -> None:
    score = play(fault, ROUNDS_WITH_FAULT[fault], seed)
    record(score)
    assert score["stale_bytes"] > 0
    assert score["hits"] > 0
