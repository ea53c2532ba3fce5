"""EP, CG and IS reach the published answers on 1 to 4 ranks, and their payload goes where it should."""

from __future__ import annotations

import pytest
from apps_harness import Launcher, check_traffic, check_verified

NPB = "apps/npb/npb.py"
BENCHMARKS = ["ep", "cg", "is"]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("benchmark_name", BENCHMARKS)
def test_class_s(launch: Launcher, benchmark_name: str, ranks: int, transport: str) -> None:
    run = launch(ranks, NPB, benchmark_name, "--class", "S", transport=transport)
    check_verified(run, ranks)
    assert "verification SUCCESSFUL" in run.out.splitlines()


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("benchmark_name", BENCHMARKS)
def test_payload(launch: Launcher, benchmark_name: str, ranks: int, transport: str) -> None:
    check_traffic(launch(ranks, NPB, benchmark_name, "--class", "S", transport=transport), ranks, transport)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("benchmark_name", BENCHMARKS)
def test_class_w(launch: Launcher, benchmark_name: str, ranks: int, transport: str) -> None:
    run = launch(ranks, NPB, benchmark_name, "--class", "W", transport=transport)
    check_verified(run, ranks)
    check_traffic(run, ranks, transport)


@pytest.mark.parametrize("benchmark_name", BENCHMARKS)
def test_many_ranks(launch: Launcher, benchmark_name: str) -> None:
    check_verified(launch(7, NPB, benchmark_name), 7)
