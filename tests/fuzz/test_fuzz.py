"""Runs the fuzz targets: each replays its kept corpus, then fuzzes on for 5 seconds (10 minutes in the long form), four targets at a time.

A target fails by a crash, a sanitizer's report, an exception, a hang, or memory beyond its bound; its input then lies in build/fuzz/found.
``python tests/fuzz/keep.py TARGET`` keeps what it found new. test_planted.py shows that targets find faults.

The C++ targets are built by ``ci/native fuzz``, those in Python run on the installed pympx.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "fuzz"
LONG = os.environ.get("PYMPX_TEST_LONG") == "1"
SECONDS = 600 if LONG else 5
NATIVE = ("engine_messages", "engine_wireup", "shm_address", "tcp_acceptor", "tcp_address", "tcp_connector", "tcp_frames")
PYTHON = ("launcher_frames", "pickles", "pmi1_client", "pmi1_server", "settings", "star_rank", "star_root")
#: seconds for one input, MiB of all memory and of one allocation, longest input
LIMITS = ["-timeout=10", "-rss_limit_mb=800", "-malloc_limit_mb=64", "-max_len=1200"]


def environment() -> dict[str, str]:
    """What sanitizers are told: a huge allocation fails as it does without them; leaks are findings."""
    return os.environ | {
        "ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "LSAN_OPTIONS": f"suppressions={HERE / 'lsan.supp'}:print_suppressions=0",
    }


def command(target: str) -> list[str]:
    """Return what runs a target, without options."""
    return [str(BUILD / "tests" / "fuzz" / f"fuzz_{target}")] if target in NATIVE else [sys.executable, str(HERE / f"{target}.py")]


@dataclass
class Result:
    """What libFuzzer said of one run."""

    code: int
    said: str

    def number(self, pattern: str) -> int:
        found = re.findall(pattern, self.said)
        return int(found[-1]) if found else 0


def fuzz(target: str, seed: int) -> Result:
    """Replay the kept corpus of a target and fuzz on for SECONDS; what is new goes to build/fuzz/corpus."""
    found, new = BUILD / "found" / target, BUILD / "corpus" / target
    for folder in (found, new):
        folder.mkdir(parents=True, exist_ok=True)
    words = [
        *command(target), *LIMITS, f"-max_total_time={SECONDS}", f"-seed={seed}", "-len_control=0", "-print_final_stats=1",
        f"-artifact_prefix={found}/", str(new), str(HERE / "corpus" / target),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            words, env=environment(), cwd=BUILD, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=SECONDS * 1.5 + 60, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return Result(-1, (error.stdout or b"").decode(errors="replace") + "\nit does not end")
    return Result(done.returncode, done.stdout.decode(errors="replace"))


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest) -> Iterator[tuple[int, dict[str, Future[Result]]]]:
    """The targets of this session under way, four at a time, with the seed that libFuzzer got."""
    named = (re.fullmatch(r"test_target\[(\w+)\]", item.name) for item in request.session.items)
    chosen = [name[1] for name in named if name]
    seed = int(os.environ.get("PYMPX_TEST_SEED") or secrets.randbits(31)) or 1
    BUILD.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(4) as pool:
        futures = {target: pool.submit(fuzz, target, seed) for target in chosen}
        yield seed, futures
        for future in futures.values():
            future.cancel()


@pytest.mark.parametrize("target", [*NATIVE, *PYTHON])
def test_target(target: str, runs: tuple[int, dict[str, Future[Result]]], record: Any) -> None:
    seed, futures = runs
    corpus = [path for path in (HERE / "corpus" / target).iterdir() if path.is_file()]
    assert corpus, "no kept corpus"
    result = futures[target].result()
    assert result.code == 0, f"exit code {result.code}\n{result.said[-6000:]}"
    executions = result.number(r"stat::number_of_executed_units:\s*(\d+)") or result.number(r"Done (\d+) runs")
    coverage = result.number(r"\bcov: (\d+)")
    assert executions > len(corpus), result.said[-2000:]
    record({"seed": seed, "executions": executions, "coverage": coverage, "corpus": len(corpus)})


def test_the_corpora_are_small() -> None:
    assert sum(path.stat().st_size for path in (HERE / "corpus").rglob("*") if path.is_file()) < 1 << 20
